//! Namespaces: which ones a request asks for, and the list to make or join.

use criox_cri::v1;

use crate::error::SpecError;
use crate::input::{NamespaceSource, SpecInput};
use crate::oci;

const OPTIONS: &str = "linux.security_context.namespace_options";

/// What a sandbox shares with the node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SandboxNamespaces {
    /// The node's network.
    pub host_network: bool,
    /// The node's queues and shared memory.
    pub host_ipc: bool,
    /// The processes of the containers that say nothing else.
    pub pid: PidMode,
    /// Mappings of the pod's own user namespace; none without one.
    pub user: Option<UserMappings>,
}

/// The mappings of a user namespace, neither of them empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserMappings {
    /// Of users.
    pub uids: Vec<oci::IdMapping>,
    /// Of groups.
    pub gids: Vec<oci::IdMapping>,
}

/// Whose processes a container sees.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum PidMode {
    /// The pod's: all its containers share one namespace. The interface's default.
    #[default]
    Pod,
    /// Its own only.
    Container,
    /// The node's.
    Node,
    /// Those of the container with this ID.
    Target(String),
}

/// The namespaces that a sandbox's request asks for.
///
/// # Errors
/// A mode that is unknown or not for this kind of namespace, or mappings that can't be, with the field.
pub fn sandbox_namespaces(sandbox: &v1::PodSandboxConfig) -> Result<SandboxNamespaces, SpecError> {
    let Some(options) = sandbox
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref())
        .and_then(|context| context.namespace_options.as_ref())
    else {
        return Ok(SandboxNamespaces::default());
    };
    let pid = pid_mode(options)?;
    if matches!(pid, PidMode::Target(_)) {
        return Err(SpecError::invalid(format!("{OPTIONS}.pid"), "TARGET is for containers only"));
    }
    Ok(SandboxNamespaces {
        host_network: pod_or_node(options.network, "network")?,
        host_ipc: pod_or_node(options.ipc, "ipc")?,
        pid,
        user: options.userns_options.as_ref().map(user_namespace).transpose()?.flatten(),
    })
}

/// Whose processes the container sees: its own options, else the sandbox's.
///
/// # Errors
/// An unknown mode, or TARGET without a container; that the target exists and has mode CONTAINER is the caller's.
pub fn container_pid_mode(
    container: &v1::ContainerConfig,
    sandbox: &v1::PodSandboxConfig,
) -> Result<PidMode, SpecError> {
    let own = container
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref())
        .and_then(|context| context.namespace_options.as_ref());
    match own {
        Some(options) => pid_mode(options),
        None => sandbox_namespaces(sandbox).map(|namespaces| namespaces.pid),
    }
}

fn pid_mode(options: &v1::NamespaceOption) -> Result<PidMode, SpecError> {
    match v1::NamespaceMode::try_from(options.pid) {
        Ok(v1::NamespaceMode::Pod) => Ok(PidMode::Pod),
        Ok(v1::NamespaceMode::Container) => Ok(PidMode::Container),
        Ok(v1::NamespaceMode::Node) => Ok(PidMode::Node),
        Ok(v1::NamespaceMode::Target) if options.target_id.is_empty() => {
            Err(SpecError::invalid(format!("{OPTIONS}.target_id"), "empty: mode TARGET needs a container"))
        }
        Ok(v1::NamespaceMode::Target) => Ok(PidMode::Target(options.target_id.clone())),
        Err(_) => Err(SpecError::invalid(format!("{OPTIONS}.pid"), format!("unknown mode {}", options.pid))),
    }
}

/// Whether it is the node's; only POD and NODE exist for these kinds.
fn pod_or_node(mode: i32, kind: &str) -> Result<bool, SpecError> {
    match v1::NamespaceMode::try_from(mode) {
        Ok(v1::NamespaceMode::Pod) => Ok(false),
        Ok(v1::NamespaceMode::Node) => Ok(true),
        _ => Err(SpecError::invalid(
            format!("{OPTIONS}.{kind}"),
            format!("mode {mode} is neither POD nor NODE"),
        )),
    }
}

fn user_namespace(options: &v1::UserNamespace) -> Result<Option<UserMappings>, SpecError> {
    let field = format!("{OPTIONS}.userns_options");
    if pod_or_node(options.mode, "userns_options.mode")? {
        if !options.uids.is_empty() || !options.gids.is_empty() {
            return Err(SpecError::invalid(field, "mode NODE has no mappings"));
        }
        return Ok(None);
    }
    let convert = |mappings: &[v1::IdMapping], name: &str| {
        if mappings.is_empty() {
            return Err(SpecError::invalid(format!("{field}.{name}"), "empty: mode POD needs mappings"));
        }
        mappings.iter().map(|mapping| id_mapping(mapping, &format!("{field}.{name}"))).collect()
    };
    Ok(Some(UserMappings { uids: convert(&options.uids, "uids")?, gids: convert(&options.gids, "gids")? }))
}

fn id_mapping(mapping: &v1::IdMapping, field: &str) -> Result<oci::IdMapping, SpecError> {
    let fits = |first: u32| mapping.length > 0 && first.checked_add(mapping.length).is_some();
    if !fits(mapping.container_id) || !fits(mapping.host_id) {
        let reason = format!("{} IDs from {} on are not a range of IDs", mapping.length, mapping.host_id);
        return Err(SpecError::invalid(field, reason));
    }
    Ok(oci::IdMapping { container_id: mapping.container_id, host_id: mapping.host_id, size: mapping.length })
}

/// User first, so that it owns the others when they are made.
pub(crate) fn build(input: &SpecInput<'_>, privileged: bool) -> Result<Vec<oci::Namespace>, SpecError> {
    let wanted = input.namespaces;
    let mut list = Vec::new();
    for (kind, source) in [
        ("user", &wanted.user),
        ("network", &wanted.network),
        ("ipc", &wanted.ipc),
        ("uts", &wanted.uts),
        ("pid", &wanted.pid),
    ] {
        match source {
            NamespaceSource::Host => {}
            NamespaceSource::Private => list.push(namespace(kind, None)),
            NamespaceSource::Path(path) if path.starts_with('/') => {
                list.push(namespace(kind, Some(path.clone())))
            }
            NamespaceSource::Path(path) => {
                let reason = format!("{path:?} is no path of a {kind} namespace");
                return Err(SpecError::invalid(OPTIONS, reason));
            }
        }
    }
    if wanted.user != NamespaceSource::Host
        && (wanted.uid_mappings.is_empty() || wanted.gid_mappings.is_empty())
    {
        return Err(SpecError::invalid(
            "linux.security_context.namespace_options.userns_options",
            "a user namespace needs mappings of users and of groups",
        ));
    }
    list.push(namespace("mount", None));
    // Privileged containers see the node's tree; on v1 the hierarchies are bound as they are.
    if input.node.cgroup_v2 && !privileged {
        list.push(namespace("cgroup", None));
    }
    Ok(list)
}

fn namespace(kind: &str, path: Option<String>) -> oci::Namespace {
    oci::Namespace { kind: kind.to_owned(), path }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(options: v1::NamespaceOption) -> v1::PodSandboxConfig {
        v1::PodSandboxConfig {
            linux: Some(v1::LinuxPodSandboxConfig {
                security_context: Some(v1::LinuxSandboxSecurityContext {
                    namespace_options: Some(options),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn check(options: v1::NamespaceOption, field: &str) {
        assert_eq!(sandbox_namespaces(&sandbox(options)).unwrap_err().field, format!("{OPTIONS}.{field}"));
    }

    #[test]
    fn modes_that_a_namespace_does_not_have_are_refused() {
        let option = v1::NamespaceOption::default;
        check(v1::NamespaceOption { network: 1, ..option() }, "network");
        check(v1::NamespaceOption { ipc: 3, ..option() }, "ipc");
        check(v1::NamespaceOption { pid: 9, ..option() }, "pid");
        check(v1::NamespaceOption { pid: 3, ..option() }, "target_id");
        check(v1::NamespaceOption { pid: 3, target_id: "x".to_owned(), ..option() }, "pid");
        let user =
            |user| v1::NamespaceOption { userns_options: Some(user), ..v1::NamespaceOption::default() };
        check(user(v1::UserNamespace { mode: 1, ..Default::default() }), "userns_options.mode");
        check(user(v1::UserNamespace::default()), "userns_options.uids");
        let map = |length| vec![v1::IdMapping { host_id: u32::MAX - 5, container_id: 0, length }];
        for length in [0, 6] {
            check(
                user(v1::UserNamespace { mode: 0, uids: map(length), gids: map(5) }),
                "userns_options.uids",
            );
        }
        check(user(v1::UserNamespace { mode: 2, uids: map(5), gids: vec![] }), "userns_options");
    }

    #[test]
    fn a_container_that_says_nothing_has_its_sandboxs_mode() {
        let node = sandbox(v1::NamespaceOption { network: 2, pid: 2, ..Default::default() });
        let container = v1::ContainerConfig::default();
        assert_eq!(container_pid_mode(&container, &node).unwrap(), PidMode::Node);
        assert!(sandbox_namespaces(&node).unwrap().host_network);
        assert_eq!(
            sandbox_namespaces(&v1::PodSandboxConfig::default()).unwrap(),
            SandboxNamespaces::default()
        );
    }
}
