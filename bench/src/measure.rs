//! What is measured. The sockets take turns in everything, so that a noisy minute hits all of them.

mod bursts;
mod crowd;
mod logs;
mod pull;
mod steps;

use std::path::{Path, PathBuf};

use crate::args::{Options, Socket};
use crate::client::Daemon;
use crate::report::Report;
use crate::workload::{LABEL, Workload, remove_cgroups};
use crate::{Failure, progress};

/// Name of the column, the directory and the cgroup of what runs without a daemon.
const BARE: &str = "bare";

/// A daemon with its column and its pods.
#[derive(Debug)]
pub(crate) struct Peer {
    column: usize,
    socket: Socket,
    daemon: Daemon,
    workload: Workload,
}

/// A pod with one running container, by their IDs.
#[derive(Debug)]
struct Pod {
    sandbox: String,
    container: String,
}

impl Peer {
    async fn connect(
        column: usize,
        socket: &Socket,
        options: &Options,
        work: &Path,
    ) -> Result<Self, Failure> {
        let daemon = Daemon::connect(&socket.path).await?;
        let workload =
            Workload::new(&socket.name, &options.image, &options.cgroup_parent, work.join(&socket.name))?;
        Ok(Self { column, socket: socket.clone(), daemon, workload })
    }

    fn name(&self) -> &str {
        &self.socket.name
    }

    /// Removes every pod of this run.
    async fn sweep(&mut self) -> Result<(), Failure> {
        for pod in self.daemon.sandboxes(LABEL, &self.workload.run).await? {
            self.daemon.stop_sandbox(&pod.id).await?;
            self.daemon.remove_sandbox(&pod.id).await?;
        }
        Ok(())
    }

    async fn sweep_or_tell(&mut self, report: &mut Report) {
        if let Err(error) = self.sweep().await {
            report.fail(self.name(), "removing what is left", &error);
        }
    }
}

/// Runs everything that was asked for.
///
/// # Errors
/// When a daemon can't be reached at all or has not even the small image; what else fails is in the report.
pub(crate) async fn all(options: &Options) -> Result<Report, Failure> {
    let (work, ours) = match &options.work {
        Some(work) => (work.clone(), false),
        None => (std::env::temp_dir().join(format!("criox-bench-{}", std::process::id())), true),
    };
    std::fs::create_dir_all(&work)?;
    let done = measured(options, &work).await;
    if ours {
        remove_work(&work);
    }
    done
}

#[expect(
    clippy::disallowed_methods,
    reason = "our own directory of logs and bundles, which nobody mounts writable"
)]
fn remove_work(work: &Path) {
    if let Err(error) = std::fs::remove_dir_all(work) {
        progress(&format!("removing {}: {error}", work.display()));
    }
}

async fn measured(options: &Options, work: &Path) -> Result<Report, Failure> {
    let mut columns: Vec<String> = options.sockets.iter().map(|socket| socket.name.clone()).collect();
    columns.push(BARE.to_owned());
    let mut report = Report::new(columns);
    let mut peers = Vec::new();
    for (column, socket) in options.sockets.iter().enumerate() {
        let mut peer = Peer::connect(column, socket, options, work).await?;
        peer.daemon.pull(&options.image).await.map_err(|error| format!("{}: {error}", socket.name))?;
        peers.push(peer);
    }
    let bundles: PathBuf = work.join(BARE);
    crowd::idle(&peers, &mut report);
    if options.wants("steps") || options.wants("bare") {
        steps::measure(options, &mut peers, &bundles, &mut report).await;
    }
    if options.wants("bursts") {
        bursts::measure(options, &mut peers, &mut report).await;
    }
    if options.wants("crowd") {
        crowd::measure(options, &mut peers, &mut report).await;
    }
    if options.wants("pull") {
        pull::measure(options, &mut peers, &mut report).await;
    }
    if options.wants("logs") {
        logs::measure(options, &mut peers, &mut report).await;
    }
    let names: Vec<String> =
        peers.iter().map(|peer| peer.name().to_owned()).chain([BARE.to_owned()]).collect();
    remove_cgroups(&options.cgroup_parent, &names);
    Ok(report)
}
