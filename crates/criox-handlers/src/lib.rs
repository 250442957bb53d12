//! Runtime handlers: the OCI runtimes of the configuration, each probed once for what it accepts.
//!
//! [`Handlers`] is the table, by the names that a RuntimeClass gives; a [`Handler`] says what its runtime can
//! ([`Handler::features`]) and how the monitor is to call it ([`Handlers::runtime`]). The runtime is called here only to be
//! asked, and to delete a container whose monitor has gone.

mod error;
mod features;
mod handler;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use criox_config::RuntimeHandler;
use criox_cri::ids::ContainerId;
use criox_monitor_api::proto;
use tokio::process::Command;
use tokio::time::timeout;

pub use error::{Error, Result};
pub use handler::Handler;

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
    /// Where runtimes find the programs that they call.
    search: String,
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
                let handler = Handler::new(name, config);
                (name.clone(), Arc::new(handler))
            })
            .collect();
        let search = SEARCH.to_owned();
        Self { table, missing: BTreeSet::new(), default: default.into(), no_pivot, systemd_cgroup, search }
    }

    /// Lets runtimes find programs in one more directory first: CRIU's.
    #[must_use]
    pub fn searching(mut self, directory: Option<&Path>) -> Self {
        if let Some(directory) = directory.and_then(Path::to_str)
            && !self.search.split(':').any(|known| known == directory)
        {
            self.search = format!("{directory}:{}", self.search);
        }
        self
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
                return Error::Unavailable(text);
            }
            let known = self.table.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            Error::Unknown(format!(
                    "runtime handler {wanted:?} is not configured (there are: {known}); add [crio.runtime.runtimes.{wanted}] or correct the RuntimeClass"
                ))
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
            env.push(format!("PATH={}", self.search));
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
    pub async fn delete(&self, handler: &str, container: &ContainerId) -> Result<()> {
        let handler = self.get(handler)?;
        let runtime = self.runtime(&handler).await?;
        let mut command = Command::new(&runtime.path);
        command.env_clear().envs(runtime.env.iter().filter_map(|pair| pair.split_once('=')));
        command.args(["--root", &runtime.root]);
        if runtime.systemd_cgroup {
            command.arg("--systemd-cgroup");
        }
        command.args(["delete", "--force", container.as_str()]).stdin(Stdio::null()).kill_on_drop(true);
        let failed = |source: io::Error| Error::Failed {
            message: format!("{} delete of container {container}", runtime.path),
            source,
        };
        match timeout(DELETE, command.output()).await {
            Ok(Ok(output)) if output.status.success() => Ok(()),
            Ok(Ok(output)) => {
                let text = String::from_utf8_lossy(&output.stderr);
                // Both dialects say so of a container they have never known.
                if text.contains("does not exist") || text.contains("No such file") {
                    return Ok(());
                }
                Err(failed(io::Error::other(text.trim().to_owned())))
            }
            Ok(Err(error)) => Err(failed(error)),
            Err(_) => Err(Error::Late(format!(
                "delete of container {container} did not end within {:.1} s; the runtime hangs",
                DELETE.as_secs_f64()
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    /// A name that one of the two does not know would be refused in a configuration, or let through ungated.
    #[test]
    fn the_annotations_that_may_be_allowed_are_those_that_are_gated() {
        assert_eq!(criox_config::ANNOTATIONS, criox_spec::GATED);
    }
}
