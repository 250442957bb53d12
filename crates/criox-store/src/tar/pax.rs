//! Extension records (POSIX pax): `length key=value`, each ended by a line feed that the length counts.

use std::collections::BTreeMap;

use criox_sys::inroot::FileTime;

use super::{Extent, sparse};

/// Most extended attributes of one member: more names than the 64 KiB that the kernel would list.
const MAX_XATTRS: usize = 16 << 10;

/// What the extension headers before a member say.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) long_name: Option<Vec<u8>>,
    pub(super) long_link: Option<Vec<u8>>,
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<i64>,
    pub(super) gid: Option<i64>,
    pub(super) mtime: Option<FileTime>,
    pub(super) atime: Option<FileTime>,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) sparse_name: Option<Vec<u8>>,
    pub(super) sparse_size: Option<u64>,
    pub(super) sparse_map: Option<Vec<Extent>>,
    /// The map lies at the start of the content.
    pub(super) sparse_in_content: bool,
    sparse_version: (Option<u64>, Option<u64>),
    sparse_offset: Option<u64>,
}

impl Records {
    pub(super) fn is_sparse(&self) -> bool {
        self.sparse_in_content || self.sparse_map.is_some()
    }

    /// Takes the records of one header; later ones override.
    pub(super) fn parse(&mut self, mut text: &[u8]) -> Result<(), &'static str> {
        const BAD: &str = "malformed extension record";
        while !text.is_empty() {
            let space = text.iter().position(|&b| b == b' ').filter(|space| *space <= 10).ok_or(BAD)?;
            let length = usize::try_from(sparse::decimal(&text[..space])?).map_err(|_| BAD)?;
            if length <= space + 1 || length > text.len() || text[length - 1] != b'\n' {
                return Err(BAD);
            }
            let record = &text[space + 1..length - 1];
            let equals = record.iter().position(|&b| b == b'=').filter(|equals| *equals > 0).ok_or(BAD)?;
            self.take(&record[..equals], &record[equals + 1..])?;
            text = &text[length..];
        }
        self.sparse_in_content = self.sparse_version == (Some(1), Some(0));
        Ok(())
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            if name.is_empty() || name.contains(&0) {
                return Err("extended attribute without a proper name");
            }
            self.xattrs.insert(name.to_vec(), value.to_vec());
            return if self.xattrs.len() > MAX_XATTRS { Err("too many extended attributes") } else { Ok(()) };
        }
        // An empty value takes back what an earlier record or a global header said.
        let text = (!value.is_empty()).then_some(value);
        let decimal = |text: Option<&[u8]>| text.map(sparse::decimal).transpose();
        let id = |text: Option<&[u8]>| -> Result<Option<i64>, &'static str> {
            decimal(text)?
                .map(|n| i64::try_from(n).map_err(|_| "a user or group ID is out of range"))
                .transpose()
        };
        match key {
            b"path" => self.path = text.map(<[u8]>::to_vec),
            b"linkpath" => self.link = text.map(<[u8]>::to_vec),
            b"size" => self.size = decimal(text)?,
            b"uid" => self.uid = id(text)?,
            b"gid" => self.gid = id(text)?,
            b"mtime" => self.mtime = text.map(time).transpose()?,
            b"atime" => self.atime = text.map(time).transpose()?,
            b"GNU.sparse.name" => self.sparse_name = text.map(<[u8]>::to_vec),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse_size = decimal(text)?,
            b"GNU.sparse.major" => self.sparse_version.0 = decimal(text)?,
            b"GNU.sparse.minor" => self.sparse_version.1 = decimal(text)?,
            b"GNU.sparse.map" => self.sparse_map = text.map(sparse::parse_list).transpose()?,
            b"GNU.sparse.offset" => self.sparse_offset = decimal(text)?,
            b"GNU.sparse.numbytes" => {
                let offset = self.sparse_offset.take().ok_or("sparse extent without an offset")?;
                let length = decimal(text)?.ok_or("sparse extent without a length")?;
                sparse::push(self.sparse_map.get_or_insert_default(), Extent { offset, length })?;
            }
            _ => {}
        }
        Ok(())
    }
}

/// Seconds with an optional sign and fraction; digits beyond nanoseconds are dropped.
fn time(text: &[u8]) -> Result<FileTime, &'static str> {
    const BAD: &str = "malformed time";
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let dot = text.iter().position(|&b| b == b'.').unwrap_or(text.len());
    let seconds = i64::try_from(sparse::decimal(&text[..dot])?).map_err(|_| BAD)?;
    let fraction = text.get(dot + 1..).unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err(BAD);
    }
    let nanoseconds =
        (0..9).fold(0u32, |n, at| n * 10 + fraction.get(at).map_or(0, |digit| u32::from(digit - b'0')));
    Ok(match (negative, nanoseconds) {
        (false, _) => FileTime { seconds, nanoseconds },
        (true, 0) => FileTime { seconds: -seconds, nanoseconds },
        (true, _) => FileTime { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}
