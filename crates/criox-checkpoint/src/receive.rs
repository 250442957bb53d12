//! Takes files from elsewhere into a directory of ours: the same rules for archives and for directories.
//!
//! Regular files and directories only, each with a name that we know, each once; made new, by descriptor, with modes of
//! our own. Nothing is followed, nothing that came is ever opened before it is known to be a regular file (hardening K4,
//! K5).

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use criox_sys::durable::PathError;
use criox_sys::inroot::Root;
use rustix::fs::{Dir, Mode, OFlags};

use crate::cancel::Cancel;
use crate::error::Error;
use crate::intake::Limits;
use crate::names::{self, Place};
use crate::space::Watch;

/// What kinds of files can come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Incoming {
    Regular,
    Directory,
    /// Anything else, by its name.
    Other(&'static str),
}

/// What becomes of a file.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// It is made here: the open file, and where it is.
    Take(File, PathBuf),
    /// It is a directory, which is there now, or something that is passed over.
    Done,
}

/// A directory that is being filled.
#[derive(Debug)]
pub(crate) struct Receiver<'a> {
    into: &'a Path,
    root: Root,
    images: Option<OwnedFd>,
    limits: &'a Limits,
    space: Watch<'a>,
    pub(crate) cancel: &'a Cancel,
    seen: BTreeSet<String>,
    entries: u64,
    bytes: u64,
}

impl<'a> Receiver<'a> {
    /// # Errors
    /// What opening `into` answered; AlreadyExists if it isn't empty.
    pub(crate) fn new(into: &'a Path, limits: &'a Limits, cancel: &'a Cancel) -> Result<Self, Error> {
        let root = Root::open(into)?;
        let failed = |e| PathError::new("list", into, e);
        let fd = root.open_at(Path::new("."), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
        for entry in Dir::new(fd).map_err(failed)? {
            if !matches!(entry.map_err(failed)?.file_name().to_bytes(), b"." | b"..") {
                return Err(PathError::new("fill", into, rustix::io::Errno::NOTEMPTY).into());
            }
        }
        Ok(Self {
            into,
            root,
            images: None,
            limits,
            space: Watch::new(into, limits.reserve_bytes),
            cancel,
            seen: BTreeSet::new(),
            entries: 0,
            bytes: 0,
        })
    }

    /// Decides about a file of `size` bytes, and makes what has to be made.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::NoSpace`], [`Error::Cancelled`]; what making it answered.
    pub(crate) fn decide(&mut self, name: &[u8], kind: Incoming, size: u64) -> Result<Verdict, Error> {
        self.cancel.check("take a checkpoint in")?;
        let shown = String::from_utf8_lossy(name).into_owned();
        let refused = |why: String| Err(Error::refused(shown.clone(), why));
        self.entries += 1;
        if self.entries > self.limits.max_entries {
            return refused(format!("more than {} entries", self.limits.max_entries));
        }
        let Some(parts) = parts(name) else { return refused("its name leads out or is no text".into()) };
        let Some(place) = names::place(&parts) else {
            return refused("a checkpoint has no file of this name".into());
        };
        match (place, kind) {
            (_, Incoming::Other(what)) => {
                return refused(format!("{what}; only regular files and directories are taken"));
            }
            (Place::Top | Place::Images, Incoming::Regular) => {
                return refused("it must be a directory".into());
            }
            (Place::File, Incoming::Directory) => return refused("it must be a regular file".into()),
            _ => {}
        }
        let key = parts.join("/");
        // Directories may come again, and what is passed over does no harm twice.
        if kind == Incoming::Regular && place == Place::File && !self.seen.insert(key) {
            return refused("it is there twice".into());
        }
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > self.limits.max_bytes {
            return refused(format!("files of more than {} bytes", self.limits.max_bytes));
        }
        match (place, parts.as_slice()) {
            (Place::Top | Place::Foreign, _) => Ok(Verdict::Done),
            (Place::Images, _) => self.images_dir().map(|_| Verdict::Done),
            (Place::File, [file]) => {
                self.space.count(size)?;
                self.make(None, file)
            }
            (Place::File, [.., image]) => {
                self.space.count(size)?;
                self.images_dir()?;
                self.make(self.images.as_ref(), image)
            }
            (Place::File, []) => refused("it has no name".into()),
        }
    }

    fn make(&self, dir: Option<&OwnedFd>, name: &str) -> Result<Verdict, Error> {
        let shown = match dir {
            Some(_) => self.into.join(names::IMAGES).join(name),
            None => self.into.join(name),
        };
        let dir = dir.map_or_else(|| self.root.as_fd(), |dir| dir.as_fd());
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o600))
            .map_err(|e| PathError::new("create", &shown, e))?;
        Ok(Verdict::Take(File::from(file), shown))
    }

    fn images_dir(&mut self) -> Result<BorrowedFd<'_>, Error> {
        if self.images.is_none() {
            self.images = Some(self.root.mkdir_all(Path::new(names::IMAGES), 0o700)?);
        }
        match &self.images {
            Some(fd) => Ok(fd.as_fd()),
            None => Err(Error::refused(names::IMAGES, "missing")),
        }
    }
}

/// The components of a relative name; `None` for one that is absolute, leads up, or is no text. `./` in front and a
/// slash at the end are usual.
fn parts(name: &[u8]) -> Option<Vec<&str>> {
    let name = std::str::from_utf8(name).ok()?;
    if name.is_empty() || name.len() > 4096 || name.starts_with('/') || name.contains('\0') {
        return None;
    }
    let parts: Vec<&str> = name.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    (!parts.contains(&"..")).then_some(parts)
}

/// Opens the entry `name` of a directory if it is a regular file, without opening anything else: not even for a moment
/// a FIFO, a device or what a link points to.
///
/// # Errors
/// What the kernel answered; `None` for another kind of file.
pub(crate) fn open_regular(dir: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<Option<File>> {
    use std::os::fd::AsRawFd as _;
    let entry = criox_sys::inroot::open_entry(dir, name)?;
    let stat = rustix::fs::fstat(&entry)?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::RegularFile {
        return Ok(None);
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let path = format!("/proc/self/fd/{}", entry.as_raw_fd());
    Ok(Some(File::from(rustix::fs::openat(rustix::fs::CWD, path, flags, Mode::empty())?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_relative_and_stay_inside() {
        assert_eq!(parts(b"./checkpoint//core-1.img"), Some(vec!["checkpoint", "core-1.img"]));
        assert_eq!(parts(b"./"), Some(vec![]));
        for bad in [&b"/etc/passwd"[..], b"..", b"checkpoint/../config.dump", b"a\0b", b"\xff", b""] {
            assert_eq!(parts(bad), None, "{}", String::from_utf8_lossy(bad));
        }
    }
}
