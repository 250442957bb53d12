//! Where a checkpoint may be written: the caller names it, and it must be nothing of ours.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::context::Context;
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
fn foreign(context: &Context, field: &str, path: &Path) -> Result<()> {
    let roots = [context.store.graph_root(), context.store.options().run_root.as_path()];
    let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let path = real(path);
    match roots.iter().find(|root| path.starts_with(real(root))) {
        Some(root) => Err(Error::invalid(
            field,
            format!("{} lies in {}, which is criox's own", path.display(), root.display()),
        )),
        None => Ok(()),
    }
}

/// The file of an archive: a new one, or a regular one that it takes the place of.
///
/// # Errors
/// The field, and what is wrong with it.
pub(super) fn archive(context: &Context, location: &str) -> Result<PathBuf> {
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
    foreign(context, FIELD, parent)?;
    Ok(path)
}

/// A directory of the caller's, told from another that takes its place.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) path: PathBuf,
    pub(super) device: u64,
    pub(super) inode: u64,
}

/// The empty directory for a pod's checkpoint.
///
/// # Errors
/// The field, and what is wrong with it.
pub(super) fn output(context: &Context, path: &str) -> Result<Output> {
    const FIELD: &str = "output_path";
    let path = plain(FIELD, path)?;
    let refused = |reason: &str| Error::invalid(FIELD, format!("{} {reason}", path.display()));
    let directory = open_directory(&path).map_err(|error| refused("is not a directory").because(error))?;
    let metadata = directory.metadata().map_err(|error| refused("can't be looked at").because(error))?;
    foreign(context, FIELD, &path)?;
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
pub(super) fn input(path: &str) -> Result<PathBuf> {
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

/// Refuses options: none is known.
///
/// # Errors
/// The first that is there.
pub(super) fn no_options<'a>(options: impl IntoIterator<Item = &'a String>) -> Result<()> {
    match options.into_iter().min() {
        Some(key) => {
            let key: String = key.chars().take(64).collect();
            Err(Error::invalid("options", format!("{key:?} is not known; there are none")))
        }
        None => Ok(()),
    }
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

    #[test]
    fn an_option_is_refused_by_its_name() {
        let options = std::collections::HashMap::from([("leave-stopped".to_owned(), "1".to_owned())]);
        let error = no_options(options.keys()).expect_err("unknown");
        assert_eq!(error.to_string(), "options: \"leave-stopped\" is not known; there are none");
        assert!(no_options([]).is_ok());
    }
}
