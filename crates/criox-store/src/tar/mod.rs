//! A streaming reader for tar: ustar, GNU and PAX, long names, sparse files. It never seeks, keeps one buffer, and
//! hands every byte that isn't file content to a tap, so that the stream can be put together again.
//!
//! Malformed headers and records are errors, never skipped, and there is one size per member, used both for what the
//! caller reads and for where the next header is (hardening U6).

mod header;
mod pax;
mod sparse;

use std::io::{self, Read, Write};

use criox_sys::inroot::FileTime;

use crate::tarsplit;

pub use header::Kind;

/// Length of a block.
const BLOCK: usize = 512;
/// Most bytes in one PAX or GNU record member.
const MAX_RECORD: u64 = 1 << 20;
/// Most bytes of records before one member.
const MAX_RECORDS: u64 = 8 << 20;
/// The reader's buffer.
const BUFFER: usize = 256 << 10;

/// A stream that can't be read on.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// Reading from the source failed.
    #[error("read the stream")]
    Input(#[source] io::Error),
    /// Writing to the tap failed.
    #[error("write the tap")]
    Tap(#[source] io::Error),
    /// The stream is no tar, or cut off.
    #[error("{text} at byte {offset}")]
    Malformed {
        /// What is wrong.
        text: String,
        /// Where in the stream the reader stood.
        offset: u64,
    },
}

/// Gets the bytes of the stream that aren't file content, in order.
pub trait Tap {
    /// Takes bytes.
    ///
    /// # Errors
    /// What writing answered; ends the reading.
    fn raw(&mut self, bytes: &[u8]) -> io::Result<()>;
}

impl Tap for () {
    fn raw(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
}

impl<W: Write> Tap for tarsplit::Writer<W> {
    fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        Self::raw(self, bytes)
    }
}

/// A part of a sparse file that has data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where it lies in the file.
    pub offset: u64,
    /// Its length.
    pub length: u64,
}

/// A member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name as the headers have it, not cleaned.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Target of a hard or symbolic link.
    pub link: Vec<u8>,
    /// Permission bits, 12 of them.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of content in the stream.
    pub stored: u64,
    /// Length of the file: differs from `stored` for a sparse one.
    pub size: u64,
    /// Modification time.
    pub mtime: FileTime,
    /// Access time, if given.
    pub atime: Option<FileTime>,
    /// Device numbers.
    pub device: (u32, u32),
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the content belongs in a sparse file, in order; their lengths sum up to `stored`.
    pub sparse: Option<Vec<Extent>>,
}

/// Reads members one after another.
#[derive(Debug)]
pub struct Reader<R, T> {
    input: R,
    tap: T,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    offset: u64,
    /// Content of the current member that wasn't taken yet.
    left: u64,
    /// Padding behind it.
    padding: u64,
    /// Content goes to the tap as well.
    tap_content: bool,
}

impl<R: Read, T: Tap> Reader<R, T> {
    /// Reads from `input`.
    pub fn new(input: R, tap: T) -> Self {
        let buffer = vec![0; BUFFER].into_boxed_slice();
        Self { input, tap, buffer, start: 0, end: 0, offset: 0, left: 0, padding: 0, tap_content: false }
    }

    /// The next member; content of the one before that wasn't taken is skipped. `None` at the end of the archive.
    ///
    /// # Errors
    /// See [`TarError`].
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        while !self.content()?.is_empty() {
            let length = self.available();
            self.consume(length)?;
        }
        let padding = std::mem::take(&mut self.padding);
        self.skip_raw(padding)?;
        self.tap_content = false;
        let mut records = pax::Records::default();
        let mut recorded = 0;
        loop {
            let Some(block) = self.header_block()? else {
                if recorded > 0 {
                    return Err(self.malformed("extension header without a member"));
                }
                return Ok(None);
            };
            let header = header::Header::parse(&block).map_err(|text| self.malformed(text))?;
            let kind = header.typeflag;
            if !matches!(kind, b'x' | b'g' | b'L' | b'K') {
                return self.member(header, records).map(Some);
            }
            recorded += header.size.max(1);
            if header.size > MAX_RECORD || recorded > MAX_RECORDS {
                return Err(self.malformed("extension header is too long"));
            }
            let payload = self.record_payload(header.size)?;
            match kind {
                b'x' => records.parse(&payload).map_err(|text| self.malformed(text))?,
                b'L' => records.long_name = Some(until_nul(&payload).to_vec()),
                b'K' => records.long_link = Some(until_nul(&payload).to_vec()),
                // The peers don't apply global headers either; a layer made with them looks the same everywhere.
                _ => {}
            }
        }
    }

    /// Puts header and records together, and reads what more there is of a sparse map.
    fn member(&mut self, header: header::Header, records: pax::Records) -> Result<Entry, TarError> {
        let sparse_header = header.sparse.clone();
        let mut entry = header::combine(header, &records).map_err(|text| self.malformed(text))?;
        let mut stored = entry.stored;
        if let Some(old) = sparse_header {
            let extents = self.old_sparse_map(old)?;
            entry.sparse = Some(extents);
        } else if let Some(map) = &records.sparse_map {
            entry.sparse = Some(map.clone());
        } else if records.sparse_in_content {
            self.left = stored;
            self.padding = padding(stored);
            let (extents, used) = self.inline_sparse_map(stored)?;
            entry.sparse = Some(extents);
            stored -= used;
            entry.stored = stored;
        }
        if let Some(extents) = &entry.sparse {
            sparse::check(extents, entry.size, stored).map_err(|text| self.malformed(text))?;
            self.tap_content = true;
        }
        self.left = stored;
        self.padding = padding(stored);
        Ok(entry)
    }

    /// The next piece of the current member's content; empty at its end. [`Reader::consume`] takes it.
    ///
    /// # Errors
    /// See [`TarError`].
    pub fn content(&mut self) -> Result<&[u8], TarError> {
        if self.left > 0 && self.start == self.end {
            self.fill()?;
            if self.start == self.end {
                return Err(self.malformed("stream ends inside a file"));
            }
        }
        Ok(&self.buffer[self.start..self.start + self.available()])
    }

    fn available(&self) -> usize {
        (self.end - self.start).min(usize::try_from(self.left).unwrap_or(usize::MAX))
    }

    /// Takes `length` bytes of what [`Reader::content`] gave.
    ///
    /// # Errors
    /// See [`TarError`]; content of sparse files goes to the tap.
    pub fn consume(&mut self, length: usize) -> Result<(), TarError> {
        let length = length.min(self.available());
        if self.tap_content {
            self.tap.raw(&self.buffer[self.start..self.start + length]).map_err(TarError::Tap)?;
        }
        self.start += length;
        self.left -= length as u64;
        self.offset += length as u64;
        Ok(())
    }

    /// Reads on to the end of the stream behind the archive's end.
    ///
    /// # Errors
    /// See [`TarError`].
    pub fn drain(&mut self) -> Result<(), TarError> {
        loop {
            let bytes = &self.buffer[self.start..self.end];
            self.tap.raw(bytes).map_err(TarError::Tap)?;
            self.offset += bytes.len() as u64;
            self.start = self.end;
            self.fill()?;
            if self.start == self.end {
                return Ok(());
            }
        }
    }

    /// The tap, to write to between members.
    pub fn tap_mut(&mut self) -> &mut T {
        &mut self.tap
    }

    /// Source and tap.
    pub fn into_parts(self) -> (R, T) {
        (self.input, self.tap)
    }

    fn fill(&mut self) -> Result<(), TarError> {
        self.start = 0;
        self.end = 0;
        // Filled well before anything is looked at: a source that gives crumbs would cost a system call per crumb.
        while self.end < self.buffer.len() {
            match self.input.read(&mut self.buffer[self.end..]) {
                Ok(0) => break,
                Ok(n) => self.end += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(TarError::Input(e)),
            }
        }
        Ok(())
    }

    /// Reads exactly `out`, to the tap as well. False if the stream ends before the first byte.
    fn read_raw(&mut self, out: &mut [u8]) -> Result<bool, TarError> {
        let mut done = 0;
        while done < out.len() {
            if self.start == self.end {
                self.fill()?;
                if self.start == self.end {
                    if done == 0 {
                        return Ok(false);
                    }
                    return Err(self.malformed("stream ends inside a header"));
                }
            }
            let count = (self.end - self.start).min(out.len() - done);
            out[done..done + count].copy_from_slice(&self.buffer[self.start..self.start + count]);
            self.tap.raw(&out[done..done + count]).map_err(TarError::Tap)?;
            self.start += count;
            self.offset += count as u64;
            done += count;
        }
        Ok(true)
    }

    /// Passes over padding. A stream that ends in it ends the archive: some writers (umoci among them) leave out the
    /// last padding together with the end marker, and the peers read such layers.
    fn skip_raw(&mut self, length: u64) -> Result<(), TarError> {
        let mut left = usize::try_from(length).unwrap_or(0);
        while left > 0 {
            if self.start == self.end {
                self.fill()?;
                if self.start == self.end {
                    break;
                }
            }
            let count = (self.end - self.start).min(left);
            self.tap.raw(&self.buffer[self.start..self.start + count]).map_err(TarError::Tap)?;
            self.start += count;
            self.offset += count as u64;
            left -= count;
        }
        Ok(())
    }

    /// The next header block; `None` at two blocks of zeros or at the end of the stream.
    fn header_block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0u8; BLOCK];
        if !self.read_raw(&mut block)? {
            return Ok(None);
        }
        if block.iter().any(|&b| b != 0) {
            return Ok(Some(block));
        }
        if self.read_raw(&mut block)? && block.iter().any(|&b| b != 0) {
            return Err(self.malformed("a single block of zeros inside the archive"));
        }
        Ok(None)
    }

    /// Payload and padding of an extension header.
    fn record_payload(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        let mut payload = vec![0u8; usize::try_from(size).unwrap_or(0)];
        if !payload.is_empty() && !self.read_raw(&mut payload)? {
            return Err(self.malformed("stream ends inside an extension header"));
        }
        self.skip_raw(padding(size))?;
        Ok(payload)
    }

    /// The map of the old GNU form: four extents in the header, 21 in each block that follows.
    fn old_sparse_map(&mut self, old: header::OldSparse) -> Result<Vec<Extent>, TarError> {
        let mut extents = old.extents;
        let mut more = old.extended;
        while more {
            let mut block = [0u8; BLOCK];
            if !self.read_raw(&mut block)? {
                return Err(self.malformed("stream ends inside a sparse map"));
            }
            more = sparse::parse_old(&block[..504], &mut extents).map_err(|text| self.malformed(text))?
                && block[504] != 0;
        }
        Ok(extents)
    }

    /// The map of PAX form 1.0, at the start of the content: decimal numbers, one a line, padded to a block.
    fn inline_sparse_map(&mut self, stored: u64) -> Result<(Vec<Extent>, u64), TarError> {
        let mut text = Vec::new();
        let (mut used, mut lines, mut wanted) = (0, 0, 0);
        // Taken apart once, when all lines are there: to try at every block would take the square of its length.
        while used == 0 || lines < wanted {
            let mut block = [0u8; BLOCK];
            if used + BLOCK as u64 > stored || text.len() as u64 > MAX_RECORD || !self.read_raw(&mut block)? {
                return Err(self.malformed("sparse map is cut off or too long"));
            }
            if used == 0 {
                wanted = sparse::inline_lines(&block).map_err(|text| self.malformed(text))?;
            }
            used += BLOCK as u64;
            lines += block.iter().filter(|&&b| b == b'\n').count();
            text.extend_from_slice(&block);
        }
        let extents = sparse::parse_inline(&text, wanted).map_err(|text| self.malformed(text))?;
        Ok((extents, used))
    }

    fn malformed(&self, text: impl Into<String>) -> TarError {
        TarError::Malformed { text: text.into(), offset: self.offset }
    }
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|&b| b == 0).next().unwrap_or_default()
}

#[cfg(test)]
mod tests;
