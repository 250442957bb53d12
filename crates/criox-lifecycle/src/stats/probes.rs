//! The probes of what there is: made at the first question, and dropped, with their open files, when the index shows
//! that the container or pod has ended.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use criox_cri::ids::{ContainerId, SandboxId};
use criox_cri::v1;
use criox_records::{
    ContainerPhase, ContainerRecord, Namespace, SandboxPhase, SandboxRecord, namespace_options,
};
use criox_stats::{ContainerProbe, PodProbe, Walker, own_group};

use crate::context::Context;
use crate::index::PodView;

/// All probes. They follow what the index publishes.
#[derive(Debug, Default)]
pub(crate) struct Probes {
    containers: Mutex<HashMap<ContainerId, Arc<ContainerProbe>>>,
    pods: Mutex<HashMap<SandboxId, Arc<PodProbe>>>,
    walker: Arc<Walker>,
    heavy: AtomicBool,
}

impl Probes {
    /// Of a container that has a cgroup.
    pub(super) fn container(&self, context: &Context, record: &ContainerRecord) -> Arc<ContainerProbe> {
        let new = || ContainerProbe::new(context.cgroups.gauges(&record.cgroup), record.started_at);
        lock(&self.containers).entry(record.id).or_insert_with(|| Arc::new(new())).clone()
    }

    /// Of a sandbox that is ready.
    pub(super) fn pod(&self, context: &Context, record: &SandboxRecord) -> Arc<PodProbe> {
        lock(&self.pods).entry(record.id).or_insert_with(|| Arc::new(new_pod(context, record))).clone()
    }

    /// What counts writable layers.
    pub(super) fn walker(&self) -> &Arc<Walker> {
        &self.walker
    }

    /// Notes that an answer took megabytes, which the allocator keeps.
    pub(super) fn note_heavy(&self) {
        self.heavy.store(true, Ordering::Relaxed);
    }

    /// Whether one did since the last question.
    pub(super) fn take_heavy(&self) -> bool {
        self.heavy.swap(false, Ordering::Relaxed)
    }

    /// Closes what has ended between two states of a pod. Called for every change, and so without any reading.
    pub(crate) fn follow(&self, old: Option<&PodView>, new: Option<&PodView>) {
        let containers = |view: Option<&PodView>| {
            let running: HashSet<ContainerId> =
                view.into_iter().flat_map(|view| measured(view).map(|record| record.id)).collect();
            running
        };
        let (before, after) = (containers(old), containers(new));
        let mut ended = Vec::new();
        if before.difference(&after).next().is_some() {
            let mut probes = lock(&self.containers);
            ended.extend(before.difference(&after).filter_map(|id| probes.remove(id)));
        }
        let used = ended.iter().map(|container| container.end()).sum();
        let pod = old.or(new).map(|view| view.sandbox.id);
        if let Some(probe) = pod.and_then(|id| lock(&self.pods).get(&id).cloned()) {
            probe.add_past(used);
        }
        let ready = |view: &&PodView| view.sandbox.phase == SandboxPhase::Ready;
        if old.is_some_and(|view| ready(&view)) && !new.is_some_and(|view| ready(&view)) {
            // Dropped outside of the lock: it may be the last reference to a network namespace.
            let ended = pod.and_then(|id| lock(&self.pods).remove(&id));
            drop(ended);
        }
        if after.difference(&before).next().is_some() {
            self.walker.wake();
        }
    }

    /// Closes what a reader opened for something that ended under its hands.
    pub(super) fn keep_only(&self, views: &[Arc<PodView>]) {
        let containers: HashSet<ContainerId> =
            views.iter().flat_map(|view| measured(view).map(|record| record.id)).collect();
        let pods: HashSet<SandboxId> = views
            .iter()
            .filter(|view| view.sandbox.phase == SandboxPhase::Ready)
            .map(|view| view.sandbox.id)
            .collect();
        lock(&self.containers).retain(|id, _| containers.contains(id));
        lock(&self.pods).retain(|id, _| pods.contains(id));
    }
}

fn new_pod(context: &Context, record: &SandboxRecord) -> PodProbe {
    let config = &record.config.0;
    let uid = config.metadata.as_ref().map(|metadata| metadata.uid.as_str()).unwrap_or_default();
    let gauges = own_group(uid, &record.cgroup_parent).map(|group| context.cgroups.gauges(&group));
    let own_network = namespace_options(config).network() != v1::NamespaceMode::Node;
    let netns = own_network.then(|| context.paths.namespace(Namespace::Network, record.id.as_str()));
    PodProbe::new(gauges, netns, record.created_at)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The containers of a pod that have something to measure.
pub(super) fn measured(view: &PodView) -> impl Iterator<Item = &Arc<ContainerRecord>> {
    view.containers
        .values()
        .filter(|record| matches!(record.phase, ContainerPhase::Created | ContainerPhase::Running))
}
