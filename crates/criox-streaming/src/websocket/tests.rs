//! Frames of RFC 6455 and messages of Kubernetes' subprotocols, right and wrong ones.

use bytes::{Bytes, BytesMut};
use http::header::{HeaderMap, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_PROTOCOL};
use http::{HeaderName, HeaderValue, Method};
use proptest::collection::vec;
use proptest::prelude::*;

use super::channels::{Input, Reader};
use super::frame::{Decoder, Frame, FrameError, Opcode, client_frame, server_header};
use super::handshake::{self, Dialect, REMOTE_COMMAND, Refused, UNNAMED, accept};

/// All frames, with the pieces of a message joined.
fn frames(pieces: &[&[u8]]) -> Result<Vec<Frame>, FrameError> {
    let (mut decoder, mut buffer, mut all) = (Decoder::default(), BytesMut::new(), Vec::new());
    let mut message: Option<Vec<u8>> = None;
    for piece in pieces {
        buffer.extend_from_slice(piece);
        while let Some(frame) = decoder.decode(&mut buffer)? {
            let Frame::Data { bytes, first, last } = frame else {
                all.push(frame);
                continue;
            };
            assert_eq!(first, message.is_none(), "only the first piece begins a message");
            message.get_or_insert_default().extend_from_slice(&bytes);
            if last {
                let bytes = message.take().unwrap_or_default().into();
                all.push(Frame::Data { bytes, first: true, last });
            }
        }
    }
    Ok(all)
}

fn message(bytes: &'static [u8]) -> Frame {
    Frame::Data { bytes: Bytes::from_static(bytes), first: true, last: true }
}

fn session() -> Vec<u8> {
    [
        client_frame(true, 2, b"\0hello"),
        client_frame(false, 1, b"\x01fir"),
        client_frame(true, 9, b"ping"),
        client_frame(false, 0, b""),
        client_frame(true, 0, b"st"),
        client_frame(true, 10, b"late"),
        client_frame(true, 2, b""),
        client_frame(true, 8, &[0x03, 0xe8, b'x']),
    ]
    .concat()
}

fn session_frames() -> Vec<Frame> {
    vec![
        message(b"\0hello"),
        Frame::Ping(Bytes::from_static(b"ping")),
        message(b"\x01first"),
        Frame::Pong,
        message(b""),
        Frame::Close(Some(1000)),
    ]
}

#[test]
fn messages_are_joined_and_control_frames_come_between() {
    assert_eq!(frames(&[&session()]), Ok(session_frames()));
}

#[test]
fn the_masked_hello_of_the_rfc_is_read() {
    let bytes = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    assert_eq!(frames(&[&bytes]), Ok(vec![message(b"Hello")]));
}

#[test]
fn every_form_of_length_is_read_and_written() {
    for length in [0, 1, 125, 126, 127, 0xffff, 0x1_0000, 200_000] {
        let payload: Vec<u8> = (0..=255).cycle().take(length).collect();
        let all = frames(&[&client_frame(true, 2, &payload)]).unwrap();
        assert_eq!(all, [Frame::Data { bytes: payload.into(), first: true, last: true }], "{length}");
    }
    assert_eq!(server_header(Opcode::Text, 5), ([0x81, 5, 0, 0, 0, 0, 0, 0, 0, 0], 2));
    assert_eq!(server_header(Opcode::Binary, 256), ([0x82, 126, 1, 0, 0, 0, 0, 0, 0, 0], 4));
    assert_eq!(server_header(Opcode::Binary, 65536), ([0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0], 10));
}

#[track_caller]
fn check_broken(frame: &[u8], want: &str) {
    assert_eq!(frames(&[frame]).map_err(|error| error.to_string()), Err(want.to_owned()));
}

#[test]
fn broken_rules_are_named() {
    check_broken(&[0x82, 0x05], "a frame without a mask");
    check_broken(&[0xc2, 0x80], "reserved bits are set, but no extension was agreed");
    check_broken(&client_frame(true, 3, b""), "an unknown kind of data frame");
    check_broken(&client_frame(true, 11, b""), "an unknown kind of control frame");
    check_broken(&client_frame(true, 0, b"x"), "a continuation without a beginning");
    let twice = [client_frame(false, 2, b"x"), client_frame(true, 2, b"y")].concat();
    check_broken(&twice, "a message within a message");
    let control = "a control frame that is fragmented or longer than 125 bytes";
    check_broken(&client_frame(false, 9, b""), control);
    check_broken(&client_frame(true, 9, &[0; 126]), control);
    check_broken(&client_frame(true, 8, b"x"), "a close code of one byte");
    let long = [0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4];
    check_broken(&long, "a length beyond 63 bits");
}

#[test]
fn a_frame_that_claims_to_be_huge_is_only_waited_for() {
    let mut buffer =
        BytesMut::from(&[0x82, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 9][..]);
    let mut decoder = Decoder::default();
    let piece = Frame::Data { bytes: Bytes::from_static(&[9]), first: true, last: false };
    assert_eq!(decoder.decode(&mut buffer), Ok(Some(piece)));
    assert_eq!(decoder.decode(&mut buffer), Ok(None));
}

fn read(base64: bool, closes: bool, messages: &[&[&'static str]]) -> Result<Vec<(u8, String)>, &'static str> {
    let mut reader = Reader::new(base64, closes);
    let mut all: Vec<(u8, String)> = Vec::new();
    for message in messages {
        for (n, piece) in message.iter().enumerate() {
            let input = reader.read((*piece).into(), n == 0, n + 1 == message.len())?;
            match input {
                None => (),
                Some(Input::End { channel }) => all.push((channel, "END".to_owned())),
                Some(Input::Bytes { channel, bytes }) => {
                    all.push((channel, String::from_utf8(bytes.to_vec()).unwrap()));
                }
            }
        }
    }
    Ok(all)
}

#[test]
fn channels_are_told_apart() {
    let all = read(false, false, &[&["\0abc"], &[""], &["\x04", "", "{}", "x"], &["\0"]]);
    assert_eq!(all, Ok(vec![(0, "abc".into()), (4, "{}".into()), (4, "x".into())]));
}

#[test]
fn base64_may_be_cut_between_groups() {
    let all =
        read(true, false, &[&["0aGVsbG8="], &["0aG", "Vs", "bG8", "="], &["4", "eHk="], &["0"]]).unwrap();
    let stdin: String =
        all.iter().filter(|(channel, _)| *channel == 0).map(|(_, text)| text.as_str()).collect();
    assert_eq!(stdin, "hellohello");
    assert_eq!(all.last(), Some(&(4, "xy".to_owned())));
    for wrong in [&["0aGV"][..], &["0a"], &["0!!!!"], &["0eA==", "eA=="]] {
        assert_eq!(read(true, false, &[wrong]), Err("a message that is not base64"), "{wrong:?}");
    }
}

#[test]
fn version_5_can_close_a_channel_and_others_cannot() {
    let mut reader = Reader::new(false, true);
    assert_eq!(reader.read(Bytes::from_static(&[255, 0]), true, true), Ok(Some(Input::End { channel: 0 })));
    assert_eq!(reader.read(Bytes::from_static(&[255]), true, false), Ok(None));
    assert_eq!(reader.read(Bytes::from_static(&[0]), false, true), Ok(Some(Input::End { channel: 0 })));
    let mut reader = Reader::new(false, false);
    let bytes = Bytes::from_static(&[0]);
    let want = Input::Bytes { channel: 255, bytes };
    assert_eq!(reader.read(Bytes::from_static(&[255, 0]), true, true), Ok(Some(want)));
}

fn shake(pairs: &[(&'static str, &'static str)]) -> Result<(Option<String>, String, Dialect), Refused> {
    let given =
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
    let mut headers: HeaderMap = given.collect();
    for (name, value) in [("sec-websocket-version", "13"), ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")]
    {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    let (response, dialect) = accept(&Method::GET, &headers, REMOTE_COMMAND, UNNAMED)?;
    let text = |name| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    Ok((text(SEC_WEBSOCKET_PROTOCOL), text(SEC_WEBSOCKET_ACCEPT).unwrap(), dialect))
}

#[test]
fn the_handshake_of_the_rfc_is_answered() {
    let answered = shake(&[]);
    assert_eq!(answered, Ok((None, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".to_owned(), UNNAMED)));
}

#[test]
fn the_clients_first_known_subprotocol_is_spoken() {
    let protocol =
        |value| shake(&[("sec-websocket-protocol", value)]).map(|(name, _, dialect)| (name, dialect));
    let chosen = protocol("v9.channel.k8s.io, v5.channel.k8s.io, v4.channel.k8s.io");
    assert_eq!(chosen, Ok((Some("v5.channel.k8s.io".to_owned()), Dialect { version: 5, base64: false })));
    let chosen = protocol("base64.channel.k8s.io");
    assert_eq!(chosen, Ok((Some("base64.channel.k8s.io".to_owned()), Dialect { version: 1, base64: true })));
    assert_eq!(protocol("chat"), Err(Refused::Protocol));
}

#[test]
fn handshakes_that_are_none_are_refused() {
    assert_eq!(shake(&[("sec-websocket-version", "8")]), Err(Refused::Version));
    assert_eq!(shake(&[("sec-websocket-key", "dGhl")]), Err(Refused::Key));
    assert_eq!(shake(&[("sec-websocket-key", "???")]), Err(Refused::Key));
    let post = accept(&Method::POST, &HeaderMap::new(), handshake::PORT_FORWARD, handshake::Forward::Tunnel);
    assert_eq!(post.err(), Some(Refused::Method));
    let none = accept(&Method::GET, &HeaderMap::new(), REMOTE_COMMAND, UNNAMED);
    assert_eq!(none.err(), Some(Refused::Version));
}

proptest! {
    #[test]
    fn a_session_may_be_cut_anywhere(mut cuts in vec(0usize..100, 0..8)) {
        let session = session();
        cuts.push(0);
        cuts.push(session.len());
        cuts.iter_mut().for_each(|cut| *cut = (*cut).min(session.len()));
        cuts.sort_unstable();
        let pieces: Vec<_> = cuts.windows(2).map(|pair| &session[pair[0]..pair[1]]).collect();
        prop_assert_eq!(frames(&pieces), Ok(session_frames()));
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in vec(any::<u8>(), 0..300), opcode in 0u8..16, base64: bool, closes: bool) {
        let _ = frames(&[&bytes]);
        let _ = frames(&[&client_frame(true, opcode, &bytes)]);
        let mut reader = Reader::new(base64, closes);
        for piece in bytes.chunks(7) {
            let _ = reader.read(Bytes::copy_from_slice(piece), piece[0] & 1 == 1, piece[0] & 2 == 2);
        }
    }

    #[test]
    fn base64_is_the_same_however_it_is_cut(plain in vec(any::<u8>(), 0..100), size in 1usize..9) {
        use base64::Engine;
        let text = format!("0{}", base64::engine::general_purpose::STANDARD.encode(&plain));
        let mut reader = Reader::new(true, false);
        let mut found = Vec::new();
        let pieces: Vec<_> = text.as_bytes().chunks(size).collect();
        for (n, piece) in pieces.iter().enumerate() {
            let input = reader.read(Bytes::copy_from_slice(piece), n == 0, n + 1 == pieces.len()).unwrap();
            if let Some(Input::Bytes { channel: 0, bytes }) = input {
                found.extend_from_slice(&bytes);
            }
        }
        prop_assert_eq!(found, plain);
    }
}
