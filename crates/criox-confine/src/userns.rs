//! The mappings of a pod's own user namespace.

use criox_cri::v1;
use criox_spec::oci;
use criox_sys::idmap::{IdRange, to_host};

/// The mappings of a pod's user namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Users {
    /// Of users.
    pub users: Vec<IdRange>,
    /// Of groups.
    pub groups: Vec<IdRange>,
}

impl Users {
    /// Those that a sandbox asks for; none for the node's users. What can't be has been refused when it was made.
    pub fn of(sandbox: &v1::PodSandboxConfig) -> Option<Self> {
        let asked = criox_spec::sandbox_namespaces(sandbox).ok()?.user?;
        let ranges = |list: &[oci::IdMapping]| list.iter().map(range).collect();
        Some(Self { users: ranges(&asked.uids), groups: ranges(&asked.gids) })
    }

    /// User and group of the node that are root of the pod.
    pub fn root(&self) -> (u32, u32) {
        // Both map 0, or the sandbox would have been refused.
        (to_host(&self.users, 0).unwrap_or(0), to_host(&self.groups, 0).unwrap_or(0))
    }

    /// A user and a group of the pod as the node numbers them; those that it does not have are the pod's root.
    pub fn outside(&self, user: u32, group: u32) -> (u32, u32) {
        let root = self.root();
        (to_host(&self.users, user).unwrap_or(root.0), to_host(&self.groups, group).unwrap_or(root.1))
    }

    /// The mappings of users as the specification has them.
    pub fn uid_mappings(&self) -> Vec<oci::IdMapping> {
        to_oci(&self.users)
    }

    /// The mappings of groups as the specification has them.
    pub fn gid_mappings(&self) -> Vec<oci::IdMapping> {
        to_oci(&self.groups)
    }

    /// The highest group that the pod has.
    pub fn last_group(&self) -> u32 {
        self.groups.iter().map(|range| range.inside + (range.length - 1)).max().unwrap_or(0)
    }
}

fn range(mapping: &oci::IdMapping) -> IdRange {
    IdRange { inside: mapping.container_id, host: mapping.host_id, length: mapping.size }
}

fn to_oci(ranges: &[IdRange]) -> Vec<oci::IdMapping> {
    ranges
        .iter()
        .map(|range| oci::IdMapping { container_id: range.inside, host_id: range.host, size: range.length })
        .collect()
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
