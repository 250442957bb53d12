//! What monitors cost: memory of many after each has logged a burst, and speed and CPU of one that logs.
//!
//! `scripts/sandboxed cargo bench -p criox-monitor --bench footprint [-- PODS [LINES]]`; `CRIOX_MONITOR` names the
//! build to be measured (that of `scripts/build` is the one that counts).

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark fails by panicking, tells its result, and shares the tests' harness"
)]

#[path = "../tests/harness/mod.rs"]
mod harness;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use harness::{CRUN, Pod, ready};

/// Bytes of a line, its newline included.
const LINE: usize = 100;
/// Lines of the burst before memory is looked at.
const BURST: usize = 100_000;

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench").map(|arg| arg.parse().unwrap());
    let (pods, lines) = (args.next().unwrap_or(50), args.next().unwrap_or(3_000_000));
    if ready(CRUN) {
        if lines > 0 {
            log(lines);
        }
        if pods > 0 {
            memory(pods);
        }
    }
}

fn script(lines: usize) -> String {
    format!("yes {} | head -n {lines}", "x".repeat(LINE - 1))
}

fn log(lines: usize) {
    let mut pod = Pod::new(CRUN);
    pod.create("c1", &script(lines));
    let (begun, before) = (Instant::now(), cpu(&pod));
    pod.start("c1");
    let limit = Duration::from_secs(60);
    while !pod.path("exits/c1").exists() {
        assert!(begun.elapsed() < limit);
        std::thread::sleep(Duration::from_millis(2));
    }
    let (took, after) = (begun.elapsed().as_secs_f64(), cpu(&pod));
    let [user, system] = [after.0 - before.0, after.1 - before.1];
    pod.client.exit_of("c1");
    let text = std::fs::read(pod.path("c1.clog")).unwrap();
    let whole = text.len() / (LINE + 40);
    let split = text.split_inclusive(|b| *b == b'\n').filter(|line| line[38] == b'P').count();
    assert_eq!((whole, text.len() % (LINE + 40), split), (lines, 0, 0), "lines, rest, split");
    let bytes = (lines * LINE) as f64;
    println!(
        "log: {:.0} MB/s, {:.2} CPU-s/GB (user {user:.2} s, system {system:.2} s), {split} of {lines} lines split",
        bytes / 1e6 / took,
        (user + system) / (bytes / 1e9)
    );
    pod.delete("c1");
}

fn memory(count: usize) {
    let mut pods: Vec<Pod> = (0..count)
        .map(|_| {
            let mut pod = Pod::new(CRUN);
            pod.run("c1", "sleep 100000");
            pod
        })
        .collect();
    report("silent", &pods);
    for pod in &mut pods {
        pod.run("c2", &script(BURST));
        pod.client.exit_of("c2");
        pod.delete("c2");
    }
    std::thread::sleep(Duration::from_secs(2));
    report("after a burst", &pods);
    for pod in &mut pods {
        pod.delete("c1");
    }
}

fn report(when: &str, pods: &[Pod]) {
    let median = |file: &str, name: &str| {
        let mut values: Vec<u64> = pods.iter().filter_map(|pod| field(pod, file, name)).collect();
        values.sort_unstable();
        values.get(values.len() / 2).copied().unwrap_or(0)
    };
    let fds = std::fs::read_dir(proc(&pods[0]).join("fd")).unwrap().count();
    println!(
        "{} monitors, {when}: PSS {} kB (anonymous {}), private dirty {} kB, page tables {} kB, {} threads, {fds} descriptors",
        pods.len(),
        median("smaps_rollup", "Pss"),
        median("smaps_rollup", "Pss_Anon"),
        median("smaps_rollup", "Private_Dirty"),
        median("status", "VmPTE"),
        median("status", "Threads"),
    );
}

fn proc(pod: &Pod) -> PathBuf {
    format!("/proc/{}", pod.monitor.id()).into()
}

/// A number of a file of `/proc/<pid>`.
fn field(pod: &Pod, file: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(proc(pod).join(file)).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// Seconds of CPU that the monitor itself has used: user, system.
fn cpu(pod: &Pod) -> (f64, f64) {
    let text = std::fs::read_to_string(proc(pod).join("stat")).unwrap();
    let fields: Vec<&str> = text.rsplit_once(')').unwrap().1.split_ascii_whitespace().collect();
    let seconds = |field: &str| field.parse::<u64>().unwrap() as f64 / 100.0;
    (seconds(fields[11]), seconds(fields[12]))
}
