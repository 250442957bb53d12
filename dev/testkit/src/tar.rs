//! Layers byte by byte, also the ones that no decent program writes.
//!
//! POSIX ustar with PAX headers (IEEE 1003.1, pax) and GNU's sparse format 1.0. Nothing is checked or cleaned: a name may
//! be absolute or climb out, a hard link may point outside, a size may lie.

/// One member of a layer.
#[derive(Debug, Clone)]
pub struct Entry {
    path: Vec<u8>,
    kind: u8,
    link: Vec<u8>,
    body: Vec<u8>,
    mode: u32,
    uid: u64,
    gid: u64,
    mtime: u64,
    device: (u32, u32),
    pax: Vec<(String, Vec<u8>)>,
    claimed_size: Option<u64>,
}

impl Entry {
    fn new(path: &str, kind: u8, mode: u32) -> Self {
        Self {
            path: path.as_bytes().to_vec(),
            kind,
            link: Vec::new(),
            body: Vec::new(),
            mode,
            uid: 0,
            gid: 0,
            mtime: 1_700_000_000,
            device: (0, 0),
            pax: Vec::new(),
            claimed_size: None,
        }
    }

    /// A regular file, mode 0644.
    pub fn file(path: &str, content: impl Into<Vec<u8>>) -> Self {
        Self { body: content.into(), ..Self::new(path, b'0', 0o644) }
    }

    /// A regular file that can be executed, mode 0755.
    pub fn program(path: &str, content: impl Into<Vec<u8>>) -> Self {
        Self::file(path, content).mode(0o755)
    }

    /// A directory, mode 0755.
    pub fn dir(path: &str) -> Self {
        Self::new(&format!("{}/", path.trim_end_matches('/')), b'5', 0o755)
    }

    /// A symbolic link to `target`.
    pub fn symlink(path: &str, target: &str) -> Self {
        Self { link: target.as_bytes().to_vec(), ..Self::new(path, b'2', 0o777) }
    }

    /// A hard link to `target`, which names another member.
    pub fn hardlink(path: &str, target: &str) -> Self {
        Self { link: target.as_bytes().to_vec(), ..Self::new(path, b'1', 0o644) }
    }

    /// A character device.
    pub fn char_device(path: &str, major: u32, minor: u32) -> Self {
        Self { device: (major, minor), ..Self::new(path, b'3', 0o600) }
    }

    /// A block device.
    pub fn block_device(path: &str, major: u32, minor: u32) -> Self {
        Self { device: (major, minor), ..Self::new(path, b'4', 0o600) }
    }

    /// A named pipe.
    pub fn fifo(path: &str) -> Self {
        Self::new(path, b'6', 0o600)
    }

    /// The mark that `path` of a lower layer is deleted (OCI image specification, layer).
    pub fn whiteout(path: &str) -> Self {
        let (parent, name) = path.rsplit_once('/').map_or(("", path), |(parent, name)| (parent, name));
        let slash = if parent.is_empty() { "" } else { "/" };
        Self::file(&format!("{parent}{slash}.wh.{name}"), "")
    }

    /// The mark that hides everything that lower layers have in `dir`.
    pub fn opaque(dir: &str) -> Self {
        Self::file(&format!("{}/.wh..wh..opq", dir.trim_end_matches('/')), "")
    }

    /// A file of `size` bytes with data only at the given offsets, in GNU's format 1.0.
    ///
    /// Each piece but the last is filled up with zeros to whole blocks, as GNU tar's own pieces are: readers disagree about
    /// pieces that aren't (Go's takes them without padding, GNU's with).
    pub fn sparse(path: &str, size: u64, chunks: &[(u64, &[u8])]) -> Self {
        let mut map = format!("{}\n", chunks.len());
        let mut data = Vec::new();
        for (n, (offset, bytes)) in chunks.iter().enumerate() {
            let start = data.len();
            data.extend_from_slice(bytes);
            if n + 1 < chunks.len() {
                data.resize(data.len().next_multiple_of(BLOCK), 0);
            }
            map.push_str(&format!("{offset}\n{}\n", data.len() - start));
        }
        let mut body = map.into_bytes();
        body.resize(body.len().next_multiple_of(BLOCK), 0);
        body.extend_from_slice(&data);
        Self::file(&format!("GNUSparseFile.0/{path}"), body)
            .pax("GNU.sparse.major", "1")
            .pax("GNU.sparse.minor", "0")
            .pax("GNU.sparse.name", path)
            .pax("GNU.sparse.realsize", &size.to_string())
    }

    /// Permission bits, with set-uid, set-gid and sticky.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// Owner and group, by number.
    #[must_use]
    pub fn owner(mut self, uid: u64, gid: u64) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    /// Seconds since 1970.
    #[must_use]
    pub fn mtime(mut self, seconds: u64) -> Self {
        self.mtime = seconds;
        self
    }

    /// An extended attribute, as `SCHILY.xattr.`.
    #[must_use]
    pub fn xattr(mut self, name: &str, value: &[u8]) -> Self {
        self.pax.push((format!("SCHILY.xattr.{name}"), value.to_vec()));
        self
    }

    /// Any PAX record.
    #[must_use]
    pub fn pax(mut self, key: &str, value: &str) -> Self {
        self.pax.push((key.to_owned(), value.as_bytes().to_vec()));
        self
    }

    /// A size in the header that isn't the content's.
    #[must_use]
    pub fn claim_size(mut self, size: u64) -> Self {
        self.claimed_size = Some(size);
        self
    }

    fn write(&self, out: &mut Vec<u8>) {
        let mut pax = self.pax.clone();
        if self.path.len() > 100 {
            pax.push(("path".to_owned(), self.path.clone()));
        }
        if self.link.len() > 100 {
            pax.push(("linkpath".to_owned(), self.link.clone()));
        }
        for (key, id) in [("uid", self.uid), ("gid", self.gid)] {
            if id > 0o7_777_777 {
                pax.push((key.to_owned(), id.to_string().into_bytes()));
            }
        }
        if !pax.is_empty() {
            let records: Vec<u8> = pax.iter().flat_map(|(key, value)| record(key, value)).collect();
            header(out, &Self::new("PaxHeaders.0/member", b'x', 0o644), records.len() as u64);
            body(out, &records);
        }
        header(out, self, self.claimed_size.unwrap_or(self.body.len() as u64));
        body(out, &self.body);
    }
}

/// A whole archive, with its two closing blocks.
pub fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        entry.write(&mut out);
    }
    out.resize(out.len() + 2 * BLOCK, 0);
    out
}

const BLOCK: usize = 512;

fn body(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(bytes);
    out.resize(out.len().next_multiple_of(BLOCK), 0);
}

/// A PAX record's length counts its own digits.
fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + rest.to_string().len();
    if length.to_string().len() + rest != length {
        length = rest + length.to_string().len();
    }
    let mut out = format!("{length} {key}=").into_bytes();
    out.extend_from_slice(value);
    out.push(b'\n');
    out
}

fn header(out: &mut Vec<u8>, entry: &Entry, size: u64) {
    let mut block = [0_u8; BLOCK];
    let mut put = |at: usize, width: usize, bytes: &[u8]| {
        let n = bytes.len().min(width);
        block[at..at + n].copy_from_slice(&bytes[..n]);
    };
    let octal = |width: usize, value: u64| format!("{value:0width$o}\0").into_bytes();
    let id = |id: u64| octal(7, if id > 0o7_777_777 { 0 } else { id });
    put(0, 100, &entry.path);
    put(100, 8, &octal(7, u64::from(entry.mode)));
    put(108, 8, &id(entry.uid));
    put(116, 8, &id(entry.gid));
    put(124, 12, &octal(11, size));
    put(136, 12, &octal(11, entry.mtime));
    put(148, 8, b"        ");
    put(156, 1, &[entry.kind]);
    put(157, 100, &entry.link);
    put(257, 8, b"ustar\x0000");
    put(329, 8, &octal(7, u64::from(entry.device.0)));
    put(337, 8, &octal(7, u64::from(entry.device.1)));
    let sum: u64 = block.iter().map(|&byte| u64::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    out.extend_from_slice(&block);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pax_record_counts_its_own_length() {
        assert_eq!(record("a", b"b"), b"6 a=b\n");
        // 99 and 100: the place where one more digit makes one more digit.
        for n in 80..110 {
            let record = record("key", &vec![b'x'; n]);
            let text = String::from_utf8(record.clone()).unwrap();
            assert_eq!(text.split(' ').next().unwrap().parse::<usize>().unwrap(), record.len());
        }
    }

    #[test]
    fn a_whiteout_stands_beside_what_it_hides() {
        assert_eq!(Entry::whiteout("etc/passwd").path, b"etc/.wh.passwd");
        assert_eq!(Entry::whiteout("etc").path, b".wh.etc");
    }

    #[test]
    fn members_start_on_blocks_and_the_archive_ends_with_two() {
        let bytes = archive(&[Entry::file("a", "x"), Entry::dir("b")]);
        assert_eq!(bytes.len(), 5 * BLOCK);
        assert_eq!(&bytes[2 * BLOCK..2 * BLOCK + 2], b"b/");
    }
}
