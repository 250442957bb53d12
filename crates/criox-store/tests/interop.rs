//! The store shared with podman and skopeo, the real ones, from `scripts/peers`.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test that can't go on fails, or says why it is skipped"
)]

use std::io::Read;
use std::path::{Path, PathBuf};

use criox_store::{
    BigData, ContainerDraft, Digest, ImageDraft, LayerDraft, Store, StoreOptions, UnpackLimits,
};

mod archive;
use archive::{Archive, Header};
mod peers;
use peers::Peers;

const NAME: &str = "localhost/interop:1";

/// Directories of one test, and the peers' programs.
struct Place {
    base: tempfile::TempDir,
    peers: Peers,
}

impl Drop for Place {
    fn drop(&mut self) {
        // What podman and we mounted: the driver's home, bound onto itself.
        while criox_sys::mount::is_mount_point(&self.path("graph/overlay")).unwrap_or(false) {
            let _ = criox_sys::mount::unmount(&self.path("graph/overlay"), true);
        }
    }
}

fn place() -> Option<Place> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return None;
    }
    let base = tempfile::tempdir().unwrap();
    let peers = Peers::find(base.path())?;
    Some(Place { base, peers })
}

impl Place {
    fn path(&self, name: &str) -> PathBuf {
        self.base.path().join(name)
    }

    fn open(&self) -> Store {
        let (store, report) = Store::open(StoreOptions::new(self.path("graph"), self.path("run"))).unwrap();
        assert!(report.problems.is_empty(), "{report:?}");
        store
    }

    fn podman(&self, arguments: &[&str]) -> String {
        self.peers.podman(arguments).unwrap()
    }

    fn skopeo_copy(&self, from: &str, to: &str) {
        self.peers.skopeo_copy(from, to).unwrap();
    }

    fn storage(&self, name: &str) -> String {
        format!(
            "containers-storage:[overlay@{}+{}]{name}",
            self.path("graph").display(),
            self.path("run").display()
        )
    }
}

/// An image of two uncompressed layers, with all that is awkward in them.
struct TestImage {
    layers: Vec<Vec<u8>>,
    config: Vec<u8>,
    manifest: Vec<u8>,
}

fn image() -> TestImage {
    let base = Archive::default()
        .dir("./")
        .dir("./etc/")
        .file("./etc/passwd", b"root:x:0:0::/:/bin/sh\n")
        .entry(Header { name: b"./su", mode: 0o4755, uid: 5, gid: 6, ..Header::default() }, b"su")
        .entry(
            Header {
                name: b"./su2",
                kind: b'1',
                link: b"./su",
                mode: 0o4755,
                uid: 5,
                gid: 6,
                ..Header::default()
            },
            b"",
        )
        .symlink("./etc/link", "/etc/passwd")
        .entry(Header { name: b"./fifo", kind: b'6', mode: 0o622, ..Header::default() }, b"")
        .entry(Header { name: b"./null", kind: b'3', mode: 0o666, device: (1, 3), ..Header::default() }, b"")
        .pax(&[("mtime", b"1234567890.123456789"), ("SCHILY.xattr.user.note", b"hi")])
        .file("./times", b"t")
        .file("./gone", b"gone")
        .dir("./opaque/")
        .file("./opaque/hidden", b"x")
        .file("./big", &vec![9u8; 300_000])
        .end();
    let top = Archive::default()
        .file(".wh.gone", b"")
        .dir("opaque/")
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/new", b"new")
        .dir("etc/")
        .file("etc/file", b"f")
        .end();
    let layers = vec![base, top];
    let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::sha256(layer).to_string()).collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "created": "2024-01-02T03:04:05Z", "config": {"Cmd": ["/su"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [{"created_by": "one"}, {"created_by": "two"}],
    })
    .to_string()
    .into_bytes();
    let blobs: Vec<_> = layers
        .iter()
        .map(|layer| {
            serde_json::json!({"mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": Digest::sha256(layer), "size": layer.len()})
        })
        .collect();
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": Digest::sha256(&config), "size": config.len()},
        "layers": blobs,
    })
    .to_string()
    .into_bytes();
    TestImage { layers, config, manifest }
}

impl TestImage {
    fn id(&self) -> String {
        Digest::sha256(&self.config).hex().to_owned()
    }

    /// As skopeo's `dir:` transport has it.
    fn write_dir(&self, dir: &Path) {
        std::fs::create_dir(dir).unwrap();
        let put = |name: &str, bytes: &[u8]| {
            criox_sys::durable::write_atomic(&dir.join(name), bytes, 0o600).unwrap();
        };
        put("version", b"Directory Transport Version: 1.1\n");
        put("manifest.json", &self.manifest);
        for blob in self.layers.iter().chain([&self.config]) {
            put(Digest::sha256(blob).hex(), blob);
        }
    }

    fn check_dir(&self, dir: &Path) {
        assert_eq!(std::fs::read(dir.join("manifest.json")).unwrap(), self.manifest);
        for blob in self.layers.iter().chain([&self.config]) {
            assert!(std::fs::read(dir.join(Digest::sha256(blob).hex())).unwrap() == *blob, "a blob differs");
        }
    }

    /// As a pull does it.
    fn put(&self, store: &Store) {
        let mut parent: Option<String> = None;
        for layer in &self.layers {
            let mut stage = store.stage_layer().unwrap();
            stage.unpack(&layer[..], &UnpackLimits::default()).unwrap();
            let draft = LayerDraft {
                parent: parent.clone(),
                diff_id: Some(Digest::sha256(layer)),
                ..LayerDraft::default()
            };
            parent = Some(store.commit_layer(stage, draft).unwrap().id.clone());
        }
        let digest = Digest::sha256(&self.manifest);
        let data = |key: &str, bytes: &[u8]| BigData { key: key.into(), bytes: bytes.to_vec(), digest: None };
        let draft = ImageDraft {
            id: self.id(),
            names: vec![NAME.into()],
            top_layer: parent,
            digest: Some(digest.clone()),
            created: Some("2024-01-02T03:04:05Z".parse().unwrap()),
            metadata: "{}".into(),
            big_data: vec![
                data(Digest::sha256(&self.config).as_str(), &self.config),
                data(&format!("manifest-{digest}"), &self.manifest),
                data("manifest", &self.manifest),
            ],
        };
        store.put_image(draft).unwrap();
    }
}

#[test]
fn what_skopeo_put_is_read_and_mounted() {
    let Some(place) = place() else { return };
    let image = image();
    image.write_dir(&place.path("in"));
    place.skopeo_copy(&format!("dir:{}", place.path("in").display()), &place.storage(NAME));
    let store = place.open();
    let found = store.image(NAME).unwrap();
    assert_eq!(found.id, image.id());
    assert!(found.digests().contains(&&Digest::sha256(&image.manifest)));
    assert_eq!(store.image_big_data(&found.id, "manifest").unwrap(), image.manifest);
    assert_eq!(
        store.image_big_data(&found.id, Digest::sha256(&image.config).as_str()).unwrap(),
        image.config
    );
    for stream in &image.layers {
        let layers = store.layers_by_uncompressed_digest(&Digest::sha256(stream)).unwrap();
        let mut again = Vec::new();
        store.layer_diff(&layers[0].id).unwrap().read_to_end(&mut again).unwrap();
        assert!(again == *stream, "a layer differs");
    }
    assert_eq!(store.check().unwrap(), []);
    let id = "ab".repeat(32);
    let draft = ContainerDraft {
        id: id.clone(),
        names: vec!["k8s_x".into()],
        image_id: Some(found.id.clone()),
        metadata: r#"{"pod-name":"p","created-at":1}"#.into(),
        volatile: true,
        ..ContainerDraft::default()
    };
    let container = store.create_container(draft).unwrap();
    let root = store.mount(&id).unwrap();
    let mut seen: Vec<_> = std::fs::read_dir(&root).unwrap().map(|e| e.unwrap().file_name()).collect();
    seen.sort();
    let opaque = std::fs::read_dir(root.join("opaque")).unwrap().count();
    // podman sees the container as somebody's, and leaves its root file system alone.
    let listed = place.podman(&["ps", "--all", "--external", "--format", "{{.ID}} {{.Names}}"]);
    let still = root.join("etc/passwd").exists() && criox_sys::mount::is_mount_point(&root).unwrap();
    store.delete_container(&id).unwrap();
    assert_eq!(seen, ["big", "etc", "fifo", "null", "opaque", "su", "su2", "times"]);
    assert_eq!(opaque, 1);
    assert!(listed.contains(&container.id[..12]), "{listed}");
    assert!(still, "podman took the mount away");
    // What we removed, podman misses nowhere.
    place.podman(&["system", "check"]);
    store.delete_image(&found.id).unwrap();
    assert_eq!(place.podman(&["images", "--quiet"]).trim(), "");
    place.podman(&["system", "check"]);
}

#[test]
fn what_we_put_skopeo_copies_and_podman_checks() {
    let Some(place) = place() else { return };
    let image = image();
    let store = place.open();
    image.put(&store);
    place.skopeo_copy(&place.storage(NAME), &format!("dir:{}", place.path("out").display()));
    image.check_dir(&place.path("out"));
    place.podman(&["system", "check"]);
    let listed =
        place.podman(&["images", "--no-trunc", "--format", "{{.ID}} {{.Repository}}:{{.Tag}} {{.Digest}}"]);
    let expected = format!("sha256:{} {NAME} {}", image.id(), Digest::sha256(&image.manifest));
    assert_eq!(listed.trim(), expected);
    let mounted = place.podman(&["image", "mount", NAME]);
    let passwd = std::fs::read(Path::new(mounted.trim()).join("etc/passwd"));
    place.podman(&["image", "unmount", NAME]);
    assert_eq!(passwd.unwrap(), image.layers[0][512 * 3..][..22]);
    // skopeo finds the layers that we put, and makes no others.
    image.write_dir(&place.path("in"));
    let other = "localhost/other:1";
    place.skopeo_copy(&format!("dir:{}", place.path("in").display()), &place.storage(other));
    assert_eq!(store.layers().unwrap().len(), 2);
    let names = store.image(&image.id()).unwrap().names.clone();
    assert!(names.contains(&NAME.into()) && names.contains(&other.into()), "{names:?}");
    // podman removes what we put.
    place.podman(&["rmi", "--force", &image.id()]);
    assert!(store.images().unwrap().is_empty());
    assert!(store.layers().unwrap().is_empty());
    assert_eq!(store.check().unwrap(), []);
}

#[test]
fn both_at_once_lose_nothing() {
    let Some(place) = place() else { return };
    let image = image();
    image.write_dir(&place.path("in"));
    let store = place.open();
    std::thread::scope(|scope| {
        let ours = scope.spawn(|| {
            for round in 0..15u8 {
                let stream = Archive::default().file("ours", &[round]).end();
                let mut stage = store.stage_layer().unwrap();
                stage.unpack(&stream[..], &UnpackLimits::default()).unwrap();
                let layer = store.commit_layer(stage, LayerDraft::default()).unwrap();
                let id = format!("{:02x}", round + 1).repeat(32);
                let draft = ImageDraft {
                    id,
                    names: vec![format!("localhost/ours:{round}")],
                    top_layer: Some(layer.id.clone()),
                    ..ImageDraft::default()
                };
                store.put_image(draft).unwrap();
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        });
        for round in 0..4 {
            let name = format!("localhost/theirs:{round}");
            place.skopeo_copy(&format!("dir:{}", place.path("in").display()), &place.storage(&name));
            if round == 1 {
                place.podman(&["rmi", "--force", &image.id()]);
            }
        }
        ours.join().unwrap();
    });
    for round in 0..15 {
        assert!(store.image(&format!("localhost/ours:{round}")).is_ok(), "image {round} is lost");
    }
    assert!(store.image("localhost/theirs:3").is_ok());
    assert_eq!(store.layers().unwrap().len(), 17);
    assert_eq!(store.check().unwrap(), []);
}
