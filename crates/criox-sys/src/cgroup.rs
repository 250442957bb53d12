//! Control groups, v1, hybrid and v2 (cgroups(7)): found, made, entered, emptied, removed.
//!
//! A path here is that below the hierarchy's root, as `/proc/<pid>/cgroup` gives it: `/kubepods/pod1/crio-2`.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::time::Duration;

/// How the hierarchies are mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Only v1 hierarchies.
    V1,
    /// v1 hierarchies with controllers, and a v2 one that has none we use.
    Hybrid,
    /// One v2 hierarchy.
    V2,
}

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub mount: PathBuf,
    /// Its v1 controllers, `name=…` included; empty: v2.
    pub controllers: Vec<String>,
}

/// What went wrong with a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No cgroup hierarchy is mounted.
    #[error("no cgroup hierarchy is mounted: mount cgroup2 at /sys/fs/cgroup")]
    NotMounted,
    /// A path that is not absolute or has `.` or `..` in it.
    #[error("cgroup path {0:?} is not absolute and plain")]
    BadPath(String),
    /// v1 without the freezer's hierarchy.
    #[error("no freezer hierarchy is mounted")]
    NoFreezer,
    /// A name that is no systemd slice.
    #[error("{0:?} is not the name of a systemd slice")]
    BadSlice(String),
    /// A file of the cgroup could not be read or written.
    #[error("could not {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Processes live on after the deadline.
    #[error(
        "cgroup {path} still holds {left} processes after {waited:?} of SIGKILL: they wait in the kernel"
    )]
    NotEmptied {
        /// The cgroup.
        path: String,
        /// How many live.
        left: usize,
        /// How long was waited.
        waited: Duration,
    },
    /// The directory could not be removed before the deadline.
    #[error("cgroup {path} could not be removed within {waited:?}")]
    Busy {
        /// The cgroup.
        path: String,
        /// How long was waited.
        waited: Duration,
        /// The last refusal.
        source: io::Error,
    },
}

/// The mounted hierarchies, as found once.
#[derive(Debug, Clone)]
pub struct Cgroups {
    layout: Layout,
    hierarchies: Vec<Hierarchy>,
}

/// Open cgroups that a new process is to be placed in.
#[derive(Debug)]
pub struct EnterHandle {
    /// v2: the directory, for CLONE_INTO_CGROUP.
    directory: Option<OwnedFd>,
    /// v1: `cgroup.procs` of each hierarchy.
    procs: Vec<OwnedFd>,
}

impl EnterHandle {
    pub(crate) fn directory_fd(&self) -> Option<RawFd> {
        self.directory.as_ref().map(AsRawFd::as_raw_fd)
    }

    pub(crate) fn procs_fds(&self) -> impl Iterator<Item = RawFd> {
        self.procs.iter().map(AsRawFd::as_raw_fd)
    }
}

/// Who manages the cgroups of pods (`cgroup_manager` of crio.conf).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// Directories, made by us and the runtime.
    Cgroupfs,
    /// Slices and scopes of systemd.
    Systemd,
}

mod freeze;
mod fs;
mod path;
pub mod stats;
mod versions;

use fs::below;

pub use freeze::FreezeState;
pub use path::{container_path, oci_cgroups_path, slice_path};
pub use versions::both_versions;
