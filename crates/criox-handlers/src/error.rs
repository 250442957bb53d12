//! Why a handler can't be had.

use std::io;

/// Why a handler can't be had. Messages name the handler and say what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration has no handler of that name.
    #[error("{0}")]
    Unknown(String),
    /// Its runtime is not there, or can't do what is asked.
    #[error("{0}")]
    Unavailable(String),
    /// The runtime failed.
    #[error("{message}")]
    Failed {
        /// In doing what.
        message: String,
        /// What it said, or why it could not be called.
        source: io::Error,
    },
    /// The runtime did not end in its time.
    #[error("{0}")]
    Late(String),
}

/// What asking for a handler comes to.
pub type Result<T> = std::result::Result<T, Error>;
