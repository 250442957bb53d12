//! What `/proc` tells of a container's processes.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;

use criox_sys::cgroup::Cgroups;

/// Processes and descriptors that are looked at; a container with more is told as having these.
const PROCESSES: usize = 4096;
const DESCRIPTORS: u64 = 1 << 16;

/// Sums over a container's processes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Processes {
    /// How many there are.
    pub(super) count: u64,
    /// Their open descriptors.
    pub(super) descriptors: u64,
    /// Those of them that are sockets.
    pub(super) sockets: u64,
    /// The first process's soft limit of open files.
    pub(super) open_files_max: Option<u64>,
}

/// Looks at the processes in a cgroup and below it. Those that end meanwhile count as far as they were seen.
pub(super) fn look(cgroups: &Cgroups, cgroup: &str, first: Option<i32>) -> Processes {
    let processes = cgroups.procs_in("memory", cgroup).unwrap_or_default();
    let mut sums = Processes { count: u64::try_from(processes.len()).unwrap_or(0), ..Processes::default() };
    for pid in processes.iter().take(PROCESSES) {
        descriptors(*pid, &mut sums);
    }
    sums.open_files_max =
        first.and_then(|pid| open_files_max(&fs::read_to_string(format!("/proc/{pid}/limits")).ok()?));
    sums
}

/// Names of descriptors are made up by the kernel: to read them touches no file system.
fn descriptors(pid: i32, sums: &mut Processes) {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    for entry in entries {
        if sums.descriptors >= DESCRIPTORS {
            return;
        }
        sums.descriptors += 1;
        let socket = fs::read_link(entry.path());
        sums.sockets += u64::from(socket.is_ok_and(|to| to.as_os_str().as_bytes().starts_with(b"socket:")));
    }
}

/// `Max open files            1024                 524288               files`
fn open_files_max(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_of_open_files_is_found() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
            Max processes             unlimited            unlimited            processes \n\
            Max open files            1024                 524288               files     \n";
        assert_eq!(open_files_max(text), Some(1024));
        assert_eq!(open_files_max(""), None);
    }

    #[test]
    fn our_own_descriptors_are_counted() {
        let (_one, _other) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let mut sums = Processes::default();
        descriptors(i32::try_from(std::process::id()).expect("a PID"), &mut sums);
        assert!(sums.descriptors >= 5 && sums.sockets >= 2, "{sums:?}");
    }
}
