//! What a container had changed in its root file system is laid over a new one.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd as _;
use std::path::{Component, Path, PathBuf};

use criox_store::UnpackLimits;
use criox_sys::durable::{self, PathError};
use criox_sys::idmap::IdRange;
use criox_sys::inroot::Root;
use serde::Deserializer;

use crate::cancel::Cancel;
use crate::error::Error;
use crate::intake;
use crate::metadata;
use crate::names;
use crate::receive::open_regular;

/// Longest `deleted.files`, in bytes, and most paths in it.
pub(crate) const MAX_DELETED: u64 = 32 << 20;
pub(crate) const MAX_PATHS: usize = 1_000_000;

/// Where changes go.
#[derive(Debug, Clone, Copy)]
pub struct ApplyChanges<'a> {
    /// The new container's root file system, mounted.
    pub root: &'a Path,
    /// The user namespace's users; empty without one.
    pub users: &'a [IdRange],
    /// The user namespace's groups.
    pub groups: &'a [IdRange],
    /// Bytes that stay free.
    pub reserve: u64,
}

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Applied {
    /// Files, directories and so on that were laid over the root.
    pub entries: u64,
    /// Paths that were removed.
    pub deleted: u64,
}

impl ApplyChanges<'_> {
    /// Removes what `deleted.files` in the intake `dir` lists, then lays `rootfs-diff.tar` over the root. Either may be
    /// missing. All of it stays inside the root whatever the files say, and set-ID bits, attributes and devices are as
    /// those of an image's layer.
    ///
    /// CRI-O does it in the other order, and so loses a directory that was removed and made again, which its archives
    /// list as deleted.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Store`] (`Content`) for malformed files; [`Error::Cancelled`]; what changing the root
    /// answered. What was done stays: the container has to be removed.
    pub fn apply(&self, dir: &Path, cancel: &Cancel) -> Result<Applied, Error> {
        let intake = Root::open(dir)?;
        let mut applied = Applied::default();
        if let Some(json) = intake::optional(&intake, names::DELETED_FILES, MAX_DELETED)? {
            applied.deleted = self.remove(&parse_deleted(&json)?, cancel)?;
        }
        let diff = dir.join(names::ROOT_DIFF);
        let tar = match open_regular(intake.as_fd(), names::ROOT_DIFF.as_ref()) {
            Ok(Some(tar)) => tar,
            Ok(None) => return Err(Error::refused(names::ROOT_DIFF, "not a regular file")),
            Err(rustix::io::Errno::NOENT) => return Ok(applied),
            Err(e) => return Err(PathError::new("open", diff, e).into()),
        };
        let limits = UnpackLimits { reserve_bytes: self.reserve, ..UnpackLimits::default() };
        let stream = Stream { tar, cancel };
        let laid = criox_store::lay_over(stream, self.root, self.users, self.groups, &limits);
        applied.entries = laid.map_err(|error| {
            if cancel.is_cancelled() {
                Error::Cancelled { step: "lay changes over a root file system" }
            } else {
                Error::Store(error)
            }
        })?;
        Ok(applied)
    }

    fn remove(&self, paths: &[PathBuf], cancel: &Cancel) -> Result<u64, Error> {
        let root = Root::open(self.root)?;
        let mut removed = 0;
        for path in paths {
            cancel.check("remove deleted files")?;
            let (dir, name) = match root.parent(path) {
                Ok(found) => found,
                // A path that isn't there is deleted.
                Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                    continue;
                }
                Err(e) => return Err(e.into()),
            };
            durable::remove_at(dir.as_fd(), name, &self.root.join(path))?;
            removed += 1;
        }
        Ok(removed)
    }
}

/// The archive's bytes, until the work is called off.
struct Stream<'a> {
    tar: File,
    cancel: &'a Cancel,
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("called off"));
        }
        self.tar.read(buffer)
    }
}

/// The paths of `deleted.files`, relative to the root.
pub(crate) fn parse_deleted(json: &[u8]) -> Result<Vec<PathBuf>, Error> {
    let Deleted(paths) = metadata::parse(names::DELETED_FILES, json, MAX_DELETED)?;
    let relative = |path: &String| {
        let path = Path::new(path);
        let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        let relative: PathBuf = path.components().filter(|part| *part != Component::RootDir).collect();
        (plain && relative.components().next().is_some() && !path.as_os_str().as_encoded_bytes().contains(&0))
            .then_some(relative)
    };
    paths
        .iter()
        .map(|path| {
            relative(path)
                .ok_or_else(|| Error::refused(names::DELETED_FILES, "a path that leads out, or none"))
        })
        .collect()
}

/// At most [`MAX_PATHS`] texts: a list of empty ones takes eight times the memory of its JSON.
struct Deleted(Vec<String>);

impl<'de> serde::Deserialize<'de> for Deleted {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        metadata::list::<D, String, MAX_PATHS>(from).map(Self)
    }
}
