//! Whether checkpoints are made and restored on this node.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use criox_config::value::CheckpointLevel;

use crate::error::{Error, Result};

/// CRIU's program, which the OCI runtimes look for by this name.
const CRIU: &str = "criu";
/// The beginning of every refusal: clients look for these words.
const NOT_AVAILABLE: &str = "checkpoint/restore support not available";

/// What the configuration allows and the node can.
#[derive(Debug)]
pub struct Checkpoints {
    level: CheckpointLevel,
    /// The directory of CRIU's program.
    criu: Option<PathBuf>,
    /// What belongs to a call that is at work.
    claimed: Arc<Mutex<HashSet<String>>>,
}

/// What belongs to one call, until this is dropped.
#[derive(Debug)]
pub struct Claim {
    what: String,
    all: Arc<Mutex<HashSet<String>>>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.what);
    }
}

impl Checkpoints {
    /// At the configured level; CRIU is looked for in a search path (`$PATH`).
    pub fn new(level: CheckpointLevel, search: &str) -> Self {
        let found = match level {
            CheckpointLevel::None => None,
            _ => find(search),
        };
        if level != CheckpointLevel::None && found.is_none() {
            tracing::info!("no program {CRIU} in PATH: checkpoints are neither made nor restored");
        }
        Self { level, criu: found, claimed: Arc::default() }
    }

    /// Takes what belongs to one call at a time, a place or a pod, by its name.
    ///
    /// # Errors
    /// Another call is at work on it.
    pub fn claim(&self, what: String) -> Result<Claim> {
        let new = self.claimed.lock().unwrap_or_else(PoisonError::into_inner).insert(what.clone());
        match new {
            true => Ok(Claim { what, all: self.claimed.clone() }),
            false => {
                let text = format!("another call is at work on {what}; try again when it has ended");
                Err(Error::Refused(text))
            }
        }
    }

    /// Where CRIU's program lies, for runtimes to find it; none if checkpoints are off.
    pub fn criu(&self) -> Option<&Path> {
        self.criu.as_deref()
    }

    /// Whether checkpoints may be restored.
    pub fn restores(&self) -> bool {
        self.restore().is_ok()
    }

    /// Whether checkpoints are made.
    ///
    /// # Errors
    /// None are, and why.
    pub fn checkpoint(&self) -> Result<()> {
        let reason = match (self.level, &self.criu) {
            (CheckpointLevel::None, _) => {
                "it is off; set container_level_enabled in [crio.checkpoint_restore] to \"checkpoint_only\" or \"checkpoint_restore\", and restart criox"
            }
            (_, None) => {
                "there was no program criu in PATH when criox started; install CRIU and restart criox"
            }
            (_, Some(_)) => return Ok(()),
        };
        Err(Error::Refused(format!("{NOT_AVAILABLE}: {reason}")))
    }

    /// Whether checkpoints are restored.
    ///
    /// # Errors
    /// None are, and why.
    pub fn restore(&self) -> Result<()> {
        self.checkpoint()?;
        if self.level == CheckpointLevel::CheckpointOnly {
            let reason = "container_level_enabled in [crio.checkpoint_restore] is \"checkpoint_only\"; restores need \"checkpoint_restore\"";
            return Err(Error::Refused(format!("{NOT_AVAILABLE}: {reason}")));
        }
        Ok(())
    }
}

fn find(search: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let executable = |dir: &PathBuf| {
        let program = std::fs::metadata(dir.join(CRIU));
        program.is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    search.split(':').filter(|dir| dir.starts_with('/')).map(PathBuf::from).find(executable)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn reasons(level: CheckpointLevel, search: &str) -> [Option<String>; 2] {
        let checkpoints = Checkpoints::new(level, search);
        [checkpoints.checkpoint(), checkpoints.restore()].map(|result| result.err().map(|e| e.to_string()))
    }

    #[test]
    fn one_call_at_a_time_has_a_place() {
        let checkpoints = Checkpoints::new(CheckpointLevel::None, "");
        let first = checkpoints.claim("x".to_owned()).expect("nobody has it");
        assert!(
            checkpoints.claim("x".to_owned()).is_err_and(|error| error.to_string().contains("at work on x"))
        );
        assert!(checkpoints.claim("y".to_owned()).is_ok());
        drop(first);
        assert!(checkpoints.claim("x".to_owned()).is_ok());
    }

    #[test]
    fn what_is_refused_says_so_in_the_words_that_clients_look_for_and_names_the_key() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().to_str().expect("a plain name");
        for level in [CheckpointLevel::CheckpointOnly, CheckpointLevel::CheckpointRestore] {
            for search in ["", path, "relative:."] {
                for reason in reasons(level, search) {
                    let reason = reason.expect("there is no CRIU");
                    assert!(reason.starts_with(NOT_AVAILABLE) && reason.contains("PATH"), "{reason}");
                }
            }
        }
        let program = dir.path().join(CRIU);
        criox_sys::durable::write_atomic(&program, b"", 0o600).expect("a fixture");
        assert!(reasons(CheckpointLevel::CheckpointRestore, path)[0].is_some(), "it can't be executed");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
        let search = format!("/nowhere:{path}");
        assert_eq!(reasons(CheckpointLevel::CheckpointRestore, &search), [None, None]);
        let [checkpoint, restore] = reasons(CheckpointLevel::CheckpointOnly, &search);
        assert_eq!(checkpoint, None);
        assert!(restore.is_some_and(|reason| reason.contains("checkpoint_only")));
        for reason in reasons(CheckpointLevel::None, &search) {
            let reason = reason.expect("it is off");
            assert!(
                reason.starts_with(NOT_AVAILABLE) && reason.contains("container_level_enabled"),
                "{reason}"
            );
        }
    }
}
