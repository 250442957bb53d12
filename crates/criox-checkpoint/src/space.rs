//! Space: a checkpoint holds all of a container's memory, and must not fill the node's disk (CVE-2025-0426).

use std::path::Path;

use criox_sys::durable::PathError;

use crate::error::Error;

/// Bytes that stay free on a file system unless the caller says otherwise, as with layers.
pub const RESERVE: u64 = 64 << 20;

/// How many bytes an unprivileged process could still write at `path`.
///
/// # Errors
/// What statvfs(3) answered.
pub fn free(path: &Path) -> Result<u64, Error> {
    let space = rustix::fs::statvfs(path).map_err(|e| PathError::new("look at the space of", path, e))?;
    Ok(space.f_bavail.saturating_mul(space.f_frsize))
}

/// Whether `needed` bytes fit at `path` beside the `reserve`.
///
/// # Errors
/// [`Error::NoSpace`]; what looking answered.
pub fn check(path: &Path, needed: u64, reserve: u64) -> Result<(), Error> {
    let free = free(path)?;
    if free < needed.saturating_add(reserve) {
        return Err(Error::NoSpace { path: path.to_owned(), needed, reserve, free });
    }
    Ok(())
}

/// Looks at the free space now and then while something of unknown length is written.
#[derive(Debug)]
pub(crate) struct Watch<'a> {
    path: &'a Path,
    reserve: u64,
    unchecked: u64,
}

/// How often, in bytes.
const EVERY: u64 = 64 << 20;

impl<'a> Watch<'a> {
    pub(crate) fn new(path: &'a Path, reserve: u64) -> Self {
        Self { path, reserve, unchecked: EVERY }
    }

    /// Counts what is about to be written.
    ///
    /// # Errors
    /// As [`check`].
    pub(crate) fn count(&mut self, bytes: u64) -> Result<(), Error> {
        self.unchecked = self.unchecked.saturating_add(bytes);
        if self.unchecked < EVERY {
            return Ok(());
        }
        self.unchecked = 0;
        check(self.path, bytes, self.reserve)
    }
}
