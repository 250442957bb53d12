//! Files that survive a crash, and trees that are removed without following anything.
//!
//! Two strengths: *atomic* (renamed into place: a reader sees the old bytes or the new ones, a power cut may lose or
//! empty the file) and *durable* (synced, renamed, directory synced: once the call returns, the bytes stay).

use std::ffi::{CStr, OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// A file operation that failed: what was done, to which path.
#[derive(Debug, thiserror::Error)]
#[error("{op} {}", path.display())]
pub struct PathError {
    /// The operation, as a verb ("write", "rename", "sync directory").
    pub op: &'static str,
    /// The path as the caller gave it, or the entry below it that failed.
    pub path: PathBuf,
    /// The system's answer.
    #[source]
    pub source: io::Error,
}

impl PathError {
    /// Names the operation and the path for `source`.
    pub fn new(op: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        Self { op, path: path.into(), source: source.into() }
    }

    /// The kind of the underlying error, for callers that branch on it.
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }
}

impl From<PathError> for io::Error {
    fn from(error: PathError) -> Self {
        Self::new(error.kind(), error)
    }
}

/// `N` random bytes from the kernel, for names that must not collide.
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0u8; N];
    let mut filled = 0;
    while filled < N {
        let rest = &mut bytes[filled..];
        // SAFETY: the pointer and length describe `rest`, which is writable and lives over the call.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(got) {
            Ok(got) => filled += got,
            // Only EINTR is possible before the pool is ready; every later call succeeds.
            Err(_) => continue,
        }
    }
    bytes
}

/// Replaces `path` with `bytes` in one step, without syncing: a temporary file in the same directory, then a rename.
///
/// `mode` is set exactly, whatever the umask. The parent directory must exist.
///
/// # Errors
/// What creating, writing or renaming answered; the temporary file is removed.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<(), PathError> {
    replace(path, mode, false, |file| file.write_all(bytes))
}

/// Replaces `path` with `bytes` so that neither a crash nor a power cut can undo or tear it: write, fsync, rename,
/// fsync of the directory.
///
/// # Errors
/// As [`write_atomic`], and what syncing answered. After a failed sync the old file is still in place.
pub fn write_durable(path: &Path, bytes: &[u8], mode: u32) -> Result<(), PathError> {
    replace(path, mode, true, |file| file.write_all(bytes))?;
    sync_parent(path)
}

/// As [`write_atomic`] or, with `sync`, [`write_durable`] without the final sync of the directory; `fill` writes the
/// contents.
///
/// # Errors
/// As those, and what `fill` answered.
pub fn replace(
    path: &Path,
    mode: u32,
    sync: bool,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<(), PathError> {
    let temp = temporary_name(path);
    let result = (|| {
        let fd = rustix::fs::openat(
            CWD,
            &temp,
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW,
            Mode::from_raw_mode(0o600),
        )
        .map_err(|e| PathError::new("create", &temp, e))?;
        let mut file = File::from(fd);
        fill(&mut file).map_err(|e| PathError::new("write", path, e))?;
        if sync {
            file.sync_data().map_err(|e| PathError::new("sync", path, e))?;
        }
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))
            .map_err(|e| PathError::new("set mode of", path, e))?;
        rustix::fs::rename(&temp, path).map_err(|e| PathError::new("rename into place", path, e))
    })();
    if result.is_err() {
        // Best effort: the error that counts is already in hand.
        let _ = rustix::fs::unlink(&temp);
    }
    result
}

/// The name that containers/storage gives its temporary files, so that its own leftovers and ours look alike.
fn temporary_name(path: &Path) -> PathBuf {
    let mut name = OsString::from(".tmp-");
    name.push(path.file_name().unwrap_or_else(|| OsStr::new("file")));
    name.push(format!("{:016x}", u64::from_ne_bytes(random_bytes())));
    path.with_file_name(name)
}

/// Syncs a directory, so that the names created, renamed and removed in it stay.
///
/// # Errors
/// What opening or syncing answered.
pub fn sync_dir(path: &Path) -> Result<(), PathError> {
    let fd =
        rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| PathError::new("open directory", path, e))?;
    rustix::fs::fsync(&fd).map_err(|e| PathError::new("sync directory", path, e))
}

fn sync_parent(path: &Path) -> Result<(), PathError> {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => sync_dir(Path::new(".")),
        Some(parent) => sync_dir(parent),
        None => Ok(()),
    }
}

/// Writes back everything dirty on the filesystem that holds `path` (syncfs), and reports write errors that happened
/// since `path`'s descriptor was opened here.
///
/// # Errors
/// What opening or syncing answered.
pub fn sync_filesystem(path: &Path) -> Result<(), PathError> {
    let fd =
        rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
            .map_err(|e| PathError::new("open", path, e))?;
    sync_filesystem_of(fd.as_fd()).map_err(|e| PathError::new("sync the filesystem of", path, e))
}

/// As [`sync_filesystem`], by a descriptor. A descriptor opened before the writes also reports their errors.
///
/// # Errors
/// What syncing answered.
pub fn sync_filesystem_of(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::fs::syncfs(fd)?)
}

/// How deep [`remove_tree`] descends before it moves a directory up to the top, which bounds its open descriptors.
const REMOVE_DEPTH: usize = 24;

/// Removes a file or a whole tree; a missing path is success.
///
/// Everything happens relative to open directories: symbolic links are unlinked, never followed, also while somebody
/// renames things about. It never leaves the device it starts on, and a mount inside the tree is an error (EXDEV or
/// EBUSY) with that mount's content untouched.
///
/// # Errors
/// The first entry that couldn't be removed; what came before it is gone.
pub fn remove_tree(path: &Path) -> Result<(), PathError> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(PathError::new("remove", path, Errno::INVAL));
    };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let parent_fd = match rustix::fs::openat(
        CWD,
        parent,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(PathError::new("open directory", parent, e)),
    };
    remove_at(parent_fd.as_fd(), name, path)
}

/// As [`remove_tree`], for the entry `name` of an open directory; `shown` is the path for error messages.
///
/// # Errors
/// As [`remove_tree`].
pub fn remove_at(parent: BorrowedFd<'_>, name: &OsStr, shown: &Path) -> Result<(), PathError> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(PathError::new("remove", shown, e)),
    }
    let top = open_for_removal(parent, name).map_err(|e| PathError::new("open directory", shown, e))?;
    // Directories that lay too deep have been moved to the top, so it may need to be emptied several times.
    loop {
        let mut moved = false;
        empty_directory(top.as_fd(), top.as_fd(), 0, &mut moved, shown)?;
        if !moved {
            break;
        }
    }
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(PathError::new("remove", shown, e)),
    }
}

/// Opens one directory component: no symbolic link, no other mount.
fn open_for_removal(parent: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat2(
        parent,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV,
    )
}

fn empty_directory(
    top: BorrowedFd<'_>,
    dir: BorrowedFd<'_>,
    depth: usize,
    moved: &mut bool,
    shown: &Path,
) -> Result<(), PathError> {
    let entries = Dir::read_from(dir).map_err(|e| PathError::new("list", shown, e))?;
    for entry in entries {
        let entry = entry.map_err(|e| PathError::new("list", shown, e))?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        remove_entry(top, dir, name, entry.file_type(), depth, moved, shown)?;
    }
    Ok(())
}

fn remove_entry(
    top: BorrowedFd<'_>,
    dir: BorrowedFd<'_>,
    name: &CStr,
    kind: FileType,
    depth: usize,
    moved: &mut bool,
    shown: &Path,
) -> Result<(), PathError> {
    let name = OsStr::from_bytes(name.to_bytes());
    let failed = |op, e: Errno| PathError::new(op, shown.join(name), e);
    if kind != FileType::Directory {
        match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(e) => return Err(failed("remove", e)),
        }
    }
    // An empty directory needs no descriptor.
    match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
        Err(e) => return Err(failed("remove", e)),
    }
    if depth >= REMOVE_DEPTH {
        let parked =
            OsString::from_vec(format!(".rm-{:016x}", u64::from_ne_bytes(random_bytes())).into_bytes());
        rustix::fs::renameat(dir, name, top, &parked).map_err(|e| failed("move", e))?;
        *moved = true;
        return Ok(());
    }
    let child = open_for_removal(dir, name).map_err(|e| failed("open directory", e))?;
    empty_directory(top, child.as_fd(), depth + 1, moved, &shown.join(name))?;
    match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(failed("remove", e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn a_durable_write_replaces_the_file_and_leaves_no_temporary() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        write_durable(&path, b"one", 0o600).unwrap();
        write_durable(&path, b"two", 0o640).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_fill_keeps_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        write_atomic(&path, b"old", 0o600).unwrap();
        let error = replace(&path, 0o600, true, |_| Err(Errno::NOSPC.into())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_tree_goes_but_what_its_links_point_to_stays() {
        let dir = tempfile::tempdir().unwrap();
        let canary = dir.path().join("canary");
        std::fs::create_dir(&canary).unwrap();
        write_atomic(&canary.join("file"), b"x", 0o600).unwrap();
        let tree = dir.path().join("tree");
        let mut deep = tree.clone();
        for n in 0..200 {
            deep.push(format!("d{n}"));
        }
        std::fs::create_dir_all(&deep).unwrap();
        symlink(&canary, deep.join("link")).unwrap();
        symlink(&canary, tree.join("link")).unwrap();
        remove_tree(&tree).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists());
        assert!(canary.join("file").exists());
    }

    #[test]
    fn a_missing_parent_is_success() {
        remove_tree(Path::new("/nonexistent-criox/a/b")).unwrap();
    }
}
