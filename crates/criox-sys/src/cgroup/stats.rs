//! What a cgroup has used: its files are opened once, and each reading is a `pread` at 0.
//!
//! Opening costs more than reading, and a list of a node's containers is asked for every few seconds. An open file of a
//! cgroup does not keep the cgroup from being removed: reading then fails with `ENODEV`, and that reading is absent.
//! The kernel keeps a page of memory for each file that was read, so only the files of the usual figures stay open, and
//! only while the process is far from its limit of descriptors ([`set_descriptor_limit`]); the others are opened for
//! each reading.
//!
//! Sources: `Documentation/admin-guide/cgroup-v1/{cpuacct,memory,blkio-controller,pids}.rst`,
//! `Documentation/admin-guide/cgroup-v2.rst`, `Documentation/accounting/psi.rst`.

mod detail;
mod file;
pub mod parse;
mod usage;

pub use detail::{Detail, HugePages, Wanted};
pub use file::{Scratch, kept_descriptors, set_descriptor_limit};
pub use parse::{DeviceIo, Psi, PsiLine};
pub use usage::{Cpu, Gauges, Limits, Memory, Usage};

#[cfg(test)]
pub(crate) mod tests {
    use std::path::Path;

    use super::super::Cgroups;

    /// Controller, name and text of a cgroup's files.
    type Files<'a> = &'a [(&'a str, &'a str, &'a str)];

    pub(crate) const V2_FILES: Files<'_> = &[
        (
            "",
            "cpu.stat",
            "usage_usec 5000\nuser_usec 3000\nsystem_usec 2000\nnr_periods 9\nnr_throttled 4\nthrottled_usec 1234\n",
        ),
        ("", "cpu.max", "50000 100000\n"),
        ("", "cpu.weight", "100\n"),
        (
            "",
            "cpu.pressure",
            "some avg10=1.00 avg60=0.50 avg300=0.10 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
        ),
        ("", "memory.current", "1000000\n"),
        ("", "memory.peak", "1500000\n"),
        ("", "memory.max", "2000000\n"),
        ("", "memory.min", "0\n"),
        ("", "memory.swap.current", "500\n"),
        ("", "memory.swap.max", "max\n"),
        (
            "",
            "memory.stat",
            "anon 300000\nfile 650000\nkernel 50000\nfile_mapped 7000\ninactive_file 600000\nactive_file 50000\npgfault 12\npgmajfault 3\n",
        ),
        ("", "memory.events", "low 0\nhigh 0\nmax 6\noom 2\noom_kill 2\noom_group_kill 0\n"),
        ("", "io.stat", "254:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n"),
        (
            "",
            "io.pressure",
            "some avg10=0.00 avg60=0.00 avg300=0.00 total=9\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n",
        ),
        ("", "pids.current", "4\n"),
        ("", "pids.max", "max\n"),
        ("", "hugetlb.2MB.current", "2097152\n"),
        ("", "hugetlb.2MB.rsvd.current", "0\n"),
    ];

    pub(crate) const V1_FILES: Files<'_> = &[
        ("cpuacct", "cpuacct.usage", "987654321\n"),
        ("cpuacct", "cpuacct.usage_user", "900\n"),
        ("cpuacct", "cpuacct.usage_sys", "80\n"),
        ("cpu", "cpu.stat", "nr_periods 1\nnr_throttled 1\nthrottled_time 55\n"),
        ("cpu", "cpu.cfs_quota_us", "-1\n"),
        ("cpu", "cpu.cfs_period_us", "100000\n"),
        ("cpu", "cpu.shares", "512\n"),
        ("memory", "memory.usage_in_bytes", "1000000\n"),
        ("memory", "memory.max_usage_in_bytes", "1100000\n"),
        ("memory", "memory.limit_in_bytes", "9223372036854771712\n"),
        ("memory", "memory.memsw.limit_in_bytes", "9223372036854771712\n"),
        ("memory", "memory.soft_limit_in_bytes", "9223372036854771712\n"),
        ("memory", "memory.kmem.usage_in_bytes", "4096\n"),
        ("memory", "memory.failcnt", "3\n"),
        ("memory", "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"),
        (
            "memory",
            "memory.stat",
            "cache 1\nrss 2\ntotal_cache 910000\ntotal_rss 200000\ntotal_mapped_file 5\ntotal_swap 64\ntotal_pgfault 40\ntotal_pgmajfault 1\ntotal_inactive_file 900000\n",
        ),
        ("pids", "pids.current", "7\n"),
        ("pids", "pids.max", "100\n"),
        ("blkio", "blkio.throttle.io_service_bytes_recursive", "254:0 Read 1\n254:0 Write 2\nTotal 3\n"),
        ("blkio", "blkio.throttle.io_serviced_recursive", "254:0 Read 1\n254:0 Write 1\nTotal 2\n"),
    ];

    /// A node whose hierarchies are plain directories, with one group.
    pub(crate) fn node(v2: bool, group: &str, files: Files<'_>) -> (tempfile::TempDir, Cgroups) {
        let root = tempfile::tempdir().expect("a temporary directory");
        let mount = |controller: &str| root.path().join(if v2 { "unified" } else { controller });
        for (controller, name, text) in files {
            let directory = mount(controller).join(group.trim_start_matches('/'));
            std::fs::create_dir_all(&directory).expect("it can be made");
            put(&directory.join(name), text);
        }
        let line = |controller: &str| match v2 {
            true => format!("1 1 0:1 / {} rw - cgroup2 cgroup2 rw\n", mount("").display()),
            false => {
                format!("1 1 0:1 / {} rw - cgroup cgroup rw,{controller}\n", mount(controller).display())
            }
        };
        let controllers = ["cpu", "cpuacct", "memory", "pids", "blkio"];
        let mounts: String = controllers.iter().map(|controller| line(controller)).collect();
        (root, Cgroups::from_mountinfo(&mounts).expect("a hierarchy"))
    }

    #[expect(clippy::disallowed_methods, reason = "a file of the test's own directory")]
    fn put(path: &Path, text: &str) {
        std::fs::write(path, text).expect("it can be written");
    }
}
