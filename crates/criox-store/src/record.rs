//! The records of `layers.json`, `images.json` and `containers.json`. Fields that are not ours are kept as they are.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::digest::Digest;
use crate::time::Timestamp;

/// How a blob was compressed when it came (`compression` of a layer record).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// gzip.
    Gzip,
    /// Zstandard, chunked or not.
    Zstd,
}

impl Compression {
    pub(crate) fn number(self) -> i64 {
        match self {
            Self::None => 0,
            Self::Gzip => 2,
            Self::Zstd => 4,
        }
    }
}

/// Which file of its kind a record stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Place {
    /// The synced one.
    #[default]
    Durable,
    /// The `volatile-` one, which a power cut may take.
    Volatile,
}

/// The flag of a layer that is being made or removed.
pub(crate) const INCOMPLETE: &str = "incomplete";

/// A layer record.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Layer {
    /// 64 hex digits.
    pub id: String,
    /// Names; container layers have one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// The layer below.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub parent: String,
    /// Time of creation, as text ([`Timestamp`]).
    #[serde(default = "zero_time")]
    pub created: String,
    /// Digest of the blob as it came.
    #[serde(default, rename = "compressed-diff-digest", skip_serializing_if = "Option::is_none")]
    pub compressed_digest: Option<Digest>,
    /// Size of the blob as it came, in bytes.
    #[serde(default, rename = "compressed-size", skip_serializing_if = "is_zero")]
    pub compressed_size: i64,
    /// Digest of the uncompressed tar stream.
    #[serde(default, rename = "diff-digest", skip_serializing_if = "Option::is_none")]
    pub diff_id: Option<Digest>,
    /// Size of the uncompressed tar stream in bytes; only meaningful with a digest.
    #[serde(default, rename = "diff-size", skip_serializing_if = "is_zero")]
    pub diff_size: i64,
    /// See [`Compression`].
    #[serde(default, skip_serializing_if = "is_zero")]
    pub compression: i64,
    /// User IDs in the layer's entries, sorted.
    #[serde(default, rename = "uidset", skip_serializing_if = "Vec::is_empty")]
    pub uids: Vec<u32>,
    /// Group IDs in the layer's entries, sorted.
    #[serde(default, rename = "gidset", skip_serializing_if = "Vec::is_empty")]
    pub gids: Vec<u32>,
    /// Flags.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub flags: Map<String, Value>,
    /// Keys of the layer's big data.
    #[serde(default, rename = "big-data-names", skip_serializing_if = "Vec::is_empty")]
    pub big_data_names: Vec<String>,
    /// Everything else that the record carries.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
    #[serde(skip)]
    pub(crate) place: Place,
}

impl Layer {
    /// Whether it is being made or removed: not to be used.
    pub fn is_incomplete(&self) -> bool {
        self.flags.get(INCOMPLETE) == Some(&Value::Bool(true))
    }

    /// The layer below, if any.
    pub fn parent(&self) -> Option<&str> {
        (!self.parent.is_empty()).then_some(self.parent.as_str())
    }

    /// Size of the uncompressed stream in bytes, 0 if unknown.
    pub fn size(&self) -> u64 {
        u64::try_from(self.diff_size).unwrap_or(0)
    }
}

/// An image record.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Image {
    /// Hex of the configuration's digest, as a rule.
    pub id: String,
    /// Digest that the image is known by; one of [`Image::digests`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// Full references, `repo:tag` or `repo@digest`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// Names it had, newest first.
    #[serde(default, rename = "names-history", skip_serializing_if = "Vec::is_empty")]
    pub names_history: Vec<String>,
    /// The top layer; empty for an image without layers.
    #[serde(default, rename = "layer", skip_serializing_if = "String::is_empty")]
    pub top_layer: String,
    /// Other top layers, with other ID maps.
    #[serde(default, rename = "mapped-layers", skip_serializing_if = "Vec::is_empty")]
    pub mapped_layers: Vec<String>,
    /// JSON text with the sizes of signatures.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub metadata: String,
    /// Keys of the image's big data.
    #[serde(default, rename = "big-data-names", skip_serializing_if = "Vec::is_empty")]
    pub big_data_names: Vec<String>,
    /// Their sizes in bytes.
    #[serde(default, rename = "big-data-sizes", skip_serializing_if = "BTreeMap::is_empty")]
    pub big_data_sizes: BTreeMap<String, i64>,
    /// Their digests.
    #[serde(default, rename = "big-data-digests", skip_serializing_if = "BTreeMap::is_empty")]
    pub big_data_digests: BTreeMap<String, Digest>,
    /// Time of creation, as text ([`Timestamp`]).
    #[serde(default = "zero_time")]
    pub created: String,
    /// Flags.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub flags: Map<String, Value>,
    /// Everything else that the record carries.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Image {
    /// The digests that find this image: its own, and those of its manifests and indexes.
    pub fn digests(&self) -> Vec<&Digest> {
        let mut digests: Vec<&Digest> = self.digest.iter().collect();
        for (key, digest) in &self.big_data_digests {
            if key.starts_with("manifest") && !digests.contains(&digest) {
                digests.push(digest);
            }
        }
        digests
    }

    /// When the image was made, if its record says so.
    pub fn created_at(&self) -> Option<Timestamp> {
        self.created.parse().ok().filter(|time| *time != Timestamp::ZERO)
    }

    /// The top layer, if any.
    pub fn top_layer(&self) -> Option<&str> {
        (!self.top_layer.is_empty()).then_some(self.top_layer.as_str())
    }
}

/// The flag of a container whose root file system needs no syncing.
pub(crate) const VOLATILE: &str = "Volatile";

/// A container record.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Container {
    /// 64 hex digits.
    pub id: String,
    /// Unique names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// ID of the image, or empty.
    #[serde(default)]
    pub image: String,
    /// ID of the writable layer.
    #[serde(default)]
    pub layer: String,
    /// The creator's text.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub metadata: String,
    /// Time of creation, as text ([`Timestamp`]).
    #[serde(default = "zero_time")]
    pub created: String,
    /// `Volatile`, `MountLabel`, `ProcessLabel`, `MountOpts`.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub flags: Map<String, Value>,
    /// Everything else that the record carries.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
    #[serde(skip)]
    pub(crate) place: Place,
}

impl Container {
    /// Whether its root file system is mounted without syncing.
    pub fn is_volatile(&self) -> bool {
        self.flags.get(VOLATILE) == Some(&Value::Bool(true))
    }

    /// Whether it has a user namespace of its own: the files of its image belong to others then.
    pub fn is_mapped(&self) -> bool {
        self.extra.get("uidmap").and_then(Value::as_array).is_some_and(|ranges| !ranges.is_empty())
    }

    /// SELinux label of its mounts, or empty.
    pub fn mount_label(&self) -> &str {
        self.flags.get("MountLabel").and_then(Value::as_str).unwrap_or_default()
    }

    /// Mount options that it was created with.
    pub fn mount_options(&self) -> Vec<String> {
        let options = self.flags.get("MountOpts").and_then(Value::as_array);
        options.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    }
}

/// A mounted layer, in `mountpoints.json` of the run root.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Mount {
    pub(crate) id: String,
    #[serde(default)]
    pub(crate) path: String,
    #[serde(default)]
    pub(crate) count: i64,
}

fn zero_time() -> String {
    Timestamp::ZERO.to_string()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads and writes `text` as a record; nothing may be lost.
    fn check<T: Serialize + for<'de> Deserialize<'de>>(text: &str) {
        let before: Value = serde_json::from_str(text).unwrap();
        let record: T = serde_json::from_str(text).unwrap();
        let after: Value = serde_json::to_value(&record).unwrap();
        assert_eq!(before, after);
    }

    #[test]
    fn records_keep_what_they_do_not_know() {
        let digest = Digest::sha256(b"x");
        check::<Layer>(&format!(
            r#"{{"id":"a","created":"2026-01-01T00:00:00.1Z","mountlabel":"l","toc-digest":"{digest}","diff-size":-1,"uidmap":[{{"container_id":0,"host_id":5,"size":1}}],"future":{{"x":[1]}},"flags":{{"other":1}}}}"#
        ));
        check::<Image>(&format!(
            r#"{{"id":"a","names":["n"],"layer":"l","big-data-digests":{{"manifest":"{digest}"}},"big-data-sizes":{{"manifest":1}},"created":"0001-01-01T00:00:00Z","future":1}}"#
        ));
        check::<Container>(
            r#"{"id":"a","image":"","layer":"l","created":"0001-01-01T00:00:00Z","flags":{"Volatile":true,"MountOpts":["a"]},"uidmap":[],"big-data-sizes":{"x":1}}"#,
        );
    }

    #[test]
    fn an_image_is_found_by_all_its_manifests() {
        let (one, two) = (Digest::sha256(b"1"), Digest::sha256(b"2"));
        let text = format!(
            r#"{{"id":"a","digest":"{one}","big-data-digests":{{"manifest":"{one}","manifest-{two}":"{two}","signature":"{}"}}}}"#,
            Digest::sha256(b"3")
        );
        let image: Image = serde_json::from_str(&text).unwrap();
        assert_eq!(image.digests(), [&one, &two]);
    }
}
