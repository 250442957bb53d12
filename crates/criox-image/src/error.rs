//! Why a pull failed, in the words of `kubectl describe`.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use crate::manifest::ManifestError;
use crate::reference::InvalidReference;
use crate::registry::RegistryError;

/// What kind of failure it is; the edge maps it to a gRPC code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PullErrorKind {
    /// The reference is malformed, ambiguous or blocked.
    InvalidReference,
    /// The registry has no such image.
    NotFound,
    /// Credentials are missing or refused.
    Unauthorized,
    /// The registry can't be reached or can't serve now. The message begins with `RegistryUnavailable`.
    RegistryUnavailable,
    /// The signature policy forbids the image. The message begins with `SignatureValidationFailed`.
    SignatureValidationFailed,
    /// Content is not what its digest says.
    DigestMismatch,
    /// Content is longer or shorter than announced.
    SizeMismatch,
    /// The manifest is malformed, has no image for this platform, or describes what can't be stored.
    UnsupportedManifest,
    /// A layer is no archive that may be unpacked.
    Unpack,
    /// The disk is full.
    DiskFull,
    /// Nothing came for too long.
    Stalled,
    /// The registry broke the protocol.
    Protocol,
    /// The store failed.
    Store,
    /// This node's configuration (policy, certificates, auth file) can't be used.
    Configuration,
}

impl PullErrorKind {
    /// The name in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidReference => "InvalidReference",
            Self::NotFound => "NotFound",
            Self::Unauthorized => "Unauthorized",
            Self::RegistryUnavailable => "RegistryUnavailable",
            Self::SignatureValidationFailed => "SignatureValidationFailed",
            Self::DigestMismatch => "DigestMismatch",
            Self::SizeMismatch => "SizeMismatch",
            Self::UnsupportedManifest => "UnsupportedManifest",
            Self::Unpack => "Unpack",
            Self::DiskFull => "DiskFull",
            Self::Stalled => "Stalled",
            Self::Protocol => "Protocol",
            Self::Store => "Store",
            Self::Configuration => "Configuration",
        }
    }

    /// The kubelet knows these two by the first word of the message.
    fn prefix(self) -> &'static str {
        match self {
            Self::RegistryUnavailable => "RegistryUnavailable: ",
            Self::SignatureValidationFailed => "SignatureValidationFailed: ",
            _ => "",
        }
    }
}

/// A failed pull. All callers that wait for one pull get the same error, hence `Clone`.
#[derive(Debug, Clone)]
pub struct PullError {
    kind: PullErrorKind,
    image: String,
    stage: String,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl PullError {
    pub(crate) fn new(kind: PullErrorKind, image: &str, stage: impl Into<String>) -> Self {
        Self { kind, image: image.to_owned(), stage: stage.into(), source: None }
    }

    pub(crate) fn with(
        kind: PullErrorKind,
        image: &str,
        stage: impl Into<String>,
        source: impl StdError + Send + Sync + 'static,
    ) -> Self {
        Self { source: Some(Arc::new(source)), ..Self::new(kind, image, stage) }
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> PullErrorKind {
        self.kind
    }

    /// The reference that was asked for.
    pub fn image(&self) -> &str {
        &self.image
    }

    pub(crate) fn from_registry(image: &str, stage: impl Into<String>, error: RegistryError) -> Self {
        let kind = match &error {
            RegistryError::Unreachable { .. }
            | RegistryError::Proxy { .. }
            | RegistryError::Unavailable { .. } => PullErrorKind::RegistryUnavailable,
            RegistryError::Unauthorized { .. } => PullErrorKind::Unauthorized,
            RegistryError::NotFound { .. } => PullErrorKind::NotFound,
            RegistryError::TooLarge { .. } | RegistryError::TooShort { .. } => PullErrorKind::SizeMismatch,
            RegistryError::Digest { .. } => PullErrorKind::DigestMismatch,
            // It accepts connections and does not answer: for the caller that is as good as down.
            RegistryError::Stalled { what: "answer", .. } => PullErrorKind::RegistryUnavailable,
            RegistryError::Stalled { .. } => PullErrorKind::Stalled,
            RegistryError::Tls { .. } => PullErrorKind::Configuration,
            RegistryError::Status { .. }
            | RegistryError::Redirect { .. }
            | RegistryError::Protocol { .. } => PullErrorKind::Protocol,
        };
        Self::with(kind, image, stage, error)
    }

    pub(crate) fn from_manifest(image: &str, error: ManifestError) -> Self {
        Self::with(PullErrorKind::UnsupportedManifest, image, "reading the manifest", error)
    }

    pub(crate) fn from_reference(image: &str, error: InvalidReference) -> Self {
        Self::with(PullErrorKind::InvalidReference, image, "parsing the reference", error)
    }

    pub(crate) fn from_store(image: &str, stage: impl Into<String>, error: criox_store::Error) -> Self {
        let kind = if error.is_out_of_space() { PullErrorKind::DiskFull } else { PullErrorKind::Store };
        Self::with(kind, image, stage, error)
    }

    /// The same failure, after mirrors had failed.
    pub(crate) fn after(mut self, mirrors: &str) -> Self {
        self.stage.push_str(&format!(" (mirrors failed before: {mirrors})"));
        self
    }

    /// The same failure, as met by a pull of another image that waited for the same layer.
    pub(crate) fn for_image(&self, image: &str) -> Self {
        Self { image: image.to_owned(), ..self.clone() }
    }
}

impl fmt::Display for PullError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}pulling {}: {}", self.kind.prefix(), self.image, self.stage)
    }
}

impl StdError for PullError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|e| e as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kubelet_s_two_words_come_first() {
        for kind in [PullErrorKind::RegistryUnavailable, PullErrorKind::SignatureValidationFailed] {
            let text = PullError::new(kind, "quay.io/a:1", "x").to_string();
            assert!(
                text.starts_with(&format!("{}: ", kind.as_str())) && text.contains("quay.io/a:1"),
                "{text}"
            );
        }
        assert!(PullError::new(PullErrorKind::NotFound, "a", "x").to_string().starts_with("pulling a"));
    }
}
