//! What is kept open for a container and for a pod. Files are opened at the first question; who keeps a probe drops it
//! when the container or the pod has ended, for a descriptor inside a network namespace keeps that alive.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use criox_sys::cgroup::stats::{Gauges, Scratch};
use criox_sys::netdev::{Interface, NetDev};
use criox_sys::netns;

use crate::layers::Layer;
use crate::lock;
use crate::meter::{Meter, Taken};
use crate::walk::Figure;

/// Figures of a container.
#[derive(Debug)]
pub struct ContainerProbe {
    meter: Meter,
    layer: Mutex<Layer>,
    ended: Arc<AtomicBool>,
}

impl ContainerProbe {
    /// Of a container with this cgroup that started at `started_at`, in nanoseconds since the epoch; 0: not yet.
    pub fn new(gauges: Gauges, started_at: i64) -> Self {
        Self { meter: Meter::new(gauges, started_at), layer: Mutex::default(), ended: Arc::default() }
    }

    /// Its cgroup.
    pub fn meter(&self) -> &Meter {
        &self.meter
    }

    /// What its writable layer held when a [`Walker`](crate::Walker) counted it last.
    pub fn layer(&self) -> Option<Taken<Figure>> {
        self.layer_state().figure
    }

    /// The container has ended: a walk through its layer stops. The nanoseconds of the CPU that it is known to have used.
    pub fn end(&self) -> u64 {
        self.ended.store(true, Ordering::Relaxed);
        self.meter.last()
    }

    /// Becomes true with [`ContainerProbe::end`].
    pub(crate) fn ended(&self) -> &Arc<AtomicBool> {
        &self.ended
    }

    pub(crate) fn layer_state(&self) -> MutexGuard<'_, Layer> {
        lock(&self.layer)
    }
}

/// Figures of a pod.
#[derive(Debug)]
pub struct PodProbe {
    meter: Option<Meter>,
    netns: Option<PathBuf>,
    netdev: Mutex<Option<Arc<NetDev>>>,
    past: AtomicU64,
}

impl PodProbe {
    /// Of a pod that was made at `created_at`, in nanoseconds since the epoch. `gauges` are those of the pod's own cgroup,
    /// if it has one (see [`own_group`]); `netns` is its network namespace, if it has not the node's.
    pub fn new(gauges: Option<Gauges>, netns: Option<PathBuf>, created_at: i64) -> Self {
        Self {
            meter: gauges.map(|gauges| Meter::new(gauges, created_at)),
            netns,
            netdev: Mutex::default(),
            past: AtomicU64::new(0),
        }
    }

    /// The pod's own cgroup.
    pub fn meter(&self) -> Option<&Meter> {
        self.meter.as_ref()
    }

    /// Nanoseconds of the CPU of containers that have ended.
    pub fn past(&self) -> u64 {
        self.past.load(Ordering::Relaxed)
    }

    /// A container has ended that used so many nanoseconds of the CPU.
    pub fn add_past(&self, used: u64) {
        self.past.fetch_add(used, Ordering::Relaxed);
    }

    /// The interfaces of the pod's network namespace, without loopback; none with the node's network, or when the
    /// namespace can't be read, which may be better the next time.
    pub fn interfaces(&self, scratch: &mut Scratch) -> Option<Vec<Interface>> {
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
        netdev.read(scratch).ok().map(counted)
    }
}

/// Loopback is nobody's traffic.
fn counted(mut interfaces: Vec<Interface>) -> Vec<Interface> {
    interfaces.retain(|interface| interface.name != "lo");
    interfaces
}

/// The cgroup whose figures are those of the pod with this UID: its parent, if the kubelet made that for this pod alone,
/// which its name tells. Pods of other clients may share theirs.
pub fn own_group(uid: &str, parent: &str) -> Option<String> {
    if uid.is_empty() {
        return None;
    }
    let name = parent.rsplit('/').next().unwrap_or_default();
    match name.strip_suffix(".slice") {
        Some(slice) if slice.ends_with(&format!("pod{}", uid.replace('-', "_"))) => {
            criox_sys::cgroup::slice_path(name).ok()
        }
        Some(_) => None,
        None => (name == format!("pod{uid}")).then(|| parent.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(uid: &str, parent: &str, expected: Option<&str>) {
        assert_eq!(own_group(uid, parent).as_deref(), expected, "{uid} {parent}");
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

    #[test]
    fn loopback_is_not_counted() {
        let interface = |name: &str| Interface {
            name: name.to_owned(),
            rx: criox_sys::netdev::Counters::default(),
            tx: criox_sys::netdev::Counters::default(),
        };
        let left = counted(vec![interface("lo"), interface("eth0"), interface("lo1")]);
        assert_eq!(left.iter().map(|interface| interface.name.as_str()).collect::<Vec<_>>(), ["eth0", "lo1"]);
    }

    #[test]
    fn a_pod_with_the_nodes_network_has_no_interfaces_and_what_ended_adds_up() {
        let pod = PodProbe::new(None, None, 1);
        assert!(pod.interfaces(&mut Scratch::default()).is_none() && pod.meter().is_none());
        pod.add_past(3);
        pod.add_past(4);
        assert_eq!(pod.past(), 7);
    }
}
