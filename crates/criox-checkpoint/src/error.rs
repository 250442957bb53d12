//! What can go wrong with a checkpoint on disk.

use std::io;
use std::path::PathBuf;

use criox_sys::durable::PathError;

/// A call of this crate that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A checkpoint that came from elsewhere holds what it must not, or lacks what it must hold.
    #[error("checkpoint refused: {what}: {why}")]
    Refused {
        /// The file or member, as a name inside the checkpoint.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// What is not there, or not a regular file, and was given as an archive.
    #[error("{} is no checkpoint archive: {why}", path.display())]
    NoArchive {
        /// The path as it was given.
        path: PathBuf,
        /// What it is instead.
        why: &'static str,
    },
    /// The place given for an archive can't take one.
    #[error("can't write a checkpoint archive to {}: {why}", path.display())]
    Location {
        /// The path as it was given.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The file system is too full, by what would be written or by what the kernel said meanwhile.
    #[error(
        "not enough space at {}: {needed} bytes are needed beside a reserve of {reserve}, {free} are free",
        path.display()
    )]
    NoSpace {
        /// A path on the file system.
        path: PathBuf,
        /// Bytes to be written.
        needed: u64,
        /// Bytes that have to stay free.
        reserve: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The work was called off, or its time was over.
    #[error("called off or out of time while it had to {step}")]
    Cancelled {
        /// What was being done, as a verb.
        step: &'static str,
    },
    /// The store refused a root's changes, or failed.
    #[error("lay the changes over the root file system")]
    Store(#[source] criox_store::Error),
    /// A file operation.
    #[error("checkpoint file operation")]
    File(#[from] PathError),
}

impl Error {
    /// Whether the cause is a full disk or quota.
    pub fn is_out_of_space(&self) -> bool {
        match self {
            Self::NoSpace { .. } => true,
            Self::Store(error) => error.is_out_of_space(),
            Self::File(error) => {
                matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            _ => false,
        }
    }

    /// Whether the checkpoint's own content is at fault, so that another attempt can't succeed.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Refused { .. } | Self::NoArchive { .. } => true,
            Self::Store(error) => matches!(error, criox_store::Error::Content(_)),
            _ => false,
        }
    }

    pub(crate) fn refused(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Refused { what: what.into(), why: why.into() }
    }
}
