//! What a container is made of on disk: its root file system, and the bundle with its specification.

use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use criox_config::value::ImageVolumes;
use criox_cri::v1;
use criox_image::ImageInfo;
use criox_spec::{
    Built, EffectiveUser, ErrorKind, HandlerFeatures, Identity, ImageFacts, NamespaceSource, Namespaces,
    ProvidedMounts, ResolvedMount, SpecInput,
};
use criox_store::ContainerDraft;
use criox_sys::durable;
use criox_sys::inroot::{self, Root};
use criox_sys::mount::{self, MountInfo};

use super::create::Work;
use super::{devices, log};
use crate::context::Context;
use crate::error::{Error, Kind, Result};
use crate::names;
use crate::paths::Namespace;
use crate::record::{ContainerPhase, ContainerRecord, SandboxRecord};
use crate::status;

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
}

/// A finished bundle.
#[derive(Debug)]
pub(crate) struct Bundle {
    pub(crate) directory: PathBuf,
    pub(crate) root: PathBuf,
    pub(crate) user: v1::ContainerUser,
    pub(crate) stop_signal: i32,
}

/// The namespaces that a container joins: those of its pod, of a target, or the node's.
pub(crate) fn namespaces(work: &Work) -> Result<Namespaces> {
    let Work { context, sandbox, record, .. } = work;
    let pod = status::namespace_options(&sandbox.config.0);
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
        v1::NamespaceMode::Target => target(work, &own.target_id)?,
    };
    Ok(Namespaces {
        network: shared(pod.network(), Namespace::Network),
        ipc: shared(pod.ipc(), Namespace::Ipc),
        uts: pinned(Namespace::Uts),
        pid,
        user: NamespaceSource::Host,
        uid_mappings: Vec::new(),
        gid_mappings: Vec::new(),
    })
}

fn target(work: &Work, id: &str) -> Result<NamespaceSource> {
    const FIELD: &str = "config.linux.security_context.namespace_options.target_id";
    let record = work
        .others
        .iter()
        .find(|other| other.id.as_str() == id)
        .ok_or_else(|| Error::invalid(FIELD, format!("container {id:?} is not in this pod")))?;
    let process = record.process.filter(|_| record.phase == ContainerPhase::Running);
    let process = process.ok_or_else(|| Error::invalid(FIELD, format!("container {id} does not run")))?;
    Ok(NamespaceSource::Path(format!("/proc/{}/ns/pid", process.pid)))
}

/// The container in the store, mounted; the path of its root.
pub(crate) fn storage(
    context: &Context,
    sandbox: &SandboxRecord,
    record: &ContainerRecord,
    image: &ImageInfo,
) -> Result<PathBuf> {
    let failed = |error| Error::failed(format!("root file system of container {}", record.id)).because(error);
    context
        .store
        .create_container(ContainerDraft {
            id: record.id.to_string(),
            names: vec![names::container(sandbox, record)],
            image_id: Some(image.id.clone()),
            metadata: names::storage_metadata(sandbox, record),
            volatile: true,
            ..Default::default()
        })
        .map_err(failed)?;
    context.store.mount(record.id.as_str()).map_err(failed)
}

/// Where the mounts' sources really are. Missing ones are made, as CRI-O does, unless the configuration refuses them.
pub(crate) fn resolve_mounts(context: &Context, config: &v1::ContainerConfig) -> Result<Vec<ResolvedMount>> {
    let propagates =
        config.mounts.iter().any(|mount| mount.propagation() != v1::MountPropagation::PropagationPrivate);
    let table = match propagates {
        true => mount::mountinfo()
            .map_err(|error| Error::failed("read of /proc/self/mountinfo").because(error))?,
        false => Vec::new(),
    };
    config
        .mounts
        .iter()
        .enumerate()
        .map(|(index, mount)| resolve_mount(context, index, mount, &table))
        .collect()
}

fn resolve_mount(
    context: &Context,
    index: usize,
    mount: &v1::Mount,
    table: &[MountInfo],
) -> Result<ResolvedMount> {
    let field = format!("config.mounts[{index}].host_path");
    if mount.image.is_some() {
        return Err(Error::invalid(
            &format!("config.mounts[{index}].image"),
            "ImageVolumeMountFailed: image volumes are not supported by this version of criox",
        ));
    }
    if !mount.host_path.starts_with('/') {
        return Err(Error::invalid(&field, format!("{:?} is not an absolute path", mount.host_path)));
    }
    let runtime = &context.config.runtime;
    let path = match runtime.bind_mount_prefix.as_deref().filter(|prefix| !prefix.as_os_str().is_empty()) {
        Some(prefix) => prefix.join(mount.host_path.trim_start_matches('/')),
        None => PathBuf::from(&mount.host_path),
    };
    let source = match std::fs::canonicalize(&path) {
        Ok(source) => source,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if runtime.absent_mount_sources_to_reject.contains(&path) {
                return Err(Error::invalid(&field, format!("{} does not exist", path.display())));
            }
            std::fs::create_dir_all(&path).and_then(|()| std::fs::canonicalize(&path)).map_err(|error| {
                Error::invalid(&field, format!("{} could not be made", path.display())).because(error)
            })?
        }
        Err(error) => {
            return Err(Error::invalid(&field, format!("{} can't be had", path.display())).because(error));
        }
    };
    let is_dir = std::fs::metadata(&source).is_ok_and(|metadata| metadata.is_dir());
    let below = table
        .iter()
        .filter(|entry| source.starts_with(&entry.mount_point))
        .max_by_key(|entry| entry.mount_point.as_os_str().len());
    Ok(ResolvedMount {
        is_dir,
        shared: below.is_some_and(MountInfo::is_shared),
        slave: below.is_some_and(MountInfo::is_slave),
        idmappable: false,
        contains_graph_root: context.store.graph_root().starts_with(&source),
        source: source.to_string_lossy().into_owned(),
        image_id: String::new(),
    })
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
    let built = build(input, &root, &inside, &directory)?;
    context.clamps.tell(&built.warnings);
    let passwd = [("passwd", &built.passwd), ("group", &built.group)];
    for (name, bytes) in passwd {
        if let Some(bytes) = bytes {
            durable::write_atomic(&directory.join(name), bytes, 0o644).map_err(|error| failed(&error))?;
        }
    }
    let cwd = Path::new(&built.spec.process.cwd);
    inside.mkdir_all(cwd, 0o755).map_err(|error| failed(&error))?;
    if context.config.image.image_volumes == ImageVolumes::Mkdir {
        for volume in &built.image_volumes {
            make_volume(&inside, volume, &built.user).map_err(|error| failed(&error))?;
        }
    }
    match inside.symlink("/proc/mounts".as_ref(), Path::new("/etc/mtab")) {
        Ok(()) => {}
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
    Ok(Bundle { directory, root, user: user(&built.user), stop_signal: built.stop_signal.number() })
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
    let profile = context.seccomp.resolve(config, input.handler_seccomp.as_deref())?;
    let cgroups_path =
        criox_sys::cgroup::oci_cgroups_path(context.driver(), &sandbox.cgroup_parent, record.id.as_str());
    let identity = identity(input);
    let image_facts = image_facts(image, record);
    let provided = provided(input, directory);
    let devices = devices::resolve(context, config)?;
    let root = root.to_string_lossy();
    criox_spec::build(&SpecInput {
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
        selinux: None,
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
    })
}

/// `VOLUME` of the image as a directory of the container, the process's own.
fn make_volume(inside: &Root, volume: &str, user: &EffectiveUser) -> io::Result<()> {
    match inside.open_dir(Path::new(volume)) {
        // The image has it, with an owner of its choice.
        Ok(_) => Ok(()),
        Err(_) => {
            let made = inside.mkdir_all(Path::new(volume), 0o755).map_err(io::Error::other)?;
            inroot::set_owner(made.as_fd(), user.uid, user.gid)
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
        created: names::rfc3339(record.created_at),
        hostname: names::hostname(sandbox),
        sandbox_privileged: sandbox_privileged(sandbox),
    }
}

/// Whether privileged containers may live in the sandbox: it says so, or shares a namespace with the node, as in CRI-O.
fn sandbox_privileged(sandbox: &SandboxRecord) -> bool {
    let security = sandbox.config.0.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let options = status::namespace_options(&sandbox.config.0);
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
    let pod = status::namespace_options(&sandbox.config.0);
    let text = |path: PathBuf| Some(path.to_string_lossy().into_owned());
    let has_hosts = record.config.0.mounts.iter().any(|mount| mount.container_path == "/etc/hosts");
    ProvidedMounts {
        shm: match pod.ipc() {
            v1::NamespaceMode::Node => Some("/dev/shm".into()),
            _ => text(run.shm()),
        },
        resolv_conf: text(run.resolv_conf()),
        hostname: text(run.hostname()),
        hosts: (pod.network() == v1::NamespaceMode::Node && !has_hosts).then(|| "/etc/hosts".into()),
        containerenv: text(run.containerenv()),
        localtime: None,
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
