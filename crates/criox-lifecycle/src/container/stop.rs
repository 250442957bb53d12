//! StopContainer: the stop signal, the grace, SIGKILL, and when the monitor is silent the cgroup.

use std::sync::Arc;
use std::time::Duration;

use criox_monitor_api::client::{CallError, Client};
use criox_monitor_api::proto::{self, failure, request};
use criox_records::{ContainerPhase, ContainerRecord};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use crate::context::{Context, blocking};
use crate::error::{Error, Result};
use crate::monitor;

/// From SIGKILL to the end of the process.
const DEATH: Duration = Duration::from_secs(10);
const SIGKILL: i32 = 9;

/// A container that is to be stopped.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) record: Arc<ContainerRecord>,
    /// Turns true when the process has ended.
    pub(crate) exited: watch::Receiver<bool>,
    /// When patience ends.
    pub(crate) kill_at: watch::Receiver<Instant>,
}

/// How it came to an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stopped {
    /// The monitor has reported its exit.
    Reported,
    /// Its cgroup was emptied without the monitor: nobody knows an exit code but that of SIGKILL.
    Killed,
}

/// Returns when the container's process has ended.
pub(crate) async fn stop(
    context: &Arc<Context>,
    client: Option<&Client>,
    mut target: Target,
) -> Result<Stopped> {
    if *target.exited.borrow() {
        return Ok(Stopped::Reported);
    }
    let Some(client) = client else { return kill_cgroup(context, &target).await };
    // A created container's process is the runtime's, which handles no signals.
    let graceful =
        target.record.phase == ContainerPhase::Running && *target.kill_at.borrow() > Instant::now();
    if graceful {
        match signal(client, &target, target.record.stop_signal, false).await {
            Ok(()) => {
                if wait_for_exit(&mut target).await {
                    return Ok(Stopped::Reported);
                }
            }
            Err(error) if unreachable(&error) => return kill_cgroup(context, &target).await,
            Err(error) => {
                tracing::warn!(container = %target.record.id, %error, "the stop signal could not be sent; killing");
            }
        }
    }
    match signal(client, &target, SIGKILL, true).await {
        Ok(()) => {}
        // It has ended by itself; the event is on its way.
        Err(error) if error.refusal() == Some(failure::Kind::WrongState) => {}
        Err(error) if error.refusal() == Some(failure::Kind::NotFound) => {
            return kill_cgroup(context, &target).await;
        }
        Err(error) => {
            tracing::warn!(container = %target.record.id, %error, "the monitor does not kill; killing by cgroup");
            return kill_cgroup(context, &target).await;
        }
    }
    let reported = timeout(DEATH, target.exited.wait_for(|exited| *exited)).await.is_ok();
    if reported { Ok(Stopped::Reported) } else { kill_cgroup(context, &target).await }
}

/// Whether it ended before patience did, which others may shorten meanwhile.
async fn wait_for_exit(target: &mut Target) -> bool {
    loop {
        let kill_at = *target.kill_at.borrow_and_update();
        tokio::select! {
            ended = target.exited.wait_for(|exited| *exited) => return ended.is_ok(),
            () = sleep_until(kill_at) => return false,
            changed = target.kill_at.changed() => if changed.is_err() {
                return false;
            }
        }
    }
}

async fn signal(
    client: &Client,
    target: &Target,
    signal: i32,
    all: bool,
) -> std::result::Result<(), CallError> {
    let verb = proto::Signal { container_id: target.record.id.to_string(), signal, all };
    client.done(request::Verb::Signal(verb), monitor::ANSWER).await
}

fn unreachable(error: &CallError) -> bool {
    matches!(error, CallError::Silent(_) | CallError::Gone)
}

/// Ends everything in the container's cgroup without the monitor.
pub(crate) async fn kill_cgroup(context: &Arc<Context>, target: &Target) -> Result<Stopped> {
    let record = target.record.clone();
    if record.cgroup.is_empty() {
        return Ok(Stopped::Killed);
    }
    let context = context.clone();
    let object = format!("container {}", record.id);
    blocking("kill by cgroup", &object.clone(), DEATH + monitor::ANSWER, move || {
        context
            .cgroups
            .kill_all(&record.cgroup, DEATH)
            .map_err(|error| Error::failed(format!("end of {object}")).because(error))
    })
    .await?;
    Ok(Stopped::Killed)
}
