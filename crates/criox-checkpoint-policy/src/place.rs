//! Where a checkpoint may be written: the caller names it, and it must be nothing of ours.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::error::{Error, Result};

/// An absolute path without detours.
fn plain(field: &str, path: &str) -> Result<PathBuf> {
    let refused = |reason: &str| Err(Error::invalid(field, format!("{path:?} {reason}")));
    if path.is_empty() {
        return Err(Error::invalid(field, "must not be empty"));
    }
    if path.contains('\0') {
        return refused("contains a NUL byte");
    }
    if !path.starts_with('/') {
        return refused("is not an absolute path");
    }
    let parts = Path::new(path).components();
    if parts.clone().any(|part| matches!(part, Component::ParentDir)) {
        return refused("contains \"..\"");
    }
    Ok(parts.collect())
}

/// Refuses what lies among the files of images, containers and pods.
fn foreign(own: &[&Path], field: &str, path: &Path) -> Result<()> {
    let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let path = real(path);
    match own.iter().find(|root| path.starts_with(real(root))) {
        Some(root) => Err(Error::invalid(
            field,
            format!("{} lies in {}, which is criox's own", path.display(), root.display()),
        )),
        None => Ok(()),
    }
}

/// The file of an archive: a new one, or a regular one that it takes the place of. It lies in none of our `own` directories.
///
/// # Errors
/// The field, and what is wrong with it.
pub fn archive(own: &[&Path], location: &str) -> Result<PathBuf> {
    const FIELD: &str = "location";
    let path = plain(FIELD, location)?;
    let (Some(parent), Some(_)) = (path.parent(), path.file_name()) else {
        return Err(Error::invalid(FIELD, format!("{location:?} is not the path of a file")));
    };
    if location.ends_with('/') {
        return Err(Error::invalid(FIELD, format!("{location:?} is the path of a directory")));
    }
    let refused = |error: io::Error| {
        Error::invalid(FIELD, format!("{} is not a directory that can be written to", parent.display()))
            .because(error)
    };
    if !fs::metadata(parent).map_err(refused)?.is_dir() {
        return Err(refused(io::ErrorKind::NotADirectory.into()));
    }
    match fs::symlink_metadata(&path) {
        Ok(file) if !file.is_file() => {
            return Err(Error::invalid(FIELD, format!("{location:?} is there and is not a regular file")));
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            return Err(Error::invalid(FIELD, format!("{location:?} can't be looked at")).because(error));
        }
    }
    foreign(own, FIELD, parent)?;
    Ok(path)
}

/// A directory of the caller's, told from another that takes its place.
#[derive(Debug, Clone)]
pub struct Output {
    /// Where it is.
    pub path: PathBuf,
    /// The device that it is on.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
}

/// The empty directory for a pod's checkpoint, in none of our `own`.
///
/// # Errors
/// The field, and what is wrong with it.
pub fn output(own: &[&Path], path: &str) -> Result<Output> {
    const FIELD: &str = "output_path";
    let path = plain(FIELD, path)?;
    let refused = |reason: &str| Error::invalid(FIELD, format!("{} {reason}", path.display()));
    let directory = open_directory(&path).map_err(|error| refused("is not a directory").because(error))?;
    let metadata = directory.metadata().map_err(|error| refused("can't be looked at").because(error))?;
    foreign(own, FIELD, &path)?;
    let mut entries = fs::read_dir(&path).map_err(|error| refused("can't be read").because(error))?;
    if entries.next().is_some() {
        return Err(refused("is not empty"));
    }
    Ok(Output { device: metadata.dev(), inode: metadata.ino(), path })
}

/// The directory that a pod's checkpoint is read from.
///
/// # Errors
/// The field, and what is wrong with it.
pub fn input(path: &str) -> Result<PathBuf> {
    const FIELD: &str = "checkpoint_path";
    let path = plain(FIELD, path)?;
    match open_directory(&path) {
        Ok(_) => Ok(path),
        Err(error) => {
            Err(Error::invalid(FIELD, format!("{} is not a directory", path.display())).because(error))
        }
    }
}

/// The last part is no link.
fn open_directory(path: &Path) -> io::Result<File> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::open(path, flags, Mode::empty())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_absolute_paths_without_detours_are_taken() {
        for bad in ["", "a/b", "./a", "/a/../b", "/..", "/a\0b"] {
            let error = plain("location", bad).expect_err(bad);
            assert!(error.to_string().starts_with("location: "), "{error}");
        }
        assert_eq!(plain("x", "/a//b/./c/").ok(), Some("/a/b/c".into()));
    }
}
