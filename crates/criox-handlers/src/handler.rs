//! One handler.

use std::path::{Path, PathBuf};
use std::time::Duration;

use criox_config::RuntimeHandler;
use criox_monitor_api::proto;
use criox_spec::HandlerFeatures;
use tokio::sync::OnceCell;

use crate::SEARCH;
use crate::error::{Error, Result};
use crate::features::{self, Probed};

/// One handler.
#[derive(Debug)]
pub struct Handler {
    /// Its name in the configuration.
    pub name: String,
    /// Its configuration.
    pub config: RuntimeHandler,
    probed: OnceCell<Probed>,
}

impl Handler {
    pub(crate) fn new(name: &str, config: RuntimeHandler) -> Self {
        Self { name: name.to_owned(), config, probed: OnceCell::new() }
    }

    /// The runtime's program.
    ///
    /// # Errors
    /// Absent or not executable, or a type of runtime that this version does not drive.
    pub fn program(&self) -> Result<PathBuf> {
        if self.config.kind() != "oci" {
            return Err(Error::Unavailable(format!(
                "runtime handler {:?} has runtime_type {:?}, which this version of criox does not drive; use \"oci\"",
                self.name,
                self.config.kind()
            )));
        }
        self.config.program(&self.name, SEARCH).map_err(|reason| {
            Error::Unavailable(format!(
                "runtime handler {:?}: {reason}; install the runtime or correct its runtime_path",
                self.name
            ))
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
            seccomp_notify: found.is_some_and(|probed| probed.seccomp_notify),
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

    /// The name that the runtime gives itself, for checkpoints: one runtime does not restore those of another.
    ///
    /// # Errors
    /// It can't make or restore checkpoints.
    pub async fn checkpoints(&self) -> Result<String> {
        let path = self.program()?;
        let probed = self.probed(&path).await;
        if probed.checkpoints == Some(false) {
            let text = format!(
                "runtime handler {:?}: {} was built without checkpoints; use a crun or runc that has them",
                self.name,
                path.display()
            );
            return Err(Error::Unavailable(text));
        }
        Ok(match probed.flavor {
            proto::runtime::Flavor::Crun => "crun".to_owned(),
            proto::runtime::Flavor::Runc => "runc".to_owned(),
            proto::runtime::Flavor::Other => self.name.clone(),
        })
    }

    /// How long CreateContainer may take.
    pub fn create_timeout(&self) -> Duration {
        let seconds = match self.config.container_create_timeout {
            0 => 240,
            seconds => seconds.max(30),
        };
        Duration::from_secs(seconds.unsigned_abs())
    }

    pub(crate) async fn probed(&self, path: &Path) -> &Probed {
        self.probed.get_or_init(|| features::probe(path)).await
    }
}
