//! Frames on a stream socket: a 32-bit little-endian length, then one protobuf message of that length.
//!
//! Descriptors travel beside the first byte of the frame that names them (`SCM_RIGHTS`). The kernel never moves
//! descriptors past bytes sent later, so a reader keeps them in a queue, and each message that names some takes
//! them from its head.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use criox_sys::socket;
use prost::Message;

/// The longest message, in bytes, without its length prefix.
pub const MAX_MESSAGE: usize = 1 << 20;

/// Descriptors that may wait in a reader: more than any frame names; a peer that sends more is broken.
pub const MAX_WAITING_FDS: usize = 16;

const PREFIX: usize = 4;
/// Bytes that one `recvmsg` takes at most.
const READ_SIZE: usize = 4 * 1024;

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The message is longer than [`MAX_MESSAGE`].
    #[error("frame of {0} bytes is longer than the {MAX_MESSAGE} allowed")]
    TooLong(usize),
    /// The bytes are no message of the expected type.
    #[error("frame holds no valid message")]
    Malformed(#[source] prost::DecodeError),
    /// The message names descriptors that did not come with it.
    #[error("frame names {wanted} descriptors, {held} came")]
    MissingFds {
        /// How many the message names.
        wanted: usize,
        /// How many have come.
        held: usize,
    },
    /// The peer sends descriptors that nothing names.
    #[error("peer sent more than {MAX_WAITING_FDS} descriptors that no frame names")]
    TooManyFds,
    /// The socket failed; `WouldBlock` from a non-blocking socket is passed on here too.
    #[error("monitor socket failed")]
    Io(#[from] io::Error),
}

/// Appends the frame of `message` to `out`.
pub fn encode<M: Message>(message: &M, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let length = message.encoded_len();
    if length > MAX_MESSAGE {
        return Err(FrameError::TooLong(length));
    }
    let prefix = u32::try_from(length).map_err(|_| FrameError::TooLong(length))?;
    out.reserve(PREFIX + length);
    out.extend_from_slice(&prefix.to_le_bytes());
    message.encode_raw(out);
    Ok(())
}

/// Puts bytes and descriptors from a socket together into messages.
#[derive(Debug, Default)]
pub struct FrameReader {
    buffer: Vec<u8>,
    /// Bytes of `buffer` that earlier messages used up.
    used: usize,
    fds: VecDeque<OwnedFd>,
}

impl FrameReader {
    /// An empty reader.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in bytes and descriptors that were received elsewhere.
    pub fn push(&mut self, bytes: &[u8], fds: impl IntoIterator<Item = OwnedFd>) -> Result<(), FrameError> {
        self.compact();
        self.buffer.extend_from_slice(bytes);
        self.fds.extend(fds);
        if self.fds.len() > MAX_WAITING_FDS { Err(FrameError::TooManyFds) } else { Ok(()) }
    }

    /// Receives once. Returns the number of bytes; 0 is the end of the stream.
    pub fn read_from(&mut self, socket: impl AsFd) -> Result<usize, FrameError> {
        self.compact();
        let start = self.buffer.len();
        self.buffer.resize(start + READ_SIZE, 0);
        let mut fds = Vec::new();
        let result = socket::recv_with_fds(socket, &mut self.buffer[start..], &mut fds);
        self.buffer.truncate(start + *result.as_ref().unwrap_or(&0));
        self.fds.extend(fds);
        let count = result?;
        if self.fds.len() > MAX_WAITING_FDS { Err(FrameError::TooManyFds) } else { Ok(count) }
    }

    #[expect(clippy::should_implement_trait, reason = "the type of message is the caller's choice")]
    /// The next whole message, or `None` until more bytes have come. After an error the stream is lost.
    pub fn next<M: Message + Default>(&mut self) -> Result<Option<M>, FrameError> {
        let pending = &self.buffer[self.used..];
        let Some((prefix, rest)) = pending.split_first_chunk::<PREFIX>() else { return Ok(None) };
        let length = u32::from_le_bytes(*prefix) as usize;
        if length > MAX_MESSAGE {
            return Err(FrameError::TooLong(length));
        }
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let message = M::decode(body).map_err(FrameError::Malformed)?;
        self.used += PREFIX + length;
        Ok(Some(message))
    }

    /// The descriptors that the message just read names, oldest first.
    pub fn take_fds(&mut self, wanted: usize) -> Result<Vec<OwnedFd>, FrameError> {
        let held = self.fds.len();
        if held < wanted {
            return Err(FrameError::MissingFds { wanted, held });
        }
        Ok(self.fds.drain(..wanted).collect())
    }

    /// Drops what earlier messages used, and the memory of an unusually long one.
    fn compact(&mut self) {
        if self.used > 0 {
            self.buffer.drain(..self.used);
            self.used = 0;
        }
        if self.buffer.is_empty() && self.buffer.capacity() > 2 * READ_SIZE {
            self.buffer = Vec::new();
        }
    }
}

/// Frames that wait to be sent on a socket that may not take them at once.
#[derive(Debug, Default)]
pub struct FrameWriter {
    buffer: VecDeque<u8>,
    /// Descriptors, each group with the position of its frame's first byte in the stream.
    fds: VecDeque<(u64, Vec<OwnedFd>)>,
    sent: u64,
}

impl FrameWriter {
    /// An empty writer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Queues a message and the descriptors that go with it.
    pub fn push<M: Message>(&mut self, message: &M, fds: Vec<OwnedFd>) -> Result<(), FrameError> {
        let mut frame = Vec::new();
        encode(message, &mut frame)?;
        if !fds.is_empty() {
            self.fds.push_back((self.sent + self.buffer.len() as u64, fds));
        }
        self.buffer.extend(frame);
        Ok(())
    }

    /// Bytes that wait.
    pub fn pending(&self) -> usize {
        self.buffer.len()
    }

    /// Sends until all is gone (true) or the socket would block (false).
    pub fn write_to(&mut self, socket: impl AsFd) -> Result<bool, FrameError> {
        while !self.buffer.is_empty() {
            match self.write_once(socket.as_fd()) {
                Ok(count) => {
                    self.buffer.drain(..count);
                    self.sent += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        if self.buffer.capacity() > 2 * READ_SIZE {
            self.buffer = VecDeque::new();
        }
        Ok(true)
    }

    /// One `sendmsg`, which ends before the next frame that brings descriptors: the kernel attaches them to the
    /// first byte of the call.
    fn write_once(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let now = self.fds.front().is_some_and(|(at, _)| *at == self.sent);
        let group = if now { self.fds.pop_front() } else { None };
        let limit = match self.fds.front() {
            Some((at, _)) => usize::try_from(at - self.sent).unwrap_or(usize::MAX),
            None => usize::MAX,
        };
        let (first, second) = self.buffer.as_slices();
        let first = &first[..first.len().min(limit)];
        let second = &second[..second.len().min(limit - first.len())];
        let borrowed: Vec<BorrowedFd<'_>> = group.iter().flat_map(|(_, fds)| fds).map(AsFd::as_fd).collect();
        let result = socket::send_with_fds(socket, &[IoSlice::new(first), IoSlice::new(second)], &borrowed);
        drop(borrowed);
        if result.is_err()
            && let Some(group) = group
        {
            self.fds.push_front(group);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::{Delete, Request, request::Verb};

    fn request(id: u64, name: String) -> Request {
        Request { id, verb: Some(Verb::Delete(Delete { container_id: name, timeout_ms: 1 })) }
    }

    #[test]
    fn descriptors_arrive_with_the_frame_that_names_them() {
        let (ours, theirs) = socket::pair().unwrap();
        let (mut writer, mut reader) = (FrameWriter::new(), FrameReader::new());
        for id in 1..=3 {
            let fds = if id == 2 { Vec::new() } else { vec![socket::pair().unwrap().0] };
            writer.push(&request(id, format!("x{id}")), fds).unwrap();
        }
        assert!(writer.write_to(&ours).unwrap());
        let mut next = || loop {
            if let Some(request) = reader.next::<Request>().unwrap() {
                let fds = reader.take_fds(usize::from(request.id != 2)).unwrap().len();
                return (request.id, fds);
            }
            assert_ne!(reader.read_from(&theirs).unwrap(), 0);
        };
        assert_eq!([next(), next(), next()], [(1, 1), (2, 0), (3, 1)]);
    }

    #[test]
    fn a_named_descriptor_that_did_not_come_is_an_error() {
        let error = FrameReader::new().take_fds(2).unwrap_err();
        assert!(matches!(error, FrameError::MissingFds { wanted: 2, held: 0 }));
    }

    #[test]
    fn too_long_frames_are_refused_on_both_sides() {
        let long = request(1, "x".repeat(MAX_MESSAGE));
        assert!(matches!(encode(&long, &mut Vec::new()), Err(FrameError::TooLong(_))));
        let mut reader = FrameReader::new();
        reader.push(&u32::MAX.to_le_bytes(), []).unwrap();
        assert!(matches!(reader.next::<Request>(), Err(FrameError::TooLong(_))));
    }

    proptest! {
        #[test]
        fn frames_survive_any_cutting(
            names in proptest::collection::vec(".{0,40}", 0..20),
            cuts in proptest::collection::vec(1..200_usize, 1..50),
        ) {
            let requests: Vec<Request> = (1..).zip(names).map(|(id, name)| request(id, name)).collect();
            let mut bytes = Vec::new();
            for request in &requests { encode(request, &mut bytes).unwrap(); }
            let (mut reader, mut read, mut rest) = (FrameReader::new(), Vec::new(), &bytes[..]);
            for cut in cuts.iter().cycle() {
                let (part, left) = rest.split_at((*cut).min(rest.len()));
                reader.push(part, []).unwrap();
                while let Some(request) = reader.next::<Request>().unwrap() { read.push(request); }
                rest = left;
                if rest.is_empty() { break; }
            }
            prop_assert_eq!(read, requests);
        }

        #[test]
        fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut reader = FrameReader::new();
            reader.push(&noise, []).unwrap();
            while let Ok(Some(_)) = reader.next::<Request>() {}
        }
    }
}
