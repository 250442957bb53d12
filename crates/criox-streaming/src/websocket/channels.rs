//! The subprotocols of Kubernetes, by which one WebSocket carries several channels.

use std::io;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, Bytes};

use super::messages::Messages;
use crate::source::{Ended, Watch};

/// From version 5 on: the message `[255, channel]` says that nothing more comes on a channel.
const CLOSE: u8 = 255;

/// What a client sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Input {
    /// Bytes on a channel: a message, or a piece of one.
    Bytes { channel: u8, bytes: Bytes },
    /// Nothing more comes on a channel.
    End { channel: u8 },
}

/// A client's messages, told apart by channel.
pub(crate) struct Channels {
    messages: Messages,
    reader: Reader,
}

impl Channels {
    pub(crate) fn new(messages: Messages, base64: bool, closes: bool) -> Self {
        Self { messages, reader: Reader::new(base64, closes) }
    }

    /// Watches the connection while nothing is read.
    pub(crate) fn watch(&self) -> Watch {
        self.messages.watch()
    }

    /// What comes next. As with [`Messages::piece`], not to be dropped in the middle.
    pub(crate) async fn next(&mut self) -> Result<Input, Ended> {
        loop {
            let piece = self.messages.piece().await?;
            match self.reader.read(piece.bytes, piece.first, piece.last) {
                Ok(Some(input)) => return Ok(input),
                Ok(None) => (),
                Err(what) => return Err(self.messages.broken(what.to_owned()).await),
            }
        }
    }

    /// Says that all is done, and waits for the client to close.
    pub(crate) async fn close(&mut self) -> io::Result<()> {
        self.messages.close().await
    }

    /// Closes a connection whose end was said already.
    pub(crate) async fn leave(&mut self) -> io::Result<()> {
        self.messages.leave().await
    }
}

/// Takes the channel off the pieces of messages, and base64.
#[derive(Debug)]
pub(crate) struct Reader {
    base64: bool,
    closes: bool,
    /// The channel of the message that is being read, once its first byte is there.
    channel: Option<u8>,
    /// Base64 of which a group of four is not complete.
    group: Vec<u8>,
    /// Padding has ended this message's base64.
    padded: bool,
}

impl Reader {
    pub(crate) fn new(base64: bool, closes: bool) -> Self {
        Self { base64, closes, channel: None, group: Vec::new(), padded: false }
    }

    /// Reads a piece. Empty messages mean nothing.
    pub(crate) fn read(
        &mut self,
        mut bytes: Bytes,
        first: bool,
        last: bool,
    ) -> Result<Option<Input>, &'static str> {
        if first {
            self.channel = None;
            self.group.clear();
            self.padded = false;
        }
        if self.channel.is_none() && !bytes.is_empty() {
            let start = bytes.get_u8();
            self.channel = Some(if self.base64 { start.wrapping_sub(b'0') } else { start });
        }
        let Some(channel) = self.channel else { return Ok(None) };
        if self.closes && channel == CLOSE {
            return Ok((!bytes.is_empty()).then(|| Input::End { channel: bytes.get_u8() }));
        }
        if self.base64 {
            bytes = self.decode(&bytes, last)?;
        }
        Ok((!bytes.is_empty()).then_some(Input::Bytes { channel, bytes }))
    }

    fn decode(&mut self, text: &[u8], last: bool) -> Result<Bytes, &'static str> {
        const WRONG: &str = "a message that is not base64";
        self.group.extend_from_slice(text);
        let whole = self.group.len() / 4 * 4;
        if (last && whole != self.group.len()) || (self.padded && whole > 0) {
            return Err(WRONG);
        }
        let group = self.group.get(..whole).unwrap_or_default();
        self.padded = group.ends_with(b"=");
        let bytes = STANDARD.decode(group).map_err(|_| WRONG)?;
        self.group.drain(..whole);
        Ok(bytes.into())
    }
}
