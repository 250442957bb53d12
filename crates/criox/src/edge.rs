//! Where errors of the inside become those of gRPC: the one place that knows both.

use criox_image::{PullError, PullErrorKind};
use criox_lifecycle::{Error, Kind, chain};
use criox_streaming::UrlError;
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
    Status::new(code, bounded(error.chain()))
}

/// A failed pull. The kubelet knows its reasons by the first word of the message, and only under `Unknown`.
pub(crate) fn pull_status(error: &PullError) -> Status {
    let code = match error.kind() {
        PullErrorKind::InvalidReference => Code::InvalidArgument,
        PullErrorKind::NotFound => Code::NotFound,
        _ => Code::Unknown,
    };
    Status::new(code, bounded(chain(error)))
}

/// An error of the store.
pub(crate) fn store_status(operation: &str, error: &criox_store::Error) -> Status {
    Status::new(Code::Unknown, bounded(format!("{operation}: {}", chain(error))))
}

/// No URL for a stream. Its words are those of the reference server, which clients may know.
pub(crate) fn url_status(error: UrlError) -> Status {
    let code = match error {
        UrlError::Invalid(_) => Code::InvalidArgument,
        UrlError::TooMany => Code::ResourceExhausted,
        UrlError::NoRandom => Code::Internal,
    };
    Status::new(code, error.to_string())
}

/// What CRI asks of the streams of Exec and Attach.
pub(crate) fn streams(tty: bool, stdin: bool, stdout: bool, stderr: bool) -> Result<(), Status> {
    match (tty && stderr, stdin || stdout || stderr) {
        (true, _) => Err(Status::invalid_argument("tty and stderr cannot both be true")),
        (false, false) => Err(Status::invalid_argument("one of stdin, stdout, or stderr must be set")),
        (false, true) => Ok(()),
    }
}

/// A field that is wrong.
pub(crate) fn invalid(field: &str, reason: &str) -> Status {
    Status::new(Code::InvalidArgument, bounded(format!("{field}: {reason}")))
}

/// Longest message, in bytes. It travels in an HTTP/2 header, which clients limit and kubelets keep as an event; what an
/// image or a runtime contributes to it may be of any length.
const MESSAGE_MAX: usize = 4096;

/// The text, or its beginning and its end: the first says what failed, the last why.
fn bounded(text: String) -> String {
    if text.len() <= MESSAGE_MAX {
        return text;
    }
    let start = text.floor_char_boundary(MESSAGE_MAX / 2);
    let end = text.ceil_char_boundary(text.len() - MESSAGE_MAX / 2);
    format!("{} … {}", &text[..start], &text[end..])
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

    #[test]
    fn a_long_message_keeps_what_failed_and_why() {
        let error = Error::failed(format!("start of {}", "ü".repeat(MESSAGE_MAX)))
            .because(std::io::Error::other("no such file"));
        let status = status(&error);
        let message = status.message();
        assert!(message.starts_with("start of ü") && message.ends_with("ü: no such file"), "{message}");
        assert!(message.len() <= MESSAGE_MAX + " … ".len(), "{}", message.len());
    }
}
