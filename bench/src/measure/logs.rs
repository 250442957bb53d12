//! How fast a container's output becomes its log, and whether each line stays one.

use std::path::Path;
use std::time::{Duration, Instant, UNIX_EPOCH};

use criox_cri::v1::ContainerState;

use super::Peer;
use crate::args::Options;
use crate::processes::{Family, cpu};
use crate::report::{Report, Unit};
use crate::workload::{LOG_PATH, Network};
use crate::{Failure, progress};

/// Bytes of a line, its newline included.
const LINE: usize = 100;

/// For the container to write everything.
const LIMIT: Duration = Duration::from_secs(300);

pub(super) async fn measure(options: &Options, peers: &mut [Peer], report: &mut Report) {
    for peer in &mut *peers {
        progress(&format!("{}: a log of {} lines", peer.name(), options.log_lines));
        if let Err(error) = log(peer, options.log_lines, report).await {
            report.fail(peer.name(), "log", &error);
        }
        peer.sweep_or_tell(report).await;
    }
}

async fn log(peer: &mut Peer, lines: usize, report: &mut Report) -> Result<(), Failure> {
    let Peer { daemon, workload, .. } = peer;
    let config = workload.sandbox(Network::Host)?;
    let file = Path::new(&config.log_directory).join(LOG_PATH);
    let script = format!("yes {} | head -n {lines}", "x".repeat(LINE - 1));
    let (pod, _) = daemon.run_sandbox(&config).await?;
    let container = workload.container(Network::Host, &["/bin/sh", "-c", &script]);
    let (container, _) = daemon.create(&pod, container, &config).await?;
    let family = peer.socket.pid_file.as_ref().map(|_| Family::find(&peer.socket)).transpose()?;
    let used = |family: &Family| cpu(&family.daemon) + cpu(&family.helpers);
    let before = family.as_ref().map(used);
    daemon.start(&container).await?;

    let start = Instant::now();
    let status = loop {
        let status = daemon.status(&container).await?;
        if status.state() == ContainerState::ContainerExited {
            break status;
        }
        if start.elapsed() > LIMIT {
            return Err(format!("the container still writes after {} s", LIMIT.as_secs()).into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    if status.exit_code != 0 {
        return Err(format!("the container ended with {}: {}", status.exit_code, status.message).into());
    }
    let written = settled(&file).await?;
    let finished = written.max(u64::try_from(status.finished_at)?);
    let seconds =
        Duration::from_nanos(finished.saturating_sub(u64::try_from(status.started_at)?)).as_secs_f64();
    let bytes = (lines * LINE) as f64;
    report.cell(peer.column, "log of 100-byte lines", Unit::MegabytesPerSecond).push(bytes / 1e6 / seconds);
    if let Some((family, before)) = family.as_ref().zip(before) {
        let row = "log, CPU of daemon and helpers";
        let used = used(family) - before;
        report.cell(peer.column, row, Unit::SecondsPerGigabyte).push(used / (bytes / 1e9));
    }
    let counted = Count::of(&std::fs::read(&file)?);
    report.cell(peer.column, "log, lines split", Unit::Count).push(counted.split as f64);
    if counted.whole != lines {
        return Err(format!("the log has {} of {lines} lines", counted.whole).into());
    }
    Ok(())
}

/// Waits until the file grows no more; when it was written last, in nanoseconds since the epoch.
async fn settled(file: &Path) -> Result<u64, Failure> {
    let mut last = 0;
    loop {
        let metadata = std::fs::metadata(file).map_err(|error| format!("log {}: {error}", file.display()))?;
        if metadata.len() == last {
            let age = metadata.modified()?.duration_since(UNIX_EPOCH)?;
            return Ok(u64::try_from(age.as_nanos())?);
        }
        last = metadata.len();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Lines of a CRI log: `TIME STREAM TAG TEXT`, where the tag is `P` when the line goes on in the next one.
#[derive(Debug, Default, PartialEq)]
struct Count {
    whole: usize,
    split: usize,
}

impl Count {
    fn of(log: &[u8]) -> Self {
        let mut count = Self::default();
        for line in log.split(|byte| *byte == b'\n') {
            match line.split(|byte| *byte == b' ').nth(2) {
                Some(b"F") => count.whole += 1,
                Some(_) => count.split += 1,
                None => {}
            }
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_lines_and_parts_are_told_apart() {
        let log = b"2026-01-01T00:00:00Z stdout P ab\n2026-01-01T00:00:00Z stdout F c\nT stderr F \n";
        assert_eq!(Count::of(log), Count { whole: 2, split: 1 });
        assert_eq!(Count::of(b""), Count::default());
    }
}
