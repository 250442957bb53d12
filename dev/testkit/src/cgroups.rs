//! Where the groups of pods and containers are, and what their files say of limits: on a node with the hierarchies of
//! cgroup v1, and on one with v2 only.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Result;

const ROOT: &str = "/sys/fs/cgroup";

/// Whether this is a node with cgroup v2 only.
pub fn unified() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

/// Every hierarchy that is mounted here.
pub fn hierarchies() -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (_, point, kind) = (fields.next()?, fields.next()?, fields.next()?);
            kind.starts_with("cgroup").then(|| PathBuf::from(point))
        })
        .collect()
}

/// Whether groups can have this controller.
pub fn has_controller(name: &str) -> bool {
    if !unified() {
        return Path::new(ROOT).join(name).exists();
    }
    let listed = fs::read_to_string(Path::new(ROOT).join("cgroup.controllers")).unwrap_or_default();
    listed.split_whitespace().any(|listed| listed == name)
}

/// A controller's group of the pods' parent, as a daemon with the cgroupfs driver is given it.
pub fn parent(parent: &str, controller: &str) -> PathBuf {
    let root = Path::new(ROOT);
    let hierarchy = if unified() { root.to_owned() } else { root.join(controller) };
    hierarchy.join(parent.trim_start_matches('/'))
}

/// A controller's group of a container or a sandbox below the pods' parent.
pub fn group(parent: &str, controller: &str, id: &str) -> PathBuf {
    self::parent(parent, controller).join(format!("crio-{id}"))
}

/// What is in force for a container, in the words of v1; numbers as the files have them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of memory.
    pub memory: String,
    /// Bytes of memory and swap together.
    pub memory_and_swap: String,
    /// Shares of the CPU.
    pub shares: Shares,
    /// Microseconds of the CPU in each period.
    pub quota: String,
    /// Microseconds of a period.
    pub period: String,
    /// The list of CPUs.
    pub cpus: String,
}

impl Limits {
    /// Reads the files of a container's groups.
    pub fn read(parent: &str, id: &str) -> Result<Self> {
        let file = |controller: &str, name: &str| -> Result<String> {
            let path = group(parent, controller, id).join(name);
            let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            Ok(text.trim_end().to_owned())
        };
        if !unified() {
            return Ok(Self {
                memory: file("memory", "memory.limit_in_bytes")?,
                memory_and_swap: file("memory", "memory.memsw.limit_in_bytes")?,
                shares: Shares::Shares(file("cpu", "cpu.shares")?.parse()?),
                quota: file("cpu", "cpu.cfs_quota_us")?,
                period: file("cpu", "cpu.cfs_period_us")?,
                cpus: file("cpuset", "cpuset.cpus")?,
            });
        }
        let (memory, swap) = (file("", "memory.max")?, file("", "memory.swap.max")?);
        let memory_and_swap = match (memory.parse::<u64>(), swap.parse::<u64>()) {
            (Ok(memory), Ok(swap)) => (memory + swap).to_string(),
            _ => "max".to_owned(),
        };
        let cpu = file("", "cpu.max")?;
        let (quota, period) = cpu.split_once(' ').ok_or("cpu.max has two words")?;
        Ok(Self {
            memory,
            memory_and_swap,
            shares: Shares::Weight(file("", "cpu.weight")?.parse()?),
            quota: quota.to_owned(),
            period: period.to_owned(),
            cpus: file("", "cpuset.cpus")?,
        })
    }
}

/// How much of the CPU a group gets beside others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shares {
    /// Of v1: 1024 for a CPU.
    Shares(u64),
    /// Of v2: from 1 to 10000.
    Weight(u64),
}

impl Shares {
    /// Whether this is what a runtime makes of that many shares. There are two ways to a weight: the older is linear, the
    /// newer (opencontainers/cgroups 0.0.5, crun 1.24) meets 100 at 1024 shares.
    pub fn are(self, shares: u64) -> bool {
        match self {
            Self::Shares(own) => own == shares,
            Self::Weight(weight) => {
                let linear = 1 + shares.saturating_sub(2) * 9999 / 262_142;
                #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
                let (log, given) = ((shares as f64).log2(), weight as f64);
                let curved = 10_f64.powf((log * log + 125.0 * log) / 612.0 - 7.0 / 34.0).ceil();
                weight == linear || (given - curved).abs() < 0.5
            }
        }
    }
}

/// Why CRIU must not restore here; none where it may. On a machine with cgroup v1 and v2 at once it would copy the whole tree
/// of v2 into the container's group, and leave it there.
pub fn no_restores() -> Option<&'static str> {
    let both = criox_sys::cgroup::both_versions().unwrap_or(true);
    both.then_some("cgroup v1 and v2 are mounted at once, and CRIU would copy all of v2's groups; the node's tests restore")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_is_known_by_either_way_from_shares() {
        for (shares, linear, curved) in [(2, 1, 1), (512, 20, 59), (1024, 39, 100), (262_144, 10_000, 10_000)]
        {
            assert!(Shares::Weight(linear).are(shares) && Shares::Weight(curved).are(shares), "{shares}");
            assert!(!Shares::Weight(linear + 1).are(shares) && !Shares::Weight(curved + 1).are(shares));
        }
        assert!(Shares::Shares(512).are(512) && !Shares::Shares(511).are(512));
    }
}
