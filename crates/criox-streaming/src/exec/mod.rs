//! Exec and attach: a client's streams on one side, a process's on the other.
//!
//! ```text
//! client opens its streams ─► backend starts the process ─► bytes both ways ─► process ends
//!        └─ late or gone: nothing was started                  └─ client gone: abandoned
//! process ends ─► its output is read to the end ─► status on the error stream ─► close
//! ```

mod client;
mod process;
mod sizes;

use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::backend::{AttachRequest, Backend, ExecRequest, Failure, Process, TerminalSize};
use crate::queue::{Budget, Sender};
use crate::session::{LINGER, Session, Wire};
use crate::source::{Ended, or_hung_up};
use crate::spdy::{Feed, Peer};
use crate::status::Status;
use crate::websocket::{Channels, Messages, handshake::Dialect};
use client::{Client, Input, Step};
pub(crate) use sizes::Sizes;

/// How long a client may take to open its streams, as in the reference server.
const OPENING: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 30 });

/// Streams of one connection: five are known, the others are taken and ignored.
const MOST_STREAMS: usize = 16;

/// What a client came for.
#[derive(Debug, Clone)]
pub(crate) enum Call {
    Exec(ExecRequest),
    Attach(AttachRequest),
}

/// The streams that a call has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wants {
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
    pub(crate) tty: bool,
}

impl Call {
    pub(crate) fn wants(&self) -> Wants {
        match *self {
            Self::Exec(ExecRequest { stdin, stdout, stderr, tty, .. })
            | Self::Attach(AttachRequest { stdin, stdout, stderr, tty, .. }) => {
                Wants { stdin, stdout, stderr, tty }
            }
        }
    }

    fn start<'a>(&self, backend: &'a dyn Backend) -> BoxFuture<'a, Result<Process, Failure>> {
        match self.clone() {
            Self::Exec(request) => backend.exec(request),
            Self::Attach(request) => backend.attach(request),
        }
    }

    fn failed(&self, failure: &Failure) -> Status {
        let doing = match self {
            Self::Exec(_) => "executing command in container",
            Self::Attach(_) => "attaching to container",
        };
        Status::failure(doing, failure)
    }

    fn ended(&self, code: u8) -> Status {
        // An attached client learns of the code elsewhere: the container's end is not its own.
        if code == 0 || matches!(self, Self::Attach(_)) { Status::Success } else { Status::Code(code) }
    }
}

/// Serves a client that has come over SPDY.
pub(crate) async fn spdy(session: &Session, wire: Wire, call: Call, version: u8) -> Result<(), Ended> {
    let peer = Peer::new(Feed::Plain(wire.source), wire.sink, MOST_STREAMS)?;
    let client = timeout(OPENING, Client::spdy(peer, call.wants(), version));
    serve(session, client.await.map_err(|_| Ended::Late)??, call).await
}

/// Serves a client that has come over WebSocket.
pub(crate) async fn websocket(
    session: &Session,
    wire: Wire,
    call: Call,
    dialect: Dialect,
) -> Result<(), Ended> {
    let messages = Messages::new(wire.source, wire.sink.clone());
    let channels = Channels::new(messages, dialect.base64, dialect.version >= 5);
    let client = Client::websocket(channels, &wire.sink, call.wants(), dialect).await?;
    serve(session, client, call).await
}

async fn serve(session: &Session, client: Client, call: Call) -> Result<(), Ended> {
    let Client { mut input, output } = client;
    let (stdin, pieces) = Budget::new().queue();
    let (resize, size) = watch::channel(None);
    let result = tokio::select! {
        ended = feed(&mut input, stdin, resize) => Err(ended),
        done = process::run(&*session.backend, &call, &output, pieces, size) => done.map_err(Ended::from),
        () = session.activity.idle(session.idle) => Err(Ended::Idle),
    };
    // A client that does not take the end is left.
    match result {
        Ok(()) | Err(Ended::Idle) => drop(timeout(LINGER, input.close()).await),
        Err(Ended::Protocol(_)) => drop(timeout(LINGER, input.leave()).await),
        Err(_) => (),
    }
    result
}

/// Passes on what the client sends, until it has gone.
async fn feed(input: &mut Input, stdin: Sender, resize: watch::Sender<Option<TerminalSize>>) -> Ended {
    let watch = input.watch();
    let mut stdin = Some(stdin);
    let mut sizes = Sizes::default();
    loop {
        let sent = match input.next().await {
            Err(ended) => return ended,
            Ok(Step::Stdin(bytes)) => match &stdin {
                Some(stdin) => or_hung_up(&watch, stdin.send(bytes)).await,
                None => Ok(()),
            },
            Ok(Step::StdinEnd) => {
                stdin = None;
                Ok(())
            }
            Ok(Step::Resize(bytes)) => {
                if let Some(size) = sizes.read(&bytes) {
                    // Only the last counts: a client that sends many costs nothing.
                    resize.send_replace(Some(size));
                }
                Ok(())
            }
            Ok(Step::Nothing) => Ok(()),
        };
        if let Err(ended) = sent {
            return ended;
        }
    }
}
