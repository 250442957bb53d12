//! Images and indexes from layers made on the spot (OCI image specification 1.1, and Docker schema 2).

use std::io::Write;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::tar::{Entry, archive};
use crate::{Registry, Result};

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, one member.
    Gzip,
    /// zstd, one frame.
    Zstd,
}

/// Bytes with their digest and media type: what a descriptor describes.
#[derive(Debug, Clone)]
pub struct Blob {
    /// As in the descriptor.
    pub media_type: String,
    /// `sha256:` and 64 hexadecimal digits.
    pub digest: String,
    /// The content itself.
    pub bytes: Vec<u8>,
}

impl Blob {
    /// Names `bytes` by their digest.
    pub fn new(media_type: impl Into<String>, bytes: Vec<u8>) -> Self {
        Self { media_type: media_type.into(), digest: sha256(&bytes), bytes }
    }

    /// `{mediaType, digest, size}`.
    pub fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len()})
    }
}

/// `sha256:…` of some bytes.
pub fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// An image under construction. Each method adds; [`ImageBuilder::build`] makes the bytes.
#[derive(Debug, Clone)]
pub struct ImageBuilder {
    docker: bool,
    architecture: String,
    config: Value,
    layers: Vec<(Vec<u8>, Compression)>,
    annotations: Value,
}

impl Default for ImageBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl ImageBuilder {
    /// An OCI image for this machine's architecture, with no layer.
    pub fn new() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self {
            docker: false,
            architecture: architecture.to_owned(),
            config: json!({"Env": ["PATH=/bin:/usr/bin"]}),
            layers: Vec::new(),
            annotations: json!({}),
        }
    }

    /// Docker schema 2 instead of OCI.
    #[must_use]
    pub fn docker(mut self) -> Self {
        self.docker = true;
        self
    }

    /// Another architecture, in Go's words (`arm64`).
    #[must_use]
    pub fn architecture(mut self, name: &str) -> Self {
        name.clone_into(&mut self.architecture);
        self
    }

    /// A gzip layer of these members.
    #[must_use]
    pub fn layer(self, entries: &[Entry]) -> Self {
        self.layer_as(entries, Compression::Gzip)
    }

    /// A layer of these members, compressed as told.
    #[must_use]
    pub fn layer_as(self, entries: &[Entry], compression: Compression) -> Self {
        self.raw_layer(archive(entries), compression)
    }

    /// A layer of any bytes, which need not be a tar archive at all.
    #[must_use]
    pub fn raw_layer(mut self, tar: Vec<u8>, compression: Compression) -> Self {
        self.layers.push((tar, compression));
        self
    }

    /// Sets a field of the configuration's `config` object: `("Cmd", json!(["/bin/sh"]))`, `("User", json!("1000:50"))`.
    #[must_use]
    pub fn config(mut self, field: &str, value: Value) -> Self {
        self.config[field] = value;
        self
    }

    /// `Cmd`.
    #[must_use]
    pub fn cmd(self, words: &[&str]) -> Self {
        self.config("Cmd", json!(words))
    }

    /// `Entrypoint`.
    #[must_use]
    pub fn entrypoint(self, words: &[&str]) -> Self {
        self.config("Entrypoint", json!(words))
    }

    /// `User`, in any of its forms.
    #[must_use]
    pub fn user(self, user: &str) -> Self {
        self.config("User", json!(user))
    }

    /// An annotation of the manifest.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations[key] = json!(value);
        self
    }

    /// Compresses, hashes, and writes configuration and manifest.
    pub fn build(&self) -> Result<Image> {
        let mut layers = Vec::new();
        let mut diff_ids = Vec::new();
        for (tar, compression) in &self.layers {
            diff_ids.push(sha256(tar));
            layers.push(Blob::new(self.layer_type(*compression), compress(tar, *compression)?));
        }
        let history: Vec<Value> = (0..layers.len())
            .map(|n| json!({"created": CREATED, "created_by": format!("layer {n}")}))
            .collect();
        let config = json!({
            "created": CREATED,
            "architecture": self.architecture,
            "os": "linux",
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": history,
        });
        let (config_type, manifest_type) = if self.docker {
            (
                "application/vnd.docker.container.image.v1+json",
                "application/vnd.docker.distribution.manifest.v2+json",
            )
        } else {
            ("application/vnd.oci.image.config.v1+json", "application/vnd.oci.image.manifest.v1+json")
        };
        let config = Blob::new(config_type, serde_json::to_vec(&config)?);
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": manifest_type,
            "config": config.descriptor(),
            "layers": layers.iter().map(Blob::descriptor).collect::<Vec<_>>(),
        });
        if self.annotations.as_object().is_some_and(|annotations| !annotations.is_empty()) {
            manifest["annotations"] = self.annotations.clone();
        }
        let manifest = Blob::new(manifest_type, serde_json::to_vec(&manifest)?);
        Ok(Image { architecture: self.architecture.clone(), manifest, config, layers, diff_ids })
    }

    fn layer_type(&self, compression: Compression) -> &'static str {
        match (self.docker, compression) {
            (false, Compression::None) => "application/vnd.oci.image.layer.v1.tar",
            (false, Compression::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (false, Compression::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
            (true, Compression::None) => "application/vnd.docker.image.rootfs.diff.tar",
            (true, Compression::Gzip) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
            (true, Compression::Zstd) => "application/vnd.docker.image.rootfs.diff.tar.zstd",
        }
    }
}

/// Fixed, so that the same layers make the same digests in every run.
const CREATED: &str = "2026-01-01T00:00:00Z";

fn compress(tar: &[u8], compression: Compression) -> Result<Vec<u8>> {
    Ok(match compression {
        Compression::None => tar.to_vec(),
        Compression::Gzip => {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(tar)?;
            gzip.finish()?
        }
        Compression::Zstd => zstd::encode_all(tar, 1)?,
    })
}

/// A finished image. The parts are open, so that a test can spoil one before it is pushed.
#[derive(Debug, Clone)]
pub struct Image {
    /// In Go's words.
    pub architecture: String,
    /// The manifest; its digest names the image.
    pub manifest: Blob,
    /// The configuration; its digest is the image's ID.
    pub config: Blob,
    /// Compressed layers, lowest first.
    pub layers: Vec<Blob>,
    /// `sha256:…` of each layer's archive, lowest first.
    pub diff_ids: Vec<String>,
}

impl Image {
    /// The image's ID as containers/storage has it: the configuration's digest without `sha256:`.
    pub fn id(&self) -> &str {
        self.config.digest.trim_start_matches("sha256:")
    }

    /// Pushes everything and tags the manifest; the reference to pull it by.
    pub fn push(&self, registry: &Registry, repository: &str, tag: &str) -> Result<String> {
        for blob in self.layers.iter().chain([&self.config]) {
            registry.push_blob(repository, blob)?;
        }
        registry.push_manifest(repository, tag, &self.manifest)?;
        Ok(format!("{}/{repository}:{tag}", registry.address()))
    }

    /// Writes an OCI layout that skopeo reads as `oci:PATH:TAG`.
    pub fn write_oci_layout(&self, path: &Path, tag: &str) -> Result {
        let blobs = path.join("blobs/sha256");
        std::fs::create_dir_all(&blobs)?;
        for blob in self.layers.iter().chain([&self.config, &self.manifest]) {
            write(&blobs.join(blob.digest.trim_start_matches("sha256:")), &blob.bytes)?;
        }
        let mut descriptor = self.manifest.descriptor();
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        write(
            &path.join("index.json"),
            &serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": [descriptor]}))?,
        )?;
        write(&path.join("oci-layout"), br#"{"imageLayoutVersion": "1.0.0"}"#)
    }
}

#[expect(clippy::disallowed_methods, reason = "a new file in a test's own directory")]
fn write(path: &Path, bytes: &[u8]) -> Result {
    std::fs::write(path, bytes).map_err(|error| format!("cannot write {}: {error}", path.display()).into())
}

/// An index of images for several architectures, in order. Push the images first, by digest or tag.
pub fn index(images: &[&Image]) -> Result<Blob> {
    let manifests: Vec<Value> = images
        .iter()
        .map(|image| {
            let mut descriptor = image.manifest.descriptor();
            descriptor["platform"] = json!({"os": "linux", "architecture": image.architecture});
            descriptor
        })
        .collect();
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests});
    Ok(Blob::new(media_type, serde_json::to_vec(&index)?))
}

/// The files that most tests want: Debian's static busybox with all its applets, a few accounts, `/tmp`.
///
/// Two layers, so that an overlay has something to stack; add to it before building.
pub fn busybox_image() -> Result<ImageBuilder> {
    let program = "/bin/busybox";
    let bytes = std::fs::read(program)
        .map_err(|error| format!("cannot read {program} (scripts/deps installs it): {error}"))?;
    let listed = Command::new(program).arg("--list").output()?;
    let mut base: Vec<Entry> =
        ["bin", "dev", "proc", "sys", "root", "usr", "usr/bin", "var"].into_iter().map(Entry::dir).collect();
    base.push(Entry::dir("tmp").mode(0o1777));
    base.push(Entry::program("bin/busybox", bytes));
    let applets = String::from_utf8(listed.stdout)?;
    base.extend(
        applets
            .lines()
            .filter(|name| *name != "busybox")
            .map(|name| Entry::symlink(&format!("bin/{name}"), "busybox")),
    );
    let accounts = [
        Entry::dir("etc"),
        Entry::file(
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\napp:x:1000:1000::/tmp:/bin/sh\n",
        ),
        Entry::file("etc/group", "root:x:0:\nnogroup:x:65534:\napp:x:1000:\nextra:x:50000:app\n"),
        Entry::file("etc/hello", "hello from the image\n"),
    ];
    Ok(ImageBuilder::new().layer(&base).layer(&accounts).cmd(&["/bin/sh"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_layers_make_the_same_digests() {
        let build = || ImageBuilder::new().layer(&[Entry::file("a", "b")]).build().unwrap();
        assert_eq!(build().manifest.digest, build().manifest.digest);
    }

    #[test]
    fn a_diff_id_is_of_the_archive_and_a_digest_of_the_compressed_layer() {
        let entries = [Entry::file("a", "b")];
        let image = ImageBuilder::new()
            .layer_as(&entries, Compression::None)
            .layer_as(&entries, Compression::Zstd)
            .build()
            .unwrap();
        assert_eq!(image.diff_ids[0], image.diff_ids[1]);
        assert_eq!(image.layers[0].digest, image.diff_ids[0]);
        assert_ne!(image.layers[1].digest, image.diff_ids[1]);
    }
}
