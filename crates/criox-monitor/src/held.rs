//! Execs that are asked for while their container is held still. A runtime that joined it would stop with it, or refuse:
//! they wait for the thaw instead, so that a checkpoint fails no probe.

use std::os::fd::OwnedFd;
use std::time::Instant;

use criox_monitor_api::proto::{self, failure::Kind};

use crate::client::failure;
use crate::container::Caller;
use crate::monitor::{Monitor, Timer};
use crate::verbs::timeout;

/// Over all containers of the pod.
const MAX_HELD: usize = 64;

/// An exec that waits.
pub(crate) struct HeldExec {
    container: u32,
    caller: Caller,
    request: proto::Exec,
    fds: Vec<OwnedFd>,
    /// Its time to start is over.
    until: Instant,
}

impl Monitor {
    pub(crate) fn hold_exec(
        &mut self,
        container: u32,
        caller: Caller,
        request: proto::Exec,
        fds: Vec<OwnedFd>,
    ) {
        if self.held.len() >= MAX_HELD {
            let text = format!("container {} is held still for a checkpoint", request.container_id);
            return self.answer(caller, failure(Kind::WrongState, text));
        }
        let until = Instant::now() + timeout(request.start_timeout_ms);
        self.held.push(HeldExec { container, caller, request, fds, until });
        self.at(until, Timer::Held);
    }

    /// Some may have run out of time.
    pub(crate) fn look_at_held(&mut self) {
        let now = Instant::now();
        for held in self.take_held(|held| held.until <= now) {
            let text =
                format!("container {} was held still for a checkpoint too long", held.request.container_id);
            self.answer(held.caller, failure(Kind::RuntimeTimeout, text));
        }
    }

    /// A container runs again.
    pub(crate) fn run_held(&mut self, container: u32) {
        for held in self.take_held(|held| held.container == container) {
            if self.has_client(held.caller.client) {
                self.exec(held.caller, held.request, held.fds);
            }
        }
    }

    /// Nobody waits for it any more. False: it is not held.
    pub(crate) fn end_held(&mut self, container: &str, exec_id: &str) -> bool {
        let ended =
            self.take_held(|held| held.request.container_id == container && held.request.exec_id == exec_id);
        let any = !ended.is_empty();
        for held in ended {
            self.answer(held.caller, failure(Kind::WrongState, "the exec was ended before it began"));
        }
        any
    }

    fn take_held(&mut self, which: impl Fn(&HeldExec) -> bool) -> Vec<HeldExec> {
        self.held.extract_if(.., |held| which(held)).collect()
    }
}
