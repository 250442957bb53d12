//! Changed limits, of a container and of the sandbox. They run beside everything else that is at work on the container:
//! a runtime that hangs over them holds up no stop.

use std::sync::Arc;

use criox_cri::ids::ContainerId;
use criox_cri::v1;
use criox_records::{ContainerPhase, ContainerRecord, Encoded, SandboxPhase, SandboxRecord, UpdatedSandbox};

use super::settle::Outcome;
use super::task::{Whose, no_monitor, send};
use super::{Reply, Request, Task};
use crate::container::update;
use crate::error::{Error, Kind, Result};

impl Task {
    pub(super) fn admit_update(
        &mut self,
        id: ContainerId,
        resources: Arc<v1::LinuxContainerResources>,
        origin: super::Origin,
        reply: Reply<()>,
    ) {
        let client = self.pod.monitor();
        let Some(container) = self.containers.get(&id) else {
            return send(reply, Err(Error::no_container(id.as_str())));
        };
        if !matches!(container.record.phase, ContainerPhase::Created | ContainerPhase::Running) {
            let message =
                format!("container {id} is neither created nor running: its limits can't be changed");
            return send(reply, Err(Error::new(Kind::FailedPrecondition, message)));
        }
        // Each is measured against what the one before has left in force.
        if Arc::strong_count(&container.updating) > 1 {
            return self.deferred.push(Request::Update { id, resources, origin, reply });
        }
        let Some(client) = client else { return send(reply, Err(no_monitor(&self.sandbox.id))) };
        let work = update::Work {
            context: self.context.clone(),
            sandbox: self.sandbox.clone(),
            client,
            record: container.record.clone(),
            request: resources,
        };
        let at_work = container.updating.clone();
        self.begin(Whose::Update, async move {
            let result = crate::nri::around_update(work, origin).await;
            drop(at_work);
            Outcome::ContainerUpdated(id, reply, Box::new(result))
        });
    }

    pub(super) async fn container_updated(
        &mut self,
        id: ContainerId,
        reply: Reply<()>,
        result: Result<v1::LinuxContainerResources>,
    ) {
        let result = match (result, self.containers.get(&id)) {
            (Ok(resources), Some(container)) => {
                let record = ContainerRecord {
                    updated: Some(Encoded(Arc::new(resources))),
                    ..(*container.record).clone()
                };
                self.keep_container(record).await;
                Ok(())
            }
            (Ok(_), None) => Err(Error::no_container(id.as_str())),
            (Err(error), _) => Err(error),
        };
        send(reply, result);
    }

    /// UpdatePodSandboxResources: the kubelet has changed the pod's cgroup itself, and only tells.
    pub(super) async fn sandbox_updated(&mut self, updated: UpdatedSandbox, reply: Reply<()>) {
        // A pod that is being made or removed has its record written by that work.
        if self.busy.is_some() || self.sandbox.phase != SandboxPhase::Ready {
            let what =
                format!("pod sandbox {} is not ready: its resources can't be changed", self.sandbox.id);
            return send(reply, Err(Error::new(Kind::FailedPrecondition, what)));
        }
        self.keep_sandbox(SandboxRecord { updated: Some(updated), ..(*self.sandbox).clone() }).await;
        send(reply, Ok(()));
    }
}
