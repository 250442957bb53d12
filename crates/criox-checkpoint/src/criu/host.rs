//! What CRIU would do outside of the container for images that come from elsewhere.
//!
//! It mounts what `mountpoints-*.img` lists, as the node's root and before the container's root is in place: a file system
//! of the node (`debugfs`, an overlay over its directories) or an entry of `binfmt_misc`, which is the whole node's,
//! would be had for a line in an image. It makes cgroups and writes their files by the names in `cgroup.img`. It maps
//! users as `userns-*.img` says. So all of them may say only what a container's dump says (hardening K1, K6).

use std::collections::BTreeSet;
use std::path::Path;

use prost::Message;

use super::{decode, entries, only};
use crate::error::Error;

/// `mountpoints-<namespace>.img`, `cgroup.img` (`criu/include/magic.h`).
pub(super) const MOUNTS: u32 = 0x5556_3928;
pub(super) const CGROUPS: u32 = 0x5938_3330;

/// Most mounts of a container.
const MAX_MOUNTS: usize = 10_000;
/// How deep directories of cgroups may lie in each other; the parser's own bound is a hundred.
const MAX_DEPTH: usize = 32;

/// Kinds of file systems that are each namespace's own (`images/mnt.proto`).
const PROC: u32 = 1;
const SYSFS: u32 = 2;
const TMPFS: u32 = 5;
const DEVPTS: u32 = 6;
const MQUEUE: u32 = 14;
const CGROUP2: u32 = 23;

#[derive(Clone, PartialEq, Message)]
struct MountEntry {
    #[prost(uint32, optional, tag = "1")]
    kind: Option<u32>,
    #[prost(uint32, optional, tag = "2")]
    id: Option<u32>,
    #[prost(uint32, optional, tag = "4")]
    parent: Option<u32>,
    #[prost(uint32, optional, tag = "5")]
    flags: Option<u32>,
    #[prost(bytes = "vec", optional, tag = "6")]
    root: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "7")]
    point: Option<Vec<u8>>,
    #[prost(bool, optional, tag = "12")]
    with_plugin: Option<bool>,
    #[prost(bool, optional, tag = "13")]
    external: Option<bool>,
    #[prost(bytes = "vec", optional, tag = "18")]
    key: Option<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct CgroupEntry {
    #[prost(message, repeated, tag = "1")]
    sets: Vec<CgSet>,
    #[prost(message, repeated, tag = "2")]
    controllers: Vec<CgController>,
}

#[derive(Clone, PartialEq, Message)]
struct CgSet {
    #[prost(message, repeated, tag = "2")]
    members: Vec<CgMember>,
}

#[derive(Clone, PartialEq, Message)]
struct CgMember {
    #[prost(bytes = "vec", optional, tag = "1")]
    name: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "2")]
    path: Option<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct CgController {
    #[prost(bytes = "vec", repeated, tag = "1")]
    names: Vec<Vec<u8>>,
    #[prost(message, repeated, tag = "2")]
    dirs: Vec<CgDir>,
}

#[derive(Clone, PartialEq, Message)]
struct CgDir {
    #[prost(bytes = "vec", optional, tag = "1")]
    name: Option<Vec<u8>>,
    #[prost(message, repeated, tag = "2")]
    children: Vec<CgDir>,
    #[prost(message, repeated, tag = "3")]
    properties: Vec<CgProperty>,
}

#[derive(Clone, PartialEq, Message)]
struct CgProperty {
    #[prost(bytes = "vec", optional, tag = "1")]
    name: Option<Vec<u8>>,
}

/// A mount of the container, as CRIU would make it again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mount {
    /// The image that lists it: there is one for each mount namespace of the container.
    pub namespace: String,
    /// Its number in there.
    pub id: u32,
    /// That of the mount on which it lies; the root's is none of the list.
    pub parent: u32,
    /// Where, in the container.
    pub point: String,
    /// Under which name the runtime hands in what is mounted; `None` for a file system of the container's own.
    pub external: Option<String>,
    /// Whether it shows what the kernel tells and takes: proc, sysfs or cgroups, whole or a part.
    pub of_kernel: bool,
    /// Whether it is read-only.
    pub read_only: bool,
}

/// `MS_RDONLY`.
const READ_ONLY: u32 = 1;

/// The mounts of one namespace, the root among them.
///
/// # Errors
/// [`Error::Refused`] for one that is neither the root, nor handed in by the runtime, nor a file system of the container's
/// own; and for what is no tree.
pub(super) fn mounts(name: &str, bytes: &[u8]) -> Result<Vec<Mount>, Error> {
    let refused = |why: String| Err(Error::refused(name, why));
    let mut mounts = Vec::new();
    let (mut ids, mut parents) = (BTreeSet::new(), Vec::new());
    for entry in entries(name, bytes, MOUNTS)? {
        let entry: MountEntry = decode(name, entry)?;
        let (Some(id), Some(parent), Some(kind), Some(flags), Some(point)) =
            (entry.id, entry.parent, entry.kind, entry.flags, entry.point)
        else {
            return refused("a mount without number, parent, kind, flags or place".into());
        };
        let Ok(point) = String::from_utf8(point) else {
            return refused("a mount at a place that is no text".into());
        };
        let external = match (entry.key, entry.external) {
            (Some(key), _) if !key.is_empty() => Some(String::from_utf8_lossy(&key).into_owned()),
            // The form of old images: the place is the key.
            (_, Some(true)) => Some(point.clone()),
            _ => None,
        };
        // In the one form that can be compared.
        let is_plain = point == "/"
            || point
                .strip_prefix('/')
                .is_some_and(|p| !p.split('/').any(|part| matches!(part, "" | "." | "..")));
        if !is_plain || entry.with_plugin == Some(true) {
            return refused(format!("the mount at {point:?} is none of a container's"));
        }
        if point != "/" && external.is_none() {
            let root = entry.root.as_deref().unwrap_or_default();
            if !is_own(kind, root) {
                let why =
                    "is of a file system that is not a container's own, or of a part that leads out of it";
                return refused(format!("the mount at {point:?} {why} (kind {kind})"));
            }
            if !is_in_its_place(kind, root, &point) {
                let why = "shows a part of the kernel's file systems at a place where nobody looks for it";
                return refused(format!("the mount at {point:?} {why} (kind {kind})"));
            }
        }
        if !ids.insert(id) || ids.len() > MAX_MOUNTS {
            return refused("a mount is there twice, or there are too many".into());
        }
        parents.push((parent, point.clone()));
        let of_kernel = external.is_none() && matches!(kind, PROC | SYSFS | CGROUP2);
        let read_only = flags & READ_ONLY != 0;
        mounts.push(Mount { namespace: name.to_owned(), id, parent, point, external, of_kernel, read_only });
    }
    // Only the root is mounted from what the runtime says is the root; it is the one whose parent is not there.
    let roots: Vec<&String> =
        parents.iter().filter(|(parent, _)| !ids.contains(parent)).map(|(_, point)| point).collect();
    if roots != ["/"] || mounts.iter().filter(|mount| mount.point == "/").count() != 1 {
        return refused("it must have one root".into());
    }
    Ok(mounts)
}

/// Whether a file system of this kind is a container's own, and `root` a part of it that can be bound without following
/// anything: the paths that CRIU makes of it are the node's. So no part of a tmpfs, which may hold links that the
/// checkpoint has put there, and nothing of proc where a process's root is.
fn is_own(kind: u32, root: &[u8]) -> bool {
    let Some(path) = root.strip_prefix(b"/") else { return false };
    let mut parts = path.split(|b| *b == b'/').filter(|part| !part.is_empty());
    if parts.clone().any(|part| part == b"..") {
        return false;
    }
    match (kind, parts.next()) {
        (PROC | SYSFS | TMPFS | DEVPTS | MQUEUE | CGROUP2, None) | (SYSFS | CGROUP2, Some(_)) => true,
        (PROC, Some(first)) => {
            let links: [&[u8]; 4] = [b"self", b"thread-self", b"net", b"mounts"];
            !first[0].is_ascii_digit() && !links.contains(&first)
        }
        // A terminal, as the container's console.
        (DEVPTS, Some(first)) => first.iter().all(u8::is_ascii_digit) && parts.next().is_none(),
        _ => false,
    }
}

/// Whether a file system of the kernel's is where every container has it. Masks and what is read-only are told by paths
/// below `/proc` and `/sys`: the same at another place would be all of it, to be written to.
fn is_in_its_place(kind: u32, root: &[u8], point: &str) -> bool {
    let part =
        |base: &str| [base.as_bytes(), root.strip_suffix(b"/").unwrap_or(root)].concat() == point.as_bytes();
    match kind {
        PROC => part("/proc"),
        SYSFS => part("/sys"),
        // The part of a cgroup namespace is its own root.
        CGROUP2 => Path::new(point).starts_with(super::CGROUP_MOUNTS),
        _ => true,
    }
}

/// No name may lead out of the cgroups that CRIU makes.
///
/// # Errors
/// [`Error::Refused`].
pub(super) fn check_cgroups(name: &str, bytes: &[u8]) -> Result<(), Error> {
    let entry: CgroupEntry = decode(name, only(name, bytes, CGROUPS)?)?;
    let refused = |what: &str| Err(Error::refused(name, format!("{what} leads out of a cgroup")));
    for member in entry.sets.iter().flat_map(|set| &set.members) {
        if !is_name(member.name.as_deref()) {
            return refused("the name of a hierarchy");
        }
        if !stays_below(member.path.as_deref()) {
            return refused("the path of a group");
        }
    }
    for controller in &entry.controllers {
        if !controller.names.iter().all(|name| is_name(Some(name))) {
            return refused("the name of a controller");
        }
        let mut level: Vec<&CgDir> = controller.dirs.iter().collect();
        for depth in 0.. {
            if level.is_empty() {
                break;
            }
            for dir in &level {
                if depth > MAX_DEPTH || !stays_below(dir.name.as_deref()) {
                    return refused("the name of a directory");
                }
                if !dir.properties.iter().all(|property| is_name(property.name.as_deref())) {
                    return refused("the name of a property");
                }
            }
            level = level.into_iter().flat_map(|dir| &dir.children).collect();
        }
    }
    Ok(())
}

/// A file's name: controllers, hierarchies (`name=systemd`) and properties (`memory.max`).
fn is_name(name: Option<&[u8]>) -> bool {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'=' | b',' | b':');
    name.is_some_and(|name| name != b"." && name != b".." && name.iter().all(plain))
}

fn stays_below(path: Option<&[u8]>) -> bool {
    path.is_some_and(|path| !path.contains(&0) && !path.split(|b| *b == b'/').any(|part| part == b".."))
}
