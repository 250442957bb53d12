//! Figures that only metrics ask for: their files are opened for each reading.

use std::path::PathBuf;

use super::file::{Scratch, read_once};
use super::parse::{self, DeviceIo};
use super::usage::limit;
use crate::cgroup::Cgroups;

/// Which groups of figures are read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    /// [`Detail`]'s fields of time and throttling.
    pub cpu: bool,
    /// Devices.
    pub io: bool,
    /// Huge pages.
    pub huge_pages: bool,
    /// The fields of memory.
    pub memory: bool,
    /// Kills.
    pub oom: bool,
    /// Limits.
    pub spec: bool,
    /// Tasks.
    pub pids: bool,
}

/// Huge pages of one size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HugePages {
    /// As in the file's name: `2MB`, `1GB`.
    pub size: String,
    /// Bytes in use.
    pub usage: u64,
    /// The most bytes that were in use; 0 where the kernel does not keep it (v2).
    pub max_usage: u64,
}

/// What a cgroup's other files say. What the kernel does not know is 0.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Detail {
    /// Nanoseconds in user mode.
    pub user_ns: u64,
    /// Nanoseconds in the kernel.
    pub system_ns: u64,
    /// Periods with a quota of the CPU.
    pub periods: u64,
    /// Those in which the quota was used up.
    pub throttled_periods: u64,
    /// Nanoseconds of waiting for the next period.
    pub throttled_ns: u64,
    /// Block devices.
    pub devices: Vec<DeviceIo>,
    /// Huge pages, by size.
    pub huge_pages: Vec<HugePages>,
    /// Bytes of the page cache.
    pub cache: u64,
    /// Bytes of the kernel's memory.
    pub kernel: u64,
    /// Bytes of mapped files.
    pub mapped_file: u64,
    /// How often the limit was hit.
    pub failures: u64,
    /// The most bytes that were charged.
    pub max_usage: u64,
    /// Processes killed for want of memory.
    pub oom_kills: u64,
    /// Length of a period in microseconds.
    pub cpu_period: u64,
    /// Quota in a period in microseconds; none: no quota.
    pub cpu_quota: Option<u64>,
    /// Weight, in the notation of v1.
    pub cpu_shares: u64,
    /// Limit of memory; 0: none.
    pub memory_limit: u64,
    /// Memory that is not reclaimed before that of others; 0: none.
    pub memory_reservation: u64,
    /// Limit of memory and swap together; 0: none.
    pub memory_swap_limit: u64,
    /// Limit of tasks; 0: none.
    pub tasks_max: u64,
}

impl Cgroups {
    /// Reads what is wanted of the cgroup at `path`.
    pub fn detail(&self, path: &str, wanted: Wanted, scratch: &mut Scratch) -> Detail {
        let mut reader = Reader { cgroups: self, path, scratch };
        let mut detail = Detail::default();
        if wanted.cpu {
            reader.cpu(&mut detail);
        }
        if wanted.io {
            detail.devices = reader.devices();
        }
        if wanted.huge_pages {
            detail.huge_pages = reader.huge_pages();
        }
        if wanted.memory {
            reader.memory(&mut detail);
        }
        if wanted.oom {
            detail.oom_kills = match self.is_v2() {
                true => reader.key("memory", "memory.events", b"oom_kill"),
                false => reader.key("memory", "memory.oom_control", b"oom_kill"),
            };
        }
        if wanted.spec {
            reader.spec(&mut detail);
        }
        if wanted.pids {
            detail.tasks_max = reader.number("pids", "pids.max");
        }
        detail
    }
}

struct Reader<'a> {
    cgroups: &'a Cgroups,
    path: &'a str,
    scratch: &'a mut Scratch,
}

impl Reader<'_> {
    fn file(&self, controller: &str, name: &str) -> Option<PathBuf> {
        self.cgroups.dir(controller, self.path).map(|dir| dir.join(name))
    }

    fn bytes(&mut self, controller: &str, name: &str) -> &[u8] {
        let path = self.file(controller, name);
        path.and_then(|path| read_once(&path, self.scratch)).unwrap_or_default()
    }

    fn number(&mut self, controller: &str, name: &str) -> u64 {
        parse::number(self.bytes(controller, name)).unwrap_or(0)
    }

    fn limit(&mut self, controller: &str, name: &str) -> u64 {
        limit(self.file(controller, name).as_deref(), self.scratch).unwrap_or(0)
    }

    fn key(&mut self, controller: &str, name: &str, wanted: &[u8]) -> u64 {
        let mut found = 0;
        parse::keyed(self.bytes(controller, name), |key, value| {
            if key == wanted {
                found = value;
            }
        });
        found
    }

    fn cpu(&mut self, detail: &mut Detail) {
        let v2 = self.cgroups.is_v2();
        let stat = self.bytes("cpu", "cpu.stat");
        parse::keyed(stat, |key, value| match key {
            b"user_usec" => detail.user_ns = value.saturating_mul(1000),
            b"system_usec" => detail.system_ns = value.saturating_mul(1000),
            b"nr_periods" => detail.periods = value,
            b"nr_throttled" => detail.throttled_periods = value,
            b"throttled_usec" => detail.throttled_ns = value.saturating_mul(1000),
            b"throttled_time" => detail.throttled_ns = value,
            _ => {}
        });
        if !v2 {
            detail.user_ns = self.number("cpuacct", "cpuacct.usage_user");
            detail.system_ns = self.number("cpuacct", "cpuacct.usage_sys");
        }
    }

    fn devices(&mut self) -> Vec<DeviceIo> {
        if self.cgroups.is_v2() {
            return parse::io_v2(self.bytes("io", "io.stat"));
        }
        let bytes = self.bytes("blkio", "blkio.throttle.io_service_bytes_recursive").to_vec();
        parse::io_v1(&bytes, self.bytes("blkio", "blkio.throttle.io_serviced_recursive"))
    }

    fn memory(&mut self, detail: &mut Detail) {
        let v2 = self.cgroups.is_v2();
        let stat = self.bytes("memory", "memory.stat");
        parse::keyed(stat, |key, value| match key {
            b"file" | b"total_cache" => detail.cache = value,
            b"kernel" => detail.kernel = value,
            b"file_mapped" | b"total_mapped_file" => detail.mapped_file = value,
            _ => {}
        });
        if v2 {
            // The number of times that reclaim had to make room below the limit.
            detail.failures = self.key("memory", "memory.events", b"max");
            detail.max_usage = self.number("memory", "memory.peak");
        } else {
            detail.kernel = self.number("memory", "memory.kmem.usage_in_bytes");
            detail.failures = self.number("memory", "memory.failcnt");
            detail.max_usage = self.number("memory", "memory.max_usage_in_bytes");
        }
    }

    fn spec(&mut self, detail: &mut Detail) {
        if self.cgroups.is_v2() {
            let max = String::from_utf8_lossy(self.bytes("cpu", "cpu.max")).into_owned();
            let mut fields = max.split_ascii_whitespace();
            detail.cpu_quota = fields.next().and_then(|quota| quota.parse().ok());
            detail.cpu_period = fields.next().and_then(|period| period.parse().ok()).unwrap_or(0);
            detail.cpu_shares = shares(self.number("cpu", "cpu.weight"));
            detail.memory_limit = self.limit("memory", "memory.max");
            detail.memory_reservation = self.limit("memory", "memory.min");
            let swap = limit(self.file("memory", "memory.swap.max").as_deref(), self.scratch);
            detail.memory_swap_limit = match (detail.memory_limit, swap) {
                (0, _) | (_, None) => 0,
                (memory, Some(swap)) => memory.saturating_add(swap),
            };
        } else {
            // -1 is no number.
            detail.cpu_quota = parse::number(self.bytes("cpu", "cpu.cfs_quota_us"));
            detail.cpu_period = self.number("cpu", "cpu.cfs_period_us");
            detail.cpu_shares = self.number("cpu", "cpu.shares");
            detail.memory_limit = self.limit("memory", "memory.limit_in_bytes");
            detail.memory_reservation = self.limit("memory", "memory.soft_limit_in_bytes");
            detail.memory_swap_limit = self.limit("memory", "memory.memsw.limit_in_bytes");
        }
    }

    fn huge_pages(&mut self) -> Vec<HugePages> {
        let v2 = self.cgroups.is_v2();
        let Some(directory) = self.cgroups.dir("hugetlb", self.path) else { return Vec::new() };
        let suffix = if v2 { ".current" } else { ".usage_in_bytes" };
        let mut sizes: Vec<String> = std::fs::read_dir(&directory)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| page_size(entry.file_name().to_str()?, suffix).map(str::to_owned))
            .collect();
        sizes.sort();
        let mut pages = Vec::new();
        for size in sizes {
            let usage = self.number("hugetlb", &format!("hugetlb.{size}{suffix}"));
            let max_usage = match v2 {
                true => 0,
                false => self.number("hugetlb", &format!("hugetlb.{size}.max_usage_in_bytes")),
            };
            pages.push(HugePages { size, usage, max_usage });
        }
        pages
    }
}

/// `2MB` of `hugetlb.2MB.current`, but nothing of `hugetlb.2MB.rsvd.current`.
fn page_size<'a>(name: &'a str, suffix: &str) -> Option<&'a str> {
    let size = name.strip_prefix("hugetlb.")?.strip_suffix(suffix)?;
    (!size.contains('.')).then_some(size)
}

/// A weight of v2 (1 to 10000) as the shares (2 to 262144) that a runtime makes it of. Newer runtimes use a curve that
/// meets 1024 shares at weight 100; the way back is that of the straight line, as cAdvisor's.
fn shares(weight: u64) -> u64 {
    match weight {
        0 => 0,
        weight => 2 + (weight - 1).saturating_mul(262_142) / 9999,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::stats::tests::{V1_FILES, V2_FILES, node};

    const ALL: Wanted =
        Wanted { cpu: true, io: true, huge_pages: true, memory: true, oom: true, spec: true, pids: true };

    #[test]
    fn all_of_a_v2_group() {
        let (_directory, cgroups) = node(true, "/pod/crio-1", V2_FILES);
        let detail = cgroups.detail("/pod/crio-1", ALL, &mut Scratch::default());
        let device = DeviceIo {
            major: 254,
            read_bytes: 10,
            write_bytes: 20,
            reads: 1,
            writes: 2,
            ..DeviceIo::default()
        };
        let expected = Detail {
            user_ns: 3_000_000,
            system_ns: 2_000_000,
            periods: 9,
            throttled_periods: 4,
            throttled_ns: 1_234_000,
            devices: vec![device],
            huge_pages: vec![HugePages { size: "2MB".into(), usage: 2_097_152, max_usage: 0 }],
            cache: 650_000,
            kernel: 50_000,
            mapped_file: 7000,
            failures: 6,
            max_usage: 1_500_000,
            oom_kills: 2,
            cpu_period: 100_000,
            cpu_quota: Some(50_000),
            cpu_shares: 2597,
            memory_limit: 2_000_000,
            memory_reservation: 0,
            memory_swap_limit: 0,
            tasks_max: 0,
        };
        assert_eq!(detail, expected);
    }

    #[test]
    fn all_of_a_v1_group() {
        let (_directory, cgroups) = node(false, "/pod/crio-1", V1_FILES);
        let detail = cgroups.detail("/pod/crio-1", ALL, &mut Scratch::default());
        assert_eq!((detail.user_ns, detail.system_ns, detail.throttled_ns), (900, 80, 55));
        assert_eq!((detail.cpu_quota, detail.cpu_period, detail.cpu_shares), (None, 100_000, 512));
        assert_eq!((detail.memory_limit, detail.memory_swap_limit), (0, 0));
        assert_eq!(
            (detail.cache, detail.kernel, detail.failures, detail.max_usage),
            (910_000, 4096, 3, 1_100_000)
        );
        assert_eq!((detail.oom_kills, detail.tasks_max), (1, 100));
        assert_eq!(detail.devices.len(), 1);
    }

    #[test]
    fn what_is_not_wanted_is_not_read() {
        let (_directory, cgroups) = node(true, "/pod/crio-1", V2_FILES);
        let none = cgroups.detail("/pod/crio-1", Wanted::default(), &mut Scratch::default());
        assert_eq!(none, Detail::default());
    }

    #[test]
    fn reserved_huge_pages_are_not_used_ones() {
        assert_eq!(page_size("hugetlb.1GB.current", ".current"), Some("1GB"));
        for name in ["hugetlb.1GB.rsvd.current", "hugetlb.1GB.max", "memory.current"] {
            assert_eq!(page_size(name, ".current"), None, "{name}");
        }
    }
}
