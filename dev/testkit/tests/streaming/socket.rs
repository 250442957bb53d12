//! A WebSocket client as small as the tests need: channels of Kubernetes over one connection, blocking.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use testkit::Result;

/// Nothing here takes longer on a machine that does anything.
const LIMIT: Duration = Duration::from_secs(30);

/// A connection that was upgraded.
pub(crate) struct Socket {
    stream: TcpStream,
    /// Bytes that came and belong to no whole frame yet.
    read: Vec<u8>,
}

/// What a session said on its channels, until its end.
#[derive(Debug, Default)]
pub(crate) struct Said {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// The `metav1.Status`.
    pub(crate) status: String,
}

impl Said {
    /// The exit code that the status tells.
    pub(crate) fn code(&self) -> Result<i32> {
        let status: serde_json::Value =
            serde_json::from_str(&self.status).map_err(|error| format!("{error} in {self:?}"))?;
        if status["status"] == "Success" {
            return Ok(0);
        }
        let code = status["details"]["causes"][0]["message"].as_str().and_then(|code| code.parse().ok());
        Ok(code.ok_or_else(|| format!("no exit code in {self:?}"))?)
    }
}

/// The status line that a request for the URL gets.
pub(crate) fn status_line(url: &str, protocol: &str) -> Result<(TcpStream, String, Vec<u8>)> {
    let rest = url.strip_prefix("http://").ok_or("a URL of http")?;
    let (host, path) = rest.split_once('/').ok_or("a URL with a path")?;
    let mut stream = TcpStream::connect(host)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_nodelay(true)?;
    write!(
        stream,
        "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {protocol}\r\n\r\n"
    )?;
    let mut read = Vec::new();
    let end = loop {
        if let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        let mut bytes = [0; 1000];
        let count = stream.read(&mut bytes)?;
        if count == 0 {
            return Err(format!("no answer but {:?}", String::from_utf8_lossy(&read)).into());
        }
        read.extend_from_slice(&bytes[..count]);
    };
    let head = String::from_utf8_lossy(&read[..end]).into_owned();
    Ok((stream, head.lines().next().unwrap_or_default().to_owned(), read.split_off(end + 4)))
}

impl Socket {
    /// Goes to a URL.
    pub(crate) fn open(url: &str, protocol: &str) -> Result<Self> {
        match status_line(url, protocol)? {
            (stream, line, read) if line.contains(" 101 ") => Ok(Self { stream, read }),
            (_, line, _) => Err(line.into()),
        }
    }

    /// Sends a message: a channel and its bytes.
    pub(crate) fn send(&mut self, channel: u8, bytes: &[u8]) -> Result {
        let mut message = vec![channel];
        message.extend_from_slice(bytes);
        self.frame(2, &message)
    }

    /// Half-closes a channel (v5).
    pub(crate) fn close(&mut self, channel: u8) -> Result {
        self.send(255, &[channel])
    }

    fn frame(&mut self, opcode: u8, payload: &[u8]) -> Result {
        let mut frame = vec![0x80 | opcode];
        match u16::try_from(payload.len()) {
            Ok(length) if length < 126 => frame.push(0x80 | u8::try_from(length)?),
            Ok(length) => {
                frame.push(0x80 | 126);
                frame.extend_from_slice(&length.to_be_bytes());
            }
            Err(_) => {
                frame.push(0x80 | 127);
                frame.extend_from_slice(&u64::try_from(payload.len())?.to_be_bytes());
            }
        }
        // Masked with zeroes: the bytes stay as they are.
        frame.extend_from_slice(&[0; 4]);
        frame.extend_from_slice(payload);
        Ok(self.stream.write_all(&frame)?)
    }

    /// The next message with anything in it; none at the end.
    pub(crate) fn next(&mut self) -> Result<Option<(u8, Vec<u8>)>> {
        loop {
            if let Some((opcode, payload)) = self.take_frame()? {
                match (opcode, payload.split_first()) {
                    (8, _) => return Ok(None),
                    (9, _) => self.frame(10, &payload)?,
                    (1 | 2, Some((channel, bytes))) if !bytes.is_empty() => {
                        return Ok(Some((*channel, bytes.to_vec())));
                    }
                    _ => {}
                }
                continue;
            }
            let mut bytes = vec![0; 70_000];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Ok(None),
                Ok(count) => self.read.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// A whole frame of those bytes that came. The server's are not masked, and not cut.
    fn take_frame(&mut self) -> Result<Option<(u8, Vec<u8>)>> {
        let read = &self.read;
        let (head, length) = match read.get(..2) {
            None => return Ok(None),
            Some([_, 126]) => match read.get(2..4) {
                Some(bytes) => (4, usize::from(u16::from_be_bytes(bytes.try_into()?))),
                None => return Ok(None),
            },
            Some([_, 127]) => match read.get(2..10) {
                Some(bytes) => (10, usize::try_from(u64::from_be_bytes(bytes.try_into()?))?),
                None => return Ok(None),
            },
            Some(start) => (2, usize::from(start[1])),
        };
        if read.len() < head + length {
            return Ok(None);
        }
        let opcode = read[0] & 15;
        let payload = self.read.drain(..head + length).skip(head).collect();
        Ok(Some((opcode, payload)))
    }

    /// Reads on until stdout has the text; what came on it.
    pub(crate) fn until(&mut self, wanted: &str) -> Result<String> {
        let (mut stdout, mut other, begun) = (String::new(), String::new(), Instant::now());
        while !stdout.contains(wanted) {
            match self.next()? {
                Some((1, bytes)) => stdout.push_str(std::str::from_utf8(&bytes)?),
                Some((_, bytes)) => other.push_str(&String::from_utf8_lossy(&bytes)),
                None => return Err(format!("it ended before {wanted:?}: {stdout:?} {other:?}").into()),
            }
            if begun.elapsed() > LIMIT {
                return Err(format!("no {wanted:?} in time: {stdout:?}").into());
            }
        }
        Ok(stdout)
    }

    /// Reads to the end.
    pub(crate) fn rest(&mut self) -> Result<Said> {
        let mut said = Said::default();
        while let Some((channel, bytes)) = self.next()? {
            let text = String::from_utf8(bytes)?;
            match channel {
                1 => said.stdout.push_str(&text),
                2 => said.stderr.push_str(&text),
                3 => said.status.push_str(&text),
                other => return Err(format!("a message on channel {other}").into()),
            }
        }
        Ok(said)
    }
}
