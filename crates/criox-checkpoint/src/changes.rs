//! What a container changed in its root file system: `rootfs-diff.tar` and `deleted.files`.
//!
//! Overlay's own directory says *where* something changed, the mounted root says *what* is there: so redirected
//! directories, files of which only the metadata was copied up, and whatever overlay may invent, need no knowledge of
//! their form. A directory that hides the one below it is told as everything that is in it, and everything that the lower
//! one has besides as deleted; so a reader that removes first and one that removes last get the same.
//!
//! The container's processes are frozen meanwhile. Still nothing of theirs is followed, and only regular files are opened.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use criox_store::owners;
use criox_store::tar::{Entry, Extent, Kind};
use criox_sys::durable::PathError;
use criox_sys::idmap::IdRange;
use criox_sys::inroot::{self, FileTime, Root};
use criox_sys::xattr;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, SeekFrom, Stat};
use rustix::io::Errno;

use crate::cancel::Cancel;
use crate::error::Error;
use crate::metadata;
use crate::names;
use crate::receive::open_regular;
use crate::restore::MAX_PATHS;
use crate::space::Watch;
use crate::tar_writer::TarWriter;

/// Most extents of a sparse file; what follows is written as one. Their map, of two numbers each, has to stay below the
/// mebibyte that readers of ours take, whatever the numbers.
pub(crate) const MAX_EXTENTS: usize = 24_000;
/// Most members, as a reader of ours takes them ([`criox_store::UnpackLimits`]).
const MAX_ENTRIES: u64 = if cfg!(test) { 500 } else { 2_000_000 };
/// Bytes of the names that are kept in memory: those of directories that are being looked at, and the first ones of files
/// with several. A container may make as many as its quota lets it.
const MAX_NAMES: usize = if cfg!(test) { 64 << 10 } else { 128 << 20 };
/// What a name costs beside its bytes, about.
const NAME_COST: usize = 64;
/// Overlay's marks of a directory that hides what is below it, and of one that shows what is below another.
const OPAQUE: &str = "trusted.overlay.opaque";
const REDIRECT: &str = "trusted.overlay.redirect";

/// Where a container's changes are found ([`criox_store::Store::root_dirs`]).
#[derive(Debug, Clone, Copy)]
pub struct RootChanges<'a> {
    /// Overlay's upper directory.
    pub upper: &'a Path,
    /// Its lower ones, top first.
    pub lowers: &'a [PathBuf],
    /// The root as it is mounted.
    pub merged: &'a Path,
    /// The users of the container's user namespace, empty without one: owners are told as the container sees them.
    pub users: &'a [IdRange],
    /// Its groups.
    pub groups: &'a [IdRange],
    /// The places where something is mounted in the container: what lies below them isn't the container's.
    pub skip: &'a [PathBuf],
    /// Bytes that stay free.
    pub reserve: u64,
}

/// What was found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changes {
    /// Members of `rootfs-diff.tar`.
    pub entries: u64,
    /// Its length in bytes; 0 when nothing changed and there is none.
    pub bytes: u64,
    /// Paths in `deleted.files`.
    pub deleted: u64,
}

impl RootChanges<'_> {
    /// Writes `rootfs-diff.tar` and `deleted.files` into the capture `dir`, each only if it has something to tell.
    ///
    /// # Errors
    /// [`Error::NoSpace`], [`Error::Cancelled`]; what reading or writing answered. The files may be there in part then.
    pub fn write(&self, dir: &Path, cancel: &Cancel) -> Result<Changes, Error> {
        let path = dir.join(names::ROOT_DIFF);
        let file = rustix::fs::openat(
            rustix::fs::CWD,
            &path,
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::from_raw_mode(0o600),
        );
        let file = File::from(file.map_err(|e| PathError::new("create", &path, e))?);
        let mut walk =
            Walk::new(self, TarWriter::new(&file, &path, cancel), Watch::new(dir, self.reserve), cancel)?;
        walk.run()?;
        let Walk { tar, deleted, entries, .. } = walk;
        let mut changes = Changes { entries, bytes: 0, deleted: deleted.len() as u64 };
        if entries > 0 {
            changes.bytes = tar.finish()?;
        } else {
            std::fs::remove_file(&path).map_err(|e| PathError::new("remove", &path, e))?;
        }
        if !deleted.is_empty() {
            let list: Vec<String> = deleted
                .iter()
                .map(|path| path.to_str().map(|path| format!("/{path}")))
                .collect::<Option<_>>()
                .ok_or_else(|| {
                    Error::refused(names::DELETED_FILES, "a deleted path is no text, and can't be told")
                })?;
            metadata::write_json(dir, names::DELETED_FILES, &list)?;
        }
        Ok(changes)
    }
}

/// A directory that is being looked at.
#[derive(Debug)]
struct Level {
    /// Relative to the root; empty for the root itself.
    path: PathBuf,
    /// It hides what is below: all that the merged root has there is told.
    whole: bool,
    /// What is still to be told of it, and what the names cost.
    names: std::collections::btree_set::IntoIter<OsString>,
    cost: usize,
    /// The merged directory. Closed while one inside it is looked at, for paths can be very deep.
    merged: Option<OwnedFd>,
}

struct Walk<'a> {
    roots: &'a RootChanges<'a>,
    upper: Root,
    merged: Root,
    lowers: Vec<Root>,
    skip: BTreeSet<PathBuf>,
    tar: TarWriter<'a>,
    space: Watch<'a>,
    cancel: &'a Cancel,
    /// The first name of each file with several, by its inode.
    links: HashMap<(u64, u64), Vec<u8>>,
    deleted: Vec<PathBuf>,
    entries: u64,
    /// Of [`MAX_NAMES`].
    held: usize,
}

impl<'a> Walk<'a> {
    fn new(
        roots: &'a RootChanges<'a>,
        tar: TarWriter<'a>,
        space: Watch<'a>,
        cancel: &'a Cancel,
    ) -> Result<Self, Error> {
        let merged = Root::open(roots.merged)?;
        Ok(Self {
            roots,
            upper: Root::open(roots.upper)?,
            lowers: roots.lowers.iter().map(|lower| Root::open(lower)).collect::<Result<_, _>>()?,
            skip: roots.skip.iter().map(|path| real_path(&merged, path)).collect(),
            merged,
            tar,
            space,
            cancel,
            links: HashMap::new(),
            deleted: Vec::new(),
            entries: 0,
            held: 0,
        })
    }

    /// A directory, then at once what is in it, in the order of names: readers set the times of a directory when they
    /// have left it.
    fn run(&mut self) -> Result<(), Error> {
        let mut levels = vec![self.level(PathBuf::new(), false)?];
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.names.next() else {
                self.held = self.held.saturating_sub(level.cost);
                levels.pop();
                continue;
            };
            let merged = match level.merged.take() {
                Some(merged) => merged,
                None => self.open(&self.merged, &level.path)?,
            };
            let inner = self.entry(level, merged.as_fd(), &name)?;
            if let Some(inner) = inner {
                levels.push(inner);
            } else {
                level.merged = Some(merged);
            }
        }
        Ok(())
    }

    fn level(&mut self, path: PathBuf, whole: bool) -> Result<Level, Error> {
        self.cancel.check("look for changes of a root file system")?;
        let merged = self.open(&self.merged, &path)?;
        let before = self.held;
        let names = match whole {
            true => self.list(merged.as_fd(), &path)?,
            false => {
                let upper = self.open(&self.upper, &path)?;
                self.list(upper.as_fd(), &path)?
            }
        };
        let cost = self.held - before;
        if whole {
            self.hidden(&path, &names)?;
        }
        Ok(Level { path, whole, names: names.into_iter(), cost, merged: Some(merged) })
    }

    /// The names in a directory, which count as held.
    fn list(&mut self, dir: BorrowedFd<'_>, path: &Path) -> Result<BTreeSet<OsString>, Error> {
        let mut names = BTreeSet::new();
        let failed = |e| PathError::new("list", self.roots.merged.join(path), e);
        for entry in Dir::read_from(dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") {
                hold(&mut self.held, name, path)?;
                names.insert(OsString::from_vec(name.to_vec()));
            }
        }
        Ok(names)
    }

    fn open(&self, root: &Root, path: &Path) -> Result<OwnedFd, Error> {
        beneath(root, path).map_err(|e| self.failed("open directory", path, e))
    }

    /// What the lower directories show at `path` and the merged one doesn't, is deleted.
    fn hidden(&mut self, path: &Path, there: &BTreeSet<OsString>) -> Result<(), Error> {
        let before = self.held;
        let (mut known, mut gone) = (there.clone(), Vec::new());
        for at in 0..self.lowers.len() {
            // A layer without the directory hides nothing. (With something else there it does, but what it hides is
            // deleted then in any case: to delete what isn't there does no harm.)
            let Ok(dir) = beneath(&self.lowers[at], path) else { continue };
            for name in self.list(dir.as_fd(), path)? {
                let stat = rustix::fs::statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|e| self.failed("look at", path, e))?;
                let is_whiteout =
                    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0;
                if known.insert(name.clone()) && !is_whiteout {
                    gone.push(name);
                }
            }
            if self.hides(dir.as_fd(), path)? {
                break;
            }
        }
        self.held = before;
        for name in gone {
            self.delete(path.join(name))?;
        }
        Ok(())
    }

    fn delete(&mut self, path: PathBuf) -> Result<(), Error> {
        if self.skip.contains(&path) {
            return Ok(());
        }
        if self.deleted.len() >= MAX_PATHS {
            return Err(Error::refused(names::DELETED_FILES, format!("more than {MAX_PATHS} deleted paths")));
        }
        self.deleted.push(path);
        Ok(())
    }

    /// Tells one entry of a directory; the level below, if it is one itself.
    fn entry(
        &mut self,
        parent: &Level,
        merged: BorrowedFd<'_>,
        name: &OsStr,
    ) -> Result<Option<Level>, Error> {
        let path = parent.path.join(name);
        if self.skip.contains(&path) {
            return Ok(None);
        }
        let node = match inroot::open_entry(merged, name) {
            Ok(node) => node,
            // Overlay's mark of something removed, which the merged root doesn't show.
            Err(Errno::NOENT) => return self.delete(path).map(|()| None),
            Err(e) => return Err(self.failed("open", &path, e)),
        };
        let stat = rustix::fs::fstat(&node).map_err(|e| self.failed("look at", &path, e))?;
        let Some(kind) = kind(&stat) else { return Ok(None) };
        self.cancel.check("look for changes of a root file system")?;
        let mut entry = self.describe(&path, &stat, kind, node.as_fd())?;
        let content =
            if kind == Kind::Regular { self.content(&mut entry, &stat, merged, name)? } else { None };
        if self.entries >= MAX_ENTRIES {
            return Err(Error::refused(names::ROOT_DIFF, format!("more than {MAX_ENTRIES} changed files")));
        }
        self.space.count(entry.stored)?;
        let shown = self.roots.merged.join(&path);
        self.tar.member(&entry, content.as_ref().map(|file| (file, shown.as_path())))?;
        self.entries += 1;
        if kind != Kind::Directory {
            return Ok(None);
        }
        let whole = parent.whole || self.hides(self.open(&self.upper, &path)?.as_fd(), &path)?;
        self.level(path, whole).map(Some)
    }

    /// Whether a directory of a layer is marked as one that doesn't merge with those of the same path below it.
    fn hides(&self, dir: BorrowedFd<'_>, path: &Path) -> Result<bool, Error> {
        let mark = |name: &str| {
            let failed =
                |e| PathError::new("read an attribute of overlay's from", self.roots.merged.join(path), e);
            xattr::get(dir, name.as_ref()).map_err(failed)
        };
        Ok(mark(OPAQUE)?.is_some_and(|value| value == b"y") || mark(REDIRECT)?.is_some())
    }

    /// The content of a regular file: none if it is another name of one that was told.
    fn content(
        &mut self,
        entry: &mut Entry,
        stat: &Stat,
        dir: BorrowedFd<'_>,
        name: &OsStr,
    ) -> Result<Option<File>, Error> {
        let shown = || self.roots.merged.join(OsStr::from_bytes(&entry.name));
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                entry.kind = Kind::HardLink;
                entry.link.clone_from(first);
                (entry.stored, entry.size) = (0, 0);
                entry.xattrs.clear();
                return Ok(None);
            }
            hold(&mut self.held, &entry.name, Path::new(OsStr::from_bytes(&entry.name)))?;
            self.links.insert((stat.st_dev, stat.st_ino), entry.name.clone());
        }
        let file = open_regular(dir, name).map_err(|e| PathError::new("open", shown(), e))?;
        let file = file.ok_or_else(|| PathError::new("open", shown(), Errno::STALE))?;
        let blocks = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
        if blocks < entry.size {
            let extents =
                extents(&file, entry.size).map_err(|e| PathError::new("find holes of", shown(), e))?;
            if extents.iter().map(|extent| extent.length).sum::<u64>() < entry.size {
                entry.stored = extents.iter().map(|extent| extent.length).sum();
                entry.sparse = Some(extents);
            }
        }
        Ok(Some(file))
    }

    fn describe(&self, path: &Path, stat: &Stat, kind: Kind, node: BorrowedFd<'_>) -> Result<Entry, Error> {
        let mut name = path.as_os_str().as_bytes().to_vec();
        if kind == Kind::Directory {
            name.push(b'/');
        }
        let link = match kind {
            Kind::Symlink => rustix::fs::readlinkat(node, "", Vec::new())
                .map_err(|e| self.failed("read link", path, e))?
                .into_bytes(),
            _ => Vec::new(),
        };
        let size = match kind {
            Kind::Regular => u64::try_from(stat.st_size).unwrap_or(0),
            _ => 0,
        };
        let (users, groups) = (self.roots.users, self.roots.groups);
        let mut xattrs = Vec::new();
        let failed = |e| PathError::new("read attributes of", self.roots.merged.join(path), e);
        let mut known = xattr::list(node).map_err(failed)?;
        known.sort_unstable();
        for attribute in known.into_iter().filter(|name| owners::is_kept(name.as_bytes())) {
            if let Some(value) = xattr::get(node, &attribute).map_err(failed)? {
                let attribute = attribute.into_vec();
                let value =
                    owners::attribute(owners::To::Inside, &attribute, &value, users, groups).into_owned();
                xattrs.push((attribute, value));
            }
        }
        let is_device = matches!(kind, Kind::CharDevice | Kind::BlockDevice);
        let device = if is_device {
            (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev))
        } else {
            (0, 0)
        };
        Ok(Entry {
            name,
            kind,
            link,
            mode: stat.st_mode & 0o7777,
            uid: owners::inside_of(users, stat.st_uid),
            gid: owners::inside_of(groups, stat.st_gid),
            stored: size,
            size,
            mtime: FileTime {
                seconds: stat.st_mtime,
                nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
            },
            atime: None,
            device,
            xattrs,
            sparse: None,
        })
    }

    fn failed(&self, op: &'static str, path: &Path, errno: Errno) -> Error {
        PathError::new(op, self.roots.merged.join(path), errno).into()
    }
}

/// What tar can hold. A socket is made anew by whoever listens on it.
fn kind(stat: &Stat) -> Option<Kind> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Some(Kind::Regular),
        FileType::Directory => Some(Kind::Directory),
        FileType::Symlink => Some(Kind::Symlink),
        FileType::CharacterDevice => Some(Kind::CharDevice),
        FileType::BlockDevice => Some(Kind::BlockDevice),
        FileType::Fifo => Some(Kind::Fifo),
        _ => None,
    }
}

/// Opens a directory by its real path: one that is a link, or behind one, is not the one that is meant.
fn beneath(root: &Root, path: &Path) -> rustix::io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(root.as_fd(), path, flags, Mode::empty(), how)
}

/// Counts a name that is kept.
fn hold(held: &mut usize, name: &[u8], at: &Path) -> Result<(), Error> {
    *held = held.saturating_add(name.len() + NAME_COST);
    if *held > MAX_NAMES {
        let why = format!("more than {MAX_NAMES} bytes of names would have to be kept, at {}", at.display());
        return Err(Error::refused(names::ROOT_DIFF, why));
    }
    Ok(())
}

/// The path of a mount's destination without links in it, relative to the root; as it is if nothing is there.
pub(crate) fn real_path(merged: &Root, path: &Path) -> PathBuf {
    let plain = || path.strip_prefix("/").unwrap_or(path).to_owned();
    let Ok(node) = merged.open_at(path, OFlags::PATH, Mode::empty()) else { return plain() };
    let read = |fd: BorrowedFd<'_>| std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    match (read(merged.as_fd()), read(node.as_fd())) {
        (Ok(root), Ok(node)) => node.strip_prefix(root).map_or_else(|_| plain(), Path::to_owned),
        _ => plain(),
    }
}

/// The parts of a file that have data.
fn extents(file: &File, size: u64) -> rustix::io::Result<Vec<Extent>> {
    let mut extents = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(e) => return Err(e),
        };
        let end = match extents.len() + 1 < MAX_EXTENTS {
            true => rustix::fs::seek(file, SeekFrom::Hole(start))?.min(size),
            false => size,
        };
        if start >= end {
            break;
        }
        extents.push(Extent { offset: start, length: end - start });
        at = end;
    }
    if at < size {
        // GNU tar takes the end of the last extent for the end of the file.
        extents.push(Extent { offset: size, length: 0 });
    }
    rustix::fs::seek(file, SeekFrom::Start(0))?;
    Ok(extents)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::OpenOptionsExt as _;

    use super::*;

    /// What a container made in an empty image, without an overlay: all of it is told.
    fn capture(made: impl Fn(&Path)) -> Result<Changes, String> {
        let (root, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        made(root.path());
        let changes = RootChanges {
            upper: root.path(),
            lowers: &[],
            merged: root.path(),
            users: &[],
            groups: &[],
            skip: &[],
            reserve: 0,
        };
        changes.write(dir.path(), &Cancel::new()).map_err(|error| error.to_string())
    }

    fn touch(path: &Path) {
        drop(std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).unwrap());
    }

    /// As many files as cost all that may be kept, a few more than half of it in one directory.
    fn fill(root: &Path, dirs: usize) {
        for dir in 0..dirs {
            let dir = root.join(format!("d{dir}"));
            std::fs::create_dir(&dir).unwrap();
            for file in 0..120 {
                touch(&dir.join(format!("{file}{}", "x".repeat(220))));
            }
        }
    }

    #[test]
    fn names_count_as_long_as_they_are_kept() {
        // One after the other is no trouble, however many there are.
        let changes = capture(|root| fill(root, 4)).unwrap();
        assert_eq!(changes.entries, 4 * 121);
        let deep = |root: &Path| {
            fill(root, 1);
            let inner = root.join("d0/a");
            std::fs::create_dir(&inner).unwrap();
            fill(&inner, 1);
        };
        assert!(capture(deep).unwrap_err().contains("bytes of names"));
    }

    #[test]
    fn names_of_files_with_several_are_kept_to_the_end() {
        let linked = |root: &Path| {
            for dir in 0..3 {
                let dir = root.join(format!("d{dir}"));
                std::fs::create_dir(&dir).unwrap();
                for file in 0..70 {
                    let name = format!("{file}{}", "x".repeat(200));
                    touch(&dir.join(&name));
                    std::fs::hard_link(dir.join(&name), dir.join(format!("l{file}"))).unwrap();
                }
            }
        };
        assert!(capture(linked).unwrap_err().contains("bytes of names"));
    }

    #[test]
    fn more_than_a_reader_takes_is_not_written() {
        let error = capture(|root| {
            for file in 0..=MAX_ENTRIES {
                touch(&root.join(file.to_string()));
            }
        });
        assert!(error.unwrap_err().contains("more than 500 changed files"));
    }
}
