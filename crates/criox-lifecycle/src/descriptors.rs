//! The limit of open files. The daemon keeps some files open for each container, so it takes what it may have; what runs
//! in pods gets the soft limit that the daemon was started with, for programs size tables by it or close all
//! descriptors up to it.

use std::sync::OnceLock;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};

/// What the daemon was started with.
static GIVEN: OnceLock<Rlimit> = OnceLock::new();

/// Raises the soft limit to the hard one. What the process may hold open then; none: without limit.
pub(crate) fn raise() -> Option<u64> {
    let given = *GIVEN.get_or_init(|| getrlimit(Resource::Nofile));
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: given.maximum, maximum: given.maximum })
    {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    getrlimit(Resource::Nofile).current
}

/// Gives a new monitor the limit that the daemon was started with; what it starts inherits that.
pub(crate) fn give_back(monitor: i32) {
    let (Some(given), Some(pid)) = (GIVEN.get(), Pid::from_raw(monitor)) else { return };
    if let Err(error) = prlimit(Some(pid), Resource::Nofile, *given) {
        tracing::warn!(%error, "a pod has the daemon's own limit of open files");
    }
}
