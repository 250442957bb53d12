//! Makes tar streams by hand, good and bad ones.
#![allow(dead_code, reason = "each test program uses its part")]

/// A stream in the making.
#[derive(Debug, Clone, Default)]
pub(crate) struct Archive(pub(crate) Vec<u8>);

/// What a header says; the rest is zero.
#[derive(Debug, Clone)]
pub(crate) struct Header<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) kind: u8,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    pub(crate) mtime: u64,
    pub(crate) link: &'a [u8],
    pub(crate) device: (u32, u32),
}

impl Default for Header<'_> {
    fn default() -> Self {
        Self {
            name: b"",
            kind: b'0',
            mode: 0o644,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: 1_600_000_000,
            link: b"",
            device: (0, 0),
        }
    }
}

impl Header<'_> {
    pub(crate) fn block(&self) -> [u8; 512] {
        let mut block = [0u8; 512];
        block[..self.name.len()].copy_from_slice(self.name);
        let mut octal = |at: usize, width: usize, value: u64| {
            let text = format!("{value:0digits$o}\0", digits = width - 1);
            block[at..at + width].copy_from_slice(text.as_bytes());
        };
        octal(100, 8, self.mode.into());
        octal(108, 8, self.uid.into());
        octal(116, 8, self.gid.into());
        octal(124, 12, self.size);
        octal(136, 12, self.mtime);
        octal(329, 8, self.device.0.into());
        octal(337, 8, self.device.1.into());
        block[156] = self.kind;
        block[157..157 + self.link.len()].copy_from_slice(self.link);
        block[257..265].copy_from_slice(b"ustar\x0000");
        seal(&mut block);
        block
    }
}

/// Writes the checksum.
pub(crate) fn seal(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

impl Archive {
    pub(crate) fn entry(mut self, header: Header<'_>, content: &[u8]) -> Self {
        let size = if header.size == 0 { content.len() as u64 } else { header.size };
        self.0.extend_from_slice(&Header { size, ..header }.block());
        self.padded(content)
    }

    pub(crate) fn padded(mut self, content: &[u8]) -> Self {
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, name: &str, content: &[u8]) -> Self {
        self.entry(Header { name: name.as_bytes(), ..Header::default() }, content)
    }

    pub(crate) fn dir(self, name: &str) -> Self {
        self.entry(Header { name: name.as_bytes(), kind: b'5', mode: 0o755, ..Header::default() }, b"")
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        let header = Header {
            name: name.as_bytes(),
            kind: b'2',
            mode: 0o777,
            link: target.as_bytes(),
            ..Header::default()
        };
        self.entry(header, b"")
    }

    pub(crate) fn hardlink(self, name: &str, target: &str) -> Self {
        self.entry(
            Header { name: name.as_bytes(), kind: b'1', link: target.as_bytes(), ..Header::default() },
            b"",
        )
    }

    /// An extension header with these records.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut text = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            text.extend_from_slice(format!("{length} {key}=").as_bytes());
            text.extend_from_slice(value);
            text.push(b'\n');
        }
        self.entry(Header { name: b"PaxHeaders/x", kind: b'x', ..Header::default() }, &text)
    }

    /// The stream with its end.
    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}
