//! What a checkpoint is on disk: a container's archive in the format of CRI-O and podman, a pod's directory in a format
//! of ours, and how either becomes a container again.
//!
//! Three directories and one file play a part:
//!
//! - a *capture*: the directory into which CRIU dumps (`checkpoint/`, `dump.log`, `stats-dump`) and into which
//!   [`Metadata::write`], [`RootChanges::write`] and [`copy_log`] put the rest, under the names of [`names`];
//! - the *archive*: a capture as one tar file ([`archive::write`]);
//! - an *intake*: a capture that came from elsewhere, copied into a directory of our own by [`unpack`] or [`copy`], and
//!   then looked at with [`Intake::open`]. What came from elsewhere is hostile: it gets nothing but memory and files,
//!   and never says anything about policy.
//!
//! All calls block; they look at their [`Cancel`] at least every few mebibytes.

pub mod archive;
mod bpf;
mod cancel;
mod changes;
mod confinement;
pub mod criu;
mod directory;
mod error;
mod intake;
mod log;
mod metadata;
pub mod names;
pub mod pod;
mod receive;
mod restore;
pub mod space;
mod tar_writer;
mod unpack;

pub use cancel::Cancel;
pub use changes::{Changes, RootChanges};
pub use confinement::Confinement;
pub use directory::copy;
pub use error::Error;
pub use intake::{Intake, Limits};
pub use log::copy_log;
pub use metadata::{BindMount, ConfigDump, FileType, Metadata, SpecDump, SpecMount};
pub use restore::{Applied, ApplyChanges};
#[cfg(feature = "fuzzing")]
pub use unpack::fuzz;
pub use unpack::{peek, unpack};

/// Result of most calls of this crate.
pub type Result<T> = std::result::Result<T, Error>;
