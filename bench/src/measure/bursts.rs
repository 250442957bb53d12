//! Many pods at once.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::{Peer, Pod};
use crate::args::Options;
use crate::processes::machine_cpu;
use crate::report::{Report, Unit};
use crate::workload::Network;
use crate::{Failure, progress};

/// How many pods are in the making at the same time.
const AT_ONCE: [usize; 3] = [1, 8, 16];

/// Pods that are taken down at the same time.
const DOWN_AT_ONCE: usize = 8;

pub(super) async fn measure(options: &Options, peers: &mut [Peer], report: &mut Report) {
    for at_once in AT_ONCE {
        for peer in &mut *peers {
            progress(&format!("{}: {} pods, {at_once} at once", peer.name(), options.pods));
            match burst(peer, options.pods, at_once).await {
                Ok(Burst { up, down, cpu }) => {
                    let rate = |took: Duration| options.pods as f64 / took.as_secs_f64();
                    let row = format!("{} pods up, {at_once} at once", options.pods);
                    report.cell(peer.column, &row, Unit::PodsPerSecond).push(rate(up));
                    let row = format!("{} pods down, {DOWN_AT_ONCE} at once", options.pods);
                    report.cell(peer.column, &row, Unit::PodsPerSecond).push(rate(down));
                    let row = "CPU of the machine per pod, up and down";
                    let each = cpu * 1e3 / options.pods as f64;
                    report.cell(peer.column, row, Unit::Milliseconds).push(each);
                }
                Err(error) => {
                    report.fail(peer.name(), &format!("{at_once} at once"), &error);
                    peer.sweep_or_tell(report).await;
                }
            }
        }
    }
}

struct Burst {
    up: Duration,
    down: Duration,
    /// Seconds of all processors; what else the machine did is in it.
    cpu: f64,
}

async fn burst(peer: &mut Peer, pods: usize, at_once: usize) -> Result<Burst, Failure> {
    let before = machine_cpu();
    let start = Instant::now();
    let made = fill(peer, pods, at_once).await?;
    let up = start.elapsed();
    let start = Instant::now();
    drain(peer, made).await?;
    Ok(Burst { up, down: start.elapsed(), cpu: machine_cpu() - before })
}

/// Makes pods, each with a running container, at most `at_once` of them in the making.
pub(super) async fn fill(peer: &Peer, pods: usize, at_once: usize) -> Result<Vec<Pod>, Failure> {
    let mut work = Vec::new();
    for _ in 0..pods {
        let config = peer.workload.sandbox(Network::Bridge)?;
        let container = peer.workload.server(Network::Bridge);
        let mut daemon = peer.daemon.clone();
        work.push(async move {
            let (sandbox, _) = daemon.run_sandbox(&config).await?;
            let (container, _) = daemon.create(&sandbox, container, &config).await?;
            daemon.start(&container).await?;
            Ok(Pod { sandbox, container })
        });
    }
    all(work, at_once).await
}

/// Stops and removes pods, each in the kubelet's order.
pub(super) async fn drain(peer: &Peer, pods: Vec<Pod>) -> Result<(), Failure> {
    let work = pods.into_iter().map(|pod| {
        let mut daemon = peer.daemon.clone();
        async move {
            daemon.stop(&pod.container).await?;
            daemon.stop_sandbox(&pod.sandbox).await?;
            daemon.remove(&pod.container).await?;
            daemon.remove_sandbox(&pod.sandbox).await?;
            Ok(())
        }
    });
    all(work, DOWN_AT_ONCE).await.map(drop)
}

/// Runs futures, at most `at_once` at a time; the first failure ends them all.
async fn all<T: Send + 'static>(
    work: impl IntoIterator<Item = impl Future<Output = Result<T, Failure>> + Send + 'static>,
    at_once: usize,
) -> Result<Vec<T>, Failure> {
    let mut running = JoinSet::new();
    let mut done = Vec::new();
    for one in work {
        if running.len() >= at_once
            && let Some(ended) = running.join_next().await
        {
            done.push(ended??);
        }
        running.spawn(one);
    }
    while let Some(ended) = running.join_next().await {
        done.push(ended??);
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn no_more_than_asked_for_run_at_once_and_all_are_done() {
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let work = (0..20).map(|number| {
            let (now, most) = (Arc::clone(&now), Arc::clone(&most));
            async move {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(1)).await;
                now.fetch_sub(1, Ordering::SeqCst);
                Ok(number)
            }
        });
        let mut done = all(work, 3).await.unwrap();
        done.sort_unstable();
        assert_eq!(done, (0..20).collect::<Vec<_>>());
        assert_eq!(most.load(Ordering::SeqCst), 3);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_first_failure_is_the_answer() {
        let work = (0..5).map(|number| async move { if number == 3 { Err("three".into()) } else { Ok(()) } });
        assert_eq!(all(work, 2).await.unwrap_err().to_string(), "three");
    }
}
