//! RemovePodSandbox, the undoing of a failed creation, and what recovery does with half-made pods: one piece of code,
//! which needs nothing but the ID and what is named from it.

use std::io;
use std::time::Duration;

use criox_cri::ids::SandboxId;
use criox_records::{SandboxPhase, SandboxRecord, names};
use criox_sys::durable;

use super::network;
use super::stop::{self, Work};
use crate::container::remove::erase_storage;
use crate::context::{Context, blocking};
use crate::error::{Error, Result, failpoint};

/// For an empty cgroup.
const GROUP: Duration = Duration::from_secs(1);
/// What the disk may take.
const ERASE: Duration = Duration::from_secs(60);

/// Ends the pod, and leaves nothing of it: the run directory goes before the record, which is what finds it.
pub(crate) async fn remove(work: Work) -> Result<()> {
    let id = work.sandbox.id;
    if !work.sandbox.torn_down {
        stop::end_containers(&work).await?;
        let owed = work.context.paths.network_record(id.as_str());
        let (network, monitor) = tokio::join!(
            network::release(&work.context, &owed),
            stop::end_monitor(&work.context, &work.sandbox, work.client.as_ref())
        );
        if let Err(error) = network {
            // A kubelet waits for ever for a pod that can't be removed: the pod goes, the debt stays.
            tracing::warn!(sandbox = %id, error = error.chain(), "removing the pod; its network is given back later");
            network::keep_debt(&work.context, id.as_str()).await?;
        }
        monitor?;
        stop::release(&work.context, &work.sandbox).await?;
    }
    failpoint("sandbox.released")?;
    for target in &work.containers {
        crate::nri::remove_container(&work.context, &work.sandbox, &target.record).await;
        erase_storage(&work.context, &id, &target.record.id).await?;
    }
    // Of one that did not come about plugins are told by its creation.
    if work.sandbox.phase != SandboxPhase::Creating {
        crate::nri::remove_sandbox(&work.context, &work.sandbox).await;
    }
    let context = work.context.clone();
    let work = move || remove_directories(&context, &id);
    blocking("removal of directories", &format!("pod sandbox {id}"), ERASE, work).await
}

fn remove_directories(context: &Context, id: &SandboxId) -> Result<()> {
    let own = [
        // Logs elsewhere are the caller's.
        context.log_directory(id),
        context.paths.run(id.as_str()).path().to_owned(),
        context.paths.pod(id.as_str()),
    ];
    for path in own {
        failpoint("sandbox.directories-removed")?;
        match durable::remove_tree(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::failed(format!("directories of pod sandbox {id}")).because(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// What steps of a creation make by themselves, of one that has been undone before they came to their end.
pub(super) fn erase_now(context: &Context, sandbox: &SandboxRecord) -> Result<()> {
    let id = sandbox.id;
    stop::release_now(context, id.as_str())?;
    let group = names::sandbox_group(sandbox);
    if context.cgroups.exists(&group) {
        let failed = |error| Error::failed(format!("cgroup of pod sandbox {id}")).because(error);
        context.cgroups.remove(&group, GROUP).map_err(failed)?;
    }
    remove_directories(context, &id)
}
