//! Memory and processor time of a daemon and of what it keeps for its pods, from procfs (proc(5)).

use std::collections::{BTreeMap, BTreeSet};

use crate::Failure;
use crate::args::Socket;

/// A process, as far as it matters here.
#[derive(Debug, Clone, Default, PartialEq)]
struct Process {
    parent: u32,
    /// Name as the kernel has it: at most 15 bytes.
    name: String,
    /// Arguments, with spaces between them.
    command: String,
}

/// The processes of one daemon.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Family {
    /// The daemon and its children that are no helpers.
    pub(crate) daemon: BTreeSet<u32>,
    /// Monitors, shims, pause processes.
    pub(crate) helpers: BTreeSet<u32>,
}

impl Family {
    /// Looks for them now.
    pub(crate) fn find(socket: &Socket) -> Result<Self, Failure> {
        let file = socket.pid_file.as_ref().ok_or("no --pid-file tells the daemon's PID")?;
        let text =
            std::fs::read_to_string(file).map_err(|error| format!("reading {}: {error}", file.display()))?;
        let pid = text.trim().parse().map_err(|_| format!("{} holds no PID", file.display()))?;
        Ok(sort(&processes()?, pid, socket))
    }
}

/// Tells the daemon's tree from its helpers.
fn sort(all: &BTreeMap<u32, Process>, daemon: u32, socket: &Socket) -> Family {
    let named = |process: &Process| {
        // Names are cut after 15 bytes.
        socket.helpers.iter().any(|name| name.get(..15).unwrap_or(name) == process.name)
    };
    let mut helpers: BTreeSet<u32> = all
        .iter()
        .filter(|(_, process)| named(process) && process.command.contains(&socket.mark))
        .map(|(pid, _)| *pid)
        .collect();
    // A pause process says nothing about whose it is, but its parent does.
    for (pid, process) in all {
        if named(process) && helpers.contains(&process.parent) {
            helpers.insert(*pid);
        }
    }
    let mut family = Family { daemon: BTreeSet::from([daemon]), helpers };
    let mut grown = true;
    while grown {
        let children: Vec<u32> = all
            .iter()
            .filter(|(pid, process)| {
                family.daemon.contains(&process.parent)
                    && !family.daemon.contains(pid)
                    && !family.helpers.contains(pid)
            })
            .map(|(pid, _)| *pid)
            .collect();
        grown = !children.is_empty();
        family.daemon.extend(children);
    }
    family
}

/// Every process that can be read; one that ends meanwhile is left out.
fn processes() -> Result<BTreeMap<u32, Process>, Failure> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some(mut process) = parse_stat(&stat) else { continue };
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        process.command = String::from_utf8_lossy(&command).replace('\0', " ");
        all.insert(pid, process);
    }
    Ok(all)
}

/// `pid (name) state parent …`, where the name may hold anything.
fn parse_stat(stat: &str) -> Option<Process> {
    let (before, after) = stat.rsplit_once(") ")?;
    let name = before.split_once('(')?.1.to_owned();
    let parent = after.split(' ').nth(1)?.parse().ok()?;
    Some(Process { parent, name, command: String::new() })
}

/// Proportional set size of these processes together, in kilobytes of 1024 bytes.
pub(crate) fn pss(pids: &BTreeSet<u32>) -> f64 {
    let one = |pid: &u32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        parse_pss(&text).unwrap_or(0.0)
    };
    pids.iter().map(one).sum()
}

fn parse_pss(rollup: &str) -> Option<f64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

/// Processor time that these processes have used so far, in seconds; it is counted in hundredths.
pub(crate) fn cpu(pids: &BTreeSet<u32>) -> f64 {
    let one = |pid: &u32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        parse_cpu(&text).unwrap_or(0.0)
    };
    pids.iter().map(one).sum()
}

/// User and system time: fields 14 and 15.
fn parse_cpu(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let mut next = || fields.next()?.parse::<f64>().ok();
    Some((next()? + next()?) / 100.0)
}

/// Processor time that the whole machine has used so far, in seconds, whoever it was for.
pub(crate) fn machine_cpu() -> f64 {
    parse_machine(&std::fs::read_to_string("/proc/stat").unwrap_or_default()).unwrap_or(0.0)
}

/// `cpu user nice system idle iowait irq softirq …`: all but the idle times.
fn parse_machine(stat: &str) -> Option<f64> {
    let fields = stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace();
    let busy = fields.enumerate().filter(|(at, _)| matches!(at, 0..=2 | 5 | 6));
    busy.map(|(_, field)| field.parse::<f64>().ok()).sum::<Option<f64>>().map(|hundredths| hundredths / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn procfs_is_read() {
        let stat = "42 (a) b) S 7 1 1 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 1 0";
        let want = Process { parent: 7, name: "a) b".into(), command: String::new() };
        assert_eq!(parse_stat(stat), Some(want));
        assert_eq!(parse_cpu(stat), Some(2.0));
        assert_eq!(parse_stat("42"), None);
        let rollup =
            "55-7f ---p 0 00:00 0 [rollup]\nRss:  900 kB\nPss:                 285 kB\nPss_Anon: 1 kB\n";
        assert_eq!(parse_pss(rollup), Some(285.0));
        assert_eq!(parse_pss(""), None);
        assert_eq!(parse_machine("cpu  100 10 50 9999 777 20 20 5 0 0\ncpu0 1\n"), Some(2.0));
    }

    #[test]
    fn our_own_process_has_memory() {
        assert!(pss(&BTreeSet::from([std::process::id()])) > 0.0);
    }

    #[test]
    fn helpers_are_told_by_name_mark_and_parent() {
        let process = |parent, name: &str, command: &str| Process {
            parent,
            name: name.to_owned(),
            command: command.to_owned(),
        };
        let all = BTreeMap::from([
            (10, process(1, "daemon", "daemon")),
            (11, process(10, "worker", "daemon worker")),
            (20, process(1, "containerd-shim", "containerd-shim-runc-v2 -address /a.sock")),
            (21, process(20, "pause", "/pause")),
            (22, process(20, "sh", "sh -c")),
            (30, process(1, "containerd-shim", "containerd-shim-runc-v2 -address /b.sock")),
            (31, process(30, "pause", "/pause")),
        ]);
        let socket = Socket {
            helpers: vec!["containerd-shim-runc-v2".into(), "pause".into()],
            mark: "/a.sock".into(),
            ..Socket::default()
        };
        let family = sort(&all, 10, &socket);
        assert_eq!(family.daemon, BTreeSet::from([10, 11]));
        assert_eq!(family.helpers, BTreeSet::from([20, 21]));
    }
}
