//! Whole pulls from a registry that does what it likes, into a real store.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use criox_config::Registries;
use criox_store::{Digest, Store, StoreOptions, UnpackLimits};
use tempfile::TempDir;

use crate::image_config::ImageUser;
use crate::images::{ImageOptions, Images, Removed};
use crate::manifest::{OCI_INDEX, OCI_MANIFEST};
use crate::registry::Timeouts;
use crate::registry::fake::{FakeRegistry, Reply, Seen};
use crate::{Auth, Platform, PullError, PullErrorKind, PullRequest, PulledImage};

/// One ustar member of a regular file.
fn member(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..107].copy_from_slice(b"0000644");
    header[108..115].copy_from_slice(b"0000000");
    header[116..123].copy_from_slice(b"0000000");
    header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
    header[136..147].copy_from_slice(b"00000000000");
    header[148..156].copy_from_slice(b"        ");
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let mut out = header.to_vec();
    out.extend_from_slice(content);
    out.resize(out.len().next_multiple_of(512), 0);
    out
}

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out: Vec<u8> = files.iter().flat_map(|(name, content)| member(name, content)).collect();
    out.resize(out.len() + 1024, 0);
    out
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// Content that doesn't compress away.
fn noise(seed: u32, length: usize) -> Vec<u8> {
    let mut state = seed;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(length)
    .collect()
}

/// What a registry serves under `/v2/a/…`, by the rest of the path.
#[derive(Clone, Default)]
struct Content(HashMap<String, Reply>);

struct Built {
    manifest: Vec<u8>,
    id: String,
    layers: Vec<Digest>,
}

impl Content {
    fn blob(&mut self, bytes: &[u8]) -> Digest {
        let digest = Digest::sha256(bytes);
        self.0.insert(format!("blobs/{digest}"), Reply::new(200, bytes));
        digest
    }

    fn document(&mut self, tag: &str, media_type: &str, bytes: &[u8]) {
        for name in [tag.to_owned(), Digest::sha256(bytes).to_string()] {
            self.0.insert(
                format!("manifests/{name}"),
                Reply::new(200, bytes).header("content-type", media_type),
            );
        }
    }

    /// An image of these blobs, each with the tar that it unpacks to.
    fn image(&mut self, tag: &str, layers: &[(Vec<u8>, &[u8])], user: &str) -> Built {
        let diff_ids: Vec<String> =
            layers.iter().map(|(_, tar)| format!("\"{}\"", Digest::sha256(tar))).collect();
        let config = format!(
            r#"{{"os":"linux","architecture":"{}","created":"2024-05-06T07:08:09Z","config":{{"User":"{user}","Cmd":["/a"]}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
            Platform::host().architecture,
            diff_ids.join(",")
        );
        let digests: Vec<Digest> = layers.iter().map(|(blob, _)| self.blob(blob)).collect();
        let described: Vec<String> = layers
            .iter()
            .zip(&digests)
            .map(|((blob, _), digest)| {
                let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
                format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{}}}"#, blob.len())
            })
            .collect();
        let id = self.blob(config.as_bytes());
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","annotations":{{"k":"v"}},"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{id}","size":{}}},"layers":[{}]}}"#,
            config.len(),
            described.join(",")
        )
        .into_bytes();
        self.document(tag, OCI_MANIFEST, &manifest);
        Built { manifest, id: id.hex().to_owned(), layers: digests }
    }

    fn reply(&self, seen: &Seen) -> Reply {
        match seen.target.strip_prefix("/v2/a/") {
            Some(rest) => self.0.get(rest).cloned().unwrap_or_else(|| Reply::new(404, "")),
            None => Reply::new(200, "{}"),
        }
    }

    async fn serve(self) -> FakeRegistry {
        FakeRegistry::start(move |seen, _| self.reply(seen)).await
    }
}

struct Node {
    images: Images,
    root: TempDir,
}

fn timeouts() -> Timeouts {
    Timeouts {
        connect: Duration::from_secs(2),
        headers: Duration::from_secs(2),
        no_progress: Duration::from_millis(700),
        retry: Duration::from_millis(10),
    }
}

/// A node that trusts these registries, with everything else as the tests need it.
fn node_with(registries: &str, policy: &str) -> Node {
    node_at(tempfile::tempdir().unwrap(), registries, policy)
}

fn node_at(root: TempDir, registries: &str, policy: &str) -> Node {
    let path = root.path().join("policy.json");
    let mut file = std::fs::OpenOptions::new().create_new(true).write(true).open(&path).unwrap();
    file.write_all(policy.as_bytes()).unwrap();
    let (store, _) = Store::open(StoreOptions {
        skip_mount_home: true,
        ..StoreOptions::new(root.path().join("g"), root.path().join("r"))
    })
    .unwrap();
    let options = ImageOptions {
        registries: Arc::new(Registries::parse(Path::new("r.conf"), registries.as_bytes()).unwrap()),
        policy: path,
        timeouts: timeouts(),
        limits: UnpackLimits { reserve_bytes: 1 << 20, ..Default::default() },
        ..Default::default()
    };
    Node { images: Images::new(store, options), root }
}

const ACCEPT: &str = r#"{"default":[{"type":"insecureAcceptAnything"}]}"#;

fn trusting(fake: &FakeRegistry) -> String {
    format!("[[registry]]\nlocation = \"{}\"\ninsecure = true\n", fake.host())
}

fn node(fake: &FakeRegistry) -> Node {
    node_with(&trusting(fake), ACCEPT)
}

impl Node {
    async fn pull(&self, image: impl Into<String>) -> Result<PulledImage, PullError> {
        self.images.pull(PullRequest { image: image.into(), ..Default::default() }).await
    }

    fn names(&self, image: &str) -> Option<Vec<String>> {
        self.images.find(image).unwrap().map(|info| info.names.clone())
    }

    /// Directories in a directory of the driver's home.
    fn dirs(&self, below: &str) -> Vec<String> {
        let home = self.root.path().join("g/overlay").join(below);
        let entries = std::fs::read_dir(home).map(|entries| entries.flatten().collect()).unwrap_or_default();
        let dirs = |entries: Vec<std::fs::DirEntry>| {
            entries
                .iter()
                .filter(|e| e.path().is_dir())
                .map(|e| e.file_name().into_string().unwrap())
                .collect::<Vec<String>>()
        };
        dirs(entries)
    }

    /// The blocking half of an abandoned layer may still be clearing up, or storing a sound layer.
    async fn settle(&self) {
        for _ in 0..200 {
            if self.dirs("staging").is_empty() && self.dirs("tempdirs").is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("left over: {:?} {:?}", self.dirs("staging"), self.dirs("tempdirs"));
    }

    /// Nothing of a pull is left but whole layers: no staging, no directory without a record.
    async fn assert_clean(&self, layers: usize) {
        self.settle().await;
        assert_eq!(self.images.store().layers().unwrap().len(), layers);
        assert_eq!(self.dirs("").iter().filter(|name| name.len() == 64).count(), layers);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_all_compressions_is_pulled_and_found_by_all_its_names() {
    let tars = [tar(&[("a", b"1")]), tar(&[("b", &noise(1, 300_000))]), tar(&[("c", &noise(2, 100_000))])];
    let blobs = [
        (tars[0].clone(), &tars[0][..]),
        (gzip(&tars[1]), &tars[1]),
        (zstd::encode_all(&tars[2][..], 1).unwrap(), &tars[2]),
    ];
    let mut content = Content::default();
    let built = content.image("1", &blobs, "1000:5");
    let fake = content.serve().await;
    let node = node(&fake);
    let name = format!("{}/a:1", fake.host());
    let pulled = node.pull(&name).await.unwrap();
    let digest = Digest::sha256(&built.manifest);
    assert_eq!(
        pulled,
        PulledImage { id: built.id.clone(), reference: format!("{}/a@{digest}", fake.host()) }
    );
    for wanted in
        [&name, &built.id, &built.id[..5].to_owned(), &pulled.reference, &format!("sha256:{}", built.id)]
    {
        assert_eq!(node.images.find(wanted).unwrap().unwrap().id, built.id, "{wanted}");
    }
    assert!(node.images.find("quay.io/other").unwrap().is_none());
    let info = node.images.find(&name).unwrap().unwrap();
    assert_eq!((&info.repo_tags, &info.repo_digests), (&vec![name.clone()], &vec![pulled.reference.clone()]));
    assert_eq!((&info.user, &*info.config.cmd[0]), (&ImageUser::Uid(1000), "/a"));
    assert_eq!(info.created.unwrap().to_string(), "2024-05-06T07:08:09Z");
    assert_eq!(info.annotations["k"], "v");
    assert!(info.size > tars.iter().map(|t| t.len() as u64).sum());
    node.assert_clean(3).await;
    assert!(node.images.fs_usage().unwrap().bytes > 0 && node.images.pulls().is_empty());

    let before = fake.seen().len();
    assert_eq!(node.pull(&name).await.unwrap(), pulled);
    assert_eq!(fake.seen().len(), before + 1, "the manifest is asked for, nothing else");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_leads_to_this_platform_and_is_remembered() {
    let layer = tar(&[("a", b"1")]);
    let mut content = Content::default();
    let built = content.image("x", &[(gzip(&layer), &layer)], "www-data");
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{{"mediaType":"{OCI_MANIFEST}","digest":"{}","size":{},"platform":{{"os":"linux","architecture":"{}"}}}}]}}"#,
        Digest::sha256(&built.manifest),
        built.manifest.len(),
        Platform::host().architecture
    );
    content.document("latest", OCI_INDEX, index.as_bytes());
    let fake = content.serve().await;
    let node = node(&fake);
    let by_digest = format!("{}/a@{}", fake.host(), Digest::sha256(index.as_bytes()));
    assert_eq!(node.pull(&by_digest).await.unwrap().id, built.id);
    assert_eq!(node.names(&by_digest), Some(vec![by_digest.clone()]));
    node.pull(format!("{}/a", fake.host())).await.unwrap();
    let info = node.images.find(&by_digest).unwrap().unwrap();
    assert_eq!(info.repo_tags, [format!("{}/a:latest", fake.host())]);
    assert_eq!(info.repo_digests.len(), 2);
    assert_eq!(info.user, ImageUser::Name("www-data".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_pulls_are_one_and_common_layers_come_once() {
    let tars: Vec<Vec<u8>> = (0..3).map(|i| tar(&[("f", &noise(i, 2_000_000))])).collect();
    let layer = |i: usize| (gzip(&tars[i]), &tars[i][..]);
    let mut content = Content::default();
    let one = content.image("one", &[layer(0), layer(1)], "");
    let two = content.image("two", &[layer(0), layer(2)], "");
    let fake = content.serve().await;
    let node = node(&fake);
    let pull = |tag: &str| node.pull(format!("{}/a:{tag}", fake.host()));
    let (a, b, c) = tokio::join!(pull("one"), pull("one"), pull("two"));
    assert_eq!((a.unwrap().id, b.unwrap().id, c.unwrap().id), (one.id.clone(), one.id, two.id));
    let count = |what: &str| fake.seen().iter().filter(|s| s.target.ends_with(what)).count();
    assert_eq!(count("manifests/one"), 1);
    for layer in one.layers.iter().chain(&two.layers) {
        assert_eq!(count(layer.as_str()), 1, "{layer}");
    }
    node.assert_clean(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_goes_away_cancels_nothing() {
    let layer = tar(&[("a", &noise(1, 3_000_000))]);
    let mut content = Content::default();
    let built = content.image("1", &[(gzip(&layer), &layer)], "");
    let fake = content.serve().await;
    let node = node(&fake);
    let name = format!("{}/a:1", fake.host());
    let gone = tokio::time::timeout(Duration::from_millis(1), node.pull(&name)).await;
    assert!(gone.is_err(), "the pull took no time at all");
    assert_eq!(node.images.pulls()[0].image, name);
    assert_eq!(node.pull(&name).await.unwrap().id, built.id);
    assert_eq!(fake.seen().iter().filter(|s| s.target.contains("manifests")).count(), 1);
}

/// Serves a two-layer image, with one thing changed; the pull must fail as said, leave at most the sound base layer,
/// and work once the registry is sound.
async fn check_fault(kind: PullErrorKind, words: &str, spoil: impl Fn(&mut Content, &Built)) {
    let tars = [tar(&[("a", &noise(1, 50_000))]), tar(&[("b", &noise(2, 200_000))])];
    let mut content = Content::default();
    let built = content.image("1", &[(gzip(&tars[0]), &tars[0]), (gzip(&tars[1]), &tars[1])], "");
    let sound = content.clone();
    spoil(&mut content, &built);
    let content = Arc::new(std::sync::Mutex::new(content));
    let served = content.clone();
    let fake = FakeRegistry::start(move |seen, _| served.lock().unwrap().reply(seen)).await;
    let node = node(&fake);
    let name = format!("{}/a:1", fake.host());
    let error = node.pull(&name).await.unwrap_err();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(e) = source {
        text.push_str(&format!(": {e}"));
        source = e.source();
    }
    assert_eq!(error.kind(), kind, "{text}");
    assert!(text.contains(words) && text.contains(&name), "{text}");
    assert!(node.images.list().unwrap().is_empty() && node.images.pulls().is_empty());
    node.settle().await;
    let layers = node.images.store().layers().unwrap().len();
    assert!(layers <= 1, "the spoilt layer was stored");
    node.assert_clean(layers).await;
    *content.lock().unwrap() = sound;
    assert_eq!(node.pull(&name).await.unwrap().id, built.id);
    node.assert_clean(2).await;
}

fn layer_of<'a>(content: &'a mut Content, built: &Built) -> &'a mut Reply {
    content.0.get_mut(&format!("blobs/{}", built.layers[1])).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn spoilt_layers_are_refused() {
    use PullErrorKind::{DigestMismatch, NotFound, RegistryUnavailable, SizeMismatch, Stalled};
    check_fault(DigestMismatch, "digest", |c, b| {
        let layer = layer_of(c, b);
        let last = layer.body.len() - 1;
        layer.body[last] ^= 1;
    })
    .await;
    check_fault(DigestMismatch, "digest", |c, b| layer_of(c, b).body[30] ^= 0x40).await;
    check_fault(RegistryUnavailable, "blobs/sha256", |c, b| {
        *layer_of(c, b) = layer_of(c, b).clone().cut(1000)
    })
    .await;
    check_fault(SizeMismatch, "announced", |c, b| layer_of(c, b).body.push(0)).await;
    check_fault(SizeMismatch, "announced", |c, b| layer_of(c, b).body.truncate(1000)).await;
    check_fault(NotFound, "404", |c, b| *layer_of(c, b) = Reply::new(404, "")).await;
    check_fault(RegistryUnavailable, "503", |c, b| *layer_of(c, b) = Reply::new(503, "")).await;
    check_fault(Stalled, "no data", |c, b| *layer_of(c, b) = layer_of(c, b).clone().cut(1000).hang()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn spoilt_documents_are_refused() {
    use PullErrorKind::{DigestMismatch, NotFound, Unauthorized, UnsupportedManifest};
    let config = |b: &Built| format!("blobs/sha256:{}", b.id);
    check_fault(DigestMismatch, "digest", |c, b| c.0.get_mut(&config(b)).unwrap().body[5] ^= 1).await;
    check_fault(NotFound, "manifests/1", |c, _| drop(c.0.remove("manifests/1"))).await;
    check_fault(Unauthorized, "credentials", |c, _| {
        drop(c.0.insert("manifests/1".into(), Reply::new(401, "")))
    })
    .await;
    check_fault(UnsupportedManifest, "text/html", |c, _| {
        c.0.insert("manifests/1".into(), Reply::new(200, "<html>").header("content-type", "text/html"));
    })
    .await;
    check_fault(UnsupportedManifest, "schema 1", |c, _| {
        c.document("1", OCI_MANIFEST, b"{\"schemaVersion\":1}")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_not_what_the_configuration_says_is_refused() {
    let (said, served) = (tar(&[("a", b"1")]), tar(&[("a", b"2")]));
    let mut content = Content::default();
    content.image("diff", &[(gzip(&served), &said)], "");
    let garbage = noise(1, 5000);
    content.image("garbage", &[(gzip(&garbage), &garbage)], "");
    let bomb = tar(&[("a", &vec![0; 80 << 20])]);
    content.image("bomb", &[(zstd::encode_all(&bomb[..], 1).unwrap(), &bomb)], "");
    let fake = content.serve().await;
    let node = node(&fake);
    for (tag, kind) in [
        ("diff", PullErrorKind::DigestMismatch),
        ("garbage", PullErrorKind::Unpack),
        ("bomb", PullErrorKind::Unpack),
    ] {
        assert_eq!(node.pull(format!("{}/a:{tag}", fake.host())).await.unwrap_err().kind(), kind, "{tag}");
        node.assert_clean(0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_without_layers_is_an_image() {
    let mut content = Content::default();
    let built = content.image("1", &[], "");
    let fake = content.serve().await;
    let node = node(&fake);
    node.pull(format!("{}/a:1", fake.host())).await.unwrap();
    let info = node.images.find(&built.id).unwrap().unwrap();
    assert!(info.top_layer.is_none() && info.size > 0);
}

/// A small file system of its own; dropped, it is gone.
struct SmallDisk(std::path::PathBuf);

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let umount = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(umount.unwrap().success());
        // When the test failed, the node couldn't remove the mount point.
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_named_and_nothing_stays_on_it() {
    let root = tempfile::tempdir().unwrap();
    let mount = ["-t", "tmpfs", "-o", "size=4m,mode=700", "criox-test"];
    if !std::process::Command::new("mount").args(mount).arg(root.path()).status().unwrap().success() {
        eprintln!("not tested: a full disk, for this user can't mount a small file system");
        return;
    }
    // Dropped after the node, whose directory it is.
    let disk = SmallDisk(root.path().to_owned());
    let layer = tar(&[("a", &noise(1, 8 << 20))]);
    let mut content = Content::default();
    content.image("big", &[(gzip(&layer), &layer)], "");
    let small = tar(&[("a", b"1")]);
    content.image("small", &[(gzip(&small), &small)], "");
    let fake = content.serve().await;
    let node = node_at(root, &trusting(&fake), ACCEPT);
    let error = node.pull(format!("{}/a:big", fake.host())).await.unwrap_err();
    assert_eq!(error.kind(), PullErrorKind::DiskFull, "{error}: {:?}", std::error::Error::source(&error));
    node.assert_clean(0).await;
    node.pull(format!("{}/a:small", fake.host())).await.unwrap();
    drop(disk);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_moves_and_removal_goes_by_name_or_id() {
    let tars = [tar(&[("a", b"1")]), tar(&[("a", b"2")])];
    let mut content = Content::default();
    let old = content.image("1", &[(gzip(&tars[0]), &tars[0])], "");
    let mut later = content.clone();
    let new = later.image("1", &[(gzip(&tars[1]), &tars[1])], "");
    later.document("2", OCI_MANIFEST, &new.manifest);
    let fake = FakeRegistry::start(move |seen, before| {
        if seen.target.ends_with("/manifests/1") && before == 0 {
            content.reply(seen)
        } else {
            later.reply(seen)
        }
    })
    .await;
    let node = node(&fake);
    let name = |tag: &str| format!("{}/a:{tag}", fake.host());
    assert_eq!(node.pull(name("1")).await.unwrap().id, old.id);
    assert_eq!(node.pull(name("1")).await.unwrap().id, new.id);
    node.pull(name("2")).await.unwrap();
    assert_eq!(node.names(&old.id), Some(vec![]));
    assert_eq!(node.names(&new.id), Some(vec![name("2"), name("1")]));
    // Dangling, but still found by the digest that its old name had.
    assert_eq!(node.images.find(&old.id).unwrap().unwrap().repo_digests.len(), 1);

    assert_eq!(
        node.images.remove(&name("1")).unwrap(),
        Removed::Untagged { id: new.id.clone(), name: name("1") }
    );
    assert_eq!(node.images.remove(&name("1")).unwrap(), Removed::Absent);
    assert_eq!(node.images.remove(&name("2")).unwrap(), Removed::Deleted { id: new.id.clone() });
    assert_eq!(node.images.remove(&old.id).unwrap(), Removed::Deleted { id: old.id });
    assert_eq!(node.images.remove(&new.id).unwrap(), Removed::Absent);
    node.assert_clean(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policy_is_asked_before_the_registry() {
    let fake = Content::default().serve().await;
    let conf = format!("[[registry]]\nlocation = \"{}\"\ninsecure = true\n", fake.host());
    let node = node_with(&conf, r#"{"default":[{"type":"reject"}]}"#);
    let error = node.pull(format!("{}/a:1", fake.host())).await.unwrap_err();
    assert!(error.to_string().starts_with("SignatureValidationFailed"), "{error}");
    assert!(fake.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_go_first_and_credentials_of_the_request_do_not_go_there() {
    let layer = tar(&[("a", b"1")]);
    let mut content = Content::default();
    content.image("1", &[(gzip(&layer), &layer)], "");
    let empty = Content::default().serve().await;
    let mirror = FakeRegistry::start(|_, _| Reply::new(401, "").header("www-authenticate", "Basic")).await;
    let primary = FakeRegistry::start(move |seen, _| match seen.header("authorization") {
        "" => Reply::new(401, "").header("www-authenticate", "Basic"),
        _ => content.reply(seen),
    })
    .await;
    let conf = format!(
        "[[registry]]\nprefix = \"r.example\"\nlocation = \"{}\"\ninsecure = true\n{}",
        primary.host(),
        [&empty, &mirror]
            .map(|m| format!("[[registry.mirror]]\nlocation = \"{}\"\ninsecure = true\n", m.host()))
            .concat()
    );
    let node = node_with(&conf, ACCEPT);
    let auth = Some(Auth { username: "u".into(), password: "canary".into(), ..Default::default() });
    let request = PullRequest { image: "r.example/a:1".into(), auth, namespace: String::new() };
    let pulled = node.images.pull(request).await.unwrap();
    assert!(pulled.reference.starts_with("r.example/a@"), "{}", pulled.reference);
    assert_eq!(empty.seen().len(), 1);
    assert!(mirror.seen().iter().all(|s| s.header("authorization").is_empty()));
    assert_eq!(node.names("r.example/a:1"), Some(vec!["r.example/a:1".into()]));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_is_registry_unavailable() {
    let node = node_with("[[registry]]\nlocation = \"127.0.0.1:1\"\ninsecure = true\n", ACCEPT);
    let error = node.pull("127.0.0.1:1/a:1").await.unwrap_err();
    assert!(error.to_string().starts_with("RegistryUnavailable"), "{error}");
    assert_eq!(node.pull("Not A Name").await.unwrap_err().kind(), PullErrorKind::InvalidReference);
}

const PROFILE: &str = "application/vnd.cncf.seccomp-profile.config.v1+json";

impl Content {
    /// An artifact whose manifest has these types of artifact, configuration and content.
    fn artifact(&mut self, tag: &str, types: [&str; 3], bytes: &[u8]) -> Digest {
        let (config, layer) = (self.blob(b"{}"), self.blob(bytes));
        let [artifact, configuration, content] = types;
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","artifactType":"{artifact}","config":{{"mediaType":"{configuration}","digest":"{config}","size":2}},"layers":[{{"mediaType":"{content}","digest":"{layer}","size":{}}}]}}"#,
            bytes.len()
        );
        self.document(tag, OCI_MANIFEST, manifest.as_bytes());
        layer
    }
}

impl Node {
    async fn artifact(&self, image: String) -> Result<crate::Artifact, PullError> {
        let request = PullRequest { image, ..Default::default() };
        self.images.artifact(&request, PROFILE, 100).await
    }
}

#[tokio::test]
async fn an_artifact_is_known_by_any_of_its_types_and_its_content_comes_once() {
    let mut content = Content::default();
    content.artifact("by-artifact", [PROFILE, "application/vnd.oci.empty.v1+json", "text/plain"], b"one");
    content.artifact("by-config", ["", PROFILE, "text/plain"], b"two");
    content.artifact("by-content", ["", "application/vnd.oci.empty.v1+json", PROFILE], b"three");
    let fake = content.serve().await;
    let node = node(&fake);
    for (tag, bytes) in [("by-artifact", &b"one"[..]), ("by-config", b"two"), ("by-content", b"three")] {
        let first = node.artifact(format!("{}/a:{tag}", fake.address)).await.unwrap();
        assert_eq!(&*first.bytes, bytes);
        assert!(first.reference.contains("/a@sha256:"), "{}", first.reference);
        let before = fake.seen().len();
        // By digest it is known; a tag may have moved.
        assert_eq!(node.artifact(first.reference.clone()).await.unwrap(), first);
        assert_eq!(fake.seen().len(), before);
        assert_eq!(node.artifact(format!("{}/a:{tag}", fake.address)).await.unwrap(), first);
        let asked: Vec<String> = fake.seen()[before..].iter().map(|seen| seen.target.clone()).collect();
        assert!(asked.iter().all(|target| !target.contains("/blobs/")), "{asked:?}");
    }
}

#[tokio::test]
async fn what_is_no_such_artifact_is_refused() {
    let mut content = Content::default();
    content.image("image", &[(gzip(&tar(&[("f", b"x")])), &tar(&[("f", b"x")]))], "");
    content.artifact("other", ["application/x", "application/y", "application/z"], b"x");
    content.artifact("large", [PROFILE, PROFILE, PROFILE], &noise(1, 101));
    let spoilt = content.artifact("spoilt", [PROFILE, PROFILE, PROFILE], b"right");
    content.0.insert(format!("blobs/{spoilt}"), Reply::new(200, "wrong"));
    let longer = content.artifact("longer", [PROFILE, PROFILE, PROFILE], b"short");
    content.0.insert(format!("blobs/{longer}"), Reply::new(200, "shorter"));
    content.document("empty", OCI_MANIFEST, br#"{"schemaVersion":2,"config":{"mediaType":"x","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}"#);
    content.document("index", OCI_INDEX, br#"{"schemaVersion":2,"manifests":[]}"#);
    let fake = content.serve().await;
    let node = node(&fake);
    use PullErrorKind as Kind;
    for (tag, kind) in [
        ("image", Kind::UnsupportedManifest),
        ("other", Kind::UnsupportedManifest),
        ("large", Kind::SizeMismatch),
        ("spoilt", Kind::DigestMismatch),
        ("longer", Kind::SizeMismatch),
        ("empty", Kind::UnsupportedManifest),
        ("index", Kind::UnsupportedManifest),
        ("absent", Kind::NotFound),
    ] {
        let error = node.artifact(format!("{}/a:{tag}", fake.address)).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{tag}: {error}");
    }
    let refusing = node_with(&trusting(&fake), r#"{"default":[{"type":"reject"}]}"#);
    let error = refusing.artifact(format!("{}/a:other", fake.address)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::SignatureValidationFailed);
}
