//! RunPodSandbox: record, monitor, namespaces, network, record. A failure at any point undoes by ID, with the code
//! that removes sandboxes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use criox_confine::Users;
use criox_cri::v1;
use criox_monitor_api::client::Client;
use criox_monitor_api::proto::{self, reply, request, start_sandbox_process};
use criox_records::{Namespace, ProcessIdentity, SandboxPhase, SandboxRecord, names, namespace_options};
use criox_sys::idmap::IdRange;
use criox_sys::mount;

use super::stop::Work;
use super::{files, network, remove};
use crate::container::create::write_first_record;
use crate::context::{Context, blocking, blocking_or_undo};
use crate::error::{Error, Kind, Result, failpoint};
use crate::monitor::{self, Connection, Launched};
use crate::spare::Spare;
use crate::units;

/// What the disk and the kernel may take for directories, mounts and cgroups.
const PREPARE: Duration = Duration::from_secs(30);
/// What the kernel may take for namespaces: `unshare` of a network waits for others that are being torn down.
const PIN: Duration = Duration::from_secs(60);
/// What the pod network may take to become ready before a pod is refused.
const NETWORK: Duration = Duration::from_secs(10);
/// Size of a pod's `/dev/shm`, as in Docker and CRI-O.
const SHM_SIZE: u64 = 64 << 20;

/// `monitor_cgroup` of handlers that want the monitor in the pod's cgroup.
pub(crate) const IN_POD: &str = "pod";

/// A sandbox that is ready.
pub(crate) struct Created {
    pub(crate) record: SandboxRecord,
    pub(crate) connection: Connection,
}

/// Refuses what can't be, before anything is made.
///
/// # Errors
/// The field.
pub(crate) fn validate(context: &Context, config: &v1::PodSandboxConfig, handler: &str) -> Result<()> {
    let handler = context.handlers.get(handler)?;
    handler.program()?;
    criox_spec::sandbox_user_check(config).map_err(Error::in_config)?;
    criox_spec::sandbox_security_check(config).map_err(Error::in_config)?;
    criox_spec::sandbox_sysctls(&context.default_sysctls(), config).map_err(Error::in_config)?;
    criox_spec::resolv_conf(config.dns_config.as_ref()).map_err(Error::in_config)?;
    network::check(config)?;
    let options = namespace_options(config);
    if config.hostname.len() > 64 || config.hostname.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(Error::invalid("config.hostname", format!("{:?} is not a host name", config.hostname)));
    }
    for (field, mode) in [("network", options.network()), ("ipc", options.ipc())] {
        if !matches!(mode, v1::NamespaceMode::Pod | v1::NamespaceMode::Node) {
            let field = format!("config.linux.security_context.namespace_options.{field}");
            return Err(Error::invalid(&field, format!("{} is not POD or NODE", mode.as_str_name())));
        }
    }
    if options.pid() == v1::NamespaceMode::Target {
        return Err(Error::invalid(
            "config.linux.security_context.namespace_options.pid",
            "TARGET is for containers only",
        ));
    }
    criox_spec::sandbox_namespaces(config).map_err(Error::in_config)?;
    for (key, value) in &config.labels {
        if key.len() + value.len() > 4096 {
            return Err(Error::invalid(
                "config.labels",
                format!("{key:?} and its value are longer than 4096 bytes"),
            ));
        }
    }
    let parent = config.linux.as_ref().map(|linux| linux.cgroup_parent.as_str()).unwrap_or_default();
    context.cgroup_parent(parent)?;
    Ok(())
}

/// Waits a little for a pod network that is about to be ready: after a restart, or while the node comes up.
///
/// # Errors
/// It is not ready; pods with the node's network don't ask.
pub(crate) async fn network_ready(context: &Context, config: &v1::PodSandboxConfig) -> Result<()> {
    if namespace_options(config).network() == v1::NamespaceMode::Node {
        return Ok(());
    }
    context
        .network
        .ready_within(NETWORK)
        .await
        .map_err(|error| Error::new(Kind::FailedPrecondition, "no pod can be attached").because(error))
}

/// Creates, or leaves nothing behind.
pub(crate) async fn create(
    context: &Arc<Context>,
    record: &SandboxRecord,
    spare: Option<Spare>,
) -> Result<Created> {
    let spare = spare.map(|spare| spare.monitor);
    let mut made = spare.as_ref().map(|monitor| (monitor.connection.0.clone(), monitor.identity));
    match steps(context, record, spare, &mut made).await {
        Ok(created) => Ok(created),
        Err(error) => {
            let (client, monitor) = made.unzip();
            // With its number, for the monitor is our child, which must be reaped.
            let sandbox = Arc::new(SandboxRecord { monitor, ..record.clone() });
            let work = Work { context: context.clone(), sandbox, client, containers: Vec::new() };
            crate::nri::undo_sandbox(context, record).await;
            if let Err(undo) = remove::remove(work).await {
                tracing::warn!(sandbox = %record.id, error = undo.chain(), "a failed creation left something; the next start of criox removes it");
            }
            Err(error)
        }
    }
}

async fn steps(
    context: &Arc<Context>,
    record: &SandboxRecord,
    spare: Option<Launched>,
    made: &mut Option<(Client, ProcessIdentity)>,
) -> Result<Created> {
    let object = format!("pod sandbox {}", record.id);
    let first = {
        let (context, record) = (context.clone(), record.clone());
        move || directories(&context, &record)
    };
    step("directories", record, context, first).await?;
    failpoint("sandbox.directories")?;
    units::start_slice(context, record).await;
    let (launched, prepared) = tokio::join!(
        async {
            match spare {
                Some(monitor) => Ok(monitor),
                None => monitor::launch(context, record).await,
            }
        },
        step("files, shm and cgroup", record, context, {
            let (context, record) = (context.clone(), record.clone());
            move || prepare(&context, &record)
        }),
    );
    let Launched { connection, identity } = launched?;
    *made = Some((connection.0.clone(), identity));
    prepared?;
    failpoint("sandbox.prepared")?;
    let client = &connection.0;
    let mut record = SandboxRecord { monitor: Some(identity), ..record.clone() };
    pin(context, client, &record).await?;
    failpoint("sandbox.pinned")?;
    record.init = start_init(context, client, &record).await?;
    if let Some(init) = record.init {
        units::adopt(context, &record, &names::sandbox_group(&record), init, "process 1").await;
    }
    let options = namespace_options(&record.config.0);
    record.ips = match options.network() {
        v1::NamespaceMode::Node => Vec::new(),
        _ => network::attach(context, &record).await?,
    };
    failpoint("sandbox.attached")?;
    crate::nri::run_sandbox(context, &record).await?;
    record.phase = SandboxPhase::Ready;
    let path = context.paths.sandbox_record(record.id.as_str());
    let written = record.clone();
    // Written late it goes with its directory, or fails without it.
    blocking("record", &object, PREPARE, move || write_first_record(&path, &written)).await?;
    failpoint("sandbox.recorded")?;
    Ok(Created { record, connection })
}

/// Blocking work of a creation that has no network yet. What it makes after nobody waits for it any more it removes itself.
async fn step(
    stage: &'static str,
    record: &SandboxRecord,
    context: &Arc<Context>,
    step: impl FnOnce() -> Result<()> + Send + 'static,
) -> Result<()> {
    let (context, sandbox) = (context.clone(), record.clone());
    let object = format!("pod sandbox {}", record.id);
    blocking_or_undo(stage, &object, PREPARE, step, move || remove::erase_now(&context, &sandbox)).await
}

/// The record comes first: everything after it is found by it.
fn directories(context: &Context, record: &SandboxRecord) -> Result<()> {
    let id = record.id.as_str();
    let failed = |error| Error::failed(format!("directories of pod sandbox {id}")).because(error);
    fs::create_dir_all(context.paths.no_layer(id)).map_err(failed)?;
    write_first_record(&context.paths.sandbox_record(id), record)?;
    let run = context.paths.run(id);
    let exits = run.exit_record("x");
    let exits = exits.parent().unwrap_or(run.path());
    for directory in [context.paths.runs().as_path(), run.path(), exits, &run.shm()] {
        fs::create_dir_all(directory).map_err(failed)?;
    }
    // Containers' mounts reach what lies in it by descriptor; nobody else has business there.
    fs::set_permissions(run.path(), fs::Permissions::from_mode(0o700)).map_err(failed)?;
    for kind in Namespace::pinned(&record.config.0) {
        let path = context.paths.namespace(kind, id);
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(failed)?;
        }
        fs::OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(failed)?;
    }
    Ok(())
}

fn prepare(context: &Context, record: &SandboxRecord) -> Result<()> {
    let run = context.paths.run(record.id.as_str());
    files::write(&run, record)?;
    if namespace_options(&record.config.0).ipc() != v1::NamespaceMode::Node {
        let owner = Users::of(&record.config.0).map(|users| users.root());
        let label = record.selinux.as_ref().map_or("", |labels| labels.mount.as_str());
        mount::tmpfs(&run.shm(), SHM_SIZE, 0o1777, owner, label)
            .map_err(|error| Error::failed(format!("shm of pod sandbox {}", record.id)).because(error))?;
    }
    // Empty, but the kubelet's cAdvisor finds the pod's network by a group of this name.
    let group = names::sandbox_group(record);
    context
        .cgroups
        .create(&group, &["memory", "cpu", "cpuacct", "name=systemd"])
        .map_err(|error| Error::failed(format!("cgroup of pod sandbox {}", record.id)).because(error))
}

async fn pin(context: &Context, client: &Client, record: &SandboxRecord) -> Result<()> {
    let kinds = Namespace::pinned(&record.config.0);
    let path = |kind: Namespace| match kinds.contains(&kind) {
        true => context.paths.namespace(kind, record.id.as_str()).to_string_lossy().into_owned(),
        false => String::new(),
    };
    let (mut sysctls, warnings) = criox_spec::sandbox_sysctls(&context.default_sysctls(), &record.config.0)
        .map_err(Error::in_config)?;
    context.clamps.tell(&warnings);
    let users = Users::of(&record.config.0);
    if let Some(users) = &users {
        clamp_groups(&mut sysctls, users);
    }
    let verb = proto::PinNamespaces {
        network: path(Namespace::Network),
        ipc: path(Namespace::Ipc),
        uts: path(Namespace::Uts),
        hostname: if kinds.contains(&Namespace::Uts) { names::hostname(record) } else { String::new() },
        // Below /proc/sys the parts are directories; a slash in a key stands for a dot in a name.
        sysctls: sysctls.into_iter().map(|(key, value)| (proc_path(&key), value)).collect(),
        loopback_up: kinds.contains(&Namespace::Network),
        user: path(Namespace::User),
        uid_map: users.as_ref().map(|users| to_monitor(&users.users)).unwrap_or_default(),
        gid_map: users.as_ref().map(|users| to_monitor(&users.groups)).unwrap_or_default(),
    };
    let object = format!("pod sandbox {}", record.id);
    monitor::attended(client, client.done(request::Verb::PinNamespaces(verb), PIN))
        .await
        .map_err(|error| monitor::refused("making the namespaces", &object, error))
}

fn to_monitor(ranges: &[IdRange]) -> Vec<proto::IdMap> {
    ranges
        .iter()
        .map(|range| proto::IdMap { container_id: range.inside, host_id: range.host, length: range.length })
        .collect()
}

/// `net.ipv4.ping_group_range` takes only groups that the namespace has; nodes give all groups there are by default.
fn clamp_groups(sysctls: &mut BTreeMap<String, String>, users: &Users) {
    let Some(range) = sysctls.get_mut("net.ipv4.ping_group_range") else { return };
    let ends: Vec<u32> = range.split_whitespace().filter_map(|end| end.parse().ok()).collect();
    // The kernel takes "1 0" for nobody.
    if let [first, last] = ends[..]
        && first <= last
    {
        *range = format!("{} {}", first.min(users.last_group()), last.min(users.last_group()));
    }
}

fn proc_path(key: &str) -> String {
    key.chars()
        .map(|c| match c {
            '.' => '/',
            '/' => '.',
            other => other,
        })
        .collect()
}

/// Process 1 for pods whose containers share their process numbers.
async fn start_init(
    context: &Context,
    client: &Client,
    record: &SandboxRecord,
) -> Result<Option<ProcessIdentity>> {
    let kinds = Namespace::pinned(&record.config.0);
    if !kinds.contains(&Namespace::Pid) {
        return Ok(None);
    }
    let path = |kind: Namespace| match kinds.contains(&kind) {
        true => context.paths.namespace(kind, record.id.as_str()).to_string_lossy().into_owned(),
        false => String::new(),
    };
    let cgroup_dirs = context.cgroups.existing_dirs(&names::sandbox_group(record));
    let verb = proto::StartSandboxProcess {
        kind: start_sandbox_process::Kind::Init.into(),
        pid_namespace: path(Namespace::Pid),
        user: path(Namespace::User),
        ipc: path(Namespace::Ipc),
        network: path(Namespace::Network),
        uts: path(Namespace::Uts),
        cgroup_dirs: cgroup_dirs.iter().map(|dir| dir.to_string_lossy().into_owned()).collect(),
    };
    let object = format!("pod sandbox {}", record.id);
    let failed = |error| monitor::refused("start of the pod's process 1", &object, error);
    let call = client.call(request::Verb::StartSandboxProcess(verb), PIN);
    match monitor::attended(client, call).await.map_err(failed)? {
        reply::Result::SandboxProcess(process) => {
            let start_time = criox_sys::process::start_time(process.pid)
                .map_err(|error| Error::failed(format!("process 1 of {object}")).because(error))?;
            Ok(Some(ProcessIdentity { pid: process.pid, start_time }))
        }
        _ => Err(Error::failed(format!("process 1 of {object}: the monitor's answer does not fit"))),
    }
}

/// Whether a path is a pin that is mounted, for those who undo.
pub(super) fn is_pinned(path: &Path) -> bool {
    mount::is_mount_point(path).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_become_paths_below_proc_sys() {
        assert_eq!(proc_path("net.ipv4.ip_forward"), "net/ipv4/ip_forward");
        assert_eq!(proc_path("net.ipv4.conf.eth0/100.rp_filter"), "net/ipv4/conf/eth0.100/rp_filter");
    }

    #[test]
    fn the_groups_that_may_ping_are_among_those_of_the_pod() {
        let range = |length| vec![IdRange { inside: 0, host: 65_536, length }];
        let users = Users { users: range(65_536), groups: range(1000) };
        for (asked, set) in [("0 2147483647", "0 999"), ("1 0", "1 0"), ("5\t7", "5 7"), ("x", "x")] {
            let mut sysctls = BTreeMap::from([("net.ipv4.ping_group_range".to_owned(), asked.to_owned())]);
            clamp_groups(&mut sysctls, &users);
            assert_eq!(sysctls["net.ipv4.ping_group_range"], set);
        }
    }
}
