//! CheckpointPod: containers of a pod as of one moment, in a directory of the caller's.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use criox_checkpoint::copy_log;
use criox_checkpoint::pod::{self as layout, PodContainer, PodManifest};
use criox_cri::ids::ContainerId;
use criox_cri::v1;

use super::cut::{self, Part};
use super::effort::Effort;
use super::place::{self, Output};
use super::{DEFAULT, describe, failed, intent, step};
use crate::context::{Context, blocking};
use crate::engine::Lifecycle;
use crate::error::{Error, Kind, Result};
use crate::pod::{Grant, Request};
use crate::record::ContainerRecord;

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
        place::no_options(request.options.keys())?;
        let view = context.index.pod(&request.pod_sandbox_id)?;
        let sandbox = view.sandbox.id;
        let ids =
            distinct(&request.container_ids, |id| context.index.container(id).map(|(_, record)| record.id))?;
        let object = format!("checkpoint of pod sandbox {sandbox}");
        let output = blocking("look at the directory", &object, DISK, {
            let (context, path) = (context.clone(), request.output_path);
            move || place::output(&context, &path)
        });
        let output = output.await?;
        let claim = context.checkpoints.claim(output.path.display().to_string())?;
        let handler = context.handlers.get(&view.sandbox.runtime_handler)?;
        let runtime = handler.checkpoints().await?;
        let grant = view.pod.ask(|reply| Request::Checkpoint { ids: ids.clone(), reply }).await?;
        for record in &grant.containers {
            describe::possible(record)?;
        }
        let containers = manifest_entries(&grant.containers)?;
        let (mut effort, caller) = Effort::new(&object, limit.unwrap_or(DEFAULT));
        effort.heed(grant.ends.iter().cloned());
        let work = tokio::spawn({
            let context = context.clone();
            async move {
                let manifest = PodManifest {
                    version: layout::VERSION,
                    created: describe::timestamp(context.clock.now()),
                    handler: runtime,
                    arch: arch().to_owned(),
                    containers,
                };
                let done = Box::pin(checkpoint(&context, &grant, &manifest, &output, &mut effort)).await;
                drop(claim);
                done
            }
        });
        let done = work.await;
        drop(caller);
        let at =
            done.map_err(|panic| Error::failed(format!("internal error in {object}")).because(panic))??;
        let noted = view.pod.ask(|reply| Request::Checkpointed { ids, at, reply }).await;
        if let Err(error) = noted {
            tracing::debug!(%sandbox, error = error.chain(), "gone since its checkpoint");
        }
        Ok(())
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

/// The containers that a request names, each once.
fn distinct(asked: &[String], find: impl Fn(&str) -> Result<ContainerId>) -> Result<Vec<ContainerId>> {
    const FIELD: &str = "container_ids";
    if asked.is_empty() {
        return Err(Error::invalid(FIELD, "must not be empty; name the containers, there is no \"all\""));
    }
    let (mut ids, mut seen) = (Vec::new(), HashSet::new());
    for id in asked {
        let id = find(id)?;
        if !seen.insert(id) {
            return Err(Error::invalid(FIELD, format!("container {id} is named twice")));
        }
        ids.push(id);
    }
    Ok(ids)
}

/// A restore knows containers by their names, which can be those of directories.
fn manifest_entries(records: &[Arc<ContainerRecord>]) -> Result<Vec<PodContainer>> {
    let mut seen = HashSet::new();
    let entry = |record: &Arc<ContainerRecord>| {
        let metadata = record.config.0.metadata.clone().unwrap_or_default();
        if !seen.insert(metadata.name.clone()) {
            let text =
                format!("two of the containers have the name {:?}; checkpoint one of them", metadata.name);
            return Err(Error::new(Kind::FailedPrecondition, text));
        }
        Ok(PodContainer { name: metadata.name, id: record.id.to_string(), attempt: metadata.attempt })
    };
    records.iter().map(entry).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn id(digit: char) -> ContainerId {
        ContainerId::parse(&digit.to_string().repeat(64)).expect("an ID")
    }

    #[test]
    fn containers_are_named_once_each_and_at_least_one() {
        let find = |text: &str| text.chars().next().map(id).ok_or_else(|| Error::no_container(text));
        let asked = |ids: &[&str]| {
            let ids: Vec<String> = ids.iter().map(|&id| id.to_owned()).collect();
            distinct(&ids, find)
        };
        assert_eq!(asked(&["a", "b"]).expect("two"), [id('a'), id('b')]);
        for bad in [&[][..], &["a", "b", "a"], &["aa", "a"]] {
            let error = asked(bad).expect_err("not a set");
            assert_eq!(error.kind(), Kind::InvalidArgument);
            assert!(error.to_string().starts_with("container_ids: "), "{error}");
        }
    }
}
