//! The bytes on a plugin's socket: ttrpc frames inside the frames of NRI's multiplexer.
//!
//! ```text
//! multiplexer   connection (4) │ length (4) │ bytes of that connection's stream
//! ttrpc         length (4) │ stream (4) │ type (1) │ flags (1) │ protobuf message of that length
//! ```
//!
//! All numbers are big-endian. A ttrpc frame may begin and end anywhere in the multiplexer's frames as far as we are
//! concerned; what we send is cut so that the Go implementation can read it (see [`encode`]).

/// The longest protobuf message in a ttrpc frame.
pub const MAX_MESSAGE: usize = 4 << 20;

/// The multiplexer's header.
const MUX_HEADER: usize = 8;
/// ttrpc's header.
const HEADER: usize = 10;
/// What the first piece of a ttrpc frame may be long: the buffer of Go's `bufio.Reader`, through which it is read.
const FIRST_PIECE: usize = 4096;

/// A stream inside the multiplexed socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// Calls of the runtime, which the plugin answers.
    Plugin,
    /// Calls of the plugin, which the runtime answers.
    Runtime,
}

impl Channel {
    fn number(self) -> u32 {
        match self {
            Self::Plugin => 1,
            Self::Runtime => 2,
        }
    }

    /// Others are reserved: what comes on them is skipped, as by the Go implementation.
    fn of(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::Plugin),
            2 => Some(Self::Runtime),
            _ => None,
        }
    }

    fn index(self) -> usize {
        match self {
            Self::Plugin => 0,
            Self::Runtime => 1,
        }
    }
}

/// The type of a ttrpc frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The beginning of a call.
    Request,
    /// Its end.
    Response,
    /// A message of a streaming call, of which NRI has none.
    Data,
}

impl Kind {
    fn number(self) -> u8 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Data => 3,
        }
    }

    fn of(number: u8) -> Result<Self, WireError> {
        match number {
            1 => Ok(Self::Request),
            2 => Ok(Self::Response),
            3 => Ok(Self::Data),
            other => Err(WireError::Kind(other)),
        }
    }
}

/// A ttrpc frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// On which connection it came.
    pub channel: Channel,
    /// The call that it belongs to.
    pub stream: u32,
    /// What it is.
    pub kind: Kind,
    /// Flags of streaming calls.
    pub flags: u8,
    /// One protobuf message.
    pub payload: Vec<u8>,
}

/// Why bytes are no frames. The connection is lost then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A frame of the multiplexer or of ttrpc says that it is longer than one may be.
    #[error("a frame of {0} bytes is longer than allowed")]
    TooLong(usize),
    /// There is no such type of ttrpc frame.
    #[error("a frame is of the unknown type {0}")]
    Kind(u8),
}

/// Puts the bytes from a socket together into frames. It never holds more than one frame of each connection.
#[derive(Debug, Default)]
pub struct Assembler {
    header: Vec<u8>,
    /// The multiplexer's frame in which we are, and what is left of it.
    inside: Option<(Option<Channel>, usize)>,
    streams: [Vec<u8>; 2],
}

impl Assembler {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in bytes in the order in which they came, and appends the frames that they complete.
    ///
    /// # Errors
    /// The bytes can't be what a plugin sends; nothing that comes later makes sense.
    pub fn push(&mut self, mut bytes: &[u8], frames: &mut Vec<Frame>) -> Result<(), WireError> {
        while !bytes.is_empty() {
            let Some((channel, left)) = self.inside else {
                let (part, rest) = bytes.split_at(bytes.len().min(MUX_HEADER - self.header.len()));
                self.header.extend_from_slice(part);
                bytes = rest;
                self.enter()?;
                continue;
            };
            let (part, rest) = bytes.split_at(bytes.len().min(left));
            bytes = rest;
            self.inside = (left > part.len()).then_some((channel, left - part.len()));
            if let Some(channel) = channel {
                self.append(channel, part, frames)?;
            }
        }
        Ok(())
    }

    /// Reads the multiplexer's header when it is complete.
    fn enter(&mut self) -> Result<(), WireError> {
        let Some((number, length)) = two_numbers(&self.header) else { return Ok(()) };
        self.header.clear();
        let length = length as usize;
        if length > HEADER + MAX_MESSAGE {
            return Err(WireError::TooLong(length));
        }
        self.inside = (length > 0).then(|| (Channel::of(number), length));
        Ok(())
    }

    fn append(
        &mut self,
        channel: Channel,
        mut bytes: &[u8],
        frames: &mut Vec<Frame>,
    ) -> Result<(), WireError> {
        let stream = &mut self.streams[channel.index()];
        while !bytes.is_empty() {
            let wanted = match frame_length(stream)? {
                None => HEADER,
                Some(length) => HEADER + length,
            };
            let (part, rest) = bytes.split_at(bytes.len().min(wanted - stream.len()));
            stream.extend_from_slice(part);
            bytes = rest;
            if let Some(length) = frame_length(stream)?
                && stream.len() == HEADER + length
            {
                frames.push(take(channel, stream)?);
            }
        }
        Ok(())
    }
}

/// The length that a ttrpc header states, once there is one.
fn frame_length(stream: &[u8]) -> Result<Option<usize>, WireError> {
    if stream.len() < HEADER {
        return Ok(None);
    }
    match two_numbers(stream) {
        Some((length, _)) if length as usize > MAX_MESSAGE => Err(WireError::TooLong(length as usize)),
        Some((length, _)) => Ok(Some(length as usize)),
        None => Ok(None),
    }
}

/// The one whole frame that `stream` holds.
fn take(channel: Channel, stream: &mut Vec<u8>) -> Result<Frame, WireError> {
    let mut bytes = std::mem::take(stream);
    let id = two_numbers(&bytes).map_or(0, |(_, id)| id);
    let (kind, flags) = (Kind::of(bytes[8])?, bytes[9]);
    bytes.drain(..HEADER);
    Ok(Frame { channel, stream: id, kind, flags, payload: bytes })
}

fn two_numbers(bytes: &[u8]) -> Option<(u32, u32)> {
    let (first, rest) = bytes.split_first_chunk::<4>()?;
    let second = rest.first_chunk::<4>()?;
    Some((u32::from_be_bytes(*first), u32::from_be_bytes(*second)))
}

/// A message that is ready to be sent, but for the number of its stream.
#[derive(Debug)]
pub struct Encoded(Vec<u8>);

impl Encoded {
    /// With the number.
    pub fn on_stream(mut self, stream: u32) -> Vec<u8> {
        self.0[MUX_HEADER + 4..MUX_HEADER + 8].copy_from_slice(&stream.to_be_bytes());
        self.0
    }
}

/// The bytes of a frame.
///
/// The Go implementation reads each frame of the multiplexer with one call, and fails when its buffer is shorter.
/// That buffer is 4096 bytes for the beginning of a ttrpc frame, and exactly the rest for the rest of a long one. More
/// than 256 unread frames make it give up as well. So a short ttrpc frame is sent as one, a long one as two.
///
/// # Errors
/// The message is longer than [`MAX_MESSAGE`]; its length.
pub fn encode(channel: Channel, kind: Kind, message: &impl prost::Message) -> Result<Encoded, usize> {
    let length = message.encoded_len();
    let announced = u32::try_from(length).ok().filter(|_| length <= MAX_MESSAGE).ok_or(length)?;
    let mut frame = Vec::with_capacity(HEADER + length);
    frame.extend_from_slice(&announced.to_be_bytes());
    frame.extend_from_slice(&[0, 0, 0, 0, kind.number(), 0]);
    message.encode_raw(&mut frame);
    let (first, rest) = frame.split_at(frame.len().min(FIRST_PIECE));
    let mut bytes = Vec::with_capacity(frame.len() + 2 * MUX_HEADER);
    for piece in [first, rest] {
        if let Some(length) = u32::try_from(piece.len()).ok().filter(|length| *length > 0) {
            bytes.extend_from_slice(&channel.number().to_be_bytes());
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(piece);
        }
    }
    Ok(Encoded(bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::ttrpc::{Request, Response};

    fn request(size: usize) -> Request {
        Request { service: "s".into(), method: "m".into(), payload: vec![7; size], ..Default::default() }
    }

    fn assembled(bytes: &[u8]) -> Result<Vec<Frame>, WireError> {
        let mut frames = Vec::new();
        Assembler::new().push(bytes, &mut frames).map(|()| frames)
    }

    /// The multiplexer's frames as a Go peer sees them: their lengths.
    fn lengths(mut bytes: &[u8]) -> Vec<usize> {
        let mut found = Vec::new();
        while let Some((_, length)) = two_numbers(bytes) {
            found.push(length as usize);
            bytes = &bytes[MUX_HEADER + length as usize..];
        }
        found
    }

    #[test]
    fn the_bytes_of_a_call_are_those_that_the_go_implementation_writes() {
        let call =
            Request { service: "a.B".into(), method: "C".into(), timeout_nano: 5, ..Default::default() };
        let bytes = encode(Channel::Plugin, Kind::Request, &call).unwrap().on_stream(3);
        let body = [0x0a, 3, b'a', b'.', b'B', 0x12, 1, b'C', 0x20, 5];
        let mut expected = vec![0, 0, 0, 1, 0, 0, 0, 20, 0, 0, 0, 10, 0, 0, 0, 3, 1, 0];
        expected.extend(body);
        assert_eq!(bytes, expected);
    }

    #[test]
    fn what_we_send_fits_the_buffers_of_a_go_peer() {
        for size in [0, 10, 4000, 4096, 5000, 100_000, MAX_MESSAGE - 100] {
            let message = request(size);
            let bytes = encode(Channel::Plugin, Kind::Request, &message).unwrap().on_stream(1);
            let whole = HEADER + message.encoded_len();
            let expected =
                if whole <= FIRST_PIECE { vec![whole] } else { vec![FIRST_PIECE, whole - FIRST_PIECE] };
            assert_eq!(lengths(&bytes), expected, "{size}");
        }
    }

    #[test]
    fn too_long_messages_are_refused_on_both_sides() {
        let long = request(MAX_MESSAGE);
        assert!(encode(Channel::Plugin, Kind::Request, &long).unwrap_err() > MAX_MESSAGE);
        let huge = [0, 0, 0, 2, 0xff, 0xff, 0xff, 0xff];
        assert_eq!(assembled(&huge), Err(WireError::TooLong(u32::MAX as usize)));
        let inner = [0, 0, 0, 2, 0, 0, 0, 10, 0x7f, 0, 0, 0, 0, 0, 0, 1, 1, 0];
        assert_eq!(assembled(&inner), Err(WireError::TooLong(0x7f00_0000)));
    }

    #[test]
    fn an_unknown_type_is_an_error_and_an_unknown_connection_is_skipped() {
        let unknown = [0, 0, 0, 2, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 1, 9, 0];
        assert_eq!(assembled(&unknown), Err(WireError::Kind(9)));
        let mut bytes = vec![0, 0, 0, 7, 0, 0, 0, 3, 1, 2, 3];
        bytes.extend(encode(Channel::Runtime, Kind::Response, &Response::default()).unwrap().on_stream(1));
        assert_eq!(assembled(&bytes).unwrap().len(), 1);
    }

    #[test]
    fn a_header_that_promises_much_costs_nothing_until_it_comes() {
        let mut assembler = Assembler::new();
        let announced = u32::try_from(MAX_MESSAGE).unwrap().to_be_bytes();
        let mut bytes = vec![0, 0, 0, 1, 0, 0, 0, 10];
        bytes.extend(announced);
        bytes.extend([0, 0, 0, 1, 1, 0]);
        assembler.push(&bytes, &mut Vec::new()).unwrap();
        assert!(assembler.streams[0].capacity() < 4096);
    }

    proptest! {
        #[test]
        fn frames_survive_any_cutting_and_interleaving(
            sizes in proptest::collection::vec((any::<bool>(), 0..9000_usize), 1..12),
            cuts in proptest::collection::vec(1..3000_usize, 1..40),
            pieces in proptest::collection::vec(1..5000_usize, 1..40),
        ) {
            // Both connections' streams, cut into the multiplexer's frames of any length, in turns.
            let mut expected: [Vec<Frame>; 2] = Default::default();
            let mut streams: [Vec<u8>; 2] = Default::default();
            for (number, (runtime, size)) in (1..).zip(&sizes) {
                let channel = if *runtime { Channel::Runtime } else { Channel::Plugin };
                let message = request(*size);
                let bytes = encode(channel, Kind::Request, &message).unwrap().on_stream(number);
                let mut rest = &bytes[..];
                while let Some((_, length)) = two_numbers(rest) {
                    let end = MUX_HEADER + length as usize;
                    streams[channel.index()].extend_from_slice(&rest[MUX_HEADER..end]);
                    rest = &rest[end..];
                }
                let payload = message.encode_to_vec();
                expected[channel.index()].push(Frame { channel, stream: number, kind: Kind::Request, flags: 0, payload });
            }
            let mut wire = Vec::new();
            let mut at = [0, 0];
            for (turn, piece) in pieces.iter().cycle().enumerate() {
                let index = turn % 2;
                let channel = if index == 1 { Channel::Runtime } else { Channel::Plugin };
                let left = &streams[index][at[index]..];
                let part = &left[..left.len().min(*piece)];
                at[index] += part.len();
                wire.extend(channel.number().to_be_bytes());
                wire.extend(u32::try_from(part.len()).unwrap().to_be_bytes());
                wire.extend_from_slice(part);
                if at[0] == streams[0].len() && at[1] == streams[1].len() { break; }
            }
            let (mut assembler, mut frames, mut rest) = (Assembler::new(), Vec::new(), &wire[..]);
            for cut in cuts.iter().cycle() {
                let (part, left) = rest.split_at((*cut).min(rest.len()));
                assembler.push(part, &mut frames).unwrap();
                rest = left;
                if rest.is_empty() { break; }
            }
            for (index, channel) in [Channel::Plugin, Channel::Runtime].into_iter().enumerate() {
                let got: Vec<Frame> = frames.iter().filter(|frame| frame.channel == channel).cloned().collect();
                prop_assert_eq!(&got, &expected[index]);
            }
        }

        #[test]
        fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..300)) {
            drop(assembled(&noise));
        }
    }
}
