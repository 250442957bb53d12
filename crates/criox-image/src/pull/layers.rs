//! Layers in flight: each is downloaded, verified and unpacked once, however many pulls wait for it.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use criox_store::{Compression, Digest, LayerDraft, LayerStage, Store, UnpackLimits};
use tokio::sync::{Semaphore, watch};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::stream::{Blob, LayerStream, Piece, channel};
use super::{STORE_PATIENCE, blocking};
use crate::error::{PullError, PullErrorKind};
use crate::manifest::Descriptor;
use crate::registry::{BlobReader, Registry};

/// A layer that an image needs and the store lacks.
#[derive(Debug, Clone)]
pub(crate) struct LayerPlan {
    /// The ID by its place in the chain.
    pub(crate) id: String,
    pub(crate) parent: Option<String>,
    /// From the image configuration.
    pub(crate) diff_id: Digest,
    /// From the manifest.
    pub(crate) blob: Descriptor,
}

/// How far a layer is.
#[derive(Debug, Default)]
pub(crate) struct LayerProgress {
    pub(crate) size: u64,
    pub(crate) received: AtomicU64,
    pub(crate) done: AtomicBool,
}

type Outcome = Option<Result<(), PullError>>;

/// A layer on its way into the store. When the last pull that holds it goes, the work stops.
pub(crate) struct LayerFlight {
    outcome: watch::Receiver<Outcome>,
    pub(crate) progress: Arc<LayerProgress>,
    task: AbortHandle,
}

impl Drop for LayerFlight {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl LayerFlight {
    /// Waits until the layer is in the store.
    pub(crate) async fn landed(&self, image: &str) -> Result<(), PullError> {
        let mut outcome = self.outcome.clone();
        match outcome.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(Ok(()))) => Ok(()),
            Ok(Some(Err(e))) => Err(e.for_image(image)),
            _ => Err(PullError::new(PullErrorKind::Store, image, "the layer's task ended without a result")),
        }
    }

    fn failed(&self) -> bool {
        matches!(*self.outcome.borrow(), Some(Err(_)))
    }
}

/// Everything that is on its way, by layer ID.
pub(crate) struct Layers {
    store: Store,
    limits: UnpackLimits,
    downloads: Arc<Semaphore>,
    flights: Mutex<HashMap<String, Weak<LayerFlight>>>,
}

impl Layers {
    pub(crate) fn new(store: Store, limits: UnpackLimits, downloads: usize) -> Self {
        Self {
            store,
            limits,
            downloads: Arc::new(Semaphore::new(downloads.max(1))),
            flights: Mutex::default(),
        }
    }

    /// The flight for a layer; `true` if it was started by this call. `below` is the parent's, if that is not in
    /// the store yet either.
    pub(crate) fn join(
        &self,
        plan: &LayerPlan,
        below: Option<Arc<LayerFlight>>,
        registry: &Arc<Registry>,
        image: &str,
    ) -> (Arc<LayerFlight>, bool) {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(&plan.id).and_then(Weak::upgrade).filter(|f| !f.failed()) {
            return (flight, false);
        }
        flights.retain(|_, flight| flight.strong_count() > 0);
        let progress = Arc::new(LayerProgress { size: plan.blob.size, ..Default::default() });
        let (sender, outcome) = watch::channel(None);
        let work = Work {
            store: self.store.clone(),
            limits: self.limits.clone(),
            downloads: self.downloads.clone(),
            registry: registry.clone(),
            plan: plan.clone(),
            progress: progress.clone(),
            image: image.to_owned(),
        };
        let task = tokio::spawn(async move {
            let result = work.run(below).await;
            sender.send_replace(Some(result));
        });
        let flight = Arc::new(LayerFlight { outcome, progress, task: task.abort_handle() });
        flights.insert(plan.id.clone(), Arc::downgrade(&flight));
        (flight, true)
    }
}

struct Work {
    store: Store,
    limits: UnpackLimits,
    downloads: Arc<Semaphore>,
    registry: Arc<Registry>,
    plan: LayerPlan,
    progress: Arc<LayerProgress>,
    image: String,
}

/// A verified layer, ready to be committed.
struct Staged {
    stage: LayerStage,
    compression: Compression,
}

impl Work {
    async fn run(self, below: Option<Arc<LayerFlight>>) -> Result<(), PullError> {
        let staged = {
            let _permit = self.downloads.acquire().await.map_err(|e| self.fail(PullErrorKind::Store, e))?;
            self.download().await?
        };
        if let Some(below) = below {
            below.landed(&self.image).await?;
        }
        let (store, plan) = (self.store.clone(), self.plan.clone());
        let draft = LayerDraft {
            id: Some(plan.id.clone()),
            parent: plan.parent,
            compressed_digest: Some(plan.blob.digest.clone()),
            compressed_size: Some(plan.blob.size),
            compression: staged.compression,
            diff_id: Some(plan.diff_id),
        };
        let stage = format!("storing layer {}", self.plan.blob.digest);
        blocking(&self.image, &stage, move || store.commit_layer(staged.stage, draft)).await?;
        self.progress.done.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn stage(&self) -> String {
        format!("layer {}", self.plan.blob.digest)
    }

    fn fail(&self, kind: PullErrorKind, error: impl StdError + Send + Sync + 'static) -> PullError {
        PullError::with(kind, &self.image, self.stage(), error)
    }

    async fn download(&self) -> Result<Staged, PullError> {
        let blob = &self.plan.blob;
        let opened = BlobReader::open(self.registry.clone(), &blob.digest, blob.size).await;
        let mut reader = opened.map_err(|e| PullError::from_registry(&self.image, self.stage(), e))?;
        let (sender, far) = channel(&blob.digest);
        let unpacking = {
            let (store, limits, plan) = (self.store.clone(), self.limits.clone(), self.plan.clone());
            tokio::task::spawn_blocking(move || unpack(&store, &limits, &plan, far))
        };
        let no_progress = self.registry.timeouts().no_progress;
        let mut broken = None;
        loop {
            let piece = match reader.next().await {
                Ok(Some(data)) => {
                    self.progress.received.fetch_add(data.len() as u64, Ordering::Relaxed);
                    Piece::Data(data)
                }
                Ok(None) => Piece::End,
                Err(e) => {
                    broken = Some(PullError::from_registry(&self.image, self.stage(), e));
                    break;
                }
            };
            let last = matches!(piece, Piece::End);
            match timeout(no_progress, sender.send(piece)).await {
                Ok(Ok(())) if !last => {}
                // All sent, or the unpacking gave up and says why below.
                Ok(_) => break,
                Err(_) => {
                    let stage = format!(
                        "unpacking {}: the disk took nothing for {} s; check the storage of this node",
                        self.stage(),
                        no_progress.as_secs()
                    );
                    return Err(PullError::new(PullErrorKind::Stalled, &self.image, stage));
                }
            }
        }
        drop(sender);
        let unpacked = match timeout(STORE_PATIENCE, unpacking).await {
            Ok(Ok(unpacked)) => unpacked,
            Ok(Err(e)) => return Err(self.fail(PullErrorKind::Unpack, e)),
            Err(e) => return Err(self.fail(PullErrorKind::Stalled, e)),
        };
        match (broken, unpacked) {
            // What the network said is the cause of what the unpacking says.
            (Some(broken), _) => Err(broken),
            (None, Ok(staged)) => Ok(staged),
            (None, Err(e)) => Err(e.into_pull_error(&self.image, self.stage())),
        }
    }
}

/// Why the blocking half failed.
enum UnpackError {
    Store(criox_store::Error),
    Stream(io::Error),
    Digest(Digest),
}

/// The compressed bytes are not those of the descriptor.
#[derive(Debug, thiserror::Error)]
#[error("the content has digest {0}; the registry or something before it is corrupt")]
struct OtherDigest(Digest);

impl UnpackError {
    fn into_pull_error(self, image: &str, stage: String) -> PullError {
        match self {
            Self::Store(e @ criox_store::Error::DiffIdMismatch { .. }) => {
                PullError::with(PullErrorKind::DigestMismatch, image, stage, e)
            }
            Self::Store(e @ (criox_store::Error::Content(_) | criox_store::Error::Input(_))) => {
                PullError::with(PullErrorKind::Unpack, image, stage, e)
            }
            Self::Store(e) => PullError::from_store(image, stage, e),
            Self::Stream(e) => PullError::with(PullErrorKind::Unpack, image, stage, e),
            Self::Digest(got) => {
                PullError::with(PullErrorKind::DigestMismatch, image, stage, OtherDigest(got))
            }
        }
    }
}

/// Blocking: unpacks what comes through the channel, and verifies it by both digests.
fn unpack(store: &Store, limits: &UnpackLimits, plan: &LayerPlan, far: Blob) -> Result<Staged, UnpackError> {
    let mut stream = LayerStream::new(far).map_err(UnpackError::Stream)?;
    let mut stage = store.stage_layer().map_err(UnpackError::Store)?;
    let unpacked = stage.unpack(&mut stream, limits);
    let compression = stream.compression();
    // A lying registry makes a malformed layer too: the digest is the better answer, if the blob came whole.
    let unpacked = match unpacked {
        Ok(unpacked) => unpacked,
        Err(e @ (criox_store::Error::Content(_) | criox_store::Error::Input(_))) => {
            return Err(match stream.finish() {
                Ok(got) if got != plan.blob.digest => UnpackError::Digest(got),
                _ => UnpackError::Store(e),
            });
        }
        Err(e) => return Err(UnpackError::Store(e)),
    };
    let got = stream.finish().map_err(UnpackError::Stream)?;
    if got != plan.blob.digest {
        return Err(UnpackError::Digest(got));
    }
    if unpacked.diff_id != plan.diff_id {
        return Err(UnpackError::Store(criox_store::Error::DiffIdMismatch {
            expected: plan.diff_id.to_string(),
            found: unpacked.diff_id.to_string(),
        }));
    }
    Ok(Staged { stage, compression })
}
