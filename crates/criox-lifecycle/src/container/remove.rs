//! RemoveContainer, and the undoing of a creation: the same work, which needs nothing but the ID and never stops at
//! what is already gone.

use std::sync::Arc;
use std::time::Duration;

use criox_confine::Ways;
use criox_cri::ids::{ContainerId, SandboxId};
use criox_monitor_api::client::Client;
use criox_monitor_api::proto::{self, failure, request};
use criox_records::{ContainerPhase, SandboxRecord};
use criox_sys::cgroup::Driver;
use criox_sys::durable;
use tokio::time::Instant;

use super::image_volume;
use super::stop::{self, Stopped, Target};
use crate::context::{Context, blocking};
use crate::error::{Error, Result, failpoint};
use crate::monitor;
use crate::units;

/// How long the runtime may take to delete.
const DELETE: Duration = Duration::from_secs(60);
/// Between questions to a monitor that still creates what is to be deleted.
const PAUSE: Duration = Duration::from_millis(50);
/// How long the disk may take.
const STORAGE: Duration = Duration::from_secs(60);

/// Ends the container if it lives, then removes all that it has. Its log file stays: that is the kubelet's.
pub(crate) async fn remove(
    context: &Arc<Context>,
    client: Option<&Client>,
    sandbox: &SandboxRecord,
    target: Target,
) -> Result<()> {
    let record = target.record.clone();
    let stopped = match record.phase {
        ContainerPhase::Exited => Stopped::Reported,
        _ => stop::stop(context, client, target).await?,
    };
    // A monitor that had to be done without is not asked again.
    let client = client.filter(|_| stopped == Stopped::Reported);
    crate::nri::remove_container(context, sandbox, &record).await;
    erase(context, client, sandbox, &record.id, &record.cgroup).await
}

/// Removes by ID what a container has: in the runtime, among the cgroups, in the store, and last its records.
pub(crate) async fn erase(
    context: &Arc<Context>,
    client: Option<&Client>,
    sandbox: &SandboxRecord,
    id: &ContainerId,
    cgroup: &str,
) -> Result<()> {
    delete_from_runtime(context, client, sandbox, id, cgroup).await?;
    failpoint("container.deleted")?;
    erase_storage(context, &sandbox.id, id).await
}

/// `delete --force`, by the monitor, and where there is none, by ourselves after the cgroup has been emptied.
pub(crate) async fn delete_from_runtime(
    context: &Arc<Context>,
    client: Option<&Client>,
    sandbox: &SandboxRecord,
    id: &ContainerId,
    cgroup: &str,
) -> Result<()> {
    if let Some(client) = client {
        let verb = request::Verb::Delete(proto::Delete {
            container_id: id.to_string(),
            timeout_ms: u32::try_from(DELETE.as_millis()).unwrap_or(u32::MAX),
        });
        let until = Instant::now() + DELETE;
        let deleted = loop {
            let call = client.done(verb.clone(), DELETE + monitor::ANSWER);
            match monitor::attended(client, call).await {
                // A creation of before a restart is still at work: what it makes must not outlive this.
                Err(error)
                    if error.refusal() == Some(failure::Kind::WrongState) && Instant::now() < until =>
                {
                    tokio::time::sleep(PAUSE).await;
                }
                deleted => break deleted,
            }
        };
        match deleted {
            Ok(()) => return Ok(()),
            Err(error) => {
                tracing::warn!(container = %id, %error, "the monitor could not delete the container; deleting it without");
            }
        }
    }
    let kill = |context: Arc<Context>, object: String, cgroup: String| {
        move || {
            let failed = |error| Error::failed(format!("removal of {object}")).because(error);
            if cgroup.is_empty() {
                return Ok(());
            }
            context.cgroups.kill_all(&cgroup, Duration::from_secs(10)).map_err(failed)?;
            if context.driver() == Driver::Systemd {
                // The group is systemd's, which removes it with its unit.
                return Ok(());
            }
            context.cgroups.remove(&cgroup, Duration::from_secs(5)).map_err(failed)
        }
    };
    let object = format!("container {id}");
    let cgroup = if cgroup.is_empty() { expected_cgroup(context, sandbox, id) } else { cgroup.to_owned() };
    blocking("removal by cgroup", &object, DELETE, kill(context.clone(), object.clone(), cgroup)).await?;
    if let Err(error) = context.handlers.delete(&sandbox.runtime_handler, id).await {
        // Fail open on cleanup: what is left is a directory in the runtime's state, gone at the next boot.
        tracing::warn!(container = %id, error = crate::error::chain(&error), "the runtime did not delete the container");
    }
    let group = expected_cgroup(context, sandbox, id);
    units::end(context, std::slice::from_ref(&group)).await;
    let context = context.clone();
    blocking("removal by cgroup", &object.clone(), DELETE, move || {
        // Where systemd knows of no such unit, or can't be reached, nobody else removes it.
        if group.is_empty() || !context.cgroups.exists(&group) {
            return Ok(());
        }
        let failed = |error| Error::failed(format!("removal of {object}")).because(error);
        context.cgroups.remove(&group, Duration::from_secs(5)).map_err(failed)
    })
    .await
}

/// Where the runtime puts a container of this sandbox, for one whose creation did not come as far as to tell.
fn expected_cgroup(context: &Context, sandbox: &SandboxRecord, id: &ContainerId) -> String {
    criox_sys::cgroup::container_path(context.driver(), &sandbox.cgroup_parent, id.as_str())
        .unwrap_or_default()
}

/// The root file system, and last the records.
pub(crate) async fn erase_storage(
    context: &Arc<Context>,
    sandbox: &SandboxId,
    id: &ContainerId,
) -> Result<()> {
    let (context, sandbox, id) = (context.clone(), *sandbox, *id);
    let work = move || erase_storage_now(&context, &sandbox, &id);
    blocking("removal of the root file system", &format!("container {id}"), STORAGE, work).await
}

/// The same, in this thread.
pub(crate) fn erase_storage_now(context: &Context, sandbox: &SandboxId, id: &ContainerId) -> Result<()> {
    let failed = |error| Error::failed(format!("root file system of container {id}")).because(error);
    Ways::new(context.paths.ways()).withdraw(id.as_str())?;
    image_volume::remove(&context.store, id.as_str())?;
    context.store.delete_container(id.as_str()).map_err(failed)?;
    for ours in [context.paths.capture(id.as_str()), context.paths.intake(id.as_str())] {
        durable::remove_tree(&ours)
            .map_err(|error| Error::failed(format!("checkpoint of container {id}")).because(error))?;
    }
    failpoint("container.unstored")?;
    let run = context.paths.run(sandbox.as_str());
    for path in [run.exit_record(id.as_str()), context.paths.container_record(sandbox.as_str(), id.as_str())]
    {
        remove_file(&path)?;
    }
    Ok(())
}

/// Removes a file that may be gone.
pub(crate) fn remove_file(path: &std::path::Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::failed(format!("removal of {}", path.display())).because(error))
        }
        _ => Ok(()),
    }
}
