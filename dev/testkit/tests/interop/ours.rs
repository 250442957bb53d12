//! What criox pulled, used by the peers.

use std::path::Path;
use std::process::Command;

use testkit::image::index;
use testkit::{Compression, Cri, Daemon, Entry, ImageBuilder, Registry, Result, busybox_image};

use crate::peers::{Original, Peers, json_list, put, same, text};
use crate::store::{contradictions, records};

/// `CAP_NET_RAW`, permitted and effective: `struct vfs_cap_data` of version 2.
const FILE_CAPABILITY: &[u8] = &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Lists what an image's layers made, with everything that can be seen from inside.
const LISTING: &[&str] = &[
    "sh",
    "-c",
    "cd / && for f in $(find odd cut opaque etc/passwd etc/group bin/busybox 2> /dev/null | sort); do \
     if [ -f $f ] && [ ! -L $f ]; then stat -c '%n %a %u %g %F %h %s %Y' $f; md5sum < $f; \
     else stat -c '%n %a %u %g %F %t:%T %Y' $f; fi; readlink $f; done; true",
];

/// Everything that a layer can hold, in three layers of all compressions.
fn demanding() -> Result<ImageBuilder> {
    let [long, longer] = [format!("odd/{}", "d".repeat(120)), format!("odd/{0}/{0}", "d".repeat(120))];
    let noise: Vec<u8> = (0_u32..2_000_000).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    let odd = [
        Entry::dir("odd").mode(0o2750).owner(7, 8),
        Entry::file("odd/setuid", "s").mode(0o4755).owner(1000, 50).mtime(1_234_567_890),
        Entry::hardlink("odd/twin", "odd/setuid").mode(0o4755).owner(1000, 50).mtime(1_234_567_890),
        Entry::file("odd/attribute", "x").xattr("user.test", b"value \xff\x00!"),
        Entry::program("odd/capable", "p").xattr("security.capability", FILE_CAPABILITY),
        Entry::sparse("odd/holes", 10_000_000, &[(1 << 20, b"middle"), (9_999_997, b"end")]),
        Entry::dir(&long),
        Entry::dir(&longer),
        Entry::file(&format!("{longer}/{}", "f".repeat(200)), "deep"),
        Entry::symlink("odd/far-link", &format!("/{}", "t".repeat(150))),
        Entry::char_device("odd/null", 1, 3),
        Entry::block_device("odd/block", 7, 300),
        Entry::fifo("odd/pipe"),
        Entry::file("odd/far-owner", "").owner(3_000_000, 3_000_001),
        Entry::dir("odd/sticky").mode(0o1777),
        Entry::file("odd/unreadable", "u").mode(0),
        Entry::file("odd/noise", noise),
        Entry::dir("cut"),
        Entry::file("cut/kept", "kept"),
        Entry::file("cut/gone", "gone"),
        Entry::dir("cut/dir"),
        Entry::file("cut/dir/inside", "gone too"),
        Entry::dir("opaque"),
        Entry::file("opaque/hidden", "hidden"),
    ];
    // Directories come along with what is in them: one that a reader has to make itself has the reader's mode and time.
    let above = [
        Entry::dir("odd").mode(0o2750).owner(7, 8),
        Entry::dir("cut"),
        Entry::whiteout("cut/gone"),
        Entry::whiteout("cut/dir"),
        Entry::file("cut/dir", "a file where a directory was"),
        Entry::dir("opaque"),
        Entry::opaque("opaque"),
        Entry::file("opaque/new", "new"),
        Entry::file("odd/attribute", "changed").xattr("user.other", b"2"),
    ];
    Ok(busybox_image()?.layer_as(&odd, Compression::Zstd).layer_as(&above, Compression::None))
}

/// The same for Docker schema 2, which knows no zstd.
fn demanding_docker() -> Result<ImageBuilder> {
    let above = [
        Entry::dir("cut"),
        Entry::whiteout("cut/none"),
        Entry::file("cut/kept", "docker").mode(0o6711).owner(9, 10),
        Entry::hardlink("cut/twin", "cut/kept").mode(0o6711).owner(9, 10),
        Entry::char_device("cut/zero", 1, 5),
    ];
    Ok(busybox_image()?.docker().layer_as(&above, Compression::None).layer(&[
        Entry::dir("cut"),
        Entry::whiteout("cut/twin"),
        Entry::file("cut/more", "more"),
    ]))
}

/// An image by umoci, pushed with skopeo.
fn by_umoci(peers: &Peers, dir: &Path, registry: &Registry) -> Result<String> {
    let layout = dir.join("layout");
    let base = busybox_image()?.build()?;
    base.write_oci_layout(&layout, "it")?;
    let more = dir.join("more");
    std::fs::create_dir_all(more.join("sub"))?;
    put(&more.join("sub/file"), b"by umoci")?;
    std::os::unix::fs::symlink("file", more.join("sub/link"))?;
    let image = format!("{}:it", text(&layout));
    for args in [
        &["insert", "--image", &image, text(&more), "/odd"][..],
        &["insert", "--image", &image, "--whiteout", "/etc/group"],
    ] {
        let output = Command::new("umoci").args(args).output()?;
        if !output.status.success() {
            return Err(format!("umoci {args:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
        }
    }
    let reference = format!("{}/interop/umoci:1", registry.address());
    let to = format!("docker://{reference}");
    peers.skopeo(&["copy", "--quiet", "--dest-tls-verify=false", &format!("oci:{image}"), &to])?;
    Ok(reference)
}

/// An image by buildah, in a store of its own.
fn by_buildah(peers: &Peers, dir: &Path, registry: &Registry) -> Result<String> {
    let base = busybox_image()?.build()?.push(registry, "interop/base", "1")?;
    let source = dir.join("source");
    std::fs::create_dir_all(&source)?;
    put(&source.join("file"), b"by buildah")?;
    let container = peers.buildah(&["from", &base])?;
    let container = container.trim();
    peers.buildah(&[
        "copy",
        "--quiet",
        "--chown",
        "5:6",
        "--chmod",
        "0640",
        container,
        text(&source),
        "/odd/",
    ])?;
    peers.buildah(&["run", "--isolation", "chroot", container, "--", "rm", "/etc/hello"])?;
    peers.buildah(&["config", "--cmd", "/bin/sh", container])?;
    let reference = format!("{}/interop/buildah:1", registry.address());
    peers.buildah(&["commit", "--quiet", container, &reference])?;
    peers.buildah(&["push", "--quiet", &reference])?;
    Ok(reference)
}

/// The image of another reference, pushed anew with layers whose parts can be fetched one by one.
pub(crate) fn chunked(peers: &Peers, from: &str, registry: &Registry) -> Result<String> {
    let reference = format!("{}/interop/chunked:1", registry.address());
    let to = format!("docker://{reference}");
    peers.podman(&[
        "push",
        "--quiet",
        "--compression-format=zstd:chunked",
        "--force-compression",
        from,
        &to,
    ])?;
    Ok(reference)
}

/// A command in a pod with the node's network: its output.
pub(crate) fn run_in_pod(cri: &Cri, name: &str, image: &str, command: &[&str]) -> Result<String> {
    let config = cri.host_network_pod(name);
    let pod = cri.run_pod(&config)?;
    let sleeping = cri.container("c", image, &["sleep", "1000"]);
    let container = cri.create(&pod, &sleeping, &config)?;
    cri.start(&container)?;
    let answer = cri.exec(&container, command, 30)?;
    cri.stop(&container, 0)?;
    cri.stop_pod(&pod)?;
    cri.remove_pod(&pod)?;
    if answer.exit_code != 0 {
        let error = String::from_utf8_lossy(&answer.stderr).into_owned();
        return Err(format!("{command:?} in {image} ended with {}: {error}", answer.exit_code).into());
    }
    Ok(String::from_utf8(answer.stdout)?)
}

pub(crate) fn pulled() -> Result {
    let registry = Registry::start()?;
    let dir = tempfile::Builder::new().prefix("criox-interop-").tempdir()?;
    let apart = Peers::apart(dir.path(), &registry)?;
    let by_buildah = by_buildah(&apart, dir.path(), &registry)?;
    let references = [
        chunked(&apart, &format!("{}/interop/base:1", registry.address()), &registry)?,
        demanding()?.build()?.push(&registry, "interop/oci", "1")?,
        demanding_docker()?.build()?.push(&registry, "interop/docker", "1")?,
        by_umoci(&apart, dir.path(), &registry)?,
        by_buildah,
    ];
    let daemon = Daemon::builder().registry(&registry).without_network().start()?;
    let peers = Peers::of(&daemon)?;
    let cri = daemon.cri()?;
    let mut originals = Vec::new();
    for reference in &references {
        let original = Original::of(&peers, reference)?;
        same(
            "the pulled ID",
            &cri.pull(reference)?.rsplit(':').next().map(str::to_owned),
            &Some(original.id.clone()),
        )
        .or_else(|error| {
            // The answer may be the repository with the manifest's digest, as CRI-O's is.
            let image = cri.image(reference)?.ok_or("a pulled image isn't there")?;
            if image.id.ends_with(&original.id) { Ok(()) } else { Err(error) }
        })?;
        originals.push(original);
    }
    attributes_are_on_disk(&daemon)?;
    same("contradictions", &contradictions(&daemon.root())?, &Vec::new())?;
    for original in &originals {
        listed(&peers, original)?;
        let seen = peers.run(&original.reference, LISTING)?;
        let ours = run_in_pod(&cri, "listing", &original.reference, LISTING)?;
        same("the listing by podman", &seen, &ours)?;
        // And of what podman itself makes of the image.
        apart.podman(&["pull", "--quiet", &original.reference])?;
        same("the listing of podman's own pull", &apart.run(&original.reference, LISTING)?, &ours)?;
        original.copied_out(&peers)?;
    }
    demanded(&peers.run(&originals[1].reference, LISTING)?)?;
    same("podman's quick check", &peers.check(true)?, &None)?;
    damaged_only_where_podman_is(&peers, &apart)?;
    for original in &originals {
        peers.podman(&["rmi", &original.reference])?;
        if cri.image(&original.reference)?.is_some() || cri.image(&original.id)?.is_some() {
            return Err(format!("{} is still told after podman removed it", original.reference).into());
        }
    }
    same("images left", &cri.list_images()?.len(), &0)?;
    same("contradictions", &contradictions(&daemon.root())?, &Vec::new())?;
    // What was removed by others can be had again.
    cri.pull(&references[0])?;
    originals[0].copied_out(&peers)?;
    cri.remove_image(&references[0])?;
    same("podman's images", &peers.podman(&["images", "-q"])?, &String::new())?;
    same("podman's quick check", &peers.check(true)?, &None)?;
    same("layers left", &records(&daemon.root(), "layers")?.len(), &0)?;
    daemon.finish()
}

/// podman's whole check holds each layer's files against its headers. It stumbles over some whiteouts, and over times of
/// directories that a layer has no header for: also in what podman pulled itself.
fn damaged_only_where_podman_is(peers: &Peers, apart: &Peers) -> Result {
    let damaged = |peers: &Peers| -> Result<Vec<String>> {
        let report = peers.check(false)?.unwrap_or_default();
        Ok(report.lines().filter(|line| line.starts_with("Damaged ")).map(str::to_owned).collect())
    };
    let (ours, theirs) = (damaged(peers)?, damaged(apart)?);
    if ours.iter().all(|line| theirs.contains(line)) {
        return Ok(());
    }
    Err(format!("podman's whole check says {:?}, and {theirs:?} of its own pulls", peers.check(false)?)
        .into())
}

/// podman shows the image with its ID, its name, and the registry's digest.
fn listed(peers: &Peers, original: &Original) -> Result {
    let images = json_list(&peers.podman(&["images", "--format", "json"])?)?;
    let image = images.iter().find(|image| image["Id"] == *original.id);
    let image = image.ok_or_else(|| format!("podman doesn't list {}", original.reference))?;
    same("podman's names", &image["Names"], &serde_json::json!([original.reference]))?;
    same("podman's digest", &image["Digest"], &serde_json::json!(original.digest))?;
    let inspected = &json_list(&peers.podman(&["image", "inspect", &original.reference])?)?[0];
    let digests = inspected["RepoDigests"].as_array().into_iter().flatten();
    let known = digests.filter_map(|digest| digest.as_str()).any(|digest| digest == original.repo_digest());
    if known { Ok(()) } else { Err(format!("podman's digests: {}", inspected["RepoDigests"]).into()) }
}

/// What the listing of the demanding image has to show at least.
fn demanded(listing: &str) -> Result {
    for line in [
        "odd 2750 7 8 directory ",
        "odd/setuid 4755 1000 50 regular file 2 1 1234567890\n",
        "odd/twin 4755 1000 50 regular file 2 1 1234567890\n",
        "odd/null 600 0 0 character special file 1:3 ",
        "odd/block 600 0 0 block special file 7:12c ",
        "odd/pipe 600 0 0 fifo ",
        "odd/far-owner 644 3000000 3000001 regular empty file ",
        "odd/sticky 1777 0 0 directory ",
        "odd/holes 644 0 0 regular file 1 10000000 ",
        "cut/dir 644 0 0 regular file ",
        "opaque/new 644 ",
    ] {
        if !listing.contains(line) {
            return Err(format!("'{line}' is not in the listing: {listing}").into());
        }
    }
    let gone =
        ["cut/gone", "cut/dir/inside", "opaque/hidden"].into_iter().find(|name| listing.contains(name));
    gone.map_or(Ok(()), |name| Err(format!("{name} is in the listing, but the image deletes it").into()))
}

/// Attributes can't be seen with busybox: they are looked for where the layer lies.
fn attributes_are_on_disk(daemon: &Daemon) -> Result {
    for (file, name, value) in [
        ("odd/capable", "security.capability", FILE_CAPABILITY),
        ("odd/attribute", "user.test", b"value \xff\x00!"),
        ("odd/attribute", "user.other", b"2"),
    ] {
        let mut found = false;
        for entry in std::fs::read_dir(daemon.root().join("overlay"))?.flatten() {
            let mut buffer = [0; 64];
            let path = entry.path().join("diff").join(file);
            found |= rustix::fs::lgetxattr(&path, name, &mut buffer).is_ok_and(|n| &buffer[..n] == value);
        }
        if !found {
            return Err(format!("{name} of {file} is on no layer").into());
        }
    }
    Ok(())
}

pub(crate) fn unchanged() -> Result {
    let registry = Registry::start()?;
    let daemon = Daemon::builder().registry(&registry).without_network().start()?;
    let peers = Peers::of(&daemon)?;
    let cri = daemon.cri()?;
    for builder in [ImageBuilder::new(), ImageBuilder::new().docker()] {
        let image = builder
            .layer_as(&[Entry::dir("a"), Entry::file("a/b", "c")], Compression::None)
            .layer_as(&[Entry::opaque("a"), Entry::whiteout("x")], Compression::None)
            .annotation("org.example.kept", "<&> kept")
            .build()?;
        let reference = image.push(&registry, "interop/plain", "1")?;
        cri.pull(&reference)?;
        let dir = tempfile::Builder::new().prefix("criox-copy-").tempdir()?;
        let to = format!("dir:{}", text(dir.path()));
        peers.skopeo(&["copy", "--quiet", "--preserve-digests", &peers.stored(&reference), &to])?;
        same("the manifest", &std::fs::read(dir.path().join("manifest.json"))?, &image.manifest.bytes)?;
        for blob in image.layers.iter().chain([&image.config]) {
            let bytes = std::fs::read(dir.path().join(blob.digest.trim_start_matches("sha256:")))?;
            same("a blob", &bytes, &blob.bytes)?;
        }
    }
    daemon.finish()
}

pub(crate) fn by_digests() -> Result {
    let registry = Registry::start()?;
    let ours = busybox_image()?.build()?;
    let other = ImageBuilder::new().architecture("s390x").layer(&[Entry::file("a", "other")]).build()?;
    ours.push(&registry, "interop/multi", "ours")?;
    other.push(&registry, "interop/multi", "other")?;
    let index = index(&[&other, &ours])?;
    registry.push_manifest("interop/multi", "all", &index)?;
    let repository = format!("{}/interop/multi", registry.address());
    let daemon = Daemon::builder().registry(&registry).without_network().start()?;
    let peers = Peers::of(&daemon)?;
    let cri = daemon.cri()?;
    cri.pull(&format!("{repository}:all"))?;
    for digest in [&index.digest, &ours.manifest.digest] {
        let reference = format!("{repository}@{digest}");
        same(
            "podman's ID",
            &peers.podman(&["image", "inspect", "--format", "{{.Id}}", &reference])?.trim(),
            &ours.id(),
        )?;
        let told = cri.image(&reference)?.ok_or_else(|| format!("{reference} is not found"))?;
        if !told.id.ends_with(ours.id()) {
            return Err(format!("{reference} is {}", told.id).into());
        }
    }
    same(
        "podman's run",
        &peers.run(&format!("{repository}@{}", index.digest), &["cat", "/etc/hello"])?.trim(),
        &"hello from the image",
    )?;
    daemon.finish()
}
