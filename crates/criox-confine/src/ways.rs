//! A way for a pod's root to the root file systems of its containers, where the pod has a user namespace of its own.
//!
//! The graph root and the run root are for the node's root alone, and so they stay. A runtime in the pod's user namespace
//! is none: to it a container's root is bound once more below a directory that only the pod's root may pass.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use criox_sys::mount;

use crate::error::{Error, Result};
use crate::userns::Users;

/// The name of the mount point below a container's directory.
const ROOT: &str = "root";

/// The directory of all ways, each named by its container's ID.
#[derive(Debug, Clone)]
pub struct Ways(PathBuf);

impl Ways {
    /// In a directory of their own, which is made when it is needed, on a file system that a reboot empties.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self(directory.into())
    }

    /// Binds a container's root where the pod's root can reach it; that path.
    ///
    /// # Errors
    /// The step that failed. [`Ways::withdraw`] undoes all of it.
    pub fn expose(&self, container: &str, users: &Users, merged: &Path) -> Result<PathBuf> {
        let failed = |path: &Path| {
            let text = format!("way to the root file system of container {container}: {}", path.display());
            move |error: io::Error| Error::failed(text, error)
        };
        let way = self.0.join(container);
        let directory = |path: &Path, mode: u32| match DirBuilder::new().mode(mode).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed(path)(error)),
            // Whatever the umask.
            _ => fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed(path)),
        };
        directory(&self.0, 0o711)?;
        let parents = self.0.ancestors().skip(1);
        parents
            .filter(|path| !path.as_os_str().is_empty())
            .try_for_each(|path| let_pass(path).map_err(failed(path)))?;
        directory(&way, 0o110)?;
        let (user, group) = users.root();
        std::os::unix::fs::chown(&way, Some(user), Some(group)).map_err(failed(&way))?;
        let root = way.join(ROOT);
        directory(&root, 0o700)?;
        if !is_mounted(&root)? {
            mount::bind_private(merged, &root).map_err(|error| failed(&root)(io::Error::other(error)))?;
        }
        Ok(root)
    }

    /// Undoes [`Ways::expose`], however far it came; needs only the ID.
    ///
    /// # Errors
    /// It is still in use, or the kernel refuses.
    pub fn withdraw(&self, container: &str) -> Result<()> {
        let way = self.0.join(container);
        let root = way.join(ROOT);
        if is_mounted(&root)? {
            mount::unmount(&root, true)
                .map_err(|error| Error::failed(format!("unmount of {}", root.display()), error))?;
        }
        for path in [&root, &way] {
            match fs::remove_dir(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::failed(format!("removal of {}", path.display()), error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The containers that have one.
    pub fn containers(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }
}

/// Lets others search a directory that they may not, as CRI-O does: they learn no name of what is in it.
fn let_pass(path: &Path) -> io::Result<()> {
    let mode = fs::metadata(path)?.permissions().mode();
    if mode & 0o001 != 0 {
        return Ok(());
    }
    tracing::info!(path = %path.display(), "letting pods with user namespaces pass this directory (o+x)");
    fs::set_permissions(path, Permissions::from_mode((mode & 0o7777) | 0o011))
}

fn is_mounted(path: &Path) -> Result<bool> {
    mount::is_mount_point(path).map_err(|error| Error::failed(format!("look at {}", path.display()), error))
}
