//! Is the network ready? The answer that the CRI's Status gives.

/// A snapshot of the network's condition; it maps to the CRI's `NetworkReady`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkStatus {
    /// Whether pods can be attached.
    pub ready: bool,
    /// A word for `RuntimeCondition.reason`: empty when ready, else `NetworkPluginNotReady`.
    pub reason: &'static str,
    /// What is wrong and what to do; empty when ready.
    pub message: String,
    /// The default network's name, if there is one.
    pub network: Option<String>,
    /// Files that were passed over, with the reason, one a line; they don't make the network unready by themselves.
    pub problems: Vec<String>,
}

impl NetworkStatus {
    pub(crate) const NOT_READY: &'static str = "NetworkPluginNotReady";

    pub(crate) fn not_ready(message: String, network: Option<String>, problems: Vec<String>) -> Self {
        Self { ready: false, reason: Self::NOT_READY, message, network, problems }
    }
}
