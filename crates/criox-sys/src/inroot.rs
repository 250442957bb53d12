//! Paths inside a foreign root: every name is resolved by the kernel with that directory as `/`, so that neither `..`
//! nor a symbolic link, absolute or relative, planted before or swapped in meanwhile, leads out (openat2(2),
//! `RESOLVE_IN_ROOT`).

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::durable::PathError;

/// How often a resolution is tried again when a rename elsewhere disturbed it (EAGAIN).
const RETRIES: usize = 200;

/// A directory that is the whole world for the paths given to it.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
    shown: PathBuf,
}

impl Root {
    /// Opens the directory `path`; a symbolic link in its last component is refused.
    ///
    /// # Errors
    /// What opening answered.
    pub fn open(path: &Path) -> Result<Self, PathError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, path, flags, Mode::empty())
            .map_err(|e| PathError::new("open root", path, e))?;
        Ok(Self { fd, shown: path.to_owned() })
    }

    /// The root's own descriptor (`O_PATH`).
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// The path that it was opened by.
    pub fn path(&self) -> &Path {
        &self.shown
    }

    /// Opens `path` inside the root, following links inside the root.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn open_at(&self, path: &Path, flags: OFlags, mode: Mode) -> Result<OwnedFd, PathError> {
        resolve(self.fd.as_fd(), path, flags, mode).map_err(|e| self.failed("open", path, e))
    }

    /// Opens a directory (`O_PATH`) inside the root.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn open_dir(&self, path: &Path) -> Result<OwnedFd, PathError> {
        self.open_at(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())
    }

    /// Makes `path` and its missing parents with `mode` (before the umask), and opens it (`O_PATH`).
    ///
    /// # Errors
    /// What the kernel answered; a dangling link in the way is NotFound, a file NotADirectory.
    pub fn mkdir_all(&self, path: &Path, mode: u32) -> Result<OwnedFd, PathError> {
        match resolve(self.fd.as_fd(), path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()) {
            Ok(fd) => return Ok(fd),
            Err(Errno::NOENT) => {}
            Err(e) => return Err(self.failed("open directory", path, e)),
        }
        let mut done = PathBuf::from(".");
        let mut dir = resolve(self.fd.as_fd(), &done, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())
            .map_err(|e| self.failed("open directory", path, e))?;
        for component in path.components() {
            let name = match component {
                Component::Normal(name) => name,
                Component::ParentDir => OsStr::new(".."),
                Component::RootDir | Component::CurDir | Component::Prefix(_) => continue,
            };
            done.push(name);
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            dir = match resolve(self.fd.as_fd(), &done, flags, Mode::empty()) {
                Ok(next) => next,
                Err(Errno::NOENT) => {
                    match rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(mode)) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(e) => return Err(self.failed("make directory", &done, e)),
                    }
                    resolve(self.fd.as_fd(), &done, flags, Mode::empty())
                        .map_err(|e| self.failed("open directory", &done, e))?
                }
                Err(e) => return Err(self.failed("open directory", &done, e)),
            };
        }
        Ok(dir)
    }

    /// Opens the parent directory of `path` and gives the last name, for the `…at` calls.
    ///
    /// # Errors
    /// InvalidInput if the path has no plain last name; what the kernel answered.
    pub fn parent<'p>(&self, path: &'p Path) -> Result<(OwnedFd, &'p OsStr), PathError> {
        let name = last_name(path).ok_or_else(|| self.failed("use as a name", path, Errno::INVAL))?;
        Ok((self.open_dir(&parent_path(path))?, name))
    }

    /// Makes a symbolic link `path` with the text `target`, which is not resolved.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn symlink(&self, target: &OsStr, path: &Path) -> Result<(), PathError> {
        let (dir, name) = self.parent(path)?;
        rustix::fs::symlinkat(target, &dir, name).map_err(|e| self.failed("make symbolic link", path, e))
    }

    /// Makes a hard link `path` to `target`, both inside the root; a symbolic link is linked, not followed.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn link(&self, target: &Path, path: &Path) -> Result<(), PathError> {
        let (from, from_name) = self.parent(target)?;
        let (to, to_name) = self.parent(path)?;
        rustix::fs::linkat(&from, from_name, &to, to_name, AtFlags::empty())
            .map_err(|e| self.failed("make hard link", path, e))
    }

    /// Makes a node: a FIFO, a socket, or a device with its numbers. The mode is set exactly.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn mknod(
        &self,
        path: &Path,
        kind: FileType,
        mode: u32,
        major: u32,
        minor: u32,
    ) -> Result<(), PathError> {
        let (dir, name) = self.parent(path)?;
        rustix::fs::mknodat(&dir, name, kind, Mode::from_raw_mode(mode), rustix::fs::makedev(major, minor))
            .map_err(|e| self.failed("make node", path, e))?;
        let node = open_entry(dir.as_fd(), name).map_err(|e| self.failed("open", path, e))?;
        set_mode(node.as_fd(), mode).map_err(|e| PathError::new("set mode of", path, e))
    }

    /// Reads a regular file of at most `limit` bytes. A FIFO, device or directory is refused without blocking.
    ///
    /// # Errors
    /// What the kernel answered; InvalidInput for another kind of file; FileTooLarge beyond the limit.
    pub fn read_file(&self, path: &Path, limit: u64) -> Result<Vec<u8>, PathError> {
        // The kind is looked at before anything is opened for real: opening a device can have effects.
        let entry = self.open_at(path, OFlags::PATH, Mode::empty())?;
        let stat = rustix::fs::fstat(&entry).map_err(|e| self.failed("look at", path, e))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(self.failed("read as a regular file", path, Errno::INVAL));
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, magic(entry.as_fd()), flags, Mode::empty())
            .map_err(|e| self.failed("open", path, e))?;
        let mut bytes = Vec::new();
        File::from(fd)
            .take(limit.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|e| PathError::new("read", self.shown_of(path), e))?;
        if bytes.len() as u64 > limit {
            return Err(self.failed("read within its size limit", path, Errno::FBIG));
        }
        Ok(bytes)
    }

    fn failed(&self, op: &'static str, path: &Path, errno: Errno) -> PathError {
        PathError::new(op, self.shown_of(path), errno)
    }

    fn shown_of(&self, path: &Path) -> PathBuf {
        self.shown.join(path.strip_prefix("/").unwrap_or(path))
    }
}

/// Opens `path` below `root`, in-root; close-on-exec always.
///
/// # Errors
/// What the kernel answered.
pub fn resolve(root: BorrowedFd<'_>, path: &Path, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let mut result = Err(Errno::AGAIN);
    for _ in 0..RETRIES {
        result = rustix::fs::openat2(
            root,
            path,
            flags | OFlags::CLOEXEC,
            mode,
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        );
        match result {
            Err(Errno::AGAIN | Errno::INTR) => {}
            _ => break,
        }
    }
    result
}

/// Opens the entry `name` of a directory as it is (`O_PATH`, no link followed).
///
/// # Errors
/// What the kernel answered.
pub fn open_entry(dir: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Sets the permission bits (12 of them) of the object behind any descriptor, `O_PATH` too, whatever the umask.
///
/// # Errors
/// What the kernel answered.
pub fn set_mode(fd: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
    let mode = Mode::from_raw_mode(mode & 0o7777);
    match rustix::fs::fchmod(fd, mode) {
        Err(Errno::BADF) => Ok(rustix::fs::chmodat(CWD, magic(fd), mode, AtFlags::empty())?),
        result => Ok(result?),
    }
}

/// Sets the owner of the object behind any descriptor, `O_PATH` too. Set-ID bits are cleared by this: set the mode after.
///
/// # Errors
/// What the kernel answered.
pub fn set_owner(fd: BorrowedFd<'_>, uid: u32, gid: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    Ok(rustix::fs::chownat(fd, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?)
}

/// A time as files carry it: seconds since the epoch (may be negative) and nanoseconds (below a billion).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord)]
pub struct FileTime {
    /// Whole seconds.
    pub seconds: i64,
    /// The rest.
    pub nanoseconds: u32,
}

/// Sets access and modification time of the object behind any descriptor, `O_PATH` too (Linux 5.8).
///
/// # Errors
/// What the kernel answered.
pub fn set_times(fd: BorrowedFd<'_>, access: FileTime, modification: FileTime) -> io::Result<()> {
    let spec = |time: FileTime| Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() };
    let times = Timestamps { last_access: spec(access), last_modification: spec(modification) };
    Ok(rustix::fs::utimensat(fd, "", &times, AtFlags::EMPTY_PATH)?)
}

/// The kernel's name for the very object behind a descriptor.
fn magic(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// The last component, if it is a plain name.
fn last_name(path: &Path) -> Option<&OsStr> {
    let bytes = path.as_os_str().as_bytes();
    let end = bytes.iter().rposition(|&b| b != b'/')? + 1;
    let start = bytes[..end].iter().rposition(|&b| b == b'/').map_or(0, |slash| slash + 1);
    let name = &bytes[start..end];
    (name != b"." && name != b"..").then(|| OsStr::from_bytes(name))
}

fn parent_path(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from(OsString::from(".")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn hostile() -> (tempfile::TempDir, PathBuf, Root) {
        let dir = tempfile::tempdir().unwrap();
        let canary = dir.path().join("canary");
        std::fs::create_dir(&canary).unwrap();
        crate::durable::write_atomic(&canary.join("secret"), b"secret", 0o600).unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir(&root).unwrap();
        symlink(&canary, root.join("absolute")).unwrap();
        symlink("../canary", root.join("relative")).unwrap();
        symlink("/proc/self/root", root.join("magic")).unwrap();
        let opened = Root::open(&root).unwrap();
        (dir, canary, opened)
    }

    #[test]
    fn no_name_leads_out_of_the_root() {
        let (_dir, canary, root) = hostile();
        for path in
            ["absolute/secret", "relative/secret", "../canary/secret", "/../canary/secret", "magic/secret"]
        {
            root.read_file(Path::new(path), 100).expect_err(path);
        }
        for path in ["absolute/new", "relative/new", "magic/new"] {
            root.mkdir_all(Path::new(path), 0o755).expect_err(path);
            root.symlink(OsStr::new("x"), Path::new(path)).expect_err(path);
            root.link(Path::new("absolute"), Path::new(path)).expect_err(path);
        }
        root.mkdir_all(Path::new("../../up/there"), 0o755).unwrap();
        assert!(root.path().join("up/there").is_dir());
        root.link(Path::new("../canary/secret"), Path::new("stolen")).unwrap_err();
        assert_eq!(std::fs::read_dir(canary).unwrap().count(), 1);
    }

    #[test]
    fn only_regular_files_within_the_limit_are_read() {
        let (_dir, _canary, root) = hostile();
        root.mkdir_all(Path::new("etc"), 0o755).unwrap();
        crate::durable::write_atomic(&root.path().join("etc/passwd"), b"12345", 0o600).unwrap();
        root.symlink(OsStr::new("/etc/passwd"), Path::new("link")).unwrap();
        assert_eq!(root.read_file(Path::new("link"), 5).unwrap(), b"12345");
        assert_eq!(root.read_file(Path::new("link"), 4).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        root.mknod(Path::new("etc/fifo"), FileType::Fifo, 0o666, 0, 0).unwrap();
        assert_eq!(root.read_file(Path::new("etc/fifo"), 5).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(root.read_file(Path::new("etc"), 5).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn metadata_reaches_the_object_behind_a_path_descriptor() {
        let (_dir, _canary, root) = hostile();
        root.mknod(Path::new("fifo"), FileType::Fifo, 0o4666, 0, 0).unwrap();
        let fd = root.open_at(Path::new("fifo"), OFlags::PATH | OFlags::NOFOLLOW, Mode::empty()).unwrap();
        let time = FileTime { seconds: -5, nanoseconds: 7 };
        set_times(fd.as_fd(), time, time).unwrap();
        let stat = rustix::fs::fstat(&fd).unwrap();
        assert_eq!(stat.st_mode & 0o7777, 0o4666);
        assert_eq!((stat.st_mtime, stat.st_mtime_nsec), (-5, 7));
    }
}
