//! The daemon's side: one connection to one monitor, shared by everybody who works on the pod.
//!
//! A task of its own moves frames; callers wait for replies by request ID, each with a deadline of its own. When
//! the connection ends, every waiting call fails with [`CallError::Gone`], and so does every later one.

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prost::Message as _;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::frame::{FrameError, FrameReader, FrameWriter, MAX_MESSAGE};
use crate::proto::{
    Event, ExecFinished, ExecStarted, Failure, Hello, HelloReply, Message, Reply, Request, message, reply,
    request,
};

/// Requests that may wait for the socket.
const QUEUE: usize = 64;
/// Events that may wait for the pod's task; when it is behind, the connection waits with it.
const EVENTS: usize = 256;

/// Why no connection came about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody listens, or the socket is gone.
    #[error("connect to the monitor at {path}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The monitor does not say hello.
    #[error("hello to the monitor at {path}")]
    Hello {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: CallError,
    },
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The monitor says so.
    #[error("{}", .0.message)]
    Refused(Failure),
    /// The monitor did not answer in time.
    #[error("the monitor did not answer within {} ms", .0.as_millis())]
    Silent(Duration),
    /// The connection has ended.
    #[error("the connection to the monitor has ended")]
    Gone,
    /// The answer is not one that the verb has.
    #[error("the monitor's answer does not fit the request")]
    Unexpected,
    /// The request could not be put into a frame.
    #[error("request to the monitor")]
    Frame(#[source] Arc<FrameError>),
}

impl CallError {
    /// The monitor's reason, where it gave one.
    pub fn refusal(&self) -> Option<crate::proto::failure::Kind> {
        match self {
            Self::Refused(failure) => Some(failure.kind()),
            _ => None,
        }
    }
}

/// A connection to a monitor. Clones share it; it ends when the last one is dropped.
#[derive(Debug, Clone)]
pub struct Client {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Outgoing>,
}

#[derive(Debug, Default)]
struct Shared {
    next: AtomicU64,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    closed: bool,
    calls: HashMap<u64, mpsc::Sender<Answer>>,
    /// Execs whose first reply brings a terminal, unless it is a failure. Kept also when the caller has gone: the
    /// descriptor comes all the same, and must not be taken for that of another.
    terminals: HashSet<u64>,
}

type Answer = (reply::Result, Option<OwnedFd>);

type Outgoing = (Request, Vec<OwnedFd>);

/// A process that was started in a container.
#[derive(Debug)]
pub struct ExecCall {
    /// What the monitor said of its start.
    pub started: ExecStarted,
    /// The master of its terminal, if it was to have one.
    pub terminal: Option<OwnedFd>,
    pending: Pending,
}

impl ExecCall {
    /// Waits for its end.
    ///
    /// # Errors
    /// The connection ended, or the monitor failed.
    pub async fn finished(mut self) -> Result<ExecFinished, CallError> {
        match self.pending.next().await?.0 {
            reply::Result::ExecFinished(finished) => Ok(finished),
            _ => Err(CallError::Unexpected),
        }
    }
}

/// A call whose replies are still to come; dropping it stops waiting.
#[derive(Debug)]
struct Pending {
    id: u64,
    shared: Arc<Shared>,
    replies: mpsc::Receiver<Answer>,
}

impl Pending {
    async fn next(&mut self) -> Result<Answer, CallError> {
        match self.replies.recv().await {
            None => Err(CallError::Gone),
            Some((reply::Result::Failure(failure), _)) => Err(CallError::Refused(failure)),
            Some(answer) => Ok(answer),
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.shared.waiting().calls.remove(&self.id);
    }
}

impl Shared {
    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client {
    /// Connects and says hello. Events go to the receiver, which ends with the connection.
    ///
    /// # Errors
    /// Nobody listens, or no hello came within `deadline`.
    pub async fn connect(
        path: &Path,
        deadline: Duration,
    ) -> Result<(Self, HelloReply, mpsc::Receiver<Event>), ConnectError> {
        let failed = |source| ConnectError::Connect { path: path.into(), source };
        // By our own connect, for the path may be longer than a socket address holds; a monitor that accepts nobody
        // must not hold this thread.
        let socket =
            std::os::unix::net::UnixStream::from(criox_sys::socket::connect_now(path).map_err(failed)?);
        let socket = UnixStream::from_std(socket).map_err(failed)?;
        let (queue, requests) = mpsc::channel(QUEUE);
        let (events, receiver) = mpsc::channel(EVENTS);
        let shared = Arc::new(Shared::default());
        tokio::spawn(Connection::new(socket, shared.clone(), events).run(requests));
        let client = Self { shared, queue };
        let hello = Hello { versions: vec![crate::VERSION] };
        let refused = |source| ConnectError::Hello { path: path.into(), source };
        match client.call(request::Verb::Hello(hello), deadline).await.map_err(refused)? {
            reply::Result::Hello(reply) => Ok((client, reply, receiver)),
            _ => Err(refused(CallError::Unexpected)),
        }
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }

    /// Sends a verb and waits for its one reply.
    ///
    /// # Errors
    /// The monitor refused, stayed silent for `deadline`, or has gone.
    pub async fn call(&self, verb: request::Verb, deadline: Duration) -> Result<reply::Result, CallError> {
        self.call_with(verb, Vec::new(), deadline).await
    }

    async fn call_with(
        &self,
        verb: request::Verb,
        fds: Vec<OwnedFd>,
        deadline: Duration,
    ) -> Result<reply::Result, CallError> {
        let answer = async {
            let mut pending = self.send(verb, fds).await?;
            pending.next().await.map(|(result, _)| result)
        };
        timeout(deadline, answer).await.unwrap_or(Err(CallError::Silent(deadline)))
    }

    /// Attaches a client to a container; the descriptors are those that [`crate::proto::Attach`] names.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn attach(
        &self,
        attach: crate::proto::Attach,
        fds: Vec<OwnedFd>,
        deadline: Duration,
    ) -> Result<(), CallError> {
        match self.call_with(request::Verb::Attach(attach), fds, deadline).await? {
            reply::Result::Done(_) => Ok(()),
            _ => Err(CallError::Unexpected),
        }
    }

    /// Freezes containers for as long as the other end of `lease`, a stream socket, is open.
    ///
    /// # Errors
    /// As [`Client::call`]; then nothing is frozen once `lease`'s other end is closed.
    pub async fn freeze(
        &self,
        freeze: crate::proto::Freeze,
        lease: OwnedFd,
        deadline: Duration,
    ) -> Result<(), CallError> {
        match self.call_with(request::Verb::Freeze(freeze), vec![lease], deadline).await? {
            reply::Result::Done(_) => Ok(()),
            _ => Err(CallError::Unexpected),
        }
    }

    /// Sends a verb whose reply says only that it is done.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn done(&self, verb: request::Verb, deadline: Duration) -> Result<(), CallError> {
        match self.call(verb, deadline).await? {
            reply::Result::Done(_) => Ok(()),
            _ => Err(CallError::Unexpected),
        }
    }

    /// Starts a process in a container; the descriptors are those that [`crate::proto::Exec`] names.
    ///
    /// # Errors
    /// As [`Client::call`]; `deadline` is for the start.
    pub async fn exec(
        &self,
        exec: crate::proto::Exec,
        fds: Vec<OwnedFd>,
        deadline: Duration,
    ) -> Result<ExecCall, CallError> {
        let start = async {
            let mut pending = self.send(request::Verb::Exec(exec), fds).await?;
            match pending.next().await? {
                (reply::Result::ExecStarted(started), terminal) => {
                    Ok(ExecCall { started, terminal, pending })
                }
                _ => Err(CallError::Unexpected),
            }
        };
        timeout(deadline, start).await.unwrap_or(Err(CallError::Silent(deadline)))
    }

    async fn send(&self, verb: request::Verb, fds: Vec<OwnedFd>) -> Result<Pending, CallError> {
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed) + 1;
        let request = Request { id, verb: Some(verb) };
        // Said here, where the caller learns of it: to the end of the connection it would look the same.
        let length = request.encoded_len();
        if length > MAX_MESSAGE {
            return Err(CallError::Frame(Arc::new(FrameError::TooLong(length))));
        }
        // An Exec has two replies; nothing has more.
        let (sender, replies) = mpsc::channel(2);
        {
            let mut waiting = self.shared.waiting();
            if waiting.closed {
                return Err(CallError::Gone);
            }
            waiting.calls.insert(id, sender);
            if matches!(&request.verb, Some(request::Verb::Exec(exec)) if exec.terminal) {
                waiting.terminals.insert(id);
            }
        }
        let pending = Pending { id, shared: self.shared.clone(), replies };
        self.queue.send((request, fds)).await.map_err(|_| CallError::Gone)?;
        Ok(pending)
    }
}

/// The task that owns the socket.
struct Connection {
    socket: UnixStream,
    shared: Arc<Shared>,
    events: mpsc::Sender<Event>,
    reader: FrameReader,
    writer: FrameWriter,
}

impl Connection {
    fn new(socket: UnixStream, shared: Arc<Shared>, events: mpsc::Sender<Event>) -> Self {
        Self { socket, shared, events, reader: FrameReader::new(), writer: FrameWriter::new() }
    }

    async fn run(mut self, mut requests: mpsc::Receiver<Outgoing>) {
        if let Err(error) = self.exchange(&mut requests).await {
            tracing::debug!(%error, "connection to a monitor failed");
        }
        let mut waiting = self.shared.waiting();
        waiting.closed = true;
        waiting.calls.clear();
    }

    /// Until the monitor closes, or all clients are dropped.
    async fn exchange(&mut self, requests: &mut mpsc::Receiver<Outgoing>) -> Result<(), FrameError> {
        loop {
            let writing = self.writer.pending() > 0;
            tokio::select! {
                request = requests.recv(), if !writing => match request {
                    Some((request, fds)) => self.write(&request, fds)?,
                    None => return Ok(()),
                },
                ready = self.socket.writable(), if writing => {
                    ready?;
                    self.flush()?;
                }
                ready = self.socket.readable() => {
                    ready?;
                    match self.receive() {
                        Ok(0) => return Ok(()),
                        Ok(_) => {}
                        Err(error) if would_block(&error) => continue,
                        Err(error) => return Err(error),
                    }
                    while let Some(message) = self.reader.next::<Message>()? {
                        if !self.dispatch(message).await? {
                            return Ok(());
                        }
                    }
                }
            }
        }
    }

    fn receive(&mut self) -> Result<usize, FrameError> {
        let Self { socket, reader, .. } = self;
        ready_io(socket, Interest::READABLE, || reader.read_from(&*socket))
    }

    /// Writes what the socket takes now.
    fn flush(&mut self) -> Result<(), FrameError> {
        let Self { socket, writer, .. } = self;
        let blocked = || FrameError::Io(std::io::ErrorKind::WouldBlock.into());
        let written = ready_io(socket, Interest::WRITABLE, || match writer.write_to(&*socket) {
            Ok(true) => Ok(()),
            Ok(false) => Err(blocked()),
            Err(error) => Err(error),
        });
        match written {
            Err(error) if would_block(&error) => Ok(()),
            result => result,
        }
    }

    fn write(&mut self, request: &Request, fds: Vec<OwnedFd>) -> Result<(), FrameError> {
        match self.writer.push(request, fds) {
            Ok(()) => self.flush(),
            // Too long: only this call fails, by the end of its replies.
            Err(error) => {
                tracing::warn!(%error, "request to a monitor was not sent");
                let mut waiting = self.shared.waiting();
                waiting.calls.remove(&request.id);
                waiting.terminals.remove(&request.id);
                Ok(())
            }
        }
    }

    /// False when the pod's task has gone.
    async fn dispatch(&mut self, message: Message) -> Result<bool, FrameError> {
        match message.kind {
            Some(message::Kind::Event(event)) => Ok(self.events.send(event).await.is_ok()),
            Some(message::Kind::Reply(Reply { request_id, result: Some(result) })) => {
                let mut waiting = self.shared.waiting();
                let first = waiting.terminals.remove(&request_id);
                let comes = first && matches!(result, reply::Result::ExecStarted(_));
                let terminal = if comes { self.reader.take_fds(1)?.pop() } else { None };
                if let Some(call) = waiting.calls.get(&request_id) {
                    // Room for all replies of a call is reserved; a caller that has gone is no error.
                    drop(call.try_send((result, terminal)));
                }
                Ok(true)
            }
            Some(message::Kind::Reply(Reply { result: None, .. })) | None => Ok(true),
        }
    }
}

fn would_block(error: &FrameError) -> bool {
    matches!(error, FrameError::Io(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

/// [`UnixStream::try_io`] for what fails with a [`FrameError`]: readiness is cleared when the socket would block.
fn ready_io<T>(
    socket: &UnixStream,
    interest: Interest,
    work: impl FnOnce() -> Result<T, FrameError>,
) -> Result<T, FrameError> {
    let mut failure = None;
    let result = socket.try_io(interest, || {
        work().map_err(|error| match error {
            FrameError::Io(error) => error,
            other => std::io::Error::other(failure.insert(other).to_string()),
        })
    });
    result.map_err(|error| failure.unwrap_or(FrameError::Io(error)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::encode;
    use crate::proto::{Delete, Done, Exec};

    /// Says hello, and that everything is done.
    fn monitor(listener: std::os::unix::net::UnixListener) {
        let (socket, _) = listener.accept().unwrap();
        let mut reader = FrameReader::new();
        while reader.read_from(&socket).is_ok_and(|count| count > 0) {
            while let Some(Request { id, verb }) = reader.next().unwrap() {
                let result = match verb {
                    Some(request::Verb::Hello(_)) => reply::Result::Hello(HelloReply::default()),
                    _ => reply::Result::Done(Done {}),
                };
                let reply = Reply { request_id: id, result: Some(result) };
                let mut bytes = Vec::new();
                encode(&Message { kind: Some(message::Kind::Reply(reply)) }, &mut bytes).unwrap();
                std::io::Write::write_all(&mut &socket, &bytes).unwrap();
            }
        }
    }

    #[tokio::test]
    async fn a_request_that_is_too_long_says_so_and_costs_no_other_anything() {
        let path = std::env::temp_dir().join(format!("criox-client-{}.sock", std::process::id()));
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let serving = std::thread::spawn(move || monitor(listener));
        let limit = Duration::from_secs(10);
        let (client, _, events) = Client::connect(&path, limit).await.unwrap();
        std::fs::remove_file(&path).unwrap();
        let exec = Exec { process: vec![0; MAX_MESSAGE], terminal: true, ..Exec::default() };
        let error = client.exec(exec, Vec::new(), limit).await.unwrap_err();
        let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        assert!(matches!(error, CallError::Frame(_)) && cause.contains("longer than"), "{error}: {cause}");
        client.done(request::Verb::Delete(Delete::default()), limit).await.unwrap();
        assert!(client.shared.waiting().terminals.is_empty());
        drop((client, events));
        // The task that holds the socket needs this thread for its end.
        tokio::task::spawn_blocking(|| serving.join()).await.unwrap().unwrap();
    }
}
