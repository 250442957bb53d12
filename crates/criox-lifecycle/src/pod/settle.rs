//! What a pod's task does with the results of its work and with the monitor's events: write the record, swap the
//! memory, publish, answer, send the event, in this order.

use std::path::PathBuf;
use std::sync::Arc;

use criox_cri::ids::ContainerId;
use criox_cri::{reasons, v1};
use criox_monitor_api::proto::{ContainerState, Event, ExitFacts, container_state, event};
use criox_records::{ContainerPhase, ContainerRecord, Exit, Notifier, SandboxPhase, SandboxRecord};
use tokio::sync::mpsc;
use tokio::task::JoinError;
use tokio::time::Instant;

use super::task::{Whose, send};
use super::{Reply, Run, Task};
use crate::admit::Busy;
use crate::container::log;
use crate::container::start::Started;
use crate::container::stop::Stopped;
use crate::error::{Error, Result};
use crate::events::Happening;
use crate::monitor::Connection;
use crate::sandbox;

/// The end of a piece of work.
pub(crate) enum Outcome {
    SandboxCreated(Box<Result<sandbox::run::Created>>),
    SandboxStopped(sandbox::stop::Stopped),
    SandboxRemoved(Result<()>),
    ContainerCreated(ContainerId, Box<Result<ContainerRecord>>),
    ContainerStarted(ContainerId, Result<Started>),
    ContainerStopped(ContainerId, Result<Stopped>),
    ContainerRemoved(ContainerId, Result<()>),
    ContainerUpdated(ContainerId, Reply<()>, Box<Result<v1::LinuxContainerResources>>),
    /// A monitor that was silent at the start speaks again, or is dead.
    MonitorFound(Option<(Connection, Vec<ContainerState>)>),
}

impl Task {
    pub(super) async fn settle(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::SandboxCreated(result) => self.sandbox_created(*result).await,
            Outcome::SandboxStopped(stopped) => self.sandbox_stopped(stopped).await,
            Outcome::SandboxRemoved(result) => self.sandbox_removed(&result).await,
            Outcome::ContainerCreated(id, result) => self.container_created(id, *result).await,
            Outcome::ContainerStarted(id, result) => self.container_started(id, result).await,
            Outcome::ContainerStopped(id, result) => self.container_stopped(id, result).await,
            Outcome::ContainerRemoved(id, result) => self.container_removed(id, &result).await,
            Outcome::ContainerUpdated(id, reply, result) => self.container_updated(id, reply, *result).await,
            Outcome::MonitorFound(found) => self.monitor_found(found).await,
        }
    }

    async fn sandbox_created(&mut self, result: Result<sandbox::run::Created>) {
        self.busy = None;
        match result {
            Ok(created) => {
                let (client, events) = created.connection;
                self.pod.set_monitor(Some(client));
                self.events = Some(events);
                self.keep_sandbox(created.record).await;
                self.settled();
                for runner in self.runners.drain(..) {
                    send(runner, Ok(Run::Ready));
                }
                let id = self.sandbox.id.to_string();
                self.send_event(id.clone(), v1::ContainerEventType::ContainerCreatedEvent);
                self.send_event(id, v1::ContainerEventType::ContainerStartedEvent);
            }
            // The work has undone it by ID already.
            Err(error) => {
                self.forget();
                for runner in self.runners.drain(..) {
                    send(runner, Err(error.clone()));
                }
            }
        }
    }

    async fn sandbox_stopped(&mut self, stopped: sandbox::stop::Stopped) {
        self.busy = None;
        let sandbox::stop::Stopped { monitor_ended, result } = stopped;
        let was_ready = self.sandbox.phase == SandboxPhase::Ready;
        let record = SandboxRecord {
            phase: SandboxPhase::NotReady,
            torn_down: result.is_ok(),
            ..(*self.sandbox).clone()
        };
        if monitor_ended {
            self.pod.set_monitor(None);
            self.events = None;
            self.settle_lost(reasons::CONTAINER_STATUS_UNKNOWN, "").await;
        }
        self.keep_sandbox(record).await;
        if let Err(error) = &result {
            tracing::warn!(sandbox = %self.sandbox.id, error = error.chain(), "stop of a pod sandbox left something behind");
        }
        if was_ready {
            self.send_event(self.sandbox.id.to_string(), v1::ContainerEventType::ContainerStoppedEvent);
        }
        for stopper in self.stoppers.drain(..) {
            send(stopper, result.clone());
        }
    }

    async fn sandbox_removed(&mut self, result: &Result<()>) {
        self.busy = None;
        if result.is_err() {
            self.removal_failed().await;
            self.settled();
        } else {
            self.end_unseen();
            let claimed = self.containers.values().filter(|container| container.record.claimed);
            let events: Vec<String> = claimed.map(|container| container.record.id.to_string()).collect();
            for id in events {
                self.send_event(id, v1::ContainerEventType::ContainerDeletedEvent);
            }
            self.send_event(self.sandbox.id.to_string(), v1::ContainerEventType::ContainerDeletedEvent);
            self.forget();
        }
        for remover in self.removers.drain(..) {
            send(remover, result.clone());
        }
    }

    /// For clients of events: what a removal killed has stopped before it is deleted. Nothing of it is written any more.
    fn end_unseen(&mut self) {
        let alive = self
            .containers
            .values_mut()
            .filter(|container| container.record.claimed && container.record.phase != ContainerPhase::Exited);
        let mut stopped = Vec::new();
        for container in alive {
            let exit = Exit {
                code: 128 + 9,
                finished_at: self.context.clock.now(),
                reason: reasons::ERROR.into(),
                message: "killed by the removal of its pod".into(),
            };
            container.record = Arc::new(ContainerRecord {
                phase: ContainerPhase::Exited,
                process: None,
                exit: Some(exit),
                ..(*container.record).clone()
            });
            stopped.push(container.record.id.to_string());
        }
        if self.sandbox.phase == SandboxPhase::Ready {
            self.sandbox =
                Arc::new(SandboxRecord { phase: SandboxPhase::NotReady, ..(*self.sandbox).clone() });
            stopped.push(self.sandbox.id.to_string());
        }
        for id in stopped {
            self.send_event(id, v1::ContainerEventType::ContainerStoppedEvent);
        }
    }

    /// Nobody knows how far a failed removal came: the sandbox counts as ended, and what its monitor took along too.
    async fn removal_failed(&mut self) {
        if self.sandbox.phase != SandboxPhase::NotReady {
            self.keep_sandbox(SandboxRecord { phase: SandboxPhase::NotReady, ..(*self.sandbox).clone() })
                .await;
            self.send_event(self.sandbox.id.to_string(), v1::ContainerEventType::ContainerStoppedEvent);
        }
        if self.pod.monitor().is_none_or(|client| client.is_closed()) {
            self.pod.set_monitor(None);
            self.events = None;
            self.settle_lost(reasons::CONTAINER_STATUS_UNKNOWN, "").await;
        }
    }

    /// The sandbox is gone: so is its name, its snapshot and, with the loop, its task.
    fn forget(&mut self) {
        self.context.release_name(&self.sandbox);
        self.context.index.remove(&self.sandbox.id);
        self.settled();
        self.gone = true;
    }

    /// What is shown is what plugins have been told.
    fn settled(&self) {
        self.context.nri.settled(self.sandbox.id.as_str());
        for id in self.containers.keys() {
            self.context.nri.settled(id.as_str());
        }
    }

    async fn container_created(&mut self, id: ContainerId, result: Result<ContainerRecord>) {
        let Some(container) = self.containers.get_mut(&id) else { return };
        container.busy = None;
        container.since = Instant::now();
        let creators = std::mem::take(&mut container.creators);
        match result {
            Ok(record) => {
                container.record = Arc::new(record);
                self.publish();
                self.context.nri.settled(id.as_str());
                for creator in creators {
                    send(creator, Ok(id));
                }
                self.apply_early_exit(id).await;
            }
            Err(error) => {
                self.containers.remove(&id);
                self.publish();
                self.context.nri.settled(id.as_str());
                for creator in creators {
                    send(creator, Err(error.clone()));
                }
            }
        }
    }

    async fn container_started(&mut self, id: ContainerId, result: Result<Started>) {
        let Some(container) = self.containers.get_mut(&id) else { return };
        container.busy = None;
        match &result {
            // Its monitor was lost meanwhile, and its end is settled.
            Ok(_) if container.record.phase == ContainerPhase::Exited => {}
            Ok(started) => {
                let known = container.record.claimed;
                let mut record = ContainerRecord {
                    phase: ContainerPhase::Running,
                    started_at: started.at,
                    // A start is only asked for by who knows the ID.
                    claimed: true,
                    ..(*container.record).clone()
                };
                if let Some((process, cgroup)) = &started.restored {
                    record.process = Some(*process);
                    record.cgroup.clone_from(cgroup);
                }
                self.keep_container(record).await;
                if !known {
                    self.claimed(id);
                }
                self.send_event(id.to_string(), v1::ContainerEventType::ContainerStartedEvent);
                self.apply_early_exit(id).await;
            }
            Err(error) => {
                let exit = Exit {
                    code: 128,
                    finished_at: self.context.clock.now(),
                    reason: START_ERROR.into(),
                    message: error.chain(),
                };
                self.end_container(id, exit).await;
            }
        }
        if let Some(container) = self.containers.get_mut(&id) {
            container.answer(&result.map(drop));
        }
    }

    async fn container_stopped(&mut self, id: ContainerId, result: Result<Stopped>) {
        let Some(container) = self.containers.get_mut(&id) else { return };
        container.busy = None;
        if let Ok(Stopped::Killed) = result
            && container.record.phase != ContainerPhase::Exited
        {
            let exit = Exit {
                code: 128 + 9,
                finished_at: self.context.clock.now(),
                reason: reasons::ERROR.into(),
                message: "killed by its cgroup, for the pod's monitor did not answer".into(),
            };
            self.end_container(id, exit).await;
        }
        if let Some(container) = self.containers.get_mut(&id) {
            container.answer(&result.map(drop));
        }
    }

    async fn container_removed(&mut self, id: ContainerId, result: &Result<()>) {
        let Some(container) = self.containers.get_mut(&id) else { return };
        container.busy = None;
        if result.is_err() {
            container.answer(result);
            // What changed while it was being removed was not written.
            let record = (*container.record).clone();
            self.keep_container(record).await;
            return self.context.nri.settled(id.as_str());
        }
        let (claimed, log_path) = (container.record.claimed, container.record.log_path.clone());
        if claimed {
            // With its last state, so before it is forgotten.
            self.send_event(id.to_string(), v1::ContainerEventType::ContainerDeletedEvent);
        }
        let removed = self.containers.remove(&id);
        self.publish();
        self.context.nri.settled(id.as_str());
        // No sooner: whoever has the answer finds it in no list.
        if let Some(mut removed) = removed {
            removed.answer(result);
        }
        if !claimed {
            // Nobody was given it: its log must not decide the next attempt.
            log::forget(&log_path).await;
        }
    }

    /// Notes that somebody is given the sandbox's or the container's ID. True: nobody was before.
    pub(super) async fn claim(&mut self, container: Option<ContainerId>) -> bool {
        let ready = self.sandbox.phase == SandboxPhase::Ready && self.busy.is_none();
        match container.map(|id| self.containers.get(&id)) {
            None if ready && !self.sandbox.claimed => {
                self.keep_sandbox(SandboxRecord { claimed: true, ..(*self.sandbox).clone() }).await;
                true
            }
            Some(Some(container)) if !container.record.claimed && container.busy != Some(Busy::Removing) => {
                self.keep_container(ContainerRecord { claimed: true, ..(*container.record).clone() }).await;
                true
            }
            _ => false,
        }
    }

    /// The ID of a container is on its way to who asked for it.
    pub(super) fn claimed(&self, id: ContainerId) {
        self.send_event(id.to_string(), v1::ContainerEventType::ContainerCreatedEvent);
    }

    /// The caller went while the claim was being written: the container is in no list again.
    pub(super) async fn disclaim(&mut self, id: ContainerId) {
        let Some(container) = self.containers.get(&id) else { return };
        self.keep_container(ContainerRecord { claimed: false, ..(*container.record).clone() }).await;
    }

    pub(super) async fn monitor_event(&mut self, event: Event) {
        match event.kind {
            Some(event::Kind::Exited(exited)) => {
                let Some(facts) = exited.exit else { return };
                if let Ok(id) = ContainerId::parse(&exited.container_id) {
                    self.exited(id, facts).await;
                }
            }
            Some(event::Kind::OomKilled(killed)) => {
                tracing::info!(
                    container = killed.container_id,
                    "the kernel's out-of-memory killer was at work"
                );
            }
            Some(event::Kind::SandboxProcessExited(process))
                if self.busy.is_none() && self.sandbox.phase == SandboxPhase::Ready =>
            {
                tracing::warn!(sandbox = %self.sandbox.id, pid = process.pid, "process 1 of the pod has ended, and with it the pod");
                self.begin_stop();
            }
            // While the pod is being stopped it is we who ended it.
            Some(event::Kind::SandboxProcessExited(_)) => {}
            Some(event::Kind::Lost(_)) => self.relist(),
            Some(event::Kind::SeccompNotified(told)) => self.notified(told),
            None => {}
        }
    }

    /// Asks the monitor for what the lost events said; its answers come as events of our own making.
    fn relist(&mut self) {
        let (Some(client), Some(events)) = (self.pod.monitor(), self.events.take()) else { return };
        let (sender, receiver) = mpsc::channel(256);
        self.events = Some(receiver);
        tokio::spawn(crate::monitor::relist(client, events, sender));
    }

    async fn exited(&mut self, id: ContainerId, facts: ExitFacts) {
        let Some(container) = self.containers.get_mut(&id) else { return };
        match (container.busy, container.record.phase) {
            (_, ContainerPhase::Exited) => {}
            // The answer that makes it running is on its way.
            (Some(Busy::Creating | Busy::Starting), _) => container.early_exit = Some(facts),
            _ => {
                let exit = exit_of(&facts);
                self.end_container(id, exit).await;
            }
        }
    }

    async fn apply_early_exit(&mut self, id: ContainerId) {
        let facts = self.containers.get_mut(&id).and_then(|container| container.early_exit.take());
        if let Some(facts) = facts {
            self.end_container(id, exit_of(&facts)).await;
        }
    }

    /// The one place where a container becomes EXITED.
    async fn end_container(&mut self, id: ContainerId, exit: Exit) {
        let Some(container) = self.containers.get(&id) else { return };
        let old = &container.record;
        if old.phase == ContainerPhase::Exited {
            return;
        }
        let claimed = old.claimed;
        let record = ContainerRecord {
            phase: ContainerPhase::Exited,
            started_at: old.started_at.min(exit.finished_at),
            process: None,
            exit: Some(Notifier::explain(old.notifier.as_ref(), exit)),
            ..(**old).clone()
        };
        self.keep_container(record).await;
        if let Some(container) = self.containers.get(&id) {
            crate::nri::container_ended(&self.context, &self.sandbox, &container.record);
            container.exited.send_replace(true);
            container.captured.send_replace(true);
        }
        // Whoever nobody was given is in no event.
        if claimed {
            self.send_event(id.to_string(), v1::ContainerEventType::ContainerStoppedEvent);
        }
        self.context.unmount_later(id);
    }

    /// Everything that still counts as alive has ended unseen.
    async fn settle_lost(&mut self, reason: &str, message: &str) {
        let all = self.containers.keys().copied().collect();
        self.settle_ended(all, reason, message).await;
    }

    /// The same for those named.
    async fn settle_ended(&mut self, ids: Vec<ContainerId>, reason: &str, message: &str) {
        for id in ids {
            let alive = self.containers.get(&id).is_some_and(|container| {
                container.record.phase != ContainerPhase::Exited && container.busy != Some(Busy::Creating)
            });
            if !alive {
                continue;
            }
            let run = self.context.paths.run(self.sandbox.id.as_str());
            let exit = crate::monitor::recorded_exit(&run, &id).await.map_or_else(
                || Exit {
                    code: reasons::UNKNOWN_EXIT_CODE,
                    finished_at: self.context.clock.now(),
                    reason: reason.into(),
                    message: message.into(),
                },
                |facts| exit_of(&facts),
            );
            self.end_container(id, exit).await;
        }
    }

    /// The connection has ended while nobody was ending the monitor: the pod is lost. Its processes are killed by
    /// cgroup at once, and it is shown as lost without waiting for their ends.
    pub(super) async fn monitor_gone(&mut self) {
        self.events = None;
        if self.busy.is_some() {
            return;
        }
        tracing::error!(sandbox = %self.sandbox.id, "the pod's monitor has gone: ending the pod");
        self.pod.set_monitor(None);
        self.begin_stop();
        self.keep_sandbox(SandboxRecord { phase: SandboxPhase::NotReady, ..(*self.sandbox).clone() }).await;
        self.settle_lost(reasons::MONITOR_LOST, "the monitor of the pod died, and criox ended the pod").await;
        self.send_event(self.sandbox.id.to_string(), v1::ContainerEventType::ContainerStoppedEvent);
    }

    /// What was shown as recorded is now shown as it is.
    async fn monitor_found(&mut self, found: Option<(Connection, Vec<ContainerState>)>) {
        // The pod is being ended without it, or has been.
        if self.busy.is_some() || self.sandbox.phase != SandboxPhase::Ready {
            return;
        }
        let Some(((client, events), states)) = found else { return self.monitor_gone().await };
        tracing::info!(sandbox = %self.sandbox.id, "the pod's monitor answers again");
        self.pod.set_monitor(Some(client));
        self.events = Some(events);
        let unlisted: Vec<ContainerId> = self
            .containers
            .keys()
            .filter(|id| !states.iter().any(|state| state.container_id == id.as_str()))
            .copied()
            .collect();
        self.settle_ended(unlisted, reasons::CONTAINER_STATUS_UNKNOWN, "").await;
        for state in states {
            let known = ContainerId::parse(&state.container_id).ok();
            let Some(container) = known.and_then(|id| self.containers.get(&id)) else { continue };
            let mut record = (*container.record).clone();
            match state.exit {
                Some(facts) if state.phase() == container_state::Phase::Exited => {
                    self.exited(record.id, facts).await;
                }
                _ => {
                    crate::recovery::apply(&mut record, &state);
                    self.keep_container(record).await;
                }
            }
        }
    }

    /// A panic in work is a bug; what it was at work on must not hang on it.
    pub(super) fn work_died(&mut self, whose: Option<Whose>, error: &JoinError) {
        tracing::error!(sandbox = %self.sandbox.id, ?whose, %error, "work of a pod ended in a panic");
        let failed =
            Error::failed(format!("internal error in pod sandbox {}; see the log of criox", self.sandbox.id));
        match whose {
            None | Some(Whose::Sandbox) => {
                self.busy = None;
                for runner in self.runners.drain(..) {
                    send(runner, Err(failed.clone()));
                }
                for waiter in self.stoppers.drain(..).chain(self.removers.drain(..)) {
                    send(waiter, Err(failed.clone()));
                }
                if self.sandbox.phase == SandboxPhase::Creating {
                    self.begin_remove();
                }
            }
            Some(Whose::Container(id)) => {
                let Some(container) = self.containers.get_mut(&id) else { return };
                container.busy = None;
                for creator in container.creators.drain(..) {
                    send(creator, Err(failed.clone()));
                }
                container.answer(&Err(failed));
            }
            Some(Whose::Update) => {}
        }
    }

    pub(super) async fn keep_sandbox(&mut self, record: SandboxRecord) {
        let path = self.context.paths.sandbox_record(self.sandbox.id.as_str());
        let record = Arc::new(record);
        write_sandbox(&path, record.clone()).await;
        self.sandbox = record;
        self.publish();
    }

    pub(super) async fn keep_container(&mut self, record: ContainerRecord) {
        let id = record.id;
        let record = Arc::new(record);
        let path = self.context.paths.container_record(self.sandbox.id.as_str(), id.as_str());
        // The work that removes it removes its record, which must not come back.
        if self.containers.get(&id).is_some_and(|container| container.busy != Some(Busy::Removing)) {
            write_container(&path, record.clone()).await;
        }
        if let Some(container) = self.containers.get_mut(&id) {
            container.record = record;
        }
        self.publish();
    }

    fn send_event(&self, id: String, kind: v1::ContainerEventType) {
        self.context.events.send(&self.context.clock, || {
            let claimed = self.containers.values().filter(|container| container.record.claimed);
            let containers = claimed.map(|container| container.record.clone()).collect();
            Happening::new(id, kind, self.sandbox.clone(), containers)
        });
    }
}

/// The reason of a container whose process could not be started.
const START_ERROR: &str = "StartError";

/// What the kubelet is told of an exit.
pub(crate) fn exit_of(facts: &ExitFacts) -> Exit {
    let reason = match (facts.oom_killed, facts.exit_code) {
        (true, _) => reasons::OOM_KILLED,
        (false, 0) => reasons::COMPLETED,
        (false, _) => reasons::ERROR,
    };
    Exit {
        code: facts.exit_code,
        finished_at: facts.finished_at,
        reason: reason.into(),
        message: String::new(),
    }
}

/// Writes beside the task's thread. A full disk does not stop the pod: memory goes on, and the record is written
/// again at the next change.
async fn write_container(path: &std::path::Path, record: Arc<ContainerRecord>) {
    let path = path.to_owned();
    log_failure(
        tokio::task::spawn_blocking(move || criox_records::write(&path, &*record)).await,
        "container",
    );
}

async fn write_sandbox(path: &std::path::Path, record: Arc<SandboxRecord>) {
    let path: PathBuf = path.to_owned();
    log_failure(tokio::task::spawn_blocking(move || criox_records::write(&path, &*record)).await, "sandbox");
}

fn log_failure(
    written: std::result::Result<std::result::Result<(), criox_records::RecordError>, JoinError>,
    what: &str,
) {
    let error = match written {
        Ok(Ok(())) => return,
        Ok(Err(error)) => Error::failed(format!("write of a {what} record")).because(error),
        Err(error) => Error::failed(format!("write of a {what} record")).because(error),
    };
    tracing::error!(
        error = error.chain(),
        "a record was not written; a restart of criox would see an older state"
    );
}
