//! The task of a pod: takes requests, admits them, begins work.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use criox_cri::ids::{ContainerId, SandboxId};
use criox_cri::v1;
use criox_monitor_api::client::Client;
use criox_monitor_api::proto::{Event, ExitFacts};
use criox_records::key::{self, ContainerKey};
use criox_records::{ContainerPhase, ContainerRecord, SandboxPhase, SandboxRecord};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{self, JoinSet};
use tokio::time::Instant;

use super::forbidden::Forbidden;
use super::settle::Outcome;
use super::{Pod, Reply, Request, Run};
use crate::admit::{self, Admission, Busy, Fate, SandboxBusy, Standing, Verb};
use crate::checkpoint::source::Source;
use crate::container::{create, remove, start, stop};
use crate::context::Context;
use crate::entries::Entries;
use crate::error::{Error, Kind, Result};
use crate::index::PodView;
use crate::sandbox;
use crate::spare::Spare;

/// How long a created object waits for a call that takes it.
const UNCLAIMED: Duration = Duration::from_secs(600);
/// The longest grace: a pod may ask for more seconds than a clock can count.
const GRACE_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// A container in its pod's task.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) record: Arc<ContainerRecord>,
    pub(super) busy: Option<Busy>,
    pub(super) creators: Vec<Reply<ContainerId>>,
    pub(super) waiters: Vec<Reply<()>>,
    /// Turns true when the process has ended.
    pub(super) exited: watch::Sender<bool>,
    /// When a stop in flight turns to SIGKILL; a later StopContainer can only bring it forward.
    pub(super) kill_at: watch::Sender<Instant>,
    /// An exit that came before the answer to the start.
    pub(super) early_exit: Option<ExitFacts>,
    /// Turns true when its creation, or its start, is not to be gone on with.
    pub(super) given_up: watch::Sender<bool>,
    /// Held once more by an update that is at work.
    pub(super) updating: Arc<()>,
    /// Calls that its filter refused.
    pub(super) forbidden: Option<Forbidden>,
    /// Followed by a call that captures it, which ends when this turns true.
    pub(super) captured: watch::Sender<bool>,
    pub(super) since: Instant,
}

impl Container {
    pub(crate) fn new(record: ContainerRecord) -> Self {
        let exited = record.phase == ContainerPhase::Exited;
        Self {
            record: Arc::new(record),
            busy: None,
            creators: Vec::new(),
            waiters: Vec::new(),
            exited: watch::Sender::new(exited),
            kill_at: watch::Sender::new(Instant::now()),
            early_exit: None,
            given_up: watch::Sender::new(false),
            updating: Arc::new(()),
            forbidden: None,
            captured: watch::Sender::new(false),
            since: Instant::now(),
        }
    }

    pub(super) fn standing(&self) -> Standing {
        Standing { phase: self.record.phase, busy: self.busy }
    }

    /// What a stop needs to see.
    pub(super) fn target(&self) -> stop::Target {
        stop::Target {
            record: self.record.clone(),
            exited: self.exited.subscribe(),
            kill_at: self.kill_at.subscribe(),
        }
    }
}

/// Whose a piece of work is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    Sandbox,
    Container(ContainerId),
    /// That of whoever waits for it.
    Update,
}

/// How a task begins.
#[derive(Debug)]
pub(crate) enum Start {
    /// By making the sandbox, with a monitor that runs already or one to be launched.
    Create { spare: Option<Spare> },
    /// With what recovery found.
    /// `left_alone`: it has a container of which only a later criox knows.
    Recovered {
        containers: Vec<ContainerRecord>,
        left_alone: Option<String>,
        connection: Option<(Client, mpsc::Receiver<Event>)>,
    },
    /// With what recovery found, and a monitor that lives and does not answer.
    Silent { containers: Vec<ContainerRecord>, left_alone: Option<String> },
}

/// The owner of a pod.
pub(crate) struct Task {
    pub(super) context: Arc<Context>,
    pub(super) pod: Pod,
    pub(super) sandbox: Arc<SandboxRecord>,
    pub(super) busy: Option<SandboxBusy>,
    pub(super) runners: Vec<Reply<Run>>,
    pub(super) stoppers: Vec<Reply<()>>,
    pub(super) removers: Vec<Reply<()>>,
    pub(super) containers: BTreeMap<ContainerId, Container>,
    work: JoinSet<Outcome>,
    /// Whose work each piece is, for one that panics.
    whose: HashMap<task::Id, Whose>,
    pub(super) events: Option<mpsc::Receiver<Event>>,
    requests: mpsc::Receiver<Request>,
    /// Requests that wait for what is at work.
    pub(super) deferred: Vec<Request>,
    /// Why the pod is not removed: a record that this criox can't read would go with it.
    left_alone: Option<String>,
    since: Instant,
    pub(super) gone: bool,
}

impl Task {
    /// Publishes the pod and starts its task, which serves the queue of a handle that may be known already.
    pub(crate) fn spawn(
        context: &Arc<Context>,
        (pod, requests): (Pod, mpsc::Receiver<Request>),
        sandbox: SandboxRecord,
        start: Start,
    ) {
        let mut task = Self {
            context: context.clone(),
            pod,
            sandbox: Arc::new(sandbox),
            busy: None,
            runners: Vec::new(),
            stoppers: Vec::new(),
            removers: Vec::new(),
            containers: BTreeMap::new(),
            work: JoinSet::new(),
            whose: HashMap::new(),
            events: None,
            requests,
            deferred: Vec::new(),
            left_alone: None,
            since: Instant::now(),
            gone: false,
        };
        match start {
            Start::Create { spare } => {
                task.busy = Some(SandboxBusy::Creating);
                let (context, record) = (task.context.clone(), task.sandbox.clone());
                task.begin(Whose::Sandbox, async move {
                    Outcome::SandboxCreated(Box::new(sandbox::run::create(&context, &record, spare).await))
                });
            }
            Start::Recovered { containers, left_alone, connection } => {
                task.left_alone = left_alone;
                task.containers =
                    containers.into_iter().map(|record| (record.id, Container::new(record))).collect();
                match connection {
                    Some((client, events)) => {
                        task.pod.set_monitor(Some(client));
                        task.events = Some(events);
                    }
                    // Nothing of it runs any more: give back what it still holds.
                    None if !task.sandbox.torn_down => task.begin_stop(),
                    None => {}
                }
            }
            Start::Silent { containers, left_alone } => {
                task.left_alone = left_alone;
                task.containers =
                    containers.into_iter().map(|record| (record.id, Container::new(record))).collect();
                let run = task.context.paths.run(task.sandbox.id.as_str());
                let speaks = crate::recovery::wait_for_monitor(run, task.sandbox.clone());
                task.begin(Whose::Sandbox, async move { Outcome::MonitorFound(speaks.await) });
            }
        }
        task.publish();
        tokio::spawn(task.run());
    }

    async fn run(mut self) {
        while !self.gone {
            let expiry = self.next_expiry();
            tokio::select! {
                Some(finished) = self.work.join_next_with_id() => {
                    let id = finished.as_ref().map_or_else(task::JoinError::id, |(id, _)| *id);
                    let whose = self.whose.remove(&id);
                    match finished {
                        Ok((_, outcome)) => self.settle(outcome).await,
                        Err(error) => self.work_died(whose, &error),
                    }
                }
                request = self.requests.recv() => match request {
                    Some(request) => self.admit(request).await,
                    // Unreachable while the index holds the pod; the daemon is ending.
                    None => return,
                },
                event = next_event(self.events.as_mut()) => match event {
                    Some(event) => self.monitor_event(event).await,
                    None => self.monitor_gone().await,
                },
                () = tokio::time::sleep_until(expiry.unwrap_or_else(Instant::now)), if expiry.is_some() => {
                    self.undo_unclaimed().await;
                    self.stop_for_calls().await;
                }
            }
            self.admit_deferred().await;
        }
        self.pod.end();
        self.requests.close();
        while let Ok(request) = self.requests.try_recv() {
            self.deferred.push(request);
        }
        for request in self.deferred.drain(..) {
            answer_after_removal(request);
        }
        for container in self.containers.values_mut() {
            let result = match container.busy {
                Some(Busy::Starting) => Err(gone(&format!("container {}", container.record.id))),
                _ => Ok(()),
            };
            container.answer(&result);
        }
    }

    /// Lets work run beside the task.
    pub(super) fn begin(&mut self, whose: Whose, work: impl Future<Output = Outcome> + Send + 'static) {
        let handle = self.work.spawn(work);
        self.whose.insert(handle.id(), whose);
    }

    /// Shows the state as it is now to readers.
    pub(super) fn publish(&self) {
        self.context.index.publish(PodView {
            sandbox: self.sandbox.clone(),
            containers: self
                .containers
                .iter()
                .map(|(id, container)| (*id, container.record.clone()))
                .collect(),
            pod: self.pod.clone(),
            entries: Entries::default(),
        });
    }

    async fn admit_deferred(&mut self) {
        if self.gone {
            return;
        }
        for request in std::mem::take(&mut self.deferred) {
            // Nobody would be given it, and its log would decide the next attempt.
            if matches!(request, Request::Create { .. }) && request.abandoned() {
                continue;
            }
            self.admit(request).await;
        }
    }

    async fn admit(&mut self, request: Request) {
        match request {
            Request::Run { config, handler, reply } => self.admit_run(&config, &handler, reply),
            // A caller that has gone is given nothing.
            Request::Claim { reply, .. } if reply.is_closed() => {}
            Request::Claim { container, reply } => {
                let newly = self.claim(container).await;
                match (container.filter(|_| newly), reply.send(())) {
                    (Some(id), Ok(())) => self.claimed(id),
                    (Some(id), Err(())) => self.disclaim(id).await,
                    (None, _) => {}
                }
            }
            Request::Create { config, source, reply } => {
                // Who wants containers in it has been given its ID, if only by a list.
                self.claim(None).await;
                self.admit_create(config, source, reply).await;
            }
            Request::Checkpoint { ids, reply } => self.admit_checkpoint(&ids, reply),
            Request::Checkpointed { ids, at, reply } => self.checkpointed(&ids, at, reply).await,
            Request::Restored { reply } => self.restored(reply).await,
            Request::Act { verb, id, grace, reply } => self.admit_act(verb, id, grace, reply),
            Request::Update { id, resources, origin, reply } => {
                self.admit_update(id, resources, origin, reply);
            }
            Request::UpdateSandbox { updated, reply } => self.sandbox_updated(updated, reply).await,
            Request::Stop { reply } => self.admit_stop(reply),
            Request::Remove { reply } => self.admit_remove(reply),
        }
    }

    fn admit_run(&mut self, config: &v1::PodSandboxConfig, handler: &str, reply: Reply<Run>) {
        let mut differences = key::sandbox_differences(&self.sandbox.config.0, config);
        if self.sandbox.runtime_handler != handler {
            differences.push("runtime_handler");
        }
        let id = self.sandbox.id;
        match (self.busy, self.sandbox.phase) {
            (Some(SandboxBusy::Creating), _) if differences.is_empty() => self.runners.push(reply),
            // Its creation must end before it can be undone.
            (Some(SandboxBusy::Creating), _) => {
                self.deferred.push(Request::Run {
                    config: Arc::new(config.clone()),
                    handler: handler.into(),
                    reply,
                });
            }
            (Some(SandboxBusy::Removing), _) => {
                self.removers.push(forward(reply, |()| Run::Gone));
            }
            (None, SandboxPhase::Ready) if differences.is_empty() => send(reply, Ok(Run::Ready)),
            (None, SandboxPhase::Ready) if !self.sandbox.claimed => {
                tracing::info!(sandbox = %id, ?differences, "undoing an unclaimed sandbox: its pod has changed");
                self.removers.push(forward(reply, |()| Run::Gone));
                self.begin_remove();
            }
            (None, SandboxPhase::Ready) => send(
                reply,
                Err(Error::new(
                    Kind::AlreadyExists,
                    format!(
                        "pod sandbox {id} has this name and attempt, and differs in {}",
                        differences.join(", ")
                    ),
                )),
            ),
            (_, SandboxPhase::NotReady | SandboxPhase::Creating | SandboxPhase::Ready) => send(
                reply,
                Err(Error::new(
                    Kind::AlreadyExists,
                    format!(
                        "pod sandbox {id} has this name and attempt and is stopped; remove it, or count the attempt up"
                    ),
                )),
            ),
        }
    }

    async fn admit_create(
        &mut self,
        config: Arc<v1::ContainerConfig>,
        source: Option<Arc<Source>>,
        reply: Reply<ContainerId>,
    ) {
        let key = match ContainerKey::of(&config) {
            Ok(key) => key,
            Err(error) => return send(reply, Err(error.into())),
        };
        let same_key = self
            .containers
            .values_mut()
            .find(|container| ContainerKey::of(&container.record.config.0).is_ok_and(|other| other == key));
        if let Some(container) = same_key {
            let (id, claimed) = (container.record.id, container.record.claimed);
            let same = key::same_container(&container.record.config.0, &config);
            match container.busy {
                Some(Busy::Creating) if same => container.creators.push(reply),
                // What is at work ends first: then the old one can be undone, or is gone.
                Some(Busy::Creating | Busy::Removing) => {
                    self.deferred.push(Request::Create { config, source, reply })
                }
                Some(Busy::Starting | Busy::Stopping) if !claimed => {
                    self.deferred.push(Request::Create { config, source, reply })
                }
                _ if same && container.record.phase == ContainerPhase::Created => send(reply, Ok(id)),
                _ if !claimed => {
                    self.begin_remove_container(id);
                    self.deferred.push(Request::Create { config, source, reply });
                }
                _ => {
                    let fields = key::container_differences(&container.record.config.0, &config);
                    let state = if same {
                        "is no longer new".into()
                    } else {
                        format!("differs in {}", fields.join(", "))
                    };
                    send(
                        reply,
                        Err(Error::new(
                            Kind::AlreadyExists,
                            format!(
                                "container {id} has the name {:?} with attempt {} and {state}",
                                key.name, key.attempt
                            ),
                        )),
                    );
                }
            }
            return;
        }
        match admit::create(self.sandbox.id.as_str(), self.sandbox.phase, self.busy) {
            Admission::Refuse(error) => send(reply, Err(error)),
            _ => self.begin_create(config, source, reply).await,
        }
    }

    async fn begin_create(
        &mut self,
        config: Arc<v1::ContainerConfig>,
        source: Option<Arc<Source>>,
        reply: Reply<ContainerId>,
    ) {
        let first = create::first_record(&self.context, &self.sandbox, config, source.as_deref());
        let record = match first.await {
            Ok(record) => record,
            Err(error) => return send(reply, Err(error)),
        };
        let Some(client) = self.pod.monitor() else {
            return send(reply, Err(no_monitor(&self.sandbox.id)));
        };
        let id = record.id;
        let mut container = Container::new(record);
        container.busy = Some(Busy::Creating);
        container.creators.push(reply);
        let others = self.containers.values().map(|container| container.record.clone()).collect();
        let work = create::Work {
            context: self.context.clone(),
            sandbox: self.sandbox.clone(),
            client,
            record: container.record.clone(),
            given_up: container.given_up.subscribe(),
            others,
            source,
        };
        self.containers.insert(id, container);
        // HTTP /containers/{id} knows it from the first moment of its cgroup.
        self.publish();
        self.begin(Whose::Container(id), async move {
            Outcome::ContainerCreated(id, Box::new(create::create(work).await))
        });
    }

    fn admit_act(&mut self, verb: Verb, id: ContainerId, grace: Duration, reply: Reply<()>) {
        let Some(container) = self.containers.get_mut(&id) else {
            let answer = match verb {
                Verb::Start => Err(Error::no_container(id.as_str())),
                Verb::Stop | Verb::Remove => Ok(()),
            };
            return send(reply, answer);
        };
        if verb == Verb::Start && self.busy.is_some() {
            let message = format!("container {id} is in a pod sandbox that is being stopped");
            return send(reply, Err(Error::new(Kind::FailedPrecondition, message)));
        }
        match admit::container(verb, id.as_str(), container.standing()) {
            Admission::Done => send(reply, Ok(())),
            Admission::Refuse(error) => send(reply, Err(error)),
            Admission::Wait => {
                // A removal is by force: it lets no stop in flight wait for its grace.
                if verb == Verb::Remove {
                    container.shorten(Duration::ZERO);
                }
                if container.busy == Some(Busy::Starting) {
                    container.given_up.send_replace(true);
                }
                self.deferred.push(Request::Act { verb, id, grace, reply });
            }
            Admission::Join => {
                container.shorten(grace);
                container.waiters.push(reply);
            }
            Admission::Begin => {
                container.waiters.push(reply);
                match verb {
                    Verb::Start => self.begin_start(id),
                    Verb::Stop => self.begin_stop_container(id, grace),
                    Verb::Remove => self.begin_remove_container(id),
                }
            }
        }
    }

    fn begin_start(&mut self, id: ContainerId) {
        let client = self.pod.monitor();
        let sandbox = self.sandbox.id;
        let Some(container) = self.containers.get_mut(&id) else { return };
        let Some(client) = client else {
            return container.answer(&Err(no_monitor(&sandbox)));
        };
        container.busy = Some(Busy::Starting);
        let given_up = container.given_up.subscribe();
        let (context, sandbox, target) = (self.context.clone(), self.sandbox.clone(), container.target());
        self.begin(Whose::Container(id), async move {
            let started = start::start(&context, &sandbox, &client, &target, given_up).await;
            Outcome::ContainerStarted(id, started)
        });
    }

    pub(super) fn begin_stop_container(&mut self, id: ContainerId, grace: Duration) {
        let (context, client) = (self.context.clone(), self.pod.monitor());
        let Some(container) = self.containers.get_mut(&id) else { return };
        container.busy = Some(Busy::Stopping);
        container.captured.send_replace(true);
        container.kill_at.send_replace(after(grace));
        let target = container.target();
        self.begin(Whose::Container(id), async move {
            let stopped = stop::stop(&context, client.as_ref(), target).await;
            crate::nri::told_of_end(&context, &id).await;
            Outcome::ContainerStopped(id, stopped)
        });
    }

    pub(super) fn begin_remove_container(&mut self, id: ContainerId) {
        let (context, client, sandbox) = (self.context.clone(), self.pod.monitor(), self.sandbox.clone());
        let Some(container) = self.containers.get_mut(&id) else { return };
        container.busy = Some(Busy::Removing);
        container.captured.send_replace(true);
        container.kill_at.send_replace(Instant::now());
        let target = container.target();
        self.begin(Whose::Container(id), async move {
            let result = remove::remove(&context, client.as_ref(), &sandbox, target).await;
            Outcome::ContainerRemoved(id, result)
        });
    }

    fn admit_stop(&mut self, reply: Reply<()>) {
        match self.busy {
            Some(SandboxBusy::Stopping) => self.stoppers.push(reply),
            Some(SandboxBusy::Removing) => self.removers.push(reply),
            Some(SandboxBusy::Creating) => self.deferred.push(Request::Stop { reply }),
            None if self.sandbox.phase == SandboxPhase::NotReady && self.sandbox.torn_down => {
                send(reply, Ok(()))
            }
            // A container that is being made or started would be missed.
            None if self.unsteady() => {
                self.give_up_beginnings();
                self.deferred.push(Request::Stop { reply });
            }
            None => {
                self.stoppers.push(reply);
                self.begin_stop();
            }
        }
    }

    fn admit_remove(&mut self, reply: Reply<()>) {
        if let Some(why) = &self.left_alone {
            let text =
                format!("pod sandbox {} is not removed with a container in it: {why}", self.sandbox.id);
            return send(reply, Err(Error::new(Kind::FailedPrecondition, text)));
        }
        match self.busy {
            Some(SandboxBusy::Removing) => self.removers.push(reply),
            Some(_) => self.deferred.push(Request::Remove { reply }),
            None if self.unsteady() => {
                self.give_up_beginnings();
                self.deferred.push(Request::Remove { reply });
            }
            None => {
                self.removers.push(reply);
                self.begin_remove();
            }
        }
    }

    /// The end of a pod waits for no container that is being made or started: its runtime, or a disk, may hang.
    fn give_up_beginnings(&self) {
        let begins = |one: &&Container| matches!(one.busy, Some(Busy::Creating | Busy::Starting));
        for container in self.containers.values().filter(begins) {
            container.given_up.send_replace(true);
        }
    }

    fn unsteady(&self) -> bool {
        self.containers
            .values()
            .any(|container| matches!(container.busy, Some(Busy::Creating | Busy::Starting | Busy::Removing)))
    }

    pub(super) fn begin_stop(&mut self) {
        self.busy = Some(SandboxBusy::Stopping);
        let work = self.teardown(sandbox::stop::GRACE);
        self.begin(Whose::Sandbox, async move { Outcome::SandboxStopped(sandbox::stop::stop(work).await) });
    }

    pub(super) fn begin_remove(&mut self) {
        self.busy = Some(SandboxBusy::Removing);
        let work = self.teardown(Duration::ZERO);
        self.begin(
            Whose::Sandbox,
            async move { Outcome::SandboxRemoved(sandbox::remove::remove(work).await) },
        );
    }

    fn teardown(&mut self, grace: Duration) -> sandbox::stop::Work {
        let targets = self.containers.values().map(|container| {
            container.captured.send_replace(true);
            container.shorten(grace);
            if container.busy != Some(Busy::Stopping) {
                container.kill_at.send_replace(after(grace));
            }
            container.target()
        });
        sandbox::stop::Work {
            context: self.context.clone(),
            sandbox: self.sandbox.clone(),
            client: self.pod.monitor(),
            containers: targets.collect(),
        }
    }

    /// The next moment at which something nobody has claimed is undone, or somebody is stopped for its calls.
    fn next_expiry(&self) -> Option<Instant> {
        let sandbox =
            (!self.sandbox.claimed && self.busy.is_none() && self.sandbox.phase == SandboxPhase::Ready)
                .then_some(self.since + UNCLAIMED);
        let containers = self
            .containers
            .values()
            .filter(|container| !container.record.claimed && container.busy.is_none())
            .map(|container| container.since + UNCLAIMED);
        let stops = self.containers.values().filter_map(Container::stop_for_calls);
        // The end of the pod is theirs.
        let stops = stops.filter(|_| self.busy.is_none());
        containers.chain(sandbox).chain(stops).min()
    }

    async fn undo_unclaimed(&mut self) {
        let now = Instant::now();
        let ready = self.sandbox.phase == SandboxPhase::Ready;
        if !self.sandbox.claimed && ready && self.busy.is_none() {
            let shown = self.pod.was_shown() && !self.sandbox.restoring;
            match admit::unclaimed(now.saturating_duration_since(self.since), UNCLAIMED, shown) {
                Fate::Waits => {}
                Fate::Taken => drop(self.claim(None).await),
                Fate::Undone => {
                    // What can't be undone is tried again after as long.
                    self.since = now;
                    tracing::info!(sandbox = %self.sandbox.id, "nobody has asked for this sandbox for ten minutes: undoing it");
                    return self.begin_remove();
                }
            }
        }
        let expired: Vec<ContainerId> = self
            .containers
            .values()
            .filter(|container| {
                !container.record.claimed && container.busy.is_none() && container.since + UNCLAIMED <= now
            })
            .map(|container| container.record.id)
            .collect();
        for id in expired {
            tracing::info!(container = %id, "nobody has asked for this container for ten minutes: undoing it");
            if let Some(container) = self.containers.get_mut(&id) {
                container.since = now;
            }
            self.begin_remove_container(id);
        }
    }
}

impl Container {
    /// Brings a stop in flight forward, never back.
    pub(super) fn shorten(&self, grace: Duration) {
        let at = after(grace);
        self.kill_at.send_if_modified(|current| {
            let sooner = at < *current;
            if sooner {
                *current = at;
            }
            sooner
        });
    }

    /// Answers everybody who waits for the verb that was at work.
    pub(super) fn answer(&mut self, result: &Result<()>) {
        for waiter in self.waiters.drain(..) {
            send(waiter, result.clone());
        }
    }
}

async fn next_event(events: Option<&mut mpsc::Receiver<Event>>) -> Option<Event> {
    match events {
        Some(events) => events.recv().await,
        None => std::future::pending().await,
    }
}

/// A caller that has gone needs no answer.
pub(super) fn send<T>(reply: Reply<T>, result: Result<T>) {
    drop(reply.send(result));
}

/// A reply that, when given, answers another one.
fn forward<T: Send + 'static, U: Send + 'static>(
    to: Reply<U>,
    map: impl FnOnce(T) -> U + Send + 'static,
) -> Reply<T> {
    let (reply, answer) = oneshot::channel::<Result<T>>();
    tokio::spawn(async move {
        if let Ok(result) = answer.await {
            send(to, result.map(map));
        }
    });
    reply
}

/// The moment at which a grace ends.
fn after(grace: Duration) -> Instant {
    Instant::now() + grace.min(GRACE_MAX)
}

fn gone(what: &str) -> Error {
    Error::new(Kind::NotFound, format!("{what} was removed meanwhile"))
}

fn answer_after_removal(request: Request) {
    match request {
        Request::Run { reply, .. } => send(reply, Ok(Run::Gone)),
        Request::Claim { reply, .. } => drop(reply.send(())),
        Request::Create { reply, .. } => send(reply, Err(gone("the pod sandbox"))),
        Request::Act { verb: Verb::Start, id, reply, .. } | Request::Update { id, reply, .. } => {
            send(reply, Err(gone(&format!("container {id}"))))
        }
        Request::UpdateSandbox { reply, .. }
        | Request::Checkpointed { reply, .. }
        | Request::Restored { reply } => send(reply, Err(gone("the pod sandbox"))),
        Request::Checkpoint { reply, .. } => send(reply, Err(gone("the pod sandbox"))),
        Request::Act { reply, .. } | Request::Stop { reply } | Request::Remove { reply } => {
            send(reply, Ok(()))
        }
    }
}

pub(super) fn no_monitor(sandbox: &SandboxId) -> Error {
    Error::new(
        Kind::FailedPrecondition,
        format!("pod sandbox {sandbox} has lost its monitor; create a new sandbox"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grace_longer_than_the_clock_counts_ends_some_time() {
        for seconds in [0, 30, i64::MAX.unsigned_abs(), u64::MAX] {
            assert!(after(Duration::from_secs(seconds)) <= Instant::now() + GRACE_MAX, "{seconds}");
        }
    }
}
