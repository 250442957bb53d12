//! Kernel parameters of a sandbox: only those of a namespace that the sandbox does not share with the node.

use std::collections::BTreeMap;

use criox_cri::v1;

use crate::error::{SpecError, Warning, WarningTopic};

/// Splits an entry of `default_sysctls`, `key=value` without blanks around the sign.
///
/// # Errors
/// When it is not of that form.
pub fn parse_sysctl(entry: &str) -> Result<(String, String), SpecError> {
    let bad = || SpecError::invalid("default_sysctls", format!("{entry:?} is not of the form key=value"));
    let (key, value) = entry.split_once('=').ok_or_else(bad)?;
    if key.is_empty() || key.ends_with(' ') || value.starts_with(' ') {
        return Err(bad());
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// The parameters to write in the sandbox's namespaces, keys with dots.
///
/// Defaults come first and are left out with a warning where the pod's namespaces don't allow them; what the pod itself
/// asks for is refused then, because a setting of the node must not change for a pod (CVE-2022-0532).
///
/// # Errors
/// A key or value that is malformed or not of the pod's own namespaces; field `linux.sysctls`.
pub fn sandbox_sysctls(
    defaults: &[(String, String)],
    sandbox: &v1::PodSandboxConfig,
) -> Result<(BTreeMap<String, String>, Vec<Warning>), SpecError> {
    let linux = sandbox.linux.as_ref();
    let options = linux
        .and_then(|linux| linux.security_context.as_ref())
        .and_then(|context| context.namespace_options.as_ref());
    let node = v1::NamespaceMode::Node as i32;
    let host_network = options.is_some_and(|options| options.network == node);
    let host_ipc = options.is_some_and(|options| options.ipc == node);
    let mut sysctls = BTreeMap::new();
    let mut warnings = Vec::new();
    for (key, value) in defaults {
        match check(key, value, host_network, host_ipc) {
            Ok(key) => drop(sysctls.insert(key, value.clone())),
            Err(reason) => warnings.push(Warning::new(
                WarningTopic::Sysctl,
                format!("default_sysctls: {key} is left out: {reason}"),
            )),
        }
    }
    if let Some(linux) = linux {
        for (key, value) in &linux.sysctls {
            let key = check(key, value, host_network, host_ipc)
                .map_err(|reason| SpecError::invalid("linux.sysctls", format!("{key}: {reason}")))?;
            sysctls.insert(key, value.clone());
        }
    }
    Ok((sysctls, warnings))
}

/// The key with dots, or the reason against it.
fn check(key: &str, value: &str, host_network: bool, host_ipc: bool) -> Result<String, String> {
    let key = dotted(key)?;
    // A "+" once started a second assignment in a helper's command line (CVE-2022-0811); control characters would
    // start a second line.
    if value.is_empty() || value.contains('+') || value.chars().any(|c| c.is_control() && c != '\t') {
        return Err(format!("{value:?} is no value of a kernel parameter"));
    }
    let ipc = key == "kernel.sem"
        || ["kernel.shm", "kernel.msg", "fs.mqueue."].iter().any(|prefix| key.starts_with(prefix));
    if ipc {
        if host_ipc {
            return Err("not allowed with the node's IPC namespace".to_owned());
        }
        return Ok(key);
    }
    if key.starts_with("net.") {
        if host_network {
            return Err("not allowed with the node's network".to_owned());
        }
        return Ok(key);
    }
    Err("not a parameter of a pod's own namespace (kernel.sem, kernel.shm*, kernel.msg*, fs.mqueue.*, net.*)"
        .to_owned())
}

/// sysctl(8)'s two spellings, `net.ipv4.x` and `net/ipv4/x`: in the latter a dot belongs to a name (`eth0.100`), which
/// the former spells with a slash.
fn dotted(key: &str) -> Result<String, String> {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte);
    if key.is_empty() || !key.bytes().all(valid) {
        return Err("malformed name".to_owned());
    }
    let slashes_first = key.find(['.', '/']).is_some_and(|at| key.as_bytes()[at] == b'/');
    let dotted: String = if slashes_first {
        key.chars()
            .map(|c| {
                if c == '/' {
                    '.'
                } else if c == '.' {
                    '/'
                } else {
                    c
                }
            })
            .collect()
    } else {
        key.to_owned()
    };
    // Each part becomes a path component, where slashes stand for dots.
    if dotted.split('.').any(|part| part.is_empty() || part.starts_with('/') || part.ends_with('/')) {
        return Err("malformed name".to_owned());
    }
    Ok(dotted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(
        network: v1::NamespaceMode,
        ipc: v1::NamespaceMode,
        key: &str,
        value: &str,
    ) -> v1::PodSandboxConfig {
        v1::PodSandboxConfig {
            linux: Some(v1::LinuxPodSandboxConfig {
                sysctls: [(key.to_owned(), value.to_owned())].into_iter().collect(),
                security_context: Some(v1::LinuxSandboxSecurityContext {
                    namespace_options: Some(v1::NamespaceOption {
                        network: network as i32,
                        ipc: ipc as i32,
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn check(network: v1::NamespaceMode, ipc: v1::NamespaceMode, key: &str, value: &str, allowed: bool) {
        let result = sandbox_sysctls(&[], &sandbox(network, ipc, key, value));
        assert_eq!(result.is_ok(), allowed, "{key}={value}: {result:?}");
    }

    #[test]
    fn only_parameters_of_the_pods_own_namespaces_are_allowed() {
        use v1::NamespaceMode::{Node, Pod};
        check(Pod, Pod, "net.ipv4.ip_forward", "1", true);
        check(Node, Pod, "net.ipv4.ip_forward", "1", false);
        check(Node, Pod, "kernel.shm_rmid_forced", "1", true);
        check(Pod, Node, "kernel.shm_rmid_forced", "1", false);
        check(Pod, Node, "fs.mqueue.msg_max", "1", false);
        check(Pod, Pod, "kernel.sem", "1 2 3 4", true);
        check(Pod, Pod, "kernel.semi", "1", false);
        check(Pod, Pod, "kernel.core_pattern", "x", false);
        check(Pod, Pod, "vm.swappiness", "1", false);
    }

    #[test]
    fn a_value_that_starts_another_assignment_is_refused() {
        use v1::NamespaceMode::Pod;
        check(Pod, Pod, "kernel.shm_rmid_forced", "1+kernel.core_pattern=|/x", false);
        check(Pod, Pod, "net.ipv4.ip_forward", "1\nx", false);
        check(Pod, Pod, "net/../kernel/core_pattern", "1", false);
        check(Pod, Pod, "net..core", "1", false);
        check(Pod, Pod, "net./../x", "1", false);
        check(Pod, Pod, "net/ipv4/conf/eth0.100/forwarding", "1", true);
    }

    #[test]
    fn a_default_that_the_pod_may_not_have_is_left_out_and_told() {
        let config = sandbox(v1::NamespaceMode::Node, v1::NamespaceMode::Pod, "kernel.sem", "1");
        let defaults = [parse_sysctl("net.core.somaxconn=1").unwrap(), parse_sysctl("kernel.sem=9").unwrap()];
        let (sysctls, warnings) = sandbox_sysctls(&defaults, &config).unwrap();
        assert_eq!(sysctls.into_iter().collect::<Vec<_>>(), [("kernel.sem".to_owned(), "1".to_owned())]);
        assert_eq!(warnings.len(), 1);
    }

    #[test]
    fn a_default_needs_key_and_value_without_blanks_around_the_sign() {
        for entry in ["a", "=1", "a =1", "a= 1"] {
            assert!(parse_sysctl(entry).is_err(), "{entry:?}");
        }
    }
}
