//! A node full of pods: memory, restart, lists.

use std::process::Stdio;
use std::time::{Duration, Instant};

use super::bursts::{drain, fill};
use super::{Peer, Pod};
use crate::args::Options;
use crate::client::Daemon;
use crate::processes::{Family, pss};
use crate::report::{Report, Unit, rows};
use crate::{Failure, progress};

/// Pods that are in the making at the same time, while nobody measures that.
const AT_ONCE: usize = 8;

/// Calls of each list; figures of statistics cost much more.
const LISTS: usize = 200;
const STATS: usize = 10;

const RESTARTS: usize = 3;

/// A restart that takes longer has failed.
const RESTART_LIMIT: Duration = Duration::from_secs(60);

/// What a daemon settles in after a burst: collectors run, caches of allocators are given back.
const SETTLE: Duration = Duration::from_secs(3);

/// Memory of the daemons before they have any pod.
pub(super) fn idle(peers: &[Peer], report: &mut Report) {
    for peer in peers.iter().filter(|peer| peer.socket.pid_file.is_some()) {
        match Family::find(&peer.socket) {
            Ok(family) => {
                let row = "daemon, PSS idle";
                report.cell(peer.column, row, Unit::Megabytes).push(pss(&family.daemon) / 1024.0);
            }
            Err(error) => report.fail(peer.name(), "memory", &error),
        }
    }
}

pub(super) async fn measure(options: &Options, peers: &mut [Peer], report: &mut Report) {
    for peer in &mut *peers {
        progress(&format!("{}: {} pods, for memory, restart and lists", peer.name(), options.pods));
        if let Err(error) = full(options, peer, report).await {
            report.fail(peer.name(), "a full node", &error);
        }
        peer.sweep_or_tell(report).await;
    }
}

async fn full(options: &Options, peer: &mut Peer, report: &mut Report) -> Result<(), Failure> {
    let mut pods = fill(peer, options.pods, AT_ONCE).await?;
    tokio::time::sleep(SETTLE).await;
    if peer.socket.pid_file.is_some()
        && let Err(error) = memory(peer, pods.len(), report)
    {
        report.fail(peer.name(), "memory", &error);
    }
    if let Some(command) = peer.socket.restart.clone() {
        for _ in 0..RESTARTS {
            let took = restart(peer, &command, pods.len()).await?;
            report.cell(peer.column, rows::RESTART, Unit::Milliseconds).push_time(took);
        }
    }
    pods.extend(fill(peer, options.pods, AT_ONCE).await?);
    tokio::time::sleep(SETTLE).await;
    lists(peer, &pods, report).await?;
    drain(peer, pods).await
}

fn memory(peer: &Peer, pods: usize, report: &mut Report) -> Result<(), Failure> {
    let family = Family::find(&peer.socket)?;
    report.cell(peer.column, rows::DAEMON, Unit::Megabytes).push(pss(&family.daemon) / 1024.0);
    if !peer.socket.helpers.is_empty() {
        if family.helpers.is_empty() {
            return Err(format!("no process is called {}", peer.socket.helpers.join(" or ")).into());
        }
        let per_pod = pss(&family.helpers) / pods as f64;
        report.cell(peer.column, rows::HELPERS, Unit::Kilobytes).push(per_pod);
        let count = family.helpers.len() as f64 / pods as f64;
        report.cell(peer.column, "helpers, processes per pod", Unit::Count).push(count);
    }
    Ok(())
}

/// Kills and starts the daemon; the time until it is ready and knows all that runs.
async fn restart(peer: &mut Peer, command: &str, pods: usize) -> Result<Duration, Failure> {
    let start = Instant::now();
    let status = tokio::process::Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .await?;
    if !status.success() {
        return Err(format!("restart command: {status}").into());
    }
    let mut last = "nothing answered".to_owned();
    while start.elapsed() < RESTART_LIMIT {
        // A daemon that is not there yet refuses the connection, and one that is half there may refuse a call.
        let state = async {
            let mut daemon = Daemon::connect(&peer.socket.path).await?;
            let ready = daemon.ready().await?;
            Ok::<_, Failure>((daemon, ready))
        };
        match state.await {
            Ok((daemon, (true, running))) if running >= pods => {
                let took = start.elapsed();
                peer.daemon = daemon;
                return Ok(took);
            }
            Ok((_, (ready, running))) => last = format!("ready: {ready}, {running} of {pods} containers run"),
            Err(error) => last = error.to_string(),
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Err(format!("not ready {} s after the restart: {last}", RESTART_LIMIT.as_secs()).into())
}

async fn lists(peer: &mut Peer, pods: &[Pod], report: &mut Report) -> Result<(), Failure> {
    let want = pods.len();
    let enough = |name: &str, found: usize| {
        if found >= want { Ok(()) } else { Err(Failure::from(format!("{name}: {found} of {want} pods"))) }
    };
    let row = |name: &str| format!("{name}, {want} pods");
    for _ in 0..LISTS {
        let (found, took) = peer.daemon.list_containers().await?;
        enough("ListContainers", found)?;
        report.cell(peer.column, &row("ListContainers"), Unit::Milliseconds).push_time(took);
        let (found, took) = peer.daemon.list_sandboxes().await?;
        enough("ListPodSandbox", found)?;
        report.cell(peer.column, &row("ListPodSandbox"), Unit::Milliseconds).push_time(took);
    }
    // A daemon may not have statistics yet: that is told, and ends nothing.
    for _ in 0..STATS {
        match peer.daemon.list_container_stats().await {
            Ok((_, took)) => {
                report.cell(peer.column, &row("ListContainerStats"), Unit::Milliseconds).push_time(took);
            }
            Err(error) => report.skip(peer.name(), "statistics", &error),
        }
        match peer.daemon.list_sandbox_stats().await {
            Ok((_, took)) => {
                report.cell(peer.column, &row("ListPodSandboxStats"), Unit::Milliseconds).push_time(took);
            }
            Err(error) => report.skip(peer.name(), "statistics", &error),
        }
    }
    Ok(())
}
