//! Owners of files in a container with a user namespace, of the files themselves and in their attributes: those that the
//! container sees, and those on the node.

use std::borrow::Cow;

use criox_sys::idmap::{self, IdRange};

/// Whom the kernel shows for owners that a namespace has no number for.
const OVERFLOW: u32 = 65_534;

/// The owner on the node of one in the container. One that the ranges leave out becomes nobody of the container, never
/// somebody of the node. Without ranges there is no namespace.
pub fn host_of(ranges: &[IdRange], inside: u32) -> u32 {
    if ranges.is_empty() {
        return inside;
    }
    let to_host = |id| idmap::to_host(ranges, id);
    to_host(inside).or_else(|| to_host(OVERFLOW)).or_else(|| to_host(0)).unwrap_or(OVERFLOW)
}

/// The owner in the container of one on the node; nobody for one that the ranges leave out.
pub fn inside_of(ranges: &[IdRange], host: u32) -> u32 {
    if ranges.is_empty() {
        return host;
    }
    let inside = |range: &IdRange| {
        let offset = host.checked_sub(range.host).filter(|offset| *offset < range.length)?;
        range.inside.checked_add(offset)
    };
    ranges.iter().find_map(inside).unwrap_or(OVERFLOW)
}

/// Attributes that a tar stream may set on files. Those of overlay and of security modules would steer the host.
pub fn is_kept(name: &[u8]) -> bool {
    name == b"security.capability"
        || name.starts_with(b"system.posix_acl_")
        || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

/// The side whose owners are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    /// As the node sees them, from how the container does.
    Host,
    /// As the container sees them, from how the node does.
    Inside,
}

impl To {
    fn owner(self, ranges: &[IdRange], id: u32) -> u32 {
        match self {
            Self::Host => host_of(ranges, id),
            Self::Inside => inside_of(ranges, id),
        }
    }
}

/// The value of an attribute with the owners of the other side in it.
pub fn attribute<'v>(
    to: To,
    name: &[u8],
    value: &'v [u8],
    users: &[IdRange],
    groups: &[IdRange],
) -> Cow<'v, [u8]> {
    if users.is_empty() && groups.is_empty() {
        return Cow::Borrowed(value);
    }
    if name == b"security.capability" {
        let root = host_of(users, 0);
        return match to {
            To::Host => with_root(value, root),
            To::Inside => without_root(value, root),
        };
    }
    acl(name, value, |id| to.owner(users, id), |id| to.owner(groups, id))
}

/// Lengths of `vfs_ns_cap_data` without and with the root that it is good for (`linux/capability.h`).
const CAPS_V2: usize = 20;
const CAPS_V3: usize = 24;

/// File capabilities that are good in namespaces whose root is `root`: version 3.
fn with_root(value: &[u8], root: u32) -> Cow<'_, [u8]> {
    if value.len() != CAPS_V2 || value[3] != 2 {
        return Cow::Borrowed(value);
    }
    let mut value = value.to_vec();
    value[3] = 3;
    value.extend_from_slice(&root.to_le_bytes());
    Cow::Owned(value)
}

/// File capabilities as the namespace with the root `root` sees them: version 2.
fn without_root(value: &[u8], root: u32) -> Cow<'_, [u8]> {
    if value.len() != CAPS_V3 || value[3] != 3 || value[CAPS_V2..] != root.to_le_bytes() {
        return Cow::Borrowed(value);
    }
    let mut value = value[..CAPS_V2].to_vec();
    value[3] = 2;
    Cow::Owned(value)
}

/// A POSIX ACL with other users and groups (`linux/posix_acl_xattr.h`): a version, then entries of tag, permissions, ID.
fn acl<'v>(
    name: &[u8],
    value: &'v [u8],
    user: impl Fn(u32) -> u32,
    group: impl Fn(u32) -> u32,
) -> Cow<'v, [u8]> {
    const USER: [u8; 2] = [2, 0];
    const GROUP: [u8; 2] = [8, 0];
    if !name.starts_with(b"system.posix_acl_") || value.len() < 4 || !(value.len() - 4).is_multiple_of(8) {
        return Cow::Borrowed(value);
    }
    let mut value = value.to_vec();
    for entry in value[4..].chunks_exact_mut(8) {
        let id = u32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
        let mapped = match [entry[0], entry[1]] {
            USER => user(id),
            GROUP => group(id),
            _ => continue,
        };
        entry[4..8].copy_from_slice(&mapped.to_le_bytes());
    }
    Cow::Owned(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANGES: [IdRange; 1] = [IdRange { inside: 0, host: 100_000, length: 65_536 }];

    #[test]
    fn owners_go_there_and_back_and_never_become_the_nodes() {
        for id in [0, 1000, 65_535] {
            assert_eq!(inside_of(&RANGES, host_of(&RANGES, id)), id);
            assert_eq!(host_of(&[], id), id);
        }
        assert_eq!(host_of(&RANGES, 70_000), 165_534);
        assert_eq!(host_of(&[IdRange { inside: 0, host: 9, length: 1 }], 5), 9);
        assert_eq!(inside_of(&RANGES, 0), OVERFLOW);
    }

    #[test]
    fn attributes_go_there_and_back() {
        let mut caps = vec![1, 0, 0, 2];
        caps.resize(CAPS_V2, 7);
        let host = attribute(To::Host, b"security.capability", &caps, &RANGES, &RANGES);
        assert_eq!((host.len(), host[3], &host[20..]), (CAPS_V3, 3, &100_000u32.to_le_bytes()[..]));
        assert_eq!(&*attribute(To::Inside, b"security.capability", &host, &RANGES, &RANGES), &caps[..]);
        // Capabilities of another namespace's root are left alone.
        assert_eq!(without_root(&host, 5).len(), CAPS_V3);
        let acl =
            [&[2u8, 0, 0, 0][..], &[2, 0, 7, 0, 5, 0, 0, 0], &[1, 0, 7, 0, 0xff, 0xff, 0xff, 0xff]].concat();
        let host = attribute(To::Host, b"system.posix_acl_access", &acl, &RANGES, &RANGES);
        assert_eq!(host[8..12], 100_005u32.to_le_bytes());
        assert_eq!(host[12..], acl[12..]);
        assert_eq!(&*attribute(To::Inside, b"system.posix_acl_access", &host, &RANGES, &RANGES), &acl[..]);
        assert_eq!(&*attribute(To::Host, b"user.x", b"y", &RANGES, &RANGES), b"y");
    }
}
