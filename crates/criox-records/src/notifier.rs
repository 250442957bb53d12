//! What a record says of a container's seccomp notifier.

use criox_confine::NotifierAction;
use criox_cri::reasons;
use serde::{Deserialize, Serialize};

use crate::record::Exit;

/// A container's notifier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notifier {
    /// What comes of calls that are refused.
    pub action: NotifierAction,
    /// The container is being stopped, or was, because of this: `Used forbidden syscalls: …`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
}

impl Notifier {
    /// The end of a container, with its reason if it was stopped for its calls; that memory ran out says more.
    pub fn explain(notifier: Option<&Self>, exit: Exit) -> Exit {
        match notifier.and_then(|notifier| notifier.stopped.clone()) {
            Some(message) if exit.reason != reasons::OOM_KILLED => {
                Exit { reason: reasons::SECCOMP_KILLED.into(), message, ..exit }
            }
            _ => exit,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_a_stop_for_calls_is_shown_unless_memory_ran_out_first() {
        let exit =
            |reason: &str| Exit { code: 137, finished_at: 7, reason: reason.into(), message: String::new() };
        let stopped = Notifier {
            action: NotifierAction::Stop,
            stopped: Some("Used forbidden syscalls: a (1x)".into()),
        };
        let told = Notifier { action: NotifierAction::Stop, stopped: None };
        let explain = |notifier, reason| {
            let exit = Notifier::explain(notifier, exit(reason));
            (exit.reason, exit.message)
        };
        let [error, oom] = [reasons::ERROR, reasons::OOM_KILLED];
        assert_eq!(explain(None, error), (error.into(), String::new()));
        assert_eq!(explain(Some(&told), error), (error.into(), String::new()));
        assert_eq!(explain(Some(&stopped), oom), (oom.into(), String::new()));
        let (reason, message) = explain(Some(&stopped), error);
        assert_eq!(
            (reason.as_str(), message.as_str()),
            ("seccomp killed", "Used forbidden syscalls: a (1x)")
        );
    }
}
