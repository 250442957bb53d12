//! What a checkpoint says about its container, in the files that CRI-O and podman have, and whether a container can be
//! captured at all.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use criox_checkpoint::space::{self, RESERVE};
use criox_checkpoint::{BindMount, ConfigDump, Metadata, SpecDump, names};
use criox_records::{ContainerRecord, SandboxRecord, names as crio_names};
use criox_store::Timestamp;

use super::failed;
use crate::context::Context;
use crate::error::{Error, Result};

/// The most that is read of a specification of ours.
const SPEC_MAX: u64 = 16 << 20;

/// What is known of a container that is about to be captured.
#[derive(Debug)]
pub(super) struct Described {
    /// Where anything is mounted in it, which is no change of its root file system.
    pub(super) mounts: Vec<PathBuf>,
}

/// Makes a container's capture, still without its memory and files.
///
/// # Errors
/// There is not enough room; a container that can't be captured; the disk.
pub(super) fn begin(
    context: &Context,
    sandbox: &SandboxRecord,
    record: &ContainerRecord,
    runtime: &str,
    at: i64,
    directory: &Path,
) -> Result<Described> {
    let what = || format!("checkpoint of container {}", record.id);
    let memory = memory_in_use(context, record);
    space::check(directory, memory, RESERVE).map_err(|error| failed(what(), error))?;
    let bundle = context.store.container_run_dir(record.id.as_str());
    let path = bundle.map_err(|error| Error::failed(what()).because(error))?.join("config.json");
    let spec = read(&path).map_err(|error| Error::failed(what()).because(error))?;
    let parsed = SpecDump::parse(&spec).map_err(|error| failed(what(), error))?;
    let mut mounts = Vec::new();
    for mount in &record.config.0.mounts {
        let destination = criox_spec::clean_destination(&mount.container_path);
        let source =
            parsed.mounts.iter().find(|made| destination.as_ref().is_ok_and(|d| *d == made.destination));
        let Some(source) = source else { continue };
        let mount = BindMount::of(Path::new(&source.source), &source.destination);
        mounts.push(mount.map_err(|error| failed(what(), error))?);
    }
    let config = config(sandbox, record, runtime, at);
    Metadata::write(directory, &config, &spec, &mounts).map_err(|error| failed(what(), error))?;
    label_log(context, sandbox, record, directory)?;
    Ok(Described { mounts: parsed.mounts.into_iter().map(|mount| mount.destination.into()).collect() })
}

/// The directory of a capture, new and empty.
pub(super) fn make_directory(path: &Path) -> Result<()> {
    let failed = |error| Error::failed(format!("directory {}", path.display())).because(error);
    let make = |path: &Path| fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    make(&path.join(names::IMAGES)).map_err(failed)
}

fn config(sandbox: &SandboxRecord, record: &ContainerRecord, runtime: &str, at: i64) -> ConfigDump {
    let asked = record.config.0.image.as_ref();
    let asked = asked.map(|image| match image.user_specified_image.as_str() {
        "" => image.image.clone(),
        name => name.to_owned(),
    });
    ConfigDump {
        id: record.id.to_string(),
        name: crio_names::container(sandbox, record),
        // Of one that was restored it would be the archive.
        rootfs_image: asked.filter(|_| !record.restored).unwrap_or_else(|| record.image.name.clone()),
        rootfs_image_ref: record.image.id.clone(),
        rootfs_image_name: record.image.name.clone(),
        runtime: runtime.to_owned(),
        created: Timestamp::from_unix_nanos(record.created_at),
        checkpointed: Timestamp::from_unix_nanos(at),
        restored_at: if record.restored {
            Timestamp::from_unix_nanos(record.started_at)
        } else {
            Timestamp::ZERO
        },
        restored: record.restored,
    }
}

/// The bytes that the container's memory takes now; 0 if nobody counts them.
fn memory_in_use(context: &Context, record: &ContainerRecord) -> u64 {
    let file = if context.cgroups.is_v2() { "memory.current" } else { "memory.usage_in_bytes" };
    let text = context.cgroups.dir("memory", &record.cgroup).map(|dir| fs::read_to_string(dir.join(file)));
    text.and_then(|text| text.ok()?.trim().parse().ok()).unwrap_or(0)
}

/// CRIU may write its log in the container's domain only to a file with the container's label.
fn label_log(
    context: &Context,
    sandbox: &SandboxRecord,
    record: &ContainerRecord,
    directory: &Path,
) -> Result<()> {
    let labels = context.selinux.container(sandbox.selinux.as_ref(), &sandbox.config.0, &record.config.0)?;
    let Some(labels) = labels.filter(|labels| !labels.mount.is_empty()) else { return Ok(()) };
    let path = directory.join(names::DUMP_LOG);
    criox_sys::durable::write_atomic(&path, b"", 0o600)
        .map_err(|error| Error::failed(format!("log {}", path.display())).because(error))?;
    Ok(criox_confine::relabel(&path, &labels.mount, false, "log of the checkpoint")?)
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(SPEC_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}
