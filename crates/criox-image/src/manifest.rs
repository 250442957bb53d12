//! Manifests and indexes of OCI and Docker schema 2, read strictly: one document has one meaning, whatever the
//! registry's headers say (the confusion of CVE-2021-41190).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::platform::Platform;
use criox_store::Digest;

/// The most bytes of a manifest, an index or an image configuration.
pub(crate) const MANIFEST_MAX: u64 = 4 << 20;
const LAYERS_MAX: usize = 512;
const INDEX_ENTRIES_MAX: usize = 1024;
const DEPTH_MAX: u32 = 64;
/// The largest blob that is believed; a size beyond it is a lie.
const BLOB_MAX: u64 = 1 << 43;

/// Media type of an OCI manifest.
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an OCI index.
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of a Docker schema 2 manifest.
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Media type of a Docker manifest list.
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// What is asked for with `Accept`. Schema 1 is not: it carries no configuration that could be verified.
pub(crate) const ACCEPTED: [&str; 4] = [OCI_MANIFEST, DOCKER_MANIFEST, DOCKER_LIST, OCI_INDEX];

/// Why a document is no manifest that can be pulled.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ManifestError {
    /// Docker schema 1.
    #[error(
        "the manifest is Docker schema 1, which is not supported; push the image again with a current tool"
    )]
    Schema1,
    /// The media type is not one of an image.
    #[error("media type {0:?} is not an image manifest or index")]
    MediaType(String),
    /// The header and the body disagree.
    #[error("the registry says media type {header:?}, the document says {body:?}")]
    Disagreement {
        /// The `Content-Type` header.
        header: String,
        /// `mediaType` of the document.
        body: String,
    },
    /// The document has fields of both a manifest and an index, or misses one.
    #[error("malformed manifest: {0}")]
    Malformed(String),
    /// No entry of the index runs here.
    #[error("the index has no image for {wanted}; it has: {have}")]
    NoPlatform {
        /// This node's platform.
        wanted: String,
        /// The entries' platforms.
        have: String,
    },
    /// The manifest describes something that is not a container image.
    #[error("configuration media type {0:?} is not that of a container image")]
    NotAnImage(String),
    /// A layer can't be stored.
    #[error("layer {digest}: {why}")]
    Layer {
        /// The layer's digest.
        digest: Digest,
        /// What is wrong with it.
        why: String,
    },
}

/// A content descriptor.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Descriptor {
    /// Media type of the content.
    #[serde(rename = "mediaType", default)]
    pub(crate) media_type: String,
    /// Digest of the content.
    pub(crate) digest: Digest,
    /// Length of the content in bytes.
    pub(crate) size: u64,
    /// Where a foreign layer is to be had; never followed.
    #[serde(default)]
    pub(crate) urls: Option<Vec<String>>,
    /// The platform of an index entry.
    #[serde(default)]
    pub(crate) platform: Option<Platform>,
    /// Annotations of an index entry.
    #[serde(default)]
    pub(crate) annotations: Option<BTreeMap<String, String>>,
}

/// An image manifest.
#[derive(Debug, Clone)]
pub(crate) struct ImageManifest {
    /// The image configuration.
    pub(crate) config: Descriptor,
    /// The layers, base first.
    pub(crate) layers: Vec<Descriptor>,
}

/// The manifest of something that is no container image.
#[derive(Debug, Clone)]
pub(crate) struct ArtifactManifest {
    /// What it is: the types of the artifact, its configuration and its content. Tools name it in one place or another.
    pub(crate) kinds: [String; 3],
    /// The first part of its content.
    pub(crate) layer: Descriptor,
}

/// A parsed document.
#[derive(Debug, Clone)]
pub(crate) enum Manifest {
    /// One image.
    Image(ImageManifest),
    /// One image for each of several platforms.
    Index(Vec<Descriptor>),
}

#[derive(Deserialize)]
struct Document {
    #[serde(rename = "schemaVersion")]
    schema_version: Option<u64>,
    #[serde(rename = "mediaType")]
    media_type: Option<String>,
    #[serde(rename = "artifactType")]
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    #[serde(rename = "fsLayers")]
    fs_layers: Option<IgnoredAny>,
}

impl Manifest {
    /// Reads the body of an answer with this `Content-Type` (parameters already stripped). `None` is for bytes
    /// from elsewhere: then the document itself decides.
    pub(crate) fn parse(content_type: Option<&str>, body: &[u8]) -> Result<Self, ManifestError> {
        let (document, media_type) = Document::read(content_type, body)?;
        if matches!(media_type.as_str(), OCI_INDEX | DOCKER_LIST) {
            document.index()
        } else {
            document.image()
        }
    }
}

impl ArtifactManifest {
    /// Reads the body of an answer with this `Content-Type`, as [`Manifest::parse`] does.
    pub(crate) fn parse(content_type: Option<&str>, body: &[u8]) -> Result<Self, ManifestError> {
        let (document, media_type) = Document::read(content_type, body)?;
        if media_type != OCI_MANIFEST {
            return Err(ManifestError::MediaType(media_type));
        }
        document.artifact()
    }
}

impl Document {
    /// The document, and what it is.
    fn read(content_type: Option<&str>, body: &[u8]) -> Result<(Self, String), ManifestError> {
        let malformed = |e: serde_json::Error| ManifestError::Malformed(shown(&e.to_string()));
        match content_type {
            Some(header) if header.starts_with("application/vnd.docker.distribution.manifest.v1") => {
                return Err(ManifestError::Schema1);
            }
            Some(header) if !ACCEPTED.contains(&header) => {
                return Err(ManifestError::MediaType(header.to_owned()));
            }
            _ => {}
        }
        let mut scan = serde_json::Deserializer::from_slice(body);
        Scan { depth: 0, known_keys: true }.deserialize(&mut scan).map_err(malformed)?;
        scan.end().map_err(malformed)?;
        let document: Self = serde_json::from_slice(body).map_err(malformed)?;
        if document.schema_version == Some(1) || document.fs_layers.is_some() {
            return Err(ManifestError::Schema1);
        }
        let body_type = document.media_type.clone().filter(|t| !t.is_empty());
        let media_type = match (content_type, body_type) {
            (Some(header), Some(body)) if header != body => {
                return Err(ManifestError::Disagreement { header: header.to_owned(), body: shown(&body) });
            }
            (Some(header), _) => header.to_owned(),
            (None, Some(body)) if ACCEPTED.contains(&body.as_str()) => body,
            (None, Some(body)) => return Err(ManifestError::MediaType(shown(&body))),
            (None, None) if document.manifests.is_some() => OCI_INDEX.to_owned(),
            (None, None) => OCI_MANIFEST.to_owned(),
        };
        if document.schema_version != Some(2) {
            return Err(ManifestError::Malformed("schemaVersion is not 2".into()));
        }
        Ok((document, media_type))
    }

    fn artifact(self) -> Result<ArtifactManifest, ManifestError> {
        let malformed = |what: &str| ManifestError::Malformed(what.to_owned());
        if self.manifests.is_some() {
            return Err(malformed("a manifest with manifests"));
        }
        let config = self.config.ok_or_else(|| malformed("config is missing"))?;
        let layers = self.layers.ok_or_else(|| malformed("layers is missing"))?;
        let layer = layers.into_iter().next().ok_or_else(|| malformed("an artifact without content"))?;
        if layer.urls.as_ref().is_some_and(|urls| !urls.is_empty()) {
            let why = "content that comes from elsewhere than the registry is not fetched".to_owned();
            return Err(ManifestError::Layer { digest: layer.digest, why });
        }
        let kinds = [self.artifact_type.unwrap_or_default(), config.media_type, layer.media_type.clone()];
        Ok(ArtifactManifest { kinds, layer })
    }

    fn index(self) -> Result<Manifest, ManifestError> {
        if self.layers.is_some() || self.config.is_some() {
            return Err(ManifestError::Malformed("an index with layers or config".into()));
        }
        let entries =
            self.manifests.ok_or_else(|| ManifestError::Malformed("an index without manifests".into()))?;
        if entries.len() > INDEX_ENTRIES_MAX {
            return Err(ManifestError::Malformed(format!(
                "{} entries, at most {INDEX_ENTRIES_MAX}",
                entries.len()
            )));
        }
        Ok(Manifest::Index(entries))
    }

    fn image(self) -> Result<Manifest, ManifestError> {
        if self.manifests.is_some() {
            return Err(ManifestError::Malformed("an image manifest with manifests".into()));
        }
        let config = self.config.ok_or_else(|| ManifestError::Malformed("config is missing".into()))?;
        let layers = self.layers.ok_or_else(|| ManifestError::Malformed("layers is missing".into()))?;
        if layers.len() > LAYERS_MAX {
            return Err(ManifestError::Malformed(format!("{} layers, at most {LAYERS_MAX}", layers.len())));
        }
        if !matches!(config.media_type.as_str(), "" | OCI_CONFIG | DOCKER_CONFIG) {
            return Err(ManifestError::NotAnImage(shown(&config.media_type)));
        }
        if config.size > MANIFEST_MAX {
            return Err(ManifestError::Malformed(format!(
                "config of {} bytes, at most {MANIFEST_MAX}",
                config.size
            )));
        }
        for layer in &layers {
            check_layer(layer).map_err(|why| ManifestError::Layer { digest: layer.digest.clone(), why })?;
        }
        Ok(Manifest::Image(ImageManifest { config, layers }))
    }
}

/// As much of a document's text as an error repeats: it may be megabytes long.
fn shown(text: &str) -> String {
    text.chars().take(200).collect()
}

fn check_layer(layer: &Descriptor) -> Result<(), String> {
    if layer.urls.as_ref().is_some_and(|urls| !urls.is_empty())
        || layer.media_type.contains(".foreign.")
        || layer.media_type.contains(".nondistributable.")
    {
        return Err("foreign layers, which come from elsewhere than the registry, are not fetched".into());
    }
    if layer.size > BLOB_MAX {
        return Err(format!("a size of {} bytes is not believed", layer.size));
    }
    check_layer_type(&layer.media_type)
}

/// The compression is told by the bytes, for tools name it wrongly; the type only says that it is a tar at all.
fn check_layer_type(media_type: &str) -> Result<(), String> {
    match media_type {
        ""
        | "application/vnd.oci.image.layer.v1.tar"
        | "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Ok(()),
        other if other.ends_with("+encrypted") => Err("encrypted layers are not supported yet".into()),
        other => Err(format!("unsupported media type {:?}", shown(other))),
    }
}

/// The entry of an index that this platform runs: by platform, then zstd before gzip, then order; entries that
/// name no platform come last.
pub(crate) fn choose<'a>(
    entries: &'a [Descriptor],
    platform: &Platform,
) -> Result<&'a Descriptor, ManifestError> {
    let zstd = |e: &Descriptor| {
        e.annotations
            .as_ref()
            .and_then(|a| a.get("io.github.containers.compression.zstd"))
            .is_some_and(|v| v == "true")
    };
    let image = |e: &&Descriptor| matches!(e.media_type.as_str(), "" | OCI_MANIFEST | DOCKER_MANIFEST);
    entries
        .iter()
        .filter(image)
        .filter_map(|e| {
            let rank = match &e.platform {
                Some(p) => platform.rank(p)?,
                None => usize::MAX,
            };
            Some((rank, !zstd(e), e))
        })
        .min_by_key(|(rank, not_zstd, _)| (*rank, *not_zstd))
        .map(|(_, _, e)| e)
        .ok_or_else(|| {
            let mut have: Vec<String> = entries
                .iter()
                .filter_map(|e| e.platform.as_ref())
                .map(|platform| shown(&platform.to_string()))
                .take(20)
                .collect();
            have.dedup();
            ManifestError::NoPlatform { wanted: platform.to_string(), have: have.join(", ") }
        })
}

/// Fields that a reader which ignores case would take for the real one.
const KNOWN_KEYS: [&str; 12] = [
    "schemaVersion",
    "mediaType",
    "artifactType",
    "config",
    "layers",
    "manifests",
    "fsLayers",
    "digest",
    "size",
    "urls",
    "platform",
    "annotations",
];

/// Walks the whole document without keeping it: bounds the depth, and refuses keys that differ from a known one
/// in case only. (Twofold keys are refused where the values are read.)
#[derive(Clone, Copy)]
struct Scan {
    depth: u32,
    known_keys: bool,
}

impl<'de> DeserializeSeed<'de> for Scan {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Scan {
    fn deeper<E: de::Error>(self, known_keys: bool) -> Result<Self, E> {
        if self.depth == DEPTH_MAX {
            return Err(E::custom(format_args!("nested deeper than {DEPTH_MAX}")));
        }
        Ok(Self { depth: self.depth + 1, known_keys })
    }
}

impl<'de> Visitor<'de> for Scan {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let seed = self.deeper(self.known_keys)?;
        while seq.next_element_seed(seed)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<std::borrow::Cow<'_, str>>()? {
            let key: &str = &key;
            if self.known_keys
                && let Some(known) = KNOWN_KEYS.iter().find(|k| k.eq_ignore_ascii_case(key) && **k != key)
            {
                return Err(de::Error::custom(format_args!("field {key:?} differs from {known:?} in case")));
            }
            map.next_value_seed(self.deeper(self.known_keys && key != "annotations")?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn image_with(layer: &str) -> String {
        format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{{"mediaType":"{OCI_CONFIG}","digest":"{D}","size":2}},"layers":[{layer}]}}"#
        )
    }

    fn gzip_layer() -> String {
        format!(r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{D}","size":7}}"#)
    }

    #[test]
    fn a_manifest_and_an_index_are_read() {
        match Manifest::parse(Some(OCI_MANIFEST), image_with(&gzip_layer()).as_bytes()).unwrap() {
            Manifest::Image(image) => assert_eq!((image.config.size, image.layers[0].size), (2, 7)),
            Manifest::Index(_) => panic!("read as an index"),
        }
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{OCI_MANIFEST}","digest":"{D}","size":5,"platform":{{"os":"linux","architecture":"arm64","os.version":"1"}}}}]}}"#
        );
        for content_type in [Some(OCI_INDEX), None] {
            match Manifest::parse(content_type, index.as_bytes()).unwrap() {
                Manifest::Index(entries) => {
                    assert!(choose(&entries, &Platform::new("linux", "arm64", "v8")).is_ok());
                    let error =
                        choose(&entries, &Platform::new("linux", "amd64", "")).unwrap_err().to_string();
                    assert!(error.contains("linux/amd64") && error.contains("linux/arm64"), "{error}");
                }
                Manifest::Image(_) => panic!("read as an image"),
            }
        }
    }

    #[test]
    fn ambiguous_and_lying_documents_are_refused() {
        let good = image_with(&gzip_layer());
        let deep = format!("{}{}{}", r#"{"schemaVersion":2,"x":"#, "[".repeat(200_000), "]".repeat(200_000));
        let wide = image_with(&vec![gzip_layer(); LAYERS_MAX + 1].join(","));
        for (what, header, body) in [
            ("index by header, image by body", OCI_INDEX, good.clone()),
            ("docker by header, OCI by body", DOCKER_MANIFEST, good.clone()),
            ("text/html", "text/html", good.clone()),
            ("application/json", "application/json", good.clone()),
            ("layers and manifests", OCI_MANIFEST, good.replacen('{', r#"{"manifests":[],"#, 1)),
            ("layers twice", OCI_MANIFEST, good.replacen('{', r#"{"layers":[],"#, 1)),
            ("Layers beside layers", OCI_MANIFEST, good.replacen('{', r#"{"Layers":[],"#, 1)),
            ("Digest in a layer", OCI_MANIFEST, good.replacen(r#""size":7"#, r#""size":7,"Digest":"x""#, 1)),
            ("fsLayers", OCI_MANIFEST, good.replacen('{', r#"{"fsLayers":[],"#, 1)),
            ("negative size", OCI_MANIFEST, good.replacen(r#""size":7"#, r#""size":-1"#, 1)),
            ("huge size", OCI_MANIFEST, good.replacen(r#""size":7"#, r#""size":9223372036854775807"#, 1)),
            ("size missing", OCI_MANIFEST, good.replacen(r#","size":7"#, "", 1)),
            ("huge config", OCI_MANIFEST, good.replacen(r#""size":2"#, r#""size":99999999"#, 1)),
            ("digest as a path", OCI_MANIFEST, good.replace(D, "sha256:../../etc/passwd")),
            ("too deep", OCI_MANIFEST, deep),
            ("too many layers", OCI_MANIFEST, wide),
            ("trailing bytes", OCI_MANIFEST, format!("{good}x")),
            ("not JSON", OCI_MANIFEST, "<html>".into()),
            (
                "foreign layer",
                OCI_MANIFEST,
                good.replacen(r#""size":7"#, r#""size":7,"urls":["http://x/"]"#, 1),
            ),
            ("layer type", OCI_MANIFEST, good.replacen("layer.v1.tar+gzip", "layer.v1.erofs", 1)),
            ("artifact", OCI_MANIFEST, good.replacen(OCI_CONFIG, "application/vnd.example+json", 1)),
        ] {
            assert!(Manifest::parse(Some(header), body.as_bytes()).is_err(), "{what}");
        }
    }

    #[test]
    fn an_error_repeats_little_of_the_document() {
        let good = image_with(&gzip_layer());
        let long = "x".repeat(1 << 20);
        for (what, header, body) in [
            ("media type", None, good.replacen(OCI_MANIFEST, &long, 1)),
            ("disagreement", Some(OCI_MANIFEST), good.replacen(OCI_MANIFEST, &long, 1)),
            ("configuration", None, good.replacen(OCI_CONFIG, &long, 1)),
            ("size", None, good.replacen(r#""size":7"#, &format!(r#""size":"{long}""#), 1)),
            ("digest", None, good.replace(D, &long)),
            ("layer", None, good.replacen("application/vnd.oci.image.layer.v1.tar+gzip", &long, 1)),
        ] {
            let error = Manifest::parse(header, body.as_bytes()).unwrap_err().to_string();
            assert!(error.len() < 600, "{what}: {} bytes", error.len());
        }
    }

    #[test]
    fn annotations_may_hold_any_key() {
        let body = image_with(&gzip_layer()).replacen('{', r#"{"annotations":{"Layers":"x","SIZE":"y"},"#, 1);
        Manifest::parse(Some(OCI_MANIFEST), body.as_bytes()).unwrap();
    }

    #[test]
    fn schema_1_is_refused_by_name() {
        for (header, body) in [
            (OCI_MANIFEST, r#"{"schemaVersion":1}"#),
            (
                "application/vnd.docker.distribution.manifest.v1+prettyjws",
                r#"{"schemaVersion":1,"fsLayers":[]}"#,
            ),
        ] {
            let error = Manifest::parse(Some(header), body.as_bytes()).unwrap_err();
            assert!(matches!(error, ManifestError::Schema1), "{error}");
        }
    }

    #[test]
    fn zstd_is_preferred_and_entries_without_a_platform_come_last() {
        let entry = |extra: &str| {
            serde_json::from_str::<Descriptor>(&format!(
                r#"{{"mediaType":"{OCI_MANIFEST}","digest":"{D}","size":5{extra}}}"#
            ))
            .unwrap()
        };
        let amd64 = r#","platform":{"os":"linux","architecture":"amd64"}"#;
        let entries = [
            entry(""),
            entry(amd64),
            entry(&format!(r#"{amd64},"annotations":{{"io.github.containers.compression.zstd":"true"}}"#)),
        ];
        let node = Platform::new("linux", "amd64", "");
        assert!(std::ptr::eq(choose(&entries, &node).unwrap(), &entries[2]));
        assert!(std::ptr::eq(choose(&entries[..2], &node).unwrap(), &entries[1]));
        assert!(std::ptr::eq(choose(&entries[..1], &node).unwrap(), &entries[0]));
    }

    proptest! {
        #[test]
        fn parsing_arbitrary_bytes_never_panics(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Manifest::parse(None, &body);
        }
    }
}
