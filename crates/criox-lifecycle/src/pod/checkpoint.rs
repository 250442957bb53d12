//! Checkpoints, as far as they concern the pod's task: it says which containers may be captured and notes that they
//! were. The work itself is that of the call, beside everything else: a stop or a removal ends it, and waits for nothing.

use std::sync::Arc;

use criox_cri::ids::ContainerId;
use criox_monitor_api::client::Client;
use criox_records::{ContainerPhase, ContainerRecord, SandboxRecord};
use tokio::sync::watch;

use super::task::{no_monitor, send};
use super::{Reply, Task};
use crate::error::{Error, Kind, Result};

/// What a call that captures containers works with. While it lives they belong to no other such call.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) sandbox: Arc<SandboxRecord>,
    pub(crate) client: Client,
    /// In the order of the request.
    pub(crate) containers: Vec<Arc<ContainerRecord>>,
    /// One for each: turns true when it is being stopped or removed, or has ended.
    pub(crate) ends: Vec<watch::Receiver<bool>>,
}

impl Task {
    pub(super) fn admit_checkpoint(&mut self, ids: &[ContainerId], reply: Reply<Grant>) {
        let granted = self.grant(ids);
        if granted.is_ok() {
            for container in ids.iter().filter_map(|id| self.containers.get(id)) {
                container.captured.send_replace(false);
            }
        }
        send(reply, granted);
    }

    fn grant(&mut self, ids: &[ContainerId]) -> Result<Grant> {
        let refused = |id: &ContainerId, reason: &str| {
            Error::new(Kind::FailedPrecondition, format!("container {id} {reason}"))
        };
        let (mut containers, mut ends) = (Vec::new(), Vec::new());
        for id in ids {
            let Some(container) = self.containers.get(id) else {
                let text = format!("container {id} is not of pod sandbox {}", self.sandbox.id);
                return Err(Error::new(Kind::InvalidArgument, text));
            };
            if container.record.phase != ContainerPhase::Running {
                return Err(refused(id, "does not run, and only what runs can be checkpointed"));
            }
            if self.busy.is_some() || container.busy.is_some() {
                return Err(refused(id, "is being stopped or removed"));
            }
            if container.captured.receiver_count() > 0 {
                return Err(refused(id, "is being checkpointed already; wait for that to end"));
            }
            containers.push(container.record.clone());
            ends.push(container.captured.subscribe());
        }
        let client = self.pod.monitor().ok_or_else(|| no_monitor(&self.sandbox.id))?;
        Ok(Grant { sandbox: self.sandbox.clone(), client, containers, ends })
    }

    /// Notes when containers were captured, for their status.
    pub(super) async fn checkpointed(&mut self, ids: &[ContainerId], at: i64, reply: Reply<()>) {
        for id in ids {
            let Some(container) = self.containers.get(id) else { continue };
            self.keep_container(ContainerRecord { checkpointed_at: at, ..(*container.record).clone() }).await;
        }
        send(reply, Ok(()));
    }

    /// RestorePod has made all that it makes: a restart keeps the pod from now on.
    pub(super) async fn restored(&mut self, reply: Reply<()>) {
        self.keep_sandbox(SandboxRecord { restoring: false, ..(*self.sandbox).clone() }).await;
        send(reply, Ok(()));
    }
}
