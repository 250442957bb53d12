//! Whether a request may begin, given where the pod and the container stand. Pure, so that every pair is tested.
//!
//! ```text
//! sandbox    creating ──► ready ──► stopping ──► not ready ──► removing ──► (gone)
//!               └── undone by ID, as after a crash ──► (gone)
//! container  creating ──► created ──► running ──► exited ──► removing ──► (gone)
//!               └── undone by ID ──► (gone)      a stop or start in flight is `busy` beside the phase
//! ```

use std::time::Duration;

use criox_records::{ContainerPhase, SandboxPhase};

use crate::error::{Error, Kind};

/// What is at work on a container at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Busy {
    /// CreateContainer.
    Creating,
    /// StartContainer.
    Starting,
    /// StopContainer.
    Stopping,
    /// RemoveContainer, or the undoing of a creation.
    Removing,
}

/// What is at work on a sandbox at this moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SandboxBusy {
    /// RunPodSandbox.
    Creating,
    /// StopPodSandbox.
    Stopping,
    /// RemovePodSandbox, or the undoing of a creation.
    Removing,
}

/// Where a container stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// How far it has come.
    pub phase: ContainerPhase,
    /// What is at work on it.
    pub busy: Option<Busy>,
}

/// A request for a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// StartContainer.
    Start,
    /// StopContainer.
    Stop,
    /// RemoveContainer.
    Remove,
}

/// What to do with a request.
#[derive(Debug, Clone)]
pub enum Admission {
    /// Begin it.
    Begin,
    /// The same is at work: answer when that ends.
    Join,
    /// It has been done already: answer success at once.
    Done,
    /// Ask again when what is at work has ended.
    Wait,
    /// It can't be.
    Refuse(Error),
}

/// Admission of a request for a container.
pub fn container(verb: Verb, id: &str, standing: Standing) -> Admission {
    use ContainerPhase::{Created, Creating, Exited, Running};
    match (verb, standing.busy) {
        (Verb::Start, Some(Busy::Starting))
        | (Verb::Stop, Some(Busy::Stopping))
        | (Verb::Remove, Some(Busy::Removing)) => return Admission::Join,
        (Verb::Stop, Some(Busy::Removing)) => return Admission::Wait,
        (Verb::Start, Some(Busy::Stopping | Busy::Removing)) => {
            return refuse(id, "is being stopped and cannot be started");
        }
        (_, Some(_)) => return Admission::Wait,
        (_, None) => {}
    }
    match (verb, standing.phase) {
        (Verb::Start, Created) | (Verb::Stop, Created | Running) | (Verb::Remove, _) => Admission::Begin,
        // The answer to the first call was lost: this is its retry.
        (Verb::Start, Running) | (Verb::Stop, Exited) => Admission::Done,
        (Verb::Start, Exited) => refuse(id, "has exited and cannot be started again; create another"),
        (Verb::Start | Verb::Stop, Creating) => refuse(id, "was not completely created"),
    }
}

/// Admission of CreateContainer, as far as the sandbox decides it.
pub fn create(sandbox: &str, phase: SandboxPhase, busy: Option<SandboxBusy>) -> Admission {
    match (phase, busy) {
        (SandboxPhase::Ready, None) => Admission::Begin,
        (_, Some(SandboxBusy::Creating)) | (SandboxPhase::Creating, _) => {
            refuse_sandbox(sandbox, "is still being created")
        }
        (_, Some(SandboxBusy::Stopping)) => refuse_sandbox(sandbox, "is being stopped; create a new sandbox"),
        (_, Some(SandboxBusy::Removing)) => refuse_sandbox(sandbox, "is being removed"),
        (SandboxPhase::NotReady, None) => refuse_sandbox(sandbox, "is not ready; create a new sandbox"),
    }
}

/// What becomes of a ready sandbox whose ID no live call was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Its time is not over.
    Waits,
    /// It counts as somebody's: it was in a list or a status, from which a kubelet adopts it. Its first container may come
    /// after a pull of any length.
    Taken,
    /// It is nobody's, and is undone.
    Undone,
}

/// Whose a sandbox is that waits for a call to be given its ID, `limit` at most.
pub fn unclaimed(waited: Duration, limit: Duration, shown: bool) -> Fate {
    match (waited >= limit, shown) {
        (false, _) => Fate::Waits,
        (true, true) => Fate::Taken,
        (true, false) => Fate::Undone,
    }
}

fn refuse(id: &str, reason: &str) -> Admission {
    Admission::Refuse(Error::new(Kind::FailedPrecondition, format!("container {id} {reason}")))
}

fn refuse_sandbox(id: &str, reason: &str) -> Admission {
    Admission::Refuse(Error::new(Kind::FailedPrecondition, format!("pod sandbox {id} {reason}")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn word(verb: Verb, phase: ContainerPhase, busy: Option<Busy>) -> &'static str {
        match container(verb, "c", Standing { phase, busy }) {
            Admission::Begin => "begin",
            Admission::Join => "join",
            Admission::Done => "done",
            Admission::Wait => "wait",
            Admission::Refuse(_) => "refuse",
        }
    }

    #[test]
    fn a_retry_of_what_is_at_work_joins_it() {
        assert_eq!(word(Verb::Start, ContainerPhase::Created, Some(Busy::Starting)), "join");
        assert_eq!(word(Verb::Stop, ContainerPhase::Running, Some(Busy::Stopping)), "join");
        assert_eq!(word(Verb::Remove, ContainerPhase::Exited, Some(Busy::Removing)), "join");
    }

    #[test]
    fn what_is_done_is_done_again_without_an_error() {
        assert_eq!(word(Verb::Start, ContainerPhase::Running, None), "done");
        assert_eq!(word(Verb::Stop, ContainerPhase::Exited, None), "done");
    }

    #[test]
    fn no_container_goes_from_exited_to_running() {
        assert_eq!(word(Verb::Start, ContainerPhase::Exited, None), "refuse");
        assert_eq!(word(Verb::Start, ContainerPhase::Running, Some(Busy::Stopping)), "refuse");
    }

    #[test]
    fn removal_is_never_refused() {
        use ContainerPhase::{Created, Creating, Exited, Running};
        for phase in [Creating, Created, Running, Exited] {
            for busy in
                [None, Some(Busy::Creating), Some(Busy::Starting), Some(Busy::Stopping), Some(Busy::Removing)]
            {
                assert_ne!(word(Verb::Remove, phase, busy), "refuse", "{phase:?} {busy:?}");
            }
        }
    }

    #[test]
    fn only_a_ready_sandbox_takes_containers() {
        assert!(matches!(create("s", SandboxPhase::Ready, None), Admission::Begin));
        for (phase, busy) in [
            (SandboxPhase::Creating, Some(SandboxBusy::Creating)),
            (SandboxPhase::Ready, Some(SandboxBusy::Stopping)),
            (SandboxPhase::Ready, Some(SandboxBusy::Removing)),
            (SandboxPhase::NotReady, None),
        ] {
            assert!(matches!(create("s", phase, busy), Admission::Refuse(_)), "{phase:?} {busy:?}");
        }
    }

    #[test]
    fn a_sandbox_that_somebody_has_seen_is_not_undone() {
        let (limit, second) = (Duration::from_secs(600), Duration::from_secs(1));
        for shown in [false, true] {
            assert_eq!(unclaimed(limit - second, limit, shown), Fate::Waits);
        }
        assert_eq!(unclaimed(limit, limit, true), Fate::Taken);
        assert_eq!(unclaimed(limit + second, limit, false), Fate::Undone);
    }

    /// A step of the world: a request arrives, what is at work ends (well or not), the process ends.
    #[derive(Debug, Clone, Copy)]
    enum Step {
        Ask(Verb),
        Finish { well: bool },
        Die,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            Just(Step::Ask(Verb::Start)),
            Just(Step::Ask(Verb::Stop)),
            Just(Step::Ask(Verb::Remove)),
            any::<bool>().prop_map(|well| Step::Finish { well }),
            Just(Step::Die),
        ];
        proptest::collection::vec(step, 1..40)
    }

    /// What the pod's task does with a step; none when the container is gone.
    fn take(standing: Standing, step: Step) -> Option<Standing> {
        let Standing { phase, busy } = standing;
        match step {
            Step::Ask(verb) => match container(verb, "c", standing) {
                Admission::Begin => {
                    assert_eq!(busy, None, "{verb:?} began while {busy:?} was at work");
                    let busy = match verb {
                        Verb::Start => Busy::Starting,
                        Verb::Stop => Busy::Stopping,
                        Verb::Remove => Busy::Removing,
                    };
                    Some(Standing { phase, busy: Some(busy) })
                }
                _ => Some(standing),
            },
            Step::Die if phase == ContainerPhase::Creating => Some(standing),
            Step::Die => Some(Standing { phase: ContainerPhase::Exited, busy }),
            Step::Finish { well } => match (busy, well) {
                (None, _) => Some(standing),
                (Some(Busy::Creating), true) => Some(Standing { phase: ContainerPhase::Created, busy: None }),
                (Some(Busy::Creating), false) | (Some(Busy::Removing), true) => None,
                (Some(Busy::Starting), true) if phase == ContainerPhase::Created => {
                    Some(Standing { phase: ContainerPhase::Running, busy: None })
                }
                (Some(Busy::Stopping | Busy::Starting), _) => {
                    Some(Standing { phase: ContainerPhase::Exited, busy: None })
                }
                (Some(Busy::Removing), false) => Some(Standing { phase, busy: None }),
            },
        }
    }

    proptest! {
        #[test]
        fn no_history_brings_an_ended_container_back(steps in steps()) {
            let mut standing = Standing { phase: ContainerPhase::Creating, busy: Some(Busy::Creating) };
            for step in steps {
                let before = standing.phase;
                let Some(next) = take(standing, step) else { return Ok(()) };
                if before == ContainerPhase::Exited {
                    prop_assert_eq!(next.phase, ContainerPhase::Exited);
                }
                standing = next;
            }
        }

        #[test]
        fn whatever_happened_a_removal_begins_when_work_has_ended(steps in steps()) {
            let mut standing = Standing { phase: ContainerPhase::Creating, busy: Some(Busy::Creating) };
            for step in steps {
                let Some(next) = take(standing, step) else { return Ok(()) };
                standing = next;
            }
            let Some(idle) = take(standing, Step::Finish { well: true }) else { return Ok(()) };
            prop_assert!(matches!(container(Verb::Remove, "c", idle), Admission::Begin));
        }
    }
}
