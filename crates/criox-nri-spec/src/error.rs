//! Why a plugin can't have what it wants.

use std::io;

/// Why a plugin can't have what it wants.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A wish for a container that is being made can't be had from this handler, or on this machine.
    #[error("an NRI plugin's adjustment: {0}")]
    Adjustment(String),
    /// A wish for a container that runs is wrong in a field.
    #[error("an NRI plugin's update: {0}")]
    Update(String),
    /// The node's mounts are not known.
    #[error("read of /proc/self/mountinfo")]
    Mounts(#[source] io::Error),
}

/// What a plugin's wish comes to.
pub type Result<T> = std::result::Result<T, Error>;
