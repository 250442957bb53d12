//! Parsers of what registries send, for the fuzz targets alone (`dev/fuzz`): the feature is off everywhere else.

use crate::image_config::ConfigFile;
use crate::manifest::{ArtifactManifest, Manifest, choose};
use crate::platform::Platform;
use crate::registry::{challenge, proxy};

/// A manifest or an index, with the `Content-Type` that came with it; of an index, the choice as well. The same bytes as
/// an artifact's.
pub fn manifest(content_type: Option<&str>, body: &[u8]) {
    match Manifest::parse(content_type, body) {
        Ok(Manifest::Index(entries)) => drop(choose(&entries, &Platform::host())),
        Ok(Manifest::Image(_)) => {}
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    drop(ArtifactManifest::parse(content_type, body));
}

/// An image configuration.
pub fn configuration(body: &[u8]) {
    if let Ok(file) = ConfigFile::parse(body) {
        drop(file.config.image_user());
    }
}

/// The value of a `WWW-Authenticate` header; the number of challenges in it.
pub fn challenges(value: &str) -> usize {
    challenge::parse(value).len()
}

/// What a proxy says to CONNECT, and where its head ends.
pub fn proxy_answer(bytes: &[u8]) {
    if let Ok(Some((_, end))) = proxy::status(bytes) {
        assert!(end <= bytes.len());
    }
}
