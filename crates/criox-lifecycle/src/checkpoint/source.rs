//! What CreateContainer is to restore: an archive on the node, an image that holds one, or a container of a pod's
//! checkpoint. It is copied to a place of ours, named from the container's ID, and needed until the start.

use std::fs::File;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criox_checkpoint::space::RESERVE;
use criox_checkpoint::{ApplyChanges, Cancel, ConfigDump, Intake, Limits, archive};
use criox_checkpoint_policy::fits::{self, Expected};
use criox_confine::Users;
use criox_cri::ids::ContainerId;
use criox_cri::v1;
use criox_image::ImageInfo;
use criox_monitor_api::proto;
use criox_records::{ContainerRecord, Encoded, SandboxRecord};
use criox_spec::oci;
use criox_sys::durable;

use super::{DEFAULT, failed};
use crate::container::bundle::Bundle;
use crate::container::create::{Work, find_image};
use crate::context::{Context, blocking};
use crate::error::{Error, Kind, Result};

/// The annotation of a manifest by which an image is known as a checkpoint, as CRI-O has it.
const CHECKPOINT_NAME: &str = "io.kubernetes.cri-o.annotations.checkpoint.name";
/// The field that names what to restore.
const FIELD: &str = "config.image.image";
/// Reading what a checkpoint says.
const LOOK: Duration = Duration::from_secs(60);

/// How the runtimes call themselves, and the state directory that crun has by default.
const CRUN: &str = "crun";
const RUNC: &str = "runc";
const CRUN_ROOT: &str = "/run/crun";

/// What is to be restored.
#[derive(Debug)]
pub(crate) struct Source {
    from: From,
    /// The image that its root file system is made of.
    base: Arc<ImageInfo>,
    /// What the first process was started with.
    args: Vec<String>,
    expected: Expected,
}

/// Where it lies.
#[derive(Debug)]
enum From {
    /// Held open: what was looked at is what is restored.
    Archive(File),
    /// Of somebody else, or the layer of an image.
    Directory(PathBuf),
}

impl Source {
    /// What the request for a container is to go on from; none for one that begins anew.
    ///
    /// # Errors
    /// Restores are not allowed here; a checkpoint that can't be read; an image that it needs is not on this node.
    pub(crate) async fn of(
        context: &Arc<Context>,
        sandbox: &SandboxRecord,
        config: &v1::ContainerConfig,
    ) -> Result<Option<Self>> {
        let name = config.image.as_ref().map(|image| image.image.as_str()).unwrap_or_default();
        let object = format!("checkpoint {name:?}");
        let (from, config, spec) = if name.starts_with('/') {
            context.checkpoints.restore()?;
            let path = PathBuf::from(name);
            let what = object.clone();
            blocking("look at an archive", &object, LOOK, move || {
                let what = |error| failed(format!("{FIELD}: {what}"), error);
                let file = archive::open(&path).map_err(what)?;
                let (config, spec) = criox_checkpoint::peek(&file, &looking()).map_err(what)?;
                Ok((From::Archive(file), config, spec))
            })
            .await?
        } else {
            // Without restores no image is one, which the creation itself says.
            let image = match context.checkpoints.restores() {
                true => find_image(context, config).await.ok().filter(|image| is_checkpoint(image)),
                false => None,
            };
            let Some(image) = image else { return Ok(None) };
            let (shared, what) = (context.clone(), object.clone());
            blocking("look at a checkpoint's image", &object, LOOK, move || {
                let directory = content(&shared, &image)?;
                let intake =
                    Intake::open(&directory).map_err(|error| failed(format!("{FIELD}: {what}"), error))?;
                Ok((From::Directory(directory), intake.metadata.config, intake.metadata.spec))
            })
            .await?
        };
        signed(context, sandbox)?;
        let base = base(context, &config).await?;
        Ok(Some(Self { from, base, args: spec.args, expected: Expected::Policy }))
    }

    /// A container of a pod's checkpoint, which must be all that its configuration says.
    ///
    /// # Errors
    /// As [`Source::of`].
    pub(super) async fn of_pod(
        context: &Arc<Context>,
        directory: PathBuf,
        config: &v1::ContainerConfig,
    ) -> Result<Self> {
        let object = format!("checkpoint {}", directory.display());
        let what = object.clone();
        let from = From::Directory(directory.clone());
        let (dump, spec) = blocking("look at a checkpoint", &object, LOOK, move || {
            let intake = Intake::open(&directory).map_err(|error| failed(what, error))?;
            Ok((intake.metadata.config, intake.metadata.spec))
        })
        .await?;
        let wanted = find_image(context, config).await?;
        let base = base(context, &dump).await?;
        if wanted.id != base.id {
            let text = format!("is not the image that was checkpointed ({})", base.id);
            return Err(Error::invalid(FIELD, text));
        }
        fits::early(config, &spec)?;
        Ok(Self { from, base, args: spec.args, expected: Expected::Everything })
    }

    /// The image that the root file system is made of.
    pub(crate) fn base(&self) -> &Arc<ImageInfo> {
        &self.base
    }

    /// The record for the specification: a request that names no command takes the one that goes on.
    pub(crate) fn as_it_runs(&self, record: &ContainerRecord) -> ContainerRecord {
        let config = &record.config.0;
        if !config.command.is_empty() || !config.args.is_empty() || self.expected == Expected::Everything {
            return record.clone();
        }
        let config = v1::ContainerConfig { command: self.args.clone(), ..(**config).clone() };
        ContainerRecord { config: Encoded(Arc::new(config)), ..record.clone() }
    }

    /// Copies it to our place, holds it against what the request expects and allows, and lays its files over those of
    /// the image. The specification has been made before: nothing of the checkpoint had a part in it.
    pub(crate) async fn lay_out(self: &Arc<Self>, work: &Work, bundle: &Bundle) -> Result<()> {
        let Work { context, sandbox, record, .. } = work;
        let handler = context.handlers.get(&sandbox.runtime_handler)?;
        let runtime = handler.checkpoints().await?;
        let object = format!("container {}", record.id);
        let (source, context, record, root) =
            (self.clone(), context.clone(), record.clone(), bundle.root.clone());
        let (users, spec) = (Users::of(&sandbox.config.0), bundle.spec.clone());
        let state = handler.config.root();
        let told = match runtime.as_str() {
            CRUN if state != Path::new(CRUN_ROOT) => Some(same_mask(state)),
            RUNC if context.cgroups.is_v2() => Some(own_cgroup(work)?),
            _ => None,
        };
        let directory = bundle.directory.clone();
        blocking("copy of a checkpoint", &object, DEFAULT, move || {
            let cancel = Cancel::new().with_deadline(Instant::now() + DEFAULT);
            let what = || format!("checkpoint for container {}", record.id);
            let intake = source.take_in(&context, record.id, &cancel)?;
            let (users, groups) = users.map(|users| (users.users, users.groups)).unwrap_or_default();
            let changes = ApplyChanges { root: &root, users: &users, groups: &groups, reserve: RESERVE };
            changes.apply(intake.dir(), &cancel).map_err(|error| failed(what(), error))?;
            // After the changes, for a mount's place may lie behind a link that the container made.
            fits::check(&intake, &runtime, &record.config.0, &spec, &root, source.expected)?;
            one_hierarchy()?;
            match told {
                Some(line) => tell_criu(&intake, &line, &spec, &directory)
                    .map_err(|error| Error::failed(what()).because(error)),
                None => Ok(()),
            }
        })
        .await
    }

    fn take_in(&self, context: &Context, id: ContainerId, cancel: &Cancel) -> Result<Intake> {
        let what = || format!("checkpoint for container {id}");
        let into = context.paths.intake(id.as_str());
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&into)
            .map_err(|error| Error::failed(what()).because(error))?;
        let limits = Limits::default();
        let taken = match &self.from {
            From::Archive(file) => criox_checkpoint::unpack(file, &into, &limits, cancel),
            From::Directory(directory) => criox_checkpoint::copy(directory, &into, &limits, cancel),
        };
        taken.map_err(|error| failed(what(), error))
    }
}

/// Where cgroup v1 and v2 are mounted at once, containers stand in v2's root. CRIU takes all that is below it for the
/// container's, and its restore makes a copy of the machine's whole tree below the new one (seen with CRIU 4.2.1).
fn one_hierarchy() -> Result<()> {
    let both = criox_sys::cgroup::both_versions()
        .map_err(|error| Error::failed("read of /proc/self/cgroup").because(error))?;
    match both {
        false => Ok(()),
        true => Err(Error::new(
            Kind::FailedPrecondition,
            "this machine mounts cgroup v1 and v2 at once (hybrid), where CRIU's restore copies the groups of others; boot with systemd.unified_cgroup_hierarchy=1",
        )),
    }
}

/// crun masks directories with an empty one of its state directory, which a checkpoint names by crun's own default and a
/// restore by the root that crun is called with (seen with 1.21 and 1.28): CRIU is told that these are the same.
fn same_mask(state: &Path) -> String {
    format!("external mnt[{CRUN_ROOT}/.empty-directory]:{}/.empty-directory\n", state.display())
}

/// Of cgroup v2 runc tells CRIU nothing (1.1.15 does so for v1 only), which then puts the processes where they were: into
/// the group of the container that was checkpointed, and leaves the new one's empty.
fn own_cgroup(work: &Work) -> Result<String> {
    let (id, parent) = (work.record.id.as_str(), &work.sandbox.cgroup_parent);
    let group = criox_sys::cgroup::container_path(work.context.driver(), parent, id)
        .map_err(|error| Error::failed(format!("cgroup of container {id}")).because(error))?;
    // The file is one of words, lines and remarks.
    if group.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '#' | '"')) {
        let text = format!(
            "container {id}: CRIU can't be told of the cgroup {group:?}; give its pod a plain parent"
        );
        return Err(Error::new(Kind::FailedPrecondition, text));
    }
    Ok(format!("cgroup-root {group}\n"))
}

/// Gives CRIU an option that the runtime has no word for, by the file that both runtimes look for.
fn tell_criu(intake: &Intake, line: &str, spec: &oci::Spec, bundle: &Path) -> std::io::Result<()> {
    const ANNOTATION: &str = "org.criu.config";
    let path = intake.dir().join("criu.conf");
    durable::write_atomic(&path, line.as_bytes(), 0o600).map_err(std::io::Error::other)?;
    let mut spec = spec.clone();
    spec.annotations.insert(ANNOTATION.to_owned(), path.to_string_lossy().into_owned());
    let json = spec.to_json().map_err(std::io::Error::other)?;
    durable::write_atomic(&bundle.join("config.json"), &json, 0o600).map_err(std::io::Error::other)
}

/// What the monitor restores from. The labels and profiles are those of the specification.
pub(crate) fn restore(work: &Work, bundle: &Bundle) -> proto::Restore {
    let directory = work.context.paths.intake(work.record.id.as_str());
    let process = &bundle.spec.process;
    let lsm_profile = match (&process.selinux_label, &process.apparmor_profile) {
        (Some(label), _) if !label.is_empty() => format!("selinux:{label}"),
        (_, Some(profile)) if fits::confines(profile) => format!("apparmor:{profile}"),
        _ => String::new(),
    };
    proto::Restore {
        image_path: directory.join(criox_checkpoint::names::IMAGES).to_string_lossy().into_owned(),
        work_path: directory.to_string_lossy().into_owned(),
        lsm_profile,
        lsm_mount_context: bundle.spec.linux.mount_label.clone(),
        cgroup: criox_sys::cgroup::container_path(
            work.context.driver(),
            &work.sandbox.cgroup_parent,
            work.record.id.as_str(),
        )
        .unwrap_or_default(),
    }
}

/// Removes the copy, beside everything else: the container has gone on.
pub(crate) fn forget(context: &Context, id: &ContainerId) {
    let (directory, id) = (context.paths.intake(id.as_str()), *id);
    tokio::task::spawn_blocking(move || {
        if let Err(error) = durable::remove_tree(&directory) {
            tracing::warn!(container = %id, %error, "its checkpoint stays until it is removed");
        }
    });
}

/// As long as somebody waits for what is looked at.
fn looking() -> Cancel {
    Cancel::new().with_deadline(Instant::now() + LOOK)
}

/// The image for a container that begins anew.
///
/// # Errors
/// It is a checkpoint, and restores are not allowed here.
pub(crate) fn no_checkpoint(context: &Context, image: Arc<ImageInfo>) -> Result<Arc<ImageInfo>> {
    if is_checkpoint(&image) {
        context.checkpoints.restore()?;
        // It was pulled a moment ago.
        return Err(Error::failed(format!(
            "image {} has become a checkpoint meanwhile; try again",
            image.id
        )));
    }
    Ok(image)
}

fn is_checkpoint(image: &ImageInfo) -> bool {
    image.annotations.contains_key(CHECKPOINT_NAME)
}

/// Images of checkpoints have one layer, whose files are those of the archive.
fn content(context: &Context, image: &ImageInfo) -> Result<PathBuf> {
    let broken = |reason: &str| {
        Error::new(Kind::InvalidArgument, format!("{FIELD}: checkpoint image {} {reason}", image.id))
    };
    let top = image.top_layer.as_deref().ok_or_else(|| broken("has no layer"))?;
    let layer = context.store.layer(top).map_err(|error| broken("can't be read").because(error))?;
    if !layer.parent.is_empty() {
        return Err(broken("has more than one layer"));
    }
    Ok(context.store.graph_root().join("overlay").join(&layer.id).join("diff"))
}

/// Nobody signs checkpoints: where a namespace demands signatures none is restored.
fn signed(context: &Context, sandbox: &SandboxRecord) -> Result<()> {
    let namespace =
        sandbox.config.0.metadata.as_ref().map(|metadata| metadata.namespace.clone()).unwrap_or_default();
    let policy = context.config.image.signature_policy_dir.join(format!("{namespace}.json"));
    match std::fs::symlink_metadata(&policy) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(Error::new(
            Kind::FailedPrecondition,
            format!(
                "{} demands signatures, which checkpoints don't have: none is restored in this namespace",
                policy.display()
            ),
        )),
    }
}

/// The image that was checkpointed, by its ID, or else by a name.
async fn base(context: &Arc<Context>, config: &ConfigDump) -> Result<Arc<ImageInfo>> {
    let names = [&config.rootfs_image_ref, &config.rootfs_image_name, &config.rootfs_image];
    for name in names.into_iter().filter(|name| !name.is_empty() && !name.starts_with('/')) {
        let image = Some(v1::ImageSpec { image: name.clone(), ..Default::default() });
        match find_image(context, &v1::ContainerConfig { image, ..Default::default() }).await {
            Ok(image) if is_checkpoint(&image) => {
                return Err(Error::invalid(FIELD, format!("its base image {name:?} is itself a checkpoint")));
            }
            Ok(image) => return Ok(image),
            Err(error) if error.kind() == Kind::NotFound => {}
            // What a checkpoint calls an image need be no name at all.
            Err(error) => tracing::debug!(error = error.chain(), "not a base image"),
        }
    }
    let name = if config.rootfs_image_name.is_empty() {
        &config.rootfs_image_ref
    } else {
        &config.rootfs_image_name
    };
    Err(Error::new(
        Kind::FailedPrecondition,
        format!(
            "{FIELD}: the checkpoint was made over image {name:?}, which is not on this node; pull it first"
        ),
    ))
}

/// Removes copies that belong to no container any more.
pub(crate) fn sweep(context: &Context, is_known: impl Fn(&ContainerId) -> bool) {
    let entries = std::fs::read_dir(context.paths.intakes()).into_iter().flatten().flatten();
    for entry in entries {
        let id = entry.file_name().to_str().and_then(|name| ContainerId::parse(name).ok());
        if id.is_some_and(|id| !is_known(&id))
            && let Err(error) = durable::remove_tree(&entry.path())
        {
            tracing::warn!(%error, "a checkpoint without a container stays");
        }
    }
}
