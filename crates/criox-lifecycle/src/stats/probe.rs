//! The open files behind the figures of a container and of a pod. They are opened at the first question and closed when
//! the container or the pod has ended: a descriptor inside a network namespace would keep it alive.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use criox_cri::ids::{ContainerId, SandboxId};
use criox_cri::v1;
use criox_sys::cgroup::stats::{Gauges, Scratch, Usage};
use criox_sys::netdev::{Interface, NetDev};
use criox_sys::netns;
use tokio::sync::Notify;

use super::rate::Rate;
use super::walk;
use crate::context::Context;
use crate::index::PodView;
use crate::paths::Namespace;
use crate::record::{ContainerPhase, ContainerRecord, SandboxPhase, SandboxRecord};
use crate::status;

/// Figures of a container.
#[derive(Debug)]
pub(super) struct ContainerProbe {
    pub(super) gauges: Gauges,
    rate: Mutex<Rate>,
    collected: Mutex<Option<Taken<Usage>>>,
    layer: Mutex<Layer>,
    /// The container has ended: a walk through its layer stops.
    pub(super) ended: Arc<AtomicBool>,
}

/// Figures of a pod.
#[derive(Debug)]
pub(super) struct PodProbe {
    /// The pod's own cgroup; none if it shares one with others.
    pub(super) gauges: Option<Gauges>,
    rate: Mutex<Rate>,
    collected: Mutex<Option<Taken<Usage>>>,
    /// None: the pod has the node's network.
    netns: Option<PathBuf>,
    netdev: Mutex<Option<Arc<NetDev>>>,
    /// Nanoseconds of the CPU that containers had used when they ended, as far as was seen.
    past: AtomicU64,
}

/// Something with the time at which it was so, in nanoseconds since the epoch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Taken<T> {
    pub(super) at: i64,
    pub(super) what: T,
    moment: Instant,
}

impl<T> Taken<T> {
    pub(super) fn now(what: T) -> Self {
        Self { at: now(), what, moment: Instant::now() }
    }
}

/// Nanoseconds since the epoch; at least 1, for every block of figures has a time.
pub(super) fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX).max(1)
}

/// What is known of a writable layer.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) figure: Option<Taken<walk::Figure>>,
    /// When it is counted next.
    pub(super) due: Instant,
    /// What lies between two walks.
    pub(super) pause: Duration,
    pub(super) walking: bool,
}

impl ContainerProbe {
    fn new(context: &Context, record: &ContainerRecord) -> Self {
        Self::of(context.cgroups.gauges(&record.cgroup), record.started_at)
    }

    pub(super) fn of(gauges: Gauges, started_at: i64) -> Self {
        let layer = Layer { figure: None, due: Instant::now(), pause: Duration::ZERO, walking: false };
        Self {
            gauges,
            rate: Mutex::new(rate_since(started_at)),
            collected: Mutex::default(),
            layer: Mutex::new(layer),
            ended: Arc::default(),
        }
    }

    /// Reads, or takes what was collected at most `age` ago.
    pub(super) fn usage(&self, age: Duration, scratch: &mut Scratch) -> Taken<Usage> {
        recent(&self.collected, age).unwrap_or_else(|| Taken::now(self.gauges.read(scratch)))
    }

    /// Reads, and keeps what was read for those who ask later.
    pub(super) fn collect(&self, scratch: &mut Scratch) {
        *lock(&self.collected) = Some(Taken::now(self.gauges.read(scratch)));
    }

    pub(super) fn rate(&self) -> MutexGuard<'_, Rate> {
        lock(&self.rate)
    }

    pub(super) fn layer(&self) -> MutexGuard<'_, Layer> {
        lock(&self.layer)
    }
}

impl PodProbe {
    fn new(context: &Context, record: &SandboxRecord) -> Self {
        let own_network = status::namespace_options(&record.config.0).network() != v1::NamespaceMode::Node;
        Self {
            gauges: own_group(record).map(|group| context.cgroups.gauges(&group)),
            rate: Mutex::new(rate_since(record.created_at)),
            collected: Mutex::default(),
            netns: own_network.then(|| context.paths.namespace(Namespace::Network, record.id.as_str())),
            netdev: Mutex::default(),
            past: AtomicU64::new(0),
        }
    }

    /// As [`ContainerProbe::usage`], of the pod's own cgroup.
    pub(super) fn usage(&self, age: Duration, scratch: &mut Scratch) -> Option<Taken<Usage>> {
        let gauges = self.gauges.as_ref()?;
        Some(recent(&self.collected, age).unwrap_or_else(|| Taken::now(gauges.read(scratch))))
    }

    /// As [`ContainerProbe::collect`].
    pub(super) fn collect(&self, scratch: &mut Scratch) {
        if let Some(gauges) = &self.gauges {
            *lock(&self.collected) = Some(Taken::now(gauges.read(scratch)));
        }
    }

    pub(super) fn rate(&self) -> MutexGuard<'_, Rate> {
        lock(&self.rate)
    }

    /// Nanoseconds of the CPU of containers that have ended.
    pub(super) fn past(&self) -> u64 {
        self.past.load(Ordering::Relaxed)
    }

    /// The interfaces of the pod's network namespace, loopback included; none with the node's network, or when the
    /// namespace can't be read, which may be better the next time.
    pub(super) fn interfaces(&self, scratch: &mut Scratch) -> Option<Vec<Interface>> {
        let path = self.netns.as_deref()?;
        let known = lock(&self.netdev).clone();
        let netdev = match known {
            Some(netdev) => netdev,
            None => {
                let opened = netns::open(path).and_then(|ns| NetDev::open(std::os::fd::AsFd::as_fd(&ns)));
                let opened = Arc::new(opened.ok()?);
                lock(&self.netdev).get_or_insert(opened).clone()
            }
        };
        netdev.read(scratch).ok()
    }
}

/// The pod's own cgroup: its parent, if the kubelet made that for this pod alone, which its name tells. Pods of other
/// clients may share theirs.
fn own_group(record: &SandboxRecord) -> Option<String> {
    let uid = record.config.0.metadata.as_ref().map(|metadata| metadata.uid.as_str()).unwrap_or_default();
    if uid.is_empty() {
        return None;
    }
    let name = record.cgroup_parent.rsplit('/').next().unwrap_or_default();
    match name.strip_suffix(".slice") {
        Some(slice) if slice.ends_with(&format!("pod{}", uid.replace('-', "_"))) => {
            criox_sys::cgroup::slice_path(name).ok()
        }
        Some(_) => None,
        None => (name == format!("pod{uid}")).then(|| record.cgroup_parent.clone()),
    }
}

fn rate_since(started_at: i64) -> Rate {
    let age = u64::try_from(now().saturating_sub(started_at)).unwrap_or(0);
    // What has not started has used nothing until now.
    let age = if started_at == 0 { 0 } else { age };
    Rate::new(Instant::now(), Duration::from_nanos(age))
}

fn recent<T: Copy>(collected: &Mutex<Option<Taken<T>>>, age: Duration) -> Option<Taken<T>> {
    lock(collected).filter(|taken| taken.moment.elapsed() < age)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All probes. They follow what the index publishes.
#[derive(Debug, Default)]
pub(crate) struct Probes {
    containers: Mutex<HashMap<ContainerId, Arc<ContainerProbe>>>,
    pods: Mutex<HashMap<SandboxId, Arc<PodProbe>>>,
    changed: Notify,
    heavy: AtomicBool,
}

impl Probes {
    /// Of a container that has a cgroup.
    pub(super) fn container(&self, context: &Context, record: &ContainerRecord) -> Arc<ContainerProbe> {
        let mut containers = lock(&self.containers);
        containers.entry(record.id).or_insert_with(|| Arc::new(ContainerProbe::new(context, record))).clone()
    }

    /// Of a sandbox that is ready.
    pub(super) fn pod(&self, context: &Context, record: &SandboxRecord) -> Arc<PodProbe> {
        let mut pods = lock(&self.pods);
        pods.entry(record.id).or_insert_with(|| Arc::new(PodProbe::new(context, record))).clone()
    }

    /// Returns when a container has been created, or [`Probes::wake`] was called.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Notes that an answer took megabytes, which the allocator keeps.
    pub(super) fn note_heavy(&self) {
        self.heavy.store(true, Ordering::Relaxed);
    }

    /// Whether one did since the last question.
    pub(super) fn take_heavy(&self) -> bool {
        self.heavy.swap(false, Ordering::Relaxed)
    }

    /// Wakes whoever waits for a change.
    pub(super) fn wake(&self) {
        self.changed.notify_one();
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
        let pod = old.or(new).map(|view| view.sandbox.id);
        if let Some(probe) = pod.and_then(|id| lock(&self.pods).get(&id).cloned()) {
            let used = ended.iter().map(|container| container.rate().last()).sum();
            probe.past.fetch_add(used, Ordering::Relaxed);
        }
        for container in ended {
            container.ended.store(true, Ordering::Relaxed);
        }
        let ready = |view: &&PodView| view.sandbox.phase == SandboxPhase::Ready;
        if old.is_some_and(|view| ready(&view)) && !new.is_some_and(|view| ready(&view)) {
            // Dropped outside of the lock: it may be the last reference to a network namespace.
            let ended = pod.and_then(|id| lock(&self.pods).remove(&id));
            drop(ended);
        }
        if after.difference(&before).next().is_some() {
            self.wake();
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

/// The containers of a pod that have something to measure.
pub(super) fn measured(view: &PodView) -> impl Iterator<Item = &Arc<ContainerRecord>> {
    view.containers
        .values()
        .filter(|record| matches!(record.phase, ContainerPhase::Created | ContainerPhase::Running))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(uid: &str, parent: &str) -> SandboxRecord {
        let metadata = v1::PodSandboxMetadata { uid: uid.into(), ..Default::default() };
        let config = v1::PodSandboxConfig { metadata: Some(metadata), ..Default::default() };
        let id = SandboxId::parse(&"a".repeat(64)).expect("an ID");
        let mut record = SandboxRecord::without_request(id, "boot", parent);
        record.config = crate::record::Encoded(Arc::new(config));
        record
    }

    #[track_caller]
    fn check(uid: &str, parent: &str, expected: Option<&str>) {
        assert_eq!(own_group(&sandbox(uid, parent)).as_deref(), expected, "{uid} {parent}");
    }

    #[test]
    fn a_pod_owns_the_group_that_the_kubelet_named_after_it() {
        let uid = "0ab1-22";
        check(uid, "/kubepods/burstable/pod0ab1-22", Some("/kubepods/burstable/pod0ab1-22"));
        check(
            uid,
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0ab1_22.slice",
            Some("/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0ab1_22.slice"),
        );
        check(uid, "kubepods-pod0ab1_22.slice", Some("/kubepods.slice/kubepods-pod0ab1_22.slice"));
    }

    #[test]
    fn a_group_that_pods_share_is_no_pods_own() {
        for parent in ["/crio", "/kubepods/burstable/pod0ab1-23", "system.slice", "/kubepods/burstable", "/"]
        {
            check("0ab1-22", parent, None);
        }
        check("", "/kubepods/pod", None);
    }
}
