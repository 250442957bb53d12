//! The client's side of an exec or attach, over either protocol.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::Wants;
use crate::sink::{Framing, Lane, Sink};
use crate::source::{Ended, Watch};
use crate::spdy::frame::Reason;
use crate::spdy::headers::Headers;
use crate::spdy::{Event, Peer};
use crate::status::Status;
use crate::websocket::handshake::Dialect;
use crate::websocket::{self, Channels};

/// What may come before all streams are open.
const MOST_EARLY: usize = 64 << 10;

/// Channels of a WebSocket.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// A client with all its streams.
pub(super) struct Client {
    pub(super) input: Input,
    pub(super) output: Output,
}

/// What goes to the client.
pub(super) struct Output {
    pub(super) stdout: Option<Lane>,
    pub(super) stderr: Option<Lane>,
    error: Lane,
    version: u8,
}

impl Output {
    /// The end: how it went, after everything else.
    pub(super) async fn status(&self, status: &Status) -> io::Result<()> {
        for lane in [&self.stdout, &self.stderr].into_iter().flatten() {
            lane.finish().await?;
        }
        let text = status.encode(self.version);
        if !text.is_empty() {
            self.error.send(&text).await?;
        }
        self.error.finish().await
    }
}

/// What a client sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    Stdin(Bytes),
    StdinEnd,
    Resize(Bytes),
    /// Something without a meaning here.
    Nothing,
}

/// What comes from the client.
pub(super) enum Input {
    Spdy { peer: Box<Peer>, stdin: Option<u32>, resize: Option<u32>, early: VecDeque<Step> },
    WebSocket(Box<Channels>),
}

impl Input {
    pub(super) fn watch(&self) -> Watch {
        match self {
            Self::Spdy { peer, .. } => peer.watch(),
            Self::WebSocket(channels) => channels.watch(),
        }
    }

    /// What comes next; not to be dropped in the middle if the client is still written to afterwards.
    pub(super) async fn next(&mut self) -> Result<Step, Ended> {
        match self {
            Self::Spdy { peer, stdin, resize, early } => {
                if let Some(step) = early.pop_front() {
                    return Ok(step);
                }
                match peer.next().await? {
                    Event::Opened { stream, .. } => {
                        peer.refuse(stream, Reason::Refused).await?;
                        Ok(Step::Nothing)
                    }
                    Event::Data { stream, bytes, fin } => {
                        let (step, end) = step(stream, bytes, fin, *stdin, *resize);
                        early.extend(end);
                        Ok(step)
                    }
                    Event::Reset { stream } if Some(stream) == *stdin => Ok(Step::StdinEnd),
                    Event::Reset { .. } => Ok(Step::Nothing),
                }
            }
            Self::WebSocket(channels) => Ok(match channels.next().await? {
                websocket::Input::Bytes { channel: STDIN, bytes } => Step::Stdin(bytes),
                websocket::Input::Bytes { channel: RESIZE, bytes } => Step::Resize(bytes),
                websocket::Input::End { channel: STDIN } => Step::StdinEnd,
                _ => Step::Nothing,
            }),
        }
    }

    /// Ends the connection, and waits for the client to close it.
    pub(super) async fn close(self) -> io::Result<()> {
        match self {
            Self::Spdy { peer, .. } => peer.close().await,
            Self::WebSocket(mut channels) => channels.close().await,
        }
    }

    /// Closes a connection whose end was said already.
    pub(super) async fn leave(&mut self) -> io::Result<()> {
        match self {
            Self::Spdy { peer, .. } => peer.leave().await,
            Self::WebSocket(channels) => channels.leave().await,
        }
    }
}

/// What data on a stream means, and what its end adds.
fn step(
    stream: u32,
    bytes: Bytes,
    fin: bool,
    stdin: Option<u32>,
    resize: Option<u32>,
) -> (Step, Option<Step>) {
    match () {
        () if Some(stream) == stdin => (Step::Stdin(bytes), fin.then_some(Step::StdinEnd)),
        () if Some(stream) == resize => (Step::Resize(bytes), None),
        () => (Step::Nothing, None),
    }
}

/// Streams of SPDY as they are opened.
#[derive(Default)]
struct Opening {
    stdin: Option<u32>,
    resize: Option<u32>,
    stdout: Option<Lane>,
    stderr: Option<Lane>,
    error: Option<Lane>,
    early: VecDeque<Step>,
    early_bytes: usize,
}

impl Opening {
    /// Whether a stream of this kind would be the second one.
    fn has(&self, kind: Option<&str>) -> bool {
        match kind {
            Some("stdin") => self.stdin.is_some(),
            Some("resize") => self.resize.is_some(),
            Some("stdout") => self.stdout.is_some(),
            Some("stderr") => self.stderr.is_some(),
            Some("error") => self.error.is_some(),
            _ => false,
        }
    }

    async fn opened(
        &mut self,
        peer: &mut Peer,
        stream: u32,
        headers: &Headers,
        fin: bool,
    ) -> Result<(), Ended> {
        let kind = headers.get("streamtype");
        if self.has(kind) {
            return Ok(peer.refuse(stream, Reason::Cancel).await?);
        }
        let lane = peer.accept(stream, fin).await?;
        match kind {
            Some("stdin") => self.stdin = Some(stream),
            Some("resize") => self.resize = Some(stream),
            Some("stdout") => self.stdout = Some(lane),
            Some("stderr") => self.stderr = Some(lane),
            Some("error") => self.error = Some(lane),
            _ => tracing::debug!(kind, "a client opened a stream of a kind that is not known"),
        }
        if fin && kind == Some("stdin") {
            self.early.push_back(Step::StdinEnd);
        }
        Ok(())
    }

    /// Keeps what comes before the process runs.
    fn sent(&mut self, stream: u32, bytes: Bytes, fin: bool) -> Result<(), Ended> {
        self.early_bytes += bytes.len().max(16);
        if self.early_bytes > MOST_EARLY {
            return Err(Ended::Protocol("more than 64 KiB before it opened all its streams".to_owned()));
        }
        let (step, end) = step(stream, bytes, fin, self.stdin, self.resize);
        self.early.extend(Some(step).filter(|step| *step != Step::Nothing).into_iter().chain(end));
        Ok(())
    }

    fn is_complete(&self, wants: Wants, version: u8) -> bool {
        self.error.is_some()
            && (self.stdin.is_some() || !wants.stdin)
            && (self.stdout.is_some() || !wants.stdout)
            && (self.stderr.is_some() || !wants.stderr)
            && (self.resize.is_some() || !wants.tty || version < 3)
    }
}

impl Client {
    /// Waits until the client has opened the streams that the call has.
    pub(super) async fn spdy(mut peer: Peer, wants: Wants, version: u8) -> Result<Self, Ended> {
        let mut opening = Opening::default();
        while !opening.is_complete(wants, version) {
            match peer.next().await? {
                Event::Opened { stream, headers, fin } => {
                    opening.opened(&mut peer, stream, &headers, fin).await?;
                }
                Event::Data { stream, bytes, fin } => opening.sent(stream, bytes, fin)?,
                Event::Reset { stream } if Some(stream) == opening.stdin => {
                    opening.early.push_back(Step::StdinEnd);
                }
                Event::Reset { .. } => (),
            }
        }
        let Opening { stdin, resize, stdout, stderr, error, early, .. } = opening;
        let Some(error) = error else { return Err(Ended::Late) };
        // A stream that the call does not have stays silent.
        let output = Output {
            stdout: stdout.filter(|_| wants.stdout),
            stderr: stderr.filter(|_| wants.stderr),
            error,
            version,
        };
        let stdin = stdin.filter(|_| wants.stdin);
        Ok(Self { input: Input::Spdy { peer: Box::new(peer), stdin, resize, early }, output })
    }

    /// Every channel is there at once. The first message tells the client that the server is.
    pub(super) async fn websocket(
        channels: Channels,
        sink: &Arc<Sink>,
        wants: Wants,
        dialect: Dialect,
    ) -> Result<Self, Ended> {
        let base64 = dialect.base64;
        let lane = |number| Lane::new(sink, Framing::Channel { number, base64 });
        let output = Output {
            stdout: wants.stdout.then(|| lane(STDOUT)),
            stderr: wants.stderr.then(|| lane(STDERR)),
            error: lane(ERROR),
            version: dialect.version,
        };
        let first = output.stdout.as_ref().or(output.stderr.as_ref()).unwrap_or(&output.error);
        first.send(&[]).await?;
        Ok(Self { input: Input::WebSocket(Box::new(channels)), output })
    }
}
