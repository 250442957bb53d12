//! Which namespaces CRIU would make for a checkpoint's processes, and which not.
//!
//! CRIU compares the numbers of the first process's namespaces (`ids-<pid>.img`) with those that it had itself when it
//! dumped (`inventory.img`): one that is the same is not made again, and the process goes on in CRIU's own, the node's,
//! whatever the other images say. One number in an image from elsewhere decides over the node's file systems, seen from
//! their root (hardening K6).

use std::collections::BTreeSet;

use criox_sys::inroot::Root;
use prost::Message;

use super::{MAX_CORE, decode, image, only};
use crate::error::Error;

/// `inventory.img`, which has no common head before its own, and `ids-<pid>.img` (`criu/include/magic.h`).
const INVENTORY: u32 = 0x5831_3116;
const IDS: u32 = 0x5443_2030;
const INVENTORY_NAME: &str = "inventory.img";

/// Numbers of what processes can have in common (`task_kobj_ids_entry` of `images/core.proto`).
#[derive(Clone, PartialEq, Message)]
struct Ids {
    #[prost(uint32, optional, tag = "5")]
    pid: Option<u32>,
    #[prost(uint32, optional, tag = "6")]
    network: Option<u32>,
    #[prost(uint32, optional, tag = "7")]
    ipc: Option<u32>,
    #[prost(uint32, optional, tag = "8")]
    uts: Option<u32>,
    #[prost(uint32, optional, tag = "9")]
    mount: Option<u32>,
    #[prost(uint32, optional, tag = "10")]
    user: Option<u32>,
    #[prost(uint32, optional, tag = "11")]
    cgroup: Option<u32>,
    #[prost(uint32, optional, tag = "12")]
    time: Option<u32>,
}

impl Ids {
    /// By the names of the OCI runtime specification.
    fn all(&self) -> [(&'static str, Option<u32>); 8] {
        [
            ("pid", self.pid),
            ("network", self.network),
            ("ipc", self.ipc),
            ("uts", self.uts),
            ("mount", self.mount),
            ("user", self.user),
            ("cgroup", self.cgroup),
            ("time", self.time),
        ]
    }
}

#[derive(Clone, PartialEq, Message)]
struct Inventory {
    #[prost(message, optional, tag = "3")]
    root_ids: Option<Ids>,
}

/// The kinds of namespaces (`pid`, `network`, `ipc`, `uts`, `user`, `cgroup`, `time`) in which any of these processes
/// would be with the node.
///
/// # Errors
/// [`Error::Refused`] when one would be in the node's mount namespace, or in one without an image; and for what is missing
/// or malformed.
pub(super) fn shared(
    root: &Root,
    names: &[String],
    processes: impl Iterator<Item = u32>,
) -> Result<BTreeSet<&'static str>, Error> {
    let own = inventory(&image(root, INVENTORY_NAME, MAX_CORE)?)?;
    let mut shared = BTreeSet::new();
    for pid in processes {
        let name = format!("ids-{pid}.img");
        let ids = ids(&name, &image(root, &name, MAX_CORE)?)?;
        let described = ids.mount.is_some_and(|id| names.contains(&format!("mountpoints-{id}.img")));
        // What isn't stated isn't made.
        let same =
            ids.all().into_iter().zip(own.all()).filter(|((_, id), (_, own))| id.is_none() || id == own);
        shared.extend(same.map(|((kind, _), _)| kind));
        if shared.contains("mount") || !described {
            return Err(Error::refused(name, "its process would be in the node's mount namespace"));
        }
    }
    Ok(shared)
}

fn inventory(bytes: &[u8]) -> Result<Ids, Error> {
    let word =
        |at: usize| -> Option<u32> { Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?)) };
    let malformed = || Error::refused(INVENTORY_NAME, "not an image of its kind");
    if word(0) != Some(INVENTORY) {
        return Err(malformed());
    }
    let entry =
        bytes.get(8..).filter(|entry| word(4).and_then(|size| size.try_into().ok()) == Some(entry.len()));
    let inventory: Inventory = decode(INVENTORY_NAME, entry.ok_or_else(malformed)?)?;
    inventory
        .root_ids
        .ok_or_else(|| Error::refused(INVENTORY_NAME, "it doesn't say whose namespaces CRIU had"))
}

fn ids(name: &str, bytes: &[u8]) -> Result<Ids, Error> {
    decode(name, only(name, bytes, IDS)?)
}

/// For fuzzing.
#[cfg(feature = "fuzzing")]
pub(super) fn fuzz(bytes: &[u8]) {
    drop((inventory(bytes), ids("ids-1.img", bytes)));
}
