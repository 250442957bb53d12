//! StartContainer.

use std::sync::Arc;
use std::time::Duration;

use criox_monitor_api::client::{CallError, Client};
use criox_monitor_api::proto::{self, reply, request};
use criox_records::{ContainerRecord, ProcessIdentity, SandboxRecord};
use tokio::sync::watch;
use tokio::time::sleep;

use super::stop::{self, Target};
use crate::checkpoint::source;
use crate::context::Context;
use crate::error::{Error, Kind, Result, failpoint};
use crate::monitor;

/// How long the runtime may take to let the process run.
const RUNTIME: Duration = Duration::from_secs(60);

/// How long it may take to bring a checkpoint back to life: all of its memory is read.
const RESTORE: Duration = Duration::from_secs(300);

/// How long a start may go on once its container is to be stopped: one that does not hang is over by then, and its process
/// is given its grace.
const GIVEN_UP: Duration = Duration::from_secs(5);

/// A container whose process runs.
#[derive(Debug, Clone)]
pub(crate) struct Started {
    /// Nanoseconds since the epoch.
    pub(crate) at: i64,
    /// The process and the cgroup of one that went on from a checkpoint: it had neither before.
    pub(crate) restored: Option<(ProcessIdentity, String)>,
}

/// Lets the process of a created container run. When that fails it is killed: what counts as ended must not run.
pub(crate) async fn start(
    context: &Arc<Context>,
    sandbox: &SandboxRecord,
    client: &Client,
    target: &Target,
    given_up: watch::Receiver<bool>,
) -> Result<Started> {
    let id = &target.record.id;
    crate::nri::start_container(context, sandbox, &target.record).await;
    // Before the call: an exit is then never earlier than the start.
    let at = context.clock.now();
    let object = format!("container {id}");
    let started = tokio::select! {
        started = in_runtime(client, &target.record) => {
            started.map_err(|error| monitor::refused("start", &object, error))
        }
        () = is_given_up(given_up) => Err(Error::new(
            Kind::Cancelled,
            format!(
                "start of {object} was given up: it is to be stopped, and the runtime did not answer for {} s more",
                GIVEN_UP.as_secs()
            ),
        )),
    };
    match started {
        Ok(restored) => {
            failpoint("container.started")?;
            if restored.is_some() {
                source::forget(context, id);
            }
            crate::nri::container_started(context, sandbox, &target.record).await;
            Ok(Started { at, restored })
        }
        Err(error) => {
            if let Err(killed) = stop::kill_cgroup(context, target).await {
                tracing::error!(container = %id, error = killed.chain(), "a container whose start failed lives on");
            }
            Err(error)
        }
    }
}

async fn is_given_up(mut given_up: watch::Receiver<bool>) {
    if given_up.wait_for(|given_up| *given_up).await.is_err() {
        // Whoever could give it up is gone: then nobody does.
        return std::future::pending().await;
    }
    sleep(GIVEN_UP).await;
}

async fn in_runtime(
    client: &Client,
    record: &ContainerRecord,
) -> std::result::Result<Option<(ProcessIdentity, String)>, CallError> {
    let restores = record.restored;
    let limit = if restores { RESTORE } else { RUNTIME };
    let verb = request::Verb::Start(proto::Start {
        container_id: record.id.to_string(),
        timeout_ms: u32::try_from(limit.as_millis()).unwrap_or(u32::MAX),
    });
    match monitor::attended(client, client.call(verb, limit + monitor::ANSWER)).await? {
        reply::Result::Create(made) if restores => {
            let process = ProcessIdentity { pid: made.pid, start_time: made.start_time };
            Ok(Some((process, made.cgroup)))
        }
        reply::Result::Done(_) => Ok(None),
        _ => Err(CallError::Unexpected),
    }
}
