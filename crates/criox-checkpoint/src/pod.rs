//! A pod's checkpoint: a directory in a format of our own.
//!
//! ```text
//! <output>/checkpoint.json         the manifest, written and synced last: without it there is no checkpoint
//! <output>/containers/<name>/…     a capture for each container, by its name in the pod
//! ```

use std::collections::BTreeSet;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Component, Path, PathBuf};

use criox_store::Timestamp;
use criox_sys::durable::{self, PathError};
use criox_sys::inroot::Root;
use rustix::fs::{Dir, Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::intake;
use crate::metadata::{self, rfc3339};
use crate::names;

/// The manifest.
pub const MANIFEST: &str = "checkpoint.json";
/// The directory of the containers.
pub const CONTAINERS: &str = "containers";
/// The version that is written.
pub const VERSION: u32 = 1;

/// Longest manifest, in bytes.
const MAX_MANIFEST: u64 = 4 << 20;
/// Most containers of a pod.
const MAX_CONTAINERS: usize = 10_000;

/// What `checkpoint.json` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodManifest {
    /// The version of the format: [`VERSION`].
    pub version: u32,
    /// The moment at which all containers stood still.
    #[serde(with = "rfc3339")]
    pub created: Timestamp,
    /// The runtime handler. Processes are made again by the one that dumped them.
    pub handler: String,
    /// The architecture, as OCI names it (`amd64`, `arm64`).
    pub arch: String,
    /// The containers that were selected.
    pub containers: Vec<PodContainer>,
}

/// A container of a pod's checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodContainer {
    /// Its name in the pod.
    pub name: String,
    /// The ID that it had.
    pub id: String,
    /// Which attempt it was.
    pub attempt: u32,
}

/// Whether a pod may be checkpointed into `output`: an absolute path of an existing, empty directory.
///
/// # Errors
/// [`Error::Location`]; what looking answered.
pub fn check_output(output: &Path) -> Result<(), Error> {
    let bad = |why| Error::Location { path: output.to_owned(), why };
    let plain = output.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !output.is_absolute() || !plain {
        return Err(bad("not an absolute path without . and .."));
    }
    let root = match Root::open(output) {
        Ok(root) => root,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(bad("there is no such directory")),
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => return Err(bad("not a directory")),
        Err(e) => return Err(e.into()),
    };
    if entries(&root, output)?.is_empty() { Ok(()) } else { Err(bad("the directory is not empty")) }
}

/// The capture of the container `name` below `output`.
///
/// # Errors
/// [`Error::Refused`] for a name that can't be a directory's.
pub fn container_dir(output: &Path, name: &str) -> Result<PathBuf, Error> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if name.is_empty() || name.len() > 253 || name.starts_with('.') || !name.bytes().all(plain) {
        return Err(Error::refused(name, "a container's name has only letters, digits, '-', '_' and '.'"));
    }
    Ok(output.join(CONTAINERS).join(name))
}

/// Makes the directories of the containers `names`, each with one for CRIU's images.
///
/// # Errors
/// As [`container_dir`]; what making answered.
pub fn prepare<'a>(output: &Path, names: impl IntoIterator<Item = &'a str>) -> Result<(), Error> {
    make(&output.join(CONTAINERS))?;
    for name in names {
        let dir = container_dir(output, name)?;
        make(&dir)?;
        make(&dir.join(names::IMAGES))?;
    }
    Ok(())
}

/// Syncs everything, then writes the manifest: from then on the checkpoint counts.
///
/// # Errors
/// [`Error::Refused`] for a container without its capture; what syncing or writing answered.
pub fn finish(output: &Path, manifest: &PodManifest) -> Result<(), Error> {
    for container in &manifest.containers {
        intake::Intake::open(&container_dir(output, &container.name)?)?;
    }
    durable::sync_filesystem(output)?;
    let path = output.join(MANIFEST);
    let mut text = serde_json::to_vec_pretty(manifest).map_err(|e| PathError::new("write", &path, e))?;
    text.push(b'\n');
    Ok(durable::write_durable(&path, &text, 0o600)?)
}

/// Removes what a checkpoint of a pod made in `output`, also one that was killed: `checkpoint.json`, its temporary file
/// and `containers`, and nothing else. The manifest goes first.
///
/// # Errors
/// What removing answered; an `output` that isn't there is success.
pub fn remove_partial(output: &Path) -> Result<(), Error> {
    let root = match Root::open(output) {
        Ok(root) => root,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    durable::remove_at(root.as_fd(), MANIFEST.as_ref(), &output.join(MANIFEST))?;
    let temporary = format!(".tmp-{MANIFEST}");
    for name in entries(&root, output)?.iter().filter(|name| name.starts_with(&temporary)) {
        durable::remove_at(root.as_fd(), name.as_ref(), &output.join(name))?;
    }
    Ok(durable::remove_at(root.as_fd(), CONTAINERS.as_ref(), &output.join(CONTAINERS))?)
}

/// A pod's checkpoint that is to be restored. Nothing of it is written to.
#[derive(Debug, Clone)]
pub struct PodCheckpoint {
    dir: PathBuf,
    /// What it holds.
    pub manifest: PodManifest,
}

impl PodCheckpoint {
    /// Looks at the directory `dir`: a manifest of a version that we know, and exactly the containers that it names.
    ///
    /// # Errors
    /// [`Error::NoArchive`], [`Error::Refused`]; what looking answered.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let no_archive = |why| Error::NoArchive { path: dir.to_owned(), why };
        let plain = dir.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        if !dir.is_absolute() || !plain {
            return Err(no_archive("not an absolute path without . and .."));
        }
        let root = Root::open(dir).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => no_archive("there is no such directory"),
            std::io::ErrorKind::NotADirectory => no_archive("not a directory"),
            _ => e.into(),
        })?;
        let json = intake::optional(&root, MANIFEST, MAX_MANIFEST)?;
        let json = json.ok_or_else(|| {
            no_archive("it has no checkpoint.json: no checkpoint, or one that was cut short")
        })?;
        let manifest = parse(&json)?;
        let named: BTreeSet<&str> =
            manifest.containers.iter().map(|container| container.name.as_str()).collect();
        let containers = Root::open(&dir.join(CONTAINERS))?;
        let there = entries(&containers, &dir.join(CONTAINERS))?;
        if named.len() != manifest.containers.len()
            || !there.iter().map(String::as_str).eq(named.iter().copied())
        {
            return Err(Error::refused(MANIFEST, "it names other containers than there are"));
        }
        Ok(Self { dir: dir.to_owned(), manifest })
    }

    /// The capture of a container, for [`crate::copy`].
    ///
    /// # Errors
    /// [`Error::Refused`] for one that the manifest doesn't name.
    pub fn container(&self, name: &str) -> Result<PathBuf, Error> {
        if !self.manifest.containers.iter().any(|container| container.name == name) {
            return Err(Error::refused(name, "the checkpoint has no container of this name"));
        }
        container_dir(&self.dir, name)
    }
}

fn parse(json: &[u8]) -> Result<PodManifest, Error> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let metadata::Object(Version { version }) = metadata::parse(MANIFEST, json, MAX_MANIFEST)?;
    if version != VERSION {
        let why = format!("version {version} of the format, only {VERSION} is known: made by another criox");
        return Err(Error::refused(MANIFEST, why));
    }
    let metadata::Object(manifest): metadata::Object<PodManifest> =
        metadata::parse(MANIFEST, json, MAX_MANIFEST)?;
    if manifest.containers.is_empty() || manifest.containers.len() > MAX_CONTAINERS {
        return Err(Error::refused(MANIFEST, "no containers, or too many"));
    }
    for container in &manifest.containers {
        container_dir(Path::new("/"), &container.name)?;
    }
    Ok(manifest)
}

/// The names in a directory, sorted.
fn entries(root: &Root, shown: &Path) -> Result<BTreeSet<String>, Error> {
    let failed = |e| PathError::new("list", shown, e);
    let fd = root.open_at(Path::new("."), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
    let mut names = BTreeSet::new();
    for entry in Dir::new(fd).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy();
        if !matches!(name.as_ref(), "." | "..") {
            names.insert(name.into_owned());
        }
        if names.len() > MAX_CONTAINERS {
            return Err(Error::refused(shown.display().to_string(), "too many entries"));
        }
    }
    Ok(names)
}

fn make(dir: &Path) -> Result<(), Error> {
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(dir)
        .map_err(|e| PathError::new("make directory", dir, e).into())
}
