//! What a runtime says of itself.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use criox_monitor_api::proto;
use serde::Deserialize;
use tokio::process::Command;
use tokio::time::timeout;

use crate::SEARCH;

/// A runtime that does not say what it can within this time is taken to have no features.
const PROBE: Duration = Duration::from_secs(5);

/// What was found by calling the runtime.
#[derive(Debug, Default)]
pub(crate) struct Probed {
    pub(crate) oci_version_max: String,
    pub(crate) mount_options: Vec<String>,
    pub(crate) idmapped_mounts: bool,
    pub(crate) namespaces: Vec<String>,
    pub(crate) seccomp: Option<bool>,
    pub(crate) seccomp_notify: bool,
    pub(crate) apparmor: Option<bool>,
    pub(crate) selinux: Option<bool>,
    pub(crate) intel_rdt: Option<bool>,
    pub(crate) net_devices: bool,
    pub(crate) memory_policy: bool,
    pub(crate) exec_cgroup_flag: bool,
    pub(crate) flavor: proto::runtime::Flavor,
    /// Whether it was built with checkpoints, where it says so.
    pub(crate) checkpoints: Option<bool>,
}

/// The part of `<runtime> features` (OCI runtime specification, features.md) that is looked at.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Features {
    #[serde(default)]
    oci_version_max: String,
    #[serde(default)]
    mount_options: Vec<String>,
    #[serde(default)]
    linux: Option<LinuxFeatures>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

/// By which a runtime says whether it was built with checkpoints.
const CHECKPOINT_ANNOTATIONS: [&str; 2] =
    ["org.opencontainers.runc.checkpoint.enabled", "run.oci.crun.checkpoint.enabled"];

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct LinuxFeatures {
    namespaces: Vec<String>,
    mount_extensions: Option<MountExtensions>,
    seccomp: Option<SeccompFeatures>,
    apparmor: Option<Switch>,
    selinux: Option<Switch>,
    intel_rdt: Option<Switch>,
    net_devices: Option<Switch>,
    memory_policy: Option<MemoryPolicies>,
}

#[derive(Debug, Deserialize)]
struct SeccompFeatures {
    #[serde(default)]
    enabled: Option<bool>,
    #[serde(default)]
    actions: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct MemoryPolicies {
    #[serde(default)]
    modes: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct MountExtensions {
    #[serde(default)]
    idmap: Option<Switch>,
}

/// What can be there or not; absent means that the runtime does not say.
#[derive(Debug, Deserialize)]
struct Switch {
    #[serde(default)]
    enabled: Option<bool>,
}

/// Asks a runtime.
pub(crate) async fn probe(path: &Path) -> Probed {
    let (help, version) = (["exec", "--help"], ["--version"]);
    let (features, help, version) =
        tokio::join!(output(path, &["features"]), output(path, &help), output(path, &version));
    let text = |said: std::process::Output| {
        String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned()
    };
    let flavor = version.map_or(proto::runtime::Flavor::Other, |said| flavor_of(&text(said)));
    let exec_cgroup_flag = help.is_some_and(|said| text(said).contains("--cgroup"));
    // Wrappers warn on standard error.
    let said = features.map(|said| read_features(&said.stdout)).unwrap_or_default();
    Probed { exec_cgroup_flag, flavor, ..said }
}

/// What the answer to `features` says; nothing, if it is none: runtimes before that command print their usage.
fn read_features(answer: &[u8]) -> Probed {
    let Ok(features) = serde_json::from_slice::<Features>(answer) else { return Probed::default() };
    let linux = features.linux.unwrap_or_default();
    let enabled = |switch: Option<Switch>| switch.and_then(|switch| switch.enabled);
    let annotations = features.annotations.unwrap_or_default();
    let checkpoints = CHECKPOINT_ANNOTATIONS.iter().find_map(|key| annotations.get(*key));
    Probed {
        checkpoints: checkpoints.map(|value| value == "true"),
        oci_version_max: features.oci_version_max,
        mount_options: features.mount_options,
        idmapped_mounts: enabled(linux.mount_extensions.and_then(|extensions| extensions.idmap))
            .unwrap_or(false),
        namespaces: linux.namespaces,
        seccomp_notify: linux.seccomp.as_ref().is_some_and(|seccomp| {
            let mut actions = seccomp.actions.iter().flatten();
            seccomp.enabled != Some(false) && actions.any(|action| action == "SCMP_ACT_NOTIFY")
        }),
        seccomp: linux.seccomp.and_then(|seccomp| seccomp.enabled),
        apparmor: enabled(linux.apparmor),
        selinux: enabled(linux.selinux),
        intel_rdt: enabled(linux.intel_rdt),
        net_devices: enabled(linux.net_devices).unwrap_or(false),
        memory_policy: linux.memory_policy.is_some_and(|policies| !policies.modes.is_empty()),
        ..Probed::default()
    }
}

/// Wrappers tell their own version before that of the runtime that they call.
fn flavor_of(version: &str) -> proto::runtime::Flavor {
    let says = |name: &str| version.lines().any(|line| line.starts_with(name));
    match (says("crun version "), says("runc version ")) {
        (true, false) => proto::runtime::Flavor::Crun,
        (false, true) => proto::runtime::Flavor::Runc,
        _ => proto::runtime::Flavor::Other,
    }
}

/// What a short call prints, if it succeeds in time.
async fn output(path: &Path, args: &[&str]) -> Option<std::process::Output> {
    let mut command = Command::new(path);
    command.args(args).env_clear().env("PATH", SEARCH).stdin(Stdio::null()).kill_on_drop(true);
    match timeout(PROBE, command.output()).await {
        Ok(Ok(output)) if output.status.success() => Some(output),
        Ok(Ok(_)) => None,
        Ok(Err(error)) => {
            tracing::warn!(runtime = %path.display(), %error, "the runtime could not be probed");
            None
        }
        Err(_) => {
            tracing::warn!(runtime = %path.display(), "the runtime did not end when probed; taking it to have no features");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(version: &str, expected: proto::runtime::Flavor) {
        assert_eq!(flavor_of(version), expected, "{version}");
    }

    #[test]
    fn features_are_what_the_runtime_says_and_nothing_more() {
        let said = read_features(
            br#"{"ociVersionMax":"1.2.0","mountOptions":["rro","ro"],"linux":{"namespaces":["user","pid"],
            "seccomp":{"enabled":true,"actions":["SCMP_ACT_ALLOW"]},"apparmor":{"enabled":false},"selinux":{},
            "mountExtensions":{"idmap":{"enabled":true}}},"annotations":{"x":"y"}}"#,
        );
        assert_eq!((said.oci_version_max.as_str(), said.idmapped_mounts), ("1.2.0", true));
        assert_eq!((said.seccomp, said.apparmor, said.selinux), (Some(true), Some(false), None));
        assert_eq!(said.namespaces, ["user", "pid"]);
        assert!(!said.seccomp_notify);
        for silent in [&b"unknown command features"[..], b"", b"{}", br#"{"linux":null}"#, b"[]"] {
            let said = read_features(silent);
            assert!(!said.idmapped_mounts && said.namespaces.is_empty() && said.seccomp.is_none());
        }
    }

    #[test]
    fn a_notifier_needs_a_runtime_that_says_so() {
        for (seccomp, notifies) in [
            (r#"{"enabled":true,"actions":["SCMP_ACT_KILL","SCMP_ACT_NOTIFY"]}"#, true),
            (r#"{"enabled":false,"actions":["SCMP_ACT_NOTIFY"]}"#, false),
            (r#"{"enabled":true,"actions":null}"#, false),
            ("null", false),
        ] {
            let said = read_features(format!(r#"{{"linux":{{"seccomp":{seccomp}}}}}"#).as_bytes());
            assert_eq!(said.seccomp_notify, notifies, "{seccomp}");
        }
    }

    #[test]
    fn a_runtime_may_say_that_it_was_built_without_checkpoints() {
        let says = |key: &str, value: &str| {
            read_features(format!(r#"{{"annotations":{{"{key}":"{value}"}}}}"#).as_bytes()).checkpoints
        };
        for key in CHECKPOINT_ANNOTATIONS {
            assert_eq!((says(key, "true"), says(key, "false")), (Some(true), Some(false)));
        }
        assert_eq!(says("another", "false"), None);
        assert_eq!(read_features(br#"{"annotations":null}"#).checkpoints, None);
    }

    #[test]
    fn a_runtime_is_known_by_what_it_calls_itself() {
        use proto::runtime::Flavor;
        check("crun version 1.8.1\ncommit: f8a\nspec: 1.0.0\n", Flavor::Crun);
        check("runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1\n", Flavor::Runc);
        check("NVIDIA Container Runtime version 1.17\ncommit: x\n\nrunc version 1.2.6\n", Flavor::Runc);
        check("runsc version release-2025\nspec: 1.1.0\n", Flavor::Other);
        check("", Flavor::Other);
    }
}
