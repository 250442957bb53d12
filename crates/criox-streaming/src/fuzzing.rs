//! The parsers of foreign bytes, for `dev/fuzz`.

use bytes::BytesMut;

use crate::exec::Sizes;
use crate::forward::read_headers;
use crate::spdy::frame::{Decoder, Frame};
use crate::spdy::headers::Inflater;
use crate::websocket::Reader;
use crate::websocket::frame;

/// Pieces of the input, of which each begins with its length less one.
fn pieces(mut input: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = input.split_first()?;
        let piece = rest.get(..usize::from(*length) + 1).unwrap_or(rest);
        input = rest.get(piece.len()..).unwrap_or_default();
        Some(piece)
    })
}

/// A client's frames of SPDY, with what their header blocks and sizes say.
pub fn spdy(input: &[u8]) {
    let (mut decoder, mut inflater, mut sizes) = (Decoder::default(), Inflater::new(), Sizes::default());
    let mut buffer = BytesMut::new();
    for piece in pieces(input) {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buffer) {
                Ok(Some(Frame::Open { stream, block, .. })) => match inflater.block(&block) {
                    Ok(headers) => drop(read_headers(stream, &headers)),
                    Err(_) => return,
                },
                Ok(Some(Frame::Headers { block })) => {
                    if inflater.block(&block).is_err() {
                        return;
                    }
                }
                Ok(Some(Frame::Data { bytes, .. })) => drop(sizes.read(&bytes)),
                Ok(Some(_)) => (),
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}

/// A header block as it is before it is deflated: what a fuzzer hardly finds by itself.
pub fn headers(input: &[u8]) {
    drop(crate::spdy::headers::parse(input).map(|headers| read_headers(5, &headers)));
}

/// A client's frames of WebSocket, with the channels of their messages.
pub fn websocket(input: &[u8]) {
    let Some((mode, input)) = input.split_first() else { return };
    let mut decoder = frame::Decoder::default();
    let mut reader = Reader::new(mode & 1 == 1, mode & 2 == 2);
    let mut buffer = BytesMut::new();
    for piece in pieces(input) {
        buffer.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buffer) {
                Ok(Some(frame::Frame::Data { bytes, first, last })) => {
                    if reader.read(bytes, first, last).is_err() {
                        return;
                    }
                }
                Ok(Some(_)) => (),
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}
