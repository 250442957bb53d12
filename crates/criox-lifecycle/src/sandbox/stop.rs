//! StopPodSandbox: ends what runs and gives back what was taken, each step whatever the others did; what is gone
//! already is no error.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use criox_monitor_api::client::Client;
use criox_records::{Namespace, SandboxPhase, SandboxRecord, names};
use criox_sys::cgroup::{CgroupError, Cgroups};
use criox_sys::mount;
use futures_util::future::join_all;

use super::{network, run};
use crate::container::create::write_first_record;
use crate::container::remove::{delete_from_runtime, remove_file};
use crate::container::stop::{self, Target};
use crate::context::{Context, blocking};
use crate::error::{Error, Result, failpoint};
use crate::monitor;
use crate::units;

/// What containers get that StopPodSandbox still finds running: the kubelet stops them before, with their own grace.
pub(crate) const GRACE: Duration = Duration::from_secs(10);
/// What the kernel may take for unmounting and removing cgroups.
const RELEASE: Duration = Duration::from_secs(30);
/// For processes that SIGKILL has reached.
const DEATH: Duration = Duration::from_secs(10);

/// What a stop works with.
pub(crate) struct Work {
    pub(crate) context: Arc<Context>,
    pub(crate) sandbox: Arc<SandboxRecord>,
    pub(crate) client: Option<Client>,
    pub(crate) containers: Vec<Target>,
}

/// How far a stop came.
pub(crate) struct Stopped {
    /// The monitor has ended, and with it everything that ran in the pod.
    pub(crate) monitor_ended: bool,
    /// Whether all has been given back.
    pub(crate) result: Result<()>,
}

/// Stops the pod.
pub(crate) async fn stop(work: Work) -> Stopped {
    if let Err(error) = end_containers(&work).await {
        return Stopped { monitor_ended: false, result: Err(error) };
    }
    let owed = work.context.paths.network_record(work.sandbox.id.as_str());
    let (network, monitor) = tokio::join!(
        network::release(&work.context, &owed),
        end_monitor(&work.context, &work.sandbox, work.client.as_ref())
    );
    let monitor_ended = monitor.is_ok();
    // The namespace stays until its network has been given back: a plugin may want to look into it.
    let result = match network.and(monitor) {
        Ok(()) => release(&work.context, &work.sandbox).await,
        Err(error) => Err(error),
    };
    Stopped { monitor_ended, result }
}

/// Ends all containers and forgets them in the runtime.
pub(super) async fn end_containers(work: &Work) -> Result<()> {
    let Work { context, sandbox, client, containers } = work;
    let ended = join_all(containers.iter().map(|target| async move {
        let stopped = stop::stop(context, client.as_ref(), target.clone()).await?;
        let record = &target.record;
        // A monitor that had to be done without is not asked again.
        let client = client.as_ref().filter(|_| stopped == stop::Stopped::Reported);
        delete_from_runtime(context, client, sandbox, &record.id, &record.cgroup).await
    }))
    .await;
    ended.into_iter().collect::<Result<()>>()?;
    failpoint("sandbox.containers-ended")?;
    note_end(work).await;
    if sandbox.phase == SandboxPhase::Ready {
        crate::nri::stop_sandbox(context, sandbox, containers.iter().map(|target| target.record.id)).await;
    }
    Ok(())
}

/// A daemon that dies in the middle of what follows must not find a sandbox that is ready and has no network.
async fn note_end(work: &Work) {
    if work.sandbox.phase != SandboxPhase::Ready {
        return;
    }
    let ended = SandboxRecord { phase: SandboxPhase::NotReady, ..(*work.sandbox).clone() };
    let path = work.context.paths.sandbox_record(ended.id.as_str());
    let object = format!("pod sandbox {}", ended.id);
    let written = blocking("record", &object, RELEASE, move || write_first_record(&path, &ended)).await;
    if let Err(error) = written {
        // A full disk keeps no pod alive.
        tracing::warn!(
            error = error.chain(),
            "the end of a pod sandbox was not recorded; ending it all the same"
        );
    }
}

/// Ends the monitor and what else lives in the groups of the pod.
pub(super) async fn end_monitor(
    context: &Arc<Context>,
    sandbox: &Arc<SandboxRecord>,
    client: Option<&Client>,
) -> Result<()> {
    let object = format!("pod sandbox {}", sandbox.id);
    if let Some(init) = sandbox.init {
        kill_init(init);
    }
    monitor::end(client, sandbox.monitor, &object).await?;
    let groups = [names::sandbox_group(sandbox), monitor::cgroup(context, sandbox)?];
    end_groups(context, "end of what is left in cgroups", &object, groups.clone(), Cgroups::kill_all).await?;
    units::end(context, &groups).await;
    end_groups(context, "removal of cgroups", &object, groups, Cgroups::remove).await
}

/// Does one thing to each of the groups that are there.
async fn end_groups(
    context: &Arc<Context>,
    stage: &'static str,
    object: &str,
    groups: [String; 2],
    end: fn(&Cgroups, &str, Duration) -> std::result::Result<(), CgroupError>,
) -> Result<()> {
    let (context, what) = (context.clone(), format!("cgroups of {object}"));
    blocking(stage, object, RELEASE, move || {
        let mut present = groups.iter().filter(|group| context.cgroups.exists(group));
        present
            .try_for_each(|group| end(&context.cgroups, group, DEATH))
            .map_err(|error| Error::failed(what).because(error))
    })
    .await
}

/// With process 1 the kernel ends all that share its PID namespace.
fn kill_init(init: criox_records::ProcessIdentity) {
    use criox_sys::process::{Pidfd, is_alive};
    // Held first: the number may be another process's a moment later.
    if let Ok(process) = Pidfd::open(init.pid)
        && is_alive(init.pid, init.start_time)
    {
        // It has ended by itself meanwhile: so much the better.
        drop(process.send_signal(9));
    }
}

/// Unpins the namespaces and unmounts shm.
pub(super) async fn release(context: &Arc<Context>, sandbox: &Arc<SandboxRecord>) -> Result<()> {
    failpoint("sandbox.network-released")?;
    let object = format!("pod sandbox {}", sandbox.id);
    let (context, id) = (context.clone(), sandbox.id);
    blocking("removal of namespaces and mounts", &object, RELEASE, move || release_now(&context, id.as_str()))
        .await
}

/// The same in this thread, by ID alone, whatever the request asked for.
pub(super) fn release_now(context: &Context, id: &str) -> Result<()> {
    for kind in Namespace::ALL {
        let path = context.paths.namespace(kind, id);
        unmount(&path)?;
        remove_file(&path)?;
    }
    unmount(&context.paths.run(id).shm())
}

/// Unmounts what may not be there.
fn unmount(path: &Path) -> Result<()> {
    if fs::symlink_metadata(path).is_err() || !run::is_pinned(path) {
        return Ok(());
    }
    mount::unmount(path, true)
        .map_err(|error| Error::failed(format!("unmount of {}", path.display())).because(error))
}
