//! What the streaming server asks of whoever knows containers.

use std::fmt;
use std::os::fd::OwnedFd;

use futures_util::future::BoxFuture;

/// Starts processes, joins them, and connects to ports; the daemon gives it to [`Server`](crate::Server).
///
/// A method is called after a client has come to its URL and has opened all its streams, so that a URL that nobody uses
/// costs nothing. The client waits meanwhile: whoever implements this gives its own waits their deadlines.
pub trait Backend: Send + Sync + 'static {
    /// Starts a process in a container (CRI `Exec`).
    ///
    /// When the future is dropped before its end, the client has gone: what was started must end by itself then.
    fn exec(&self, request: ExecRequest) -> BoxFuture<'_, Result<Process, Failure>>;

    /// Joins the main process of a container (CRI `Attach`). Dropping the future detaches.
    fn attach(&self, request: AttachRequest) -> BoxFuture<'_, Result<Process, Failure>>;

    /// Connects to `port` on the loopback of a sandbox (CRI `PortForward`): a connected stream socket, for which the
    /// server sets non-blocking mode. Called once for each connection that the client makes.
    fn port_forward(&self, sandbox: &str, port: u16) -> BoxFuture<'_, Result<OwnedFd, Failure>>;
}

/// CRI's `ExecRequest`. `tty` and `stderr` are never both set, and one of the three streams is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecRequest {
    /// ID of the container.
    pub container: String,
    /// The command and its arguments.
    pub command: Vec<String>,
    /// The process gets a terminal.
    pub tty: bool,
    /// The client will write.
    pub stdin: bool,
    /// The client will read the output.
    pub stdout: bool,
    /// The client will read the error output.
    pub stderr: bool,
}

/// CRI's `AttachRequest`, with the same rules as [`ExecRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachRequest {
    /// ID of the container.
    pub container: String,
    /// The container's process has a terminal.
    pub tty: bool,
    /// The client will write.
    pub stdin: bool,
    /// The client will read the output.
    pub stdout: bool,
    /// The client will read the error output.
    pub stderr: bool,
}

/// CRI's `PortForwardRequest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortForwardRequest {
    /// ID of the sandbox.
    pub sandbox: String,
    /// The ports that a plain WebSocket client reaches, in this order; SPDY clients name theirs themselves.
    pub ports: Vec<u16>,
}

/// A process that runs, as seen by a client.
///
/// When the session ends, its streams are closed by dropping them. Unless [`Control::wait`] has answered by then,
/// [`Control::abandon`] is called first, once.
pub struct Process {
    /// The ends that the server reads and writes.
    pub streams: Streams,
    /// What else can be done with it.
    pub control: Box<dyn Control>,
}

impl fmt::Debug for Process {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_struct("Process").field("streams", &self.streams).finish_non_exhaustive()
    }
}

/// The server's ends of a process's standard streams.
///
/// The server sets `O_NONBLOCK` on each, which is a property of the open file description: hand out ends that nobody
/// else reads or writes. Descriptors must be of a kind that epoll takes (pipes, sockets, terminals; no files).
#[derive(Debug)]
pub enum Streams {
    /// One descriptor for each stream that was asked for: write end of stdin, read ends of stdout and stderr.
    /// Pipes or stream sockets. End of file at an output ends it; closing stdin is the process's end of file.
    Pipes {
        /// Write end; dropped when the client closes its stdin.
        stdin: Option<OwnedFd>,
        /// Read end.
        stdout: Option<OwnedFd>,
        /// Read end.
        stderr: Option<OwnedFd>,
    },
    /// The master of a terminal, or for attach a stream socket whose other end the monitor couples to it. Read when
    /// stdout was asked for and else drained; `EIO` and end of file end it. Written with stdin; a client that closes
    /// its stdin changes nothing, as there is no half-closed terminal.
    Terminal(OwnedFd),
}

/// What can be done with a process besides reading and writing.
pub trait Control: Send + Sync + 'static {
    /// Sets the size of its terminal. An error is logged and ends nothing.
    fn resize(&self, size: TerminalSize) -> BoxFuture<'_, Result<(), Failure>>;

    /// Waits until the process has ended; for attach, until the container has, or the monitor ended the attachment.
    /// Asked once, and beside the copying of streams. What its streams still hold is read to the end afterwards, but
    /// not for longer than ten seconds: descendants may hold a pipe open for ever.
    fn wait(&self) -> BoxFuture<'_, Result<Exit, Failure>>;

    /// The client has gone before the process ended. Exec: kill it and its descendants. Attach: detach.
    /// Doesn't block; what takes time goes into a task. Called at most once, and never after `wait` has answered.
    fn abandon(&self);
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Columns.
    pub width: u16,
    /// Rows.
    pub height: u16,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Its exit code; 128 + n if signal n ended it. Clients take nothing beyond 255. Without meaning for attach.
    pub code: u8,
}

/// Why a call of the backend failed: a sentence for the client, in the style of our errors.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Failure(pub String);

impl Failure {
    /// A failure with this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}
