//! Refusals, each with the CRI field it is about.

/// A value that can't be turned into a specification.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct SpecError {
    /// CRI field path such as `linux.security_context.run_as_username` or `mounts[2].container_path`;
    /// of the image's configuration with the prefix `image.`.
    pub field: String,
    /// What is wrong with it and what would be right.
    pub reason: String,
    /// What the caller may want to tell apart.
    pub kind: ErrorKind,
}

/// What kind of refusal it is; the edge maps it to a gRPC code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request is wrong by itself.
    Invalid,
    /// The image's content does not fit the request (unknown user, no command).
    Image,
    /// The node or the handler can't do it (recursive read-only mounts, idmapped mounts, AppArmor).
    Unsupported,
}

impl SpecError {
    pub(crate) fn invalid(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { field: field.into(), reason: reason.into(), kind: ErrorKind::Invalid }
    }

    pub(crate) fn image(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { field: field.into(), reason: reason.into(), kind: ErrorKind::Image }
    }

    pub(crate) fn unsupported(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { field: field.into(), reason: reason.into(), kind: ErrorKind::Unsupported }
    }
}

/// Something that was changed or left out so that the container can run; logged once per topic and shown in Status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// What it is about, for telling it once.
    pub topic: WarningTopic,
    /// The sentence for the log.
    pub message: String,
}

/// Topics of [`Warning`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WarningTopic {
    /// The OOM score could not be lowered as far as asked.
    OomScoreAdj,
    /// Capabilities that the daemon does not hold were left out.
    Capabilities,
    /// Resource limits were cut to what the daemon may set.
    Rlimits,
    /// A resource for which the node has no controller was left out.
    Resources,
    /// The system call filter was left out.
    Seccomp,
    /// The default AppArmor profile was left out.
    AppArmor,
    /// A kernel parameter from the configuration was left out.
    Sysctl,
    /// A value of the image's configuration was ignored.
    Image,
    /// An annotation was ignored.
    Annotation,
    /// A mount's propagation was changed.
    Mount,
}

impl Warning {
    pub(crate) fn new(topic: WarningTopic, message: impl Into<String>) -> Self {
        Self { topic, message: message.into() }
    }

    /// Adds one about the image, if there is none yet: only the first of a topic is told, and what an image says may
    /// hold any number of mistakes of any length.
    pub(crate) fn add_image(warnings: &mut Vec<Self>, message: impl FnOnce() -> String) {
        const LONGEST: usize = 300;
        if !warnings.iter().any(|known| known.topic == WarningTopic::Image) {
            let message: String = message().chars().take(LONGEST).collect();
            warnings.push(Self::new(WarningTopic::Image, message));
        }
    }
}
