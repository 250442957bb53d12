//! The namespaces of a pod: which it has of its own, and which it shares with the node.

use criox_confine::Users;
use criox_cri::v1;

/// The namespace modes of a sandbox: the request's, or the interface's defaults.
pub fn namespace_options(config: &v1::PodSandboxConfig) -> v1::NamespaceOption {
    config
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref())
        .and_then(|security| security.namespace_options.clone())
        .unwrap_or_default()
}

/// A kind of namespace that a pod can have pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespace {
    /// User: made first, so that it owns the others.
    User,
    /// Network.
    Network,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Host name.
    Uts,
    /// Process numbers, of a pod whose containers share them.
    Pid,
}

impl Namespace {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::User, Self::Network, Self::Ipc, Self::Uts, Self::Pid];

    /// Those that a pod gets of its own, pinned by file.
    pub fn pinned(config: &v1::PodSandboxConfig) -> Vec<Self> {
        let options = namespace_options(config);
        // Also with the node's network: no container may rename the node.
        let mut kinds = vec![Self::Uts];
        if Users::of(config).is_some() {
            kinds.push(Self::User);
        }
        if options.network() != v1::NamespaceMode::Node {
            kinds.push(Self::Network);
        }
        if options.ipc() != v1::NamespaceMode::Node {
            kinds.push(Self::Ipc);
        }
        if options.pid() == v1::NamespaceMode::Pod {
            kinds.push(Self::Pid);
        }
        kinds
    }

    /// The name of the directory in which those of this kind are pinned.
    pub(crate) fn directory(self) -> &'static str {
        match self {
            Self::User => "userns",
            Self::Network => "netns",
            Self::Ipc => "ipcns",
            Self::Uts => "utsns",
            Self::Pid => "pidns",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_with_host_network_has_no_network_of_its_own_and_still_cannot_rename_the_node() {
        let options =
            v1::NamespaceOption { network: v1::NamespaceMode::Node.into(), pid: 1, ..Default::default() };
        let security =
            v1::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
        let linux = v1::LinuxPodSandboxConfig { security_context: Some(security), ..Default::default() };
        let config = v1::PodSandboxConfig { linux: Some(linux), ..Default::default() };
        assert_eq!(Namespace::pinned(&config), [Namespace::Uts, Namespace::Ipc]);
    }
}
