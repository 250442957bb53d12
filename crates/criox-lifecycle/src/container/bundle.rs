//! What a container is made of on disk: its root file system, and the bundle with its specification.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use criox_config::value::ImageVolumes;
use criox_confine::{Labelling, MountSources, SeccompArtifact, Users, Ways};
use criox_cri::v1;
use criox_image::ImageInfo;
use criox_records::{
    ContainerPhase, ContainerRecord, ImageVolume, Namespace, ProcessIdentity, SandboxRecord, names,
    namespace_options,
};
use criox_spec::{
    Built, EffectiveUser, ErrorKind, HandlerFeatures, Identity, ImageFacts, NamespaceSource, Namespaces,
    ProvidedMounts, ResolvedMount, SelinuxLabels, SpecInput, oci,
};
use criox_store::{ContainerDraft, Timestamp};
use criox_sys::durable;
use criox_sys::inroot::{self, Root};

use super::create::Work;
use super::{image_volume, log, timezone};
use crate::context::Context;
use crate::error::{Error, Kind, Result};
use crate::userns;

/// The most that is read of an image's `passwd` or `group`.
const PASSWD_MAX: u64 = 10 << 20;

/// What a bundle is made from.
pub(crate) struct Input {
    pub(crate) context: Arc<Context>,
    pub(crate) sandbox: Arc<SandboxRecord>,
    pub(crate) record: Arc<ContainerRecord>,
    pub(crate) image: Arc<ImageInfo>,
    pub(crate) features: HandlerFeatures,
    pub(crate) handler_seccomp: Option<PathBuf>,
    pub(crate) namespaces: Namespaces,
    pub(crate) mounts: Vec<ResolvedMount>,
    /// The filter that an annotation names.
    pub(crate) seccomp_artifact: Option<SeccompArtifact>,
    /// Where the monitor listens for what the filter refuses.
    pub(crate) seccomp_listener: Option<String>,
}

/// A finished bundle.
#[derive(Debug)]
pub(crate) struct Bundle {
    pub(crate) directory: PathBuf,
    pub(crate) root: PathBuf,
    pub(crate) user: v1::ContainerUser,
    pub(crate) stop_signal: i32,
    /// What plugins want changed of other containers.
    pub(crate) updates: criox_nri::Updates,
    /// What its filter refuses is asked of the monitor.
    pub(crate) notified: bool,
    /// What was written as its specification.
    pub(crate) spec: Box<oci::Spec>,
}

/// The namespaces that a container joins: those of its pod, of a target, or the node's. With a target comes its PID
/// namespace, by which it is named: it must stay open until the container has been created.
pub(crate) fn namespaces(work: &Work) -> Result<(Namespaces, Option<OwnedFd>)> {
    let mut held = None;
    let Work { context, sandbox, record, .. } = work;
    let pod = namespace_options(&sandbox.config.0);
    let own = record
        .config
        .0
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref())
        .and_then(|security| security.namespace_options.clone())
        .unwrap_or_else(|| pod.clone());
    let pinned = |kind| {
        let path = context.paths.namespace(kind, sandbox.id.as_str());
        NamespaceSource::Path(path.to_string_lossy().into_owned())
    };
    let shared = |mode: v1::NamespaceMode, kind| match mode {
        v1::NamespaceMode::Node => NamespaceSource::Host,
        _ => pinned(kind),
    };
    let pid = match own.pid() {
        v1::NamespaceMode::Node => NamespaceSource::Host,
        v1::NamespaceMode::Container => NamespaceSource::Private,
        v1::NamespaceMode::Pod if sandbox.init.is_some() => pinned(Namespace::Pid),
        v1::NamespaceMode::Pod => {
            return Err(Error::invalid(
                "config.linux.security_context.namespace_options.pid",
                "is POD, but the sandbox was made without a shared PID namespace",
            ));
        }
        v1::NamespaceMode::Target => target(work, &own.target_id, &mut held)?,
    };
    criox_spec::container_user_check(&record.config.0, &sandbox.config.0).map_err(Error::in_config)?;
    let users = Users::of(&sandbox.config.0);
    let namespaces = Namespaces {
        network: shared(pod.network(), Namespace::Network),
        ipc: shared(pod.ipc(), Namespace::Ipc),
        uts: pinned(Namespace::Uts),
        pid,
        uid_mappings: users.as_ref().map(Users::uid_mappings).unwrap_or_default(),
        gid_mappings: users.as_ref().map(Users::gid_mappings).unwrap_or_default(),
        user: if users.is_some() { pinned(Namespace::User) } else { NamespaceSource::Host },
    };
    Ok((namespaces, held))
}

fn target(work: &Work, id: &str, held: &mut Option<OwnedFd>) -> Result<NamespaceSource> {
    const FIELD: &str = "config.linux.security_context.namespace_options.target_id";
    let record = work
        .others
        .iter()
        .find(|other| other.id.as_str() == id)
        .ok_or_else(|| Error::invalid(FIELD, format!("container {id:?} is not in this pod")))?;
    let process = record.process.filter(|_| record.phase == ContainerPhase::Running);
    let process = process.ok_or_else(|| Error::invalid(FIELD, format!("container {id} does not run")))?;
    let namespace = pid_namespace(process).map_err(|error| {
        Error::new(Kind::FailedPrecondition, format!("{FIELD}: container {id} has just ended")).because(error)
    })?;
    let path = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd());
    *held = Some(namespace);
    Ok(NamespaceSource::Path(path))
}

/// The PID namespace of a process, and not that of a later one of its number.
fn pid_namespace(process: ProcessIdentity) -> io::Result<OwnedFd> {
    let namespace = std::fs::File::open(format!("/proc/{}/ns/pid", process.pid))?;
    // Looked at afterwards: what is open stays what it is.
    match criox_sys::process::start_time(process.pid)? == process.start_time {
        true => Ok(namespace.into()),
        false => Err(io::Error::other(format!("process {} is another one now", process.pid))),
    }
}

/// The container's SELinux labels, where there are any.
fn labels(
    context: &Context,
    sandbox: &SandboxRecord,
    record: &ContainerRecord,
) -> Result<Option<SelinuxLabels>> {
    Ok(context.selinux.container(sandbox.selinux.as_ref(), &sandbox.config.0, &record.config.0)?)
}

/// The container in the store, mounted; the path of its root.
pub(crate) fn storage(
    context: &Context,
    sandbox: &SandboxRecord,
    record: &ContainerRecord,
    image: &ImageInfo,
) -> Result<PathBuf> {
    let failed = |error| Error::failed(format!("root file system of container {}", record.id)).because(error);
    let users = Users::of(&sandbox.config.0);
    let labels = labels(context, sandbox, record)?.unwrap_or_default();
    context
        .store
        .create_container(ContainerDraft {
            id: record.id.to_string(),
            names: vec![names::container(sandbox, record)],
            image_id: Some(image.id.clone()),
            metadata: names::storage_metadata(sandbox, record),
            volatile: true,
            mount_label: labels.mount,
            process_label: labels.process,
            users: users.as_ref().map(|users| users.users.clone()).unwrap_or_default(),
            groups: users.as_ref().map(|users| users.groups.clone()).unwrap_or_default(),
            ..Default::default()
        })
        .map_err(failed)?;
    match users {
        None => context.store.mount(record.id.as_str()).map_err(failed),
        Some(_) => {
            let owners = userns::open(context, sandbox.id.as_str())?;
            context.store.mount_mapped(record.id.as_str(), owners.as_fd()).map_err(failed)
        }
    }
}

/// The images among resolved mounts, for the record.
pub(crate) fn image_volumes(mounts: &[ResolvedMount]) -> Vec<ImageVolume> {
    let images = mounts.iter().enumerate().filter(|(_, mount)| !mount.image_id.is_empty());
    images.map(|(mount, resolved)| ImageVolume { mount, image: resolved.image_id.clone() }).collect()
}

/// Where the mounts' sources really are. Missing ones are made, as CRI-O does, unless the configuration refuses them;
/// images are mounted. `at` tells which one is being looked at, for whoever waits in vain.
pub(crate) fn resolve_mounts(
    context: &Context,
    sandbox: &SandboxRecord,
    record: &ContainerRecord,
    at: &AtomicUsize,
) -> Result<Vec<ResolvedMount>> {
    let config = &record.config.0;
    let owners =
        Users::of(&sandbox.config.0).map(|_| context.paths.namespace(Namespace::User, sandbox.id.as_str()));
    let runtime = &context.config.runtime;
    let sources = MountSources {
        prefix: runtime.bind_mount_prefix.as_deref(),
        reject_absent: &runtime.absent_mount_sources_to_reject,
        graph_root: context.store.graph_root(),
        user_namespace: owners.as_deref(),
        idmapped_mounts: context.node.idmapped_mounts,
    };
    let table = sources.table(config)?;
    config
        .mounts
        .iter()
        .enumerate()
        .map(|(index, mount)| {
            at.store(index, Ordering::Relaxed);
            match &mount.image {
                Some(image) if mount.host_path.is_empty() => {
                    let wanted = image_volume::Wanted { index, mount, image };
                    image_volume::mount(context, sandbox, record, &wanted)
                }
                // With both the specification says what is wrong.
                _ => Ok(sources.resolve(index, mount, &table)?),
            }
        })
        .collect()
}

/// Builds the specification and writes the bundle.
pub(crate) fn write(input: &Input, root: PathBuf) -> Result<Bundle> {
    let Input { context, record, .. } = input;
    let failed = |error: &dyn std::fmt::Display| {
        Error::failed(format!("bundle of container {}", record.id))
            .because(io::Error::other(error.to_string()))
    };
    let directory = context.store.container_run_dir(record.id.as_str()).map_err(|error| failed(&error))?;
    log::make_directory(&record.log_path)?;
    let inside = Root::open(&root).map_err(|error| failed(&error))?;
    let users = Users::of(&input.sandbox.config.0);
    // What is made in there belongs to the pod's root, as the rest does.
    let pod_root = users.as_ref().map(Users::root);
    if let Some(localtime) =
        timezone::copy(&context.config.runtime.timezone, &directory).map_err(|error| failed(&error))?
    {
        give(&localtime, pod_root).map_err(|error| failed(&error))?;
    }
    let mut built = build(input, &root, &inside, &directory)?;
    let updates = crate::nri::adjust(input, &mut built)?;
    let notified = notify(input, &mut built)?;
    context.clamps.tell(&built.warnings);
    let passwd = [("passwd", &built.passwd), ("group", &built.group)];
    for (name, bytes) in passwd {
        if let Some(bytes) = bytes {
            let path = directory.join(name);
            durable::write_atomic(&path, bytes, 0o644).map_err(|error| failed(&error))?;
            give(&path, pod_root).map_err(|error| failed(&error))?;
        }
    }
    if let Some(labels) = labels(context, &input.sandbox, record)? {
        let provided = provided(input, &directory);
        let (container, sandbox) = (&record.config.0, &input.sandbox.config.0);
        let allowed_annotations = &input.features.allowed_annotations;
        Labelling { container, sandbox, mounts: &input.mounts, provided: &provided, allowed_annotations }
            .apply(&labels)?;
    }
    let cwd = Path::new(&built.spec.process.cwd);
    make_directory(&inside, cwd, pod_root).map_err(|error| failed(&error))?;
    if context.config.image.image_volumes == ImageVolumes::Mkdir {
        for volume in &built.image_volumes {
            make_volume(&inside, volume, &built.user, users.as_ref()).map_err(|error| failed(&error))?;
        }
    }
    let mtab = Path::new("/etc/mtab");
    match inside.symlink("/proc/mounts".as_ref(), mtab) {
        Ok(()) => give_link(&inside, mtab, pod_root).map_err(|error| failed(&error))?,
        // There is one, or no /etc: both are the image's business.
        Err(error) if matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound) => {}
        Err(error) => return Err(failed(&error)),
    }
    let json = built.spec.to_json().map_err(|error| failed(&error))?;
    let persistent = context.store.container_dir(record.id.as_str()).map_err(|error| failed(&error))?;
    for directory in [&directory, &persistent] {
        durable::write_atomic(&directory.join("config.json"), &json, 0o600)
            .map_err(|error| failed(&error))?;
    }
    Ok(Bundle {
        directory,
        root,
        user: user(&built.user),
        stop_signal: built.stop_signal.number(),
        updates,
        notified,
        spec: Box::new(built.spec),
    })
}

/// Behind the plugins, for the filter may be theirs. True: what it refuses is asked of the monitor.
fn notify(input: &Input, built: &mut Built) -> Result<bool> {
    let (Some(path), Some(filter)) = (&input.seccomp_listener, &mut built.spec.linux.seccomp) else {
        return Ok(false);
    };
    criox_spec::listen_seccomp(filter, path)
        .map_err(|reason| Error::invalid("config.linux.security_context.seccomp", reason))
}

fn build(input: &Input, root: &Path, inside: &Root, directory: &Path) -> Result<Built> {
    let Input { context, sandbox, record, image, .. } = input;
    let config = &record.config.0;
    let read = |path: &str| match inside.read_file(Path::new(path), PASSWD_MAX) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::failed(format!("image of container {}", record.id)).because(error)),
    };
    let (passwd, group) = (read("/etc/passwd")?, read("/etc/group")?);
    let profile = context.seccomp.resolve(
        &sandbox.config.0,
        config,
        input.handler_seccomp.as_deref(),
        &input.features.allowed_annotations,
        input.seccomp_artifact.as_ref(),
    )?;
    let cgroups_path =
        criox_sys::cgroup::oci_cgroups_path(context.driver(), &sandbox.cgroup_parent, record.id.as_str());
    let identity = identity(input);
    let image_facts = image_facts(image, record);
    let provided = provided(input, directory);
    let runtime = &context.config.runtime;
    let devices = criox_confine::devices(
        &runtime.additional_devices,
        &runtime.allowed_devices,
        &sandbox.config.0,
        config,
        &input.features,
    )?;
    let selinux = labels(context, sandbox, record)?;
    let reached = match Users::of(&sandbox.config.0) {
        None => root.to_owned(),
        Some(users) => Ways::new(context.paths.ways()).expose(record.id.as_str(), &users, root)?,
    };
    let root = reached.to_string_lossy();
    let cdi_devices = criox_spec::cdi_names(config)
        .map_err(|error| Error::new(Kind::InvalidArgument, format!("config.{error}")))?;
    let mut built = criox_spec::build(&SpecInput {
        container: config,
        sandbox: &sandbox.config.0,
        identity: &identity,
        image: &image_facts,
        passwd: passwd.as_deref(),
        group: group.as_deref(),
        node: &context.node,
        defaults: &context.defaults,
        handler: &input.features,
        seccomp: profile.as_spec(),
        selinux: selinux.as_ref(),
        namespaces: &input.namespaces,
        rootfs: &root,
        mounts: &input.mounts,
        provided: &provided,
        devices: &devices,
        cgroups_path: &cgroups_path,
    })
    .map_err(|error| {
        let kind = match error.kind {
            ErrorKind::Invalid => Kind::InvalidArgument,
            ErrorKind::Image | ErrorKind::Unsupported => Kind::FailedPrecondition,
        };
        Error::new(kind, format!("config.{error}"))
    })?;
    if let Some(profile) = &built.spec.process.apparmor_profile {
        context.apparmor.require(profile)?;
    }
    context.cdi.inject(&mut built.spec, &cdi_devices, &input.features, "config.CDI_devices")?;
    Ok(built)
}

/// Gives a file of ours to the pod's root.
pub(crate) fn give(path: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    owner.map_or(Ok(()), |(user, group)| std::os::unix::fs::lchown(path, Some(user), Some(group)))
}

fn give_link(inside: &Root, path: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    let Some((user, group)) = owner else { return Ok(()) };
    let (parent, name) = inside.parent(path).map_err(io::Error::other)?;
    let link = inroot::open_entry(parent.as_fd(), name)?;
    inroot::set_owner(link.as_fd(), user, group)
}

/// Makes a directory and its missing parents, which then belong to the owner.
fn make_directory(inside: &Root, path: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    let Some((user, group)) = owner else {
        return inside.mkdir_all(path, 0o755).map(drop).map_err(io::Error::other);
    };
    let mut parents: Vec<&Path> = path.ancestors().collect();
    parents.reverse();
    for part in parents {
        if inside.open_dir(part).is_err() {
            let made = inside.mkdir_all(part, 0o755).map_err(io::Error::other)?;
            inroot::set_owner(made.as_fd(), user, group)?;
        }
    }
    Ok(())
}

/// `VOLUME` of the image as a directory of the container, the process's own.
fn make_volume(inside: &Root, volume: &str, user: &EffectiveUser, users: Option<&Users>) -> io::Result<()> {
    match inside.open_dir(Path::new(volume)) {
        // The image has it, with an owner of its choice.
        Ok(_) => Ok(()),
        Err(_) => {
            make_directory(inside, Path::new(volume), users.map(Users::root))?;
            let made = inside.open_dir(Path::new(volume)).map_err(io::Error::other)?;
            let (uid, gid) = users.map_or((user.uid, user.gid), |users| users.outside(user.uid, user.gid));
            inroot::set_owner(made.as_fd(), uid, gid)
        }
    }
}

fn identity(input: &Input) -> Identity {
    let Input { sandbox, record, .. } = input;
    Identity {
        container_id: record.id.to_string(),
        sandbox_id: sandbox.id.to_string(),
        container_name: names::container(sandbox, record),
        sandbox_name: names::sandbox(sandbox),
        log_path: record.log_path.to_string_lossy().into_owned(),
        pod_ips: sandbox.ips.clone(),
        created: Timestamp::from_unix_nanos(record.created_at).to_string(),
        hostname: names::hostname(sandbox),
        sandbox_privileged: sandbox_privileged(sandbox),
    }
}

/// Whether privileged containers may live in the sandbox: it says so, or shares a namespace with the node, as in CRI-O.
fn sandbox_privileged(sandbox: &SandboxRecord) -> bool {
    let security = sandbox.config.0.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let options = namespace_options(&sandbox.config.0);
    let shared = [options.network(), options.pid(), options.ipc()].contains(&v1::NamespaceMode::Node);
    shared || security.is_some_and(|security| security.privileged)
}

fn image_facts(image: &ImageInfo, record: &ContainerRecord) -> ImageFacts {
    let config = &image.config;
    ImageFacts {
        id: image.id.clone(),
        name: record.image.name.clone(),
        repo_digests: image.repo_digests.clone(),
        entrypoint: config.entrypoint.clone(),
        cmd: config.cmd.clone(),
        env: config.env.clone(),
        working_dir: config.working_dir.clone(),
        user: config.user.clone(),
        stop_signal: config.stop_signal.clone(),
        volumes: config.volumes.clone(),
        labels: config.labels.clone(),
    }
}

fn provided(input: &Input, directory: &Path) -> ProvidedMounts {
    let Input { context, sandbox, record, .. } = input;
    let run = context.paths.run(sandbox.id.as_str());
    let pod = namespace_options(&sandbox.config.0);
    let text = |path: PathBuf| Some(path.to_string_lossy().into_owned());
    let has_hosts = record.config.0.mounts.iter().any(|mount| mount.container_path == "/etc/hosts");
    ProvidedMounts {
        shm: match pod.ipc() {
            v1::NamespaceMode::Node => Some("/dev/shm".into()),
            _ => text(run.shm()),
        },
        mqueue: Path::new("/dev/mqueue").is_dir().then(|| "/dev/mqueue".into()),
        resolv_conf: text(run.resolv_conf()),
        hostname: text(run.hostname()),
        hosts: (pod.network() == v1::NamespaceMode::Node && !has_hosts).then(|| "/etc/hosts".into()),
        containerenv: text(run.containerenv()),
        localtime: (!context.config.runtime.timezone.is_empty())
            .then(|| timezone::place(directory).to_string_lossy().into_owned()),
        passwd: text(directory.join("passwd")),
        group: text(directory.join("group")),
    }
}

fn user(user: &EffectiveUser) -> v1::ContainerUser {
    v1::ContainerUser {
        linux: Some(v1::LinuxContainerUser {
            uid: user.uid.into(),
            gid: user.gid.into(),
            supplemental_groups: user.supplemental_groups.iter().map(|group| i64::from(*group)).collect(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_namespace_of_a_later_process_of_the_same_number_is_not_taken() {
        use std::os::linux::fs::MetadataExt as _;
        let pid = i32::try_from(std::process::id()).expect("a number");
        let start_time = criox_sys::process::start_time(pid).expect("this process lives");
        let own = std::fs::metadata("/proc/self/ns/pid").expect("this process lives");
        let found = pid_namespace(ProcessIdentity { pid, start_time }).expect("its own");
        let found = std::fs::File::from(found).metadata().expect("it is open");
        assert_eq!((found.st_dev(), found.st_ino()), (own.st_dev(), own.st_ino()));
        let error = pid_namespace(ProcessIdentity { pid, start_time: start_time + 1 }).expect_err("another");
        assert!(error.to_string().contains("another one now"), "{error}");
        pid_namespace(ProcessIdentity { pid: i32::MAX, start_time }).expect_err("nobody");
    }
}
