//! One pull, from the reference to the record.

use std::sync::Arc;

use criox_store::{BigData, Digest, Image, ImageDraft, layer_id};
use futures_util::future::try_join_all;

use super::layers::{LayerFlight, LayerPlan};
use super::resolve::{self, Source};
use super::{Progress, PullRequest, PulledImage, blocking};
use crate::error::{PullError, PullErrorKind};
use crate::image_config::ConfigFile;
use crate::images::{ImageOptions, Shared};
use crate::manifest::{ImageManifest, Manifest, choose};
use crate::reference::Reference;
use crate::registry::{FetchedManifest, Registry};

/// How often a pull starts over because somebody removed a layer that it meant to build upon.
const RACES_MAX: usize = 3;

/// Everything that the registry says about one image.
struct Remote {
    registry: Arc<Registry>,
    /// The index, when the reference led to one.
    index: Option<FetchedManifest>,
    manifest: FetchedManifest,
    image: ImageManifest,
}

/// Pulls the first candidate that can be pulled; the last one's error counts.
pub(super) async fn run(
    shared: &Arc<Shared>,
    request: &PullRequest,
    progress: &Progress,
) -> Result<PulledImage, PullError> {
    let options = shared.options();
    let candidates = resolve::candidates(&options, &request.image)?;
    let mut last = PullError::new(PullErrorKind::InvalidReference, &request.image, "no candidate");
    for reference in candidates {
        let pull = Pull { shared, options: &options, request, progress, reference: &reference };
        match pull.run().await {
            Ok(pulled) => return Ok(pulled),
            Err(e) => {
                tracing::debug!(image = request.image, candidate = %reference, "candidate failed: {e}");
                last = e;
            }
        }
    }
    Err(last)
}

struct Pull<'a> {
    shared: &'a Arc<Shared>,
    options: &'a Arc<ImageOptions>,
    request: &'a PullRequest,
    progress: &'a Progress,
    reference: &'a Reference,
}

impl Pull<'_> {
    fn name(&self) -> String {
        self.reference.to_string()
    }

    async fn run(&self) -> Result<PulledImage, PullError> {
        self.progress.enter("policy");
        resolve::check_policy(self.options, self.request, self.reference).await?;
        self.progress.enter("manifest");
        let remote = self.remote().await?;
        for _ in 1..RACES_MAX {
            match self.store(&remote).await {
                Err(e) if is_race(&e) => {
                    tracing::info!(image = self.name(), "a layer was removed meanwhile, starting over");
                }
                result => return result,
            }
        }
        self.store(&remote).await
    }

    /// Asks the sources in order for the top-level manifest. Whoever has it serves the rest, too.
    async fn remote(&self) -> Result<Remote, PullError> {
        let sources = resolve::sources(self.options, self.request, self.reference).await?;
        let mut errors: Vec<PullError> = Vec::new();
        for source in &sources {
            match self.manifest(source).await {
                Ok(remote) => return Ok(remote),
                Err(e) => {
                    tracing::debug!(image = self.name(), host = source.endpoint.host, "source failed: {e}");
                    errors.push(e);
                }
            }
        }
        // The primary is the last, and its error counts.
        let stage = "registries.conf leaves no place to pull from";
        let last = errors
            .pop()
            .unwrap_or_else(|| PullError::new(PullErrorKind::InvalidReference, &self.name(), stage));
        let mirrors: Vec<String> = sources
            .iter()
            .zip(&errors)
            .map(|(source, e)| format!("{} ({})", source.endpoint.host, e.kind().as_str()))
            .collect();
        Err(if mirrors.is_empty() { last } else { last.after(&mirrors.join(", ")) })
    }

    async fn manifest(&self, source: &Source) -> Result<Remote, PullError> {
        let name = self.name();
        let at = |what: &str| format!("{what} from {}", source.endpoint.host);
        let registry = Registry::connect(
            &source.endpoint,
            &self.options.user_agent,
            &self.options.timeouts,
            &self.options.token_hosts,
            &self.options.proxies,
        )
        .await
        .map_err(|e| PullError::from_registry(&name, format!("contacting {}", source.endpoint.host), e))?;
        let registry = Arc::new(registry);
        let fetched = registry
            .manifest(self.reference.manifest_reference())
            .await
            .map_err(|e| PullError::from_registry(&name, at("manifest"), e))?;
        let parse = |fetched: &FetchedManifest| {
            Manifest::parse(Some(&fetched.content_type), &fetched.bytes)
                .map_err(|e| PullError::from_manifest(&name, e))
        };
        match parse(&fetched)? {
            Manifest::Image(image) => Ok(Remote { registry, index: None, manifest: fetched, image }),
            Manifest::Index(entries) => {
                let entry = choose(&entries, &self.options.platform)
                    .map_err(|e| PullError::from_manifest(&name, e))?;
                let manifest = registry
                    .manifest(entry.digest.as_str())
                    .await
                    .map_err(|e| PullError::from_registry(&name, at("manifest of this platform"), e))?;
                if manifest.bytes.len() as u64 != entry.size {
                    let stage = format!(
                        "manifest {} has {} bytes, the index says {}",
                        entry.digest,
                        manifest.bytes.len(),
                        entry.size
                    );
                    return Err(PullError::new(PullErrorKind::SizeMismatch, &name, stage));
                }
                match parse(&manifest)? {
                    Manifest::Image(image) => Ok(Remote { registry, index: Some(fetched), manifest, image }),
                    Manifest::Index(_) => {
                        let stage = "the index points to another index, which is not supported";
                        Err(PullError::new(PullErrorKind::UnsupportedManifest, &name, stage))
                    }
                }
            }
        }
    }

    /// Brings what the registry described into the store.
    async fn store(&self, remote: &Remote) -> Result<PulledImage, PullError> {
        let id = remote.image.config.digest.hex().to_owned();
        let pulled =
            PulledImage { id: id.clone(), reference: self.reference.at(&remote.manifest.digest).to_string() };
        if let Some(image) = self.complete(remote, &id).await? {
            self.progress.enter("naming");
            self.rename(&image).await?;
            return Ok(pulled);
        }
        self.progress.enter("configuration");
        let config = self.config(remote).await?;
        let file = self.parse_config(remote, &config)?;
        self.progress.enter("layers");
        let top_layer = self.layers(remote, &file).await?;
        self.progress.enter("recording");
        let draft = self.draft(remote, id, config, &file, top_layer);
        let store = self.shared.store.clone();
        blocking(&self.name(), "recording the image", move || store.put_image(draft)).await?;
        Ok(pulled)
    }

    /// The image, if all of it is in the store already, manifests and configuration included.
    async fn complete(&self, remote: &Remote, id: &str) -> Result<Option<Arc<Image>>, PullError> {
        let store = self.shared.store.clone();
        let (id, config) = (id.to_owned(), remote.image.config.digest.clone());
        let digests: Vec<Digest> =
            remote.index.iter().chain([&remote.manifest]).map(|fetched| fetched.digest.clone()).collect();
        blocking(&self.name(), "looking at the store", move || {
            let Ok(image) = store.image(&id) else { return Ok(None) };
            let known = image.digests();
            let whole = image.id == id
                && digests.iter().all(|digest| known.contains(&digest))
                && image.top_layer().is_none_or(|top| store.layer(top).is_ok())
                && store
                    .image_big_data(&id, config.as_str())
                    .is_ok_and(|bytes| Digest::sha256(&bytes) == config);
            Ok(whole.then_some(image))
        })
        .await
    }

    /// Gives the name of this pull to an image that is there.
    async fn rename(&self, image: &Image) -> Result<(), PullError> {
        let name = self.name();
        if image.names.contains(&name) {
            return Ok(());
        }
        let (store, id, names) = (self.shared.store.clone(), image.id.clone(), vec![name.clone()]);
        blocking(&name, "naming the image", move || store.add_names(&id, &names)).await.map(drop)
    }

    async fn config(&self, remote: &Remote) -> Result<Vec<u8>, PullError> {
        let descriptor = &remote.image.config;
        let bytes = remote.registry.small_blob(&descriptor.digest, descriptor.size).await;
        let stage = || format!("configuration {}", descriptor.digest);
        bytes.map(Vec::from).map_err(|e| PullError::from_registry(&self.name(), stage(), e))
    }

    fn parse_config(&self, remote: &Remote, bytes: &[u8]) -> Result<ConfigFile, PullError> {
        let unsupported =
            |stage: String| PullError::new(PullErrorKind::UnsupportedManifest, &self.name(), stage);
        let file = ConfigFile::parse(bytes).map_err(|e| {
            PullError::with(PullErrorKind::UnsupportedManifest, &self.name(), "reading the configuration", e)
        })?;
        let (layers, diff_ids) = (remote.image.layers.len(), file.rootfs.diff_ids.len());
        if layers != diff_ids {
            return Err(unsupported(format!(
                "the manifest has {layers} layers, the configuration names {diff_ids}"
            )));
        }
        if !file.os.is_empty() && file.os != self.options.platform.os
            || !file.architecture.is_empty() && file.architecture != self.options.platform.architecture
        {
            tracing::warn!(
                image = self.name(),
                os = file.os,
                architecture = file.architecture,
                "the image is for another platform than this node"
            );
        }
        Ok(file)
    }

    /// Fetches what is missing, in parallel, and gives the ID of the top layer.
    async fn layers(&self, remote: &Remote, file: &ConfigFile) -> Result<Option<String>, PullError> {
        let name = self.name();
        let mut parent: Option<String> = None;
        let mut missing = Vec::new();
        for (blob, diff_id) in remote.image.layers.iter().zip(&file.rootfs.diff_ids) {
            let id = layer_id(parent.as_deref(), diff_id);
            match self.shared.store.layer(&id) {
                Ok(_) => {}
                Err(criox_store::Error::LayerUnknown(_)) => missing.push(LayerPlan {
                    id: id.clone(),
                    parent: parent.clone(),
                    diff_id: diff_id.clone(),
                    blob: blob.clone(),
                }),
                Err(e) => return Err(PullError::from_store(&name, "looking for layers", e)),
            }
            parent = Some(id);
        }
        if let Err(e) = self.fly(&missing, remote).await {
            // A layer that another pull had begun, perhaps with credentials that the registry no longer takes: once
            // more, on our own.
            if !e.joined {
                return Err(e.error);
            }
            self.fly(&missing, remote).await.map_err(|e| e.error)?;
        }
        Ok(parent)
    }

    async fn fly(&self, missing: &[LayerPlan], remote: &Remote) -> Result<(), FlightError> {
        let name = self.name();
        let mut flights: Vec<(Arc<LayerFlight>, bool)> = Vec::with_capacity(missing.len());
        for plan in missing {
            let below = flights.last().map(|(flight, _)| flight.clone());
            flights.push(self.shared.layers.join(plan, below, &remote.registry, &name));
        }
        self.progress.follow(flights.iter().map(|(flight, _)| flight.progress.clone()).collect());
        let joined = flights.iter().any(|(_, started)| !started);
        let landing = flights.iter().map(|(flight, _)| flight.landed(&name));
        try_join_all(landing).await.map(drop).map_err(|error| FlightError { error, joined })
    }

    fn draft(
        &self,
        remote: &Remote,
        id: String,
        config: Vec<u8>,
        file: &ConfigFile,
        top_layer: Option<String>,
    ) -> ImageDraft {
        let data = |key: String, bytes: &[u8]| BigData { key, bytes: bytes.to_vec(), digest: None };
        let manifest_key = |digest: &Digest| format!("manifest-{digest}");
        let mut big_data =
            vec![BigData { key: remote.image.config.digest.to_string(), bytes: config, digest: None }];
        if let Some(index) = &remote.index {
            big_data.push(data(manifest_key(&index.digest), &index.bytes));
        }
        big_data.push(data(manifest_key(&remote.manifest.digest), &remote.manifest.bytes));
        big_data.push(data("manifest".into(), &remote.manifest.bytes));
        ImageDraft {
            id,
            names: vec![self.name()],
            top_layer,
            digest: Some(remote.manifest.digest.clone()),
            created: file.created.as_deref().and_then(|text| text.parse().ok()),
            metadata: "{}".into(),
            big_data,
        }
    }
}

struct FlightError {
    error: PullError,
    /// Another pull's work was among it.
    joined: bool,
}

/// Somebody removed a layer, or the image that only lacked our name, between our look and our commit.
fn is_race(error: &PullError) -> bool {
    use criox_store::Error::{ImageUnknown, LayerUnknown};
    let source = std::error::Error::source(error).and_then(|e| e.downcast_ref::<criox_store::Error>());
    matches!(source, Some(LayerUnknown(_) | ImageUnknown(_)))
}
