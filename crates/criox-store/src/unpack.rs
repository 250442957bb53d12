//! A layer's stream becomes a directory in overlay's form.
//!
//! The stream is hostile. Names are resolved by the kernel with the layer's directory as root, one parent directory
//! is kept open at a time, files are made new and changed through their descriptors only, and nothing that isn't a
//! regular file made here is ever opened. Whiteouts become 0:0 devices, opaque directories get overlay's attribute.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use criox_sys::durable::{self, PathError};
use criox_sys::idmap::IdRange;
use criox_sys::inroot::{self, FileTime, Root};
use criox_sys::xattr;
use flate2::Compression;
use flate2::write::GzEncoder;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::digest::Hasher;
use crate::error::Error;
use crate::owners::{self, To, is_kept};
use crate::stage::Unpacked;
use crate::tar::{Entry, Kind, Reader, Tap, TarError};
use crate::tarsplit::{self, Checksum};

/// Bounds on what a layer may ask for.
#[derive(Debug, Clone)]
pub struct UnpackLimits {
    /// Bytes of the uncompressed stream, and of the files that it describes (holes count).
    pub max_bytes: u64,
    /// Members.
    pub max_entries: u64,
    /// Bytes of the directories' paths together: they are kept in memory until the end.
    pub max_directory_paths: usize,
    /// Bytes that stay free on the filesystem.
    pub reserve_bytes: u64,
}

impl Default for UnpackLimits {
    /// 1 TiB, two million members, 64 MiB of paths, 64 MiB free.
    fn default() -> Self {
        Self {
            max_bytes: 1 << 40,
            max_entries: 2_000_000,
            max_directory_paths: 64 << 20,
            reserve_bytes: 64 << 20,
        }
    }
}

/// How often the free space is looked at, in bytes written.
const SPACE_CHECK: u64 = 64 << 20;
/// Names and values of one member's attributes together, the kernel's own bound.
const MAX_XATTRS: usize = 64 << 10;
/// Prefix of whiteouts, and what follows it for an opaque directory.
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const OPAQUE_ATTRIBUTE: &str = "trusted.overlay.opaque";

type Split = tarsplit::Writer<GzEncoder<BufWriter<File>>>;

/// Gets to know of each member's content, beside what a [`Tap`] gets.
pub(crate) trait Notes: Tap {
    /// A member is done: its name, and size and checksum of its content.
    fn note(&mut self, name: &[u8], size: u64, checksum: [u8; 8]) -> io::Result<()>;
}

impl Notes for Split {
    fn note(&mut self, name: &[u8], size: u64, checksum: [u8; 8]) -> io::Result<()> {
        self.file(name, size, checksum)
    }
}

/// For a stream that is not kept.
impl Notes for () {
    fn note(&mut self, _: &[u8], _: u64, _: [u8; 8]) -> io::Result<()> {
        Ok(())
    }
}

/// What a stream is laid over, and so how it is read.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Ground<'a> {
    /// A new layer's directory: whiteouts hide what is below, owners stay as they are.
    Layer,
    /// A root file system as a container sees it: a name is a name, and owners are those in the container.
    Mounted {
        /// Whom the users of the container's namespace are outside; empty without one.
        users: &'a [IdRange],
        /// The same for groups.
        groups: &'a [IdRange],
    },
}

/// Unpacks `stream` into the new directory `dest`, and writes the new file `tar_split`.
pub(crate) fn unpack(
    stream: impl Read,
    dest: &Path,
    tar_split: &Path,
    limits: &UnpackLimits,
) -> Result<Unpacked, Error> {
    std::fs::create_dir(dest).map_err(|e| PathError::new("make directory", dest, e))?;
    let split_failed = |e: io::Error| Error::from(PathError::new("write", tar_split, e));
    let file = File::options().write(true).create_new(true).open(tar_split).map_err(split_failed)?;
    let split = tarsplit::Writer::new(GzEncoder::new(BufWriter::new(file), Compression::fast()));
    let source = Source { input: stream, hasher: Hasher::sha256(), count: 0, limit: limits.max_bytes };
    let mut reader = Reader::new(source, split);
    let mut extractor = Extractor::new(Root::open(dest)?, limits, Ground::Layer);
    extractor.run(&mut reader, tar_split)?;
    let (source, split) = reader.into_parts();
    let encoder = split.finish().map_err(split_failed)?;
    encoder.finish().and_then(|mut out| out.flush()).map_err(split_failed)?;
    Ok(Unpacked {
        diff_id: source.hasher.finish(),
        size: source.count,
        entries: extractor.entries,
        uids: extractor.uids.into_iter().collect(),
        gids: extractor.gids.into_iter().collect(),
        keep_root: extractor.keep_root,
    })
}

/// Hashes and counts what is read.
struct Source<R> {
    input: R,
    hasher: Hasher,
    count: u64,
    limit: u64,
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.count += count as u64;
        if self.count > self.limit {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, LimitReached(self.limit)));
        }
        Ok(count)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("stream is longer than the limit of {0} bytes")]
pub(crate) struct LimitReached(pub(crate) u64);

fn tar_error(error: TarError, tar_split: &Path) -> Error {
    match error {
        TarError::Input(e) if e.get_ref().is_some_and(|inner| inner.is::<LimitReached>()) => {
            Error::Content(e.to_string())
        }
        TarError::Input(e) => Error::Input(e),
        TarError::Tap(e) => PathError::new("write", tar_split, e).into(),
        malformed @ TarError::Malformed { .. } => Error::Content(malformed.to_string()),
    }
}

/// Makes entries below a root.
pub(crate) struct Extractor<'a> {
    root: Root,
    limits: &'a UnpackLimits,
    ground: Ground<'a>,
    /// The directory of the last entry, by its cleaned path.
    parent: Option<(PathBuf, OwnedFd)>,
    /// Times of directories, set when nothing changes them any more.
    times: Vec<(PathBuf, u64, FileTime, FileTime)>,
    /// Bytes of their paths.
    directory_paths: usize,
    seen: HashSet<[u64; 2]>,
    hashers: [RandomState; 2],
    pub(crate) entries: u64,
    uids: BTreeSet<u32>,
    gids: BTreeSet<u32>,
    keep_root: bool,
    logical_bytes: u64,
    unchecked_bytes: u64,
}

impl<'a> Extractor<'a> {
    pub(crate) fn new(root: Root, limits: &'a UnpackLimits, ground: Ground<'a>) -> Self {
        Self {
            root,
            limits,
            ground,
            parent: None,
            times: Vec::new(),
            directory_paths: 0,
            seen: HashSet::new(),
            hashers: [RandomState::new(), RandomState::new()],
            entries: 0,
            uids: BTreeSet::new(),
            gids: BTreeSet::new(),
            keep_root: false,
            logical_bytes: 0,
            unchecked_bytes: SPACE_CHECK,
        }
    }

    /// Makes all members of a stream; `tar_split` is the tap's path, for errors.
    pub(crate) fn run<R: Read, T: Notes>(
        &mut self,
        reader: &mut Reader<R, T>,
        tar_split: &Path,
    ) -> Result<(), Error> {
        let from_tar = |e| tar_error(e, tar_split);
        while let Some(entry) = reader.next_entry().map_err(from_tar)? {
            self.entries += 1;
            if self.entries > self.limits.max_entries {
                return Err(Error::Content(format!("more than {} members", self.limits.max_entries)));
            }
            self.logical_bytes = self.logical_bytes.saturating_add(entry.size);
            if self.logical_bytes > self.limits.max_bytes {
                return Err(Error::Content(format!("files of more than {} bytes", self.limits.max_bytes)));
            }
            let path =
                clean(&entry.name).ok_or_else(|| refused(&entry, "its name leads out of the layer"))?;
            self.check_new(&entry, &path)?;
            let note = |reader: &mut Reader<R, T>, size, checksum| {
                let noted = reader.tap_mut().note(&entry.name, size, checksum);
                noted.map_err(|e| Error::from(PathError::new("write", tar_split, e)))
            };
            if entry.kind == Kind::Regular && entry.sparse.is_none() {
                let checksum =
                    self.regular(reader, &entry, &path).map_err(|e| e.into_error(&entry, tar_split))?;
                note(reader, entry.size, checksum)?;
            } else {
                // The content of a sparse file goes into the tar-split itself: its file can't reproduce it.
                note(reader, 0, [0; 8])?;
                self.special(reader, &entry, &path).map_err(|e| e.into_error(&entry, tar_split))?;
            }
        }
        reader.drain().map_err(from_tar)?;
        self.set_directory_times()
    }

    /// The peers can't store a layer that names a path twice, and such a layer couldn't be given out again.
    fn check_new(&mut self, entry: &Entry, path: &Path) -> Result<(), Error> {
        let bytes = path.as_os_str().as_bytes();
        let hash = [self.hashers[0].hash_one(bytes), self.hashers[1].hash_one(bytes)];
        if self.seen.insert(hash) { Ok(()) } else { Err(refused(entry, "it is there twice")) }
    }

    /// A regular file; its content's checksum.
    fn regular<R: Read, T: Notes>(
        &mut self,
        reader: &mut Reader<R, T>,
        entry: &Entry,
        path: &Path,
    ) -> Result<[u8; 8], Failure> {
        let mut checksum = Checksum::default();
        let file = match self.target(path)? {
            Target::Plain(name) => Some(self.make_file(path, name)?),
            // A whiteout with content: the content is read over.
            target => {
                self.marker(entry, path, &target)?;
                None
            }
        };
        loop {
            let chunk = reader.content()?;
            if chunk.is_empty() {
                break;
            }
            let length = chunk.len();
            checksum.update(chunk);
            if let Some(file) = &file {
                let mut file = file;
                file.write_all(chunk)?;
            } else {
                return Err(Failure::Refused("a whiteout has content"));
            }
            reader.consume(length)?;
            self.wrote(length as u64)?;
        }
        if let Some(file) = file {
            self.finish(entry, file.as_fd())?;
        }
        Ok(checksum.finish())
    }

    /// Everything but a plain regular file.
    fn special<R: Read, T: Notes>(
        &mut self,
        reader: &mut Reader<R, T>,
        entry: &Entry,
        path: &Path,
    ) -> Result<(), Failure> {
        if path.as_os_str().is_empty() {
            return self.root_entry(entry);
        }
        let name = match self.target(path)? {
            Target::Plain(name) => name,
            marker => return self.marker(entry, path, &marker),
        };
        match entry.kind {
            Kind::Regular => self.sparse_file(reader, entry, path, name),
            Kind::Directory => self.directory(entry, path, name),
            Kind::HardLink => {
                let target = clean(&entry.link).filter(|target| !target.as_os_str().is_empty());
                let target = target.ok_or(Failure::Refused("its link leads out of the layer"))?;
                self.clear(path, name)?;
                self.root.link(&target, path)?;
                self.finish_link(entry, path, name)
            }
            Kind::Symlink => {
                let link = OsStr::from_bytes(&entry.link);
                self.make(path, name, |dir| rustix::fs::symlinkat(link, dir, name))?;
                self.finish_node(entry, path, name)
            }
            Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => {
                let kind = match entry.kind {
                    Kind::CharDevice => FileType::CharacterDevice,
                    Kind::BlockDevice => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                let device = rustix::fs::makedev(entry.device.0, entry.device.1);
                self.make(path, name, |dir| rustix::fs::mknodat(dir, name, kind, Mode::empty(), device))?;
                self.finish_node(entry, path, name)
            }
        }
    }

    /// An entry for the layer's root: only one that is named `/` changes it, as with the peers.
    fn root_entry(&mut self, entry: &Entry) -> Result<(), Failure> {
        if entry.kind != Kind::Directory {
            return Err(Failure::Refused("the root must be a directory"));
        }
        self.uids.insert(entry.uid);
        self.gids.insert(entry.gid);
        if entry.name.starts_with(b"/") {
            self.keep_root = true;
            let fd = self.root.open_dir(Path::new("."))?;
            self.finish(entry, fd.as_fd())?;
        }
        Ok(())
    }

    fn sparse_file<R: Read, T: Notes>(
        &mut self,
        reader: &mut Reader<R, T>,
        entry: &Entry,
        path: &Path,
        name: &OsStr,
    ) -> Result<(), Failure> {
        let file = self.make_file(path, name)?;
        file.set_len(entry.size)?;
        for extent in entry.sparse.iter().flatten() {
            let mut done = 0;
            while done < extent.length {
                let chunk = reader.content()?;
                let room = usize::try_from(extent.length - done).unwrap_or(usize::MAX).min(chunk.len());
                if room == 0 {
                    return Err(Failure::Refused("its sparse map is longer than its content"));
                }
                file.write_all_at(&chunk[..room], extent.offset + done)?;
                reader.consume(room)?;
                self.wrote(room as u64)?;
                done += room as u64;
            }
        }
        self.finish(entry, file.as_fd())
    }

    fn directory(&mut self, entry: &Entry, path: &Path, name: &OsStr) -> Result<(), Failure> {
        let make = |dir: BorrowedFd<'_>| rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o700));
        let made = make(self.parent_of(path)?);
        let mut hides_lower = false;
        match made {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let there = rustix::fs::statat(self.parent_of(path)?, name, AtFlags::SYMLINK_NOFOLLOW)?;
                let kind = FileType::from_raw_mode(there.st_mode);
                if kind != FileType::Directory {
                    // A whiteout of this layer and then a new directory: the lower one's entries stay hidden.
                    hides_lower = kind == FileType::CharacterDevice && there.st_rdev == 0;
                    self.clear(path, name)?;
                    make(self.parent_of(path)?)?;
                }
            }
            Err(e) => return Err(e.into()),
        }
        let fd = inroot::open_entry(self.parent_of(path)?, name)?;
        if hides_lower {
            xattr::set(fd.as_fd(), OPAQUE_ATTRIBUTE.as_ref(), b"y")?;
        }
        self.finish(entry, fd.as_fd())?;
        self.directory_paths += path.as_os_str().len();
        if self.directory_paths > self.limits.max_directory_paths {
            return Err(Failure::Refused("the paths of the layer's directories are too long together"));
        }
        let inode = rustix::fs::fstat(&fd)?.st_ino;
        let (access, modification) = times(entry);
        self.times.push((path.to_owned(), inode, access, modification));
        Ok(())
    }

    /// A whiteout or the mark of an opaque directory.
    fn marker(&mut self, entry: &Entry, path: &Path, target: &Target<'_>) -> Result<(), Failure> {
        match target {
            Target::Plain(_) | Target::Ignored => Ok(()),
            Target::Opaque => {
                let dir = self.parent_of(path)?;
                Ok(xattr::set(dir, OPAQUE_ATTRIBUTE.as_ref(), b"y")?)
            }
            Target::Whiteout(hidden) => {
                let dir = self.parent_of(path)?;
                match rustix::fs::mknodat(dir, *hidden, FileType::CharacterDevice, Mode::empty(), 0) {
                    Ok(()) => {
                        let node = inroot::open_entry(dir, hidden)?;
                        Ok(inroot::set_owner(node.as_fd(), entry.uid, entry.gid)?)
                    }
                    // Whiteouts are for lower layers: what this layer has itself stays, a directory without its past.
                    Err(Errno::EXIST) => {
                        let node = inroot::open_entry(dir, hidden)?;
                        let kind = FileType::from_raw_mode(rustix::fs::fstat(&node)?.st_mode);
                        if kind == FileType::Directory {
                            xattr::set(node.as_fd(), OPAQUE_ATTRIBUTE.as_ref(), b"y")?;
                        }
                        Ok(())
                    }
                    Err(e) => Err(e.into()),
                }
            }
        }
    }

    /// The open parent directory of `path`, made if missing.
    fn parent_of(&mut self, path: &Path) -> Result<BorrowedFd<'_>, Failure> {
        let wanted = path.parent().unwrap_or(Path::new(""));
        if self.parent.as_ref().is_none_or(|(known, _)| known != wanted) {
            let fd = self.root.mkdir_all(wanted, 0o755)?;
            self.parent = Some((wanted.to_owned(), fd));
        }
        match &self.parent {
            Some((_, fd)) => Ok(fd.as_fd()),
            None => Err(Failure::Refused("it has no parent")),
        }
    }

    /// Makes an entry, in the place of one that is there.
    fn make<T>(
        &mut self,
        path: &Path,
        name: &OsStr,
        make: impl Fn(BorrowedFd<'_>) -> rustix::io::Result<T>,
    ) -> Result<T, Failure> {
        match make(self.parent_of(path)?) {
            Err(Errno::EXIST) => {
                self.clear(path, name)?;
                Ok(make(self.parent_of(path)?)?)
            }
            result => Ok(result?),
        }
    }

    fn make_file(&mut self, path: &Path, name: &OsStr) -> Result<File, Failure> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd =
            self.make(path, name, |dir| rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o600)))?;
        Ok(File::from(fd))
    }

    /// Removes what is at `path`, if anything.
    fn clear(&mut self, path: &Path, name: &OsStr) -> Result<(), Failure> {
        let shown = self.root.path().join(path);
        durable::remove_at(self.parent_of(path)?, name, &shown)?;
        // A directory may be gone: no parent is taken for known any more.
        self.parent = None;
        Ok(())
    }

    fn finish_node(&mut self, entry: &Entry, path: &Path, name: &OsStr) -> Result<(), Failure> {
        let fd = inroot::open_entry(self.parent_of(path)?, name)?;
        self.finish(entry, fd.as_fd())
    }

    /// A hard link's header speaks of the file that it links to, and the peers apply it. One that only repeats the owner
    /// and the mode changes neither: setting the owner would take the file's capabilities, which it seldom repeats.
    fn finish_link(&mut self, entry: &Entry, path: &Path, name: &OsStr) -> Result<(), Failure> {
        let fd = inroot::open_entry(self.parent_of(path)?, name)?;
        let file = rustix::fs::fstat(&fd)?;
        if FileType::from_raw_mode(file.st_mode) == FileType::Symlink {
            return Ok(());
        }
        let (uid, gid) = self.owner(entry);
        let repeats = (file.st_uid, file.st_gid, file.st_mode & 0o7777) == (uid, gid, entry.mode & 0o7777);
        if !repeats || !entry.xattrs.is_empty() {
            return self.finish(entry, fd.as_fd());
        }
        let (access, modification) = times(entry);
        Ok(inroot::set_times(fd.as_fd(), access, modification)?)
    }

    /// Owner, mode, attributes and times, by descriptor. The order matters: a change of owner clears set-ID bits and
    /// capabilities.
    fn finish(&mut self, entry: &Entry, fd: BorrowedFd<'_>) -> Result<(), Failure> {
        self.uids.insert(entry.uid);
        self.gids.insert(entry.gid);
        let (uid, gid) = self.owner(entry);
        inroot::set_owner(fd, uid, gid)?;
        if entry.kind != Kind::Symlink {
            inroot::set_mode(fd, entry.mode)?;
        }
        let total: usize = entry.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        if total > MAX_XATTRS {
            return Err(Failure::Refused("it has more than 64 KiB of extended attributes"));
        }
        for (name, value) in entry.xattrs.iter().filter(|(name, _)| is_kept(name)) {
            let value = match self.ground {
                Ground::Mounted { users, groups } => owners::attribute(To::Host, name, value, users, groups),
                Ground::Layer => Cow::Borrowed(value.as_slice()),
            };
            match xattr::set(fd, OsStr::from_bytes(name), &value) {
                Err(e) if e.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => {}
                result => result?,
            }
        }
        if entry.kind != Kind::Directory {
            let (access, modification) = times(entry);
            inroot::set_times(fd, access, modification)?;
        }
        Ok(())
    }

    /// Directories' times, last: a path that became something else meanwhile is left alone.
    fn set_directory_times(&mut self) -> Result<(), Error> {
        for (path, inode, access, modification) in self.times.drain(..) {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY;
            let Ok(fd) = self.root.open_at(&path, flags, Mode::empty()) else { continue };
            if rustix::fs::fstat(&fd).is_ok_and(|stat| stat.st_ino == inode) {
                let shown = || self.root.path().join(&path);
                inroot::set_times(fd.as_fd(), access, modification)
                    .map_err(|e| PathError::new("set times of", shown(), e))?;
            }
        }
        Ok(())
    }

    /// Whom an entry belongs to, on the node.
    fn owner(&self, entry: &Entry) -> (u32, u32) {
        match self.ground {
            Ground::Layer => (entry.uid, entry.gid),
            Ground::Mounted { users, groups } => {
                (owners::host_of(users, entry.uid), owners::host_of(groups, entry.gid))
            }
        }
    }

    fn target<'p>(&self, path: &'p Path) -> Result<Target<'p>, Failure> {
        match self.ground {
            Ground::Layer => Target::of(path),
            Ground::Mounted { .. } => {
                path.file_name().map(Target::Plain).ok_or(Failure::Refused("it has no name"))
            }
        }
    }

    /// Counts written bytes, and looks now and then whether enough is free.
    fn wrote(&mut self, bytes: u64) -> Result<(), Failure> {
        self.unchecked_bytes += bytes;
        if self.unchecked_bytes < SPACE_CHECK {
            return Ok(());
        }
        self.unchecked_bytes = 0;
        let space = rustix::fs::statvfs(self.root.path())?;
        if space.f_bavail.saturating_mul(space.f_frsize) < self.limits.reserve_bytes {
            return Err(Errno::NOSPC.into());
        }
        Ok(())
    }
}

/// What an entry's last name means.
enum Target<'a> {
    Plain(&'a OsStr),
    Whiteout(&'a OsStr),
    Opaque,
    /// AUFS's own bookkeeping.
    Ignored,
}

impl<'a> Target<'a> {
    fn of(path: &'a Path) -> Result<Self, Failure> {
        let name = path.file_name().ok_or(Failure::Refused("it has no name"))?;
        let bytes = name.as_bytes();
        let Some(hidden) = bytes.strip_prefix(WHITEOUT) else { return Ok(Self::Plain(name)) };
        if bytes == OPAQUE {
            return Ok(Self::Opaque);
        }
        if hidden.starts_with(WHITEOUT) {
            return Ok(Self::Ignored);
        }
        match hidden {
            b"" | b"." | b".." => Err(Failure::Refused("it is a whiteout of nothing")),
            hidden => Ok(Self::Whiteout(OsStr::from_bytes(hidden))),
        }
    }
}

/// Access time (never before the modification) and modification time.
fn times(entry: &Entry) -> (FileTime, FileTime) {
    (entry.atime.map_or(entry.mtime, |atime| atime.max(entry.mtime)), entry.mtime)
}

/// A name without empty, `.` and `..` parts, relative to the root; `None` if it leads out. The root is the empty path.
pub(crate) fn clean(name: &[u8]) -> Option<PathBuf> {
    let absolute = name.starts_with(b"/");
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                // Above an absolute root there is the root again.
                if parts.pop().is_none() && !absolute {
                    return None;
                }
            }
            part => parts.push(part),
        }
    }
    Some(PathBuf::from(OsStr::from_bytes(&parts.join(&b'/'))))
}

fn refused(entry: &Entry, why: &str) -> Error {
    Error::Content(format!("member {:?}: {why}", String::from_utf8_lossy(&entry.name)))
}

/// Why an entry couldn't be made.
enum Failure {
    Refused(&'static str),
    Tar(TarError),
    File(PathError),
    System(io::Error),
}

impl From<TarError> for Failure {
    fn from(error: TarError) -> Self {
        Self::Tar(error)
    }
}

impl From<PathError> for Failure {
    fn from(error: PathError) -> Self {
        Self::File(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::System(errno.into())
    }
}

impl Failure {
    fn into_error(self, entry: &Entry, tar_split: &Path) -> Error {
        match self {
            Self::Refused(why) => refused(entry, why),
            Self::Tar(error) => tar_error(error, tar_split),
            Self::File(error) if is_contents_fault(&error.source) => {
                refused(entry, &error.source.to_string())
            }
            Self::File(error) => error.into(),
            Self::System(error) if is_contents_fault(&error) => refused(entry, &error.to_string()),
            Self::System(error) => {
                PathError::new("unpack", PathBuf::from(OsStr::from_bytes(&entry.name)), error).into()
            }
        }
    }
}

/// Whether an error number speaks of the layer's own names and links, not of the disk.
fn is_contents_fault(error: &io::Error) -> bool {
    let Some(errno) = Errno::from_io_error(error) else { return false };
    matches!(
        errno,
        Errno::NOENT
            | Errno::NOTDIR
            | Errno::ISDIR
            | Errno::LOOP
            | Errno::NAMETOOLONG
            | Errno::EXIST
            | Errno::INVAL
            | Errno::MLINK
            | Errno::FBIG
            | Errno::PERM
    )
}
