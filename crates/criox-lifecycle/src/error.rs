//! What can go wrong, by kind: the edge turns a kind into a gRPC code and never looks at the text.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// What a caller can do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The request itself is wrong; repeating it is of no use.
    InvalidArgument,
    /// No sandbox, container or image of that ID.
    NotFound,
    /// Another object, which was handed to a caller, holds the name.
    AlreadyExists,
    /// The object is not in a state that allows the request.
    FailedPrecondition,
    /// A stage did not end in its time.
    DeadlineExceeded,
    /// Something outside of criox failed: the OCI runtime, a CNI plugin, the kernel.
    Failed,
    /// The operation ended because the object it worked on was undone.
    Cancelled,
}

/// An error of a lifecycle operation. It can be shared, for several callers may have joined the operation.
#[derive(Debug, Clone)]
pub struct Error {
    kind: Kind,
    message: String,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

/// A message and its causes, once each, joined with colons: for a log, or for the edge.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// The result of a lifecycle operation.
pub type Result<T> = std::result::Result<T, Error>;

/// A place at which a test makes criox die, fail or wait.
pub(crate) fn failpoint(name: &'static str) -> Result<()> {
    criox_sys::failpoint::hit(name).map_err(|error| Error::failed("step of an operation").because(error))
}

impl Error {
    /// An error of the kind; the message names the object and what to do.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// With the error that caused it, whose text the message must not repeat.
    #[must_use]
    pub fn because(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Arc::new(source));
        self
    }

    /// A failure of something outside.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Kind::Failed, message)
    }

    /// A request that is wrong in the named field.
    pub fn invalid(field: &str, reason: impl fmt::Display) -> Self {
        Self::new(Kind::InvalidArgument, format!("{field}: {reason}"))
    }

    /// What `criox-spec` refuses of a request, by its field.
    pub(crate) fn of_request(error: criox_spec::SpecError) -> Self {
        Self::new(Kind::InvalidArgument, error.to_string())
    }

    /// The same of a request's `config`.
    pub(crate) fn in_config(error: criox_spec::SpecError) -> Self {
        Self::new(Kind::InvalidArgument, format!("config.{error}"))
    }

    /// A container that does not exist.
    pub fn no_container(id: &str) -> Self {
        Self::new(Kind::NotFound, format!("container {:?} does not exist", shown(id)))
    }

    /// A sandbox that does not exist.
    pub fn no_sandbox(id: &str) -> Self {
        Self::new(Kind::NotFound, format!("pod sandbox {:?} does not exist", shown(id)))
    }

    /// A wait that ended without its event.
    pub fn timed_out(stage: &str, object: &str, after: Duration, advice: &str) -> Self {
        Self::new(
            Kind::DeadlineExceeded,
            format!("{stage} of {object} did not end within {:.1} s; {advice}", after.as_secs_f64()),
        )
    }

    /// What the caller can do about it.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The message and its causes, once each, joined with colons.
    pub fn chain(&self) -> String {
        chain(self)
    }
}

/// What can't be confined as it should be.
impl From<criox_confine::Error> for Error {
    fn from(error: criox_confine::Error) -> Self {
        use criox_confine::Error as Confine;
        let message = error.to_string();
        let (kind, source) = match error {
            Confine::Invalid { source, .. } => (Kind::InvalidArgument, source),
            Confine::Node { source, .. } => (Kind::FailedPrecondition, source),
            Confine::Failed { source, .. } => (Kind::Failed, Some(source)),
            Confine::Late(_) => (Kind::DeadlineExceeded, None),
            Confine::NoLevel => (Kind::Failed, None),
        };
        Self { kind, message, source }
    }
}

/// What is not checkpointed or restored.
impl From<criox_checkpoint_policy::Error> for Error {
    fn from(error: criox_checkpoint_policy::Error) -> Self {
        use criox_checkpoint_policy::Error as Policy;
        match error {
            Policy::Invalid { message, source: None } => Self::new(Kind::InvalidArgument, message),
            Policy::Invalid { message, source: Some(source) } => {
                Self::new(Kind::InvalidArgument, message).because(source)
            }
            Policy::Refused(message) => Self::new(Kind::FailedPrecondition, message),
            Policy::Checkpoint { what, source } => crate::checkpoint::failed(what, source),
        }
    }
}

/// A request of which no record can be made.
impl From<criox_records::FieldError> for Error {
    fn from(error: criox_records::FieldError) -> Self {
        Self::new(Kind::InvalidArgument, error.to_string())
    }
}

/// A handler that can't be had, or a runtime that fails.
impl From<criox_handlers::Error> for Error {
    fn from(error: criox_handlers::Error) -> Self {
        use criox_handlers::Error as Handler;
        let message = error.to_string();
        match error {
            Handler::Unknown(_) => Self::new(Kind::InvalidArgument, message),
            Handler::Unavailable(_) => Self::new(Kind::FailedPrecondition, message),
            Handler::Late(_) => Self::new(Kind::DeadlineExceeded, message),
            Handler::Failed { source, .. } => Self::new(Kind::Failed, message).because(source),
        }
    }
}

/// What a plugin can't have.
impl From<criox_nri_spec::Error> for Error {
    fn from(error: criox_nri_spec::Error) -> Self {
        use criox_nri_spec::Error as Wish;
        let message = error.to_string();
        match error {
            Wish::Adjustment(_) => Self::new(Kind::FailedPrecondition, message),
            Wish::Update(_) => Self::new(Kind::InvalidArgument, message),
            Wish::Mounts(source) => Self::new(Kind::Failed, message).because(source),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn std::error::Error + 'static))
    }
}

/// The beginning of what a client calls an ID: it may be megabytes, and an error travels in a header.
fn shown(id: &str) -> &str {
    const MAX: usize = 128;
    id.char_indices().nth(MAX).map_or(id, |(end, _)| &id[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_names_each_cause_once() {
        let error = Error::failed("start of container c1").because(std::io::Error::other("no such file"));
        assert_eq!(error.chain(), "start of container c1: no such file");
        assert_eq!(error.to_string(), "start of container c1");
    }
}
