//! What can go wrong between this node and a registry.

use std::time::Duration;

use http::StatusCode;

use criox_store::Digest;

type Source = Box<dyn std::error::Error + Send + Sync>;

/// A failure of one exchange with a registry. URLs stand in it without user, password and query.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No connection, or it broke before the answer.
    #[error("{url} can't be reached; check that the registry runs and that this node may connect to it")]
    Unreachable {
        /// The address.
        url: String,
        /// Why.
        source: Source,
    },
    /// The proxy between here and the registry was of no use.
    #[error("{url} can't be reached through the proxy {proxy}: {why}")]
    Proxy {
        /// The address.
        url: String,
        /// The proxy's, without user and password.
        proxy: String,
        /// What failed and what to do.
        why: String,
    },
    /// The registry answered that it can't serve now, also after retries.
    #[error("{url} answered {status}{message}; try again later")]
    Unavailable {
        /// The address.
        url: String,
        /// The status.
        status: StatusCode,
        /// The registry's own words, with `: ` before them, or nothing.
        message: String,
    },
    /// Credentials are missing or refused.
    #[error("{url} answered {status}{message}; {hint}")]
    Unauthorized {
        /// The address.
        url: String,
        /// The status.
        status: StatusCode,
        /// The registry's own words, with `: ` before them, or nothing.
        message: String,
        /// What to do.
        hint: String,
    },
    /// There is no such thing.
    #[error("{url} answered {status}{message}")]
    NotFound {
        /// The address.
        url: String,
        /// The status.
        status: StatusCode,
        /// The registry's own words, with `: ` before them, or nothing.
        message: String,
    },
    /// Any other answer.
    #[error("{url} answered {status}{message}")]
    Status {
        /// The address.
        url: String,
        /// The status.
        status: StatusCode,
        /// The registry's own words, with `: ` before them, or nothing.
        message: String,
    },
    /// A redirect that is not followed.
    #[error("redirect from {url} to {to} is not followed: {why}")]
    Redirect {
        /// The address.
        url: String,
        /// Where it points.
        to: String,
        /// Why not.
        why: &'static str,
    },
    /// The body is larger than allowed or announced.
    #[error("{url}: {got} bytes or more where {expected} were announced")]
    TooLarge {
        /// The address.
        url: String,
        /// The limit.
        expected: u64,
        /// What came.
        got: u64,
    },
    /// The body ended early.
    #[error("{url}: {got} bytes where {expected} were announced")]
    TooShort {
        /// The address.
        url: String,
        /// What was announced.
        expected: u64,
        /// What came.
        got: u64,
    },
    /// The body is not what was asked for.
    #[error(
        "{url}: content has digest {got}, expected {expected}; the registry or something before it is corrupt"
    )]
    Digest {
        /// The address.
        url: String,
        /// What was asked for.
        expected: Digest,
        /// What came.
        got: Digest,
    },
    /// Nothing came for too long.
    #[error("{url}: no {what} for {} s", .after.as_secs_f32())]
    Stalled {
        /// The address.
        url: String,
        /// What was waited for.
        what: &'static str,
        /// How long.
        after: Duration,
    },
    /// An answer that is no answer of this protocol.
    #[error("{url}: {why}")]
    Protocol {
        /// The address.
        url: String,
        /// What is wrong.
        why: String,
    },
    /// The certificates for the registry can't be used.
    #[error("TLS set-up for {host}: {why}")]
    Tls {
        /// The registry.
        host: String,
        /// What is wrong.
        why: String,
    },
}

/// The text of an address that may stand in logs: no user, password or query.
pub(crate) fn shown(uri: &http::Uri) -> String {
    let host = uri.authority().map_or("", |a| a.as_str());
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    format!("{}://{}{}", uri.scheme_str().unwrap_or("http"), host, uri.path())
}
