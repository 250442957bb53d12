//! The 512-byte header block, and how it and the extension records become a member.

use criox_sys::inroot::FileTime;

use super::pax::Records;
use super::{BLOCK, Entry, Extent, sparse, until_nul};

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A file with content.
    Regular,
    /// Another name for a file.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// A header block, taken apart.
#[derive(Debug)]
pub(super) struct Header {
    name: Vec<u8>,
    mode: u32,
    uid: i64,
    gid: i64,
    /// Length of content or payload.
    pub(super) size: u64,
    mtime: i64,
    pub(super) typeflag: u8,
    link: Vec<u8>,
    device: (i64, i64),
    pub(super) sparse: Option<OldSparse>,
}

/// The old GNU sparse fields.
#[derive(Debug, Clone)]
pub(super) struct OldSparse {
    pub(super) extents: Vec<Extent>,
    pub(super) extended: bool,
    size: u64,
}

impl Header {
    pub(super) fn parse(block: &[u8; BLOCK]) -> Result<Self, &'static str> {
        let checksum = number(&block[148..156])?;
        let sum = |signed: bool| -> i64 {
            block
                .iter()
                .enumerate()
                .map(|(at, &b)| match (148..156).contains(&at) {
                    true => 32,
                    false if signed => i64::from(b.cast_signed()),
                    false => i64::from(b),
                })
                .sum()
        };
        if checksum != sum(false) && checksum != sum(true) {
            return Err("header has a wrong checksum");
        }
        let typeflag = block[156];
        let gnu = &block[257..265] == b"ustar  \0";
        let mut name = until_nul(&block[..100]).to_vec();
        if !gnu && &block[257..262] == b"ustar" {
            // The "star" form has times at the end of the prefix's field.
            let prefix = if &block[508..512] == b"tar\0" { &block[345..476] } else { &block[345..500] };
            let prefix = until_nul(prefix);
            if !prefix.is_empty() {
                name = [prefix, b"/", &name].concat();
            }
        }
        let size = u64::try_from(number(&block[124..136])?).map_err(|_| "header has a negative size")?;
        let is_device = matches!(typeflag, b'3' | b'4');
        let device = if is_device { (number(&block[329..337])?, number(&block[337..345])?) } else { (0, 0) };
        let sparse = if typeflag == b'S' { Some(OldSparse::parse(block, gnu)?) } else { None };
        Ok(Self {
            name,
            mode: u32::try_from(number(&block[100..108])? & 0o7777).unwrap_or(0),
            uid: number(&block[108..116])?,
            gid: number(&block[116..124])?,
            size,
            mtime: number(&block[136..148])?,
            typeflag,
            link: until_nul(&block[157..257]).to_vec(),
            device,
            sparse,
        })
    }
}

impl OldSparse {
    fn parse(block: &[u8; BLOCK], gnu: bool) -> Result<Self, &'static str> {
        if !gnu {
            return Err("sparse file in a header that isn't GNU's");
        }
        let mut extents = Vec::new();
        let full = sparse::parse_old(&block[386..482], &mut extents)?;
        let size = u64::try_from(number(&block[483..495])?).map_err(|_| "sparse file has a negative size")?;
        Ok(Self { extents, extended: full && block[482] != 0, size })
    }
}

/// A numeric field: octal with spaces or NULs around it, or binary with the top bit set (a negative one fills with
/// ones). Empty is zero.
pub(super) fn number(field: &[u8]) -> Result<i64, &'static str> {
    const BAD: &str = "header has a malformed number";
    if let Some(&first) = field.first()
        && first & 0x80 != 0
    {
        let negative = first & 0x40 != 0;
        let mut value: i64 = if negative { -1 } else { 0 };
        for (at, &byte) in field.iter().enumerate() {
            let byte = match (at, negative) {
                (0, false) => byte & 0x7f,
                (0, true) => byte | 0x80,
                _ => byte,
            };
            value = value.checked_mul(256).ok_or(BAD)? | i64::from(byte);
        }
        return Ok(value);
    }
    let text = field.trim_ascii_start();
    let end = text.iter().position(|b| matches!(b, 0 | b' ')).unwrap_or(text.len());
    if text[end..].iter().any(|b| !matches!(b, 0 | b' ')) {
        return Err(BAD);
    }
    text[..end].iter().try_fold(0i64, |value, &b| match b {
        b'0'..=b'7' => {
            value.checked_mul(8).and_then(|value| value.checked_add(i64::from(b - b'0'))).ok_or(BAD)
        }
        _ => Err(BAD),
    })
}

/// The member that a header and the records before it describe.
pub(super) fn combine(header: Header, records: &Records) -> Result<Entry, String> {
    let name = records
        .sparse_name
        .clone()
        .or(records.path.clone())
        .or(records.long_name.clone())
        .unwrap_or(header.name);
    let link = records.link.clone().or(records.long_link.clone()).unwrap_or(header.link);
    if name.contains(&0) || link.contains(&0) {
        return Err("a name has a NUL in it".into());
    }
    let kind = match header.typeflag {
        0 if name.ends_with(b"/") => Kind::Directory,
        0 | b'0' | b'7' | b'S' => Kind::Regular,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::CharDevice,
        b'4' => Kind::BlockDevice,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        other => {
            return Err(format!(
                "member {:?} has the unsupported type {other}",
                String::from_utf8_lossy(&name)
            ));
        }
    };
    let owner = |record: Option<i64>, field: i64| {
        u32::try_from(record.unwrap_or(field)).map_err(|_| "a user or group ID is out of range".to_owned())
    };
    let number = |field: i64| u32::try_from(field).map_err(|_| "a device number is out of range".to_owned());
    // Only regular files have content; what others state as their size is not followed by anything.
    let stored = if kind == Kind::Regular { records.size.unwrap_or(header.size) } else { 0 };
    let size = match (&header.sparse, records.sparse_size) {
        (Some(old), _) => old.size,
        (None, Some(size)) if records.is_sparse() => size,
        (None, _) if records.is_sparse() => return Err("sparse file without a size".into()),
        (None, _) => stored,
    };
    Ok(Entry {
        kind,
        mode: header.mode,
        uid: owner(records.uid, header.uid)?,
        gid: owner(records.gid, header.gid)?,
        stored,
        size,
        mtime: records.mtime.unwrap_or(FileTime { seconds: header.mtime, nanoseconds: 0 }),
        atime: records.atime,
        device: (number(header.device.0)?, number(header.device.1)?),
        xattrs: records.xattrs.clone().into_iter().collect(),
        sparse: None,
        name,
        link,
    })
}
