//! CreateContainer: image, root file system, specification, the runtime's `create`. A failure at any point undoes by
//! ID, with the code that removes containers.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use criox_confine::NotifierAction;
use criox_cri::v1;
use criox_image::ImageInfo;
use criox_monitor_api::client::Client;
use criox_monitor_api::proto::{self, failure, reply, request};
use criox_records::key::ContainerKey;
use criox_records::{
    ContainerPhase, ContainerRecord, Encoded, ImageOfContainer, Notifier, ProcessIdentity, SandboxRecord,
    VERSION, log_path,
};
use criox_sys::cgroup;
use tokio::sync::watch;

use super::bundle::{self, Bundle};
use super::{log, remove, seccomp};
use crate::checkpoint::source::{self, Source};
use crate::context::{Context, blocking, blocking_or_undo, new_container_id};
use crate::error::{Error, Kind, Result, failpoint};
use crate::monitor;

/// Where systemd-journald takes entries in its native protocol.
const JOURNAL: &str = "/run/systemd/journal/socket";
/// Preparing the root file system and the specification.
const PREPARE: Duration = Duration::from_secs(120);
/// Reading the store's records of images.
const LOOKUP: Duration = Duration::from_secs(30);

/// What a creation works with.
pub(crate) struct Work {
    pub(crate) context: Arc<Context>,
    pub(crate) sandbox: Arc<SandboxRecord>,
    pub(crate) client: Client,
    /// As [`first_record`] made it.
    pub(crate) record: Arc<ContainerRecord>,
    /// Turns true when nobody wants it any more.
    pub(crate) given_up: watch::Receiver<bool>,
    /// The pod's other containers, one of which may be the target of a PID namespace.
    pub(crate) others: Vec<Arc<ContainerRecord>>,
    /// What it goes on from.
    pub(crate) source: Option<Arc<Source>>,
}

/// Checks what can be checked before the work, and names the container.
///
/// # Errors
/// A field that is wrong, with its name; an image that is not there.
pub(crate) async fn first_record(
    context: &Arc<Context>,
    sandbox: &SandboxRecord,
    config: Arc<v1::ContainerConfig>,
    source: Option<&Source>,
) -> Result<ContainerRecord> {
    ContainerKey::of(&config)?;
    let image = match source {
        Some(source) => source.base().clone(),
        None => source::no_checkpoint(context, find_image(context, &config).await?)?,
    };
    let id = new_container_id()?;
    let log_path = log_path(&sandbox.config.0, &config, &context.log_directory(&sandbox.id), &id)?;
    Ok(ContainerRecord {
        version: VERSION,
        id,
        sandbox_id: sandbox.id,
        created_at: context.clock.now(),
        started_at: 0,
        phase: ContainerPhase::Creating,
        claimed: false,
        image: ImageOfContainer {
            id: image.id.clone(),
            digested: image.repo_digests.first().cloned().unwrap_or_else(|| image.id.clone()),
            name: image
                .repo_tags
                .first()
                .or_else(|| image.repo_digests.first())
                .cloned()
                .unwrap_or_else(|| image.id.clone()),
        },
        config: Encoded(config),
        log_path,
        stop_signal: 15,
        user: None,
        root: std::path::PathBuf::new(),
        cgroup: String::new(),
        process: None,
        exit: None,
        image_volumes: Vec::new(),
        updated: None,
        notifier: None,
        checkpointed_at: 0,
        restored: source.is_some(),
    })
}

pub(crate) async fn find_image(
    context: &Arc<Context>,
    config: &v1::ContainerConfig,
) -> Result<Arc<ImageInfo>> {
    let name = config.image.as_ref().map(|image| image.image.clone()).unwrap_or_default();
    if name.is_empty() {
        return Err(Error::invalid("config.image.image", "must not be empty"));
    }
    let context = context.clone();
    // Another program may hold the store's locks.
    blocking("lookup", &format!("image {name:?}"), LOOKUP, move || {
        let found = context.images.find(&name);
        found.map_err(|error| Error::failed(format!("lookup of image {name:?}")).because(error))?.ok_or_else(
            || Error::new(Kind::NotFound, format!("image {name:?} is not on this node; pull it first")),
        )
    })
    .await
}

/// Creates, or leaves nothing: not in the store, the runtime, among cgroups or logs.
pub(crate) async fn create(mut work: Work) -> Result<ContainerRecord> {
    let mut given_up = std::mem::replace(&mut work.given_up, watch::channel(false).1);
    let made = tokio::select! {
        made = steps(&work) => made,
        // Whoever could give it up may be gone: then nobody does.
        Ok(_) = given_up.wait_for(|given_up| *given_up) => Err(Error::new(
            Kind::Cancelled,
            format!("create of container {} was given up, for its pod is being stopped", work.record.id),
        )),
    };
    match made {
        Ok(record) => Ok(record),
        Err(error) => {
            let (context, sandbox, record) = (&work.context, &work.sandbox, &work.record);
            crate::nri::undo_container(context, sandbox, record).await;
            let undone = remove::erase(context, Some(&work.client), sandbox, &record.id, "").await;
            log::forget(&record.log_path).await;
            if let Err(undo) = undone {
                tracing::warn!(container = %record.id, error = undo.chain(), "a failed creation left something; the next start of criox removes it");
            }
            Err(error)
        }
    }
}

async fn steps(work: &Work) -> Result<ContainerRecord> {
    let Work { context, sandbox, record, .. } = work;
    let id = record.id;
    let handler = context.handlers.get(&sandbox.runtime_handler)?;
    let runtime = context.handlers.runtime(&handler).await?;
    let image = match &work.source {
        Some(source) => source.base().clone(),
        None => find_image(context, &record.config.0).await?,
    };
    // Held until the runtime has joined it.
    let (namespaces, _target) = bundle::namespaces(work)?;
    let mut input = bundle::Input {
        context: context.clone(),
        sandbox: sandbox.clone(),
        record: match &work.source {
            Some(source) => Arc::new(source.as_it_runs(record)),
            None => record.clone(),
        },
        image,
        features: handler.features().await,
        handler_seccomp: handler.config.seccomp_profile.clone(),
        namespaces,
        mounts: Vec::new(),
        seccomp_artifact: None,
        seccomp_listener: None,
    };
    input.seccomp_artifact = seccomp::fetch(work, &input.image.annotations, &input.features).await?;
    let fetched = input.seccomp_artifact.is_some();
    input.seccomp_listener = seccomp::listen(work, &input.features, fetched).await?;
    let action = NotifierAction::asked(&sandbox.config.0, &input.features.allowed_annotations);
    let at = Arc::new(AtomicUsize::new(0));
    let (storage, mounts) = tokio::join!(
        step("preparation of the root file system", work, {
            let (context, record, path) = (
                context.clone(),
                record.clone(),
                context.paths.container_record(sandbox.id.as_str(), id.as_str()),
            );
            let (sandbox, image) = (sandbox.clone(), input.image.clone());
            move || {
                write_first_record(&path, &*record)?;
                failpoint("container.recorded")?;
                bundle::storage(&context, &sandbox, &record, &image)
            }
        }),
        step("resolution of mount sources", work, {
            let (context, sandbox, record) = (context.clone(), sandbox.clone(), record.clone());
            let at = at.clone();
            move || bundle::resolve_mounts(&context, &sandbox, &record, &at)
        }),
    );
    let root = storage?;
    context.index.mounted(id, root.clone());
    input.mounts = mounts.map_err(|error| name_volume(error, record, at.load(Ordering::Relaxed)))?;
    let image_volumes = bundle::image_volumes(&input.mounts);
    failpoint("container.mounted")?;
    let mut prepared: Bundle =
        step("preparation of the bundle", work, move || bundle::write(&input, root)).await?;
    if let Some(source) = &work.source {
        source.lay_out(work, &prepared).await?;
        crate::checkpoint::step("restore.laid-out")?;
    }
    failpoint("container.bundled")?;
    crate::nri::update_others(context, &id, std::mem::take(&mut prepared.updates)).await?;
    let (pid, start_time, group) =
        create_in_runtime(work, &prepared, runtime, handler.create_timeout()).await?;
    failpoint("container.created")?;
    let record = ContainerRecord {
        phase: ContainerPhase::Created,
        stop_signal: prepared.stop_signal,
        user: Some(Encoded(Arc::new(prepared.user))),
        root: prepared.root,
        cgroup: group,
        // One that goes on from a checkpoint has none yet.
        process: (pid > 0).then_some(ProcessIdentity { pid, start_time }),
        image_volumes,
        notifier: action.filter(|_| prepared.notified).map(|action| Notifier { action, stopped: None }),
        ..(**record).clone()
    };
    let path = context.paths.container_record(sandbox.id.as_str(), id.as_str());
    let written = record.clone();
    step("record", work, move || write_first_record(&path, &written)).await?;
    crate::nri::container_created(context, sandbox, &record).await;
    Ok(record)
}

/// Blocking work of a creation. What it makes after nobody waits for it any more it removes itself.
async fn step<T: Send + 'static>(
    stage: &'static str,
    work: &Work,
    step: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (context, sandbox, id) = (work.context.clone(), work.sandbox.id, work.record.id);
    let undo = move || remove::erase_storage_now(&context, &sandbox, &id);
    blocking_or_undo(stage, &format!("container {id}"), PREPARE, step, undo).await
}

/// Says which volume a resolution that hangs has come to.
fn name_volume(error: Error, record: &ContainerRecord, index: usize) -> Error {
    match record.config.0.mounts.get(index) {
        Some(mount) if error.kind() == Kind::DeadlineExceeded => Error::timed_out(
            "resolution",
            &format!("config.mounts[{index}].host_path {:?} for container {}", mount.host_path, record.id),
            PREPARE,
            "its file system does not answer: look for processes in state D",
        ),
        _ => error,
    }
}

async fn create_in_runtime(
    work: &Work,
    bundle: &Bundle,
    runtime: proto::Runtime,
    deadline: Duration,
) -> Result<(i32, u64, String)> {
    let config = &work.record.config.0;
    let object = format!("container {}", work.record.id);
    let program = runtime.path.clone();
    let verb = request::Verb::Create(proto::Create {
        container_id: work.record.id.to_string(),
        bundle: bundle.directory.to_string_lossy().into_owned(),
        runtime: Some(runtime),
        terminal: config.tty,
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        log_path: work.record.log_path.to_string_lossy().into_owned(),
        log_size_max: work.context.config.runtime.log_size_max,
        timeout_ms: u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX),
        restore: work.source.as_ref().map(|_| source::restore(work, bundle)),
        journal: work.context.config.runtime.log_to_journald.then(|| proto::Journal {
            socket: JOURNAL.to_owned(),
            name: criox_records::names::container(&work.sandbox, &work.record),
        }),
    });
    let call = work.client.call(verb, deadline + monitor::ANSWER);
    match monitor::attended(&work.client, call).await {
        Ok(reply::Result::Create(created)) => Ok((created.pid, created.start_time, created.cgroup)),
        Ok(_) => Err(Error::failed(format!("create of {object}: the monitor's answer does not fit"))),
        Err(error) if error.refusal() == Some(failure::Kind::RuntimeTimeout) => Err(Error::timed_out(
            &format!("create by {program}"),
            &object,
            deadline,
            "it was killed (container_create_timeout); look at what it waits for: a mount, a cgroup, a hook",
        )),
        Err(error) => Err(with_advice(&work.context, monitor::refused("create", &object, error))),
    }
}

/// Names a cause that the runtime's own words do not: crun refuses machines with hybrid cgroups.
fn with_advice(context: &Context, error: Error) -> Error {
    if context.cgroups.layout() == cgroup::Layout::Hybrid && error.chain().contains("cgroup") {
        return Error::new(
            error.kind(),
            "this machine mounts cgroup v1 and v2 at once (hybrid), which crun refuses: boot with systemd.unified_cgroup_hierarchy=1, or use runc",
        )
        .because(error);
    }
    error
}

/// Writes a record that must be there before anything of the object is.
pub(crate) fn write_first_record<T: serde::Serialize>(path: &Path, record: &T) -> Result<()> {
    criox_records::write(path, record).map_err(|error| Error::failed("write of a record").because(error))
}
