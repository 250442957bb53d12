//! Why a container can't be confined as it should be.

use std::error::Error as StdError;
use std::sync::Arc;

/// What caused an error; shared, for several may wait for one load of a profile.
pub type Cause = Arc<dyn StdError + Send + Sync>;

/// Why a container can't be confined as it should be. Messages name the field, profile or file.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The request is wrong; repeating it is of no use.
    #[error("{message}")]
    Invalid {
        /// The field, and what is wrong with it.
        message: String,
        /// What caused it, whose text the message does not repeat.
        #[source]
        source: Option<Cause>,
    },
    /// The node has not got what is asked for, or can't do it.
    #[error("{message}")]
    Node {
        /// What, and what to do about it.
        message: String,
        /// What caused it, whose text the message does not repeat.
        #[source]
        source: Option<Cause>,
    },
    /// A step that the node can do went wrong.
    #[error("{message}")]
    Failed {
        /// Which.
        message: String,
        /// What caused it, whose text the message does not repeat.
        #[source]
        source: Cause,
    },
    /// Something did not end in its time.
    #[error("{0}")]
    Late(String),
    /// All SELinux levels belong to pods.
    #[error("no SELinux level is free")]
    NoLevel,
}

/// What confining comes to.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid { message: message.into(), source: None }
    }

    /// As [`Error::invalid`], with what caused it.
    pub(crate) fn invalid_because(
        message: impl Into<String>,
        source: impl StdError + Send + Sync + 'static,
    ) -> Self {
        Self::Invalid { message: message.into(), source: Some(Arc::new(source)) }
    }

    pub(crate) fn failed(message: impl Into<String>, source: impl StdError + Send + Sync + 'static) -> Self {
        Self::Failed { message: message.into(), source: Arc::new(source) }
    }

    pub(crate) fn node(message: impl Into<String>) -> Self {
        Self::Node { message: message.into(), source: None }
    }

    /// As [`Error::node`], with what caused it.
    pub(crate) fn node_because(
        message: impl Into<String>,
        source: impl StdError + Send + Sync + 'static,
    ) -> Self {
        Self::Node { message: message.into(), source: Some(Arc::new(source)) }
    }
}

/// A message and its causes, for logs.
pub(crate) fn chain(error: &dyn StdError) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}
