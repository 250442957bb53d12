//! OCI artifacts: small documents that a registry keeps, fetched whole and into memory.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use criox_store::Digest;

use crate::error::{PullError, PullErrorKind};
use crate::images::{ImageOptions, Images, Shared};
use crate::manifest::ArtifactManifest;
use crate::pull::{PullRequest, resolve};
use crate::reference::Reference;
use crate::registry::Registry;

/// Artifacts that are kept, the latest; a node has a handful.
const KEPT: usize = 32;

/// The first part of an artifact's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// `repository@digest` of its manifest.
    pub reference: String,
    /// The content, proven by its digest.
    pub bytes: Arc<[u8]>,
}

/// What has been fetched, by repository, manifest and kind: a digest never means anything else, and is of no use for
/// getting at the content of another repository.
#[derive(Default)]
pub(crate) struct Kept(Mutex<VecDeque<(Key, Arc<[u8]>)>>);

#[derive(Clone, PartialEq, Eq)]
struct Key {
    repository: String,
    manifest: Digest,
    kind: String,
}

impl Kept {
    fn find(&self, key: &Key) -> Option<Arc<[u8]>> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().find(|(known, _)| known == key).map(|(_, bytes)| bytes.clone())
    }

    fn keep(&self, key: Key, bytes: &Arc<[u8]>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(known, _)| *known != key);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back((key, bytes.clone()));
    }
}

impl Images {
    /// Fetches an artifact that calls itself `kind` (a media type) and has at most `max` bytes. A tag is looked up each
    /// time, its content once. Names, mirrors, policy and credentials are those of a pull.
    ///
    /// # Errors
    /// As a pull's; `UnsupportedManifest` for what is no such artifact, `SizeMismatch` for one that is too large.
    pub async fn artifact(&self, request: &PullRequest, kind: &str, max: u64) -> Result<Artifact, PullError> {
        let shared = self.shared();
        let options = shared.options();
        let mut last = PullError::new(PullErrorKind::InvalidReference, &request.image, "no candidate");
        for reference in resolve::candidates(&options, &request.image)? {
            let fetch = Fetch { shared, options: &options, request, reference: &reference, kind, max };
            match fetch.run().await {
                Ok(artifact) => return Ok(artifact),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

struct Fetch<'a> {
    shared: &'a Shared,
    options: &'a Arc<ImageOptions>,
    request: &'a PullRequest,
    reference: &'a Reference,
    kind: &'a str,
    max: u64,
}

impl Fetch<'_> {
    fn key(&self, manifest: &Digest) -> Key {
        let (repository, kind) = (self.reference.name(), self.kind.to_owned());
        Key { repository, manifest: manifest.clone(), kind }
    }

    async fn run(&self) -> Result<Artifact, PullError> {
        resolve::check_policy(self.options, self.request, self.reference).await?;
        if let Some(digest) = self.reference.digest()
            && let Some(bytes) = self.shared.artifacts.find(&self.key(digest))
        {
            return Ok(Artifact { reference: self.reference.at(digest).to_string(), bytes });
        }
        let stage = "registries.conf leaves no place to pull from";
        let mut last = PullError::new(PullErrorKind::InvalidReference, &self.reference.to_string(), stage);
        for source in resolve::sources(self.options, self.request, self.reference).await? {
            match self.from(&source).await {
                Ok(artifact) => return Ok(artifact),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn from(&self, source: &resolve::Source) -> Result<Artifact, PullError> {
        let name = self.reference.to_string();
        let host = &source.endpoint.host;
        let failed = |stage: String| {
            let name = name.clone();
            move |error| PullError::from_registry(&name, stage, error)
        };
        let options = self.options;
        let (agent, hosts) = (&options.user_agent, &options.token_hosts);
        let registry = Registry::connect(&source.endpoint, agent, &options.timeouts, hosts, &options.proxies)
            .await
            .map_err(failed(format!("contacting {host}")))?;
        let fetched = registry
            .manifest(self.reference.manifest_reference())
            .await
            .map_err(failed(format!("manifest from {host}")))?;
        let reference = self.reference.at(&fetched.digest).to_string();
        if let Some(bytes) = self.shared.artifacts.find(&self.key(&fetched.digest)) {
            return Ok(Artifact { reference, bytes });
        }
        let manifest = ArtifactManifest::parse(Some(&fetched.content_type), &fetched.bytes)
            .map_err(|error| PullError::from_manifest(&name, error))?;
        if !manifest.kinds.iter().any(|kind| kind == self.kind) {
            let stage = format!("it is no artifact of type {}", self.kind);
            return Err(PullError::new(PullErrorKind::UnsupportedManifest, &name, stage));
        }
        let layer = &manifest.layer;
        if layer.size > self.max {
            let stage = format!("content of {} bytes, at most {} are taken", layer.size, self.max);
            return Err(PullError::new(PullErrorKind::SizeMismatch, &name, stage));
        }
        let blob = registry.small_blob(&layer.digest, layer.size).await;
        let bytes: Arc<[u8]> = blob.map_err(failed(format!("content {}", layer.digest)))?.as_ref().into();
        self.shared.artifacts.keep(self.key(&fetched.digest), &bytes);
        Ok(Artifact { reference, bytes })
    }
}
