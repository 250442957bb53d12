//! The steps of one pod's life, one after the other, and the bare programs between them.

use std::path::Path;
use std::time::Duration;

use super::{BARE, Peer};
use crate::args::Options;
use crate::bare::{Plugins, Runtime};
use crate::report::{Report, Unit, bare, rows};
use crate::workload::Network;
use crate::{Failure, progress};

/// Turns that are not counted: caches fill, the bridge comes into being.
const WARM_UP: usize = 2;

/// Times of one turn, by row.
type Times = Vec<(&'static str, Duration)>;

pub(super) async fn measure(options: &Options, peers: &mut [Peer], bundles: &Path, report: &mut Report) {
    let column = peers.len();
    let mut runtime = prepared(options, bundles).unwrap_or_else(|error| {
        report.fail(BARE, "crun", &error);
        None
    });
    let mut plugins = listed(options).unwrap_or_else(|error| {
        report.fail(BARE, "CNI", &error);
        None
    });
    for turn in 0..options.cycles + WARM_UP {
        if turn % 5 == 0 {
            progress(&format!("steps, turn {} of {}", turn + 1, options.cycles + WARM_UP));
        }
        let note = |report: &mut Report, column: usize, times: Times| {
            for (row, took) in times.into_iter().filter(|_| turn >= WARM_UP) {
                report.cell(column, row, Unit::Milliseconds).push_time(took);
            }
        };
        for peer in peers.iter_mut().filter(|_| options.wants("steps")) {
            match life(peer).await {
                Ok(times) => note(report, peer.column, times),
                Err(error) => {
                    report.fail(peer.name(), "steps", &error);
                    peer.sweep_or_tell(report).await;
                }
            }
        }
        match floors(runtime.as_mut(), plugins.as_mut()) {
            Ok(times) => note(report, column, times),
            Err(error) => report.fail(BARE, "floors", &error),
        }
    }
}

fn prepared(options: &Options, bundles: &Path) -> Result<Option<Runtime>, Failure> {
    let (Some(program), Some(rootfs)) = (&options.crun, &options.rootfs) else { return Ok(None) };
    Runtime::prepare(program, rootfs, &format!("{}/{BARE}", options.cgroup_parent), bundles).map(Some)
}

fn listed(options: &Options) -> Result<Option<Plugins>, Failure> {
    let (Some(list), Some(directory)) = (&options.cni_conf, &options.cni_bin) else { return Ok(None) };
    Plugins::read(list, directory).map(Some)
}

fn floors(runtime: Option<&mut Runtime>, plugins: Option<&mut Plugins>) -> Result<Times, Failure> {
    let mut times = Vec::new();
    if let Some(runtime) = runtime {
        times.push((bare::RUN, runtime.run()?));
        times.push((bare::EXEC, runtime.exec()?));
    }
    if let Some(plugins) = plugins {
        let (added, deleted) = plugins.add_and_del()?;
        times.extend([(bare::ADD, added), (bare::DEL, deleted)]);
    }
    Ok(times)
}

/// A pod on the bridge with a container, from nothing to nothing, and a sandbox with the host's network.
async fn life(peer: &mut Peer) -> Result<Times, Failure> {
    let Peer { daemon, workload, .. } = peer;
    let config = workload.sandbox(Network::Bridge)?;
    let (pod, sandbox) = daemon.run_sandbox(&config).await?;
    let (container, create) = daemon.create(&pod, workload.server(Network::Bridge), &config).await?;
    let ((), start) = daemon.start(&container).await?;
    let ((), exec) = daemon.exec(&container, &["true"]).await?;
    let ((), stop) = daemon.stop(&container).await?;
    let ((), remove) = daemon.remove(&container).await?;
    let ((), stop_pod) = daemon.stop_sandbox(&pod).await?;
    let ((), remove_pod) = daemon.remove_sandbox(&pod).await?;

    let (host_pod, host) = daemon.run_sandbox(&workload.sandbox(Network::Host)?).await?;
    daemon.stop_sandbox(&host_pod).await?;
    daemon.remove_sandbox(&host_pod).await?;

    let up = sandbox + create + start;
    Ok(vec![
        (rows::BRIDGE, sandbox),
        (rows::HOST, host),
        (rows::CREATE, create),
        (rows::START, start),
        (rows::CREATE_START, create + start),
        (rows::EXEC, exec),
        ("stop and remove container", stop + remove),
        ("stop and remove pod", stop_pod + remove_pod),
        ("pod with one container up", up),
        ("full cycle, without exec", up + stop + remove + stop_pod + remove_pod),
    ])
}
