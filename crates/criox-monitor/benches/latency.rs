//! What the monitor adds to the OCI runtime that it calls: both in turn, medians of many rounds.
//!
//! `scripts/sandboxed cargo bench -p criox-monitor --bench latency [-- RUNTIME [ROUNDS]]`; `CRIOX_MONITOR` names the
//! build to be measured (that of `scripts/build` is the one that counts).

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark fails by panicking, tells its result, and shares the tests' harness"
)]

#[path = "../tests/harness/mod.rs"]
mod harness;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use criox_monitor_api::proto::reply;
use harness::{Pod, ready};

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let runtime = args.next().unwrap_or_else(|| harness::CRUN.into());
    let rounds: usize = args.next().map_or(40, |rounds| rounds.parse().unwrap());
    if !ready(&runtime) {
        return;
    }
    let mut pod = Pod::new(&runtime);
    pod.run("sleeper", "sleep 100000");
    let mut times: [Vec<Duration>; 4] = Default::default();
    for round in 0..rounds {
        let bare = format!("bare{round}");
        pod.bundle(&bare, "true", |_| {});
        let bundle = pod.path(&format!("bundle-{bare}"));
        times[0].push(call(&pod, &["run", "--bundle", &bundle.display().to_string(), &bare]));
        let ours = format!("ours{round}");
        let create = pod.bundle(&ours, "true", |_| {});
        let begun = Instant::now();
        pod.create_with(create);
        pod.start(&ours);
        times[1].push(begun.elapsed());
        pod.client.exit_of(&ours);
        pod.delete(&ours);
        times[2].push(call(&pod, &["exec", "sleeper", "sh", "-c", "true"]));
        times[3].push(exec(&mut pod));
    }
    pod.delete("sleeper");
    let [run, create, bare_exec, exec] = times.map(|mut times| {
        times.sort_unstable();
        times[times.len() / 2].as_secs_f64() * 1000.0
    });
    println!("{runtime}: medians of {rounds} rounds");
    println!("run           {run:6.2} ms   create+start {create:6.2} ms   ratio {:.2}", create / run);
    println!("exec          {bare_exec:6.2} ms   Exec         {exec:6.2} ms   ratio {:.2}", exec / bare_exec);
}

/// The runtime without a monitor.
fn call(pod: &Pod, args: &[&str]) -> Duration {
    let begun = Instant::now();
    let mut command = Command::new(&pod.runtime);
    command.arg("--root").arg(pod.path("state")).args(args);
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    assert!(status.success(), "{args:?}");
    begun.elapsed()
}

fn exec(pod: &mut Pod) -> Duration {
    let null = std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
    let verb = pod.exec_verb("sleeper", "true", 10_000);
    let begun = Instant::now();
    let request = pod.client.send(verb, vec![null.into()]);
    assert!(matches!(pod.client.reply(request), reply::Result::ExecStarted(_)));
    assert!(matches!(pod.client.reply(request), reply::Result::ExecFinished(f) if f.exit_code == 0));
    begun.elapsed()
}
