//! Registries and images.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::mount::{UnmountFlags, unmount};
use testkit::harness::Test;
use testkit::image::Blob;
use testkit::tar::archive;
use testkit::{Compression, Daemon, Entry, Image, ImageBuilder, Node, Registry, Result, busybox_image};
use tonic::Code;

use crate::{NODE, refused, still_works};

pub(crate) const TESTS: &[Test] = &[
    ("an image that the registry doesn't have is named", || NODE.test(unknown)),
    ("a registry that is down is unavailable, in the kubelet's word", || NODE.test(down)),
    ("a layer with another digest than its name's is refused", || NODE.test(wrong_digest)),
    ("a layer that ends early is refused", || NODE.test(truncated)),
    ("a layer that is longer than announced is refused", || NODE.test(oversized)),
    ("a layer whose archive is another than the configuration says is refused", || NODE.test(wrong_diff_id)),
    ("a configuration that isn't one is refused", || NODE.test(bad_configuration)),
    ("a manifest for another machine is refused", || NODE.test(other_architecture)),
    ("layers that are no archives are refused", || NODE.test(no_archive)),
    ("a layer with paths that climb out harms nothing outside", || NODE.test(escaping)),
    ("links of a layer lead no later file out of it", || NODE.test(links)),
    ("a disk that is full during a pull is named, and what was written is gone", disk_full),
];

/// Pulls what must not succeed: the error names the reference and `parts`, and nothing is left in the store.
fn check(node: &Node, reference: &str, parts: &[&str]) -> Result<tonic::Status> {
    let before = contents(&node.daemon.root().join("overlay"))?;
    let images = node.cri.list_images()?.len();
    let status = refused(node.cri.pull(reference), parts)?;
    assert!(status.message().contains(reference), "{status}");
    assert!(node.cri.image(reference)?.is_none());
    assert_eq!(node.cri.list_images()?.len(), images);
    assert_eq!(contents(&node.daemon.root().join("overlay"))?, before, "left in the store after: {status}");
    Ok(status)
}

/// The layers in the driver's home, and everything in its places for what is not finished.
fn contents(home: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for dir in [home.to_owned(), home.join("staging"), home.join("l"), home.join("tempdirs")] {
        // Made when first used.
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name != "staging" && name != "tempdirs" {
                names.push(format!("{}/{name}", dir.file_name().unwrap_or_default().to_string_lossy()));
            }
        }
    }
    names.sort();
    Ok(names)
}

/// An image with a layer that no other has.
fn image(mark: &str) -> Result<Image> {
    busybox_image()?.layer(&[Entry::file("mark", mark.repeat(2000))]).build()
}

fn unknown(node: &Node) -> Result {
    let address = node.registry.address();
    let status = check(node, &format!("{address}/no/such:1"), &[])?;
    assert!(matches!(status.code(), Code::NotFound | Code::Unknown), "{status}");
    check(node, &format!("{}:absent", node.image.trim_end_matches(":1")), &[])?;
    let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
    check(node, &format!("{}@{digest}", node.image.trim_end_matches(":1")), &[&digest])?;
    Ok(())
}

fn down(node: &Node) -> Result {
    // The registry of the node stays up for others: another address, where nobody listens.
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    drop(listener);
    let reference = format!("{address}/some/image:1");
    let status = check(node, &reference, &[&address])?;
    assert_eq!(status.code(), Code::Unknown, "{status}");
    assert!(status.message().starts_with("RegistryUnavailable"), "{status}");
    Ok(())
}

fn wrong_digest(node: &Node) -> Result {
    let image = image("wrong digest ")?;
    let reference = image.push(&node.registry, "bad/digest", "1")?;
    let layer = image.layers.last().ok_or("a layer")?;
    let blob = fs::OpenOptions::new().write(true).open(node.registry.blob_path(&layer.digest))?;
    blob.write_all_at(b"\xff\xff\xff", layer.bytes.len() as u64 / 2)?;
    check(node, &reference, &[&layer.digest])?;
    Ok(())
}

fn truncated(node: &Node) -> Result {
    let image = image("truncated ")?;
    let reference = image.push(&node.registry, "bad/truncated", "1")?;
    let layer = image.layers.last().ok_or("a layer")?;
    let blob = fs::OpenOptions::new().write(true).open(node.registry.blob_path(&layer.digest))?;
    blob.set_len(layer.bytes.len() as u64 / 2)?;
    check(node, &reference, &[&layer.digest])?;
    Ok(())
}

fn oversized(node: &Node) -> Result {
    let image = image("oversized ")?;
    let reference = image.push(&node.registry, "bad/oversized", "1")?;
    let layer = image.layers.last().ok_or("a layer")?;
    let blob = fs::OpenOptions::new().write(true).open(node.registry.blob_path(&layer.digest))?;
    blob.write_all_at(&[0; 100_000], layer.bytes.len() as u64)?;
    check(node, &reference, &[&layer.digest])?;
    Ok(())
}

/// Replaces the configuration, and the manifest with it.
fn with_configuration(image: &Image, bytes: Vec<u8>) -> Result<Image> {
    let config = Blob::new(image.config.media_type.clone(), bytes);
    let mut manifest: serde_json::Value = serde_json::from_slice(&image.manifest.bytes)?;
    manifest["config"] = config.descriptor();
    let manifest = Blob::new(image.manifest.media_type.clone(), serde_json::to_vec(&manifest)?);
    Ok(Image { config, manifest, ..image.clone() })
}

fn wrong_diff_id(node: &Node) -> Result {
    let image = image("wrong diff ID ")?;
    let diff_id = image.diff_ids.last().ok_or("a layer")?;
    let other = testkit::image::sha256(b"something else");
    let text = String::from_utf8(image.config.bytes.clone())?.replace(diff_id, &other);
    let bad = with_configuration(&image, text.into_bytes())?;
    check(node, &bad.push(&node.registry, "bad/diff-id", "1")?, &[&other])?;
    Ok(())
}

fn bad_configuration(node: &Node) -> Result {
    let image = image("bad configuration ")?;
    let one_short = {
        let mut config: serde_json::Value = serde_json::from_slice(&image.config.bytes)?;
        config["rootfs"]["diff_ids"].as_array_mut().ok_or("an array")?.pop();
        serde_json::to_vec(&config)?
    };
    for (n, bytes) in [b"not json".to_vec(), b"{}".to_vec(), one_short].into_iter().enumerate() {
        let bad = with_configuration(&image, bytes)?;
        check(node, &bad.push(&node.registry, &format!("bad/configuration-{n}"), "1")?, &[])?;
    }
    Ok(())
}

fn other_architecture(node: &Node) -> Result {
    let image = ImageBuilder::new().architecture("s390x").layer(&[Entry::file("a", "b")]).build()?;
    image.push(&node.registry, "bad/architecture", "only")?;
    let index = testkit::image::index(&[&image])?;
    node.registry.push_manifest("bad/architecture", "1", &index)?;
    let reference = format!("{}/bad/architecture:1", node.registry.address());
    check(
        node,
        &reference,
        &["linux", std::env::consts::ARCH.replace("x86_64", "amd64").replace("aarch64", "arm64").as_str()],
    )?;
    Ok(())
}

fn no_archive(node: &Node) -> Result {
    let good = archive(&[Entry::file("file", "x".repeat(5000))]);
    for (n, (bytes, compression)) in [
        (b"this is no archive at all".repeat(100), Compression::Gzip),
        (good[..good.len() / 2].to_vec(), Compression::None),
        (vec![0xff; 4096], Compression::Zstd),
        (archive(&[Entry::file("file", "short").claim_size(1 << 40)]), Compression::Gzip),
        (archive(&[Entry::file("a/../../b", "x")])[..512].to_vec(), Compression::Gzip),
    ]
    .into_iter()
    .enumerate()
    {
        let image = busybox_image()?.raw_layer(bytes, compression).build()?;
        check(node, &image.push(&node.registry, &format!("bad/archive-{n}"), "1")?, &[])?;
    }
    // Compressed as announced, and no such compression.
    let image = busybox_image()?.layer(&[Entry::file("x", "y")]).build()?;
    let junk = Blob::new("application/vnd.oci.image.layer.v1.tar+gzip", b"no gzip".to_vec());
    let mut manifest: serde_json::Value = serde_json::from_slice(&image.manifest.bytes)?;
    manifest["layers"][2] = junk.descriptor();
    let manifest = Blob::new(image.manifest.media_type.clone(), serde_json::to_vec(&manifest)?);
    let mut bad = Image { manifest, ..image };
    bad.layers[2] = junk.clone();
    check(node, &bad.push(&node.registry, "bad/gzip", "1")?, &[&junk.digest])?;
    Ok(())
}

/// Whether a hostile image was refused or tamed, nothing of it may be outside of its own layers.
fn harmless(node: &Node, name: &str, entries: &[Entry]) -> Result {
    let marks = ["criox-escaped", "criox-escaped-too"];
    let image = busybox_image()?.layer(entries).build()?;
    let reference = image.push(&node.registry, &format!("bad/{name}"), "1")?;
    let pulled = node.cri.pull(&reference);
    let root = node.daemon.root();
    let outside = ["/", "/tmp", "/etc"].map(Path::new).into_iter().chain([node.daemon.dir(), &root]);
    for dir in outside {
        for mark in marks {
            assert!(!dir.join(mark).exists(), "{name}: {mark} is in {}", dir.display());
        }
    }
    let home = root.join("overlay");
    for entry in fs::read_dir(&home)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        assert!(!marks.contains(&name.as_str()), "{name}");
        for mark in marks {
            assert!(!entry.path().join(mark).exists(), "{name}/{mark} lies beside a layer's files");
        }
    }
    match pulled {
        // Tamed: it runs, and its files are inside.
        Ok(id) => {
            let config = node.cri.host_network_pod(name);
            let pod = node.cri.run_pod_as(&config, "real")?;
            let container = node.cri.container("c", &id, &["sh", "-c", "cat /etc/hello"]);
            let container = node.cri.create(&pod, &container, &config)?;
            node.cri.start(&container)?;
            node.cri.remove_pod(&pod)?;
            node.cri.remove_image(&id)?;
        }
        Err(status) => assert!(status.message().contains(&reference), "{status}"),
    }
    Ok(())
}

fn escaping(node: &Node) -> Result {
    harmless(
        node,
        "dots",
        &[Entry::file("../criox-escaped", "x"), Entry::file("../../../../../../tmp/criox-escaped", "x")],
    )?;
    harmless(node, "absolute", &[Entry::file("/tmp/criox-escaped", "x")])?;
    harmless(node, "inner-dots", &[Entry::dir("a"), Entry::file("a/../../criox-escaped", "x")])?;
    harmless(node, "whiteout", &[Entry::file("../.wh.criox-escaped", ""), Entry::file(".wh...", "")])?;
    harmless(node, "directory", &[Entry::dir("../criox-escaped"), Entry::dir("..")])?;
    Ok(())
}

fn links(node: &Node) -> Result {
    let secret = node.daemon.dir().join("secret");
    let path = secret.display().to_string();
    fs::OpenOptions::new().append(true).create(true).open(&secret)?;
    harmless(node, "link", &[Entry::symlink("out", "/tmp"), Entry::file("out/criox-escaped", "x")])?;
    harmless(
        node,
        "link-dots",
        &[Entry::symlink("up", "../../../../../tmp"), Entry::file("up/criox-escaped", "x")],
    )?;
    harmless(
        node,
        "link-chain",
        &[
            Entry::dir("d"),
            Entry::symlink("d/one", ".."),
            Entry::symlink("two", "d/one/.."),
            Entry::file("two/criox-escaped", "x"),
        ],
    )?;
    harmless(node, "hard-link", &[Entry::hardlink("stolen", &path), Entry::file("stolen", "overwritten")])?;
    harmless(node, "link-to-file", &[Entry::symlink("alias", &path), Entry::file("alias", "overwritten")])?;
    harmless(
        node,
        "opaque",
        &[Entry::symlink("gone", &node.daemon.dir().display().to_string()), Entry::opaque("gone")],
    )?;
    assert_eq!(fs::read(&secret)?, b"", "a file of the node was written to");
    let links = std::os::unix::fs::MetadataExt::nlink(&fs::metadata(&secret)?);
    assert_eq!(links, 1, "a file of the node was linked into a layer");
    still_works(node)
}

/// Bytes that no compression makes smaller.
fn noise(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(size);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

fn run(program: &str, args: &[&std::ffi::OsStr]) -> Result {
    let status = std::process::Command::new(program).args(args).status()?;
    if status.success() { Ok(()) } else { Err(format!("{program} ended with {status}").into()) }
}

fn disk_full() -> Result {
    let registry = Registry::start()?;
    let small = busybox_image()?.build()?.push(&registry, "full/small", "1")?;
    let files: Vec<Entry> = (0..8).map(|n| Entry::file(&format!("big-{n}"), noise(12 << 20))).collect();
    let big =
        busybox_image()?.layer_as(&files, Compression::None).build()?.push(&registry, "full/big", "1")?;
    let mut daemon = Daemon::builder().registry(&registry).prepare()?;
    let root = daemon.root();
    // The store leaves 64 MiB of each disk to others: less than that remains for the image.
    let disk = daemon.dir().join("disk");
    fs::OpenOptions::new().write(true).create_new(true).open(&disk)?.set_len(136 << 20)?;
    run("mkfs.ext4", &["-q".as_ref(), disk.as_os_str()])?;
    run("mount", &["-o".as_ref(), "loop".as_ref(), disk.as_os_str(), root.as_os_str()])?;
    let result = on_small_disk(&mut daemon, &small, &big);
    // The daemon's end first, then what it bound, then the disk.
    let ended = daemon.terminate();
    let _unbound = unmount(root.join("overlay"), UnmountFlags::DETACH);
    unmount(&root, UnmountFlags::DETACH)?;
    result?;
    ended?;
    daemon.finish()
}

fn on_small_disk(daemon: &mut Daemon, small: &str, big: &str) -> Result {
    daemon.start()?;
    let cri = daemon.cri()?;
    let used = || -> Result<u64> {
        let stat = rustix::fs::statvfs(daemon.root())?;
        Ok((stat.f_blocks - stat.f_bfree) * stat.f_frsize)
    };
    let before = used()?;
    let status = refused(cri.pull(big), &[big, "No space left on device"])?;
    assert_eq!(status.code(), Code::Unknown, "{status}");
    let after = used()?;
    assert!(after < before + (2 << 20), "{before} bytes before and {after} after");
    assert!(cri.list_images()?.is_empty());
    // There is room for a small one, and it runs.
    cri.pull(small)?;
    let (pod, container) = cri.run("small", small, &["sleep", "100"])?;
    assert_eq!(cri.exec(&container, &["cat", "/etc/hello"], 10)?.stdout, b"hello from the image\n");
    cri.stop(&container, 0)?;
    cri.remove_pod(&pod)?;
    cri.remove_image(small)?;
    Ok(())
}
