//! What all pods share.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use criox_checkpoint_policy::Checkpoints;
use criox_config::Config;
use criox_confine::{AppArmor, Cdi, SeccompDefaults, Selinux, Ways};
use criox_cri::ids::{ContainerId, SandboxId};
use criox_handlers::Handlers;
use criox_image::Images;
use criox_network::Network;
use criox_records::key::SandboxKey;
use criox_records::{Paths, SandboxRecord};
use criox_spec::{NodeFacts, Warning, WarningTopic};
use criox_store::Store;
use criox_sys::cgroup::{Cgroups, Driver};
use criox_systemd::Systemd;

use crate::container::image_volume;
use crate::error::{Error, Kind, Result};
use crate::events::Events;
use crate::index::Index;
use crate::nri::Plugins;
use crate::pod::Pod;
use crate::spare::Spares;

/// What all pods share. Everything in it is either constant, or guards itself with locks that nobody holds across I/O.
pub struct Context {
    /// The effective configuration.
    pub config: Arc<Config>,
    /// Where things lie.
    pub paths: Paths,
    /// This boot.
    pub boot_id: String,
    /// Root file systems.
    pub store: Store,
    /// Images.
    pub images: Images,
    /// The pods' network.
    pub network: Network,
    /// OCI runtimes.
    pub handlers: Handlers,
    /// Cgroup hierarchies.
    pub cgroups: Cgroups,
    /// systemd, where it manages cgroups.
    pub systemd: Systemd,
    /// What the node can.
    pub node: NodeFacts,
    /// What the configuration gives to every container.
    pub defaults: criox_spec::Defaults,
    /// The configured default seccomp profile, parsed once.
    pub seccomp: SeccompDefaults,
    /// Profiles of AppArmor.
    pub apparmor: AppArmor,
    /// Labels of SELinux.
    pub selinux: Selinux,
    /// Devices of vendors.
    pub cdi: Cdi,
    /// The program of the monitors.
    pub monitor_program: PathBuf,
    /// What reads answer from.
    pub index: Index,
    /// GetContainerEvents.
    pub events: Events,
    /// What was clamped or left out because this node can't do it.
    pub clamps: Clamps,
    /// Creation times.
    pub clock: Clock,
    /// Monitors without a pod.
    pub spares: Spares,
    /// Which pod has which name.
    pub names: Names,
    /// NRI and its plugins.
    pub nri: Plugins,
    /// Whether checkpoints are made and restored.
    pub checkpoints: Checkpoints,
}

/// What was clamped or left out because this node can't do it: told once in the log, and shown in Status.
#[derive(Debug, Default)]
pub struct Clamps(Mutex<BTreeMap<WarningTopic, String>>);

impl Clamps {
    pub(crate) fn tell(&self, warnings: &[Warning]) {
        for warning in warnings {
            let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if let Entry::Vacant(entry) = told.entry(warning.topic) {
                tracing::warn!("{} (said once)", warning.message);
                entry.insert(warning.message.clone());
            }
        }
    }

    /// The first sentence about each topic.
    pub fn all(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

/// Names of sandboxes in use.
#[derive(Debug, Default)]
pub struct Names(Mutex<HashMap<SandboxKey, Pod>>);

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("paths", &self.paths)
            .field("boot_id", &self.boot_id)
            .finish_non_exhaustive()
    }
}

impl Context {
    /// Who manages cgroups.
    pub fn driver(&self) -> Driver {
        if self.node.systemd_cgroup { Driver::Systemd } else { Driver::Cgroupfs }
    }

    /// The pod's parent in the notation of cgroupfs, as CRI gives it, with the default filled in.
    pub(crate) fn cgroup_parent(&self, requested: &str) -> Result<String> {
        let slice = requested.ends_with(".slice");
        match (self.driver(), requested) {
            (Driver::Cgroupfs, "") => Ok("/crio".into()),
            (Driver::Systemd, "") => Ok("/system.slice".into()),
            (Driver::Systemd, _) if !slice => Err(Error::invalid(
                "config.linux.cgroup_parent",
                format!("cgroup_manager is systemd, and {requested:?} is not a slice"),
            )),
            (Driver::Cgroupfs, _) if slice => Err(Error::invalid(
                "config.linux.cgroup_parent",
                format!(
                    "cgroup_manager is cgroupfs, and {requested:?} is a slice of systemd; set cgroup_manager to match the kubelet"
                ),
            )),
            // The name says where a slice lies; runtimes and systemd heed nothing else.
            (Driver::Systemd, path) => {
                let slice = path.rsplit('/').next().unwrap_or(path);
                criox_sys::cgroup::slice_path(slice)
                    .map_err(|error| Error::invalid("config.linux.cgroup_parent", error))
            }
            (_, path) if !path.starts_with('/') || path.split('/').any(|part| part == "..") => {
                Err(Error::invalid(
                    "config.linux.cgroup_parent",
                    format!("{path:?} is not an absolute, plain path"),
                ))
            }
            (_, path) => Ok(path.trim_end_matches('/').into()),
        }
    }

    /// Where the logs of a pod lie for which the request names no directory.
    pub(crate) fn log_directory(&self, sandbox: &SandboxId) -> PathBuf {
        self.config.root.log_dir.join(sandbox.as_str())
    }

    /// `default_sysctls` as pairs.
    pub(crate) fn default_sysctls(&self) -> Vec<(String, String)> {
        let sysctls = &self.config.runtime.default_sysctls;
        sysctls.iter().map(|sysctl| (sysctl.key.clone(), sysctl.value.clone())).collect()
    }

    pub(crate) fn names(&self) -> std::sync::MutexGuard<'_, HashMap<SandboxKey, Pod>> {
        self.names.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the name back, if it still belongs to this sandbox.
    pub(crate) fn release_name(&self, sandbox: &SandboxRecord) {
        let Ok(key) = SandboxKey::of(&sandbox.config.0) else { return };
        let mut names = self.names();
        if names.get(&key).is_some_and(|pod| pod.id == sandbox.id) {
            names.remove(&key);
        }
    }

    /// Unmounts the root file system of a container that has ended, beside everything else.
    pub(crate) fn unmount_later(&self, container: ContainerId) {
        let (store, paths) = (self.store.clone(), self.paths.clone());
        tokio::task::spawn_blocking(move || {
            let way = Ways::new(paths.ways()).withdraw(container.as_str()).map_err(Error::from);
            let outside = way.and_then(|()| image_volume::unmount(&store, container.as_str()));
            if let Err(error) = outside {
                tracing::warn!(%container, error = error.chain(), "mounts of an ended container stay");
            }
            // Unknown: it has been removed meanwhile.
            if let Err(error) = store.unmount_all(container.as_str())
                && !error.is_unknown()
            {
                tracing::warn!(%container, %error, "the root file system of an ended container could not be unmounted");
            }
        });
    }
}

/// Runs blocking work under a deadline, with a name for the error. The thread of work that hangs in the kernel is
/// lost until the kernel lets go; only this operation waits for it.
pub(crate) async fn blocking<T: Send + 'static>(
    stage: &'static str,
    object: &str,
    deadline: Duration,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::time::timeout(deadline, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) => Err(Error::failed(format!("internal error in {stage} of {object}")).because(panic)),
        Err(_) => Err(Error::timed_out(
            stage,
            object,
            deadline,
            "a disk or a volume does not answer: look for processes in state D and for their mounts",
        )),
    }
}

/// As [`blocking`], for work that makes what somebody has to undo. When it ends after nobody waits for it any more (its
/// time was over, or the operation was given up), whoever undoes the operation may have been there already: `undo` then
/// runs in the work's own thread.
pub(crate) async fn blocking_or_undo<T: Send + 'static>(
    stage: &'static str,
    object: &str,
    deadline: Duration,
    work: impl FnOnce() -> Result<T> + Send + 'static,
    undo: impl Fn() -> Result<()> + Send + 'static,
) -> Result<T> {
    let waiting = Waiting(Arc::new(AtomicBool::new(true)));
    let waited = waiting.0.clone();
    let name = object.to_owned();
    blocking(stage, object, deadline, move || {
        let made = work();
        // From here on it is in time, or it is late: never both, never neither.
        if !waited.swap(false, Ordering::AcqRel) {
            undo_late(stage, &name, undo);
        }
        made
    })
    .await
}

/// Held by whoever waits for work; false inside when either side is through.
struct Waiting(Arc<AtomicBool>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// Whoever undoes the operation may be at it at this moment: two that unmount one thing get in each other's way once.
fn undo_late(stage: &str, object: &str, undo: impl Fn() -> Result<()>) {
    const TRIES: u32 = 3;
    const PAUSE: Duration = Duration::from_millis(200);
    for left in (0..TRIES).rev() {
        match undo() {
            Ok(()) => {
                return tracing::info!(stage, object, "undid what came after nobody waited for it any more");
            }
            Err(_) if left > 0 => std::thread::sleep(PAUSE),
            Err(error) => tracing::warn!(
                stage,
                object,
                error = error.chain(),
                "what came too late stays; the next start of criox removes it"
            ),
        }
    }
}

/// Times of creation that rise by at least one nanosecond, whatever the system's clock does: the kubelet orders by them.
#[derive(Debug, Default)]
pub struct Clock {
    last: AtomicI64,
}

impl Clock {
    /// Nanoseconds since the epoch, later than any earlier answer and than anything told to [`Clock::seen`].
    pub fn now(&self) -> i64 {
        let system = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| i64::try_from(since.as_nanos()).unwrap_or(i64::MAX - 1));
        let rise = |last: i64| Some(system.max(last.saturating_add(1)));
        match self.last.fetch_update(Ordering::Relaxed, Ordering::Relaxed, rise) {
            Ok(last) | Err(last) => system.max(last.saturating_add(1)),
        }
    }

    /// A time from a record: later ones will be after it.
    pub fn seen(&self, time: i64) {
        self.last.fetch_max(time, Ordering::Relaxed);
    }
}

/// An ID, or why the kernel has no random bytes.
pub(crate) fn new_sandbox_id() -> Result<SandboxId> {
    SandboxId::generate()
        .map_err(|error| Error::new(Kind::Failed, "no random ID could be made").because(error))
}

/// As [`new_sandbox_id`].
pub(crate) fn new_container_id() -> Result<ContainerId> {
    ContainerId::generate()
        .map_err(|error| Error::new(Kind::Failed, "no random ID could be made").because(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often the undoing ran of work that takes so long, when its caller has so much patience; -1: no limit.
    async fn undone(work: Duration, patience: Option<Duration>, drops: bool) -> u32 {
        let count = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let seen = count.clone();
        let (ended, end) = tokio::sync::oneshot::channel::<()>();
        let call = blocking_or_undo(
            "work",
            "object",
            patience.unwrap_or(Duration::from_secs(60)),
            move || {
                std::thread::sleep(work);
                Ok(ended)
            },
            move || {
                seen.fetch_add(1, Ordering::Relaxed);
                Ok(())
            },
        );
        if drops {
            drop(tokio::time::timeout(work / 4, call).await);
        } else {
            drop(call.await);
        }
        // The sender is dropped with the result, after the undoing.
        drop(end.await);
        count.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn work_that_nobody_waits_for_any_more_is_undone_once() {
        let work = Duration::from_millis(100);
        assert_eq!(undone(work, None, false).await, 0, "in time");
        assert_eq!(undone(work, Some(work / 4), false).await, 1, "after its deadline");
        assert_eq!(undone(work, None, true).await, 1, "given up");
    }

    #[test]
    fn times_rise_also_when_the_clock_goes_back() {
        let clock = Clock::default();
        let future = clock.now() + 3_600_000_000_000;
        clock.seen(future);
        let (first, second) = (clock.now(), clock.now());
        assert!(future < first && first < second);
    }
}
