//! Pod networks through CNI, and host ports.
//!
//! The crate does what libcni and ocicni do for CRI-O: it finds the node's network configuration, executes the
//! plugins of its chain as the CNI specification 1.1.0 says, and keeps the result cache in libcni's format so that a
//! node can go back to CRI-O. It keeps no record of its own. What must survive is in two values that the caller
//! stores:
//!
//! ```text
//! prepare(request) ──► AttachIntent ──(stored durably)──► add(intent) ──► Attachment ──(stored)──► del(either)
//! ```
//!
//! An intent holds all that DEL needs, the whole configuration included: DEL is guaranteed after a crash between
//! the two, after a reboot, and after the configuration file was changed or removed.
//!
//! Invariants: a plugin is given a namespace's path only after the namespace found there was seen to be the one that
//! was recorded; [`Network::status`] never waits; a plugin that hangs costs its own pod its deadline and others
//! nothing.

mod bandwidth;
mod cache;
mod conf;
mod directory;
mod error;
#[cfg(feature = "fuzzing")]
mod fuzzing;
mod hostports;
mod network;
mod plugin;
mod record;
mod result;
mod status;
mod version;
mod watch;

pub use bandwidth::Bandwidth;
pub use conf::{NetworkConf, PluginConf};
pub use directory::{Directory, FileProblem};
pub use error::{NetworkError, PluginFailure, Verb};
#[cfg(feature = "fuzzing")]
pub use fuzzing::fuzz;
pub use network::{Deadlines, Network, NetworkOptions};
pub use record::{
    AttachIntent, AttachRequest, Attachment, AttachmentRef, Dns, HostPort, Interface, IpConfig, NetnsRef,
    Protocol,
};
pub use status::NetworkStatus;
pub use version::CniVersion;
pub use watch::Watching;
