//! Pulling: joinable operations, and the pipeline from a reference to a recorded image.

mod layers;
pub(crate) mod resolve;
mod run;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use criox_config::Credentials;
use tokio::sync::watch;
use tokio::time::timeout;

pub(crate) use layers::{LayerProgress, Layers};
pub(crate) use resolve::local_names;

use crate::error::{PullError, PullErrorKind};
use crate::images::Shared;

/// How long the store may take for one step, locks of other processes and a slow disk included.
const STORE_PATIENCE: Duration = Duration::from_secs(600);

/// Credentials as the CRI gives them (`AuthConfig`). Never printed.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Auth {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
    /// Base64 of `user:password`; counts before the two.
    pub auth: String,
    /// The registry that they are for; informative.
    pub server_address: String,
    /// OAuth2 refresh token.
    pub identity_token: String,
    /// Bearer token to be sent as it is.
    pub registry_token: String,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Auth(redacted)")
    }
}

impl Auth {
    /// What is said to the registry; `None` if there is nothing to say.
    fn credentials(&self, image: &str) -> Result<Option<Credentials>, PullError> {
        Credentials::from_cri(
            &self.username,
            &self.password,
            &self.auth,
            &self.identity_token,
            &self.registry_token,
        )
        .map(|credentials| (!credentials.is_empty()).then_some(credentials))
        .map_err(|e| PullError::with(PullErrorKind::Unauthorized, image, "credentials of the request", e))
    }
}

/// What to pull.
#[derive(Debug, Clone, Default)]
pub struct PullRequest {
    /// As the caller wrote it; short names are resolved by `registries.conf`.
    pub image: String,
    /// Credentials of the request; without them the auth file decides.
    pub auth: Option<Auth>,
    /// The pod's namespace, for policies and auth files of namespaces; may be empty.
    pub namespace: String,
}

/// A pulled image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PulledImage {
    /// The image's ID, which the CRI gives as reference: hex, without algorithm.
    pub id: String,
    /// `repository@digest` of the manifest that was chosen for this platform.
    pub reference: String,
}

/// A pull that is under way.
#[derive(Debug, Clone)]
pub struct PullProgress {
    /// The image as requested.
    pub image: String,
    /// The pod's namespace.
    pub namespace: String,
    /// How long it has been running.
    pub elapsed: Duration,
    /// What it is doing.
    pub stage: &'static str,
    /// Layers of the image that the store lacked.
    pub layers: usize,
    /// Those of them that are stored now.
    pub layers_done: usize,
    /// Compressed bytes of these layers.
    pub bytes: u64,
    /// Those of them that have come.
    pub bytes_done: u64,
    /// Callers that joined the one that began it.
    pub joined: usize,
}

/// Pulls with the same key are one operation.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    image: String,
    auth: Option<Auth>,
    namespace: String,
}

/// What a running pull says of itself.
pub(crate) struct Progress {
    started: Instant,
    stage: Mutex<&'static str>,
    layers: Mutex<Vec<Arc<LayerProgress>>>,
    joined: AtomicUsize,
}

impl Progress {
    fn new() -> Self {
        Self {
            started: Instant::now(),
            stage: Mutex::new("starting"),
            layers: Mutex::default(),
            joined: AtomicUsize::new(0),
        }
    }

    fn enter(&self, stage: &'static str) {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = stage;
    }

    fn follow(&self, layers: Vec<Arc<LayerProgress>>) {
        *self.layers.lock().unwrap_or_else(PoisonError::into_inner) = layers;
    }

    fn snapshot(&self, key: &Key) -> PullProgress {
        let layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        PullProgress {
            image: key.image.clone(),
            namespace: key.namespace.clone(),
            elapsed: self.started.elapsed(),
            stage: *self.stage.lock().unwrap_or_else(PoisonError::into_inner),
            layers: layers.len(),
            layers_done: layers.iter().filter(|l| l.done.load(Ordering::Relaxed)).count(),
            bytes: layers.iter().map(|l| l.size).sum(),
            bytes_done: layers.iter().map(|l| l.received.load(Ordering::Relaxed)).sum(),
            joined: self.joined.load(Ordering::Relaxed),
        }
    }
}

type Outcome = Option<Result<PulledImage, PullError>>;

struct Flight {
    outcome: watch::Receiver<Outcome>,
    progress: Arc<Progress>,
}

/// The pulls under way.
#[derive(Default)]
pub(crate) struct Pulls(Mutex<HashMap<Key, Flight>>);

impl Pulls {
    pub(crate) fn snapshot(&self) -> Vec<PullProgress> {
        let flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        flights.iter().map(|(key, flight)| flight.progress.snapshot(key)).collect()
    }
}

/// Takes a finished pull off the list, also when its task panicked.
struct Listed {
    shared: Arc<Shared>,
    key: Key,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.shared.pulls.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

/// Starts a pull or joins the one that does the same. Dropping the future does not cancel the pull.
pub(crate) async fn pull(shared: &Arc<Shared>, request: PullRequest) -> Result<PulledImage, PullError> {
    let image = request.image.clone();
    let key = Key { image: image.clone(), auth: request.auth.clone(), namespace: request.namespace.clone() };
    let mut outcome = {
        let mut flights = shared.pulls.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(&key) {
            flight.progress.joined.fetch_add(1, Ordering::Relaxed);
            flight.outcome.clone()
        } else {
            let (sender, outcome) = watch::channel(None);
            let progress = Arc::new(Progress::new());
            flights.insert(key.clone(), Flight { outcome: outcome.clone(), progress: progress.clone() });
            let shared = shared.clone();
            tokio::spawn(async move {
                let listed = Listed { shared: shared.clone(), key };
                let result = Box::pin(run::run(&shared, &request, &progress)).await;
                match &result {
                    Ok(pulled) => {
                        tracing::info!(image = request.image, id = pulled.id, elapsed = ?progress.started.elapsed(), "image pulled");
                    }
                    Err(e) => {
                        tracing::warn!(image = request.image, kind = e.kind().as_str(), "pull failed: {e}")
                    }
                }
                // Off the list first: who comes now wants to know how the registry stands now.
                drop(listed);
                sender.send_replace(Some(result));
            });
            outcome
        }
    };
    match outcome.wait_for(Option::is_some).await.as_deref() {
        Ok(Some(result)) => result.clone(),
        _ => Err(PullError::new(PullErrorKind::Store, &image, "the pull's task ended without a result")),
    }
}

/// Runs a call of the store where it may block, with a deadline.
async fn blocking<T: Send + 'static>(
    image: &str,
    stage: &str,
    call: impl FnOnce() -> Result<T, criox_store::Error> + Send + 'static,
) -> Result<T, PullError> {
    match timeout(STORE_PATIENCE, tokio::task::spawn_blocking(call)).await {
        Ok(Ok(Ok(value))) => Ok(value),
        Ok(Ok(Err(e))) => Err(PullError::from_store(image, stage, e)),
        Ok(Err(e)) => Err(PullError::with(PullErrorKind::Store, image, stage, e)),
        Err(_) => {
            let stage = format!("{stage}: the store didn't finish in {} s", STORE_PATIENCE.as_secs());
            Err(PullError::new(PullErrorKind::Stalled, image, stage))
        }
    }
}

#[cfg(test)]
mod auth_tests {
    use super::*;

    #[test]
    fn the_encoded_credentials_count_before_name_and_password() {
        let auth =
            Auth { username: "a".into(), password: "b".into(), auth: "dTpw".into(), ..Default::default() };
        let credentials = auth.credentials("i").unwrap().unwrap();
        assert_eq!((&*credentials.username, &*credentials.password), ("u", "p"));
        assert!(Auth::default().credentials("i").unwrap().is_none());
        let malformed = Auth { auth: "%".into(), ..Default::default() };
        assert_eq!(malformed.credentials("i").unwrap_err().kind(), PullErrorKind::Unauthorized);
    }

    #[test]
    fn secrets_are_not_printed() {
        let auth =
            Some(Auth { password: "canary".into(), registry_token: "canary".into(), ..Default::default() });
        let request = PullRequest { image: "i".into(), auth, namespace: String::new() };
        assert!(!format!("{request:?}").contains("canary"));
    }
}
