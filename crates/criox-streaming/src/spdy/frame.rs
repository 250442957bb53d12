//! Frames of SPDY/3.1 (draft-mbelshe-httpbis-spdy-00, section 2.2), as far as Kubernetes' clients use them.

use bytes::{Buf, Bytes, BytesMut};

/// Largest control frame: a header block of 64 KiB. The peers' hold a few hundred bytes.
pub(crate) const MOST_CONTROL: usize = 64 << 10;

/// Settings that one frame may hold.
const MOST_SETTINGS: u32 = 64;

/// Every frame begins with this many bytes.
const HEADER: usize = 8;

const CONTROL: u16 = 0x8000;
const VERSION: u16 = 3;
const FIN: u8 = 1;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// Why a stream is reset (section 2.6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    ProtocolError = 1,
    Refused = 3,
    Cancel = 5,
}

/// The peer broke the protocol; the connection can't go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("a control frame of version {0}, not 3")]
    Version(u16),
    #[error("a control frame of {0} bytes, more than 64 KiB")]
    TooLong(usize),
    #[error("a control frame of type {kind} with {length} bytes, which is not its length")]
    Length { kind: u16, length: usize },
}

/// What the peer sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    /// It opens a stream.
    Open {
        stream: u32,
        block: Bytes,
        fin: bool,
    },
    /// Further headers, or an answer to a stream that we never opened: nothing but a block to inflate.
    Headers {
        block: Bytes,
    },
    /// It gives a stream up.
    Reset {
        stream: u32,
    },
    Ping(u32),
    /// What is neither sent nor heeded here: SETTINGS, GOAWAY, WINDOW_UPDATE, unknown types.
    Other,
    /// A piece of a data frame; `fin` only with the last piece.
    Data {
        stream: u32,
        bytes: Bytes,
        fin: bool,
    },
}

/// Cuts a byte stream into frames.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    data: Option<Data>,
}

/// A data frame of which bytes are still to come.
#[derive(Debug)]
struct Data {
    stream: u32,
    left: usize,
    fin: bool,
}

impl Decoder {
    /// The next frame, or `None` if more bytes are needed. Data is given on as it comes, in pieces, so that no frame
    /// of data is too large.
    pub(crate) fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        if let Some(data) = &mut self.data {
            if buffer.is_empty() {
                return Ok(None);
            }
            let bytes = buffer.split_to(data.left.min(buffer.len())).freeze();
            data.left -= bytes.len();
            let (stream, fin) = (data.stream, data.fin && data.left == 0);
            if data.left == 0 {
                self.data = None;
            }
            return Ok(Some(Frame::Data { stream, bytes, fin }));
        }
        let Some(&[a, b, c, d, flags, x, y, z]) = buffer.first_chunk::<HEADER>() else { return Ok(None) };
        let length = u32::from_be_bytes([0, x, y, z]) as usize;
        let fin = flags & FIN != 0;
        let start = u16::from_be_bytes([a, b]);
        if start & CONTROL == 0 {
            buffer.advance(HEADER);
            let stream = u32::from_be_bytes([a, b, c, d]);
            if length == 0 {
                return Ok(Some(Frame::Data { stream, bytes: Bytes::new(), fin }));
            }
            self.data = Some(Data { stream, left: length, fin });
            return self.decode(buffer);
        }
        if start & !CONTROL != VERSION {
            return Err(FrameError::Version(start & !CONTROL));
        }
        if length > MOST_CONTROL {
            return Err(FrameError::TooLong(length));
        }
        if buffer.len() < HEADER + length {
            return Ok(None);
        }
        buffer.advance(HEADER);
        control(u16::from_be_bytes([c, d]), fin, buffer.split_to(length).freeze()).map(Some)
    }
}

fn control(kind: u16, fin: bool, mut body: Bytes) -> Result<Frame, FrameError> {
    let length = body.len();
    let right = match kind {
        SYN_STREAM => length >= 10,
        SYN_REPLY | HEADERS => length >= 4,
        RST_STREAM | GOAWAY | WINDOW_UPDATE => length == 8,
        PING => length == 4,
        SETTINGS => length >= 4 && settings_fit(&body),
        _ => true,
    };
    if !right {
        return Err(FrameError::Length { kind, length });
    }
    Ok(match kind {
        SYN_STREAM => {
            let stream = body.get_u32() & 0x7fff_ffff;
            // The stream it belongs to, the priority and the credential slot mean nothing here.
            body.advance(6);
            Frame::Open { stream, block: body, fin }
        }
        SYN_REPLY | HEADERS => {
            body.advance(4);
            Frame::Headers { block: body }
        }
        RST_STREAM => Frame::Reset { stream: body.get_u32() & 0x7fff_ffff },
        PING => Frame::Ping(body.get_u32()),
        _ => Frame::Other,
    })
}

/// The count is a claim of the peer until it matches the length.
fn settings_fit(mut body: &[u8]) -> bool {
    let count = body.get_u32();
    count <= MOST_SETTINGS && body.len() == count as usize * 8
}

/// The head of a data frame with `length` bytes (at most 2^24 - 1).
pub(crate) fn data_header(stream: u32, length: usize, fin: bool) -> [u8; HEADER] {
    let [a, b, c, d] = (stream & 0x7fff_ffff).to_be_bytes();
    let [_, x, y, z] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    [a, b, c, d, u8::from(fin), x, y, z]
}

fn control_frame(kind: u16, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let [_, x, y, z] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    let mut frame = Vec::with_capacity(HEADER + length);
    frame.extend((CONTROL | VERSION).to_be_bytes());
    frame.extend(kind.to_be_bytes());
    frame.extend([0, x, y, z]);
    for part in parts {
        frame.extend_from_slice(part);
    }
    frame
}

pub(crate) fn reply(stream: u32, block: &[u8]) -> Vec<u8> {
    control_frame(SYN_REPLY, &[&stream.to_be_bytes(), block])
}

pub(crate) fn reset(stream: u32, reason: Reason) -> Vec<u8> {
    control_frame(RST_STREAM, &[&stream.to_be_bytes(), &(reason as u32).to_be_bytes()])
}

pub(crate) fn ping(number: u32) -> Vec<u8> {
    control_frame(PING, &[&number.to_be_bytes()])
}

/// Status 0: all is well; 1: the peer broke the protocol.
pub(crate) fn goaway(last: u32, status: u32) -> Vec<u8> {
    control_frame(GOAWAY, &[&last.to_be_bytes(), &status.to_be_bytes()])
}

/// What a client sends to open a stream.
#[cfg(test)]
pub(crate) fn open(stream: u32, block: &[u8], fin: bool) -> Vec<u8> {
    let mut frame = control_frame(SYN_STREAM, &[&stream.to_be_bytes(), &[0; 6], block]);
    frame[4] = u8::from(fin);
    frame
}
