//! Runtime handlers: the OCI runtimes of the configuration, each probed once for what it accepts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use criox_config::RuntimeHandler;
use criox_cri::ids::ContainerId;
use criox_monitor_api::proto;
use criox_spec::HandlerFeatures;
use serde::Deserialize;
use tokio::process::Command;
use tokio::sync::OnceCell;
use tokio::time::timeout;

use crate::error::{Error, Kind, Result};

/// A runtime that does not say what it can within this time is taken to have no features.
const PROBE: Duration = Duration::from_secs(5);
/// How long a runtime that is called without a monitor may take to delete.
const DELETE: Duration = Duration::from_secs(30);
/// The search path of a handler without `runtime_path`.
const SEARCH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// All handlers.
#[derive(Debug)]
pub struct Handlers {
    table: BTreeMap<String, Arc<Handler>>,
    /// Handlers of the configuration whose program was not there at start.
    missing: BTreeSet<String>,
    default: String,
    no_pivot: bool,
    systemd_cgroup: bool,
}

/// One handler.
#[derive(Debug)]
pub struct Handler {
    /// Its name in the configuration.
    pub name: String,
    /// Its configuration.
    pub config: RuntimeHandler,
    probed: OnceCell<Probed>,
}

/// What was found by calling the runtime.
#[derive(Debug, Default)]
struct Probed {
    oci_version_max: String,
    mount_options: Vec<String>,
    idmapped_mounts: bool,
    namespaces: Vec<String>,
    seccomp: Option<bool>,
    apparmor: Option<bool>,
    selinux: Option<bool>,
    intel_rdt: Option<bool>,
    net_devices: bool,
    memory_policy: bool,
    exec_cgroup_flag: bool,
    flavor: proto::runtime::Flavor,
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
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct LinuxFeatures {
    namespaces: Vec<String>,
    mount_extensions: Option<MountExtensions>,
    seccomp: Option<Switch>,
    apparmor: Option<Switch>,
    selinux: Option<Switch>,
    intel_rdt: Option<Switch>,
    net_devices: Option<Switch>,
    memory_policy: Option<MemoryPolicies>,
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

impl Handlers {
    /// The handlers of a configuration.
    pub fn new(
        runtimes: &BTreeMap<String, RuntimeHandler>,
        default: &str,
        no_pivot: bool,
        systemd_cgroup: bool,
    ) -> Self {
        let table = runtimes
            .iter()
            .map(|(name, config)| {
                let config = match (config.inherit_default_runtime, runtimes.get(default)) {
                    (true, Some(default)) => RuntimeHandler {
                        runtime_path: default.runtime_path.clone(),
                        runtime_type: default.runtime_type.clone(),
                        runtime_root: default.runtime_root.clone(),
                        runtime_config_path: default.runtime_config_path.clone(),
                        ..config.clone()
                    },
                    _ => config.clone(),
                };
                let handler = Handler { name: name.clone(), config, probed: OnceCell::new() };
                (name.clone(), Arc::new(handler))
            })
            .collect();
        Self { table, missing: BTreeSet::new(), default: default.into(), no_pivot, systemd_cgroup }
    }

    /// Remembers handlers that were left out at start because their program is missing, for the error that names them.
    #[must_use]
    pub fn without(mut self, missing: impl IntoIterator<Item = String>) -> Self {
        self.missing = missing.into_iter().filter(|name| !self.table.contains_key(name)).collect();
        self
    }

    /// The handler of a request; empty means the default.
    ///
    /// # Errors
    /// No handler has the name.
    pub fn get(&self, name: &str) -> Result<Arc<Handler>> {
        let wanted = if name.is_empty() { &self.default } else { name };
        self.table.get(wanted).cloned().ok_or_else(|| {
            if self.missing.contains(wanted) {
                let text = format!(
                    "runtime handler {wanted:?} was left out when criox started, for its program is not there; install it or correct its runtime_path, and restart criox"
                );
                return Error::new(Kind::FailedPrecondition, text);
            }
            let known = self.table.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            Error::new(
                Kind::InvalidArgument,
                format!(
                    "runtime handler {wanted:?} is not configured (there are: {known}); add [crio.runtime.runtimes.{wanted}] or correct the RuntimeClass"
                ),
            )
        })
    }

    /// All handlers, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Handler>> {
        self.table.values()
    }

    /// The name of the default.
    pub fn default_name(&self) -> &str {
        &self.default
    }

    /// How the monitor is to call the handler's runtime.
    ///
    /// # Errors
    /// The program is absent, or the type of runtime is one that this version does not drive.
    pub async fn runtime(&self, handler: &Handler) -> Result<proto::Runtime> {
        let path = handler.program()?;
        let probed = handler.probed(&path).await;
        let mut env = handler.config.monitor_env.clone();
        // The runtime looks up its hooks and helpers by PATH.
        if !env.iter().any(|entry| entry.starts_with("PATH=")) {
            env.push(format!("PATH={SEARCH}"));
        }
        Ok(proto::Runtime {
            path: path.to_string_lossy().into_owned(),
            root: handler.config.root().to_string_lossy().into_owned(),
            systemd_cgroup: self.systemd_cgroup,
            env,
            exec_cgroup_flag: probed.exec_cgroup_flag,
            no_pivot: self.no_pivot,
            flavor: probed.flavor.into(),
        })
    }

    /// `delete --force` of a container whose monitor has gone.
    ///
    /// # Errors
    /// The runtime is absent, fails, or does not end in time.
    pub(crate) async fn delete(&self, handler: &str, container: &ContainerId) -> Result<()> {
        let handler = self.get(handler)?;
        let runtime = self.runtime(&handler).await?;
        let mut command = Command::new(&runtime.path);
        command.env_clear().envs(runtime.env.iter().filter_map(|pair| pair.split_once('=')));
        command.args(["--root", &runtime.root]);
        if runtime.systemd_cgroup {
            command.arg("--systemd-cgroup");
        }
        command.args(["delete", "--force", container.as_str()]).stdin(Stdio::null()).kill_on_drop(true);
        let failed = || Error::failed(format!("{} delete of container {container}", runtime.path));
        match timeout(DELETE, command.output()).await {
            Ok(Ok(output)) if output.status.success() => Ok(()),
            Ok(Ok(output)) => {
                let text = String::from_utf8_lossy(&output.stderr);
                // Both dialects say so of a container they have never known.
                if text.contains("does not exist") || text.contains("No such file") {
                    return Ok(());
                }
                Err(failed().because(std::io::Error::other(text.trim().to_owned())))
            }
            Ok(Err(error)) => Err(failed().because(error)),
            Err(_) => Err(Error::timed_out(
                "delete",
                &format!("container {container}"),
                DELETE,
                "the runtime hangs",
            )),
        }
    }
}

impl Handler {
    /// The runtime's program.
    ///
    /// # Errors
    /// Absent or not executable, or a type of runtime that this version does not drive.
    pub fn program(&self) -> Result<PathBuf> {
        if self.config.kind() != "oci" {
            return Err(Error::new(
                Kind::FailedPrecondition,
                format!(
                    "runtime handler {:?} has runtime_type {:?}, which this version of criox does not drive; use \"oci\"",
                    self.name,
                    self.config.kind()
                ),
            ));
        }
        self.config.program(&self.name, SEARCH).map_err(|reason| {
            Error::new(
                Kind::FailedPrecondition,
                format!(
                    "runtime handler {:?}: {reason}; install the runtime or correct its runtime_path",
                    self.name
                ),
            )
        })
    }

    /// What it accepts, for the specification.
    pub async fn features(&self) -> HandlerFeatures {
        let found = match self.program() {
            Ok(path) => Some(self.probed(&path).await),
            Err(_) => None,
        };
        HandlerFeatures {
            oci_version_max: found.map(|probed| probed.oci_version_max.clone()).unwrap_or_default(),
            recursive_read_only: found
                .is_some_and(|probed| probed.mount_options.iter().any(|option| option == "rro")),
            idmapped_mounts: found.is_some_and(|probed| probed.idmapped_mounts),
            user_namespaces: found
                .is_some_and(|probed| probed.namespaces.iter().any(|namespace| namespace == "user")),
            seccomp: found.and_then(|probed| probed.seccomp),
            apparmor: found.and_then(|probed| probed.apparmor),
            selinux: found.and_then(|probed| probed.selinux),
            intel_rdt: found.and_then(|probed| probed.intel_rdt),
            net_devices: found.is_some_and(|probed| probed.net_devices),
            memory_policy: found.is_some_and(|probed| probed.memory_policy),
            privileged_without_host_devices: self.config.privileged_without_host_devices,
            container_min_memory: self.config.min_memory_bytes(),
            allowed_annotations: self.config.allowed_annotations.clone(),
            platform_runtime_path: String::new(),
        }
    }

    /// How long CreateContainer may take.
    pub fn create_timeout(&self) -> Duration {
        let seconds = match self.config.container_create_timeout {
            0 => 240,
            seconds => seconds.max(30),
        };
        Duration::from_secs(seconds.unsigned_abs())
    }

    async fn probed(&self, path: &Path) -> &Probed {
        self.probed.get_or_init(|| probe(path)).await
    }
}

async fn probe(path: &Path) -> Probed {
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
    Probed {
        oci_version_max: features.oci_version_max,
        mount_options: features.mount_options,
        idmapped_mounts: enabled(linux.mount_extensions.and_then(|extensions| extensions.idmap))
            .unwrap_or(false),
        namespaces: linux.namespaces,
        seccomp: enabled(linux.seccomp),
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
        for silent in [&b"unknown command features"[..], b"", b"{}", br#"{"linux":null}"#, b"[]"] {
            let said = read_features(silent);
            assert!(!said.idmapped_mounts && said.namespaces.is_empty() && said.seccomp.is_none());
        }
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
