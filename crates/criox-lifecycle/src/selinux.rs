//! SELinux: the policy's labels, a level of its own for each pod, and the labelling of volumes.
//!
//! In effect where the kernel enforces or reports by SELinux and the configuration does not turn it off. What a label
//! is made of is `criox-spec`'s; here is what needs the node.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use criox_cri::ids::SandboxId;
use criox_cri::v1;
use criox_spec::{MCS_LEVELS, SelinuxLabels};
use criox_sys::{durable, lsm, xattr};
use rustix::fs::{CWD, Dir, FileType, Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
use crate::status;

/// The attribute that holds a file's label.
const ATTRIBUTE: &str = "security.selinux";
/// Directories below directories of a volume.
const DEPTH: usize = 1000;
/// What a volume with `selinux_relabel` must never be: labelling it would take it from everything else on the node.
const SYSTEM: [&str; 28] = [
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/etc/kubernetes",
    "/etc/passwd",
    "/etc/pki",
    "/etc/shadow",
    "/home",
    "/lib",
    "/lib64",
    "/media",
    "/mnt",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/srv",
    "/sys",
    "/tmp",
    "/usr",
    "/usr/bin",
    "/usr/sbin",
    "/var",
    "/var/lib",
    "/var/log",
];
/// Trees of which nothing may be labelled at all.
const SYSTEM_TREES: [&str; 4] = ["/boot", "/dev", "/proc", "/sys"];

/// Labels of a pod, as its record keeps them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Labels {
    /// Of processes.
    pub process: String,
    /// Of files.
    pub mount: String,
}

impl Labels {
    fn as_spec(&self) -> SelinuxLabels {
        SelinuxLabels { process: self.process.clone(), mount: self.mount.clone() }
    }

    fn level(&self) -> &str {
        self.mount.splitn(4, ':').nth(3).unwrap_or_default()
    }
}

/// SELinux of this node.
#[derive(Debug, Default)]
pub struct Selinux {
    policy: Option<Policy>,
    /// Levels of pods that are not recorded yet.
    allotted: Mutex<HashMap<SandboxId, String>>,
}

#[derive(Debug)]
struct Policy {
    defaults: SelinuxLabels,
    /// Whether labels have levels.
    levels: bool,
}

impl Selinux {
    /// Of the running kernel, unless the configuration (`selinux`) turns it off.
    pub fn new(configured: bool) -> Self {
        if !configured || !lsm::selinux_is_enabled() {
            return Self::default();
        }
        let levels = fs::read("/sys/fs/selinux/mls").is_ok_and(|text| text.first() == Some(&b'1'));
        Self { policy: Some(Policy { defaults: policy_defaults(), levels }), ..Self::default() }
    }

    /// Whether containers get labels.
    pub fn is_enabled(&self) -> bool {
        self.policy.is_some()
    }

    /// Labels for a new pod, with a level that no other has. `known` are the labels of pods with a record, `lives` tells
    /// which pods there are. They are the pod's once [`Selinux::allot`] was told; until then nobody else may ask.
    ///
    /// # Errors
    /// Options that are no parts of a label; no level is free.
    pub(crate) fn pod(
        &self,
        config: &v1::PodSandboxConfig,
        known: impl IntoIterator<Item = Labels>,
        lives: impl Fn(&SandboxId) -> bool,
    ) -> Result<Option<Labels>> {
        let Some(policy) = &self.policy else { return Ok(None) };
        let level = match policy.levels {
            false => String::new(),
            true => {
                let mut allotted = self.allotted.lock().unwrap_or_else(PoisonError::into_inner);
                allotted.retain(|id, _| lives(id));
                let mut taken: HashSet<String> =
                    known.into_iter().map(|labels| labels.level().to_owned()).collect();
                taken.extend(allotted.values().cloned());
                free_level(&taken).ok_or_else(|| Error::failed("no SELinux level is free"))?
            }
        };
        let labels = criox_spec::pod_labels(config, &policy.defaults, &level)
            .map_err(|error| Error::new(Kind::InvalidArgument, format!("config.{error}")))?;
        Ok(Some(Labels { process: labels.process, mount: labels.mount }))
    }

    /// Whose labels they are, from before there is a record of it.
    pub(crate) fn allot(&self, id: SandboxId, labels: &Labels) {
        let mut allotted = self.allotted.lock().unwrap_or_else(PoisonError::into_inner);
        allotted.insert(id, labels.level().to_owned());
    }

    /// The labels of a container: none where the pod shares the node's processes or queues, as in CRI-O.
    ///
    /// # Errors
    /// Options that are no parts of a label.
    pub(crate) fn container(
        &self,
        pod: Option<&Labels>,
        sandbox: &v1::PodSandboxConfig,
        container: &v1::ContainerConfig,
    ) -> Result<Option<SelinuxLabels>> {
        let (Some(_), Some(pod)) = (&self.policy, pod) else { return Ok(None) };
        let options = status::namespace_options(sandbox);
        if [options.pid(), options.ipc()].contains(&v1::NamespaceMode::Node) {
            return Ok(None);
        }
        criox_spec::container_labels(container, &pod.as_spec())
            .map(Some)
            .map_err(|error| Error::new(Kind::InvalidArgument, format!("config.{error}")))
    }
}

/// A level that is not taken: at random, so that a new pod seldom meets files that a former one left.
fn free_level(taken: &HashSet<String>) -> Option<String> {
    let start = u32::from_ne_bytes(durable::random_bytes::<4>()) % MCS_LEVELS;
    (0..MCS_LEVELS)
        .map(|step| criox_spec::mcs_level((start + step) % MCS_LEVELS))
        .find(|level| !taken.contains(level))
}

/// What the policy gives to containers, else the names that all policies know.
fn policy_defaults() -> SelinuxLabels {
    let config = fs::read_to_string("/etc/selinux/config").unwrap_or_default();
    let kind = config.lines().find_map(|line| line.trim().strip_prefix("SELINUXTYPE=")).unwrap_or("targeted");
    let path = Path::new("/etc/selinux").join(kind.trim()).join("contexts/lxc_contexts");
    let found = criox_spec::parse_lxc_contexts(&fs::read_to_string(path).unwrap_or_default());
    let or = |text: String, known: &str| if text.is_empty() { known.to_owned() } else { text };
    SelinuxLabels {
        process: or(found.process, "system_u:system_r:container_t:s0"),
        mount: or(found.mount, "system_u:object_r:container_file_t:s0"),
    }
}

/// Labels a volume and all that is in it for a container. Links are labelled and not followed; what has the label
/// already is left alone, and with `trust_top` nothing below a directory that has it is looked at. A file system
/// without labels is success, as everywhere.
///
/// # Errors
/// A directory of the system, with the name of the field; a file that can't be labelled.
pub(crate) fn relabel(path: &Path, label: &str, trust_top: bool, field: &str) -> Result<()> {
    relabel_as(path, ATTRIBUTE, label, trust_top, field)
}

fn relabel_as(path: &Path, attribute: &str, label: &str, trust_top: bool, field: &str) -> Result<()> {
    if is_system(path) {
        let reason = format!(
            "{} belongs to the system: SELinux relabelling would take it from everything else; mount it without",
            path.display()
        );
        return Err(Error::invalid(field, reason));
    }
    let failed = |(at, error): (PathBuf, io::Error)| {
        let text = format!("{field}: SELinux label of {} in {}", at.display(), path.display());
        Error::new(Kind::FailedPrecondition, text).because(error)
    };
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = rustix::fs::openat(CWD, path, flags, Mode::empty())
        .map_err(|error| failed((PathBuf::new(), error.into())))?;
    let walk = Walk { attribute: OsStr::new(attribute), label };
    let changed = walk.label(top.as_fd()).map_err(|error| failed((PathBuf::new(), error)))?;
    let is_dir = rustix::fs::fstat(&top).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_dir());
    if is_dir && (changed || !trust_top) {
        walk.below(&top, Path::new(""), 0).map_err(failed)?;
    }
    Ok(())
}

fn is_system(path: &Path) -> bool {
    SYSTEM.iter().any(|system| path == Path::new(system))
        || SYSTEM_TREES.iter().any(|system| path.starts_with(system))
}

struct Walk<'a> {
    attribute: &'a OsStr,
    label: &'a str,
}

impl Walk<'_> {
    /// Whether it had to be changed.
    fn label(&self, file: BorrowedFd<'_>) -> io::Result<bool> {
        let known = xattr::get(file, self.attribute)?;
        // The kernel's value ends with a NUL.
        if known.is_some_and(|value| value.strip_suffix(b"\0").unwrap_or(&value) == self.label.as_bytes()) {
            return Ok(false);
        }
        match xattr::set(file, self.attribute, self.label.as_bytes()) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(false),
            // On a read-only file system the label is what it is.
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => Ok(false),
            result => result.map(|()| true),
        }
    }

    /// What is in a directory. What goes away meanwhile needs no label.
    fn below(
        &self,
        directory: &OwnedFd,
        at: &Path,
        depth: usize,
    ) -> std::result::Result<(), (PathBuf, io::Error)> {
        if depth == DEPTH {
            return Err((at.to_owned(), io::Error::other(format!("more than {DEPTH} directories deep"))));
        }
        let here = |error: rustix::io::Errno| (at.to_owned(), error.into());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(directory, ".", flags, Mode::empty()).map_err(here)?;
        for entry in Dir::new(opened).map_err(here)? {
            let entry = entry.map_err(here)?;
            let name = entry.file_name();
            if [c".", c".."].contains(&name) {
                continue;
            }
            let place = at.join(OsStr::from_bytes(name.to_bytes()));
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = match rustix::fs::openat(directory, name, flags, Mode::empty()) {
                Err(rustix::io::Errno::NOENT) => continue,
                result => result.map_err(|error| (place.clone(), error.into()))?,
            };
            self.label(file.as_fd()).map_err(|error| (place.clone(), error))?;
            let stat = rustix::fs::fstat(&file).map_err(|error| (place.clone(), error.into()))?;
            if FileType::from_raw_mode(stat.st_mode).is_dir() {
                self.below(&file, &place, depth + 1)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
