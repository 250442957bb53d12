//! Whose turn it is: one operation on a pod at a time, and a bounded number of pods at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};

use crate::NetworkError;

type PodLocks = Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>;

#[derive(Debug)]
pub(super) struct Turns {
    pods: Arc<PodLocks>,
    places: Arc<Semaphore>,
    patience: Duration,
}

/// Held while an operation on a pod runs.
#[derive(Debug)]
pub(super) struct Turn {
    pods: Arc<PodLocks>,
    sandbox: String,
    pod: Option<OwnedMutexGuard<()>>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Turns {
    pub(super) fn new(parallel: usize, patience: Duration) -> Self {
        Self { pods: Arc::default(), places: Arc::new(Semaphore::new(parallel.max(1))), patience }
    }

    /// Waits for the pod first and for a place then, so that a queue at one pod takes no places from others.
    pub(super) async fn take(&self, sandbox: &str) -> Result<Turn, NetworkError> {
        let pod = {
            let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(pods.entry(sandbox.to_owned()).or_default())
        };
        let waited = |stage| {
            move |_| NetworkError::Waited { sandbox: sandbox.to_owned(), stage, waited: self.patience }
        };
        let mut turn =
            Turn { pods: Arc::clone(&self.pods), sandbox: sandbox.to_owned(), pod: None, _place: None };
        let pod = tokio::time::timeout(self.patience, pod.lock_owned()).await;
        turn.pod = Some(pod.map_err(waited("an earlier operation on its network"))?);
        let place = tokio::time::timeout(self.patience, Arc::clone(&self.places).acquire_owned()).await;
        // The semaphore is never closed, and a turn without a place would only be less bounded.
        turn._place = place.map_err(waited("other pods' network operations"))?.ok();
        Ok(turn)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        self.pod = None;
        if pods.get(&self.sandbox).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            pods.remove(&self.sandbox);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pod_waits_for_itself_and_not_for_others() {
        let turns = Turns::new(2, Duration::from_millis(50));
        let first = turns.take("a").await.unwrap();
        let other = turns.take("b").await.unwrap();
        let error = turns.take("a").await.unwrap_err();
        assert!(error.to_string().contains("earlier operation"), "{error}");
        let error = turns.take("c").await.unwrap_err();
        assert!(error.to_string().contains("other pods"), "{error}");
        drop(other);
        drop(first);
        drop(turns.take("a").await.unwrap());
        assert!(turns.pods.lock().unwrap().is_empty(), "no lock is kept for a pod that is gone");
    }
}
