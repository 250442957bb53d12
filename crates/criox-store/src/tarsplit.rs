//! tar-split: what a tar stream holds beside the contents of its files, so that the stream can be put together again
//! byte for byte from the unpacked layer.
//!
//! A gzip'ed sequence of JSON objects, one a line: raw segments of the stream, and files by name with size and checksum.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::os::unix::ffi::OsStringExt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use crc::{CRC_64_GO_ISO, Crc, Table};
use serde::{Deserialize, Serialize};

/// The checksum of file contents; the table of 16 columns makes it faster than the disk.
static CRC: Crc<u64, Table<16>> = Crc::<u64, Table<16>>::new(&CRC_64_GO_ISO);

/// A running checksum of one file's content.
#[derive(Clone)]
pub struct Checksum(crc::Digest<'static, u64, Table<16>>);

impl std::fmt::Debug for Checksum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Checksum")
    }
}

impl Default for Checksum {
    fn default() -> Self {
        Self(CRC.digest())
    }
}

impl Checksum {
    /// Takes more bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The checksum in the order of bytes in which it is stored.
    pub fn finish(self) -> [u8; 8] {
        self.0.finalize().to_be_bytes()
    }
}

/// Raw segments are cut at this length, as the peers do.
const SEGMENT: usize = 1 << 20;

/// The longest line that is read: a segment in base64, and a name.
const MAX_LINE: usize = 3 << 20;

/// Writes entries as they come.
#[derive(Debug)]
pub struct Writer<W: Write> {
    out: W,
    position: u64,
    raw: Vec<u8>,
    line: Vec<u8>,
}

impl<W: Write> Writer<W> {
    /// Writes to `out`, uncompressed.
    pub fn new(out: W) -> Self {
        Self { out, position: 0, raw: Vec::new(), line: Vec::new() }
    }

    /// Takes bytes of the stream that are no file content; they are written in front of the next file.
    ///
    /// # Errors
    /// What writing answered.
    pub fn raw(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = (SEGMENT - self.raw.len()).min(bytes.len());
            self.raw.extend_from_slice(&bytes[..room]);
            bytes = &bytes[room..];
            if self.raw.len() == SEGMENT {
                self.flush_raw()?;
            }
        }
        Ok(())
    }

    /// Notes a member: its name as the header has it, and size and checksum of its content.
    ///
    /// # Errors
    /// What writing answered.
    pub fn file(&mut self, name: &[u8], size: u64, checksum: [u8; 8]) -> io::Result<()> {
        self.flush_raw()?;
        self.line.extend_from_slice(br#"{"type":1"#);
        match std::str::from_utf8(name) {
            Ok("") => {}
            Ok(name) => {
                self.line.extend_from_slice(br#","name":"#);
                serde_json::to_writer(&mut self.line, name)?;
            }
            Err(_) => {
                self.line.extend_from_slice(br#","name_raw":""#);
                self.line.extend_from_slice(STANDARD.encode(name).as_bytes());
                self.line.push(b'"');
            }
        }
        if size > 0 {
            write!(self.line, r#","size":{size},"payload":"{}""#, STANDARD.encode(checksum))?;
        } else {
            self.line.extend_from_slice(br#","payload":null"#);
        }
        self.end_line()
    }

    fn flush_raw(&mut self) -> io::Result<()> {
        if self.raw.is_empty() {
            return Ok(());
        }
        self.line.extend_from_slice(br#"{"type":2,"payload":""#);
        let start = self.line.len();
        let length = base64::encoded_len(self.raw.len(), true).unwrap_or(0);
        self.line.resize(start + length, 0);
        let written = STANDARD.encode_slice(&self.raw, &mut self.line[start..]).map_err(io::Error::other)?;
        self.line.truncate(start + written);
        self.line.push(b'"');
        self.raw.clear();
        self.end_line()
    }

    fn end_line(&mut self) -> io::Result<()> {
        writeln!(self.line, r#","position":{}}}"#, self.position)?;
        self.position += 1;
        self.out.write_all(&self.line)?;
        self.line.clear();
        Ok(())
    }

    /// Writes what is left, and gives the output back.
    ///
    /// # Errors
    /// What writing answered.
    pub fn finish(mut self) -> io::Result<W> {
        self.flush_raw()?;
        Ok(self.out)
    }
}

/// One entry, as it is read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: u8,
    #[serde(default)]
    name: String,
    #[serde(default)]
    name_raw: Option<String>,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    payload: Option<String>,
}

/// Gives the content of files by the name of their entry.
pub trait Files {
    /// Opens a file's content.
    ///
    /// # Errors
    /// What opening answered.
    fn open(&mut self, name: &OsStr) -> io::Result<File>;
}

/// Puts a stream together again.
#[derive(Debug)]
pub struct Assembler<R, F> {
    entries: R,
    files: F,
    now: Part,
}

/// What is being given out.
#[derive(Debug)]
enum Part {
    Between,
    Raw { bytes: Vec<u8>, at: usize },
    File { file: File, name: OsString, left: u64, checksum: Checksum, expected: Vec<u8> },
    End,
}

impl<R: BufRead, F: Files> Assembler<R, F> {
    /// Reads uncompressed entries from `entries` and contents from `files`.
    pub fn new(entries: R, files: F) -> Self {
        Self { entries, files, now: Part::Between }
    }

    /// The next entry's part.
    fn advance(&mut self) -> io::Result<Part> {
        let mut line = Vec::new();
        loop {
            line.clear();
            let limit = MAX_LINE as u64 + 1;
            if self.entries.by_ref().take(limit).read_until(b'\n', &mut line)? == 0 {
                return Ok(Part::End);
            }
            if line.len() > MAX_LINE {
                return Err(bad("entry of the tar-split is too long"));
            }
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let entry: Entry = serde_json::from_slice(&line)?;
            let payload =
                STANDARD.decode(entry.payload.as_deref().unwrap_or_default()).map_err(io::Error::other)?;
            match entry.kind {
                2 => return Ok(Part::Raw { bytes: payload, at: 0 }),
                1 if entry.size == 0 => {}
                1 => {
                    let name = match entry.name_raw {
                        Some(raw) => OsString::from_vec(STANDARD.decode(raw).map_err(io::Error::other)?),
                        None => OsString::from(entry.name),
                    };
                    let file = self.files.open(&name)?;
                    let checksum = Checksum::default();
                    return Ok(Part::File { file, name, left: entry.size, checksum, expected: payload });
                }
                _ => return Err(bad("entry of the tar-split has an unknown type")),
            }
        }
    }
}

impl<R: BufRead, F: Files> Read for Assembler<R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match &mut self.now {
                Part::End => return Ok(0),
                Part::Raw { bytes, at } if *at < bytes.len() => {
                    let count = (bytes.len() - *at).min(buffer.len());
                    buffer[..count].copy_from_slice(&bytes[*at..*at + count]);
                    *at += count;
                    return Ok(count);
                }
                Part::File { file, name, left, checksum, .. } if *left > 0 => {
                    let room = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
                    let count = file.read(&mut buffer[..room])?;
                    if count == 0 {
                        return Err(bad(&format!("file {name:?} is shorter than it was")));
                    }
                    checksum.update(&buffer[..count]);
                    *left -= count as u64;
                    return Ok(count);
                }
                Part::File { name, checksum, expected, .. } => {
                    if checksum.clone().finish()[..] != expected[..] {
                        return Err(bad(&format!("file {name:?} has changed")));
                    }
                    self.now = Part::Between;
                }
                Part::Raw { .. } | Part::Between => self.now = self.advance()?,
            }
        }
    }
}

fn bad(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct InMemory(Vec<(Vec<u8>, Vec<u8>)>);

    impl Files for InMemory {
        fn open(&mut self, name: &OsStr) -> io::Result<File> {
            let content =
                self.0.iter().find(|(n, _)| n == name.as_encoded_bytes()).ok_or(io::ErrorKind::NotFound)?;
            let mut file = tempfile::tempfile()?;
            file.write_all(&content.1)?;
            io::Seek::rewind(&mut file)?;
            Ok(file)
        }
    }

    fn checksum(bytes: &[u8]) -> [u8; 8] {
        let mut checksum = Checksum::default();
        checksum.update(bytes);
        checksum.finish()
    }

    #[test]
    fn entries_have_the_form_that_others_read() {
        let mut writer = Writer::new(Vec::new());
        writer.raw(b"head").unwrap();
        writer.file(b"etc/", 0, [0; 8]).unwrap();
        writer.raw(b"er").unwrap();
        writer.file(b"a<b", 9, checksum(b"123456789")).unwrap();
        writer.file(b"\xff", 0, [0; 8]).unwrap();
        let text = String::from_utf8(writer.finish().unwrap()).unwrap();
        // The check value of CRC-64/GO-ISO is b90956c775a41001.
        let expected = concat!(
            r#"{"type":2,"payload":"aGVhZA==","position":0}"#,
            "\n",
            r#"{"type":1,"name":"etc/","payload":null,"position":1}"#,
            "\n",
            r#"{"type":2,"payload":"ZXI=","position":2}"#,
            "\n",
            r#"{"type":1,"name":"a<b","size":9,"payload":"uQlWx3WkEAE=","position":3}"#,
            "\n",
            r#"{"type":1,"name_raw":"/w==","payload":null,"position":4}"#,
            "\n",
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn a_changed_or_cut_file_ends_the_stream_with_an_error() {
        for content in [&b"12345678x"[..], b"1234"] {
            let mut writer = Writer::new(Vec::new());
            writer.file(b"f", 9, checksum(b"123456789")).unwrap();
            let split = writer.finish().unwrap();
            let files = InMemory(vec![(b"f".to_vec(), content.to_vec())]);
            let error = Assembler::new(&split[..], files).read_to_end(&mut Vec::new()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }

    proptest::proptest! {
        #[test]
        fn what_was_taken_apart_comes_together(parts in proptest::collection::vec(
            (proptest::collection::vec(proptest::prelude::any::<u8>(), 0..40), proptest::collection::vec(proptest::prelude::any::<u8>(), 0..40)), 0..20)) {
            let mut writer = Writer::new(Vec::new());
            let (mut whole, mut files) = (Vec::new(), Vec::new());
            for (n, (raw, content)) in parts.into_iter().enumerate() {
                let name = [&[0xfe], n.to_string().as_bytes()].concat();
                writer.raw(&raw).unwrap();
                writer.file(&name, content.len() as u64, checksum(&content)).unwrap();
                whole.extend_from_slice(&raw);
                whole.extend_from_slice(&content);
                files.push((name, content));
            }
            writer.raw(b"end").unwrap();
            whole.extend_from_slice(b"end");
            let split = writer.finish().unwrap();
            let mut again = Vec::new();
            Assembler::new(&split[..], InMemory(files)).read_to_end(&mut again).unwrap();
            proptest::prop_assert_eq!(again, whole);
        }
    }
}
