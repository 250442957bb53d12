//! User namespaces as mappings, and mounts whose files have the owners that a mapping gives them (mount_setattr(2),
//! `MOUNT_ATTR_IDMAP`; Linux 5.12, as a layer of an overlay 5.19).

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::CWD;
use rustix::mount::OpenTreeFlags;

use crate::mount::{self, MountAttr, MountError};
use crate::process;

/// How long a killed child may take to be reaped.
const DEATH: Duration = Duration::from_secs(5);

/// A range of a mapping: `length` IDs from `inside` on are those from `host` on outside (user_namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// The first ID in the namespace, or in the file system for an idmapped mount.
    pub inside: u32,
    /// The first ID outside.
    pub host: u32,
    /// How many.
    pub length: u32,
}

/// The ID outside for one inside; `None` for one that the ranges leave out.
pub fn to_host(ranges: &[IdRange], inside: u32) -> Option<u32> {
    ranges.iter().find_map(|range| {
        let offset = inside.checked_sub(range.inside).filter(|offset| *offset < range.length)?;
        range.host.checked_add(offset)
    })
}

/// Makes a user namespace with these mappings, in which nothing runs: for [`clone_mapped`]. A child process makes it and
/// is killed, so a process of many threads may call this.
///
/// # Errors
/// User namespaces are switched off; a mapping that the kernel refuses.
pub fn user_namespace(users: &[IdRange], groups: &[IdRange]) -> io::Result<OwnedFd> {
    let child = process::waiting_in_user_namespace()?;
    let made = map_and_open(child.pid(), users, groups);
    child.send_signal(9)?;
    // A killed child that can't be reaped in time stays a zombie until we end; the namespace is good all the same.
    if child.wait_ended(DEATH)? {
        child.try_reap()?;
    }
    made
}

fn map_and_open(pid: i32, users: &[IdRange], groups: &[IdRange]) -> io::Result<OwnedFd> {
    for (name, ranges) in [("uid_map", users), ("gid_map", groups)] {
        let mut text = String::new();
        for IdRange { inside, host, length } in ranges {
            writeln!(text, "{inside} {host} {length}").map_err(io::Error::other)?;
        }
        // The kernel takes a mapping in one write only.
        OpenOptions::new().write(true).open(format!("/proc/{pid}/{name}"))?.write_all(text.as_bytes())?;
    }
    Ok(File::open(format!("/proc/{pid}/ns/user"))?.into())
}

/// A detached, private copy of the mount at `path` in which files have the owners that the namespace's mappings give
/// them; with what is mounted below if `recursive` (then all of it must take the mapping), and not writable if
/// `read_only`. It goes when the descriptor is closed, unless it is attached ([`mount::attach`]).
///
/// # Errors
/// `EINVAL` when the file system, or one below it, can't be mapped, or is mapped already.
pub fn clone_mapped(
    path: &Path,
    namespace: BorrowedFd<'_>,
    recursive: bool,
    read_only: bool,
) -> Result<OwnedFd, MountError> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let tree =
        rustix::mount::open_tree(CWD, path, flags).map_err(|e| MountError::new("clone mount of", path, e))?;
    let userns_fd = u64::try_from(namespace.as_raw_fd())
        .map_err(|e| MountError::new("map", path, io::Error::other(e)))?;
    let attributes = MountAttr {
        attr_set: libc::MOUNT_ATTR_IDMAP | if read_only { libc::MOUNT_ATTR_RDONLY } else { 0 },
        attr_clr: 0,
        // What is mounted on it later reaches nobody.
        propagation: libc::MS_PRIVATE,
        userns_fd,
    };
    mount::change(tree.as_fd(), &attributes, recursive)
        .map_err(|e| MountError::new("map the owners of the files of", path, e))?;
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const RANGES: &[IdRange] =
        &[IdRange { inside: 0, host: 100_000, length: 1000 }, IdRange { inside: 5000, host: 7, length: 1 }];

    #[test]
    fn ids_go_through_the_range_that_holds_them() {
        for (inside, host) in
            [(0, Some(100_000)), (999, Some(100_999)), (1000, None), (5000, Some(7)), (5001, None)]
        {
            assert_eq!(to_host(RANGES, inside), host, "{inside}");
        }
    }

    #[test]
    fn files_of_a_mapped_clone_belong_to_the_mapped_user() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: mounting needs root");
            return;
        }
        let base = tempfile::tempdir().unwrap();
        let (source, target) = (base.path().join("source"), base.path().join("target"));
        for dir in [&source, &target] {
            std::fs::create_dir(dir).unwrap();
        }
        crate::durable::write_atomic(&source.join("file"), b"x", 0o644).unwrap();
        let namespace = user_namespace(RANGES, RANGES).unwrap();
        let clone = match clone_mapped(&source, namespace.as_fd(), false, true) {
            Ok(clone) => clone,
            Err(error) => {
                eprintln!("skipped: {error}: {}", error.source);
                return;
            }
        };
        mount::attach(clone.as_fd(), &target).unwrap();
        let seen = std::fs::metadata(target.join("file")).map(|file| (file.uid(), file.gid()));
        let written = crate::durable::write_atomic(&target.join("other"), b"x", 0o644);
        mount::unmount(&target, true).unwrap();
        assert_eq!(seen.unwrap(), (100_000, 100_000));
        assert!(written.is_err(), "it was asked to be read-only");
        assert_eq!(std::fs::metadata(source.join("file")).unwrap().uid(), 0);
    }

    #[test]
    fn a_file_system_of_the_kernel_is_refused() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: mounting needs root");
            return;
        }
        let namespace = user_namespace(RANGES, RANGES).unwrap();
        let error = clone_mapped(Path::new("/proc"), namespace.as_fd(), false, false).unwrap_err();
        assert_eq!(error.errno(), Some(libc::EINVAL), "{error}");
        assert!(error.to_string().contains("/proc"), "{error}");
    }

    #[test]
    fn mappings_that_overlap_are_refused_and_nothing_is_left() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: mappings need root");
            return;
        }
        let twice = [RANGES[0], RANGES[0]];
        assert!(user_namespace(&twice, &twice).is_err());
        let children = std::fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
        assert_eq!(children, "");
    }
}
