//! Plugins of the Node Resource Interface: what they are told of pods and containers, and what they may change.
//!
//! Each step of a pod's life calls one function here. Without a plugin that costs one look at a number; nothing is
//! described. A plugin that does not answer is dropped at its limit by `criox-nri`; no step waits longer for it.
//!
//! | step | what a plugin's error does |
//! |---|---|
//! | RunPodSandbox, CreateContainer, UpdateContainerResources, UpdatePodSandboxResources | fails the call; what was made is undone, and plugins are told so |
//! | everything else | is logged |

mod describe;
mod runtime;
mod updates;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use criox_config::Config;
use criox_cri::ids::ContainerId;
use criox_cri::v1;
use criox_nri::proto::Event;
use criox_nri::{Mark, Nri, Options, PluginError, Updates, ValidatorOptions};
use criox_nri_spec::{Limits, limits, update_of};
use criox_records::{ContainerRecord, SandboxRecord};
use criox_spec::{Built, CdiName};
use tokio::sync::watch;

use crate::container::bundle::Input;
use crate::container::update::{self, Work};
use crate::context::Context;
use crate::engine::Lifecycle;
use crate::error::{Error, Kind, Result};
use crate::pod::Origin;

/// What plugins are told that they talk to: they know CRI-O.
const RUNTIME: &str = "cri-o";
/// For all the updates of other containers that a creation asks for.
const UPDATES: Duration = Duration::from_secs(60);

/// NRI and its plugins.
#[derive(Debug, Default)]
pub struct Plugins {
    nri: Nri,
    /// Ends of containers that plugins are being told of: what comes after them waits.
    ending: Mutex<HashMap<ContainerId, watch::Receiver<()>>>,
}

impl Plugins {
    /// As configured. `version` is the daemon's.
    pub fn new(config: &Config, version: &str) -> Self {
        let config = &config.nri;
        if !config.enable_nri {
            return Self::default();
        }
        let validator = &config.default_validator;
        let validator = validator.nri_enable_default_validator.then(|| ValidatorOptions {
            reject_oci_hooks: validator.nri_validator_reject_oci_hook_adjustment,
            reject_runtime_default_seccomp: validator.nri_validator_reject_runtime_default_seccomp_adjustment,
            reject_unconfined_seccomp: validator.nri_validator_reject_unconfined_seccomp_adjustment,
            reject_custom_seccomp: validator.nri_validator_reject_custom_seccomp_adjustment,
            reject_namespaces: validator.nri_validator_reject_namespace_adjustment,
            required_plugins: validator.nri_validator_required_plugins.clone(),
            tolerate_missing_annotation: validator.nri_validator_tolerate_missing_plugins_annotation.clone(),
        });
        let listen = (!config.nri_disable_connections).then(|| config.nri_listen.clone());
        let nri = Nri::new(Options {
            listen,
            plugin_dir: config.nri_plugin_dir.clone(),
            config_dir: config.nri_plugin_config_dir.clone(),
            registration_timeout: config.nri_plugin_registration_timeout,
            request_timeout: config.nri_plugin_request_timeout,
            runtime_name: RUNTIME.into(),
            runtime_version: version.into(),
            validator,
        });
        Self { nri, ending: Mutex::default() }
    }

    /// The names of connected plugins, in their order.
    pub fn connected(&self) -> Vec<String> {
        self.nri.plugins()
    }

    /// The object is shown as plugins know it.
    pub(crate) fn settled(&self, id: &str) {
        self.nri.settled(id);
    }

    fn ending(&self) -> MutexGuard<'_, HashMap<ContainerId, watch::Receiver<()>>> {
        self.ending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lifecycle {
    /// Starts the plugins of this node and lets others connect. After [`Lifecycle::recover`]: each is told at once of
    /// everything that there is. Returns when those that are started here have joined or been given up.
    ///
    /// # Errors
    /// The socket for plugins can't be made.
    pub async fn start_plugins(&self) -> Result<()> {
        let runtime = Arc::new(runtime::Backend(self.context.clone()));
        self.context.nri.nri.start(runtime).await.map_err(|error| {
            Error::failed(
                "plugins can't connect; set nri_listen, or nri_disable_connections or enable_nri = false",
            )
            .because(error)
        })
    }

    /// Ends the plugins' connections, and those that were started here.
    pub async fn stop_plugins(&self) {
        self.context.nri.nri.stop().await;
    }
}

/// What the caller of CRI is told.
fn objection(error: PluginError) -> Error {
    let kind = match &error {
        PluginError::Rejected { .. } => Kind::FailedPrecondition,
        _ => Kind::Failed,
    };
    Error::new(kind, "a plugin of this node stands in the way").because(error)
}

/// For events whose course no plugin changes.
fn heard(object: &str, result: std::result::Result<(), PluginError>) {
    if let Err(error) = result {
        tracing::warn!(
            object,
            error = crate::error::chain(&error),
            "an NRI plugin objects to what has happened all the same"
        );
    }
}

/// RunPodSandbox, before the sandbox is shown as ready. [`Plugins::settled`] follows.
///
/// # Errors
/// A plugin objects.
pub(crate) async fn run_sandbox(context: &Context, record: &SandboxRecord) -> Result<()> {
    let Some(round) = context.nri.nri.round(Mark::Creating(record.id.as_str())) else { return Ok(()) };
    let asked = round.run_pod_sandbox(criox_nri_spec::pod(&context.paths, record));
    Box::pin(asked).await.map_err(objection)
}

/// The sandbox that plugins were asked about did not come about.
pub(crate) async fn undo_sandbox(context: &Context, record: &SandboxRecord) {
    let id = record.id.as_str();
    if context.nri.nri.has_begun(id)
        && let Some(round) = context.nri.nri.round(Mark::Removing(id))
    {
        let pod = criox_nri_spec::pod(&context.paths, record);
        heard(id, Box::pin(round.stop_pod_sandbox(pod.clone())).await);
        heard(id, Box::pin(round.remove_pod_sandbox(pod)).await);
    }
}

/// StopPodSandbox: its containers have ended, and what it has is still there.
pub(crate) async fn stop_sandbox(
    context: &Context,
    record: &SandboxRecord,
    containers: impl Iterator<Item = ContainerId>,
) {
    let Some(round) = context.nri.nri.round(Mark::Nothing) else { return };
    for container in containers {
        told_of_end(context, &container).await;
    }
    let told = round.stop_pod_sandbox(criox_nri_spec::pod(&context.paths, record));
    heard(record.id.as_str(), Box::pin(told).await);
}

/// RemovePodSandbox: only its records are left. [`Plugins::settled`] follows.
pub(crate) async fn remove_sandbox(context: &Context, record: &SandboxRecord) {
    let id = record.id.as_str();
    let Some(round) = context.nri.nri.round(Mark::Removing(id)) else { return };
    heard(id, Box::pin(round.remove_pod_sandbox(criox_nri_spec::pod(&context.paths, record))).await);
}

/// CreateContainer, between the making of the specification and its writing. Blocks until all plugins have answered.
/// [`Plugins::settled`] follows.
///
/// # Errors
/// A plugin or validator objects, two are in conflict, or what they want can't be.
pub(crate) fn adjust(input: &Input, built: &mut Built) -> Result<Updates> {
    let Input { context, sandbox, record, features, .. } = input;
    let Some(round) = context.nri.nri.round(Mark::Creating(record.id.as_str())) else {
        return Ok(Updates::default());
    };
    let pod = criox_nri_spec::pod(&context.paths, sandbox);
    let container = criox_nri_spec::with_spec(record, &built.spec);
    let runtime = tokio::runtime::Handle::current();
    let asked = Box::pin(round.create_container(pod, container));
    let created = runtime.block_on(asked).map_err(objection)?;
    let names: Vec<CdiName> = created
        .adjust
        .cdi_devices
        .iter()
        .map(|device| CdiName::parse(&device.name))
        .collect::<std::result::Result<_, _>>()
        .map_err(|error| Error::failed(format!("CDI devices that an NRI plugin asks for: {error}")))?;
    context.cdi.inject(&mut built.spec, &names, features, "CDI devices of NRI plugins")?;
    let limits = Limits { features, cgroup_v2: context.cgroups.is_v2() };
    criox_nri_spec::adjust(&mut built.spec, &created.adjust, &limits)?;
    Ok(created.updates)
}

/// What plugins want changed of other containers when one is created. They have their own time: others' updates may be
/// at work.
///
/// # Errors
/// An update failed that may not, or they took too long.
pub(crate) async fn update_others(context: &Arc<Context>, id: &ContainerId, updates: Updates) -> Result<()> {
    if updates == Updates::default() {
        return Ok(());
    }
    let all = updates::apply(context, updates);
    tokio::time::timeout(UPDATES, all).await.unwrap_or_else(|_| {
        Err(Error::timed_out(
            "updates of other containers that NRI plugins asked for",
            &format!("the creation of container {id}"),
            UPDATES,
            "other updates of them are still at work, or their runtime hangs",
        ))
    })
}

/// The container that plugins were asked about did not come about.
pub(crate) async fn undo_container(context: &Context, sandbox: &SandboxRecord, record: &ContainerRecord) {
    let id = record.id.as_str();
    if context.nri.nri.has_begun(id)
        && let Some(round) = context.nri.nri.round(Mark::Removing(id))
    {
        let told = round.remove_container(
            criox_nri_spec::pod(&context.paths, sandbox),
            criox_nri_spec::container(record),
        );
        heard(id, Box::pin(told).await);
    }
}

/// PostCreateContainer: its process waits for the start.
pub(crate) async fn container_created(
    context: &Arc<Context>,
    sandbox: &SandboxRecord,
    record: &ContainerRecord,
) {
    if !context.nri.nri.is_wanted(Event::PostCreateContainer) {
        return;
    }
    let Some(round) = context.nri.nri.round(Mark::Nothing) else { return };
    let container = describe::container(context, &Arc::new(record.clone())).await;
    let told = round.post_create_container(criox_nri_spec::pod(&context.paths, sandbox), container);
    heard(record.id.as_str(), Box::pin(told).await);
}

/// StartContainer: before its process runs.
pub(crate) async fn start_container(
    context: &Arc<Context>,
    sandbox: &SandboxRecord,
    record: &Arc<ContainerRecord>,
) {
    if !context.nri.nri.is_wanted(Event::StartContainer) {
        return;
    }
    let Some(round) = context.nri.nri.round(Mark::Nothing) else { return };
    let container = describe::container(context, record).await;
    let told = round.start_container(criox_nri_spec::pod(&context.paths, sandbox), container);
    heard(record.id.as_str(), Box::pin(told).await);
}

/// PostStartContainer: its process runs.
pub(crate) async fn container_started(
    context: &Arc<Context>,
    sandbox: &SandboxRecord,
    record: &Arc<ContainerRecord>,
) {
    if !context.nri.nri.is_wanted(Event::PostStartContainer) {
        return;
    }
    let Some(round) = context.nri.nri.round(Mark::Nothing) else { return };
    let mut container = describe::container(context, record).await;
    container.state = criox_nri::proto::ContainerState::ContainerRunning.into();
    let told = round.post_start_container(criox_nri_spec::pod(&context.paths, sandbox), container);
    heard(record.id.as_str(), Box::pin(told).await);
}

/// StopContainer: it has ended, by whatever. Told beside the pod's task; [`told_of_end`] waits for that.
pub(crate) fn container_ended(
    context: &Arc<Context>,
    sandbox: &Arc<SandboxRecord>,
    record: &Arc<ContainerRecord>,
) {
    if !context.nri.nri.is_wanted(Event::StopContainer) {
        return;
    }
    let Some(round) = context.nri.nri.round(Mark::Nothing) else { return };
    let (done, waits) = watch::channel(());
    context.nri.ending().insert(record.id, waits);
    let (context, sandbox, record) = (context.clone(), sandbox.clone(), record.clone());
    tokio::spawn(async move {
        let container = describe::container(&context, &record).await;
        let told = round.stop_container(criox_nri_spec::pod(&context.paths, &sandbox), container);
        let (wishes, result) = Box::pin(told).await;
        heard(record.id.as_str(), result);
        context.nri.ending().remove(&record.id);
        drop(done);
        updates::later(&context, wishes);
    });
}

/// Waits until plugins have been told of a container's end, if they are being told.
pub(crate) async fn told_of_end(context: &Context, id: &ContainerId) {
    let waits = context.nri.ending().get(id).cloned();
    if let Some(mut waits) = waits {
        // The sender goes when they have been told.
        while waits.changed().await.is_ok() {}
    }
}

/// RemoveContainer: it has ended, and its root file system is about to go. [`Plugins::settled`] follows.
pub(crate) async fn remove_container(
    context: &Arc<Context>,
    sandbox: &SandboxRecord,
    record: &Arc<ContainerRecord>,
) {
    let Some(round) = context.nri.nri.round(Mark::Removing(record.id.as_str())) else { return };
    told_of_end(context, &record.id).await;
    let container = describe::container(context, record).await;
    let told = round.remove_container(criox_nri_spec::pod(&context.paths, sandbox), container);
    heard(record.id.as_str(), Box::pin(told).await);
}

/// UpdateContainerResources, with plugins before and after it, unless it is a plugin that asks.
///
/// # Errors
/// A plugin objects or wants what can't be, or the update fails.
pub(crate) async fn around_update(work: Work, origin: Origin) -> Result<v1::LinuxContainerResources> {
    if origin == Origin::Nri {
        return update::update(work).await;
    }
    let (context, sandbox, record) = (work.context.clone(), work.sandbox.clone(), work.record.clone());
    let request = update_container(&context, &sandbox, &record, work.request.clone()).await?;
    let limits = update::update(Work { request, ..work }).await?;
    container_updated(&context, &sandbox, &record).await;
    Ok(limits)
}

/// UpdateContainer: before new limits count. Returns those that are to.
async fn update_container(
    context: &Arc<Context>,
    sandbox: &SandboxRecord,
    record: &Arc<ContainerRecord>,
    wanted: Arc<v1::LinuxContainerResources>,
) -> Result<Arc<v1::LinuxContainerResources>> {
    if !context.nri.nri.is_wanted(Event::UpdateContainer) {
        return Ok(wanted);
    }
    let Some(round) = context.nri.nri.round(Mark::Nothing) else { return Ok(wanted) };
    let container = describe::container(context, record).await;
    let limits = limits(&wanted);
    let asked =
        round.update_container(criox_nri_spec::pod(&context.paths, sandbox), container, limits.clone());
    let (decided, wishes) = Box::pin(asked).await.map_err(objection)?;
    // Beside: two updates whose plugins want each other's container changed would wait for each other.
    updates::later(context, wishes);
    if decided == limits {
        return Ok(wanted);
    }
    let decided = update_of(&decided, context.cgroups.is_v2())?;
    // Plugins have no say in it here.
    Ok(Arc::new(v1::LinuxContainerResources { oom_score_adj: wanted.oom_score_adj, ..decided }))
}

/// PostUpdateContainer: new limits count.
async fn container_updated(context: &Arc<Context>, sandbox: &SandboxRecord, record: &Arc<ContainerRecord>) {
    if !context.nri.nri.is_wanted(Event::PostUpdateContainer) {
        return;
    }
    let Some(round) = context.nri.nri.round(Mark::Nothing) else { return };
    let container = describe::container(context, record).await;
    let told = round.post_update_container(criox_nri_spec::pod(&context.paths, sandbox), container);
    heard(record.id.as_str(), Box::pin(told).await);
}

/// UpdatePodSandbox: before the pod's new limits are noted.
///
/// # Errors
/// A plugin objects.
pub(crate) async fn update_sandbox(
    context: &Context,
    record: &SandboxRecord,
    overhead: Option<&v1::LinuxContainerResources>,
    resources: Option<&v1::LinuxContainerResources>,
) -> Result<()> {
    let Some(round) = context.nri.nri.round(Mark::Nothing) else { return Ok(()) };
    let (overhead, resources) = (overhead.map(limits), resources.map(limits));
    let asked = round.update_pod_sandbox(criox_nri_spec::pod(&context.paths, record), overhead, resources);
    Box::pin(asked).await.map_err(objection)
}

/// PostUpdatePodSandbox: the pod's new limits are noted.
pub(crate) async fn sandbox_updated(context: &Context, record: &SandboxRecord) {
    let Some(round) = context.nri.nri.round(Mark::Nothing) else { return };
    let told = round.post_update_pod_sandbox(criox_nri_spec::pod(&context.paths, record));
    heard(record.id.as_str(), Box::pin(told).await);
}
