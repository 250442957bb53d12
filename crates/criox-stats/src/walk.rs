//! One walk through a writable layer: what it holds, in bytes of blocks and in inodes.
//!
//! The layer is hostile: the container changes it during the walk. Everything is opened by descriptor from the directory
//! above it, no link is followed, no other file system entered. Memory and descriptors are bounded whatever the tree's
//! shape: of a directory a batch of names is kept, of a deep path only the lowest levels stay open, and the way back up
//! is `..`, believed when it leads to the directory that the walk came from.

use std::collections::HashSet;
use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, SeekFrom, Stat};

/// Names of subdirectories that are kept of one directory.
const BATCH: usize = 64;
/// Levels of a path that stay open.
const OPEN_LEVELS: usize = 48;
/// Levels of a path that are followed. A deeper tree, which nothing but malice makes, is counted down to here.
const DEEPEST: usize = 100_000;
/// Files with several names that are told apart; of others each name counts for its part.
const LINKED: usize = 1 << 16;
/// Entries between two pauses, and their length: a walk takes at most a part of one core.
const STRIDE: u32 = 512;
const PAUSE: Duration = Duration::from_millis(4);
/// `st_blocks` counts these, whatever the file system's own are.
const BLOCK: u64 = 512;

/// What a layer holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figure {
    /// Bytes of allocated blocks; a file with several names counts once.
    pub bytes: u64,
    /// Inodes, the top directory's included.
    pub inodes: u64,
}

/// How a walk ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Walked {
    /// Everything was seen.
    Whole(Figure),
    /// The walk was cancelled, or lost its way in a tree that changed under it: there is at least this.
    Part(Figure),
}

/// Walks below `root` until `cancelled` says so.
///
/// # Errors
/// The top directory can't be opened; what vanishes or can't be opened below it is left out.
pub(crate) fn walk(root: &Path, cancelled: &dyn Fn() -> bool) -> io::Result<Walked> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::open(root, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&fd)?;
    let mut walk = Walk {
        device: stat.st_dev,
        linked: HashSet::new(),
        parts: 0,
        figure: Figure::default(),
        steps: 0,
        cancelled,
    };
    walk.count(&stat);
    let whole = walk.below(Level::new(fd, &stat));
    let figure = Figure { inodes: walk.figure.inodes + (walk.parts >> PART), ..walk.figure };
    Ok(if whole { Walked::Whole(figure) } else { Walked::Part(figure) })
}

/// Parts of inodes are counted in `1 << PART`ths.
const PART: u32 = 20;

struct Walk<'a> {
    device: u64,
    linked: HashSet<u64>,
    parts: u64,
    figure: Figure,
    steps: u32,
    cancelled: &'a dyn Fn() -> bool,
}

/// A directory on the path from the top to where the walk is.
struct Level {
    /// None: closed, for deeper levels need the descriptor.
    fd: Option<OwnedFd>,
    inode: u64,
    /// Where reading goes on.
    cookie: u64,
    read: bool,
    /// Subdirectories that were seen and not entered.
    pending: Vec<CString>,
}

impl Level {
    fn new(fd: OwnedFd, stat: &Stat) -> Self {
        Self { fd: Some(fd), inode: stat.st_ino, cookie: 0, read: false, pending: Vec::new() }
    }
}

impl Walk<'_> {
    /// Whether all was seen.
    fn below(&mut self, top: Level) -> bool {
        let mut whole = true;
        let mut path = vec![top];
        while let Some(level) = path.last_mut() {
            if (self.cancelled)() {
                return false;
            }
            let Some(fd) = &level.fd else { return false };
            if let Some(name) = level.pending.pop() {
                match self.enter(fd, &name) {
                    Some(_) if path.len() >= DEEPEST => whole = false,
                    Some(next) => {
                        path.push(next);
                        if let Some(above) = path.len().checked_sub(OPEN_LEVELS + 1) {
                            path[above].fd = None;
                        }
                    }
                    None => {}
                }
            } else if level.read {
                let done = path.pop();
                if let (Some(done), Some(above)) = (done, path.last_mut())
                    && above.fd.is_none()
                {
                    above.fd = done.fd.as_ref().and_then(|fd| self.back(fd, above.inode));
                }
            } else {
                self.read(level);
            }
        }
        whole
    }

    /// Opens a subdirectory; none if it has gone or become something else.
    fn enter(&self, above: &OwnedFd, name: &CString) -> Option<Level> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(above, name, flags, Mode::empty()).ok()?;
        let stat = rustix::fs::fstat(&fd).ok()?;
        (stat.st_dev == self.device).then(|| Level::new(fd, &stat))
    }

    /// The directory above one, if it is still the one that the walk came from.
    fn back(&self, from: &OwnedFd, inode: u64) -> Option<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(from, c"..", flags, Mode::empty()).ok()?;
        let stat = rustix::fs::fstat(&fd).ok()?;
        (stat.st_dev == self.device && stat.st_ino == inode).then_some(fd)
    }

    /// Counts entries of a directory until enough subdirectories are known, or it ends.
    fn read(&mut self, level: &mut Level) {
        let Some(fd) = &level.fd else { return };
        level.read = true;
        if rustix::fs::seek(fd, SeekFrom::Start(level.cookie)).is_err() {
            return;
        }
        let mut buffer = [MaybeUninit::<u8>::uninit(); 8 << 10];
        let mut entries = RawDir::new(fd, &mut buffer);
        while let Some(Ok(entry)) = entries.next() {
            level.cookie = entry.next_entry_cookie();
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let Ok(stat) = rustix::fs::statat(fd, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            if stat.st_dev != self.device {
                continue;
            }
            self.count(&stat);
            if self.pace() {
                return;
            }
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                level.pending.push(name.to_owned());
                if level.pending.len() >= BATCH {
                    level.read = false;
                    return;
                }
            }
        }
    }

    fn count(&mut self, stat: &Stat) {
        let bytes = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(BLOCK);
        #[allow(clippy::useless_conversion, reason = "the type of st_nlink differs between architectures")]
        let names = u64::from(stat.st_nlink);
        let several = names > 1 && FileType::from_raw_mode(stat.st_mode) != FileType::Directory;
        if several && self.linked.len() >= LINKED && !self.linked.contains(&stat.st_ino) {
            self.figure.bytes = self.figure.bytes.saturating_add(bytes / names);
            self.parts = self.parts.saturating_add((1 << PART) / names);
        } else if !several || self.linked.insert(stat.st_ino) {
            self.figure.bytes = self.figure.bytes.saturating_add(bytes);
            self.figure.inodes += 1;
        }
    }

    /// Pauses now and then. Whether the walk has been cancelled.
    fn pace(&mut self) -> bool {
        self.steps += 1;
        if self.steps < STRIDE {
            return false;
        }
        self.steps = 0;
        std::thread::sleep(PAUSE);
        (self.cancelled)()
    }
}

/// Size and free room of the file system that layers lie on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Room {
    /// Bytes of the whole file system.
    pub bytes: u64,
    /// Inodes of the whole file system.
    pub inodes: u64,
    /// Inodes that are free.
    pub inodes_free: u64,
}

/// # Errors
/// The kernel's, from statfs(2).
pub(crate) fn room(path: &Path) -> io::Result<Room> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(Room {
        bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        inodes: stat.f_files,
        inodes_free: stat.f_ffree,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, symlink};

    use super::*;

    #[expect(clippy::disallowed_methods, reason = "files of the test's own directory")]
    fn put(path: &Path, length: usize) {
        std::fs::write(path, vec![b'x'; length]).expect("it can be written");
    }

    fn whole(root: &Path) -> Figure {
        match walk(root, &|| false).expect("the top can be opened") {
            Walked::Whole(figure) => figure,
            Walked::Part(figure) => panic!("only a part: {figure:?}"),
        }
    }

    /// The same by another way: names, recursion and everything in memory.
    fn reference(root: &Path, seen: &mut HashSet<u64>) -> Figure {
        let metadata = std::fs::symlink_metadata(root).expect("it is there");
        let mut figure = Figure::default();
        if seen.insert(metadata.ino()) {
            figure = Figure { bytes: metadata.blocks() * 512, inodes: 1 };
        }
        if metadata.is_dir() {
            for entry in std::fs::read_dir(root).expect("a directory").flatten() {
                let below = reference(&entry.path(), seen);
                figure = Figure { bytes: figure.bytes + below.bytes, inodes: figure.inodes + below.inodes };
            }
        }
        figure
    }

    #[test]
    fn blocks_and_inodes_are_counted_and_links_once() {
        let root = tempfile::tempdir().expect("a temporary directory");
        put(&root.path().join("a"), 100_000);
        std::fs::create_dir_all(root.path().join("d/e")).expect("it can be made");
        put(&root.path().join("d/e/b"), 10);
        std::fs::hard_link(root.path().join("a"), root.path().join("d/again")).expect("a link");
        symlink("/", root.path().join("d/out")).expect("a link");
        let figure = whole(root.path());
        assert_eq!(figure, reference(root.path(), &mut HashSet::new()));
        // Top, a, d, e, b, out.
        assert_eq!(figure.inodes, 6);
        assert!(figure.bytes >= 100_000);
    }

    #[test]
    fn wide_and_deep_trees_are_counted_whole() {
        let root = tempfile::tempdir().expect("a temporary directory");
        for number in 0..BATCH * 3 + 7 {
            let directory = root.path().join(format!("wide-{number}"));
            std::fs::create_dir(&directory).expect("it can be made");
            put(&directory.join("file"), number);
        }
        let mut deep = root.path().to_owned();
        for level in 0..OPEN_LEVELS * 3 {
            deep.push("d");
            std::fs::create_dir(&deep).expect("it can be made");
            put(&deep.join("file"), level);
            std::fs::create_dir(deep.join("aside")).expect("it can be made");
        }
        assert_eq!(whole(root.path()), reference(root.path(), &mut HashSet::new()));
    }

    #[test]
    fn a_path_that_no_call_could_name_is_counted() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let name = "n".repeat(200);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut fd = rustix::fs::open(root.path(), flags, Mode::empty()).expect("the top");
        let levels = 100;
        for _ in 0..levels {
            rustix::fs::mkdirat(&fd, name.as_str(), Mode::RWXU).expect("it can be made");
            fd = rustix::fs::openat(&fd, name.as_str(), flags, Mode::empty()).expect("it was made");
        }
        assert_eq!(whole(root.path()).inodes, levels + 1);
        // By hand, for the temporary directory's own removal goes by path.
        for _ in 0..levels {
            fd = rustix::fs::openat(&fd, "..", flags, Mode::empty()).expect("the one above");
            rustix::fs::unlinkat(&fd, name.as_str(), AtFlags::REMOVEDIR).expect("it is empty");
        }
    }

    #[test]
    fn a_cancelled_walk_is_a_part() {
        let root = tempfile::tempdir().expect("a temporary directory");
        put(&root.path().join("a"), 1);
        let walked = walk(root.path(), &|| true).expect("the top can be opened");
        assert!(matches!(walked, Walked::Part(Figure { inodes: 1, .. })), "{walked:?}");
    }

    #[test]
    fn no_directory_is_an_error() {
        let root = tempfile::tempdir().expect("a temporary directory");
        put(&root.path().join("file"), 1);
        symlink(root.path(), root.path().join("link")).expect("a link");
        for name in ["file", "link", "absent"] {
            assert!(walk(&root.path().join(name), &|| false).is_err(), "{name}");
        }
    }
}
