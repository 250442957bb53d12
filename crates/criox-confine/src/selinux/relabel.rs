//! Labelling of volumes.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use criox_sys::xattr;
use rustix::fs::{CWD, Dir, FileType, Mode, OFlags};

use crate::error::{Error, Result};

/// The attribute that holds a file's label.
const ATTRIBUTE: &str = "security.selinux";
/// Directories below directories of a volume.
const DEPTH: usize = 1000;
/// What a volume with `selinux_relabel` must never be: labelling it would take it from everything else on the node.
const SYSTEM: [&str; 28] = [
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/etc/kubernetes",
    "/etc/passwd",
    "/etc/pki",
    "/etc/shadow",
    "/home",
    "/lib",
    "/lib64",
    "/media",
    "/mnt",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/srv",
    "/sys",
    "/tmp",
    "/usr",
    "/usr/bin",
    "/usr/sbin",
    "/var",
    "/var/lib",
    "/var/log",
];
/// Trees of which nothing may be labelled at all.
const SYSTEM_TREES: [&str; 4] = ["/boot", "/dev", "/proc", "/sys"];

/// Labels a volume and all that is in it for a container. Links are labelled and not followed; what has the label
/// already is left alone, and with `trust_top` nothing below a directory that has it is looked at. A file system
/// without labels is success, as everywhere.
///
/// # Errors
/// A directory of the system, with the name of the field; a file that can't be labelled.
pub fn relabel(path: &Path, label: &str, trust_top: bool, field: &str) -> Result<()> {
    relabel_as(path, ATTRIBUTE, label, trust_top, field)
}

pub(super) fn relabel_as(
    path: &Path,
    attribute: &str,
    label: &str,
    trust_top: bool,
    field: &str,
) -> Result<()> {
    if is_system(path) {
        let reason = format!(
            "{} belongs to the system: SELinux relabelling would take it from everything else; mount it without",
            path.display()
        );
        return Err(Error::invalid(format!("{field}: {reason}")));
    }
    let failed = |(at, error): (PathBuf, io::Error)| {
        let text = format!("{field}: SELinux label of {} in {}", at.display(), path.display());
        Error::node_because(text, error)
    };
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = rustix::fs::openat(CWD, path, flags, Mode::empty())
        .map_err(|error| failed((PathBuf::new(), error.into())))?;
    let walk = Walk { attribute: OsStr::new(attribute), label };
    let changed = walk.label(top.as_fd()).map_err(|error| failed((PathBuf::new(), error)))?;
    let is_dir = rustix::fs::fstat(&top).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_dir());
    if is_dir && (changed || !trust_top) {
        walk.below(&top, Path::new(""), 0).map_err(failed)?;
    }
    Ok(())
}

pub(super) fn is_system(path: &Path) -> bool {
    SYSTEM.iter().any(|system| path == Path::new(system))
        || SYSTEM_TREES.iter().any(|system| path.starts_with(system))
}

struct Walk<'a> {
    attribute: &'a OsStr,
    label: &'a str,
}

impl Walk<'_> {
    /// Whether it had to be changed.
    fn label(&self, file: BorrowedFd<'_>) -> io::Result<bool> {
        let known = xattr::get(file, self.attribute)?;
        // The kernel's value ends with a NUL.
        if known.is_some_and(|value| value.strip_suffix(b"\0").unwrap_or(&value) == self.label.as_bytes()) {
            return Ok(false);
        }
        match xattr::set(file, self.attribute, self.label.as_bytes()) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(false),
            // On a read-only file system the label is what it is.
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => Ok(false),
            result => result.map(|()| true),
        }
    }

    /// What is in a directory. What goes away meanwhile needs no label.
    fn below(
        &self,
        directory: &OwnedFd,
        at: &Path,
        depth: usize,
    ) -> std::result::Result<(), (PathBuf, io::Error)> {
        if depth == DEPTH {
            return Err((at.to_owned(), io::Error::other(format!("more than {DEPTH} directories deep"))));
        }
        let here = |error: rustix::io::Errno| (at.to_owned(), error.into());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(directory, ".", flags, Mode::empty()).map_err(here)?;
        for entry in Dir::new(opened).map_err(here)? {
            let entry = entry.map_err(here)?;
            let name = entry.file_name();
            if [c".", c".."].contains(&name) {
                continue;
            }
            let place = at.join(OsStr::from_bytes(name.to_bytes()));
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = match rustix::fs::openat(directory, name, flags, Mode::empty()) {
                Err(rustix::io::Errno::NOENT) => continue,
                result => result.map_err(|error| (place.clone(), error.into()))?,
            };
            self.label(file.as_fd()).map_err(|error| (place.clone(), error))?;
            let stat = rustix::fs::fstat(&file).map_err(|error| (place.clone(), error.into()))?;
            if FileType::from_raw_mode(stat.st_mode).is_dir() {
                self.below(&file, &place, depth + 1)?;
            }
        }
        Ok(())
    }
}
