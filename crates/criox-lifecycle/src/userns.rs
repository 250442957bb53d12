//! A pod's own user namespace: its mappings, and a way for its root to the root file systems of its containers.
//!
//! The graph root and the run root are for the node's root alone, and so they stay. A runtime in the pod's user namespace
//! is none: to it a container's root is bound once more below a directory that only the pod's root may pass.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use criox_cri::v1;
use criox_monitor_api::proto;
use criox_spec::oci;
use criox_sys::idmap::{IdRange, to_host};
use criox_sys::mount;

use crate::context::Context;
use crate::error::{Error, Kind, Result};
use crate::paths::{Namespace, Paths};

/// The field that asks for it.
pub(crate) const FIELD: &str = "config.linux.security_context.namespace_options.userns_options";

/// The mappings of a pod's user namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Users {
    pub(crate) users: Vec<IdRange>,
    pub(crate) groups: Vec<IdRange>,
}

impl Users {
    /// Those that a sandbox asks for; none for the node's users. What can't be has been refused when it was made.
    pub(crate) fn of(sandbox: &v1::PodSandboxConfig) -> Option<Self> {
        let asked = criox_spec::sandbox_namespaces(sandbox).ok()?.user?;
        let ranges = |list: &[oci::IdMapping]| list.iter().map(range).collect();
        Some(Self { users: ranges(&asked.uids), groups: ranges(&asked.gids) })
    }

    /// User and group of the node that are root of the pod.
    pub(crate) fn root(&self) -> (u32, u32) {
        // Both map 0, or the sandbox would have been refused.
        (to_host(&self.users, 0).unwrap_or(0), to_host(&self.groups, 0).unwrap_or(0))
    }

    /// A user and a group of the pod as the node numbers them; those that it does not have are the pod's root.
    pub(crate) fn outside(&self, user: u32, group: u32) -> (u32, u32) {
        let root = self.root();
        (to_host(&self.users, user).unwrap_or(root.0), to_host(&self.groups, group).unwrap_or(root.1))
    }

    /// The highest group that the pod has.
    pub(crate) fn last_group(&self) -> u32 {
        self.groups.iter().map(|range| range.inside + (range.length - 1)).max().unwrap_or(0)
    }
}

fn range(mapping: &oci::IdMapping) -> IdRange {
    IdRange { inside: mapping.container_id, host: mapping.host_id, length: mapping.size }
}

/// As the specification has it.
pub(crate) fn to_oci(ranges: &[IdRange]) -> Vec<oci::IdMapping> {
    ranges
        .iter()
        .map(|range| oci::IdMapping { container_id: range.inside, host_id: range.host, size: range.length })
        .collect()
}

/// As the monitor has it.
pub(crate) fn to_monitor(ranges: &[IdRange]) -> Vec<proto::IdMap> {
    ranges
        .iter()
        .map(|range| proto::IdMap { container_id: range.inside, host_id: range.host, length: range.length })
        .collect()
}

/// Refuses a user namespace that the node or the handler can't give, before anything is made.
///
/// # Errors
/// Who can't, and what to do.
pub(crate) async fn possible(context: &Context, sandbox: &v1::PodSandboxConfig, handler: &str) -> Result<()> {
    if Users::of(sandbox).is_none() {
        return Ok(());
    }
    let refused = |reason: String| {
        Err(Error::new(Kind::FailedPrecondition, format!("{FIELD}: {reason}; or set hostUsers: true")))
    };
    if !context.node.idmapped_mounts {
        return refused(format!(
            "the kernel, or the file system of {}, can't give files other owners (idmapped mounts); it takes Linux 5.19 or newer and a file system such as ext4, XFS or btrfs",
            context.store.graph_root().display()
        ));
    }
    let handler = context.handlers.get(handler)?;
    if !handler.features().await.idmapped_mounts {
        return refused(format!(
            "the program of runtime handler {:?} does not say that it makes idmapped mounts; use crun 1.9 or newer, or runc 1.2 or newer",
            handler.name
        ));
    }
    Ok(())
}

/// The pod's user namespace itself.
pub(crate) fn open(context: &Context, sandbox: &str) -> Result<OwnedFd> {
    let path = context.paths.namespace(Namespace::User, sandbox);
    let file = File::open(&path);
    file.map(OwnedFd::from)
        .map_err(|error| Error::failed(format!("user namespace {}", path.display())).because(error))
}

/// Binds a container's root where the pod's root can reach it; that path.
///
/// # Errors
/// The step that failed. [`withdraw`] undoes all of it.
pub(crate) fn expose(context: &Context, container: &str, users: &Users, merged: &Path) -> Result<PathBuf> {
    let failed = |path: &Path| {
        let text = format!("way to the root file system of container {container}: {}", path.display());
        move |error: io::Error| Error::failed(text).because(error)
    };
    let way = context.paths.way(container);
    let all = context.paths.ways();
    let directory = |path: &Path, mode: u32| match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed(path)(error)),
        // Whatever the umask.
        _ => fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed(path)),
    };
    directory(&all, 0o711)?;
    let parents = all.ancestors().skip(1);
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

/// The name of the mount point below a container's directory.
const ROOT: &str = "root";

/// Lets others search a directory that they may not, as CRI-O does: they learn no name of what is in it.
fn let_pass(path: &Path) -> io::Result<()> {
    let mode = fs::metadata(path)?.permissions().mode();
    if mode & 0o001 != 0 {
        return Ok(());
    }
    tracing::info!(path = %path.display(), "letting pods with user namespaces pass this directory (o+x)");
    fs::set_permissions(path, Permissions::from_mode((mode & 0o7777) | 0o011))
}

/// Undoes [`expose`], however far it came; needs only the ID.
pub(crate) fn withdraw(paths: &Paths, container: &str) -> Result<()> {
    let way = paths.way(container);
    let root = way.join(ROOT);
    if is_mounted(&root)? {
        mount::unmount(&root, true)
            .map_err(|error| Error::failed(format!("unmount of {}", root.display())).because(error))?;
    }
    for path in [&root, &way] {
        match fs::remove_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::failed(format!("removal of {}", path.display())).because(error));
            }
            _ => {}
        }
    }
    Ok(())
}

fn is_mounted(path: &Path) -> Result<bool> {
    mount::is_mount_point(path)
        .map_err(|error| Error::failed(format!("look at {}", path.display())).because(error))
}

/// Withdraws what belongs to no container of the store any more.
pub(crate) fn sweep(context: &Context) {
    let entries = fs::read_dir(context.paths.ways()).into_iter().flatten().flatten();
    for name in entries.filter_map(|entry| entry.file_name().into_string().ok()) {
        let unknown = context.store.container(&name).is_err_and(|error| error.is_unknown());
        if unknown && let Err(error) = withdraw(&context.paths, &name) {
            tracing::warn!(
                container = name,
                error = error.chain(),
                "the way to a removed container's root stays"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users() -> Users {
        let map = |host| {
            vec![
                IdRange { inside: 0, host, length: 1000 },
                IdRange { inside: 5000, host: host + 5000, length: 10 },
            ]
        };
        Users { users: map(100_000), groups: map(200_000) }
    }

    #[test]
    fn the_pods_users_are_others_on_the_node() {
        assert_eq!(users().root(), (100_000, 200_000));
        assert_eq!(users().outside(7, 5001), (100_007, 205_001));
        assert_eq!(users().outside(1000, 6000), users().root());
        assert_eq!(users().last_group(), 5009);
    }

    #[test]
    fn a_pod_without_mappings_has_the_nodes_users() {
        assert_eq!(Users::of(&v1::PodSandboxConfig::default()), None);
    }
}
