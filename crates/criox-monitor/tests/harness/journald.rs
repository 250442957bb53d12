//! Stands in for systemd-journald: its socket, and a reader of its native protocol that takes nothing on trust.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use rustix::fs::SealFlags;

/// An entry as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) fields: BTreeMap<String, Vec<u8>>,
    /// It came as a file.
    pub(crate) sealed: bool,
}

impl Entry {
    pub(crate) fn text(&self, name: &str) -> String {
        String::from_utf8_lossy(self.fields.get(name).map_or(b"(absent)", Vec::as_slice)).into_owned()
    }

    pub(crate) fn message(&self) -> String {
        self.text("MESSAGE")
    }

    /// How many lines it says are missing, if it is such a note.
    pub(crate) fn missing(&self) -> Option<u64> {
        let message = self.message();
        let rest = message.strip_prefix("criox: ")?;
        rest.strip_suffix(" log lines are missing here: the journal did not take them")?.parse().ok()
    }
}

/// The journal's end. Reads only when it is asked to.
pub(crate) struct Journald(UnixDatagram);

impl Journald {
    pub(crate) fn listen(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self(socket)
    }

    /// What it had when it stopped listening.
    pub(crate) fn stop(self) -> Vec<Entry> {
        self.0.shutdown(std::net::Shutdown::Read).unwrap();
        std::iter::from_fn(|| self.next()).collect()
    }

    /// The next entry that is there.
    pub(crate) fn next(&self) -> Option<Entry> {
        let (mut bytes, mut files) = (vec![0; 256 * 1024], Vec::new());
        let length = match criox_sys::socket::recv_with_fds(&self.0, &mut bytes, &mut files) {
            Ok(length) => length,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return None,
            Err(error) => panic!("{error}"),
        };
        bytes.truncate(length);
        let sealed = !files.is_empty();
        if length == 0 && !sealed {
            // It has been stopped.
            return None;
        }
        if let Some(file) = files.pop() {
            assert!(length == 0 && files.is_empty(), "either bytes or one file");
            bytes = read_sealed(file);
        }
        Some(Entry { fields: parse(&bytes), sealed })
    }
}

/// As journald does: a file that somebody could still change is not taken.
fn read_sealed(file: OwnedFd) -> Vec<u8> {
    let all = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
    assert_eq!(rustix::fs::fcntl_get_seals(&file).unwrap(), all);
    let mut file = std::fs::File::from(file);
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0)).unwrap();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

fn parse(mut rest: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut fields = BTreeMap::new();
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| *byte == b'\n').expect("a field ends with a newline");
        let (line, after) = (&rest[..end], &rest[end + 1..]);
        let (name, value, after) = match line.iter().position(|byte| *byte == b'=') {
            Some(equals) => (&line[..equals], &line[equals + 1..], after),
            None => {
                let (length, after) = after.split_at(8);
                let length = usize::try_from(u64::from_le_bytes(length.try_into().unwrap())).unwrap();
                assert_eq!(after[length], b'\n');
                (line, &after[..length], &after[length + 1..])
            }
        };
        rest = after;
        let name = String::from_utf8(name.to_vec()).unwrap();
        // Others are thrown away; those that begin with an underscore belong to journald.
        assert!(name.len() <= 64 && name.starts_with(|c: char| c.is_ascii_uppercase()), "{name}");
        assert!(name.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_'), "{name}");
        assert_eq!(fields.insert(name, value.to_vec()), None);
    }
    fields
}
