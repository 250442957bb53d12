//! Containers that are held still for a checkpoint ([`crate::freezer`] decides, this does).
//!
//! The loop never waits for the kernel to stop the processes: it looks again, by a timer.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use criox_monitor_api::proto::{self, failure::Kind, reply};
use criox_sys::cgroup::FreezeState;
use rustix::event::epoll::EventFlags;

use crate::client::{done, failure};
use crate::container::{Caller, Phase};
use crate::freezer::{Outcome, Step};
use crate::monitor::{Monitor, Source, Timer};
use crate::tell;
use crate::verbs::not_found;

/// Where the daemon sets no time for a freeze.
const DEFAULT_LIMIT: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LAST_PAUSE: Duration = Duration::from_millis(20);
/// A v1 freezer can stay half-way for ever when a process forks or vforks meanwhile; told to thaw and freeze again, it
/// gets through. After so many looks.
const STUCK: u32 = 16;

/// The daemon's promise to be there.
pub(crate) struct Lease {
    fd: OwnedFd,
    caller: Caller,
    limit: Duration,
    until: Instant,
    pause: Duration,
    looks: u32,
}

impl Monitor {
    pub(crate) fn freeze(&mut self, caller: Caller, request: &proto::Freeze, lease: OwnedFd) {
        if let Err(result) = self.try_freeze(caller, request, lease) {
            self.answer(caller, result);
        }
    }

    fn try_freeze(
        &mut self,
        caller: Caller,
        request: &proto::Freeze,
        fd: OwnedFd,
    ) -> Result<(), reply::Result> {
        let mut numbers = Vec::new();
        for id in &request.container_ids {
            numbers.push(self.freezable(id)?);
        }
        let limit = match request.timeout_ms {
            0 => DEFAULT_LIMIT,
            milliseconds => Duration::from_millis(milliseconds.into()),
        };
        let number = self.number();
        self.watch(&fd, Source::Lease(number), EventFlags::IN | EventFlags::RDHUP).map_err(|error| {
            failure(Kind::Internal, format!("could not follow the lease of the freeze: {error}"))
        })?;
        // Dropped with its watch if the containers are not to be had.
        let steps = self.freezer.freeze(number, &numbers).map_err(|taken| {
            let id = self.containers.get(&taken).map_or("", |container| container.id.as_str());
            failure(Kind::WrongState, format!("container {id} is being checkpointed already"))
        })?;
        let until = Instant::now() + limit;
        self.leases.insert(number, Lease { fd, caller, limit, until, pause: FIRST_PAUSE, looks: 0 });
        self.take_steps(steps);
        self.look_at_freeze(number);
        Ok(())
    }

    fn freezable(&self, id: &str) -> Result<u32, reply::Result> {
        let number = self.find(id).ok_or_else(|| not_found(id))?;
        let container = self.containers.get(&number).ok_or_else(|| not_found(id))?;
        let refused = |text: String| Err(failure(Kind::WrongState, text));
        if !matches!(container.phase, Phase::Created | Phase::Running)
            || container.exit.is_some()
            || container.pid == 0
        {
            return refused(format!("container {id} does not run"));
        }
        if !container.deleting.is_empty() {
            return refused(format!("container {id} is being deleted"));
        }
        let group = container.freezer.trim_end_matches('/');
        if group.is_empty() {
            return refused(format!("container {id} has no cgroup of its own, so it can't be frozen"));
        }
        let own = self.freezer_of("self").unwrap_or_default();
        if own == group || own.strip_prefix(group).is_some_and(|rest| rest.starts_with('/')) {
            return refused(format!("container {id} can't be frozen: its monitor is in its cgroup"));
        }
        Ok(number)
    }

    pub(crate) fn take_steps(&mut self, steps: Vec<Step>) {
        let mut thawed = Vec::new();
        for step in steps {
            match step {
                Step::Freeze(container) => self.set_frozen(container, true),
                Step::Thaw(container) => {
                    self.set_frozen(container, false);
                    thawed.push(container);
                }
                Step::Kill(container) => self.abort_checkpoint(container),
                Step::Answer(lease, outcome) => self.answer_freeze(lease, outcome),
                // With the descriptor the loop forgets it, and its holder learns of it.
                Step::Close(lease) => drop(self.leases.remove(&lease)),
            }
        }
        for container in thawed {
            self.run_held(container);
        }
    }

    fn set_frozen(&self, number: u32, frozen: bool) {
        let Some(container) = self.containers.get(&number) else { return };
        let cgroup = &container.freezer;
        let result = if frozen { self.cgroups.freeze(cgroup) } else { self.cgroups.thaw(cgroup) };
        if let Err(error) = result {
            let what = if frozen { "freeze" } else { "thaw" };
            tell(&format!("could not {what} container {}: {error}", container.id));
        }
    }

    fn answer_freeze(&mut self, lease: u32, outcome: Outcome) {
        let Some(lease) = self.leases.get(&lease) else { return };
        let (caller, limit) = (lease.caller, lease.limit);
        let result = match outcome {
            Outcome::Frozen => done(),
            Outcome::Late => {
                let text = format!(
                    "not all processes could be stopped within {} ms: one waits in the kernel",
                    limit.as_millis()
                );
                failure(Kind::RuntimeTimeout, text)
            }
            Outcome::Abandoned => failure(Kind::WrongState, "the lease of the freeze was closed"),
            Outcome::Broken(container) => {
                let id = self.containers.get(&container).map_or("", |container| container.id.as_str());
                failure(Kind::WrongState, format!("container {id} was signalled, deleted or ended meanwhile"))
            }
        };
        self.answer(caller, result);
    }

    /// Looks whether all have stopped, until they have or the time is over.
    pub(crate) fn look_at_freeze(&mut self, number: u32) {
        for container in self.freezer.stopping(number) {
            let Some(owner) = self.containers.get(&container) else { continue };
            match self.cgroups.freeze_state(&owner.freezer) {
                Ok(FreezeState::Frozen) => {
                    let steps = self.freezer.stopped(number, container);
                    self.take_steps(steps);
                }
                Ok(state) => {
                    let looks = self.leases.get(&number).map_or(0, |lease| lease.looks);
                    if state == FreezeState::Freezing && looks % STUCK == STUCK - 1 {
                        self.set_frozen(container, false);
                    }
                    self.set_frozen(container, true);
                }
                // The group has gone, and with it all processes: their end is told in a moment.
                Err(_) => {
                    let steps = self.freezer.let_go(container);
                    return self.take_steps(steps);
                }
            }
        }
        if self.freezer.stopping(number).is_empty() {
            return;
        }
        let Some(lease) = self.leases.get_mut(&number) else { return };
        if Instant::now() >= lease.until {
            let steps = self.freezer.late(number);
            return self.take_steps(steps);
        }
        let (pause, until) = (lease.pause, lease.until);
        lease.pause = (pause * 2).min(LAST_PAUSE);
        lease.looks += 1;
        self.at((Instant::now() + pause).min(until), Timer::Freeze(number));
    }

    /// The holder has gone, or says something: both end it.
    pub(crate) fn freeze_ended(&mut self, number: u32) {
        if let Some(lease) = self.leases.get(&number) {
            self.unwatch(&lease.fd);
        }
        let steps = self.freezer.abandoned(number);
        self.take_steps(steps);
    }

    pub(crate) fn thaw(&mut self, request: &proto::Thaw) -> reply::Result {
        let numbers = match request.container_ids.is_empty() {
            true => self.containers.keys().copied().collect(),
            false => request.container_ids.iter().filter_map(|id| self.find(id)).collect::<Vec<u32>>(),
        };
        for number in numbers {
            self.let_go(number);
        }
        done()
    }

    /// Before anything that a frozen container would not answer to.
    pub(crate) fn let_go(&mut self, container: u32) {
        let steps = self.freezer.let_go(container);
        self.take_steps(steps);
    }

    /// The last thing that the monitor does, whatever ends it.
    pub(crate) fn thaw_all(&mut self) {
        for lease in self.freezer.leases() {
            self.freeze_ended(lease);
        }
    }
}
