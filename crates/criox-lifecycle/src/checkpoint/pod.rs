//! CheckpointPod: containers of a pod as of one moment, in a directory of the caller's.

use std::sync::Arc;
use std::time::Duration;

use criox_checkpoint::copy_log;
use criox_checkpoint::pod::{self as layout, PodManifest};
use criox_checkpoint_policy::place::{self, Output};
use criox_checkpoint_policy::{capturable, distinct, manifest_entries, no_options};
use criox_cri::v1;
use criox_store::Timestamp;

use super::call::Call;
use super::cut::{self, Part};
use super::effort::Effort;
use super::{describe, failed, intent, own_directories, step};
use crate::context::{Context, blocking};
use crate::engine::Lifecycle;
use crate::error::Result;
use crate::pod::Grant;

/// How long the disk may take to remove what was written, or to look at a path.
const DISK: Duration = Duration::from_secs(60);

impl Lifecycle {
    /// CheckpointPod: captures containers of a pod, all as of one moment, into an empty directory. They go on.
    ///
    /// # Errors
    /// Checkpoints are off, or can't be made here; containers that are none of the pod's, do not run, or are named
    /// twice or not at all; a directory that is not empty; an unknown option; CRIU failed, or took too long. The
    /// directory is empty then, and the containers run.
    pub async fn checkpoint_pod(
        &self,
        request: v1::CheckpointPodRequest,
        limit: Option<Duration>,
    ) -> Result<()> {
        let context = &self.context;
        context.checkpoints.checkpoint()?;
        no_options(request.options.keys())?;
        let view = context.index.pod(&request.pod_sandbox_id)?;
        let sandbox = view.sandbox.id;
        let ids =
            distinct(&request.container_ids, |id| context.index.container(id).map(|(_, record)| record.id))?;
        let object = format!("checkpoint of pod sandbox {sandbox}");
        let output = blocking("look at the directory", &object, DISK, {
            let (context, path) = (context.clone(), request.output_path);
            move || Ok(place::output(&own_directories(&context), &path)?)
        });
        let output = output.await?;
        let claim = context.checkpoints.claim(output.path.display().to_string())?;
        let handler = context.handlers.get(&view.sandbox.runtime_handler)?;
        let runtime = handler.checkpoints().await?;
        let call = Call { view: &view, ids, object: &object, claim, limit };
        call.work(|grant, mut effort| {
            let context = context.clone();
            Box::pin(async move {
                for record in &grant.containers {
                    capturable(record)?;
                }
                let manifest = PodManifest {
                    version: layout::VERSION,
                    created: Timestamp::from_unix_nanos(context.clock.now()),
                    handler: runtime,
                    arch: arch().to_owned(),
                    containers: manifest_entries(&grant.containers)?,
                };
                checkpoint(&context, &grant, &manifest, &output, &mut effort).await
            })
        })
        .await
    }
}

/// This node's architecture as OCI names it.
pub(super) fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

async fn checkpoint(
    context: &Arc<Context>,
    grant: &Grant,
    manifest: &PodManifest,
    output: &Output,
    effort: &mut Effort,
) -> Result<i64> {
    let sandbox = grant.sandbox.id;
    let done = Box::pin(steps(context, grant, manifest, output, effort)).await;
    let undo = done.is_err();
    let (shared, path) = (context.clone(), output.path.clone());
    let object = format!("pod sandbox {sandbox}");
    let settled = blocking("end of a checkpoint", &object, DISK, move || {
        if undo {
            let what = |error| failed(format!("removal of a checkpoint from {}", path.display()), error);
            layout::remove_partial(&path).map_err(what)?;
        }
        intent::forget(&shared, &sandbox)
    });
    match (done, settled.await) {
        (Ok(at), Ok(())) => Ok(at),
        // A start would take it for half-written, and remove it.
        (Ok(_), Err(error)) => Err(error),
        (Err(error), Ok(())) => Err(error),
        (Err(error), Err(undone)) => {
            tracing::warn!(%sandbox, error = undone.chain(), "a failed checkpoint left something; the next start of criox removes it");
            Err(error)
        }
    }
}

async fn steps(
    context: &Arc<Context>,
    grant: &Grant,
    manifest: &PodManifest,
    output: &Output,
    effort: &mut Effort,
) -> Result<i64> {
    let at = context.clock.now();
    let begin = {
        let (context, sandbox, records) = (context.clone(), grant.sandbox.clone(), grant.containers.clone());
        let names: Vec<String> = manifest.containers.iter().map(|container| container.name.clone()).collect();
        let (path, runtime) = (output.path.clone(), manifest.handler.clone());
        let note = Output { path: path.clone(), ..*output };
        move || {
            intent::note(&context, &sandbox.id, &note)?;
            let what = |error| failed(format!("checkpoint of pod sandbox {}", sandbox.id), error);
            layout::prepare(&path, names.iter().map(String::as_str)).map_err(what)?;
            let begun = names.iter().zip(records).map(|(name, record)| {
                let directory = layout::container_dir(&path, name).map_err(what)?;
                let described = describe::begin(&context, &sandbox, &record, &runtime, at, &directory)?;
                Ok(Part { record, directory, described })
            });
            begun.collect::<Result<Vec<Part>>>()
        }
    };
    let parts = effort.blocking(move |_| begin()).await?;
    step("checkpoint.prepared")?;
    Box::pin(cut::take(context, grant, &parts, effort)).await?;
    step("checkpoint.captured")?;
    effort.heed_no_container();
    let (path, manifest) = (output.path.clone(), manifest.clone());
    let sandbox = grant.sandbox.id;
    let finish = effort.blocking(move |cancel| {
        let what = |error| failed(format!("checkpoint of pod sandbox {sandbox}"), error);
        for part in &parts {
            copy_log(&part.record.log_path, &part.directory, cancel).map_err(what)?;
        }
        layout::finish(&path, &manifest).map_err(what)
    });
    finish.await?;
    step("checkpoint.finished")?;
    tracing::info!(%sandbox, output = %output.path.display(), "checkpointed a pod");
    Ok(at)
}
