//! What a pod's task does about calls that the filters of its containers refuse. The monitor counts them; when a
//! container is to be stopped for them, it is known here, from the counts that every connection brings anew.

use std::time::Duration;

use criox_confine::NotifierAction;
use criox_cri::ids::ContainerId;
use criox_monitor_api::proto::{ForbiddenCalls, SeccompNotified};
use criox_records::{ContainerPhase, ContainerRecord, Notifier};
use tokio::time::Instant;

use super::Task;
use super::task::Container;

/// From the last call to the stop, so that its message names all that a program tries; as in CRI-O.
const QUIET: Duration = Duration::from_secs(5);
/// From the first call to the stop: a program that never ceases to call is stopped too.
const LIMIT: Duration = Duration::from_secs(30);
/// Between attempts to stop a container that does not end.
const AGAIN: Duration = Duration::from_secs(10);

/// What is known of a container's calls.
#[derive(Debug, Clone)]
pub(super) struct Forbidden {
    /// Names and numbers, for people.
    text: String,
    stop_at: Instant,
}

/// When the container is to be stopped. Times are nanoseconds since the epoch; a clock that was set meanwhile makes it
/// neither wait for ever nor end before it could.
fn stop_at(calls: &ForbiddenCalls, wall: i64, now: Instant) -> Instant {
    let left = |at: i64, wait: Duration| {
        let age = u64::try_from(wall.saturating_sub(at)).map_or(Duration::ZERO, Duration::from_nanos);
        wait.saturating_sub(age)
    };
    now + left(calls.last_at, QUIET).min(left(calls.first_at, LIMIT))
}

impl Container {
    /// The moment of a stop for its calls.
    pub(super) fn stop_for_calls(&self) -> Option<Instant> {
        let notifier = self.record.notifier.as_ref()?;
        // What is at work is let end first: it is looked at again then. A stop or a removal ends it anyway.
        if self.busy.is_some() || self.record.phase != ContainerPhase::Running {
            return None;
        }
        match (&self.forbidden, notifier) {
            (Some(forbidden), Notifier { action: NotifierAction::Stop, .. }) => Some(forbidden.stop_at),
            // The daemon died between its decision and the end.
            (None, Notifier { stopped: Some(_), .. }) => Some(Instant::now()),
            _ => None,
        }
    }
}

impl Task {
    pub(super) fn notified(&mut self, told: SeccompNotified) {
        let known = ContainerId::parse(&told.container_id).ok();
        let Some(container) = known.and_then(|id| self.containers.get_mut(&id)) else { return };
        let Some(calls) = told.forbidden.filter(|_| container.record.phase != ContainerPhase::Exited) else {
            return;
        };
        let text = describe(&calls);
        tracing::warn!(container = told.container_id, "{text}");
        let stop_at = stop_at(&calls, self.context.clock.now(), Instant::now());
        container.forbidden = Some(Forbidden { text, stop_at });
    }

    /// Stops, without grace, whom it is time for. The reason is written before, so that whoever settles the end knows it.
    pub(super) async fn stop_for_calls(&mut self) {
        if self.busy.is_some() {
            return;
        }
        let now = Instant::now();
        let due = |container: &Container| container.stop_for_calls().is_some_and(|at| at <= now);
        let ids: Vec<ContainerId> =
            self.containers.iter().filter(|(_, c)| due(c)).map(|(id, _)| *id).collect();
        for id in ids {
            let Some(container) = self.containers.get_mut(&id) else { continue };
            let mut record = (*container.record).clone();
            let Some(notifier) = &mut record.notifier else { continue };
            let text = container.forbidden.take().map(|forbidden| forbidden.text);
            let text = text.or_else(|| notifier.stopped.clone()).unwrap_or_default();
            notifier.stopped = Some(text.clone());
            container.forbidden = Some(Forbidden { text, stop_at: now + AGAIN });
            self.stop_for(record, id).await;
        }
    }

    async fn stop_for(&mut self, record: ContainerRecord, id: ContainerId) {
        let message =
            record.notifier.as_ref().and_then(|notifier| notifier.stopped.clone()).unwrap_or_default();
        tracing::warn!(container = %id, "stopping the container: {message}");
        self.keep_container(record).await;
        self.begin_stop_container(id, Duration::ZERO);
    }
}

/// `Used forbidden syscalls: a (1x), b (2x)`, as CRI-O says it.
fn describe(forbidden: &ForbiddenCalls) -> String {
    let calls = forbidden.calls.iter().map(|call| (call.arch, call.number, call.count));
    format!("Used forbidden syscalls: {}", criox_spec::call_counts(calls))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    #[track_caller]
    fn check(first: i64, last: i64, wall: i64, expected: u64) {
        let calls =
            ForbiddenCalls { first_at: first * SECOND, last_at: last * SECOND, ..ForbiddenCalls::default() };
        let now = Instant::now();
        assert_eq!(stop_at(&calls, wall * SECOND, now) - now, Duration::from_secs(expected));
    }

    #[test]
    fn the_stop_is_five_seconds_after_the_last_call_or_thirty_after_the_first() {
        check(100, 100, 100, 5);
        check(100, 103, 104, 4);
        check(100, 127, 128, 2);
        // The daemon was away.
        check(100, 100, 200, 0);
        // The clock was set back, or forth.
        check(100, 100, 50, 5);
        check(0, i64::MAX / SECOND, 100, 0);
    }
}
