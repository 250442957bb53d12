//! After a start: what the records say and what really is are brought together, each pod by itself and all at once.
//!
//! | found | becomes |
//! |---|---|
//! | record and monitor of this boot | what the monitor says runs or has ended |
//! | record of this boot, monitor dead | EXITED with the exit record's facts or `MonitorLost`, sandbox NOTREADY, all given back |
//! | record of another boot | EXITED 255 `ContainerStatusUnknown`, sandbox NOTREADY, DEL for a recorded ADD |
//! | half-made sandbox or container | undone by ID |
//! | run directory, storage container without a record | swept by ID |
//! | record of a later version | left alone and reported |

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use criox_cri::ids::{ContainerId, SandboxId};
use criox_cri::reasons;
use criox_monitor_api::client::Client;
use criox_monitor_api::proto::{ContainerState, ExitFacts, container_state};
use criox_records::key::SandboxKey;
use criox_records::{
    ContainerPhase, ContainerRecord, Exit, Notifier, ProcessIdentity, RecordError, RunDir, SandboxPhase,
    SandboxRecord, names,
};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::checkpoint;
use crate::container::remove as container_remove;
use crate::context::Context;
use crate::engine::Lifecycle;
use crate::entries::Entries;
use crate::error::chain;
use crate::index::PodView;
use crate::monitor::{self, Connection};
use crate::pod::{Pod, Request, Start, Task, exit_of};
use crate::sandbox::{network, plugins, remove, stop};
use crate::{spare, stats, units, userns};

/// How long the start waits for monitors that don't answer: their pods are shown as recorded until they do.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between attempts to give back networks of removed pods.
const DEBTS: Duration = Duration::from_secs(60);

/// What recovery found.
#[derive(Debug, Default)]
pub struct Report {
    /// Pods with a record.
    pub pods: usize,
    /// Half-made pods that are being undone.
    pub undone: usize,
    /// Pods whose monitor had not answered when the daemon began to listen.
    pub silent: usize,
    /// Records that were left alone, and why.
    pub left_alone: Vec<String>,
}

impl Lifecycle {
    /// Settles all pods. Returns when each has been settled, or is known to wait for a silent monitor.
    pub async fn recover(&self) -> Report {
        let context = &self.context;
        let mut report = Report::default();
        let found = read_all(context, &mut report);
        let known: HashSet<SandboxId> = found.iter().map(|pod| pod.sandbox.id).collect();
        plugins::outlive(&known).await;
        claim_host_ports(context).await;
        undo_checkpoints(context, known.clone()).await;
        let mut settling = JoinSet::new();
        for pod in found {
            report.pods += 1;
            if pod.sandbox.phase == SandboxPhase::Creating || pod.sandbox.restoring {
                report.undone += 1;
                undo_later(context, pod);
                continue;
            }
            let handle = announce(context, &pod);
            settling.spawn(settle(context.clone(), handle, pod));
        }
        let all = async { while settling.join_next().await.is_some() {} };
        if tokio::time::timeout(PATIENCE, all).await.is_err() {
            report.silent = settling.len();
        }
        settling.detach_all();
        // Before any new pod is attached: its host ports would replace the table without the old ones.
        restore_networks(context).await;
        sweep(context, &known).await;
        tokio::spawn(collect_networks(context.clone()));
        tokio::spawn(spare::keep(context.clone()));
        stats::start(context);
        report
    }
}

/// Removes what calls over checkpoints have left that a kill cut short: places outside of ours are looked at, too, so it
/// is not waited for without end.
async fn undo_checkpoints(context: &Arc<Context>, known: HashSet<SandboxId>) {
    let context = context.clone();
    let work = tokio::task::spawn_blocking(move || {
        checkpoint::sweep(&context);
        for sandbox in &known {
            checkpoint::undo(&context, sandbox);
        }
    });
    if tokio::time::timeout(PATIENCE, work).await.is_err() {
        tracing::warn!("half-written checkpoints are still being removed: a disk does not answer");
    }
}

/// A pod as its records tell.
struct Found {
    sandbox: SandboxRecord,
    containers: Vec<ContainerRecord>,
    /// Containers whose records can't be read.
    torn: Vec<ContainerId>,
    /// A container whose record is left alone, and why.
    left_alone: Option<String>,
}

fn read_all(context: &Context, report: &mut Report) -> Vec<Found> {
    let mut found = Vec::new();
    for id in ids_in(&context.paths.pods()) {
        let sandbox = match criox_records::read::<SandboxRecord>(&context.paths.sandbox_record(id.as_str())) {
            Ok(sandbox) if sandbox.id == id => sandbox,
            Err(error) if !is_undone(&error) => {
                report.left_alone.push(chain(&error));
                continue;
            }
            // Torn before anything else was made, or damaged: undone by ID.
            Ok(_) | Err(_) => unknown_sandbox(context, id),
        };
        context.clock.seen(sandbox.created_at);
        let (mut containers, mut torn, mut left_alone) = (Vec::new(), Vec::new(), None);
        for (container, path) in container_records(&context.paths.pod(id.as_str())) {
            match criox_records::read::<ContainerRecord>(&path) {
                Ok(record) if record.id == container => {
                    context.clock.seen(record.created_at);
                    containers.push(record);
                }
                Err(error) if !is_undone(&error) => {
                    left_alone = Some(chain(&error));
                    report.left_alone.push(chain(&error));
                }
                Ok(_) | Err(_) => torn.push(container),
            }
        }
        found.push(Found { sandbox, containers, torn, left_alone });
    }
    found
}

/// Whether what a record that can't be had belongs to is undone: a disk that answers with an error says nothing of it.
fn is_undone(error: &RecordError) -> bool {
    match error {
        RecordError::Damaged { .. } => true,
        RecordError::Newer { .. } => false,
        RecordError::Io { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
    }
}

fn ids_in(directory: &Path) -> Vec<SandboxId> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| SandboxId::parse(entry.file_name().to_str()?).ok()).collect()
}

fn container_records(directory: &Path) -> Vec<(ContainerId, std::path::PathBuf)> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let name = entry.file_name();
            let id = name.to_str()?.strip_prefix("container-")?.strip_suffix(".json")?;
            Some((ContainerId::parse(id).ok()?, entry.path()))
        })
        .collect()
}

/// Enough to undo by ID.
fn unknown_sandbox(context: &Context, id: SandboxId) -> SandboxRecord {
    SandboxRecord::without_request(id, &context.boot_id, &context.cgroup_parent("").unwrap_or_default())
}

/// Shows the pod as recorded, and reserves its name.
fn announce(context: &Arc<Context>, found: &Found) -> (Pod, mpsc::Receiver<Request>) {
    let (pod, requests) = Pod::new(found.sandbox.id);
    if let Ok(key) = SandboxKey::of(&found.sandbox.config.0) {
        context.names().insert(key, pod.clone());
    }
    let containers = found.containers.iter().filter(|record| record.phase != ContainerPhase::Creating);
    context.index.publish(PodView {
        sandbox: Arc::new(found.sandbox.clone()),
        containers: containers.map(|record| (record.id, Arc::new(record.clone()))).collect(),
        pod: pod.clone(),
        entries: Entries::default(),
    });
    (pod, requests)
}

fn undo_later(context: &Arc<Context>, found: Found) {
    let context = context.clone();
    tokio::spawn(async move {
        let same_boot = found.sandbox.boot_id == context.boot_id;
        let run = context.paths.run(found.sandbox.id.as_str());
        let client = match same_boot {
            true => monitor::connect(&run).await.ok().map(|(client, _)| client),
            false => None,
        };
        let id = found.sandbox.id;
        let mut sandbox = found.sandbox;
        forget_processes_of_another_boot(&context, &mut sandbox);
        if sandbox.created_at == 0
            && let Some(parent) = find_parent(&context, &id).await
        {
            sandbox.cgroup_parent = parent;
        }
        let known = found.containers.into_iter().map(|record| (record.id, record.cgroup));
        let mut containers: Vec<_> =
            known.chain(found.torn.into_iter().map(|id| (id, String::new()))).collect();
        if let Some(client) = &client
            && let Ok(list) = monitor::list(client).await
        {
            let unrecorded = list
                .containers
                .into_iter()
                .filter_map(|state| Some((ContainerId::parse(&state.container_id).ok()?, state.cgroup)));
            for (container, cgroup) in unrecorded {
                if !containers.iter().any(|(known, _)| *known == container) {
                    containers.push((container, cgroup));
                }
            }
        }
        for (container, cgroup) in containers {
            let erased =
                container_remove::erase(&context, client.as_ref(), &sandbox, &container, &cgroup).await;
            if let Err(error) = erased {
                tracing::warn!(%container, error = error.chain(), "a half-made container could not be undone");
            }
        }
        let work = stop::Work {
            context: context.clone(),
            sandbox: Arc::new(sandbox),
            client,
            containers: Vec::new(),
        };
        match remove::remove(work).await {
            Ok(()) => tracing::info!(sandbox = %id, "undid a half-made pod sandbox"),
            Err(error) => {
                tracing::warn!(sandbox = %id, error = error.chain(), "a half-made pod sandbox could not be undone")
            }
        }
    });
}

/// The cgroup parent of a pod of which nothing but the ID is known: where its own cgroup is.
async fn find_parent(context: &Arc<Context>, id: &SandboxId) -> Option<String> {
    /// Slices, pods and a level for each of the node's own.
    const DEPTH: usize = 8;
    fn find(directory: &Path, name: &str, depth: usize) -> Option<std::path::PathBuf> {
        let entries = std::fs::read_dir(directory).ok()?.flatten();
        let below: Vec<_> =
            entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).collect();
        let own =
            |found: std::ffi::OsString| found.to_str().is_some_and(|f| f.trim_end_matches(".scope") == name);
        if below.iter().any(|entry| own(entry.file_name())) {
            return Some(directory.to_owned());
        }
        let depth = depth.checked_sub(1)?;
        below.iter().find_map(|entry| find(&entry.path(), name, depth))
    }
    let (context, name) = (context.clone(), format!("crio-{id}"));
    let found = tokio::task::spawn_blocking(move || {
        context.cgroups.existing_dirs("/").into_iter().find_map(|root| {
            let parent = find(&root, &name, DEPTH)?;
            Some(format!("/{}", parent.strip_prefix(&root).ok()?.display()))
        })
    });
    found.await.ok().flatten()
}

/// A number of another boot names another process now.
fn forget_processes_of_another_boot(context: &Context, sandbox: &mut SandboxRecord) {
    if sandbox.boot_id != context.boot_id {
        sandbox.monitor = None;
        sandbox.init = None;
    }
}

async fn settle(context: Arc<Context>, handle: (Pod, mpsc::Receiver<Request>), mut found: Found) {
    let id = found.sandbox.id;
    let run = context.paths.run(id.as_str());
    let same_boot = found.sandbox.boot_id == context.boot_id;
    let connection = match same_boot && !found.sandbox.torn_down {
        true => match connect(&run, &found.sandbox).await {
            Reached::Monitor(connection, states) => Some((connection, states)),
            Reached::Silent => return start_without_monitor(context, handle, found).await,
            Reached::Dead => None,
        },
        false => None,
    };
    let client = connection.as_ref().map(|(connection, _)| connection.0.clone());
    if let (Some(_), Some(monitor), Ok(group)) =
        (&client, found.sandbox.monitor, monitor::cgroup(&context, &found.sandbox))
    {
        units::adopt_monitor(&context, &found.sandbox, group, monitor);
    }
    undo_half_made(&context, client.as_ref(), &mut found).await;
    match &connection {
        Some((_, states)) => {
            for container in &mut found.containers {
                match states.iter().find(|state| state.container_id == container.id.as_str()) {
                    Some(state) => apply(container, state),
                    None => lose(&context, &run, container, reasons::CONTAINER_STATUS_UNKNOWN),
                }
            }
        }
        None => {
            let reason = if same_boot { reasons::MONITOR_LOST } else { reasons::CONTAINER_STATUS_UNKNOWN };
            for container in &mut found.containers {
                lose(&context, &run, container, reason);
            }
            found.sandbox.phase = SandboxPhase::NotReady;
            forget_processes_of_another_boot(&context, &mut found.sandbox);
        }
    }
    let (context, found) = match tokio::task::spawn_blocking(move || {
        write(&context, &found);
        (context, found)
    })
    .await
    {
        Ok(written) => written,
        Err(error) => return tracing::error!(sandbox = %id, %error, "recovery of a pod ended in a panic"),
    };
    let start = Start::Recovered {
        containers: found.containers,
        left_alone: found.left_alone,
        connection: connection.map(|(connection, _)| connection),
    };
    Task::spawn(&context, handle, found.sandbox, start);
}

/// Serves a pod whose monitor is stopped or starved, but alive: it is shown as recorded, stop and remove act by cgroup,
/// and killing it for its silence would lose containers.
async fn start_without_monitor(
    context: Arc<Context>,
    handle: (Pod, mpsc::Receiver<Request>),
    mut found: Found,
) {
    undo_half_made(&context, None, &mut found).await;
    thaw(&context, &found).await;
    let start = Start::Silent { containers: found.containers, left_alone: found.left_alone };
    Task::spawn(&context, handle, found.sandbox, start);
}

/// Lets containers go on that a daemon which is no more had frozen for a checkpoint: a monitor that is stopped itself
/// can't. One that has died needs none of it: its containers are killed.
async fn thaw(context: &Arc<Context>, found: &Found) {
    let groups: Vec<String> = found.containers.iter().map(|container| container.cgroup.clone()).collect();
    let (context, sandbox) = (context.clone(), found.sandbox.id);
    let thawing = tokio::task::spawn_blocking(move || {
        for group in groups.iter().filter(|group| !group.is_empty()) {
            if let Err(error) = context.cgroups.thaw(group) {
                tracing::warn!(%sandbox, error = chain(&error), "a container may stay frozen");
            }
        }
    });
    if tokio::time::timeout(PATIENCE, thawing).await.is_err() {
        tracing::warn!(%sandbox, "containers are still being thawed");
    }
}

/// Waits for a silent monitor to speak again; none: it has died.
pub(crate) async fn wait_for_monitor(
    run: RunDir,
    sandbox: Arc<SandboxRecord>,
) -> Option<(Connection, Vec<ContainerState>)> {
    loop {
        tokio::time::sleep(PATIENCE).await;
        match connect(&run, &sandbox).await {
            Reached::Monitor(connection, states) => return Some((connection, states)),
            Reached::Silent => {}
            Reached::Dead => return None,
        }
    }
}

/// What an attempt to talk to a monitor came to.
enum Reached {
    /// It says what runs.
    Monitor(Connection, Vec<ContainerState>),
    /// It lives and does not answer.
    Silent,
    /// It is no more.
    Dead,
}

/// Connects and asks what runs.
async fn connect(run: &RunDir, sandbox: &SandboxRecord) -> Reached {
    match monitor::connect(run).await {
        Ok(connection) => match monitor::list(&connection.0).await {
            Ok(list) => return Reached::Monitor(connection, list.containers),
            Err(error) => {
                tracing::warn!(sandbox = %sandbox.id, %error, "the pod's monitor does not say what runs")
            }
        },
        Err(error) => {
            tracing::warn!(sandbox = %sandbox.id, error = chain(&error), "the pod's monitor does not answer");
        }
    }
    let alive =
        sandbox.monitor.is_some_and(|monitor| criox_sys::process::is_alive(monitor.pid, monitor.start_time));
    if alive { Reached::Silent } else { Reached::Dead }
}

async fn undo_half_made(context: &Arc<Context>, client: Option<&Client>, found: &mut Found) {
    let creating = found.containers.iter().filter(|record| record.phase == ContainerPhase::Creating);
    let half_made: Vec<(ContainerId, std::path::PathBuf)> = creating
        .map(|record| (record.id, record.log_path.clone()))
        .chain(found.torn.drain(..).map(|id| (id, std::path::PathBuf::new())))
        .collect();
    found.containers.retain(|record| record.phase != ContainerPhase::Creating);
    for (id, log_path) in half_made {
        match container_remove::erase(context, client, &found.sandbox, &id, "").await {
            Ok(()) => tracing::info!(container = %id, "undid a half-made container"),
            Err(error) => {
                tracing::warn!(container = %id, error = error.chain(), "a half-made container could not be undone")
            }
        }
        crate::container::log::forget(&log_path).await;
    }
}

/// What the monitor says of a container.
pub(crate) fn apply(container: &mut ContainerRecord, state: &ContainerState) {
    if container.phase == ContainerPhase::Exited {
        return;
    }
    container.cgroup.clone_from(&state.cgroup);
    let process = ProcessIdentity { pid: state.pid, start_time: state.start_time };
    container.process = (state.pid > 0).then_some(process);
    if state.started_at > 0 && container.started_at == 0 {
        container.started_at = state.started_at;
    }
    match state.phase() {
        container_state::Phase::Created => {}
        container_state::Phase::Running => container.phase = ContainerPhase::Running,
        container_state::Phase::Exited => {
            let facts = state.exit.unwrap_or_else(|| ExitFacts {
                exit_code: reasons::UNKNOWN_EXIT_CODE,
                finished_at: container.started_at.max(container.created_at),
                ..Default::default()
            });
            end(container, exit_of(&facts));
        }
    }
}

fn lose(context: &Context, run: &RunDir, container: &mut ContainerRecord, reason: &str) {
    if container.phase == ContainerPhase::Exited {
        return;
    }
    let exit = match monitor::recorded_exit_now(&run.exit_record(container.id.as_str())) {
        Some(facts) => exit_of(&facts),
        None => Exit {
            code: reasons::UNKNOWN_EXIT_CODE,
            finished_at: context.clock.now(),
            reason: reason.into(),
            message: "it ended while criox did not see it".into(),
        },
    };
    end(container, exit);
}

fn end(container: &mut ContainerRecord, exit: Exit) {
    container.phase = ContainerPhase::Exited;
    container.process = None;
    container.started_at = container.started_at.min(exit.finished_at);
    container.exit = Some(Notifier::explain(container.notifier.as_ref(), exit));
}

fn write(context: &Context, found: &Found) {
    let id = found.sandbox.id;
    let report = |written: Result<(), RecordError>| {
        if let Err(error) = written {
            tracing::error!(sandbox = %id, error = chain(&error), "a record was not written");
        }
    };
    report(criox_records::write(&context.paths.sandbox_record(id.as_str()), &found.sandbox));
    for container in &found.containers {
        report(criox_records::write(
            &context.paths.container_record(id.as_str(), container.id.as_str()),
            container,
        ));
    }
}

/// Removes what has no record: run directories with all that is named from their ID, and our storage containers.
async fn sweep(context: &Arc<Context>, known: &HashSet<SandboxId>) {
    for id in ids_in(&context.paths.runs()).into_iter().filter(|id| !known.contains(id)) {
        // Left alone records keep their run directories too.
        if context.paths.pod(id.as_str()).try_exists().unwrap_or(true) {
            continue;
        }
        undo_later(
            context,
            Found {
                sandbox: unknown_sandbox(context, id),
                containers: Vec::new(),
                torn: Vec::new(),
                left_alone: None,
            },
        );
    }
    let (context, runtime) = (context.clone(), context.clone());
    let swept = tokio::task::spawn_blocking(move || {
        let mut swept = Vec::new();
        let Ok(containers) = context.store.containers() else { return swept };
        for container in containers.iter() {
            let Some(owner) = names::owner_of(&container.metadata) else { continue };
            let volume_of = names::volume_of(&container.metadata);
            let record =
                context.paths.container_record(&owner, volume_of.as_deref().unwrap_or(&container.id));
            if !record.try_exists().unwrap_or(true) {
                match context.store.delete_container(&container.id) {
                    Ok(_) => {
                        tracing::info!(
                            container = container.id,
                            "swept a storage container without a record"
                        );
                        // The runtime knows nothing of image volumes.
                        swept.extend(ContainerId::parse(&container.id).ok().filter(|_| volume_of.is_none()));
                    }
                    Err(error) => {
                        tracing::warn!(container = container.id, %error, "a storage container without a record stays")
                    }
                }
            }
        }
        userns::sweep(&context);
        checkpoint::source::sweep(&context, |id| context.index.container(id.as_str()).is_ok());
        swept
    });
    match swept.await {
        Ok(swept) => drop(tokio::spawn(forget_in_runtime(runtime, swept))),
        Err(error) => tracing::error!(%error, "the sweep of storage ended in a panic"),
    }
}

/// Deletes what the default handler's runtime still keeps of containers of which nothing else is left.
async fn forget_in_runtime(context: Arc<Context>, containers: Vec<ContainerId>) {
    for container in containers {
        if let Err(error) = context.handlers.delete("", &container).await {
            tracing::warn!(%container, error = chain(&error), "the runtime did not delete the container");
        }
    }
}

/// The networks of all pods that have a record, whatever its version; and whether these are all networks there are.
async fn network_records(context: &Context) -> (Vec<network::NetworkRecord>, bool) {
    let (mut records, mut complete) = (Vec::new(), true);
    for id in ids_in(&context.paths.pods()) {
        let path = context.paths.network_record(id.as_str());
        match network::read(&path).await {
            Ok(Some(record)) => records.push(record),
            Ok(None) => complete &= !path.exists(),
            Err(error) => {
                tracing::warn!(sandbox = %id, error = error.chain(), "left alone");
                complete = false;
            }
        }
    }
    (records, complete)
}

/// Takes over the networks of live pods.
async fn restore_networks(context: &Context) {
    let (records, _) = network_records(context).await;
    // The networks of those that have ended are being given back at this moment.
    let ended =
        |id: &str| context.index.pod(id).is_ok_and(|view| view.sandbox.phase == SandboxPhase::NotReady);
    let attachments = records.iter().filter_map(|record| record.attachment().cloned());
    let attachments: Vec<_> =
        attachments.filter(|attachment| !ended(&attachment.intent.sandbox_id)).collect();
    if let Err(error) = context.network.restore(&attachments).await {
        tracing::warn!(error = chain(&error), "host ports could not be mapped again");
    }
}

/// Takes the host ports of all networks that are recorded, owed ones too: what is given back from here on frees its own.
async fn claim_host_ports(context: &Context) {
    let (mut records, _) = network_records(context).await;
    records.extend(network::debts(context).await);
    context.network.claim(records.iter().map(|record| record.as_ref().intent)).await;
}

/// Gives back the networks of pods that are gone, and goes on trying what fails.
async fn collect_networks(context: Arc<Context>) {
    let (records, complete) = network_records(&context).await;
    let valid: Vec<_> = records.iter().map(network::NetworkRecord::as_ref).collect();
    if !complete {
        // The network of a pod that runs would be taken for nobody's.
        tracing::warn!("a pod's network is not known: networks of pods that are gone are not collected");
    } else if let Err(error) = context.network.gc(&valid).await {
        tracing::debug!(error = chain(&error), "networks of pods that are gone were not all collected");
    }
    drop(records);
    loop {
        network::settle_debts(&context).await;
        tokio::time::sleep(DEBTS).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unreadable(kind: std::io::ErrorKind) -> RecordError {
        RecordError::Io { path: "/r".into(), source: kind.into() }
    }

    #[test]
    fn a_record_that_the_disk_does_not_give_undoes_nothing() {
        use std::io::ErrorKind;
        assert!(is_undone(&unreadable(ErrorKind::NotFound)));
        for kind in [ErrorKind::PermissionDenied, ErrorKind::OutOfMemory, ErrorKind::Other] {
            assert!(!is_undone(&unreadable(kind)), "{kind:?}");
        }
        assert!(!is_undone(&RecordError::Newer { path: "/r".into(), version: 2 }));
    }

    #[test]
    fn an_exit_that_the_monitor_cannot_tell_is_no_success_of_1970() {
        let json = r#"{"version":1,"id":"cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc",
            "sandbox_id":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","created_at":8,"started_at":9,
            "phase":"running","claimed":true,"config":"","image":{"id":"i","digested":"d","name":"n"},
            "log_path":"/l","stop_signal":15,"root":"/r","cgroup":"/c"}"#;
        let mut container: ContainerRecord = serde_json::from_str(json).expect("a record");
        let phase = container_state::Phase::Exited.into();
        apply(&mut container, &ContainerState { phase, exit: None, ..Default::default() });
        let exit = container.exit.expect("it has ended");
        assert_eq!((exit.code, exit.finished_at, container.started_at), (255, 9, 9));
    }
}
