//! A container's root file system as directories, and a tar stream laid over it: how a checkpoint's changes are found and
//! put back.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use criox_sys::idmap::IdRange;
use criox_sys::inroot::Root;

use crate::error::Error;
use crate::store::Store;
use crate::tar::Reader;
use crate::unpack::{Extractor, Ground, LimitReached, UnpackLimits};

/// What a container's root file system is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootDirs {
    /// What the container changed, in overlay's form.
    pub upper: PathBuf,
    /// What it started from, top first.
    pub lowers: Vec<PathBuf>,
    /// Where both are mounted as one.
    pub merged: PathBuf,
}

impl Store {
    /// The directories of a container's root. `merged` is mounted only between [`Store::mount`] and
    /// [`Store::unmount`].
    ///
    /// # Errors
    /// [`Error::ContainerUnknown`], [`Error::Corrupt`].
    pub fn root_dirs(&self, id: &str) -> Result<RootDirs, Error> {
        let layer = &self.container(id)?.layer;
        let overlay = &self.shared.overlay;
        let resolve = |lower: PathBuf| {
            std::fs::canonicalize(&lower)
                .map_err(|e| criox_sys::durable::PathError::new("resolve", lower, e).into())
        };
        Ok(RootDirs {
            upper: overlay.diff_dir(layer),
            // The links below `l` are resolved by hand: a root is never opened through one.
            lowers: overlay.lowers(layer)?.into_iter().map(resolve).collect::<Result<_, Error>>()?,
            merged: overlay.merged_dir(layer),
        })
    }
}

/// Lays an uncompressed tar stream over the directory `root`, a container's root file system as it sees it: what is there
/// is replaced, names that look like whiteouts are names, and owners are those in the container, whose user namespace has
/// the ranges `users` and `groups` (empty without one). The stream is as hostile as a layer's, and the same rules hold
/// for it: nothing leads out of the root. How many members there were.
///
/// # Errors
/// As [`crate::LayerStage::unpack`]. What was made stays.
pub fn lay_over(
    stream: impl Read,
    root: &Path,
    users: &[IdRange],
    groups: &[IdRange],
    limits: &UnpackLimits,
) -> Result<u64, Error> {
    let mut reader = Reader::new(Limited { input: stream, count: 0, limit: limits.max_bytes }, ());
    let mut extractor = Extractor::new(Root::open(root)?, limits, Ground::Mounted { users, groups });
    extractor.run(&mut reader, Path::new("stream"))?;
    Ok(extractor.entries)
}

struct Limited<R> {
    input: R,
    count: u64,
    limit: u64,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.count += count as u64;
        if self.count > self.limit {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, LimitReached(self.limit)));
        }
        Ok(count)
    }
}
