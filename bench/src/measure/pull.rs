//! The pull of a big image of many files.

use std::process::Stdio;
use std::time::Duration;

use super::Peer;
use crate::args::Options;
use crate::processes::{Family, cpu};
use crate::report::{Report, Unit, rows};
use crate::{Failure, progress};

pub(super) async fn measure(options: &Options, peers: &mut [Peer], report: &mut Report) {
    let Some(image) = &options.big_image else { return };
    for turn in 0..options.pulls {
        for peer in &mut *peers {
            progress(&format!("{}: pull {} of {}", peer.name(), turn + 1, options.pulls));
            match pull(peer, image).await {
                Ok((took, processor)) => {
                    report.cell(peer.column, rows::PULL, Unit::Seconds).push(took.as_secs_f64());
                    if let Some(seconds) = processor {
                        let row = "pull of the big image, daemon's CPU";
                        report.cell(peer.column, row, Unit::Seconds).push(seconds);
                    }
                }
                Err(error) => report.fail(peer.name(), "pull", &error),
            }
        }
    }
}

/// The time of a pull, and the processor time that the daemon says it used (children that have ended not
/// counted), if its PID is known.
async fn pull(peer: &mut Peer, image: &str) -> Result<(Duration, Option<f64>), Failure> {
    peer.daemon.remove_image(image).await?;
    // What others have written before must not be paid for here.
    tokio::process::Command::new("sync").stdin(Stdio::null()).status().await?;
    let family = peer.socket.pid_file.as_ref().map(|_| Family::find(&peer.socket)).transpose()?;
    let before = family.as_ref().map(|family| cpu(&family.daemon));
    let ((), took) = peer.daemon.pull(image).await?;
    let after = family.as_ref().map(|family| cpu(&family.daemon));
    peer.daemon.remove_image(image).await?;
    Ok((took, after.zip(before).map(|(after, before)| after - before)))
}
