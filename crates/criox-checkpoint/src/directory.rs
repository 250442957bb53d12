//! A checkpoint that is a directory: the root of a checkpoint image, or a container of a pod's checkpoint.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

use criox_sys::durable::PathError;
use criox_sys::inroot::Root;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags};

use crate::cancel::Cancel;
use crate::error::Error;
use crate::intake::{Intake, Limits};
use crate::names::{self, Place};
use crate::receive::{Incoming, Receiver, Verdict, open_regular};

/// How many bytes are copied between two looks at the [`Cancel`].
const STEP: u64 = 16 << 20;

/// Copies the checkpoint in the directory `source` into the empty directory `into`, and looks at it. The source may be
/// hostile and may change meanwhile; it is never written to. After an error `into` holds a part.
///
/// # Errors
/// [`Error::Refused`], [`Error::NoSpace`], [`Error::Cancelled`]; what reading or writing answered.
pub fn copy(source: &Path, into: &Path, limits: &Limits, cancel: &Cancel) -> Result<Intake, Error> {
    let root = Root::open(source)?;
    let mut receiver = Receiver::new(into, limits, cancel)?;
    for (name, kind, size) in list(root.as_fd(), source, limits.max_entries)? {
        let inside = name.as_bytes().to_vec();
        copy_entry(&mut receiver, root.as_fd(), source, &name, &inside, kind, size)?;
        if kind != Incoming::Directory || name != names::IMAGES {
            continue;
        }
        let images = source.join(names::IMAGES);
        let dir = images_of(&root, &images)?;
        for (name, kind, size) in list(dir.as_fd(), &images, limits.max_entries)? {
            let inside = [names::IMAGES.as_bytes(), name.as_bytes()].join(&b'/');
            copy_entry(&mut receiver, dir.as_fd(), &images, &name, &inside, kind, size)?;
        }
    }
    Intake::open(into)
}

/// Whether a directory of ours is still what was taken in: regular files with names that we know, and the images.
pub(crate) fn check(root: &Root, shown: &Path) -> Result<(), Error> {
    let mut has_images = false;
    for (name, kind, _) in list(root.as_fd(), shown, u64::MAX)? {
        let name = name.to_string_lossy();
        has_images |= kind == Incoming::Directory && name == names::IMAGES;
        check_entry(&[&name], kind)?;
    }
    if !has_images {
        return Err(Error::refused(names::IMAGES, "missing"));
    }
    let images = shown.join(names::IMAGES);
    for (name, kind, _) in list(images_of(root, &images)?.as_fd(), &images, u64::MAX)? {
        check_entry(&[names::IMAGES, &name.to_string_lossy()], kind)?;
    }
    Ok(())
}

fn check_entry(parts: &[&str], kind: Incoming) -> Result<(), Error> {
    let why = match (names::place(parts), kind) {
        (_, Incoming::Other(what)) => what,
        (None, _) => "a checkpoint has no file of this name",
        (Some(Place::File | Place::Foreign), Incoming::Directory) => "a directory",
        (Some(Place::Images | Place::Top), Incoming::Regular) => "a file",
        _ => return Ok(()),
    };
    Err(Error::refused(parts.join("/"), why))
}

fn images_of(root: &Root, shown: &Path) -> Result<OwnedFd, Error> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let dir = rustix::fs::openat2(root.as_fd(), names::IMAGES, flags, Mode::empty(), how);
    Ok(dir.map_err(|e| PathError::new("open directory", shown, e))?)
}

fn copy_entry(
    receiver: &mut Receiver<'_>,
    dir: BorrowedFd<'_>,
    shown: &Path,
    name: &OsStr,
    inside: &[u8],
    kind: Incoming,
    size: u64,
) -> Result<(), Error> {
    let Verdict::Take(to, target) = receiver.decide(inside, kind, size)? else { return Ok(()) };
    let path = shown.join(name);
    let from = open_regular(dir, name).map_err(|e| PathError::new("open", &path, e))?;
    let from = from
        .ok_or_else(|| Error::refused(String::from_utf8_lossy(inside), "it became another kind of file"))?;
    // What was counted is what may be taken, whatever the file has grown to.
    let copied = copy_content(&from, &path, &to, &target, size, receiver.cancel)?;
    if copied != size {
        return Err(Error::refused(String::from_utf8_lossy(inside), "it changed while it was copied"));
    }
    Ok(())
}

/// Names, kinds and sizes of a directory's entries, in order.
fn list(dir: BorrowedFd<'_>, shown: &Path, max: u64) -> Result<Vec<(OsString, Incoming, u64)>, Error> {
    let failed = |e| PathError::new("list", shown, e);
    let mut names = Vec::new();
    // Opened anew, for a root's descriptor is only a path's.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let listed = rustix::fs::openat(dir, ".", flags, Mode::empty()).map_err(failed)?;
    for entry in Dir::new(listed).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        if names.len() as u64 >= max {
            let why = format!("more than {max} entries");
            return Err(Error::refused(shown.display().to_string(), why));
        }
        let name = OsString::from_vec(name.to_vec());
        let stat = rustix::fs::statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Incoming::Regular,
            FileType::Directory => Incoming::Directory,
            FileType::Symlink => Incoming::Other("a symbolic link"),
            FileType::Fifo => Incoming::Other("a FIFO"),
            FileType::Socket => Incoming::Other("a socket"),
            _ => Incoming::Other("a device"),
        };
        let size = if kind == Incoming::Regular { u64::try_from(stat.st_size).unwrap_or(0) } else { 0 };
        names.push((name, kind, size));
    }
    names.sort_unstable_by(|one, other| one.0.cmp(&other.0));
    Ok(names)
}

/// Copies at most `limit` bytes from the file's current position; how many there were. The kernel copies where it can.
///
/// # Errors
/// [`Error::Cancelled`]; what reading or writing answered.
pub(crate) fn copy_content(
    from: &File,
    from_shown: &Path,
    mut to: &File,
    to_shown: &Path,
    limit: u64,
    cancel: &Cancel,
) -> Result<u64, Error> {
    let mut done = 0;
    while done < limit {
        cancel.check("copy a file")?;
        let step = (limit - done).min(STEP);
        let copied = io::copy(&mut from.take(step), &mut to).map_err(|e| match e.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => PathError::new("write", to_shown, e),
            _ => PathError::new("copy", from_shown, e),
        })?;
        if copied == 0 {
            break;
        }
        done += copied;
    }
    Ok(done)
}
