//! The direction towards the client: one connection, which all streams of a session share.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Mutex;

use crate::activity::Activity;
use crate::chunk::Chunk;
use crate::fd::Readable;
use crate::spdy::frame::data_header;
use crate::websocket::frame::{Opcode, server_header};

/// The connection, written by one stream at a time in the order in which they come.
///
/// There is one buffer for all streams, filled from a process only when it is that stream's turn. So a connection
/// costs the same with a thousand streams, and a client that doesn't read holds the processes up and nothing else.
pub(crate) struct Sink {
    state: Mutex<State>,
    activity: Arc<Activity>,
    /// SPDY that is carried in WebSocket messages.
    tunnelled: bool,
}

struct State {
    io: Box<dyn AsyncWrite + Send + Unpin>,
    chunk: Chunk,
    /// A write was begun and not finished: what comes next would be taken for a part of that frame.
    torn: bool,
}

impl Sink {
    pub(crate) fn new(
        io: Box<dyn AsyncWrite + Send + Unpin>,
        activity: Arc<Activity>,
        tunnelled: bool,
    ) -> Arc<Self> {
        let state = State { io, chunk: Chunk::new(), torn: false };
        Arc::new(Self { state: Mutex::new(state), activity, tunnelled })
    }

    /// Sends a frame of SPDY that is complete.
    pub(crate) async fn spdy(&self, frame: &[u8]) -> io::Result<()> {
        let mut state = self.state.lock().await;
        state.chunk.set(frame);
        self.write(&mut state).await
    }

    /// Sends a frame of WebSocket.
    pub(crate) async fn websocket(&self, opcode: Opcode, payload: &[u8]) -> io::Result<()> {
        let mut state = self.state.lock().await;
        state.chunk.set(payload);
        wrap(&mut state.chunk, opcode);
        self.flush(&mut state).await
    }

    /// Nothing more is sent.
    pub(crate) async fn shut(&self) -> io::Result<()> {
        self.state.lock().await.io.shutdown().await
    }

    async fn write(&self, state: &mut State) -> io::Result<()> {
        if self.tunnelled {
            wrap(&mut state.chunk, Opcode::Binary);
        }
        self.flush(state).await
    }

    async fn flush(&self, state: &mut State) -> io::Result<()> {
        if state.torn {
            return Err(io::Error::other("a frame before this was not written to its end"));
        }
        state.torn = true;
        let State { io, chunk, .. } = state;
        let mut bytes = chunk.bytes();
        while !bytes.is_empty() {
            let written = io.write(bytes).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.activity.touch();
            bytes = bytes.get(written..).unwrap_or_default();
        }
        io.flush().await?;
        state.torn = false;
        Ok(())
    }
}

fn wrap(chunk: &mut Chunk, opcode: Opcode) {
    let (header, size) = server_header(opcode, chunk.bytes().len());
    chunk.prepend(header.get(..size).unwrap_or_default());
}

/// How the bytes of one stream are marked as its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// A stream of SPDY.
    Spdy { stream: u32 },
    /// A channel of a WebSocket subprotocol.
    Channel { number: u8, base64: bool },
}

/// One stream of a session, towards the client.
#[derive(Clone)]
pub(crate) struct Lane {
    sink: Arc<Sink>,
    framing: Framing,
    ended: Arc<AtomicBool>,
}

/// What [`Lane::copy`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Copied {
    /// So many bytes were sent.
    Bytes(usize),
    /// There was nothing to read after all.
    Nothing,
    /// The end of what can be read. The lane is not finished by it.
    End,
}

/// Why [`Lane::copy`] failed.
#[derive(Debug)]
pub(crate) enum CopyError {
    /// Reading the process's stream, or the port's.
    Read(io::Error),
    /// Writing to the client: it has gone.
    Client(io::Error),
}

impl Lane {
    pub(crate) fn new(sink: &Arc<Sink>, framing: Framing) -> Self {
        Self { sink: Arc::clone(sink), framing, ended: Arc::default() }
    }

    /// The number of its SPDY stream, or of its channel.
    pub(crate) fn number(&self) -> u32 {
        match self.framing {
            Framing::Spdy { stream } => stream,
            Framing::Channel { number, .. } => number.into(),
        }
    }

    /// The client gave it up, or it was finished. What is sent from now on is dropped.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    /// Whether nothing more is sent.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Reads what is there and sends it.
    pub(crate) async fn copy(&self, source: &mut Readable<'_>) -> Result<Copied, CopyError> {
        let mut state = self.sink.state.lock().await;
        match source.read(state.chunk.space()).map_err(CopyError::Read)? {
            None => Ok(Copied::Nothing),
            Some(0) => Ok(Copied::End),
            Some(length) => {
                state.chunk.fill(length);
                self.frame(&mut state).await.map_err(CopyError::Client)?;
                Ok(Copied::Bytes(length))
            }
        }
    }

    /// Sends these bytes, also if there are none: an empty message.
    pub(crate) async fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.sink.state.lock().await;
        state.chunk.set(bytes);
        self.frame(&mut state).await
    }

    async fn frame(&self, state: &mut State) -> io::Result<()> {
        if self.has_ended() {
            return Ok(());
        }
        match self.framing {
            Framing::Spdy { stream } => {
                let length = state.chunk.bytes().len();
                state.chunk.prepend(&data_header(stream, length, false));
                self.sink.write(state).await
            }
            Framing::Channel { number, base64: false } => {
                state.chunk.prepend(&[number]);
                wrap(&mut state.chunk, Opcode::Binary);
                self.sink.flush(state).await
            }
            Framing::Channel { number, base64: true } => {
                let text = STANDARD.encode(state.chunk.bytes());
                state.chunk.set(text.as_bytes());
                state.chunk.prepend(&[b'0'.wrapping_add(number)]);
                wrap(&mut state.chunk, Opcode::Text);
                self.sink.flush(state).await
            }
        }
    }

    /// Says that nothing more comes on it. WebSocket's channels have no word for that.
    pub(crate) async fn finish(&self) -> io::Result<()> {
        let Framing::Spdy { stream } = self.framing else { return Ok(()) };
        if self.ended.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.sink.spdy(&data_header(stream, 0, true)).await
    }
}
