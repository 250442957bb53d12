//! The rows of a container.

use criox_sys::cgroup::stats::{Cpu, Detail, DeviceIo, HugePages, Memory, Usage};

use super::families::{
    BLKIO, CFS_PERIODS, CFS_THROTTLED, CFS_THROTTLED_PERIODS, CPU_SYSTEM, CPU_USAGE, CPU_USER,
    FILE_DESCRIPTORS, FS_INODES_FREE, FS_INODES_TOTAL, FS_LIMIT, FS_READS, FS_READS_BYTES, FS_USAGE,
    FS_WRITES, FS_WRITES_BYTES, HUGE_MAX, HUGE_USAGE, MEMORY_CACHE, MEMORY_FAILCNT, MEMORY_FAILURES,
    MEMORY_KERNEL, MEMORY_MAPPED, MEMORY_MAX_USAGE, MEMORY_RSS, MEMORY_SWAP, MEMORY_USAGE,
    MEMORY_WORKING_SET, PRESSURE, PROCESSES, SOCKETS, SPEC_CPU_PERIOD, SPEC_CPU_QUOTA, SPEC_CPU_SHARES,
    SPEC_MEMORY_LIMIT, SPEC_MEMORY_RESERVATION, SPEC_MEMORY_SWAP, START_TIME, THREADS, THREADS_MAX,
    ULIMITS_SOFT,
};
use super::process::Processes;
use super::{Rows, seconds};
use crate::walk::{Figure, Room};

const SECOND: u64 = 1_000_000_000;

pub(super) fn cpu(rows: &mut Rows<'_>, cpu: &Cpu, detail: &Detail) {
    rows.push(&CPU_USER, detail.user_ns / SECOND);
    rows.push(&CPU_SYSTEM, detail.system_ns / SECOND);
    rows.push_with(&CPU_USAGE, ["total"], cpu.usage_ns / SECOND);
    rows.push(&CFS_PERIODS, detail.periods);
    rows.push(&CFS_THROTTLED_PERIODS, detail.throttled_periods);
    rows.push(&CFS_THROTTLED, detail.throttled_ns / SECOND);
}

/// What is not known yet has no row.
pub(super) fn disk(rows: &mut Rows<'_>, layer: Option<Figure>, room: Option<Room>) {
    if let Some(room) = room {
        rows.push(&FS_INODES_FREE, room.inodes_free);
        rows.push(&FS_INODES_TOTAL, room.inodes);
        rows.push(&FS_LIMIT, room.bytes);
    }
    if let Some(layer) = layer {
        rows.push(&FS_USAGE, layer.bytes);
    }
}

pub(super) fn disk_io(rows: &mut Rows<'_>, devices: &[DeviceIo]) {
    for io in devices {
        let (major, minor) = (io.major.to_string(), io.minor.to_string());
        let device = device_name(io.major, io.minor);
        let device = device.as_str();
        rows.push_with(&FS_READS_BYTES, [device], io.read_bytes);
        rows.push_with(&FS_READS, [device], io.reads);
        rows.push_with(&FS_WRITES_BYTES, [device], io.write_bytes);
        rows.push_with(&FS_WRITES, [device], io.writes);
        for (operation, bytes) in
            [("Read", io.read_bytes), ("Write", io.write_bytes), ("Discard", io.discard_bytes)]
        {
            rows.push_with(&BLKIO, [device, &major, &minor, operation], bytes);
        }
    }
}

/// `/dev/sda` of `8:0`, as cAdvisor names it; the numbers themselves for a device that has gone.
fn device_name(major: u32, minor: u32) -> String {
    let uevent = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent"));
    let name = uevent.ok().and_then(|text| {
        let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
        Some(format!("/dev/{name}"))
    });
    name.unwrap_or_else(|| format!("{major}:{minor}"))
}

pub(super) fn huge_pages(rows: &mut Rows<'_>, pages: &[HugePages]) {
    for pages in pages {
        rows.push_with(&HUGE_USAGE, [&pages.size], pages.usage);
        rows.push_with(&HUGE_MAX, [&pages.size], pages.max_usage);
    }
}

pub(super) fn memory(rows: &mut Rows<'_>, memory: &Memory, detail: &Detail) {
    rows.push(&MEMORY_CACHE, detail.cache);
    rows.push(&MEMORY_RSS, memory.rss);
    rows.push(&MEMORY_KERNEL, detail.kernel);
    rows.push(&MEMORY_MAPPED, detail.mapped_file);
    rows.push(&MEMORY_SWAP, memory.swap.unwrap_or(0));
    rows.push(&MEMORY_FAILCNT, detail.failures);
    rows.push(&MEMORY_USAGE, memory.usage);
    rows.push(&MEMORY_MAX_USAGE, detail.max_usage);
    rows.push(&MEMORY_WORKING_SET, memory.working_set());
    for (kind, faults) in [("pgfault", memory.page_faults), ("pgmajfault", memory.major_page_faults)] {
        // A container has nothing below it but its execs, which are its own.
        for scope in ["container", "hierarchy"] {
            rows.push_with(&MEMORY_FAILURES, [kind, scope], faults.unwrap_or(0));
        }
    }
}

pub(super) fn processes(rows: &mut Rows<'_>, processes: &Processes, tasks: u64, tasks_max: u64) {
    rows.push(&FILE_DESCRIPTORS, processes.descriptors);
    rows.push(&PROCESSES, processes.count);
    rows.push(&SOCKETS, processes.sockets);
    rows.push(&THREADS, tasks);
    rows.push(&THREADS_MAX, tasks_max);
    if let Some(limit) = processes.open_files_max {
        rows.push_with(&ULIMITS_SOFT, ["max_open_files"], limit);
    }
}

pub(super) fn spec(rows: &mut Rows<'_>, detail: &Detail, started_at: i64) {
    rows.push(&SPEC_CPU_PERIOD, detail.cpu_period);
    rows.push(&SPEC_CPU_SHARES, detail.cpu_shares);
    if let Some(quota) = detail.cpu_quota {
        rows.push(&SPEC_CPU_QUOTA, quota);
    }
    rows.push(&SPEC_MEMORY_LIMIT, detail.memory_limit);
    rows.push(&SPEC_MEMORY_RESERVATION, detail.memory_reservation);
    rows.push(&SPEC_MEMORY_SWAP, detail.memory_swap_limit);
    rows.push(&START_TIME, seconds(started_at));
}

pub(super) fn pressure(rows: &mut Rows<'_>, usage: &Usage) {
    let read = [usage.cpu.and_then(|cpu| cpu.psi), usage.memory.and_then(|memory| memory.psi), usage.io];
    for ([stalled, waiting], psi) in PRESSURE.iter().zip(read) {
        if let Some(psi) = psi {
            rows.push(stalled, psi.full.total_us / 1_000_000);
            rows.push(waiting, psi.some.total_us / 1_000_000);
        }
    }
}
