//! Who holds which container frozen: the pure part of [`crate::freeze`].
//!
//! ```text
//!                 freeze ┌──────────┐ all stopped  ┌──────────┐
//!   a lease comes ──────▶│ Stopping │─────────────▶│   Held   │◀─┐ a checkpoint begins and ends
//!                        └────┬─────┘              └────┬─────┘──┘
//!      late, lease closed,    │                         │ lease closed, thawed
//!      a container let go     ▼                         ▼
//!                       all are thawed, the lease is forgotten
//! ```
//!
//! While it is held, single containers may be let go (signalled, deleted, ended); with the last one the lease ends.

use std::collections::{BTreeMap, BTreeSet};

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    Freeze(u32),
    Thaw(u32),
    /// A checkpoint of the container is at work, and its freeze is over. Before the thaw: what it does to the freezer
    /// when it ends must not come last, so the container is thawed once more then.
    Kill(u32),
    /// To who asked for the freeze. Comes once for each lease.
    Answer(u32, Outcome),
    /// The lease is over.
    Close(u32),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Frozen,
    /// Not all stopped in time.
    Late,
    /// The lease was closed.
    Abandoned,
    /// This container had to be let go.
    Broken(u32),
}

/// Why a checkpoint can't begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    NotFrozen,
    AtWork,
}

#[derive(Debug)]
struct Lease {
    /// Those that are still held, and whether they are known to have stopped.
    containers: BTreeMap<u32, bool>,
    answered: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Freezer {
    leases: BTreeMap<u32, Lease>,
    /// Containers with a checkpoint at work.
    checkpoints: BTreeSet<u32>,
}

impl Freezer {
    /// Begins a freeze. An error names a container that is held by another, or on which a checkpoint still ends.
    pub(crate) fn freeze(&mut self, lease: u32, containers: &[u32]) -> Result<Vec<Step>, u32> {
        let taken =
            |container: &&u32| self.holder(**container).is_some() || self.checkpoints.contains(container);
        if let Some(container) = containers.iter().find(taken) {
            return Err(*container);
        }
        let containers: BTreeMap<u32, bool> =
            containers.iter().map(|container| (*container, false)).collect();
        let mut steps: Vec<Step> = containers.keys().map(|container| Step::Freeze(*container)).collect();
        // Nothing to wait for.
        if containers.is_empty() {
            steps.extend([Step::Answer(lease, Outcome::Frozen), Step::Close(lease)]);
        } else {
            self.leases.insert(lease, Lease { containers, answered: false });
        }
        Ok(steps)
    }

    /// Containers of a lease that are not known to have stopped.
    pub(crate) fn stopping(&self, lease: u32) -> Vec<u32> {
        let Some(lease) = self.leases.get(&lease) else { return Vec::new() };
        lease.containers.iter().filter(|(_, frozen)| !**frozen).map(|(container, _)| *container).collect()
    }

    /// All processes of a container have stopped.
    pub(crate) fn stopped(&mut self, lease: u32, container: u32) -> Vec<Step> {
        let Some(held) = self.leases.get_mut(&lease) else { return Vec::new() };
        if let Some(frozen) = held.containers.get_mut(&container) {
            *frozen = true;
        }
        if held.answered || held.containers.values().any(|frozen| !frozen) {
            return Vec::new();
        }
        held.answered = true;
        vec![Step::Answer(lease, Outcome::Frozen)]
    }

    /// The time for a freeze is over.
    pub(crate) fn late(&mut self, lease: u32) -> Vec<Step> {
        match self.leases.get(&lease) {
            Some(held) if !held.answered => self.end(lease, Outcome::Late),
            _ => Vec::new(),
        }
    }

    /// The other end of a lease was closed.
    pub(crate) fn abandoned(&mut self, lease: u32) -> Vec<Step> {
        self.end(lease, Outcome::Abandoned)
    }

    /// A container has to run. If its lease is still freezing, nothing of that stays.
    pub(crate) fn let_go(&mut self, container: u32) -> Vec<Step> {
        let Some(lease) = self.holder(container) else { return Vec::new() };
        let Some(held) = self.leases.get_mut(&lease) else { return Vec::new() };
        if !held.answered || held.containers.len() == 1 {
            return self.end(lease, Outcome::Broken(container));
        }
        held.containers.remove(&container);
        self.release(container)
    }

    /// All leases.
    pub(crate) fn leases(&self) -> Vec<u32> {
        self.leases.keys().copied().collect()
    }

    pub(crate) fn holds(&self, container: u32) -> bool {
        self.holder(container).is_some()
    }

    pub(crate) fn begin_checkpoint(&mut self, container: u32) -> Result<(), Refusal> {
        let held = self.holder(container).and_then(|lease| self.leases.get(&lease));
        if !held.is_some_and(|lease| lease.answered) {
            return Err(Refusal::NotFrozen);
        }
        if self.checkpoints.insert(container) { Ok(()) } else { Err(Refusal::AtWork) }
    }

    /// Nothing of a checkpoint runs any more.
    pub(crate) fn end_checkpoint(&mut self, container: u32) -> Vec<Step> {
        let was = self.checkpoints.remove(&container);
        if was && !self.holds(container) { vec![Step::Thaw(container)] } else { Vec::new() }
    }

    fn holder(&self, container: u32) -> Option<u32> {
        let holds = |lease: &Lease| lease.containers.contains_key(&container);
        self.leases.iter().find(|(_, lease)| holds(lease)).map(|(number, _)| *number)
    }

    fn end(&mut self, lease: u32, outcome: Outcome) -> Vec<Step> {
        let Some(held) = self.leases.remove(&lease) else { return Vec::new() };
        let mut steps: Vec<Step> =
            held.containers.keys().flat_map(|container| self.release(*container)).collect();
        if !held.answered {
            steps.push(Step::Answer(lease, outcome));
        }
        steps.push(Step::Close(lease));
        steps
    }

    fn release(&self, container: u32) -> Vec<Step> {
        let kill = self.checkpoints.contains(&container).then_some(Step::Kill(container));
        kill.into_iter().chain([Step::Thaw(container)]).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CONTAINERS: u32 = 4;

    #[derive(Debug, Clone)]
    enum Event {
        Freeze(Vec<u32>),
        Stopped(u32),
        Late(u32),
        Abandoned(u32),
        LetGo(u32),
        Begin(u32),
        /// The process that makes a checkpoint ends; while it ran, it did this to the freezer last.
        End(u32, bool),
    }

    fn event() -> impl Strategy<Value = Event> {
        let container = 0..CONTAINERS;
        prop_oneof![
            3 => proptest::collection::vec(container.clone(), 0..4).prop_map(Event::Freeze),
            6 => container.clone().prop_map(Event::Stopped),
            1 => (0..20u32).prop_map(Event::Late),
            1 => (0..20u32).prop_map(Event::Abandoned),
            2 => container.clone().prop_map(Event::LetGo),
            3 => container.clone().prop_map(Event::Begin),
            3 => (container, any::<bool>()).prop_map(|(c, frozen)| Event::End(c, frozen)),
        ]
    }

    /// The kernel's side, and that of those who wait for answers.
    #[derive(Default)]
    struct World {
        frozen: BTreeSet<u32>,
        open: BTreeSet<u32>,
        unanswered: BTreeSet<u32>,
        /// Checkpoints at work, and whether they were killed.
        running: BTreeMap<u32, bool>,
    }

    impl World {
        fn apply(&mut self, steps: Vec<Step>) {
            for step in steps {
                match step {
                    Step::Freeze(container) => assert!(self.frozen.insert(container)),
                    Step::Thaw(container) => drop(self.frozen.remove(&container)),
                    Step::Kill(container) => *self.running.get_mut(&container).unwrap() = true,
                    Step::Answer(lease, _) => assert!(self.unanswered.remove(&lease), "answered twice"),
                    Step::Close(lease) => assert!(self.open.remove(&lease), "closed twice"),
                }
            }
        }

        fn check(&self, freezer: &Freezer) {
            for container in 0..CONTAINERS {
                let at_work = self.running.contains_key(&container);
                // A killed one may have frozen it anew: that is over when it has ended.
                assert!(
                    at_work || self.frozen.contains(&container) == freezer.holds(container),
                    "{container}"
                );
                assert!(
                    freezer.holds(container) || self.running.get(&container).is_none_or(|killed| *killed),
                    "a checkpoint goes on without a freeze"
                );
            }
            assert_eq!(self.open.iter().copied().collect::<Vec<_>>(), freezer.leases());
            assert!(self.unanswered.is_subset(&self.open), "nobody answers");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn nothing_stays_frozen_without_a_lease(events in proptest::collection::vec(event(), 0..60)) {
            let (mut freezer, mut world, mut next) = (Freezer::default(), World::default(), 0);
            for event in events {
                let steps = match event {
                    Event::Freeze(containers) => {
                        let free = |c: &u32| !freezer.holds(*c) && !world.running.contains_key(c);
                        let free = containers.iter().all(free);
                        let steps = freezer.freeze(next, &containers);
                        prop_assert_eq!(steps.is_ok(), free);
                        if free {
                            world.open.insert(next);
                            world.unanswered.insert(next);
                            next += 1;
                        }
                        steps.unwrap_or_default()
                    }
                    Event::Stopped(container) => match freezer.holder(container) {
                        Some(lease) => freezer.stopped(lease, container),
                        None => Vec::new(),
                    },
                    Event::Late(lease) => freezer.late(lease),
                    Event::Abandoned(lease) => freezer.abandoned(lease),
                    Event::LetGo(container) => freezer.let_go(container),
                    Event::Begin(container) => {
                        if freezer.begin_checkpoint(container).is_ok() {
                            prop_assert!(world.frozen.contains(&container));
                            prop_assert!(world.running.insert(container, false).is_none());
                        }
                        Vec::new()
                    }
                    Event::End(container, frozen) => {
                        if let Some(killed) = world.running.remove(&container) {
                            // One that was left alone leaves it as it was.
                            if frozen && killed {
                                world.frozen.insert(container);
                            }
                        }
                        freezer.end_checkpoint(container)
                    }
                };
                world.apply(steps);
                world.check(&freezer);
            }
            for lease in freezer.leases() {
                world.apply(freezer.abandoned(lease));
            }
            for container in 0..CONTAINERS {
                world.running.remove(&container);
                world.apply(freezer.end_checkpoint(container));
            }
            prop_assert!(world.frozen.is_empty() && world.open.is_empty() && world.unanswered.is_empty());
        }
    }

    fn check(steps: &[Step], expected: &[Step]) {
        assert_eq!(steps, expected);
    }

    #[test]
    fn all_or_none_are_frozen() {
        let mut freezer = Freezer::default();
        check(&freezer.freeze(9, &[1, 2]).unwrap(), &[Step::Freeze(1), Step::Freeze(2)]);
        check(&freezer.stopped(9, 2), &[]);
        assert_eq!(freezer.begin_checkpoint(2), Err(Refusal::NotFrozen));
        assert_eq!(freezer.freeze(10, &[3, 1]), Err(1));
        check(
            &freezer.late(9),
            &[Step::Thaw(1), Step::Thaw(2), Step::Answer(9, Outcome::Late), Step::Close(9)],
        );
        check(&freezer.freeze(11, &[1, 2]).unwrap(), &[Step::Freeze(1), Step::Freeze(2)]);
        check(
            &freezer.let_go(1),
            &[Step::Thaw(1), Step::Thaw(2), Step::Answer(11, Outcome::Broken(1)), Step::Close(11)],
        );
    }

    #[test]
    fn one_that_is_let_go_leaves_the_others_frozen() {
        let mut freezer = Freezer::default();
        freezer.freeze(9, &[1, 2]).unwrap();
        freezer.stopped(9, 1);
        check(&freezer.stopped(9, 2), &[Step::Answer(9, Outcome::Frozen)]);
        check(&freezer.late(9), &[]);
        freezer.begin_checkpoint(1).unwrap();
        assert_eq!(freezer.begin_checkpoint(1), Err(Refusal::AtWork));
        check(&freezer.let_go(1), &[Step::Kill(1), Step::Thaw(1)]);
        assert!(freezer.holds(2) && !freezer.holds(1));
        // Still ending: a new freeze would be undone by the thaw that follows.
        assert_eq!(freezer.freeze(10, &[1]), Err(1));
        check(&freezer.end_checkpoint(1), &[Step::Thaw(1)]);
        check(&freezer.let_go(2), &[Step::Thaw(2), Step::Close(9)]);
    }
}
