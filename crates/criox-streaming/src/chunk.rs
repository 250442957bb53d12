//! A buffer with room before its payload, so that headers are put in front without a copy.

/// Room for headers: SPDY's 8 bytes, a channel's byte, WebSocket's 10.
const HEADROOM: usize = 24;

/// Payload that fits: what a pipe holds.
const PAYLOAD: usize = 64 << 10;

/// Payload between a headroom and the end of what was read.
#[derive(Debug)]
pub(crate) struct Chunk {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Chunk {
    pub(crate) fn new() -> Self {
        Self { buffer: vec![0; HEADROOM], start: HEADROOM, end: HEADROOM }
    }

    /// The whole room for a payload; [`Chunk::fill`] says how much of it holds.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        (self.start, self.end) = (HEADROOM, HEADROOM);
        // Only once: it isn't cleared again for each read. Pages that nobody touches cost nothing.
        if self.buffer.len() < HEADROOM + PAYLOAD {
            self.buffer.resize(HEADROOM + PAYLOAD, 0);
        }
        self.buffer.get_mut(HEADROOM..HEADROOM + PAYLOAD).unwrap_or_default()
    }

    /// The first `length` bytes of the room are the payload.
    pub(crate) fn fill(&mut self, length: usize) {
        self.end = (HEADROOM + length).min(self.buffer.len());
    }

    /// Makes `payload` the payload, of any length.
    pub(crate) fn set(&mut self, payload: &[u8]) {
        (self.start, self.end) = (HEADROOM, HEADROOM + payload.len());
        if self.buffer.len() < self.end {
            self.buffer.resize(self.end, 0);
        }
        self.buffer[HEADROOM..self.end].copy_from_slice(payload);
    }

    /// Puts a header in front; there is room for one of each kind.
    pub(crate) fn prepend(&mut self, header: &[u8]) {
        assert!(header.len() <= self.start, "no room for a header of {} bytes", header.len());
        let start = self.start - header.len();
        self.buffer[start..self.start].copy_from_slice(header);
        self.start = start;
    }

    /// Payload with its headers.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_stand_before_the_payload() {
        let mut chunk = Chunk::new();
        chunk.space()[..3].copy_from_slice(b"abc");
        chunk.fill(3);
        chunk.prepend(b"12345678");
        chunk.prepend(b"x");
        assert_eq!(chunk.bytes(), b"x12345678abc");
        chunk.set(b"");
        assert_eq!(chunk.bytes(), b"");
        assert_eq!(chunk.space().len(), PAYLOAD);
    }
}
