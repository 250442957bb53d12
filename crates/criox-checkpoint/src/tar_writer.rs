//! Writes tar as every reader takes it: ustar headers, and PAX records in front of members that need them (long names,
//! large numbers, parts of seconds, extended attributes; GNU's sparse format 1.0 for files with holes).

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use criox_store::tar::{Entry, Extent, Kind};
use criox_sys::durable::PathError;
use criox_sys::inroot::FileTime;
use rustix::fs::SeekFrom;

use crate::cancel::Cancel;
use crate::directory::copy_content;
use crate::error::Error;

const BLOCK: usize = 512;

/// A tar stream in the making.
#[derive(Debug)]
pub(crate) struct TarWriter<'a> {
    out: &'a File,
    shown: &'a Path,
    cancel: &'a Cancel,
    /// Headers and padding that are not written yet.
    pending: Vec<u8>,
    written: u64,
}

impl<'a> TarWriter<'a> {
    pub(crate) fn new(out: &'a File, shown: &'a Path, cancel: &'a Cancel) -> Self {
        Self { out, shown, cancel, pending: Vec::new(), written: 0 }
    }

    /// A member's headers, and its content from `content` (with the path it is shown by) for a regular file: `stored`
    /// bytes from its current position, or what its sparse map names.
    ///
    /// # Errors
    /// What reading or writing answered; [`Error::Cancelled`]; a file that is shorter than said.
    pub(crate) fn member(&mut self, entry: &Entry, content: Option<(&File, &Path)>) -> Result<(), Error> {
        let map = entry.sparse.as_deref().map(sparse_map);
        let stored = entry.stored + map.as_ref().map_or(0, |map| map.len() as u64);
        headers(entry, stored, &mut self.pending);
        self.pending.extend_from_slice(map.as_deref().unwrap_or_default());
        if let Some((file, shown)) = content {
            match &entry.sparse {
                None => self.content(file, shown, entry.stored)?,
                Some(extents) => {
                    for Extent { offset, length } in extents {
                        rustix::fs::seek(file, SeekFrom::Start(*offset))
                            .map_err(|e| PathError::new("seek in", shown, e))?;
                        self.content(file, shown, *length)?;
                    }
                }
            }
        }
        let padding = stored.wrapping_neg() % BLOCK as u64;
        self.pending.resize(self.pending.len() + usize::try_from(padding).unwrap_or(0), 0);
        if self.pending.len() > 64 << 10 { self.flush() } else { Ok(()) }
    }

    fn content(&mut self, file: &File, shown: &Path, length: u64) -> Result<(), Error> {
        self.flush()?;
        let copied = copy_content(file, shown, self.out, self.shown, length, self.cancel)?;
        self.written += copied;
        if copied < length {
            let short = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
            return Err(PathError::new("read all of", shown, short).into());
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Error> {
        self.cancel.check("write an archive")?;
        let mut out = self.out;
        out.write_all(&self.pending).map_err(|e| PathError::new("write", self.shown, e))?;
        self.written += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    /// The end of the archive; its length.
    ///
    /// # Errors
    /// What writing answered.
    pub(crate) fn finish(mut self) -> Result<u64, Error> {
        self.pending.resize(self.pending.len() + 2 * BLOCK, 0);
        self.flush()?;
        Ok(self.written)
    }
}

/// The header of a member with `stored` bytes behind it, and an extension header in front if it takes one.
fn headers(entry: &Entry, stored: u64, out: &mut Vec<u8>) {
    let mut records = Vec::new();
    let name = match &entry.sparse {
        Some(_) => {
            record(&mut records, b"GNU.sparse.major", b"1");
            record(&mut records, b"GNU.sparse.minor", b"0");
            record(&mut records, b"GNU.sparse.name", &entry.name);
            record(&mut records, b"GNU.sparse.realsize", entry.size.to_string().as_bytes());
            let cut = entry.name.len().min(80);
            [b"GNUSparseFile.0/", &entry.name[..cut]].concat()
        }
        None => {
            if entry.name.len() > 100 || !entry.name.is_ascii() {
                record(&mut records, b"path", &entry.name);
            }
            entry.name.clone()
        }
    };
    if entry.link.len() > 100 || !entry.link.is_ascii() {
        record(&mut records, b"linkpath", &entry.link);
    }
    let mut block = [0u8; BLOCK];
    text(&mut block[..100], &name);
    octal(&mut block[100..108], u64::from(entry.mode & 0o7777));
    for (key, at, width, value) in [
        ("uid", 108, 8, u64::from(entry.uid)),
        ("gid", 116, 8, u64::from(entry.gid)),
        ("size", 124, 12, stored),
    ] {
        if !octal(&mut block[at..at + width], value) {
            record(&mut records, key.as_bytes(), value.to_string().as_bytes());
        }
    }
    let whole = u64::try_from(entry.mtime.seconds).ok().filter(|_| entry.mtime.nanoseconds == 0);
    if !whole.is_some_and(|seconds| octal(&mut block[136..148], seconds)) {
        octal(&mut block[136..148], u64::try_from(entry.mtime.seconds).unwrap_or(0) & 0o77_777_777_777);
        record(&mut records, b"mtime", time(entry.mtime).as_bytes());
    }
    block[156] = match entry.kind {
        Kind::Regular => b'0',
        Kind::HardLink => b'1',
        Kind::Symlink => b'2',
        Kind::CharDevice => b'3',
        Kind::BlockDevice => b'4',
        Kind::Directory => b'5',
        Kind::Fifo => b'6',
    };
    text(&mut block[157..257], &entry.link);
    block[257..265].copy_from_slice(b"ustar\x0000");
    octal(&mut block[329..337], entry.device.0.into());
    octal(&mut block[337..345], entry.device.1.into());
    for (name, value) in &entry.xattrs {
        record(&mut records, &[b"SCHILY.xattr.", name.as_slice()].concat(), value);
    }
    if !records.is_empty() {
        let mut extension = [0u8; BLOCK];
        text(&mut extension[..100], b"PaxHeaders.0/x");
        octal(&mut extension[100..108], 0o600);
        octal(&mut extension[108..116], 0);
        octal(&mut extension[116..124], 0);
        octal(&mut extension[124..136], records.len() as u64);
        octal(&mut extension[136..148], 0);
        extension[156] = b'x';
        extension[257..265].copy_from_slice(b"ustar\x0000");
        seal(&mut extension);
        out.extend_from_slice(&extension);
        // Padded by itself: what waits in front may be the padding of the member before.
        records.resize(records.len().next_multiple_of(BLOCK), 0);
        out.extend_from_slice(&records);
    }
    seal(&mut block);
    out.extend_from_slice(&block);
}

/// The map of a sparse file, padded to a block: how many extents, then offset and length of each.
fn sparse_map(extents: &[Extent]) -> Vec<u8> {
    let mut map = format!("{}\n", extents.len()).into_bytes();
    for Extent { offset, length } in extents {
        map.extend_from_slice(format!("{offset}\n{length}\n").as_bytes());
    }
    map.resize(map.len().next_multiple_of(BLOCK), 0);
    map
}

fn text(field: &mut [u8], text: &[u8]) {
    let length = text.len().min(field.len());
    field[..length].copy_from_slice(&text[..length]);
}

/// Octal digits and a NUL; false, and zeros, if the number has too many.
fn octal(field: &mut [u8], value: u64) -> bool {
    let digits = field.len() - 1;
    let fits = value < 1 << (3 * digits);
    let text = format!("{:0digits$o}\0", if fits { value } else { 0 });
    field.copy_from_slice(text.as_bytes());
    fits
}

/// `length key=value`, where the length counts its own digits, too.
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(format!("{length} ").as_bytes());
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// Seconds with a sign and a fraction.
fn time(time: FileTime) -> String {
    let total = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanoseconds);
    let sign = if total < 0 { "-" } else { "" };
    let total = total.unsigned_abs();
    let (seconds, fraction) = (total / 1_000_000_000, total % 1_000_000_000);
    let digits = format!("{fraction:09}");
    match digits.trim_end_matches('0') {
        "" => format!("{sign}{seconds}"),
        digits => format!("{sign}{seconds}.{digits}"),
    }
}

/// The checksum.
fn seal(block: &mut [u8; BLOCK]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use criox_store::tar::Reader;
    use proptest::prelude::*;

    fn kind() -> impl Strategy<Value = Kind> {
        prop::sample::select(vec![
            Kind::Regular,
            Kind::HardLink,
            Kind::Symlink,
            Kind::CharDevice,
            Kind::BlockDevice,
            Kind::Directory,
            Kind::Fifo,
        ])
    }

    fn name() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(1u8..=255, 1..300)
    }

    prop_compose! {
        fn entry()(
            kind in kind(),
            name in name(),
            link in name(),
            (mode, uid, gid) in (0u32..0o10000, any::<u32>(), any::<u32>()),
            (seconds, nanoseconds) in (-(1i64 << 40)..1 << 40, prop_oneof![Just(0), 0u32..1_000_000_000]),
            device in (0u32..4096, 0u32..1 << 20),
            xattrs in prop::collection::btree_map("user\\.[a-z]{1,20}", prop::collection::vec(any::<u8>(), 0..200), 0..3),
            content in prop::collection::vec(any::<u8>(), 0..2000),
        ) -> (Entry, Vec<u8>) {
            let size = if kind == Kind::Regular { content.len() as u64 } else { 0 };
            let has_link = matches!(kind, Kind::HardLink | Kind::Symlink);
            let is_device = matches!(kind, Kind::CharDevice | Kind::BlockDevice);
            let entry = Entry {
                name,
                kind,
                link: if has_link { link } else { Vec::new() },
                mode,
                uid,
                gid,
                stored: size,
                size,
                mtime: FileTime { seconds, nanoseconds },
                atime: None,
                device: if is_device { device } else { (0, 0) },
                xattrs: xattrs.into_iter().map(|(name, value)| (name.into_bytes(), value)).collect(),
                sparse: None,
            };
            (entry, content)
        }
    }

    fn write(members: &[(Entry, Vec<u8>)]) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let (path, from) = (dir.path().join("out"), dir.path().join("from"));
        let out = File::options().write(true).create_new(true).open(&path).unwrap();
        let cancel = Cancel::new();
        let mut writer = TarWriter::new(&out, &path, &cancel);
        for (entry, content) in members {
            let _ = std::fs::remove_file(&from);
            let mut file = File::options().read(true).write(true).create_new(true).open(&from).unwrap();
            file.write_all(content).unwrap();
            rustix::fs::seek(&file, SeekFrom::Start(0)).unwrap();
            let content = (entry.kind == Kind::Regular).then_some((&file, from.as_path()));
            writer.member(entry, content).unwrap();
        }
        let length = writer.finish().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len() as u64, length);
        bytes
    }

    fn read(bytes: &[u8]) -> Vec<(Entry, Vec<u8>)> {
        let mut reader = Reader::new(bytes, ());
        let mut members = Vec::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            let mut content = Vec::new();
            loop {
                let chunk = reader.content().unwrap();
                if chunk.is_empty() {
                    break;
                }
                content.extend_from_slice(chunk);
                let length = chunk.len();
                reader.consume(length).unwrap();
            }
            members.push((entry, content));
        }
        members
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

        #[test]
        fn what_is_written_is_read(members in prop::collection::vec(entry(), 0..5)) {
            let expected: Vec<_> = members
                .iter()
                .map(|(entry, content)| {
                    let content = if entry.kind == Kind::Regular { content.clone() } else { Vec::new() };
                    (entry.clone(), content)
                })
                .collect();
            prop_assert_eq!(read(&write(&members)), expected);
        }
    }

    #[test]
    fn holes_are_told_and_not_written() {
        let extents = vec![Extent { offset: 3, length: 2 }, Extent { offset: 4096, length: 1000 }];
        let mut content = vec![0; 5096];
        content[3..5].copy_from_slice(b"ab");
        content[4096..].fill(9);
        let ((mut entry, _), name) = ((Entry { name: b"x".repeat(150), ..empty() }, 0), b"x".repeat(150));
        entry.sparse = Some(extents.clone());
        (entry.stored, entry.size) = (1002, 1 << 33);
        let bytes = write(&[(entry, content)]);
        let members = read(&bytes);
        let (read, stored) = &members[0];
        assert_eq!((read.size, read.stored, read.sparse.as_ref()), (1 << 33, 1002, Some(&extents)));
        assert_eq!((&read.name, &stored[..3]), (&name, &b"ab\x09"[..]));
        assert!(bytes.len() < 8192);
    }

    #[test]
    fn a_file_of_as_many_holes_as_there_may_be_is_read() {
        const APART: u64 = 1 << 28;
        let extents: Vec<Extent> = (0..u64::try_from(crate::changes::MAX_EXTENTS).unwrap())
            .map(|number| Extent { offset: number * APART, length: 1 })
            .collect();
        let dir = tempfile::tempdir().unwrap();
        let (path, from) = (dir.path().join("out"), dir.path().join("from"));
        let out = File::options().write(true).create_new(true).open(&path).unwrap();
        let holes = File::options().read(true).write(true).create_new(true).open(&from).unwrap();
        holes.set_len(extents.len() as u64 * APART).unwrap();
        let entry = Entry {
            name: b"holes".to_vec(),
            stored: extents.len() as u64,
            size: extents.len() as u64 * APART,
            sparse: Some(extents.clone()),
            ..empty()
        };
        let cancel = Cancel::new();
        let mut writer = TarWriter::new(&out, &path, &cancel);
        writer.member(&entry, Some((&holes, &from))).unwrap();
        writer.finish().unwrap();
        let members = read(&std::fs::read(&path).unwrap());
        assert_eq!(members[0].0.sparse.as_ref(), Some(&extents));
        let longest = vec![Extent { offset: u64::MAX, length: u64::MAX }; extents.len()];
        assert!(sparse_map(&longest).len() <= 1 << 20);
    }

    fn empty() -> Entry {
        Entry {
            name: Vec::new(),
            kind: Kind::Regular,
            link: Vec::new(),
            mode: 0,
            uid: 0,
            gid: 0,
            stored: 0,
            size: 0,
            mtime: FileTime::default(),
            atime: None,
            device: (0, 0),
            xattrs: Vec::new(),
            sparse: None,
        }
    }

    #[test]
    fn a_file_that_is_shorter_than_said_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let out = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        let cancel = Cancel::new();
        let short =
            File::options().read(true).write(true).create_new(true).open(dir.path().join("short")).unwrap();
        let entry = Entry { stored: 5, size: 5, ..empty() };
        let error = TarWriter::new(&out, &path, &cancel).member(&entry, Some((&short, &path))).unwrap_err();
        assert!(matches!(error, Error::File(_)), "{error}");
    }
}
