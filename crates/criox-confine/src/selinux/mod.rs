//! SELinux: the policy's labels, a level of its own for each pod, and the labelling of volumes (`relabel`).
//!
//! In effect where the kernel enforces or reports by SELinux and the configuration does not turn it off. What a label
//! is made of is `criox-spec`'s; here is what needs the node.

mod labelling;
mod relabel;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use criox_cri::ids::SandboxId;
use criox_cri::v1;
use criox_spec::{MCS_LEVELS, SelinuxLabels};
use criox_sys::{durable, lsm};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
pub use labelling::Labelling;
pub use relabel::relabel;

/// Labels of a pod, as its record keeps them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Labels {
    /// Of processes.
    pub process: String,
    /// Of files.
    pub mount: String,
}

impl Labels {
    fn as_spec(&self) -> SelinuxLabels {
        SelinuxLabels { process: self.process.clone(), mount: self.mount.clone() }
    }

    fn level(&self) -> &str {
        self.mount.splitn(4, ':').nth(3).unwrap_or_default()
    }
}

/// SELinux of this node.
#[derive(Debug, Default)]
pub struct Selinux {
    policy: Option<Policy>,
    /// Levels of pods that are not recorded yet.
    allotted: Mutex<HashMap<SandboxId, String>>,
}

#[derive(Debug)]
struct Policy {
    defaults: SelinuxLabels,
    /// Whether labels have levels.
    levels: bool,
}

impl Selinux {
    /// Of the running kernel, unless the configuration (`selinux`) turns it off.
    pub fn new(configured: bool) -> Self {
        if !configured || !lsm::selinux_is_enabled() {
            return Self::default();
        }
        let levels = fs::read("/sys/fs/selinux/mls").is_ok_and(|text| text.first() == Some(&b'1'));
        Self { policy: Some(Policy { defaults: policy_defaults(), levels }), ..Self::default() }
    }

    /// Whether containers get labels.
    pub fn is_enabled(&self) -> bool {
        self.policy.is_some()
    }

    /// Labels for a new pod, with a level that no other has. `known` are the labels of pods with a record, `lives` tells
    /// which pods there are. They are the pod's once [`Selinux::allot`] was told; until then nobody else may ask.
    ///
    /// # Errors
    /// Options that are no parts of a label; no level is free.
    pub fn pod(
        &self,
        config: &v1::PodSandboxConfig,
        known: impl IntoIterator<Item = Labels>,
        lives: impl Fn(&SandboxId) -> bool,
    ) -> Result<Option<Labels>> {
        let Some(policy) = &self.policy else { return Ok(None) };
        let level = match policy.levels {
            false => String::new(),
            true => {
                let mut allotted = self.allotted.lock().unwrap_or_else(PoisonError::into_inner);
                allotted.retain(|id, _| lives(id));
                let mut taken: HashSet<String> =
                    known.into_iter().map(|labels| labels.level().to_owned()).collect();
                taken.extend(allotted.values().cloned());
                free_level(&taken).ok_or(Error::NoLevel)?
            }
        };
        let labels = criox_spec::pod_labels(config, &policy.defaults, &level)
            .map_err(|error| Error::invalid(format!("config.{error}")))?;
        Ok(Some(Labels { process: labels.process, mount: labels.mount }))
    }

    /// Whose labels they are, from before there is a record of it.
    pub fn allot(&self, id: SandboxId, labels: &Labels) {
        let mut allotted = self.allotted.lock().unwrap_or_else(PoisonError::into_inner);
        allotted.insert(id, labels.level().to_owned());
    }

    /// The labels of a container: none where the pod shares the node's processes or queues, as in CRI-O.
    ///
    /// # Errors
    /// Options that are no parts of a label.
    pub fn container(
        &self,
        pod: Option<&Labels>,
        sandbox: &v1::PodSandboxConfig,
        container: &v1::ContainerConfig,
    ) -> Result<Option<SelinuxLabels>> {
        let (Some(_), Some(pod)) = (&self.policy, pod) else { return Ok(None) };
        let security = sandbox.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        let options = security.and_then(|security| security.namespace_options.as_ref());
        if options.is_some_and(|options| [options.pid(), options.ipc()].contains(&v1::NamespaceMode::Node)) {
            return Ok(None);
        }
        criox_spec::container_labels(container, &pod.as_spec())
            .map(Some)
            .map_err(|error| Error::invalid(format!("config.{error}")))
    }
}

/// A level that is not taken: at random, so that a new pod seldom meets files that a former one left.
fn free_level(taken: &HashSet<String>) -> Option<String> {
    let start = u32::from_ne_bytes(durable::random_bytes::<4>()) % MCS_LEVELS;
    (0..MCS_LEVELS)
        .map(|step| criox_spec::mcs_level((start + step) % MCS_LEVELS))
        .find(|level| !taken.contains(level))
}

/// What the policy gives to containers, else the names that all policies know.
fn policy_defaults() -> SelinuxLabels {
    let config = fs::read_to_string("/etc/selinux/config").unwrap_or_default();
    let kind = config.lines().find_map(|line| line.trim().strip_prefix("SELINUXTYPE=")).unwrap_or("targeted");
    let path = Path::new("/etc/selinux").join(kind.trim()).join("contexts/lxc_contexts");
    let found = criox_spec::parse_lxc_contexts(&fs::read_to_string(path).unwrap_or_default());
    let or = |text: String, known: &str| if text.is_empty() { known.to_owned() } else { text };
    SelinuxLabels {
        process: or(found.process, "system_u:system_r:container_t:s0"),
        mount: or(found.mount, "system_u:object_r:container_file_t:s0"),
    }
}

#[cfg(test)]
mod tests;
