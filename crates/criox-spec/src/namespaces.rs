//! Namespaces: which ones a request asks for, and the list to make or join.

use criox_cri::v1;

use crate::error::SpecError;
use crate::input::{EffectiveUser, NamespaceSource, SpecInput};
use crate::oci;

const OPTIONS: &str = "linux.security_context.namespace_options";

/// Ranges of one mapping that the kernel takes (user_namespaces(7)).
const MAX_RANGES: usize = 340;

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
    let convert = |mappings: &[v1::IdMapping], name: &str| id_mappings(mappings, &format!("{field}.{name}"));
    Ok(Some(UserMappings { uids: convert(&options.uids, "uids")?, gids: convert(&options.gids, "gids")? }))
}

/// The mappings of a user namespace in which containers can run.
fn id_mappings(mappings: &[v1::IdMapping], field: &str) -> Result<Vec<oci::IdMapping>, SpecError> {
    let refused = |reason: String| SpecError::invalid(field, reason);
    if mappings.is_empty() {
        return Err(refused("empty: mode POD needs mappings".to_owned()));
    }
    let list = id_ranges(mappings, field)?;
    if list.iter().all(|range| range.container_id > 0) {
        return Err(refused(
            "ID 0 of the pod is not mapped: a runtime needs it to set a container up".to_owned(),
        ));
    }
    if list.iter().any(|range| range.host_id == 0) {
        return Err(refused("the node's own ID 0 can't be given to a pod".to_owned()));
    }
    Ok(list)
}

/// Ranges as the kernel takes them: each within the IDs there are, none inside or outside twice.
///
/// # Errors
/// What is wrong, with `field`.
pub(crate) fn id_ranges(mappings: &[v1::IdMapping], field: &str) -> Result<Vec<oci::IdMapping>, SpecError> {
    let refused = |reason: String| SpecError::invalid(field, reason);
    if mappings.len() > MAX_RANGES {
        return Err(refused(format!("{} ranges: the kernel takes at most {MAX_RANGES}", mappings.len())));
    }
    // The highest number is no ID (it means "none" to system calls).
    let fits = |first: u32, length: u32| length > 0 && first.checked_add(length).is_some();
    for v1::IdMapping { container_id, host_id, length } in mappings {
        for first in [*container_id, *host_id] {
            if !fits(first, *length) {
                return Err(refused(format!("{length} IDs from {first} on are not a range of IDs")));
            }
        }
    }
    type First = fn(&v1::IdMapping) -> u32;
    let sides: [(&str, First); 2] =
        [("the pod", |range| range.container_id), ("the node", |range| range.host_id)];
    for (side, first) in sides {
        let mut sorted: Vec<&v1::IdMapping> = mappings.iter().collect();
        sorted.sort_by_key(|range| first(range));
        if let Some(pair) = sorted.windows(2).find(|pair| first(pair[0]) + pair[0].length > first(pair[1])) {
            return Err(refused(format!("ID {} of {side} is mapped twice", first(pair[1]))));
        }
    }
    let convert = |mapping: &v1::IdMapping| oci::IdMapping {
        container_id: mapping.container_id,
        host_id: mapping.host_id,
        size: mapping.length,
    };
    Ok(mappings.iter().map(convert).collect())
}

/// Checks what a container says of user namespaces against its sandbox: all containers of a pod are in the same one.
///
/// # Errors
/// Other mappings than the sandbox's, with the field.
pub fn container_user_check(
    container: &v1::ContainerConfig,
    sandbox: &v1::PodSandboxConfig,
) -> Result<(), SpecError> {
    let own = container
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref())
        .and_then(|context| context.namespace_options.as_ref())
        .and_then(|options| options.userns_options.as_ref());
    // Absent counts as not asked, as from an old kubelet.
    let Some(own) = own else { return Ok(()) };
    if user_namespace(own)? != sandbox_namespaces(sandbox)?.user {
        return Err(SpecError::invalid(
            format!("{OPTIONS}.userns_options"),
            "differs from the sandbox's: the containers of a pod share its user namespace",
        ));
    }
    Ok(())
}

/// Checks that the process's user and groups exist in its user namespace.
pub(crate) fn check_identity(input: &SpecInput<'_>, who: &EffectiveUser) -> Result<(), SpecError> {
    let wanted = input.namespaces;
    // Missing mappings are refused as such, by `build`.
    let none = wanted.uid_mappings.is_empty() || wanted.gid_mappings.is_empty();
    if none || wanted.user == NamespaceSource::Host {
        return Ok(());
    }
    let mapped = |ranges: &[oci::IdMapping], id: u32| {
        ranges
            .iter()
            .any(|range| id.checked_sub(range.container_id).is_some_and(|offset| offset < range.size))
    };
    let refused = |field: &str, kind: &str, id: u32| {
        let reason = format!("{kind} {id} is not among those that the pod's user namespace maps");
        Err(SpecError::invalid(format!("linux.security_context.{field}"), reason))
    };
    if !mapped(&wanted.uid_mappings, who.uid) {
        return refused("run_as_user", "user", who.uid);
    }
    if !mapped(&wanted.gid_mappings, who.gid) {
        return refused("run_as_group", "group", who.gid);
    }
    match who.supplemental_groups.iter().find(|group| !mapped(&wanted.gid_mappings, **group)) {
        Some(group) => refused("supplemental_groups", "group", *group),
        None => Ok(()),
    }
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

    /// Whether a mapping of `(container, host, length)` is taken, or what is said against it.
    #[track_caller]
    fn check_map(ranges: &[(u32, u32, u32)], expected: Result<(), &str>) {
        let map: Vec<v1::IdMapping> = ranges
            .iter()
            .map(|&(container_id, host_id, length)| v1::IdMapping { host_id, container_id, length })
            .collect();
        let good = vec![v1::IdMapping { host_id: 65_536, container_id: 0, length: 65_536 }];
        let user = v1::UserNamespace { mode: 0, uids: good, gids: map };
        let options = v1::NamespaceOption { userns_options: Some(user), ..Default::default() };
        match (sandbox_namespaces(&sandbox(options)), expected) {
            (Ok(namespaces), Ok(())) => {
                assert_eq!(namespaces.user.expect("mapped").gids.len(), ranges.len());
            }
            (Err(error), Err(text)) => {
                assert_eq!(error.field, format!("{OPTIONS}.userns_options.gids"));
                assert!(error.to_string().contains(text), "{error}");
            }
            (got, expected) => panic!("{ranges:?}: {got:?}, not {expected:?}"),
        }
    }

    #[test]
    fn mappings_that_the_kernel_would_refuse_are_refused_with_the_reason() {
        check_map(&[(0, 65_536, 65_536)], Ok(()));
        check_map(&[(1000, 300_000, 1000), (0, 200_000, 1000)], Ok(()));
        check_map(&[(1, 65_536, 65_536)], Err("ID 0 of the pod"));
        check_map(&[(0, 0, 10)], Err("node's own ID 0"));
        check_map(&[(0, 1000, 10), (9, 2000, 10)], Err("ID 9 of the pod is mapped twice"));
        check_map(&[(100, 1000, 10), (0, 1005, 10)], Err("ID 1005 of the node is mapped twice"));
        check_map(&[(0, 1000, u32::MAX)], Err("not a range"));
        let many: Vec<_> = (0..341).map(|n| (n, 1000 + n, 1)).collect();
        check_map(&many, Err("341 ranges"));
    }

    #[test]
    fn a_container_has_no_other_user_namespace_than_its_pod() {
        let user = |host_id| v1::UserNamespace {
            mode: 0,
            uids: vec![v1::IdMapping { host_id, container_id: 0, length: 65_536 }],
            gids: vec![v1::IdMapping { host_id, container_id: 0, length: 65_536 }],
        };
        let node = v1::UserNamespace { mode: 2, ..Default::default() };
        let check = |pod: Option<&v1::UserNamespace>, own: Option<&v1::UserNamespace>| {
            let options = |user: Option<&v1::UserNamespace>| v1::NamespaceOption {
                userns_options: user.cloned(),
                ..Default::default()
            };
            let container = v1::ContainerConfig {
                linux: Some(v1::LinuxContainerConfig {
                    security_context: Some(v1::LinuxContainerSecurityContext {
                        namespace_options: Some(options(own)),
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            };
            container_user_check(&container, &sandbox(options(pod))).is_ok()
        };
        let (a, b) = (user(65_536), user(131_072));
        for (pod, own, fits) in [
            (Some(&a), Some(&a), true),
            (Some(&a), None, true),
            (Some(&a), Some(&b), false),
            (Some(&a), Some(&node), false),
            (None, Some(&node), true),
            (None, Some(&a), false),
            (Some(&node), None, true),
        ] {
            assert_eq!(check(pod, own), fits, "{pod:?} {own:?}");
        }
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
