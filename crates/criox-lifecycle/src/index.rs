//! What reads answer from: the latest published state of each pod. A read takes a lock only to clone pointers;
//! nobody holds it across I/O.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use criox_answers::status;
use criox_cri::ids::{ContainerId, SandboxId};
use criox_cri::v1;
use criox_records::{ContainerRecord, SandboxPhase, SandboxRecord};

use crate::entries::Entries;
use crate::error::{Error, Kind, Result};
use crate::pod::Pod;
use crate::stats::Probes;

/// A pod as it was published last.
#[derive(Debug, Clone)]
pub struct PodView {
    /// The sandbox.
    pub sandbox: Arc<SandboxRecord>,
    /// Its containers, also those that no call has been given yet.
    pub containers: BTreeMap<ContainerId, Arc<ContainerRecord>>,
    /// Where to send requests.
    pub pod: Pod,
    /// Its entries of lists, as they go over the wire.
    pub(crate) entries: Entries,
}

impl PodView {
    /// Whether lists show it: a sandbox that is being created is in none.
    pub fn listed(&self) -> bool {
        self.sandbox.phase != SandboxPhase::Creating
    }

    /// The containers that lists show: those whose ID was given to a live call.
    pub fn listed_containers(&self) -> impl Iterator<Item = &Arc<ContainerRecord>> {
        self.containers.values().filter(|container| container.claimed)
    }
}

/// All pods, and the open files behind their statistics, which follow what is published.
#[derive(Debug, Default)]
pub struct Index {
    maps: RwLock<Maps>,
    probes: Probes,
}

#[derive(Debug, Default)]
struct Maps {
    pods: BTreeMap<SandboxId, Arc<PodView>>,
    containers: HashMap<ContainerId, SandboxId>,
    /// The mounted roots of containers that are being created, whose published record has none yet.
    roots: HashMap<ContainerId, PathBuf>,
}

impl Index {
    /// Replaces what is shown of a pod.
    pub(crate) fn publish(&self, view: PodView) {
        let id = view.sandbox.id;
        let view = Arc::new(view);
        let old = {
            let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
            if let Some(old) = maps.pods.get(&id).cloned() {
                for gone in
                    old.containers.keys().filter(|container| !view.containers.contains_key(*container))
                {
                    maps.containers.remove(gone);
                    maps.roots.remove(gone);
                }
            }
            for (container, record) in &view.containers {
                maps.containers.insert(*container, id);
                if !record.root.as_os_str().is_empty() {
                    maps.roots.remove(container);
                }
            }
            maps.pods.insert(id, view.clone())
        };
        self.probes.follow(old.as_deref(), Some(&view));
    }

    /// Forgets a pod.
    pub(crate) fn remove(&self, id: &SandboxId) {
        let old = {
            let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
            let old = maps.pods.remove(id);
            for container in old.iter().flat_map(|view| view.containers.keys()) {
                maps.containers.remove(container);
                maps.roots.remove(container);
            }
            old
        };
        self.probes.follow(old.as_deref(), None);
    }

    /// Notes where the root of a container is mounted that is being created. cAdvisor asks once, at the first sight of the
    /// container's cgroup, which is before the creation's end.
    pub(crate) fn mounted(&self, container: ContainerId, root: PathBuf) {
        let mut maps = self.maps.write().unwrap_or_else(PoisonError::into_inner);
        // An abandoned creation can end after its pod.
        if maps.containers.contains_key(&container) {
            maps.roots.insert(container, root);
        }
    }

    /// Where the root of a container is mounted; empty before it is.
    pub fn root(&self, record: &ContainerRecord) -> PathBuf {
        if record.root.as_os_str().is_empty() {
            let maps = self.maps.read().unwrap_or_else(PoisonError::into_inner);
            return maps.roots.get(&record.id).cloned().unwrap_or_default();
        }
        record.root.clone()
    }

    /// The open files behind statistics.
    pub(crate) fn probes(&self) -> &Probes {
        &self.probes
    }

    /// All pods, in the order of their IDs.
    pub fn pods(&self) -> Vec<Arc<PodView>> {
        self.maps.read().unwrap_or_else(PoisonError::into_inner).pods.values().cloned().collect()
    }

    /// The pods that ListPodSandbox shows, in the order of their IDs.
    pub fn listed_pods(&self, filter: Option<&v1::PodSandboxFilter>) -> Vec<Arc<PodView>> {
        let mut pods = self.pods();
        pods.retain(|view| view.listed() && status::sandbox_passes(&view.sandbox, filter));
        pods.iter().for_each(|view| view.pod.show());
        pods
    }

    /// The pod of an ID, for a status of its sandbox.
    ///
    /// # Errors
    /// As [`Index::pod`].
    pub fn shown_pod(&self, id: &str) -> Result<Arc<PodView>> {
        let view = self.pod(id)?;
        view.pod.show();
        Ok(view)
    }

    /// The containers that ListContainers shows, by pod.
    pub fn listed_containers(&self, filter: Option<&v1::ContainerFilter>) -> Vec<Arc<ContainerRecord>> {
        let pods = self.pods();
        let containers = pods.iter().flat_map(|view| view.listed_containers());
        containers.filter(|record| status::container_passes(record, filter)).cloned().collect()
    }

    /// The pod of an ID or of a prefix that only one has.
    ///
    /// # Errors
    /// Empty, unknown, or a prefix of several.
    pub fn pod(&self, id: &str) -> Result<Arc<PodView>> {
        let maps = self.maps.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(view) = maps.pods.get(id) {
            return Ok(view.clone());
        }
        if !criox_cri::ids::is_id_prefix(id) {
            return Err(Error::no_sandbox(id));
        }
        let mut found = maps
            .pods
            .range::<str, _>((std::ops::Bound::Included(id), std::ops::Bound::Unbounded))
            .take_while(|(full, _)| full.as_str().starts_with(id));
        match (found.next(), found.next()) {
            (Some((_, view)), None) => Ok(view.clone()),
            (None, _) => Err(Error::no_sandbox(id)),
            (Some(_), Some(_)) => Err(ambiguous("pod sandbox", id)),
        }
    }

    /// The container of an ID or of a prefix that only one has, with its pod.
    ///
    /// # Errors
    /// Empty, unknown, or a prefix of several.
    pub fn container(&self, id: &str) -> Result<(Arc<PodView>, Arc<ContainerRecord>)> {
        let maps = self.maps.read().unwrap_or_else(PoisonError::into_inner);
        let (container, sandbox) = match maps.containers.get_key_value(id) {
            Some(entry) => entry,
            None if !criox_cri::ids::is_id_prefix(id) => return Err(Error::no_container(id)),
            None => {
                let mut found = maps.containers.iter().filter(|(full, _)| full.as_str().starts_with(id));
                match (found.next(), found.next()) {
                    (Some(entry), None) => entry,
                    (None, _) => return Err(Error::no_container(id)),
                    (Some(_), Some(_)) => return Err(ambiguous("container", id)),
                }
            }
        };
        let view = maps.pods.get(sandbox).ok_or_else(|| Error::no_container(id))?;
        let record = view.containers.get(container).ok_or_else(|| Error::no_container(id))?;
        Ok((view.clone(), record.clone()))
    }
}

fn ambiguous(what: &str, id: &str) -> Error {
    Error::new(
        Kind::InvalidArgument,
        format!("{id:?} is the beginning of several {what} IDs; give more digits"),
    )
}
