//! RestorePod: a new pod whose containers go on from a pod's checkpoint. It is made with the steps of RunPodSandbox and
//! CreateContainer; an error, or a restart before its end, undoes all of it by ID.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use criox_checkpoint::ConfigDump;
use criox_checkpoint::pod::PodCheckpoint;
use criox_checkpoint_policy::{each_named_once, fits, no_options, place, same_names};
use criox_cri::ids::{ContainerId, SandboxId};
use criox_cri::v1;
use criox_records::key::{self, ContainerKey, SandboxKey};
use criox_records::{ContainerPhase, SandboxPhase};

use super::effort::Effort;
use super::source::Source;
use super::{DEFAULT, failed, step};
use crate::context::blocking;
use crate::engine::Lifecycle;
use crate::error::{Error, Kind, Result};
use crate::pod::{Pod, Request};
use crate::{sandbox, userns};

/// Looking at a checkpoint.
const LOOK: Duration = Duration::from_secs(60);

/// A pod that RestorePod made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestoredPod {
    /// The sandbox.
    pub sandbox: SandboxId,
    /// Each container by its name, in the order of the request.
    pub containers: Vec<(String, ContainerId)>,
}

/// A request that has been looked at.
struct Wanted {
    key: SandboxKey,
    config: v1::PodSandboxConfig,
    handler: String,
    containers: Vec<(String, Arc<v1::ContainerConfig>, PathBuf)>,
}

impl Lifecycle {
    /// RestorePod: a pod and its containers, each CREATED and to be started, from what CheckpointPod wrote.
    ///
    /// # Errors
    /// Restores are not allowed, or can't be made here; a checkpoint that can't be read; configurations that are not
    /// exactly those of its containers, or don't fit them; whatever RunPodSandbox and CreateContainer say. Nothing is
    /// left then.
    pub async fn restore_pod(
        &self,
        request: v1::RestorePodRequest,
        limit: Option<Duration>,
    ) -> Result<RestoredPod> {
        let context = &self.context;
        context.checkpoints.restore()?;
        no_options(request.options.keys())?;
        let wanted = self.wanted(request).await?;
        let SandboxKey { namespace, name, attempt, .. } = &wanted.key;
        let object = format!("restore of pod {namespace}/{name} with attempt {attempt}");
        let claim = context.checkpoints.claim(object.clone())?;
        if let Some(made) = self.made_before(&wanted)? {
            return Ok(made);
        }
        let (mut effort, caller) = Effort::new(&object, limit.unwrap_or(DEFAULT));
        let work = tokio::spawn({
            let lifecycle = self.clone();
            async move {
                let made = lifecycle.restore(&wanted, &mut effort).await;
                if made.is_err() {
                    lifecycle.undo(&wanted.key).await;
                }
                drop(claim);
                made
            }
        });
        let made = work.await;
        drop(caller);
        made.map_err(|panic| Error::failed(format!("internal error in {object}")).because(panic))?
    }

    /// Everything that can be checked before anything is made.
    async fn wanted(&self, request: v1::RestorePodRequest) -> Result<Wanted> {
        let context = &self.context;
        let config = request.config.ok_or_else(|| Error::invalid("config", "is missing"))?;
        let key = SandboxKey::of(&config)?;
        let handler = context.handlers.get(&request.runtime_handler)?;
        let runtime = handler.checkpoints().await?;
        sandbox::run::validate(context, &config, &request.runtime_handler)?;
        userns::possible(context, &config, &request.runtime_handler).await?;
        let names = each_named_once(&request.container_configs)?;
        let path = request.checkpoint_path;
        let object = format!("checkpoint {path:?}");
        let checkpoint = blocking("look at a pod's checkpoint", &object, LOOK, move || {
            let path = place::input(&path)?;
            PodCheckpoint::open(&path).map_err(|error| failed("checkpoint_path", error))
        });
        let checkpoint = checkpoint.await?;
        let made_by = ConfigDump { runtime: checkpoint.manifest.handler.clone(), ..ConfigDump::default() };
        fits::same_runtime(&made_by, &runtime)?;
        let here = super::pod::arch();
        if checkpoint.manifest.arch != here {
            let text = format!(
                "the checkpoint is of architecture {:?}, this node's is {here:?}",
                checkpoint.manifest.arch
            );
            return Err(Error::invalid("checkpoint_path", text));
        }
        same_names(&names, checkpoint.manifest.containers.iter().map(|container| container.name.as_str()))?;
        let containers = names.into_iter().zip(request.container_configs).map(|(name, config)| {
            let directory = checkpoint.container(&name).map_err(|error| failed("checkpoint_path", error))?;
            Ok((name, Arc::new(config), directory))
        });
        let containers = containers.collect::<Result<Vec<_>>>()?;
        Ok(Wanted { key, config, handler: request.runtime_handler, containers })
    }

    /// What an earlier call with the same request has made, whose answer may have been lost.
    fn made_before(&self, wanted: &Wanted) -> Result<Option<RestoredPod>> {
        let Some(pod) = self.context.names().get(&wanted.key).cloned() else { return Ok(None) };
        let view = self.context.index.pod(pod.id.as_str())?;
        let refused = |what: String| {
            Err(Error::new(
                Kind::AlreadyExists,
                format!("pod sandbox {} has this name and attempt, and {what}", pod.id),
            ))
        };
        let mut differences = key::sandbox_differences(&view.sandbox.config.0, &wanted.config);
        if view.sandbox.runtime_handler != wanted.handler {
            differences.push("runtime_handler");
        }
        if !differences.is_empty() {
            return refused(format!("differs in {}", differences.join(", ")));
        }
        if view.sandbox.phase != SandboxPhase::Ready {
            return refused("is not ready".to_owned());
        }
        let mut containers = Vec::new();
        for (name, config, _) in &wanted.containers {
            let key = ContainerKey::of(config)?;
            let same = view.containers.values().find(|record| {
                record.restored
                    && record.phase == ContainerPhase::Created
                    && ContainerKey::of(&record.config.0).is_ok_and(|other| other == key)
                    && key::same_container(&record.config.0, config)
            });
            let Some(same) = same else {
                return refused(format!(
                    "has no container {name:?} that waits to go on as this request has it"
                ));
            };
            containers.push((name.clone(), same.id));
        }
        Ok(Some(RestoredPod { sandbox: pod.id, containers }))
    }

    async fn restore(&self, wanted: &Wanted, effort: &mut Effort) -> Result<RestoredPod> {
        let mut sources = Vec::new();
        for (name, config, directory) in &wanted.containers {
            let source = Source::of_pod(&self.context, directory.clone(), config);
            let source = effort.step(source).await.map_err(|error| of_container(name, error))?;
            sources.push(Arc::new(source));
        }
        let made = self.run_pod(wanted.config.clone(), &wanted.handler, true);
        let (pod, new) = effort.step(made).await?;
        if !new {
            let text = format!("pod sandbox {} was made meanwhile by another call", pod.id);
            return Err(Error::new(Kind::AlreadyExists, text));
        }
        step("restore.sandbox")?;
        let mut containers = Vec::new();
        for ((name, config, _), source) in wanted.containers.iter().zip(sources) {
            let (config, source) = (config.clone(), Some(source));
            let created = effort.step(pod.ask(|reply| Request::Create { config, source, reply })).await;
            containers.push((name.clone(), created.map_err(|error| of_container(name, error))?));
            step("restore.container")?;
        }
        effort.step(pod.ask(|reply| Request::Restored { reply })).await?;
        hand_over(&pod, &containers).await;
        Ok(RestoredPod { sandbox: pod.id, containers })
    }

    /// Removes what was made, if it is not complete: nobody else restores a pod of this name at the same time.
    async fn undo(&self, key: &SandboxKey) {
        let Some(pod) = self.context.names().get(key).cloned() else { return };
        let restoring = self.context.index.pod(pod.id.as_str()).is_ok_and(|view| view.sandbox.restoring);
        if !restoring {
            return;
        }
        match pod.ask(|reply| Request::Remove { reply }).await {
            Ok(()) => {}
            Err(error) if error.kind() == Kind::NotFound => {}
            Err(error) => {
                tracing::warn!(sandbox = %pod.id, error = error.chain(), "a failed restore left something; the next start of criox removes it");
            }
        }
    }
}

/// A live call is given the sandbox and its containers.
async fn hand_over(pod: &Pod, containers: &[(String, ContainerId)]) {
    pod.claim(None).await;
    for (_, id) in containers {
        pod.claim(Some(*id)).await;
    }
}

fn of_container(name: &str, error: Error) -> Error {
    Error::new(error.kind(), format!("container {name:?}")).because(error)
}
