//! Header blocks of SPDY/3: name and value pairs, deflated as one stream per direction.

use bytes::Buf;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::dictionary::DICTIONARY;

/// Largest block after inflating.
const MOST: usize = 64 << 10;

/// Pairs in one block.
const MOST_PAIRS: u32 = 128;

/// A block that can't be read. The state of the compression is lost with it, and so is the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeaderError {
    #[error("a header block that cannot be inflated")]
    Deflate,
    #[error("a header block of more than 64 KiB")]
    TooLong,
    #[error("a header block whose counts do not match its length")]
    Counts,
}

/// Names in lower case with their values, in the order of the block.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Headers(Vec<(String, String)>);

impl Headers {
    /// The first value of that name.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

/// Inflates the blocks of one direction.
#[derive(Debug)]
pub(crate) struct Inflater(Decompress);

impl Inflater {
    pub(crate) fn new() -> Self {
        Self(Decompress::new(true))
    }

    /// The next block. After an error there is no further one.
    pub(crate) fn block(&mut self, block: &[u8]) -> Result<Headers, HeaderError> {
        parse(&self.inflate(block)?)
    }

    fn inflate(&mut self, mut block: &[u8]) -> Result<Vec<u8>, HeaderError> {
        let mut all = Vec::new();
        let mut piece = [0; 4096];
        loop {
            let (read, written) = (self.0.total_in(), self.0.total_out());
            let result = self.0.decompress(block, &mut piece, FlushDecompress::Sync);
            let read = usize::try_from(self.0.total_in() - read).map_err(|_| HeaderError::Deflate)?;
            let written = usize::try_from(self.0.total_out() - written).map_err(|_| HeaderError::Deflate)?;
            block = block.get(read..).ok_or(HeaderError::Deflate)?;
            all.extend_from_slice(piece.get(..written).ok_or(HeaderError::Deflate)?);
            if all.len() > MOST {
                return Err(HeaderError::TooLong);
            }
            match result {
                // The stream goes on to the end of the connection.
                Ok(Status::StreamEnd) => return Err(HeaderError::Deflate),
                Ok(_) if block.is_empty() && written < piece.len() => return Ok(all),
                Ok(_) if read == 0 && written == 0 => return Err(HeaderError::Deflate),
                Ok(_) => (),
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(&DICTIONARY).map_err(|_| HeaderError::Deflate)?;
                }
                Err(_) => return Err(HeaderError::Deflate),
            }
        }
    }
}

/// Reads a block that was inflated.
pub(crate) fn parse(mut block: &[u8]) -> Result<Headers, HeaderError> {
    let count = block.try_get_u32().map_err(|_| HeaderError::Counts)?;
    if count > MOST_PAIRS {
        return Err(HeaderError::Counts);
    }
    let mut headers = Headers::default();
    for _ in 0..count {
        let (name, value) = (text(&mut block)?, text(&mut block)?);
        headers.0.push((name.to_ascii_lowercase(), value));
    }
    if block.is_empty() { Ok(headers) } else { Err(HeaderError::Counts) }
}

fn text(block: &mut &[u8]) -> Result<String, HeaderError> {
    let length = block.try_get_u32().map_err(|_| HeaderError::Counts)? as usize;
    let (text, rest) = block.split_at_checked(length).ok_or(HeaderError::Counts)?;
    *block = rest;
    Ok(String::from_utf8_lossy(text).into_owned())
}

/// Deflates the blocks of one direction.
#[derive(Debug)]
pub(crate) struct Deflater(Compress);

impl Deflater {
    pub(crate) fn new() -> Result<Self, HeaderError> {
        let mut compress = Compress::new(Compression::fast(), true);
        compress.set_dictionary(&DICTIONARY).map_err(|_| HeaderError::Deflate)?;
        Ok(Self(compress))
    }

    /// The next block.
    pub(crate) fn block(&mut self, pairs: &[(&str, &str)]) -> Result<Vec<u8>, HeaderError> {
        let length = |length: usize| u32::try_from(length).map_err(|_| HeaderError::TooLong);
        let mut plain = length(pairs.len())?.to_be_bytes().to_vec();
        for text in pairs.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend(length(text.len())?.to_be_bytes());
            plain.extend(text.as_bytes());
        }
        // A sync flush is complete when it leaves room: the worst of deflate is nine bits for a byte.
        let mut block = Vec::with_capacity(plain.len() + plain.len() / 8 + 128);
        self.0.compress_vec(&plain, &mut block, FlushCompress::Sync).map_err(|_| HeaderError::Deflate)?;
        if block.len() == block.capacity() { Err(HeaderError::TooLong) } else { Ok(block) }
    }
}
