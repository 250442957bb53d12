//! Staging: layers are unpacked beside the store proper, with a lock that tells everybody that somebody works there.

use std::io::Read;
use std::path::{Path, PathBuf};

use criox_sys::durable::{self, PathError};
use criox_sys::lock::HeldLock;
use criox_sys::mount;

use crate::digest::Digest;
use crate::error::Error;
use crate::overlay::Overlay;
use crate::store::Store;
use crate::unpack::{self, UnpackLimits};

/// A directory below the driver's `staging`, locked as long as this lives and removed with it. The peers and we take
/// such a directory for abandoned when its `staging.lock` is free.
#[derive(Debug)]
pub(crate) struct StagingDir {
    path: PathBuf,
    _lock: HeldLock,
}

impl StagingDir {
    pub(crate) fn new(overlay: &Overlay) -> Result<Self, Error> {
        let staging = overlay.staging();
        for _ in 0..100 {
            let path = staging.join(crate::digest::hex(&durable::random_bytes::<8>()));
            match std::fs::create_dir(&path) {
                Ok(()) => {}
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => continue,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    overlay.make_home()?;
                    continue;
                }
                Err(e) => return Err(PathError::new("make directory", path, e).into()),
            }
            // A sweeper may come between the directory and its lock; then it has removed both, and we try again.
            if let Ok(Some(lock)) = HeldLock::try_new(&path.join("staging.lock"))
                && lock.is_current()?
            {
                return Ok(Self { path, _lock: lock });
            }
            durable::remove_tree(&path)?;
        }
        Err(Error::Corrupt {
            what: staging.display().to_string(),
            why: "a sweeper removes all staging areas".into(),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Where the trial of idmapped mounts ([`Store::probe_idmap`]) mounts something in a staging area, the last first.
pub(crate) const TRIAL_MOUNTS: [&str; 2] = ["merged", "mapped"];

/// Removes a staging area, with the mounts that a trial which was cut short has left in it.
pub(crate) fn remove_area(path: &Path) -> Result<(), Error> {
    for name in TRIAL_MOUNTS {
        mount::unmount(&path.join(name), true)?;
    }
    Ok(durable::remove_tree(path)?)
}

impl Drop for StagingDir {
    fn drop(&mut self) {
        if let Err(error) = remove_area(&self.path) {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "staging area stays until the store is opened again"
            );
        }
    }
}

/// What a layer's stream turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    /// Digest of the uncompressed stream.
    pub diff_id: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Entries, for the count of inodes.
    pub entries: u64,
    /// User IDs of the entries, sorted.
    pub uids: Vec<u32>,
    /// Group IDs of the entries, sorted.
    pub gids: Vec<u32>,
    /// The stream set mode and owner of the root itself.
    pub(crate) keep_root: bool,
}

/// A layer in the making. Dropping it removes what was unpacked.
#[derive(Debug)]
pub struct LayerStage {
    pub(crate) dir: StagingDir,
    /// Beside its place to be: the driver's home is a mount of its own, into which nothing can be renamed from there.
    tar_split: PathBuf,
    pub(crate) unpacked: Option<Unpacked>,
}

/// The name of a staged tar-split: a staging area's, so that a sweep can tell whose it is.
pub(crate) fn staged_tar_split(stage: &str) -> String {
    format!("{STAGED}{stage}")
}

/// The staging area that a file in the layers' directory belongs to, if it is a staged tar-split.
pub(crate) fn stage_of(file: &str) -> Option<&str> {
    file.strip_prefix(STAGED)
}

const STAGED: &str = ".staged-tar-split-";

impl Drop for LayerStage {
    fn drop(&mut self) {
        // It goes before its staging area does; committed, it is gone already.
        let _ = durable::remove_tree(&self.tar_split);
    }
}

impl Store {
    /// Opens a staging area for one layer.
    ///
    /// # Errors
    /// What making it answered.
    pub fn stage_layer(&self) -> Result<LayerStage, Error> {
        let dir = StagingDir::new(&self.shared.overlay)?;
        let name = dir.path().file_name().unwrap_or_default().to_string_lossy();
        let tar_split = self.layers_dir().join(staged_tar_split(&name));
        Ok(LayerStage { dir, tar_split, unpacked: None })
    }
}

impl LayerStage {
    /// Unpacks an uncompressed tar stream, hashing it and writing its tar-split on the way. Reads to the end of the
    /// stream. Nothing is synced yet. A second call starts over.
    ///
    /// # Errors
    /// [`Error::Input`] when reading fails; [`Error::Content`] when the stream is malformed, exceeds a limit or can't
    /// be stored; [`Error::File`] when writing fails.
    pub fn unpack(&mut self, stream: impl Read, limits: &UnpackLimits) -> Result<Unpacked, Error> {
        self.unpacked = None;
        durable::remove_tree(&self.content())?;
        durable::remove_tree(&self.tar_split)?;
        let unpacked = unpack::unpack(stream, &self.content(), &self.tar_split, limits)?;
        self.unpacked = Some(unpacked.clone());
        Ok(unpacked)
    }

    pub(crate) fn content(&self) -> PathBuf {
        self.dir.path().join("dir")
    }

    pub(crate) fn tar_split(&self) -> &Path {
        &self.tar_split
    }
}
