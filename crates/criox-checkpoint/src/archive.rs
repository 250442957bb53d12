//! A capture as one file, in the format of CRI-O: an uncompressed tar that only root may read, for it holds all of a
//! container's memory.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use criox_store::tar::{Entry, Kind};
use criox_sys::durable::PathError;
use criox_sys::inroot::{self, FileTime, Root};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::cancel::Cancel;
use crate::error::Error;
use crate::names;
use crate::receive::open_regular;
use crate::space;
use crate::tar_writer::TarWriter;

/// Whether an archive may be written to `location`: an absolute path without `.` and `..`, in a directory that exists,
/// with nothing or a regular file there.
///
/// # Errors
/// [`Error::Location`]; what looking answered.
pub fn check_location(location: &Path) -> Result<(), Error> {
    let (dir, name) = parent(location)?;
    may_replace(dir.as_fd(), name, location).map(|_| ())
}

/// Writes the capture `dir` to `location`, in the place of a file that is there: the new archive is there wholly and
/// synced, or not at all. `reserve` bytes stay free. Its length.
///
/// # Errors
/// [`Error::Location`], [`Error::NoSpace`], [`Error::Cancelled`]; [`Error::Refused`] for a capture without the files that
/// a restore needs; what reading or writing answered. Nothing is left of the new archive then.
pub fn write(dir: &Path, location: &Path, reserve: u64, cancel: &Cancel) -> Result<u64, Error> {
    let (parent, name) = parent(location)?;
    may_replace(parent.as_fd(), name, location)?;
    let members = members(dir)?;
    let needed = members.iter().map(|member| member.entry.stored + 3 * 512).sum::<u64>() + 1024;
    space::check(&proc_path(parent.as_fd()), needed, reserve).map_err(|error| match error {
        Error::NoSpace { needed, reserve, free, .. } => {
            Error::NoSpace { path: location.to_owned(), needed, reserve, free }
        }
        other => other,
    })?;
    let draft = Draft::new(parent.as_fd(), name, location)?;
    let mut tar = TarWriter::new(&draft.file, location, cancel);
    for Member { entry, path } in &members {
        let Some(path) = path else {
            tar.member(entry, None)?;
            continue;
        };
        // One at a time: a dump of many processes has more files than a process may have open.
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { continue };
        let file =
            open_regular(Root::open(dir)?.as_fd(), name).map_err(|e| PathError::new("open", path, e))?;
        let file =
            file.ok_or_else(|| Error::refused(String::from_utf8_lossy(&entry.name), "not a regular file"))?;
        tar.member(entry, Some((&file, path)))?;
    }
    let length = tar.finish()?;
    cancel.check("write an archive")?;
    draft.file.sync_all().map_err(|e| PathError::new("sync", location, e))?;
    draft.place()?;
    Ok(length)
}

/// Removes what a write to `location` that was cut short can have left beside it. The file at `location` itself is always
/// whole, and stays.
///
/// # Errors
/// What removing answered; a directory that isn't there is success.
pub fn remove_partial(location: &Path) -> Result<(), Error> {
    let Some(name) = location.file_name() else { return Ok(()) };
    let partial = location.with_file_name(partial_name(name));
    match std::fs::remove_file(&partial) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(PathError::new("remove", partial, e).into()),
    }
}

/// Opens an archive to be read. The path may be anything that a pod's author wrote as the name of an image: only a
/// regular file is opened, without a link followed to it in the last component and without waiting.
///
/// # Errors
/// [`Error::NoArchive`]; what opening answered.
pub fn open(path: &Path) -> Result<File, Error> {
    let no_archive = |why| Error::NoArchive { path: path.to_owned(), why };
    if !is_plain(path) {
        return Err(no_archive("not an absolute path without . and .."));
    }
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(no_archive("a directory"));
    };
    let dir = match Root::open(dir) {
        Ok(dir) => dir,
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Err(no_archive("there is no such file"));
        }
        Err(e) => return Err(e.into()),
    };
    match open_regular(dir.as_fd(), name) {
        Ok(Some(file)) => Ok(file),
        Ok(None) => Err(no_archive("not a regular file")),
        Err(Errno::NOENT) => Err(no_archive("there is no such file")),
        Err(e) => Err(PathError::new("open", path, e).into()),
    }
}

/// A member to be written, with the path of its content.
struct Member {
    entry: Entry,
    path: Option<PathBuf>,
}

/// All members of a capture, small and telling ones first.
fn members(dir: &Path) -> Result<Vec<Member>, Error> {
    let root = Root::open(dir)?;
    let mut members = Vec::new();
    let (first, last) = names::FILES.split_at(5);
    for name in first {
        members.extend(member(root.as_fd(), dir, OsStr::new(name), name.as_bytes())?);
    }
    for needed in [names::CONFIG_DUMP, names::SPEC_DUMP] {
        if !members.iter().any(|member| member.entry.name == needed.as_bytes()) {
            return Err(Error::refused(needed, "missing in the capture"));
        }
    }
    let images = dir.join(names::IMAGES);
    let fd = root.open_at(Path::new(names::IMAGES), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
    let stat = rustix::fs::fstat(&fd).map_err(|e| PathError::new("look at", &images, e))?;
    let name = [names::IMAGES, "/"].concat().into_bytes();
    members.push(Member {
        entry: Entry { kind: Kind::Directory, mode: 0o700, stored: 0, size: 0, ..entry(name, &stat) },
        path: None,
    });
    for name in image_names(fd.as_fd(), &images)? {
        let inside = [names::IMAGES.as_bytes(), name.as_bytes()].join(&b'/');
        members.extend(member(fd.as_fd(), &images, &name, &inside)?);
    }
    for name in last {
        members.extend(member(root.as_fd(), dir, OsStr::new(name), name.as_bytes())?);
    }
    Ok(members)
}

/// The names of the images, in order. One that a reader would refuse is not written.
fn image_names(dir: BorrowedFd<'_>, shown: &Path) -> Result<Vec<OsString>, Error> {
    let failed = |e| PathError::new("list", shown, e);
    let mut found = Vec::new();
    for entry in Dir::read_from(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        if !std::str::from_utf8(name).is_ok_and(names::is_image_name) {
            return Err(Error::refused(String::from_utf8_lossy(name), "no name of an image"));
        }
        found.push(OsStr::from_bytes(name).to_owned());
    }
    found.sort_unstable();
    Ok(found)
}

/// The member for a regular file, none if it isn't there.
fn member(dir: BorrowedFd<'_>, shown: &Path, name: &OsStr, inside: &[u8]) -> Result<Option<Member>, Error> {
    let path = shown.join(name);
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => {
            Ok(Some(Member { entry: entry(inside.to_vec(), &stat), path: Some(path) }))
        }
        Ok(_) => Err(Error::refused(String::from_utf8_lossy(inside), "not a regular file")),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(PathError::new("look at", path, e).into()),
    }
}

fn entry(name: Vec<u8>, stat: &Stat) -> Entry {
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    Entry {
        name,
        kind: Kind::Regular,
        link: Vec::new(),
        mode: 0o600,
        uid: 0,
        gid: 0,
        stored: size,
        size,
        // Whole seconds, as CRI-O writes them.
        mtime: FileTime { seconds: stat.st_mtime, nanoseconds: 0 },
        atime: None,
        device: (0, 0),
        xattrs: Vec::new(),
        sparse: None,
    }
}

fn is_plain(path: &Path) -> bool {
    // `components` swallows a dot in the middle, and doubled slashes; they do no harm, but they are not plain.
    let bytes = path.as_os_str().as_bytes();
    path.is_absolute()
        && !bytes.contains(&0)
        && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
        && !bytes.split(|&b| b == b'/').any(|part| part == b".")
}

/// The open parent directory of an archive's place, and its name.
fn parent(location: &Path) -> Result<(OwnedFd, &OsStr), Error> {
    let bad = |why| Error::Location { path: location.to_owned(), why };
    if !is_plain(location) || location.as_os_str().as_bytes().ends_with(b"/") {
        return Err(bad("not an absolute path of a file, without . and .."));
    }
    let (Some(dir), Some(name)) = (location.parent(), location.file_name()) else {
        return Err(bad("a directory"));
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::openat(CWD, dir, flags, Mode::empty()) {
        Ok(fd) => Ok((fd, name)),
        Err(Errno::NOENT | Errno::NOTDIR) => Err(bad("its directory does not exist")),
        Err(e) => Err(PathError::new("open directory", dir, e).into()),
    }
}

/// Whether something is there that will be replaced.
fn may_replace(dir: BorrowedFd<'_>, name: &OsStr, location: &Path) -> Result<bool, Error> {
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => Ok(true),
        Ok(_) => Err(Error::Location {
            path: location.to_owned(),
            why: "something that is no regular file is there",
        }),
        Err(Errno::NOENT) => Ok(false),
        Err(e) => Err(PathError::new("look at", location, e).into()),
    }
}

fn proc_path(fd: BorrowedFd<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// The name beside the archive's by which it is known where a file can't be made without one. It is always the same, so
/// that what a killed process left is found.
fn partial_name(name: &OsStr) -> OsString {
    let bytes = name.as_bytes();
    let mut partial = OsString::from(".");
    partial.push(OsStr::from_bytes(&bytes[..bytes.len().min(200)]));
    partial.push(".criox-partial");
    partial
}

/// The new archive before it has its name. Dropping it removes it; so does the end of the process, where the file system
/// has files without names (`O_TMPFILE`).
struct Draft<'a> {
    file: File,
    dir: BorrowedFd<'a>,
    name: &'a OsStr,
    location: &'a Path,
    /// It has its partial name.
    named: bool,
}

impl<'a> Draft<'a> {
    fn new(dir: BorrowedFd<'a>, name: &'a OsStr, location: &'a Path) -> Result<Self, Error> {
        let flags = OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC;
        match rustix::fs::openat(dir, ".", flags, Mode::from_raw_mode(0o600)) {
            Ok(fd) => Self::of(fd, dir, name, location, false),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => Self::named(dir, name, location),
            Err(e) => Err(PathError::new("create", location, e).into()),
        }
    }

    /// One that has its partial name from the start.
    fn named(dir: BorrowedFd<'a>, name: &'a OsStr, location: &'a Path) -> Result<Self, Error> {
        let partial = partial_name(name);
        // What is there was left by a process that was killed: one container has one checkpoint at a time.
        match rustix::fs::unlinkat(dir, &partial, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(PathError::new("remove", location.with_file_name(partial), e).into()),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(dir, &partial, flags, Mode::from_raw_mode(0o600))
            .map_err(|e| PathError::new("create", location, e))?;
        Self::of(fd, dir, name, location, true)
    }

    fn of(
        fd: OwnedFd,
        dir: BorrowedFd<'a>,
        name: &'a OsStr,
        location: &'a Path,
        named: bool,
    ) -> Result<Self, Error> {
        let draft = Self { file: File::from(fd), dir, name, location, named };
        inroot::set_mode(draft.file.as_fd(), 0o600)
            .map_err(|e| PathError::new("set mode of", location, e))?;
        Ok(draft)
    }

    /// Gives it its name, and syncs the directory.
    fn place(mut self) -> Result<(), Error> {
        let failed = |e| PathError::new("give its name to", self.location, e);
        if !self.named {
            match self.link(self.name) {
                Ok(()) => return self.sync(),
                Err(Errno::EXIST) => {}
                Err(e) => return Err(failed(e).into()),
            }
            let partial = partial_name(self.name);
            match rustix::fs::unlinkat(self.dir, &partial, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(failed(e).into()),
            }
            self.link(&partial).map_err(failed)?;
            self.named = true;
        }
        may_replace(self.dir, self.name, self.location)?;
        rustix::fs::renameat(self.dir, partial_name(self.name), self.dir, self.name).map_err(failed)?;
        self.named = false;
        self.sync()
    }

    fn link(&self, name: &OsStr) -> rustix::io::Result<()> {
        rustix::fs::linkat(CWD, proc_path(self.file.as_fd()), self.dir, name, AtFlags::SYMLINK_FOLLOW)
    }

    fn sync(&self) -> Result<(), Error> {
        Ok(rustix::fs::fsync(self.dir).map_err(|e| PathError::new("sync directory of", self.location, e))?)
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if self.named {
            // The error that counts is already in hand; the next write removes it, too.
            let _ = rustix::fs::unlinkat(self.dir, partial_name(self.name), AtFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn without_files_that_have_no_name_the_partial_one_is_always_the_same() {
        let base = tempfile::tempdir().unwrap();
        let location = base.path().join("a.tar");
        let names = || {
            let mut names: Vec<_> =
                std::fs::read_dir(base.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        for round in 0..2 {
            let (dir, name) = parent(&location).unwrap();
            drop(Draft::named(dir.as_fd(), name, &location).unwrap());
            assert_eq!(names().len(), round);
            // One that nobody drops, as after a kill, is in nobody's way, and is removed by its place alone.
            std::mem::forget(Draft::named(dir.as_fd(), name, &location).unwrap());
            let draft = Draft::named(dir.as_fd(), name, &location).unwrap();
            std::mem::forget(Draft::named(dir.as_fd(), name, &location).unwrap());
            drop(draft);
            std::mem::forget(Draft::named(dir.as_fd(), name, &location).unwrap());
            assert_eq!(names()[0], *".a.tar.criox-partial");
            remove_partial(&location).unwrap();
            remove_partial(&location).unwrap();
            let draft = Draft::named(dir.as_fd(), name, &location).unwrap();
            (&draft.file).write_all(b"x").unwrap();
            draft.place().unwrap();
            assert_eq!(names(), ["a.tar"]);
        }
    }
}
