//! Places at which a test makes the daemon die, fail or wait: `CRIOX_FAILPOINTS="layer.placed=kill;sandbox.pinned=error*1"`.
//!
//! | action | what happens at the place |
//! |---|---|
//! | `kill` | SIGKILL for this process |
//! | `error` | the caller gets an error |
//! | `sleep(N)` | N milliseconds pass |
//!
//! `*N` after an action: only the first N times. Builds without debug assertions have no failpoints: the call is empty.

use crate::durable::PathError;

/// Passes a place that a test can name.
///
/// # Errors
/// The variable asks for one here.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn hit(_name: &'static str) -> Result<(), PathError> {
    Ok(())
}

/// Passes a place that a test can name.
///
/// # Errors
/// The variable asks for one here.
#[cfg(debug_assertions)]
pub fn hit(name: &'static str) -> Result<(), PathError> {
    match active::take(name) {
        Some(active::Action::Kill) => active::die(),
        Some(active::Action::Error) => {
            let asked = std::io::Error::other("CRIOX_FAILPOINTS asks for an error here");
            Err(PathError::new("pass failpoint", name, asked))
        }
        Some(active::Action::Sleep(time)) => {
            std::thread::sleep(time);
            Ok(())
        }
        None => Ok(()),
    }
}

#[cfg(debug_assertions)]
mod active {
    use std::sync::{Mutex, OnceLock, PoisonError};
    use std::time::Duration;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(super) enum Action {
        Kill,
        Error,
        Sleep(Duration),
    }

    #[derive(Debug, PartialEq, Eq)]
    pub(super) struct Failpoint {
        name: String,
        action: Action,
        left: u32,
    }

    /// What to do at a place, if anything; counts it.
    pub(super) fn take(name: &str) -> Option<Action> {
        static ASKED: OnceLock<Mutex<Vec<Failpoint>>> = OnceLock::new();
        let asked = ASKED.get_or_init(|| {
            let text = std::env::var("CRIOX_FAILPOINTS").unwrap_or_default();
            // A word that is none would make a test pass without its fault.
            Mutex::new(text.split(';').filter(|word| !word.is_empty()).filter_map(parse).collect())
        });
        let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
        let found = asked.iter_mut().find(|point| point.name == name && point.left > 0)?;
        found.left -= 1;
        Some(found.action)
    }

    pub(super) fn parse(word: &str) -> Option<Failpoint> {
        let (name, rest) = word.trim().split_once('=')?;
        let (action, left) = match rest.split_once('*') {
            Some((action, times)) => (action, times.parse().ok()?),
            None => (rest, u32::MAX),
        };
        let action = match action {
            "kill" => Action::Kill,
            "error" => Action::Error,
            sleep => {
                let millis = sleep.strip_prefix("sleep(")?.strip_suffix(')')?.parse().ok()?;
                Action::Sleep(Duration::from_millis(millis))
            }
        };
        Some(Failpoint { name: name.to_owned(), action, left })
    }

    pub(super) fn die() -> ! {
        let _sent = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        // The signal reaches this thread at the latest when it returns from the kernel.
        loop {
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        fn check(word: &str, action: Action, left: u32) {
            assert_eq!(parse(word), Some(Failpoint { name: "a.b".into(), action, left }), "{word}");
        }

        #[test]
        fn each_action_is_read_with_and_without_a_count() {
            check("a.b=kill", Action::Kill, u32::MAX);
            check("a.b=error*2", Action::Error, 2);
            check(" a.b=sleep(30)*1", Action::Sleep(Duration::from_millis(30)), 1);
        }

        #[test]
        fn what_is_no_failpoint_is_none() {
            for word in ["a.b", "a.b=", "a.b=panic", "a.b=sleep(x)", "a.b=kill*many"] {
                assert_eq!(parse(word), None, "{word}");
            }
        }
    }
}
