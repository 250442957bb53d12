//! Why something is not checkpointed or restored.

use std::io;

/// Why something is not checkpointed or restored. Messages name the field, container or key.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request is wrong; repeating it is of no use.
    #[error("{message}")]
    Invalid {
        /// The field, and what is wrong with it.
        message: String,
        /// What caused it, whose text the message does not repeat.
        #[source]
        source: Option<io::Error>,
    },
    /// The node, a container or a checkpoint does not allow it.
    #[error("{0}")]
    Refused(String),
    /// A checkpoint can't be read.
    #[error("{what}")]
    Checkpoint {
        /// Which part of it.
        what: String,
        /// Why.
        source: criox_checkpoint::Error,
    },
}

/// What a question about checkpoints comes to.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn invalid(field: &str, reason: impl std::fmt::Display) -> Self {
        Self::Invalid { message: format!("{field}: {reason}"), source: None }
    }

    /// With what caused it, where the request is wrong.
    pub(crate) fn because(self, cause: io::Error) -> Self {
        match self {
            Self::Invalid { message, .. } => Self::Invalid { message, source: Some(cause) },
            other => other,
        }
    }
}
