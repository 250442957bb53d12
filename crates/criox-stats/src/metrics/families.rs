//! The metrics: names, meanings, labels, groups.

use Kind::{Counter, Gauge};

/// Labels that every metric has, in this order; their values are those of the container, and no part of a [`Row`](super::Row).
pub const BASE_LABELS: [&str; 5] = ["id", "image", "namespace", "pod", "container"];

/// How values of a metric follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// They rise.
    Counter,
    /// They rise and fall.
    Gauge,
}

/// One metric.
#[derive(Debug)]
pub struct Family {
    /// Its name.
    pub name: &'static str,
    /// What it says, in a sentence.
    pub help: &'static str,
    /// Labels of its own, behind the base labels.
    pub labels: &'static [&'static str],
    /// How its values follow each other.
    pub kind: Kind,
}

/// A group that the configuration switches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Group {
    Always,
    Cpu,
    Disk,
    DiskIo,
    HugePages,
    Memory,
    Network,
    Oom,
    Process,
    Spec,
    Pressure,
}

impl Group {
    /// Its name in `included_pod_metrics`; none: it can't be switched off.
    pub(super) fn key(self) -> Option<&'static str> {
        Some(match self {
            Self::Always => return None,
            Self::Cpu => "cpu",
            Self::Disk => "disk",
            Self::DiskIo => "diskIO",
            Self::HugePages => "hugetlb",
            Self::Memory => "memory",
            Self::Network => "network",
            Self::Oom => "oom",
            Self::Process => "process",
            Self::Spec => "spec",
            Self::Pressure => "pressure",
        })
    }
}

const fn family(
    kind: Kind,
    name: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Family {
    Family { name, help, labels, kind }
}

pub(super) static LAST_SEEN: Family = family(
    Gauge,
    "container_last_seen",
    &[],
    "When the container was seen last, in seconds since the epoch.",
);

pub(super) static CPU_USER: Family =
    family(Counter, "container_cpu_user_seconds_total", &[], "Seconds of CPU time in user mode.");
pub(super) static CPU_SYSTEM: Family =
    family(Counter, "container_cpu_system_seconds_total", &[], "Seconds of CPU time in the kernel.");
pub(super) static CPU_USAGE: Family =
    family(Counter, "container_cpu_usage_seconds_total", &["cpu"], "Seconds of CPU time.");
pub(super) static CFS_PERIODS: Family =
    family(Counter, "container_cpu_cfs_periods_total", &[], "Periods in which a quota of CPU time held.");
pub(super) static CFS_THROTTLED_PERIODS: Family = family(
    Counter,
    "container_cpu_cfs_throttled_periods_total",
    &[],
    "Periods in which the quota of CPU time was used up.",
);
pub(super) static CFS_THROTTLED: Family = family(
    Counter,
    "container_cpu_cfs_throttled_seconds_total",
    &[],
    "Seconds of waiting for the next period after the quota of CPU time was used up.",
);

pub(super) static FS_INODES_FREE: Family =
    family(Gauge, "container_fs_inodes_free", &[], "Free inodes of the file system of the writable layer.");
pub(super) static FS_INODES_TOTAL: Family =
    family(Gauge, "container_fs_inodes_total", &[], "Inodes of the file system of the writable layer.");
pub(super) static FS_LIMIT: Family = family(
    Gauge,
    "container_fs_limit_bytes",
    &[],
    "Size of the file system of the writable layer, in bytes.",
);
pub(super) static FS_USAGE: Family =
    family(Gauge, "container_fs_usage_bytes", &[], "What the writable layer holds, in bytes.");

pub(super) static FS_READS_BYTES: Family =
    family(Counter, "container_fs_reads_bytes_total", &["device"], "Bytes read from a block device.");
pub(super) static FS_READS: Family =
    family(Counter, "container_fs_reads_total", &["device"], "Reads from a block device.");
pub(super) static FS_WRITES_BYTES: Family =
    family(Counter, "container_fs_writes_bytes_total", &["device"], "Bytes written to a block device.");
pub(super) static FS_WRITES: Family =
    family(Counter, "container_fs_writes_total", &["device"], "Writes to a block device.");
pub(super) static BLKIO: Family = family(
    Counter,
    "container_blkio_device_usage_total",
    &["device", "major", "minor", "operation"],
    "Bytes between the container and a block device, by operation.",
);

pub(super) static HUGE_USAGE: Family =
    family(Gauge, "container_hugetlb_usage_bytes", &["pagesize"], "Huge pages in use, in bytes.");
pub(super) static HUGE_MAX: Family = family(
    Gauge,
    "container_hugetlb_max_usage_bytes",
    &["pagesize"],
    "The most huge pages that were in use, in bytes.",
);

pub(super) static MEMORY_CACHE: Family =
    family(Gauge, "container_memory_cache", &[], "Page cache, in bytes.");
pub(super) static MEMORY_RSS: Family =
    family(Gauge, "container_memory_rss", &[], "Anonymous memory, in bytes.");
pub(super) static MEMORY_KERNEL: Family =
    family(Gauge, "container_memory_kernel_usage", &[], "Memory of the kernel for the container, in bytes.");
pub(super) static MEMORY_MAPPED: Family =
    family(Gauge, "container_memory_mapped_file", &[], "Mapped files, in bytes.");
pub(super) static MEMORY_SWAP: Family =
    family(Gauge, "container_memory_swap", &[], "What is swapped out, in bytes.");
pub(super) static MEMORY_FAILCNT: Family =
    family(Counter, "container_memory_failcnt", &[], "How often the limit of memory was hit.");
pub(super) static MEMORY_USAGE: Family =
    family(Gauge, "container_memory_usage_bytes", &[], "All memory that is charged, in bytes.");
pub(super) static MEMORY_MAX_USAGE: Family =
    family(Gauge, "container_memory_max_usage_bytes", &[], "The most memory that was charged, in bytes.");
pub(super) static MEMORY_WORKING_SET: Family = family(
    Gauge,
    "container_memory_working_set_bytes",
    &[],
    "Charged memory without inactive file pages, in bytes.",
);
pub(super) static MEMORY_FAILURES: Family = family(
    Counter,
    "container_memory_failures_total",
    &["failure_type", "scope"],
    "Page faults, and those of them that read a disk.",
);

/// Bytes, packets, dropped packets, errors.
pub(super) static RECEIVE: [Family; 4] = [
    family(Counter, "container_network_receive_bytes_total", &["interface"], "Bytes received."),
    family(Counter, "container_network_receive_packets_total", &["interface"], "Packets received."),
    family(
        Counter,
        "container_network_receive_packets_dropped_total",
        &["interface"],
        "Packets dropped while receiving.",
    ),
    family(Counter, "container_network_receive_errors_total", &["interface"], "Errors while receiving."),
];
/// The same.
pub(super) static TRANSMIT: [Family; 4] = [
    family(Counter, "container_network_transmit_bytes_total", &["interface"], "Bytes transmitted."),
    family(Counter, "container_network_transmit_packets_total", &["interface"], "Packets transmitted."),
    family(
        Counter,
        "container_network_transmit_packets_dropped_total",
        &["interface"],
        "Packets dropped while transmitting.",
    ),
    family(Counter, "container_network_transmit_errors_total", &["interface"], "Errors while transmitting."),
];

pub(super) static OOM_EVENTS: Family =
    family(Counter, "container_oom_events_total", &[], "Processes killed for want of memory.");

pub(super) static FILE_DESCRIPTORS: Family =
    family(Gauge, "container_file_descriptors", &[], "Open file descriptors.");
pub(super) static PROCESSES: Family = family(Gauge, "container_processes", &[], "Processes.");
pub(super) static SOCKETS: Family = family(Gauge, "container_sockets", &[], "Open sockets.");
pub(super) static THREADS: Family = family(Gauge, "container_threads", &[], "Threads of all processes.");
pub(super) static THREADS_MAX: Family =
    family(Gauge, "container_threads_max", &[], "Limit of threads; 0: none.");
pub(super) static ULIMITS_SOFT: Family =
    family(Gauge, "container_ulimits_soft", &["ulimit"], "Soft limits of the first process.");

pub(super) static SPEC_CPU_PERIOD: Family =
    family(Gauge, "container_spec_cpu_period", &[], "Length of a period of CPU time, in microseconds.");
pub(super) static SPEC_CPU_SHARES: Family =
    family(Gauge, "container_spec_cpu_shares", &[], "Weight for CPU time, in the notation of cgroup v1.");
pub(super) static SPEC_CPU_QUOTA: Family = family(
    Gauge,
    "container_spec_cpu_quota",
    &[],
    "CPU time in a period, in microseconds; absent: without limit.",
);
pub(super) static SPEC_MEMORY_LIMIT: Family =
    family(Gauge, "container_spec_memory_limit_bytes", &[], "Limit of memory, in bytes; 0: none.");
pub(super) static SPEC_MEMORY_RESERVATION: Family = family(
    Gauge,
    "container_spec_memory_reservation_limit_bytes",
    &[],
    "Memory that is reclaimed after that of others, in bytes; 0: none.",
);
pub(super) static SPEC_MEMORY_SWAP: Family = family(
    Gauge,
    "container_spec_memory_swap_limit_bytes",
    &[],
    "Limit of memory and swap together, in bytes; 0: none.",
);
pub(super) static START_TIME: Family =
    family(Gauge, "container_start_time_seconds", &[], "When it started, in seconds since the epoch.");

/// Of the CPU, memory, disks: time in which all waited, and in which at least one did.
pub(super) static PRESSURE: [[Family; 2]; 3] = [
    [
        family(
            Counter,
            "container_pressure_cpu_stalled_seconds_total",
            &[],
            "Seconds in which no task could go on for want of CPU time.",
        ),
        family(
            Counter,
            "container_pressure_cpu_waiting_seconds_total",
            &[],
            "Seconds in which a task waited for CPU time.",
        ),
    ],
    [
        family(
            Counter,
            "container_pressure_memory_stalled_seconds_total",
            &[],
            "Seconds in which no task could go on for want of memory.",
        ),
        family(
            Counter,
            "container_pressure_memory_waiting_seconds_total",
            &[],
            "Seconds in which a task waited for memory.",
        ),
    ],
    [
        family(
            Counter,
            "container_pressure_io_stalled_seconds_total",
            &[],
            "Seconds in which no task could go on for want of a disk.",
        ),
        family(
            Counter,
            "container_pressure_io_waiting_seconds_total",
            &[],
            "Seconds in which a task waited for a disk.",
        ),
    ],
];

/// All of them.
pub(super) static GROUPS: &[(Group, &[&Family])] = &[
    (Group::Always, &[&LAST_SEEN]),
    (Group::Cpu, &[&CPU_USER, &CPU_SYSTEM, &CPU_USAGE, &CFS_PERIODS, &CFS_THROTTLED_PERIODS, &CFS_THROTTLED]),
    (Group::Disk, &[&FS_INODES_FREE, &FS_INODES_TOTAL, &FS_LIMIT, &FS_USAGE]),
    (Group::DiskIo, &[&FS_READS_BYTES, &FS_READS, &FS_WRITES_BYTES, &FS_WRITES, &BLKIO]),
    (Group::HugePages, &[&HUGE_USAGE, &HUGE_MAX]),
    (
        Group::Memory,
        &[
            &MEMORY_CACHE,
            &MEMORY_RSS,
            &MEMORY_KERNEL,
            &MEMORY_MAPPED,
            &MEMORY_SWAP,
            &MEMORY_FAILCNT,
            &MEMORY_USAGE,
            &MEMORY_MAX_USAGE,
            &MEMORY_WORKING_SET,
            &MEMORY_FAILURES,
        ],
    ),
    (
        Group::Network,
        &[
            &RECEIVE[0],
            &RECEIVE[1],
            &RECEIVE[2],
            &RECEIVE[3],
            &TRANSMIT[0],
            &TRANSMIT[1],
            &TRANSMIT[2],
            &TRANSMIT[3],
        ],
    ),
    (Group::Oom, &[&OOM_EVENTS]),
    (Group::Process, &[&FILE_DESCRIPTORS, &PROCESSES, &SOCKETS, &THREADS, &THREADS_MAX, &ULIMITS_SOFT]),
    (
        Group::Spec,
        &[
            &SPEC_CPU_PERIOD,
            &SPEC_CPU_SHARES,
            &SPEC_CPU_QUOTA,
            &SPEC_MEMORY_LIMIT,
            &SPEC_MEMORY_RESERVATION,
            &SPEC_MEMORY_SWAP,
            &START_TIME,
        ],
    ),
    (
        Group::Pressure,
        &[
            &PRESSURE[0][0],
            &PRESSURE[0][1],
            &PRESSURE[1][0],
            &PRESSURE[1][1],
            &PRESSURE[2][0],
            &PRESSURE[2][1],
        ],
    ),
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_metric_has_a_name_of_its_own_and_says_what_it_is() {
        let families: Vec<&Family> =
            GROUPS.iter().flat_map(|(_, families)| families.iter().copied()).collect();
        let names: HashSet<&str> = families.iter().map(|family| family.name).collect();
        assert_eq!(names.len(), families.len());
        // What critest 1.37 expects of a runtime.
        assert_eq!(families.len(), 56);
        for family in families {
            assert!(!family.help.is_empty(), "{}", family.name);
            // Two names that do not say what they are.
            let counter = family.name.ends_with("_total") && family.name != "container_fs_inodes_total"
                || family.name == "container_memory_failcnt";
            assert_eq!(family.kind == Counter, counter, "{}", family.name);
        }
    }
}
