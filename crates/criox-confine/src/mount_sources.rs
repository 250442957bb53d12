//! Where the sources of a container's mounts really are, and what the kernel can do with them.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use criox_cri::v1;
use criox_spec::ResolvedMount;
use criox_sys::idmap::{self, IdRange};
use criox_sys::mount::{self, MountInfo};

use crate::error::{Error, Result, chain};

/// What sources are looked for by.
#[derive(Debug)]
pub struct MountSources<'a> {
    /// Where the paths of requests begin, if not at the node's root (`bind_mount_prefix`); an empty one is none.
    pub prefix: Option<&'a Path>,
    /// Sources that are not made when they are not there (`absent_mount_sources_to_reject`).
    pub reject_absent: &'a [PathBuf],
    /// The home of the images and root file systems: a mount that has it below itself is treated apart.
    pub graph_root: &'a Path,
    /// The pin of the pod's own user namespace, if it has one.
    pub user_namespace: Option<&'a Path>,
    /// Whether the kernel can give files other owners at all.
    pub idmapped_mounts: bool,
}

impl MountSources<'_> {
    /// The node's mounts, as far as a container needs to know them: those under which its sources lie tell whether they can
    /// propagate.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn table(&self, container: &v1::ContainerConfig) -> Result<Vec<MountInfo>> {
        let private = v1::MountPropagation::PropagationPrivate;
        match container.mounts.iter().all(|mount| mount.propagation() == private) {
            true => Ok(Vec::new()),
            false => mount::mountinfo().map_err(|error| Error::failed("read of /proc/self/mountinfo", error)),
        }
    }

    /// Where the source of a mount is, `index` among those of the request. One that is not there is made, as CRI-O does,
    /// unless the configuration refuses it.
    ///
    /// # Errors
    /// It is not there or can't be made, with its field.
    pub fn resolve(&self, index: usize, mount: &v1::Mount, table: &[MountInfo]) -> Result<ResolvedMount> {
        let source = self.find(&mount.host_path).map_err(|(reason, cause)| {
            let message = format!("config.mounts[{index}].host_path: {reason}");
            match cause {
                Some(cause) => Error::invalid_because(message, cause),
                None => Error::invalid(message),
            }
        })?;
        let is_dir = fs::metadata(&source).is_ok_and(|metadata| metadata.is_dir());
        let below = table
            .iter()
            .filter(|entry| source.starts_with(&entry.mount_point))
            .max_by_key(|entry| entry.mount_point.as_os_str().len());
        Ok(ResolvedMount {
            is_dir,
            shared: below.is_some_and(MountInfo::is_shared),
            slave: below.is_some_and(MountInfo::is_slave),
            idmappable: self.is_idmappable(mount, &source)?,
            contains_graph_root: self.graph_root.starts_with(&source),
            source: source.to_string_lossy().into_owned(),
            image_id: String::new(),
        })
    }

    fn find(&self, host_path: &str) -> std::result::Result<PathBuf, (String, Option<io::Error>)> {
        if !host_path.starts_with('/') {
            return Err((format!("{host_path:?} is not an absolute path"), None));
        }
        let path = match self.prefix.filter(|prefix| !prefix.as_os_str().is_empty()) {
            Some(prefix) => prefix.join(host_path.trim_start_matches('/')),
            None => PathBuf::from(host_path),
        };
        match fs::canonicalize(&path) {
            Ok(source) => Ok(source),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if self.reject_absent.contains(&path) {
                    return Err((format!("{} does not exist", path.display()), None));
                }
                fs::create_dir_all(&path)
                    .and_then(|()| fs::canonicalize(&path))
                    .map_err(|error| (format!("{} could not be made", path.display()), Some(error)))
            }
            Err(error) => Err((format!("{} can't be had", path.display()), Some(error))),
        }
    }

    /// Whether a mount that asks for other owners can have them, by trying with a copy that is mounted nowhere.
    fn is_idmappable(&self, mount: &v1::Mount, source: &Path) -> Result<bool> {
        if mount.uid_mappings.is_empty() || !self.idmapped_mounts {
            return Ok(false);
        }
        let owners = match self.user_namespace {
            Some(pin) => open_user_namespace(pin)?,
            // Which mapping it is makes no difference to a file system.
            None => {
                let any = [IdRange { inside: 0, host: 65_536, length: 65_536 }];
                idmap::user_namespace(&any, &any)
                    .map_err(|error| Error::failed("trial of an idmapped mount", error))?
            }
        };
        match idmap::clone_mapped(source, owners.as_fd(), false, false) {
            Ok(_) => Ok(true),
            Err(error) => {
                tracing::debug!(source = %source.display(), error = chain(&error), "can't be idmapped");
                Ok(false)
            }
        }
    }
}

/// The user namespace that a file pins.
///
/// # Errors
/// There is none.
pub fn open_user_namespace(pin: &Path) -> Result<OwnedFd> {
    let file = File::open(pin);
    file.map(OwnedFd::from).map_err(|error| Error::failed(format!("user namespace {}", pin.display()), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources<'a>(prefix: &'a Path, reject_absent: &'a [PathBuf]) -> MountSources<'a> {
        MountSources {
            prefix: Some(prefix),
            reject_absent,
            graph_root: Path::new("/var/lib/containers/storage"),
            user_namespace: None,
            idmapped_mounts: false,
        }
    }

    fn mount(host_path: &str) -> v1::Mount {
        v1::Mount { host_path: host_path.to_owned(), ..Default::default() }
    }

    #[test]
    fn a_source_that_is_not_there_is_made_unless_the_configuration_refuses_it() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let root = fs::canonicalize(directory.path()).expect("it is there");
        let refused = [root.join("etc/hostname")];
        let sources = sources(&root, &refused);
        let made = sources.resolve(0, &mount("/data/new"), &[]).expect("it is made");
        assert_eq!((Path::new(&made.source), made.is_dir), (root.join("data/new").as_path(), true));
        let error = sources.resolve(3, &mount("/etc/hostname"), &[]).expect_err("refused");
        assert!(error.to_string().starts_with("config.mounts[3].host_path: "), "{error}");
        assert!(!refused[0].exists());
        let error = sources.resolve(1, &mount("data"), &[]).expect_err("relative");
        assert!(matches!(error, Error::Invalid { .. }), "{error:?}");
    }

    #[test]
    fn a_link_is_followed_to_where_the_source_really_is() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let root = fs::canonicalize(directory.path()).expect("it is there");
        fs::create_dir(root.join("real")).expect("it is new");
        std::os::unix::fs::symlink(root.join("real"), root.join("link")).expect("it is new");
        let found = sources(&root, &[]).resolve(0, &mount("/link"), &[]).expect("it is there");
        assert_eq!(Path::new(&found.source), root.join("real"));
    }

    #[test]
    fn a_mount_above_the_graph_root_is_known_as_such() {
        let sources = MountSources { prefix: None, ..sources(Path::new(""), &[]) };
        assert!(sources.resolve(0, &mount("/"), &[]).expect("it is there").contains_graph_root);
        assert!(!sources.resolve(0, &mount("/proc"), &[]).expect("it is there").contains_graph_root);
    }
}
