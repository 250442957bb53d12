//! What this node's kernel offers and what the daemon may do, read once at start.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd as _;
use std::path::Path;

use criox_lifecycle::host_devices;
use criox_spec::{Arch, CapabilitySet, NodeFacts};
use criox_store::Store;
use criox_sys::cgroup::Cgroups;
use criox_sys::lsm::AppArmorFiles;
use criox_sys::mount;
use rustix::mount::OpenTreeFlags;
use rustix::process::{Resource, getrlimit};

/// Limits that containers are given, by their names in the OCI runtime specification.
const RLIMITS: [(&str, Resource); 15] = [
    ("RLIMIT_AS", Resource::As),
    ("RLIMIT_CORE", Resource::Core),
    ("RLIMIT_CPU", Resource::Cpu),
    ("RLIMIT_DATA", Resource::Data),
    ("RLIMIT_FSIZE", Resource::Fsize),
    ("RLIMIT_LOCKS", Resource::Locks),
    ("RLIMIT_MEMLOCK", Resource::Memlock),
    ("RLIMIT_MSGQUEUE", Resource::Msgqueue),
    ("RLIMIT_NICE", Resource::Nice),
    ("RLIMIT_NOFILE", Resource::Nofile),
    ("RLIMIT_NPROC", Resource::Nproc),
    ("RLIMIT_RSS", Resource::Rss),
    ("RLIMIT_RTPRIO", Resource::Rtprio),
    ("RLIMIT_RTTIME", Resource::Rttime),
    ("RLIMIT_SIGPENDING", Resource::Sigpending),
];

/// `MOUNT_ATTR_RDONLY` of mount_setattr(2).
const MOUNT_ATTR_RDONLY: u64 = 1;
/// Overlay over idmapped mounts, without which a pod's root file system can't be had in a user namespace.
const IDMAPPED_OVERLAY: (u32, u32) = (5, 19);

/// Looks around.
pub(crate) fn facts(cgroups: &Cgroups, store: &Store, systemd_cgroup: bool) -> NodeFacts {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
        CapabilitySet::from_bits(line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0))
    };
    let capabilities = mask("CapPrm").intersection(mask("CapBnd"));
    let can_raise = capabilities.has("SYS_RESOURCE");
    let kernel = kernel_version(&rustix::system::uname().release().to_string_lossy());
    NodeFacts {
        arch: if cfg!(target_arch = "aarch64") { Arch::Aarch64 } else { Arch::X86_64 },
        kernel,
        cgroup_v2: cgroups.is_v2(),
        systemd_cgroup,
        capabilities,
        oom_score_adj: read_number("/proc/self/oom_score_adj").unwrap_or(0),
        hard_rlimits: if can_raise { BTreeMap::new() } else { hard_rlimits() },
        pids_controller: controller(cgroups, "pids"),
        hugetlb_controller: controller(cgroups, "hugetlb"),
        swap_accounting: swap_accounting(cgroups),
        hugepage_sizes: hugepage_sizes(Path::new("/sys/kernel/mm/hugepages")),
        recursive_read_only: kernel >= (5, 12) && sets_attributes_recursively(),
        idmapped_mounts: kernel >= IDMAPPED_OVERLAY && idmaps(store),
        seccomp: Path::new("/proc/sys/kernel/seccomp/actions_avail").exists(),
        apparmor: AppArmorFiles::default().is_enabled(),
        host_devices: host_devices(),
        extra_masked_paths: thermal_throttles(),
    }
}

/// Whether a root file system can be had in a user namespace, tried on the graph root: it depends on its file system.
fn idmaps(store: &Store) -> bool {
    match store.probe_idmap() {
        Ok(()) => true,
        Err(error) => {
            let error = criox_lifecycle::chain(&error);
            tracing::info!(error, "pods can't have user namespaces: the graph root can't be idmapped");
            false
        }
    }
}

/// Whether a whole tree of mounts is made read-only at once, tried on one that nobody sees: a filter around the daemon
/// may forbid what the kernel can.
fn sets_attributes_recursively() -> bool {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(rustix::fs::CWD, "/proc", flags)
        .is_ok_and(|tree| mount::set_attributes(tree.as_fd(), MOUNT_ATTR_RDONLY, 0, true).is_ok())
}

/// Major and minor of `6.18.3-arch1`.
fn kernel_version(release: &str) -> (u32, u32) {
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

fn read_number(path: &str) -> Option<i32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// What the daemon's own limits allow where it can't raise them.
fn hard_rlimits() -> BTreeMap<String, u64> {
    RLIMITS
        .iter()
        .filter_map(|(name, resource)| Some(((*name).to_owned(), getrlimit(*resource).maximum?)))
        .collect()
}

fn controller(cgroups: &Cgroups, name: &str) -> bool {
    match cgroups.dir(name, "/") {
        Some(root) if cgroups.is_v2() => fs::read_to_string(root.join("cgroup.controllers"))
            .is_ok_and(|controllers| controllers.split_whitespace().any(|controller| controller == name)),
        Some(_) => true,
        None => false,
    }
}

fn swap_accounting(cgroups: &Cgroups) -> bool {
    let Some(root) = cgroups.dir("memory", "/") else { return false };
    // v2 has no files of limits at its root: a group of the system's is asked.
    match cgroups.is_v2() {
        true => fs::read_dir(root)
            .into_iter()
            .flatten()
            .flatten()
            .any(|entry| entry.path().join("memory.swap.max").exists()),
        false => root.join("memory.memsw.limit_in_bytes").exists(),
    }
}

/// `hugepages-2048kB` becomes `2MB`.
fn hugepage_sizes(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut sizes: Vec<u64> = entries
        .filter_map(|entry| {
            let name = entry.file_name();
            name.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()
        })
        .collect();
    sizes.sort_unstable();
    sizes.into_iter().map(page_size).collect()
}

fn page_size(kilobytes: u64) -> String {
    match kilobytes {
        size if size >= 1 << 20 && size % (1 << 20) == 0 => format!("{}GB", size >> 20),
        size if size >= 1 << 10 && size % (1 << 10) == 0 => format!("{}MB", size >> 10),
        size => format!("{size}KB"),
    }
}

/// Counters that tell containers about each other (masked like those below `/proc`).
fn thermal_throttles() -> Vec<String> {
    let entries = fs::read_dir("/sys/devices/system/cpu").into_iter().flatten().flatten();
    let mut paths: Vec<String> = entries
        .map(|entry| entry.path().join("thermal_throttle"))
        .filter(|path| path.exists())
        .map(|path| path.to_string_lossy().into_owned())
        .collect();
    paths.sort();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions_are_read_from_any_release() {
        assert_eq!(kernel_version("6.18.3-arch1"), (6, 18));
        assert_eq!(kernel_version("5.14.0-427.el9.x86_64"), (5, 14));
        assert_eq!(kernel_version(""), (0, 0));
    }

    #[test]
    fn page_sizes_have_the_names_of_the_kubelet() {
        assert_eq!(page_size(2048), "2MB");
        assert_eq!(page_size(1 << 20), "1GB");
        assert_eq!(page_size(64), "64KB");
    }
}
