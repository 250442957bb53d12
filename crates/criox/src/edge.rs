//! Where errors of the inside become those of gRPC: the one place that knows both.

use criox_image::{PullError, PullErrorKind};
use criox_lifecycle::{Error, Kind};
use tonic::{Code, Status};

/// An error of a pod or container, with its whole chain of causes.
pub(crate) fn status(error: &Error) -> Status {
    let code = match error.kind() {
        Kind::InvalidArgument => Code::InvalidArgument,
        Kind::NotFound => Code::NotFound,
        Kind::AlreadyExists => Code::AlreadyExists,
        Kind::FailedPrecondition => Code::FailedPrecondition,
        Kind::DeadlineExceeded => Code::DeadlineExceeded,
        Kind::Failed => Code::Unknown,
        Kind::Cancelled => Code::Aborted,
    };
    Status::new(code, error.chain())
}

/// A failed pull. The kubelet knows its reasons by the first word of the message, and only under `Unknown`.
pub(crate) fn pull_status(error: &PullError) -> Status {
    let code = match error.kind() {
        PullErrorKind::InvalidReference => Code::InvalidArgument,
        PullErrorKind::NotFound => Code::NotFound,
        _ => Code::Unknown,
    };
    Status::new(code, chain(error))
}

/// An error of the store.
pub(crate) fn store_status(operation: &str, error: &criox_store::Error) -> Status {
    Status::new(Code::Unknown, format!("{operation}: {}", chain(error)))
}

/// A field that is wrong.
pub(crate) fn invalid(field: &str, reason: &str) -> Status {
    Status::new(Code::InvalidArgument, format!("{field}: {reason}"))
}

/// A message and its causes, once each.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_code() {
        for (kind, code) in [
            (Kind::InvalidArgument, Code::InvalidArgument),
            (Kind::NotFound, Code::NotFound),
            (Kind::AlreadyExists, Code::AlreadyExists),
            (Kind::FailedPrecondition, Code::FailedPrecondition),
            (Kind::DeadlineExceeded, Code::DeadlineExceeded),
            (Kind::Failed, Code::Unknown),
        ] {
            assert_eq!(status(&Error::new(kind, "x")).code(), code);
        }
    }

    #[test]
    fn the_message_holds_the_causes() {
        let error = Error::failed("start of container c").because(std::io::Error::other("no such file"));
        assert_eq!(status(&error).message(), "start of container c: no such file");
    }
}
