//! StartContainer.

use std::sync::Arc;
use std::time::Duration;

use criox_monitor_api::client::Client;
use criox_monitor_api::proto::{self, request};

use super::stop::{self, Target};
use crate::context::Context;
use crate::error::{Result, failpoint};
use crate::monitor;
use crate::record::SandboxRecord;

/// How long the runtime may take to let the process run.
const RUNTIME: Duration = Duration::from_secs(60);

/// A container whose process runs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Started {
    /// Nanoseconds since the epoch.
    pub(crate) at: i64,
}

/// Lets the process of a created container run. When that fails it is killed: what counts as ended must not run.
pub(crate) async fn start(
    context: &Arc<Context>,
    sandbox: &SandboxRecord,
    client: &Client,
    target: &Target,
) -> Result<Started> {
    let id = &target.record.id;
    crate::nri::start_container(context, sandbox, &target.record).await;
    // Before the call: an exit is then never earlier than the start.
    let at = context.clock.now();
    let verb = request::Verb::Start(proto::Start {
        container_id: id.to_string(),
        timeout_ms: u32::try_from(RUNTIME.as_millis()).unwrap_or(u32::MAX),
    });
    match monitor::attended(client, client.done(verb, RUNTIME + monitor::ANSWER)).await {
        Ok(()) => {
            failpoint("container.started")?;
            crate::nri::container_started(context, sandbox, &target.record).await;
            Ok(Started { at })
        }
        Err(error) => {
            if let Err(error) = stop::kill_cgroup(context, target).await {
                tracing::error!(container = %id, error = error.chain(), "a container whose start failed lives on");
            }
            Err(monitor::refused("start", &format!("container {id}"), error))
        }
    }
}
