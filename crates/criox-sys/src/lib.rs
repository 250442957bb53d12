//! The system calls of criox, and all of its unsafe code.
//!
//! Descriptors are owned or borrowed in every signature, never raw numbers; each unsafe block names what it relies on.

pub mod cgroup;
pub mod durable;
pub mod failpoint;
pub mod idmap;
pub mod inroot;
pub mod lock;
pub mod lsm;
pub mod mount;
pub mod netdev;
pub mod netns;
pub mod process;
pub mod pty;
pub mod seccomp_notify;
pub mod socket;
pub mod xattr;
