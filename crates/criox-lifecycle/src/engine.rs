//! What the CRI services call: one method a request, which finds the pod, asks its task, and says that a live call got
//! the answer.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use criox_answers::status;
use criox_cri::ids::{ContainerId, SandboxId};
use criox_cri::v1;
use criox_records::key::SandboxKey;
use criox_records::{Encoded, SandboxPhase, SandboxRecord, UpdatedSandbox, VERSION};
use prost::bytes::Bytes;

use crate::admit::Verb;
use crate::checkpoint::source::Source;
use crate::container::exec::{self, Output};
use crate::container::reopen;
use crate::context::{Context, new_sandbox_id};
use crate::error::{Error, Kind, Result};
use crate::nri;
use crate::pod::{Origin, Pod, Request, Run, Start, Task};
use crate::sandbox;
use crate::{spare, userns};

/// How often RunPodSandbox asks for a name that is about to be free, and the pause between.
const AGAIN: u32 = 100;
const PAUSE: Duration = Duration::from_millis(10);

/// Pods and containers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Lifecycle {
    pub(crate) context: Arc<Context>,
}

impl Lifecycle {
    /// Over what all pods share. [`Lifecycle::recover`] comes before the first request.
    pub fn new(context: Arc<Context>) -> Self {
        Self { context }
    }

    /// For a daemon that ends in order: leaves running what runs, and ends what only waited for requests.
    pub async fn close(&self) {
        spare::end_all(&self.context).await;
    }

    /// What all pods share.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// RunPodSandbox: returns when the sandbox is ready.
    ///
    /// # Errors
    /// A wrong field; an existing sandbox of the same name that differs; a step that failed, of which nothing is left.
    pub async fn run_pod_sandbox(&self, config: v1::PodSandboxConfig, handler: &str) -> Result<SandboxId> {
        let (pod, _) = self.run_pod(config, handler, false).await?;
        pod.claim(None).await;
        Ok(pod.id)
    }

    /// A sandbox that is ready, for a caller who has not been given it yet, and whether this call made it. `restoring`:
    /// a restart undoes it until RestorePod has ended.
    pub(crate) async fn run_pod(
        &self,
        config: v1::PodSandboxConfig,
        handler: &str,
        restoring: bool,
    ) -> Result<(Pod, bool)> {
        let key = SandboxKey::of(&config)?;
        sandbox::run::validate(&self.context, &config, handler)?;
        userns::possible(&self.context, &config, handler).await?;
        sandbox::run::network_ready(&self.context, &config).await?;
        let config = Arc::new(config);
        for _ in 0..AGAIN {
            let (pod, new) = self.reserve(&key, &config, handler, restoring)?;
            let (config, handler) = (config.clone(), handler.to_owned());
            match pod.ask(|reply| Request::Run { config, handler, reply }).await {
                Ok(Run::Ready) => return Ok((pod, new)),
                Ok(Run::Gone) => {}
                // The name is being given back between the look-up and the question.
                Err(error) if error.kind() == Kind::NotFound => tokio::time::sleep(PAUSE).await,
                Err(error) => return Err(error),
            }
        }
        Err(Error::failed(format!(
            "the name of pod {}/{} with attempt {} is not given back by what had it; try again, and if that does not help restart criox",
            key.namespace, key.name, key.attempt
        )))
    }

    /// The pod of a key, made if there is none. The lock is held for the look-up only; nothing in it waits.
    /// True: it is new.
    fn reserve(
        &self,
        key: &SandboxKey,
        config: &Arc<v1::PodSandboxConfig>,
        handler: &str,
        restoring: bool,
    ) -> Result<(Pod, bool)> {
        let parent = config.linux.as_ref().map(|linux| linux.cgroup_parent.as_str()).unwrap_or_default();
        let cgroup_parent = self.context.cgroup_parent(parent)?;
        let mut names = self.context.names();
        if let Some(pod) = names.get(key) {
            return Ok((pod.clone(), false));
        }
        let selinux = match self.context.selinux.is_enabled() {
            true => {
                let live: HashSet<SandboxId> = names.values().map(|pod| pod.id).collect();
                let pods = self.context.index.pods();
                let known = pods.iter().filter_map(|view| view.sandbox.selinux.clone());
                self.context.selinux.pod(config, known, |id| live.contains(id))?
            }
            false => None,
        };
        let spare = if spare::suits(&self.context, handler) { spare::take(&self.context) } else { None };
        let record = SandboxRecord {
            version: VERSION,
            id: spare.as_ref().map_or_else(new_sandbox_id, |spare| Ok(spare.id))?,
            boot_id: self.context.boot_id.clone(),
            created_at: self.context.clock.now(),
            phase: SandboxPhase::Creating,
            claimed: false,
            torn_down: false,
            runtime_handler: handler.to_owned(),
            cgroup_parent,
            config: Encoded(config.clone()),
            ips: Vec::new(),
            monitor: None,
            init: None,
            updated: None,
            selinux,
            restoring,
        };
        if let Some(labels) = &record.selinux {
            self.context.selinux.allot(record.id, labels);
        }
        let (pod, requests) = Pod::new(record.id);
        names.insert(key.clone(), pod.clone());
        Task::spawn(&self.context, (pod.clone(), requests), record, Start::Create { spare });
        Ok((pod, true))
    }

    /// StopPodSandbox. An unknown ID is success.
    ///
    /// # Errors
    /// Something could not be ended or given back; the call can be repeated.
    pub async fn stop_pod_sandbox(&self, id: &str) -> Result<()> {
        match self.context.index.pod(id) {
            Ok(view) => or_gone(view.pod.ask(|reply| Request::Stop { reply }).await),
            Err(error) => or_gone(Err(error)),
        }
    }

    /// RemovePodSandbox. An unknown ID is success.
    ///
    /// # Errors
    /// Something could not be ended or removed; the call can be repeated.
    pub async fn remove_pod_sandbox(&self, id: &str) -> Result<()> {
        match self.context.index.pod(id) {
            Ok(view) => or_gone(view.pod.ask(|reply| Request::Remove { reply }).await),
            Err(error) => or_gone(Err(error)),
        }
    }

    /// CreateContainer: returns when its process waits for the start.
    ///
    /// # Errors
    /// A wrong field; an unknown sandbox or one that is not ready; an existing container of the same name that differs;
    /// a step that failed, of which nothing is left.
    pub async fn create_container(&self, sandbox: &str, config: v1::ContainerConfig) -> Result<ContainerId> {
        let view = self.context.index.pod(sandbox)?;
        let source = Source::of(&self.context, &view.sandbox, &config).await?.map(Arc::new);
        let config = Arc::new(config);
        let id = view.pod.ask(|reply| Request::Create { config, source, reply }).await?;
        view.pod.claim(Some(id)).await;
        Ok(id)
    }

    /// StartContainer.
    ///
    /// # Errors
    /// Unknown, or not in a state that allows it; the runtime failed.
    pub async fn start_container(&self, id: &str) -> Result<()> {
        self.act(Verb::Start, id, Duration::ZERO).await
    }

    /// StopContainer, with the grace before SIGKILL. An unknown ID is success.
    ///
    /// # Errors
    /// It does not die.
    pub async fn stop_container(&self, id: &str, grace: Duration) -> Result<()> {
        or_gone(self.act(Verb::Stop, id, grace).await)
    }

    /// RemoveContainer; a running one is killed. An unknown ID is success.
    ///
    /// # Errors
    /// It does not die, or something of it could not be removed; the call can be repeated.
    pub async fn remove_container(&self, id: &str) -> Result<()> {
        or_gone(self.act(Verb::Remove, id, Duration::ZERO).await)
    }

    async fn act(&self, verb: Verb, id: &str, grace: Duration) -> Result<()> {
        let (view, record) = self.context.index.container(id)?;
        view.pod.ask(|reply| Request::Act { verb, id: record.id, grace, reply }).await
    }

    /// UpdateContainerResources: returns when all of the limits are in force.
    ///
    /// # Errors
    /// Unknown, or neither created nor running; a wrong field; a limit that the kernel refuses. The old limits hold then.
    pub async fn update_container_resources(
        &self,
        id: &str,
        resources: v1::LinuxContainerResources,
    ) -> Result<()> {
        let (view, record) = self.context.index.container(id)?;
        let (id, resources, origin) = (record.id, Arc::new(resources), Origin::Cri);
        view.pod.ask(|reply| Request::Update { id, resources, origin, reply }).await
    }

    /// UpdatePodSandboxResources: notes what the kubelet has given to the pod.
    ///
    /// # Errors
    /// Unknown.
    pub async fn update_pod_sandbox_resources(
        &self,
        id: &str,
        resources: Option<v1::LinuxContainerResources>,
        overhead: Option<v1::LinuxContainerResources>,
    ) -> Result<()> {
        let view = self.context.index.pod(id)?;
        let encoded = |given: Option<v1::LinuxContainerResources>| given.map(|all| Encoded(Arc::new(all)));
        nri::update_sandbox(&self.context, &view.sandbox, overhead.as_ref(), resources.as_ref()).await?;
        let updated = UpdatedSandbox { resources: encoded(resources), overhead: encoded(overhead) };
        view.pod.ask(|reply| Request::UpdateSandbox { updated, reply }).await?;
        if let Ok(view) = self.context.index.pod(id) {
            nri::sandbox_updated(&self.context, &view.sandbox).await;
        }
        Ok(())
    }

    /// ReopenContainerLog.
    ///
    /// # Errors
    /// Unknown, not running, or the file can't be made; there is no new file then.
    pub async fn reopen_container_log(&self, id: &str) -> Result<()> {
        let (view, record) = self.context.index.container(id)?;
        let client = view.pod.monitor().ok_or_else(|| {
            Error::new(Kind::FailedPrecondition, format!("container {} has lost its monitor", record.id))
        })?;
        reopen::reopen(&client, &record).await
    }

    /// ExecSync: runs a command, at most `limit` (zero: without limit).
    ///
    /// # Errors
    /// Unknown or not running; DeadlineExceeded when it did not end in time, with its whole tree dead.
    pub async fn exec_sync(&self, id: &str, command: &[String], limit: Duration) -> Result<Output> {
        let (view, record) = self.context.index.container(id)?;
        exec::exec(&self.context, &view, &record, command, limit).await
    }

    /// ListPodSandbox.
    pub fn list_pod_sandboxes(&self, filter: Option<&v1::PodSandboxFilter>) -> Vec<v1::PodSandbox> {
        let pods = self.context.index.listed_pods(filter);
        pods.iter().map(|view| status::sandbox_entry(&view.sandbox)).collect()
    }

    /// ListContainers.
    pub fn list_containers(&self, filter: Option<&v1::ContainerFilter>) -> Vec<v1::Container> {
        let containers = self.context.index.listed_containers(filter);
        containers.iter().map(|record| status::container_entry(record)).collect()
    }

    /// ListPodSandbox in the form that goes over the wire, see [`Index::encoded_pods`].
    pub fn encoded_pods(&self, filter: Option<&v1::PodSandboxFilter>) -> Vec<Bytes> {
        self.context.index.encoded_pods(filter)
    }

    /// ListContainers in the form that goes over the wire, see [`Index::encoded_containers`].
    pub fn encoded_containers(&self, filter: Option<&v1::ContainerFilter>) -> Vec<Bytes> {
        self.context.index.encoded_containers(filter)
    }

    /// How many monitors answer, for Status: a read of snapshots, nobody is asked.
    pub fn connected_monitors(&self) -> usize {
        let pods = self.context.index.pods();
        pods.iter().filter(|view| view.pod.monitor().is_some_and(|client| !client.is_closed())).count()
    }
}

/// What is gone is stopped and removed.
fn or_gone(result: Result<()>) -> Result<()> {
    match result {
        Err(error) if error.kind() == Kind::NotFound => Ok(()),
        other => other,
    }
}
