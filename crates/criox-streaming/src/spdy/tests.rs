//! Frames as a client of Go's spdystream 0.5.1 writes them, and frames that nobody should.

use bytes::{Bytes, BytesMut};
use proptest::collection::vec;
use proptest::prelude::*;

use super::frame::{self, Decoder, Frame, FrameError, Reason};
use super::headers::{Deflater, HeaderError, Headers, Inflater};

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<_> = text.bytes().collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// `streamType: error`, the first frame of a connection.
const OPEN_1: &str =
    "80030001000000290000000100000000000078f9e3c6a7c26260606004a7b392a2d4c45c6851c29a0a0a6800000000ffff";
/// `port: 8080, requestID: 7, streamType: data`, the frame after it, with FIN.
const OPEN_3: &str = "800300010100002f0000000300000000000002a54748d15c04ce05160616060c0c0c9c4590a8cc04257146730ccda0722811000000ffff";
const DATA: &str = "000000030100000568656c6c6f";
const PING: &str = "800300060000000400000001";
const RESET: &str = "80030003000000080000000300000005";
const GOAWAY: &str = "80030007000000080000000000000000";
const SETTINGS: &str = "800300040000000c00000001000000070000ffff";
const WINDOW: &str = "800300090000000800000001000003e8";

/// All frames, with neighbouring pieces of data joined.
fn frames(pieces: &[&[u8]]) -> Result<Vec<Frame>, FrameError> {
    let (mut decoder, mut buffer, mut all) = (Decoder::default(), BytesMut::new(), Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        while let Some(frame) = decoder.decode(&mut buffer)? {
            match (all.last_mut(), frame) {
                (
                    Some(Frame::Data { stream, bytes, fin: last @ false }),
                    Frame::Data { stream: next, bytes: more, fin },
                ) if *stream == next => {
                    *bytes = [&bytes[..], &more[..]].concat().into();
                    *last = fin;
                }
                (_, frame) => all.push(frame),
            }
        }
    }
    Ok(all)
}

fn session() -> Vec<u8> {
    [OPEN_1, SETTINGS, OPEN_3, PING, DATA, WINDOW, RESET, GOAWAY].map(hex).concat()
}

#[test]
fn gos_frames_are_read() {
    let all = frames(&[&session()]).unwrap();
    let mut inflater = Inflater::new();
    let mut read = |frame: &Frame| {
        let Frame::Open { stream, block, fin } = frame else { panic!("{frame:?}") };
        (*stream, inflater.block(block).unwrap(), *fin)
    };
    let (stream, headers, fin) = read(&all[0]);
    assert_eq!((stream, headers.get("streamtype"), fin), (1, Some("error"), false));
    let (stream, headers, fin) = read(&all[2]);
    assert_eq!((stream, fin), (3, true));
    for (name, value) in [("streamtype", "data"), ("port", "8080"), ("requestid", "7")] {
        assert_eq!(headers.get(name), Some(value));
    }
    let rest = [
        Frame::Ping(1),
        Frame::Data { stream: 3, bytes: Bytes::from_static(b"hello"), fin: true },
        Frame::Other,
        Frame::Reset { stream: 3 },
        Frame::Other,
    ];
    assert_eq!(all[1], Frame::Other);
    assert_eq!(all[3..], rest);
}

#[test]
fn our_frames_are_gos() {
    assert_eq!(frame::ping(1), hex(PING));
    assert_eq!(frame::reset(3, Reason::Cancel), hex(RESET));
    assert_eq!(frame::goaway(0, 0), hex(GOAWAY));
    assert_eq!([&frame::data_header(3, 5, true)[..], b"hello"].concat(), hex(DATA));
}

#[test]
fn our_blocks_can_be_inflated_one_after_another() {
    let (mut deflater, mut inflater) = (Deflater::new().unwrap(), Inflater::new());
    for pairs in [&[][..], &[("streamtype", "data"), ("port", "80")], &[], &[("a", "")]] {
        let headers = inflater.block(&deflater.block(pairs).unwrap()).unwrap();
        for (name, value) in pairs {
            assert_eq!(headers.get(name), Some(*value));
        }
    }
}

#[test]
fn frames_with_a_wrong_length_are_refused() {
    for (kind, length) in [(1, 9), (2, 3), (3, 4), (3, 12), (4, 3), (6, 8), (7, 4), (8, 0), (9, 9)] {
        let mut bytes = vec![0x80, 3, 0, kind, 0, 0, 0, length];
        bytes.resize(8 + usize::from(length), 0);
        let want = FrameError::Length { kind: kind.into(), length: length.into() };
        assert_eq!(frames(&[&bytes]), Err(want));
    }
}

#[test]
fn counts_are_checked_before_they_are_believed() {
    let mut settings = hex("800300040000000cffffffff00000007000000ff");
    assert!(matches!(frames(&[&settings]), Err(FrameError::Length { kind: 4, .. })));
    settings[8..12].copy_from_slice(&2u32.to_be_bytes());
    assert!(matches!(frames(&[&settings]), Err(FrameError::Length { kind: 4, .. })));
    for (count, rest) in
        [(u32::MAX, &[][..]), (1, &[]), (1, &[0, 0, 0, 9, b'x']), (0, &[1]), (129, &[0; 2000])]
    {
        let block = deflated(&[&count.to_be_bytes(), rest].concat());
        assert_eq!(Inflater::new().block(&block), Err(HeaderError::Counts));
    }
}

/// A block with any content.
fn deflated(plain: &[u8]) -> Vec<u8> {
    let mut compress = flate2::Compress::new(flate2::Compression::best(), true);
    compress.set_dictionary(&super::dictionary::DICTIONARY).unwrap();
    let mut block = Vec::with_capacity(plain.len() + 1024);
    compress.compress_vec(plain, &mut block, flate2::FlushCompress::Sync).unwrap();
    block
}

#[test]
fn a_block_that_blows_up_is_refused() {
    let block = deflated(&vec![0; 50 << 20]);
    assert!(block.len() < frame::MOST_CONTROL, "it would pass as a frame: {}", block.len());
    assert_eq!(Inflater::new().block(&block), Err(HeaderError::TooLong));
}

#[test]
fn control_frames_are_bounded_and_data_is_not() {
    assert_eq!(frames(&[&[0x80, 3, 0, 1, 0, 1, 0, 1]]), Err(FrameError::TooLong(0x1_0001)));
    assert_eq!(frames(&[&[0x80, 2, 0, 1, 0, 0, 0, 0]]), Err(FrameError::Version(2)));
    let all = frames(&[&[0, 0, 0, 1, 1, 0xff, 0xff, 0xff], &vec![7; 0xff_ffff]]).unwrap();
    let [Frame::Data { bytes, fin: true, .. }] = &all[..] else { panic!("{} frames", all.len()) };
    assert_eq!(bytes.len(), 0xff_ffff);
}

proptest! {
    #[test]
    fn a_session_may_be_cut_anywhere(mut cuts in vec(0usize..170, 0..8)) {
        let session = session();
        cuts.push(0);
        cuts.push(session.len());
        cuts.iter_mut().for_each(|cut| *cut = (*cut).min(session.len()));
        cuts.sort_unstable();
        let pieces: Vec<_> = cuts.windows(2).map(|pair| &session[pair[0]..pair[1]]).collect();
        prop_assert_eq!(frames(&pieces).unwrap(), frames(&[&session]).unwrap());
    }

    #[test]
    fn no_frames_make_it_panic(bytes in vec(any::<u8>(), 0..300), kind in 0u8..12) {
        let _ = frames(&[&bytes]);
        let length = u8::try_from(bytes.len().min(255)).unwrap();
        let _ = frames(&[&[0x80, 3, 0, kind, 1, 0, 0, length], &bytes]);
    }

    #[test]
    fn no_blocks_make_it_panic(bytes in vec(any::<u8>(), 0..300)) {
        let mut inflater = Inflater::new();
        let _ = inflater.block(&bytes);
        let _ = inflater.block(&bytes);
        let _ = Inflater::new().block(&deflated(&bytes));
    }

    #[test]
    fn every_block_comes_out_as_it_went_in(pairs in vec(("[a-z]{1,20}", "\\PC{0,200}"), 0..20)) {
        let (mut deflater, mut inflater) = (Deflater::new().unwrap(), Inflater::new());
        let pairs: Vec<_> = pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        for _ in 0..3 {
            let headers: Headers = inflater.block(&deflater.block(&pairs).unwrap()).unwrap();
            for (name, _) in &pairs {
                let first = pairs.iter().find(|(other, _)| other == name).map(|(_, value)| *value);
                prop_assert_eq!(headers.get(name), first);
            }
        }
    }
}
