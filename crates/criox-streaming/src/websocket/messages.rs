//! The messages of a client that speaks WebSocket.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::frame::{Decoder, Frame, Opcode};
use crate::sink::Sink;
use crate::source::{Ended, Source, Watch};

/// Why a connection is closed (RFC 6455, section 7.4.1).
const NORMAL: u16 = 1000;
const PROTOCOL_ERROR: u16 = 1002;

/// A piece of a message.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) bytes: Bytes,
    /// It begins the message.
    pub(crate) first: bool,
    /// It ends the message.
    pub(crate) last: bool,
}

/// A client. Not to be dropped in the middle of [`Messages::piece`] if the connection is still written to afterwards.
pub(crate) struct Messages {
    source: Source,
    sink: Arc<Sink>,
    decoder: Decoder,
}

impl Messages {
    pub(crate) fn new(source: Source, sink: Arc<Sink>) -> Self {
        Self { source, sink, decoder: Decoder::default() }
    }

    /// Watches the connection while nothing is read.
    pub(crate) fn watch(&self) -> Watch {
        self.source.watch()
    }

    /// What comes next. Pings, the close and broken rules are answered here.
    pub(crate) async fn piece(&mut self) -> Result<Piece, Ended> {
        loop {
            match self.decoder.decode(&mut self.source.buffer) {
                Ok(Some(Frame::Data { bytes, first, last })) => return Ok(Piece { bytes, first, last }),
                Ok(Some(Frame::Ping(bytes))) => self.sink.websocket(Opcode::Pong, &bytes).await?,
                Ok(Some(Frame::Pong)) => (),
                Ok(Some(Frame::Close(code))) => {
                    let code = code.map(u16::to_be_bytes);
                    let code = code.as_ref().map(<[u8; 2]>::as_slice).unwrap_or_default();
                    self.sink.websocket(Opcode::Close, code).await?;
                    return Err(Ended::Closed);
                }
                Ok(None) => self.source.fill().await?,
                Err(error) => return Err(self.broken(error.to_string()).await),
            }
        }
    }

    /// Tells the client that it broke the protocol.
    pub(crate) async fn broken(&self, what: String) -> Ended {
        match self.sink.websocket(Opcode::Close, &PROTOCOL_ERROR.to_be_bytes()).await {
            Ok(()) => Ended::Protocol(what),
            Err(error) => error.into(),
        }
    }

    /// Says that all is done, and waits for the client to close.
    pub(crate) async fn close(&mut self) -> io::Result<()> {
        self.sink.websocket(Opcode::Close, &NORMAL.to_be_bytes()).await?;
        self.leave().await
    }

    /// Sends nothing more, and waits for the client to close: a connection that is closed while something is unread
    /// takes with it what the client has not read.
    pub(crate) async fn leave(&mut self) -> io::Result<()> {
        self.sink.shut().await?;
        self.source.drain().await;
        Ok(())
    }
}
