//! Frames of WebSocket (RFC 6455, section 5), as a server reads and writes them.

use bytes::{Buf, Bytes, BytesMut};

/// Largest payload of a control frame (section 5.5).
const MOST_CONTROL: u64 = 125;

/// The longest header that we write.
pub(crate) const MOST_HEADER: usize = 10;

/// What a frame of ours holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opcode {
    Text = 1,
    Binary = 2,
    Close = 8,
    Pong = 10,
}

/// The peer broke the protocol; the connection is closed with code 1002.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct FrameError(&'static str);

/// What the peer sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    /// A piece of a message. Text and binary are not told apart.
    Data {
        bytes: Bytes,
        first: bool,
        last: bool,
    },
    Ping(Bytes),
    Pong,
    /// With the code that it gives, if any.
    Close(Option<u16>),
}

/// Cuts a byte stream into frames and pieces of messages, and takes the masks off.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    /// A data frame of which bytes are still to come.
    payload: Option<Payload>,
    /// A message has begun and not ended.
    in_message: bool,
}

#[derive(Debug)]
struct Payload {
    left: u64,
    mask: [u8; 4],
    fin: bool,
    first: bool,
}

struct Header {
    fin: bool,
    opcode: u8,
    length: u64,
    mask: [u8; 4],
    size: usize,
}

impl Decoder {
    /// The next frame, or `None` if more bytes are needed. Data is given on as it comes, in pieces, so that no message
    /// is too large.
    pub(crate) fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        if self.payload.is_some() {
            return Ok(self.piece(buffer));
        }
        let Some(header) = header(buffer)? else { return Ok(None) };
        if header.opcode < 8 {
            match (header.opcode, self.in_message) {
                (0, false) => return Err(FrameError("a continuation without a beginning")),
                (1 | 2, true) => return Err(FrameError("a message within a message")),
                (0..=2, _) => (),
                _ => return Err(FrameError("an unknown kind of data frame")),
            }
            buffer.advance(header.size);
            let Header { fin, length, mask, .. } = header;
            let first = !self.in_message;
            self.in_message = !fin;
            if length == 0 {
                return Ok(Some(Frame::Data { bytes: Bytes::new(), first, last: fin }));
            }
            self.payload = Some(Payload { left: length, mask, fin, first });
            return Ok(self.piece(buffer));
        }
        if !header.fin || header.length > MOST_CONTROL {
            return Err(FrameError("a control frame that is fragmented or longer than 125 bytes"));
        }
        let length = usize::try_from(header.length).map_err(|_| FrameError("too long"))?;
        if buffer.len() < header.size + length {
            return Ok(None);
        }
        buffer.advance(header.size);
        let mut body = buffer.split_to(length);
        unmask(&mut body, header.mask);
        match header.opcode {
            8 if body.len() == 1 => Err(FrameError("a close code of one byte")),
            8 => Ok(Some(Frame::Close(body.try_get_u16().ok()))),
            9 => Ok(Some(Frame::Ping(body.freeze()))),
            10 => Ok(Some(Frame::Pong)),
            _ => Err(FrameError("an unknown kind of control frame")),
        }
    }

    fn piece(&mut self, buffer: &mut BytesMut) -> Option<Frame> {
        let payload = self.payload.as_mut()?;
        if buffer.is_empty() {
            return None;
        }
        let length = usize::try_from(payload.left).unwrap_or(usize::MAX).min(buffer.len());
        let mut bytes = buffer.split_to(length);
        unmask(&mut bytes, payload.mask);
        payload.mask.rotate_left(length % 4);
        payload.left -= length as u64;
        let (first, last) = (payload.first, payload.fin && payload.left == 0);
        payload.first = false;
        if payload.left == 0 {
            self.payload = None;
        }
        Some(Frame::Data { bytes: bytes.freeze(), first, last })
    }
}

fn header(buffer: &[u8]) -> Result<Option<Header>, FrameError> {
    let Some(&[start, second]) = buffer.first_chunk() else { return Ok(None) };
    if start & 0x70 != 0 {
        return Err(FrameError("reserved bits are set, but no extension was agreed"));
    }
    if second & 0x80 == 0 {
        return Err(FrameError("a frame without a mask"));
    }
    let mut rest = buffer.get(2..).unwrap_or_default();
    let length = match second & 0x7f {
        126 => rest.try_get_u16().map(u64::from),
        127 => rest.try_get_u64(),
        short => Ok(u64::from(short)),
    };
    let (Ok(length), Some(&mask)) = (length, rest.first_chunk::<4>()) else { return Ok(None) };
    if length >> 63 != 0 {
        return Err(FrameError("a length beyond 63 bits"));
    }
    let size = buffer.len() - rest.len() + mask.len();
    Ok(Some(Header { fin: start & 0x80 != 0, opcode: start & 0xf, length, mask, size }))
}

/// Applies a mask, or takes it off.
fn unmask(bytes: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, rest) = bytes.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

/// The header of an unfragmented frame of ours, and its size.
pub(crate) fn server_header(opcode: Opcode, length: usize) -> ([u8; MOST_HEADER], usize) {
    let mut header = [0; MOST_HEADER];
    let [_, _, _, _, _, _, x, y] = (length as u64).to_be_bytes();
    header[0] = 0x80 | opcode as u8;
    let size = match length {
        0..=125 => {
            header[1] = y;
            2
        }
        126..=0xffff => {
            header[1] = 126;
            header[2..4].copy_from_slice(&[x, y]);
            4
        }
        _ => {
            header[1] = 127;
            header[2..].copy_from_slice(&(length as u64).to_be_bytes());
            10
        }
    };
    (header, size)
}

/// What a client sends.
#[cfg(test)]
pub(crate) fn client_frame(fin: bool, opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x37, 0xfa, 0x21, 0x3d];
    let (mut header, size) = server_header(Opcode::Binary, payload.len());
    header[0] = u8::from(fin) << 7 | opcode;
    header[1] |= 0x80;
    let mut frame = header[..size].to_vec();
    frame.extend(mask);
    let mut payload = payload.to_vec();
    unmask(&mut payload, mask);
    frame.extend(payload);
    frame
}
