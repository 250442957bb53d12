//! A client for the tests, of both protocols.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use super::LIMIT;
use crate::spdy::frame::{self, Decoder, Frame};
use crate::spdy::headers::Deflater;
use crate::websocket::frame::client_frame;

/// Address and path of a URL.
pub(super) fn split(url: &str) -> (&str, &str) {
    let rest = url.split_once("://").unwrap().1;
    rest.split_at(rest.find('/').unwrap())
}

/// Sends a request and reads the head of its answer; the client has read nothing beyond.
pub(super) async fn request(url: &str, method: &str, headers: &[(&str, &str)]) -> (String, TcpStream) {
    let (address, path) = split(url);
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    // The kubelet passes its own client's host on.
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: kubelet.example:10250\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += "\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let end = async {
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stream.read_u8().await.unwrap());
        }
    };
    timeout(LIMIT, end).await.unwrap();
    (String::from_utf8(answer).unwrap(), stream)
}

/// A client of SPDY.
pub(super) struct Spdy {
    pub(super) read: OwnedReadHalf,
    pub(super) write: OwnedWriteHalf,
    buffer: BytesMut,
    decoder: Decoder,
    deflater: Deflater,
    next: u32,
    replies: usize,
    /// What came on each stream, and whether it has ended.
    pub(super) streams: BTreeMap<u32, (Vec<u8>, bool)>,
    pub(super) resets: Vec<u32>,
    pub(super) pings: Vec<u32>,
}

impl Spdy {
    pub(super) async fn connect(url: &str, protocol: &str) -> Self {
        let headers =
            [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1"), ("X-Stream-Protocol-Version", protocol)];
        let (answer, stream) = request(url, "POST", &headers).await;
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        let lower = answer.to_ascii_lowercase();
        let chosen = protocol.split(',').any(|one| {
            lower.contains(&format!("x-stream-protocol-version: {}\r\n", one.trim().to_ascii_lowercase()))
        });
        assert!(
            lower.contains("upgrade: spdy/3.1\r\n") && lower.contains("connection: upgrade\r\n"),
            "{answer}"
        );
        assert!(chosen, "{answer}");
        let (read, write) = stream.into_split();
        Self {
            read,
            write,
            buffer: BytesMut::new(),
            decoder: Decoder::default(),
            deflater: Deflater::new().unwrap(),
            next: 1,
            replies: 0,
            streams: BTreeMap::new(),
            resets: Vec::new(),
            pings: Vec::new(),
        }
    }

    /// Sends what opens a stream, and does not wait.
    pub(super) async fn push(&mut self, headers: &[(&str, &str)], fin: bool) -> u32 {
        let stream = self.next;
        self.next += 2;
        let block = self.deflater.block(headers).unwrap();
        self.raw(&frame::open(stream, &block, fin)).await;
        stream
    }

    /// Opens a stream, and waits for the answer as Kubernetes' client does.
    pub(super) async fn open(&mut self, headers: &[(&str, &str)]) -> u32 {
        let stream = self.push(headers, false).await;
        let before = self.replies;
        while self.replies == before && !self.resets.contains(&stream) {
            assert!(self.step().await, "closed before an answer");
        }
        stream
    }

    /// Opens the streams of an exec, in the order of Kubernetes' client.
    pub(super) async fn open_all(&mut self, kinds: &str) -> BTreeMap<String, u32> {
        let mut streams = BTreeMap::new();
        for kind in kinds.split(' ') {
            streams.insert(kind.to_owned(), self.open(&[("streamtype", kind)]).await);
        }
        streams
    }

    pub(super) async fn raw(&mut self, bytes: &[u8]) {
        timeout(LIMIT, self.write.write_all(bytes)).await.unwrap().unwrap();
    }

    pub(super) async fn send(&mut self, stream: u32, bytes: &[u8], fin: bool) {
        self.raw(&frame::data_header(stream, bytes.len(), fin)).await;
        self.raw(bytes).await;
    }

    /// Reads one frame; false at the end of the connection.
    pub(super) async fn step(&mut self) -> bool {
        let frame = loop {
            if let Some(frame) = self.decoder.decode(&mut self.buffer).unwrap() {
                break frame;
            }
            let read = timeout(LIMIT, self.read.read_buf(&mut self.buffer)).await.unwrap();
            // A connection that is reset has ended, too.
            if read.unwrap_or(0) == 0 {
                return false;
            }
        };
        match frame {
            Frame::Headers { .. } => self.replies += 1,
            Frame::Reset { stream } => self.resets.push(stream),
            Frame::Ping(number) => self.pings.push(number),
            Frame::Data { stream, bytes, fin } => {
                let entry = self.streams.entry(stream).or_default();
                entry.0.extend_from_slice(&bytes);
                entry.1 |= fin;
            }
            Frame::Open { .. } | Frame::Other => (),
        }
        true
    }

    /// Reads to the end of the connection, and closes it.
    pub(super) async fn finish(mut self) -> Self {
        while self.step().await {}
        let _ = self.write.shutdown().await;
        self
    }

    /// Reads until a stream has ended.
    pub(super) async fn ended(&mut self, stream: u32) {
        while !self.streams.get(&stream).is_some_and(|(_, fin)| *fin) {
            assert!(self.step().await, "closed before the end of stream {stream}");
        }
    }

    /// Reads until a stream was reset.
    pub(super) async fn ended_or_reset(&mut self, stream: u32) {
        while !self.resets.contains(&stream) {
            assert!(self.step().await, "closed before stream {stream} was reset");
        }
    }

    pub(super) fn text(&self, stream: u32) -> String {
        String::from_utf8(self.bytes(stream).to_vec()).unwrap()
    }

    pub(super) fn bytes(&self, stream: u32) -> &[u8] {
        self.streams.get(&stream).map(|(bytes, _)| bytes.as_slice()).unwrap_or_default()
    }
}

/// A message of the server: opcode and payload.
pub(super) type Message = (u8, Vec<u8>);

/// A client of WebSocket.
pub(super) struct WebSocket {
    pub(super) stream: TcpStream,
    buffer: BytesMut,
}

impl WebSocket {
    pub(super) async fn connect(url: &str, protocol: &str) -> Self {
        let mut headers = vec![
            ("Connection", "Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        if !protocol.is_empty() {
            headers.push(("Sec-WebSocket-Protocol", protocol));
        }
        let (answer, stream) = request(url, "GET", &headers).await;
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        let lower = answer.to_ascii_lowercase();
        assert!(lower.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{answer}");
        assert_eq!(lower.contains("sec-websocket-protocol:"), !protocol.is_empty(), "{answer}");
        Self { stream, buffer: BytesMut::new() }
    }

    pub(super) async fn raw(&mut self, bytes: &[u8]) {
        timeout(LIMIT, self.stream.write_all(bytes)).await.unwrap().unwrap();
    }

    pub(super) async fn send(&mut self, opcode: u8, payload: &[u8]) {
        self.raw(&client_frame(true, opcode, payload)).await;
    }

    /// Sends bytes on a channel.
    pub(super) async fn channel(&mut self, channel: u8, bytes: &[u8]) {
        self.send(2, &[&[channel], bytes].concat()).await;
    }

    /// The next message; `None` at the end of the connection.
    pub(super) async fn next(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = self.parse() {
                return Some(message);
            }
            let read = timeout(LIMIT, self.stream.read_buf(&mut self.buffer)).await.unwrap();
            if read.unwrap_or(0) == 0 {
                return None;
            }
        }
    }

    fn parse(&mut self) -> Option<Message> {
        let mut rest = &self.buffer[..];
        let &[start, short] = rest.first_chunk()?;
        assert!(start & 0x80 != 0 && start & 0x70 == 0 && short & 0x80 == 0, "{start:x} {short:x}");
        rest.advance(2);
        let length = match short {
            126 => usize::from(rest.try_get_u16().ok()?),
            127 => usize::try_from(rest.try_get_u64().ok()?).unwrap(),
            short => usize::from(short),
        };
        let payload = rest.get(..length)?.to_vec();
        let used = self.buffer.len() - rest.len() + length;
        self.buffer.advance(used);
        Some((start & 0xf, payload))
    }

    /// Reads to the server's close, answers it, and gives what came on each channel and the code of the close.
    pub(super) async fn finish(mut self) -> (BTreeMap<u8, Vec<u8>>, Option<u16>) {
        let (mut channels, mut code) = (BTreeMap::<u8, Vec<u8>>::new(), None);
        while let Some((opcode, payload)) = self.next().await {
            match opcode {
                8 => {
                    code = payload.as_slice().try_get_u16().ok();
                    let _ = self.stream.write_all(&client_frame(true, 8, &payload)).await;
                }
                1 | 2 => channels.entry(payload[0]).or_default().extend_from_slice(&payload[1..]),
                _ => (),
            }
        }
        (channels, code)
    }
}

/// A port that does with each connection what is asked for.
pub(super) async fn port<F, T>(serve: F) -> u16
where
    F: Fn(TcpStream) -> T + Send + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    port
}

/// A port that sends everything back.
pub(super) async fn echo() -> u16 {
    port(|mut stream| async move {
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    })
    .await
}

/// A port at which nobody listens.
pub(super) async fn closed() -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().port()
}

/// Long enough for something that must not happen.
pub(super) const QUIET: Duration = Duration::from_millis(200);
