//! What is known of one image: its record, its configuration, and what follows from both.

use std::collections::BTreeMap;
use std::sync::Arc;

use criox_store::{Digest, Image, Store, Timestamp};
use serde::Deserialize;

use crate::image_config::{ConfigFile, ImageConfig, ImageUser};
use crate::images::ImageOptions;
use crate::reference::Reference;

/// An image in the store.
#[derive(Debug, Clone)]
pub struct ImageInfo {
    /// Hex, without algorithm.
    pub id: String,
    /// All names of the record, tagged and digested.
    pub names: Vec<String>,
    /// Names with a tag.
    pub repo_tags: Vec<String>,
    /// Each repository of the image with each of its digests. An untagged image keeps those of its earlier names.
    pub repo_digests: Vec<String>,
    /// Bytes of layers and data; at least 1, for the kubelet takes 0 for an error.
    pub size: u64,
    /// The user, as a number or a name.
    pub user: ImageUser,
    /// What the image says about its containers.
    pub config: Arc<ImageConfig>,
    /// When the image was made.
    pub created: Option<Timestamp>,
    /// Annotations of the manifest.
    pub annotations: Arc<BTreeMap<String, String>>,
    /// Whether the configuration pins it.
    pub pinned: bool,
    /// ID of the top layer; none for an image without layers.
    pub top_layer: Option<String>,
    /// Digest of the manifest that it was pulled by.
    pub digest: Option<Digest>,
}

/// What the image's documents say, which never changes under one ID and manifest.
#[derive(Debug, Clone)]
pub(crate) struct Documents {
    config: Arc<ImageConfig>,
    annotations: Arc<BTreeMap<String, String>>,
}

impl Documents {
    /// Reads them. `None` for an image whose data is missing or damaged, which is then not shown: it could not be
    /// run, and a pull repairs it.
    pub(crate) fn read(store: &Store, image: &Image) -> Option<Self> {
        #[derive(Deserialize)]
        struct Annotated {
            annotations: Option<BTreeMap<String, String>>,
        }
        let key = image
            .big_data_digests
            .keys()
            .find(|key| key.ends_with(&image.id) && !key.starts_with("manifest"));
        let fallback = format!("sha256:{}", image.id);
        let bytes = store
            .image_big_data(&image.id, key.unwrap_or(&fallback))
            .map_err(|e| tracing::warn!(id = image.id, "image has no readable configuration: {e}"))
            .ok()?;
        let file = ConfigFile::parse(&bytes)
            .map_err(|e| tracing::warn!(id = image.id, "image has a malformed configuration: {e}"))
            .ok()?;
        let manifest = store.image_big_data(&image.id, "manifest").unwrap_or_default();
        let annotations = serde_json::from_slice::<Annotated>(&manifest).ok().and_then(|a| a.annotations);
        Some(Self { config: Arc::new(file.config), annotations: Arc::new(annotations.unwrap_or_default()) })
    }
}

impl ImageInfo {
    pub(crate) fn new(image: &Image, documents: &Documents, size: u64, options: &ImageOptions) -> Self {
        let (digested, repo_tags): (Vec<String>, Vec<String>) =
            image.names.iter().cloned().partition(|name| name.contains('@'));
        let names = if image.names.is_empty() { &image.names_history } else { &image.names };
        let mut repo_digests = digested;
        for reference in names.iter().filter_map(|name| Reference::parse(name).ok()) {
            for digest in image.digests() {
                let name = reference.at(digest).to_string();
                if !repo_digests.contains(&name) {
                    repo_digests.push(name);
                }
            }
        }
        Self {
            id: image.id.clone(),
            names: image.names.clone(),
            pinned: options.is_pinned(repo_tags.iter().chain(&repo_digests).map(String::as_str)),
            repo_tags,
            repo_digests,
            size: size.max(1),
            user: documents.config.image_user(),
            config: documents.config.clone(),
            created: image.created_at(),
            annotations: documents.annotations.clone(),
            top_layer: image.top_layer().map(str::to_owned),
            digest: image.digest.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(record: &str) -> ImageInfo {
        let documents = Documents { config: Arc::default(), annotations: Arc::default() };
        let options = ImageOptions { pinned: vec!["quay.io/a*".into()], ..Default::default() };
        ImageInfo::new(&serde_json::from_str(record).unwrap(), &documents, 0, &options)
    }

    #[test]
    fn every_repository_is_shown_with_every_digest() {
        let (one, two) = (Digest::sha256(b"1"), Digest::sha256(b"2"));
        let info = info(&format!(
            r#"{{"id":"a","names":["quay.io/a:1","quay.io/b@{two}"],"digest":"{one}",
            "big-data-digests":{{"manifest":"{one}","manifest-{two}":"{two}"}}}}"#
        ));
        assert_eq!(info.repo_tags, ["quay.io/a:1"]);
        let mut digests = info.repo_digests.clone();
        digests.sort();
        let mut expect: Vec<String> =
            ["a", "b"].iter().flat_map(|r| [&one, &two].map(|d| format!("quay.io/{r}@{d}"))).collect();
        expect.sort();
        assert_eq!(digests, expect);
        assert!(info.pinned);
        assert_eq!(info.size, 1);
    }

    #[test]
    fn an_untagged_image_keeps_the_digests_of_its_history() {
        let one = Digest::sha256(b"1");
        let info = info(&format!(r#"{{"id":"a","names-history":["quay.io/x:1"],"digest":"{one}"}}"#));
        assert!(info.repo_tags.is_empty() && !info.pinned);
        assert_eq!(info.repo_digests, [format!("quay.io/x@{one}")]);
    }
}
