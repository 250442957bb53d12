//! What the image builder writes, read by other people's programs: skopeo, umoci, docker-registry.

use std::path::Path;
use std::process::{Command, ExitCode};

use testkit::image::index;
use testkit::registry::{PASSWORD, USER};
use testkit::{Compression, Entry, ImageBuilder, Registry, Result, busybox_image};

fn main() -> ExitCode {
    testkit::harness::run(&[
        ("skopeo copies an image out of the registry with every digest", skopeo_copies),
        ("skopeo copies a docker schema 2 image", skopeo_copies_docker),
        ("skopeo chooses from an index", skopeo_chooses),
        ("umoci unpacks the layers with whiteouts and links applied", umoci_unpacks),
        ("GNU tar reads sparse files, long names and attributes", tar_reads),
        ("a registry with a password refuses a stranger", password_is_asked_for),
        ("a frozen registry answers when it is thawed", freezing),
        ("a spoilt blob is served as it lies there", spoiling),
        ("a stopped registry comes back with its content", restarting),
    ])
}

fn output(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(args)
        .output()
        .map_err(|error| format!("cannot start {program}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary directories have plain names")
}

fn skopeo_out(builder: &ImageBuilder) -> Result {
    let registry = Registry::start()?;
    let image = builder.build()?;
    let reference = image.push(&registry, "library/it", "1")?;
    let dir = tempfile::tempdir()?;
    let to = format!("dir:{}", text(dir.path()));
    output(
        "skopeo",
        &["--insecure-policy", "copy", "--src-tls-verify=false", &format!("docker://{reference}"), &to],
    )?;
    let manifest = std::fs::read(dir.path().join("manifest.json"))?;
    assert_eq!(manifest, image.manifest.bytes);
    for blob in image.layers.iter().chain([&image.config]) {
        let bytes = std::fs::read(dir.path().join(blob.digest.trim_start_matches("sha256:")))?;
        assert_eq!(bytes, blob.bytes);
    }
    Ok(())
}

fn skopeo_copies() -> Result {
    skopeo_out(&busybox_image()?.layer_as(&[Entry::file("a", "b")], Compression::Zstd))
}

fn skopeo_copies_docker() -> Result {
    skopeo_out(&ImageBuilder::new().docker().layer(&[Entry::file("a", "b")]))
}

fn skopeo_chooses() -> Result {
    let registry = Registry::start()?;
    let ours = ImageBuilder::new().layer(&[Entry::file("a", "ours")]).build()?;
    let other = ImageBuilder::new().architecture("s390x").layer(&[Entry::file("a", "other")]).build()?;
    ours.push(&registry, "multi", "ours")?;
    other.push(&registry, "multi", "other")?;
    registry.push_manifest("multi", "all", &index(&[&other, &ours])?)?;
    let reference = format!("docker://{}/multi:all", registry.address());
    let config = output("skopeo", &["inspect", "--tls-verify=false", "--config", "--raw", &reference])?;
    assert_eq!(config.trim_end().as_bytes(), ours.config.bytes);
    Ok(())
}

fn umoci_unpacks() -> Result {
    let dir = tempfile::tempdir()?;
    let layout = dir.path().join("layout");
    ImageBuilder::new()
        .layer(&[
            Entry::dir("d"),
            Entry::file("d/gone", "x"),
            Entry::file("d/kept", "kept").mode(0o4755).owner(1000, 50),
            Entry::hardlink("d/twin", "d/kept"),
            Entry::fifo("pipe"),
            Entry::char_device("null", 1, 3),
            Entry::dir("o"),
            Entry::file("o/hidden", "x"),
        ])
        .layer_as(
            &[Entry::whiteout("d/gone"), Entry::opaque("o"), Entry::file("o/new", "new")],
            Compression::None,
        )
        .build()?
        .write_oci_layout(&layout, "it")?;
    let bundle = dir.path().join("bundle");
    output("umoci", &["unpack", "--image", &format!("{}:it", text(&layout)), text(&bundle)])?;
    let root = bundle.join("rootfs");
    assert!(!root.join("d/gone").exists());
    assert!(!root.join("o/hidden").exists());
    assert_eq!(std::fs::read_to_string(root.join("o/new"))?, "new");
    let stat = output("stat", &["-c", "%a %u %g %h", text(&root.join("d/kept"))])?;
    assert_eq!(stat.trim(), "4755 1000 50 2");
    let kinds = output("stat", &["-c", "%F", text(&root.join("pipe")), text(&root.join("null"))])?;
    assert_eq!(kinds, "fifo\ncharacter special file\n");
    Ok(())
}

fn tar_reads() -> Result {
    let dir = tempfile::tempdir()?;
    let long = format!("{}/{}", "d".repeat(90), "f".repeat(90));
    let tar = testkit::tar::archive(&[
        Entry::sparse("holes", 10_000_000, &[(1 << 20, b"middle"), (9_999_997, b"end")]),
        Entry::file(&long, "long").xattr("user.test", b"value"),
        Entry::file("far", "x").owner(3_000_000, 5),
    ]);
    let mut child = Command::new("tar")
        .args(["-x", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-C", text(dir.path())])
        .stdin(std::process::Stdio::piped())
        .spawn()?;
    std::io::Write::write_all(child.stdin.as_mut().expect("it was asked for"), &tar)?;
    drop(child.stdin.take());
    assert!(child.wait()?.success());
    let holes = std::fs::read(dir.path().join("holes"))?;
    assert_eq!(holes.len(), 10_000_000);
    assert_eq!(&holes[1 << 20..(1 << 20) + 6], b"middle");
    assert_eq!(&holes[9_999_997..], b"end");
    assert_eq!(std::fs::read_to_string(dir.path().join(&long))?, "long");
    let uid = output("stat", &["-c", "%u", text(&dir.path().join("far"))])?;
    assert_eq!(uid.trim(), "3000000");
    let mut value = [0; 16];
    let n = rustix::fs::getxattr(dir.path().join(&long), "user.test", &mut value)?;
    assert_eq!(&value[..n], b"value");
    Ok(())
}

fn password_is_asked_for() -> Result {
    let registry = Registry::start_with_password()?;
    let reference =
        ImageBuilder::new().layer(&[Entry::file("a", "b")]).build()?.push(&registry, "secret", "1")?;
    let reference = format!("docker://{reference}");
    let stranger = output("skopeo", &["inspect", "--tls-verify=false", &reference]);
    assert!(stranger.is_err_and(|error| error.to_string().contains("authentication required")));
    let credentials = format!("{USER}:{PASSWORD}");
    output("skopeo", &["inspect", "--tls-verify=false", "--creds", &credentials, &reference])?;
    Ok(())
}

fn freezing() -> Result {
    let registry = Registry::start()?;
    registry.freeze()?;
    let url = format!("docker://{}/nothing:1", registry.address());
    let frozen = output("timeout", &["1", "skopeo", "inspect", "--tls-verify=false", &url]);
    assert!(frozen.is_err());
    registry.thaw()?;
    ImageBuilder::new().layer(&[Entry::file("a", "b")]).build()?.push(&registry, "it", "1")?;
    Ok(())
}

fn spoiling() -> Result {
    let registry = Registry::start()?;
    let image = ImageBuilder::new().layer(&[Entry::file("a", "b")]).build()?;
    let reference = image.push(&registry, "it", "1")?;
    let layer = registry.blob_path(&image.layers[0].digest);
    let length = std::fs::metadata(&layer)?.len();
    std::fs::OpenOptions::new().write(true).open(&layer)?.set_len(length - 1)?;
    let dir = tempfile::tempdir()?;
    let to = format!("dir:{}", text(dir.path()));
    let url = format!("docker://{reference}");
    assert!(output("skopeo", &["--insecure-policy", "copy", "--src-tls-verify=false", &url, &to]).is_err());
    Ok(())
}

fn restarting() -> Result {
    let mut registry = Registry::start()?;
    let image = ImageBuilder::new().layer(&[Entry::file("a", "b")]).build()?;
    let reference = image.push(&registry, "it", "1")?;
    assert_eq!(std::fs::read(registry.blob_path(&image.config.digest))?, image.config.bytes);
    registry.stop();
    let url = format!("docker://{reference}");
    assert!(output("skopeo", &["inspect", "--tls-verify=false", &url]).is_err());
    registry.restart()?;
    output("skopeo", &["inspect", "--tls-verify=false", &url])?;
    Ok(())
}
