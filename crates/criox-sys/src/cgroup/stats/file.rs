//! A file that stays open, and how many do.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// What all files of this kind in the process may hold open together.
static LIMIT: AtomicUsize = AtomicUsize::new(256);
static KEPT: AtomicUsize = AtomicUsize::new(0);

/// Bounds how many descriptors of cgroup files the process keeps; beyond it each reading opens and closes.
pub fn set_descriptor_limit(descriptors: usize) {
    LIMIT.store(descriptors, Ordering::Relaxed);
}

/// How many descriptors are kept at this moment.
pub fn kept_descriptors() -> usize {
    KEPT.load(Ordering::Relaxed)
}

/// A buffer for readings, used again for each.
#[derive(Debug)]
pub struct Scratch(Vec<u8>);

/// The longest file that is read; statistics of a hundred devices take a tenth of it.
const LONGEST: usize = 1 << 20;

impl Default for Scratch {
    fn default() -> Self {
        // memory.stat of v2 has some three kilobytes.
        Self(vec![0; 8 << 10])
    }
}

impl Scratch {
    /// Reads a file from its start; its length. A file that fills the buffer is read again into a larger one: what the
    /// kernel makes up for each reading has no second part.
    pub(crate) fn fill(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        loop {
            let length = rustix::io::pread(fd, self.0.as_mut_slice(), 0)?;
            if length < self.0.len() || length >= LONGEST {
                return Ok(length);
            }
            self.0.resize(length * 2, 0);
        }
    }

    /// What was read last.
    pub(crate) fn bytes(&self, length: usize) -> &[u8] {
        &self.0[..length]
    }
}

/// A file of a cgroup. It is opened at its first reading, and stays open if there is room.
#[derive(Debug)]
pub(super) struct File {
    /// None: there is no such controller.
    path: Option<PathBuf>,
    open: OnceLock<Option<Kept>>,
}

/// A counted descriptor.
#[derive(Debug)]
struct Kept(OwnedFd);

impl Drop for Kept {
    fn drop(&mut self) {
        KEPT.fetch_sub(1, Ordering::Relaxed);
    }
}

impl File {
    pub(super) fn new(path: Option<PathBuf>) -> Self {
        Self { path, open: OnceLock::new() }
    }

    /// The bytes, or none when there is no such file, or no longer.
    pub(super) fn read<'a>(&self, scratch: &'a mut Scratch) -> Option<&'a [u8]> {
        let length = self.fill(scratch)?;
        Some(scratch.bytes(length))
    }

    fn fill(&self, scratch: &mut Scratch) -> Option<usize> {
        let path = self.path.as_deref()?;
        if let Some(kept) = self.open.get() {
            return scratch.fill(kept.as_ref()?.0.as_fd()).ok();
        }
        match open(path) {
            Ok(fd) => {
                let length = scratch.fill(fd.as_fd()).ok()?;
                let room = KEPT.fetch_add(1, Ordering::Relaxed) < LIMIT.load(Ordering::Relaxed);
                let kept = Kept(fd);
                // Of two readers that opened it at once the second one's is closed again.
                if room {
                    drop(self.open.set(Some(kept)));
                }
                Some(length)
            }
            // Not supported: pressure is not measured.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::OPNOTSUPP) => {
                drop(self.open.set(None));
                None
            }
            Err(_) => None,
        }
    }
}

fn open(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Opens, reads and closes.
pub(super) fn read_once<'a>(path: &Path, scratch: &'a mut Scratch) -> Option<&'a [u8]> {
    let length = scratch.fill(open(path).ok()?.as_fd()).ok()?;
    Some(scratch.bytes(length))
}
