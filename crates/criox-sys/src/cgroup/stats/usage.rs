//! The figures that are asked for every few seconds.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::file::{File, Scratch, read_once};
use super::parse::{self, Psi};
use crate::cgroup::{Cgroups, below};

/// How old a limit may be: limits change when somebody changes them, and their files are not kept open.
const LIMITS_AGE: Duration = Duration::from_secs(5);
/// v1 rounds "no limit" down to whole pages below `i64::MAX`.
const UNLIMITED: u64 = 1 << 62;

/// What a cgroup has used, from one reading. What could not be read is absent.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Usage {
    /// Of the CPU.
    pub cpu: Option<Cpu>,
    /// Of memory.
    pub memory: Option<Memory>,
    /// Waits for disks; v2 only.
    pub io: Option<Psi>,
}

/// Time of the CPU.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cpu {
    /// Nanoseconds of all cores since the cgroup exists.
    pub usage_ns: u64,
    /// Waits for the CPU; v2 only.
    pub psi: Option<Psi>,
}

/// Memory, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Memory {
    /// All that is charged, page cache included.
    pub usage: u64,
    /// File pages that nobody has touched for a while.
    pub inactive_file: u64,
    /// Anonymous memory.
    pub rss: u64,
    /// Faults since the cgroup exists; absent where the kernel doesn't count them.
    pub page_faults: Option<u64>,
    /// Those of them that read a disk.
    pub major_page_faults: Option<u64>,
    /// What is swapped out; absent without accounting of swap.
    pub swap: Option<u64>,
    /// Limits of this cgroup itself.
    pub limits: Limits,
    /// Waits for memory; v2 only.
    pub psi: Option<Psi>,
}

/// Limits of memory, in bytes; none: there is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Of memory.
    pub memory: Option<u64>,
    /// Of what may be swapped out.
    pub swap: Option<u64>,
}

impl Memory {
    /// What can't be given back without harm, as the kubelet computes it: usage without inactive file pages.
    pub fn working_set(&self) -> u64 {
        self.usage.saturating_sub(self.inactive_file)
    }

    /// What is left below the limit, if there is one.
    pub fn available(&self) -> Option<u64> {
        Some(self.limits.memory?.saturating_sub(self.working_set()))
    }

    /// What more may be swapped out, if there is a limit.
    pub fn swap_available(&self) -> Option<u64> {
        Some(self.limits.swap?.saturating_sub(self.swap?))
    }
}

/// The files of one cgroup. Cheap to make: they are opened at the first reading.
#[derive(Debug)]
pub struct Gauges {
    v2: bool,
    cpu: File,
    memory: File,
    memory_stat: File,
    /// v2 only; v1 has it in `memory.stat`.
    swap: File,
    pids: File,
    pressure: [File; 3],
    limit_paths: [Option<PathBuf>; 2],
    limits: Mutex<Option<(Instant, Limits)>>,
}

impl Cgroups {
    /// The files of the cgroup at `path`, which need not exist yet.
    pub fn gauges(&self, path: &str) -> Gauges {
        let file = |controller: &str, name: &str| self.dir(controller, path).map(|dir| dir.join(name));
        let v2 = self.is_v2();
        let name = |v1: &'static str, v2_name: &'static str| if v2 { v2_name } else { v1 };
        // On a hybrid node a runtime may have put the processes into the v2 tree, too, which measures pressure.
        let unified = self.hierarchies().iter().find(|hierarchy| hierarchy.controllers.is_empty());
        let unified = unified.map(|hierarchy| below(&hierarchy.mount, path));
        let pressure = |name: &str| File::new(unified.as_ref().map(|dir| dir.join(name)));
        Gauges {
            v2,
            cpu: File::new(file("cpuacct", name("cpuacct.usage", "cpu.stat"))),
            memory: File::new(file("memory", name("memory.usage_in_bytes", "memory.current"))),
            memory_stat: File::new(file("memory", "memory.stat")),
            swap: File::new(if v2 { file("memory", "memory.swap.current") } else { None }),
            pids: File::new(file("pids", "pids.current")),
            pressure: [pressure("cpu.pressure"), pressure("memory.pressure"), pressure("io.pressure")],
            limit_paths: [
                file("memory", name("memory.limit_in_bytes", "memory.max")),
                file("memory", name("memory.memsw.limit_in_bytes", "memory.swap.max")),
            ],
            limits: Mutex::new(None),
        }
    }
}

impl Gauges {
    /// Reads all of the usual figures.
    pub fn read(&self, scratch: &mut Scratch) -> Usage {
        let [cpu_psi, memory_psi, io_psi] = &self.pressure;
        Usage {
            cpu: self.cpu_usage(scratch).map(|usage_ns| Cpu { usage_ns, psi: pressure(cpu_psi, scratch) }),
            memory: self
                .memory(scratch)
                .map(|memory| Memory { psi: pressure(memory_psi, scratch), ..memory }),
            io: pressure(io_psi, scratch),
        }
    }

    /// Nanoseconds of the CPU alone: one reading.
    pub fn cpu_usage(&self, scratch: &mut Scratch) -> Option<u64> {
        let bytes = self.cpu.read(scratch)?;
        if !self.v2 {
            return parse::number(bytes);
        }
        let mut usage = None;
        parse::keyed(bytes, |key, value| {
            if key == b"usage_usec" {
                usage = Some(value.saturating_mul(1000));
            }
        });
        usage
    }

    /// Tasks in the cgroup and those below it, threads included (`pids.current`).
    pub fn tasks(&self, scratch: &mut Scratch) -> Option<u64> {
        parse::number(self.pids.read(scratch)?)
    }

    fn memory(&self, scratch: &mut Scratch) -> Option<Memory> {
        let usage = parse::number(self.memory.read(scratch)?)?;
        let mut memory = Memory { usage, ..Memory::default() };
        // Without it the working set would be wrong, and by gigabytes.
        let stat = self.memory_stat.read(scratch)?;
        if self.v2 {
            parse::keyed(stat, |key, value| match key {
                b"inactive_file" => memory.inactive_file = value,
                b"anon" => memory.rss = value,
                b"pgfault" => memory.page_faults = Some(value),
                b"pgmajfault" => memory.major_page_faults = Some(value),
                _ => {}
            });
            memory.swap = self.swap.read(scratch).and_then(parse::number);
        } else {
            parse::keyed(stat, |key, value| match key {
                b"total_inactive_file" => memory.inactive_file = value,
                b"total_rss" => memory.rss = value,
                b"total_pgfault" => memory.page_faults = Some(value),
                b"total_pgmajfault" => memory.major_page_faults = Some(value),
                b"total_swap" => memory.swap = Some(value),
                _ => {}
            });
        }
        memory.limits = self.limits(scratch);
        Some(memory)
    }

    /// The limits, at most a few seconds old.
    fn limits(&self, scratch: &mut Scratch) -> Limits {
        let known = *self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((read, limits)) = known
            && read.elapsed() < LIMITS_AGE
        {
            return limits;
        }
        let mut read = |path: &Option<PathBuf>| limit(path.as_deref(), scratch);
        let [memory, swap] = &self.limit_paths;
        let (memory, swap) = (read(memory), read(swap));
        let swap = match self.v2 {
            true => swap,
            // v1 limits both together.
            false => swap.map(|both| both.saturating_sub(memory.unwrap_or(0))),
        };
        let limits = Limits { memory, swap };
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), limits));
        limits
    }
}

pub(super) fn limit(path: Option<&Path>, scratch: &mut Scratch) -> Option<u64> {
    parse::number(read_once(path?, scratch)?).filter(|limit| *limit < UNLIMITED)
}

fn pressure(file: &File, scratch: &mut Scratch) -> Option<Psi> {
    parse::psi(file.read(scratch)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::stats::tests::{V1_FILES, V2_FILES, node};

    #[test]
    fn a_v2_group_is_read_from_its_files() {
        let (_directory, cgroups) = node(true, "/kubepods/pod1/crio-2", V2_FILES);
        let usage = cgroups.gauges("/kubepods/pod1/crio-2").read(&mut Scratch::default());
        let cpu = usage.cpu.expect("a CPU");
        assert_eq!((cpu.usage_ns, cpu.psi.expect("pressure").some.total_us), (5_000_000, 77));
        let memory = usage.memory.expect("memory");
        assert_eq!((memory.usage, memory.rss, memory.working_set()), (1_000_000, 300_000, 400_000));
        assert_eq!((memory.page_faults, memory.major_page_faults), (Some(12), Some(3)));
        assert_eq!(
            (memory.available(), memory.swap, memory.swap_available()),
            (Some(1_600_000), Some(500), None)
        );
        assert_eq!(usage.io.expect("pressure").full.total_us, 5);
        assert_eq!(cgroups.gauges("/kubepods/pod1/crio-2").tasks(&mut Scratch::default()), Some(4));
    }

    #[test]
    fn a_v1_group_is_read_with_what_lies_below_it() {
        let (_directory, cgroups) = node(false, "/kubepods/pod1/crio-2", V1_FILES);
        let usage = cgroups.gauges("/kubepods/pod1/crio-2").read(&mut Scratch::default());
        let cpu = usage.cpu.expect("a CPU");
        assert_eq!((cpu.usage_ns, cpu.psi), (987_654_321, None));
        let memory = usage.memory.expect("memory");
        assert_eq!((memory.usage, memory.rss, memory.working_set()), (1_000_000, 200_000, 100_000));
        assert_eq!((memory.available(), memory.swap, memory.swap_available()), (None, Some(64), None));
        assert_eq!((memory.page_faults, usage.io), (Some(40), None));
    }

    #[test]
    fn a_group_that_has_gone_has_no_figures() {
        let (_directory, cgroups) = node(true, "/here", V2_FILES);
        assert_eq!(cgroups.gauges("/gone").read(&mut Scratch::default()), Usage::default());
    }

    #[test]
    fn a_malformed_file_leaves_its_own_figures_out() {
        let broken: Vec<(&str, &str, &str)> = V2_FILES
            .iter()
            .map(|&(controller, name, text)| match name {
                "memory.current" => (controller, name, "many\n"),
                "cpu.pressure" => (controller, name, "\0\0"),
                _ => (controller, name, text),
            })
            .collect();
        let (_directory, cgroups) = node(true, "/broken", &broken);
        let usage = cgroups.gauges("/broken").read(&mut Scratch::default());
        assert_eq!(usage.memory, None);
        assert_eq!(usage.cpu.expect("a CPU").psi, None);
    }

    #[test]
    fn the_working_set_is_never_negative() {
        let memory = Memory {
            usage: 10,
            inactive_file: 20,
            limits: Limits { memory: Some(5), swap: Some(1) },
            swap: Some(9),
            ..Memory::default()
        };
        assert_eq!(
            (memory.working_set(), memory.available(), memory.swap_available()),
            (0, Some(5), Some(0))
        );
    }
}
