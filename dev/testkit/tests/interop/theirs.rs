//! What the peers put into the store, used by criox.

use std::process::Stdio;
use std::time::Duration;

use testkit::{Compression, Cri, Daemon, Entry, Registry, Result, busybox_image, wait_for};

use crate::ours::{chunked, run_in_pod};
use crate::peers::{Original, Peers, put, same, text};
use crate::store::contradictions;

/// The image that criox lists under a name, with its whole ID.
fn told(cri: &Cri, reference: &str, id: &str) -> Result<criox_cri::v1::Image> {
    let images = cri.list_images()?;
    let image = images.into_iter().find(|image| image.id.trim_start_matches("sha256:") == id);
    let image = image.ok_or_else(|| format!("criox lists no image {id} for {reference}"))?;
    if !image.repo_tags.iter().any(|tag| tag == reference) {
        return Err(format!("{id} is listed as {:?}, not as {reference}", image.repo_tags).into());
    }
    Ok(image)
}

/// The ID that podman knows an image by.
fn podman_id(peers: &Peers, reference: &str) -> Result<String> {
    Ok(peers.podman(&["image", "inspect", "--format", "{{.Id}}", reference])?.trim().to_owned())
}

pub(crate) fn put_by_peers() -> Result {
    let registry = Registry::start()?;
    let daemon = Daemon::builder().registry(&registry).without_network().start()?;
    let peers = Peers::of(&daemon)?;
    let cri = daemon.cri()?;
    let dir = tempfile::Builder::new().prefix("criox-interop-").tempdir()?;
    let from = |name: &str| dir.path().join(name).display().to_string();

    let oci = busybox_image()?.layer_as(&[Entry::file("from", "pull")], Compression::Zstd).build()?;
    let docker = busybox_image()?.docker().layer(&[Entry::file("from", "docker")]).build()?;
    let mut references = vec![
        (oci.push(&registry, "interop/oci", "1")?, "pull"),
        (docker.push(&registry, "interop/docker", "1")?, "docker"),
    ];
    let apart = Peers::apart(dir.path(), &registry)?;
    apart.podman(&["pull", "--quiet", &references[1].0])?;
    references.push((chunked(&apart, &references[1].0, &registry)?, "docker"));
    for (reference, _) in &references {
        peers.podman(&["pull", "--quiet", reference])?;
        let original = Original::of(&peers, reference)?;
        let image = told(&cri, reference, &original.id)?;
        same("criox's digests", &image.repo_digests, &vec![original.repo_digest()])?;
    }

    // Archives of both kinds, which carry names.
    let (loaded, copied) = ("localhost/interop/loaded:1", "localhost/interop/copied:1");
    peers.podman(&["tag", &references[0].0, loaded])?;
    peers.podman(&["save", "--quiet", "--format", "oci-archive", "-o", &from("oci.tar"), loaded])?;
    peers.podman(&["tag", &references[1].0, copied])?;
    peers.podman(&["save", "--quiet", "-o", &from("docker.tar"), copied])?;
    peers.podman(&["rmi", loaded, copied])?;
    same("a removed name", &cri.image(loaded)?, &None)?;
    peers.podman(&["load", "--quiet", "-i", &from("oci.tar")])?;
    references.push((loaded.to_owned(), "pull"));
    peers.skopeo(&[
        "copy",
        "--quiet",
        &format!("docker-archive:{}", from("docker.tar")),
        &peers.stored(copied),
    ])?;
    references.push((copied.to_owned(), "docker"));

    let layout = dir.path().join("layout");
    let image = busybox_image()?.layer(&[Entry::file("from", "layout")]).build()?;
    image.write_oci_layout(&layout, "it")?;
    let name = "localhost/interop/layout:1";
    peers.skopeo(&["copy", "--quiet", &format!("oci:{}:it", text(&layout)), &peers.stored(name)])?;
    told(&cri, name, image.id())?;
    references.push((name.to_owned(), "layout"));

    let base = references[0].0.clone();
    put(
        &dir.path().join("Containerfile"),
        format!("FROM {base}\nRUN rm /from; printf built > /from\nCMD [\"cat\", \"/from\"]\n").as_bytes(),
    )?;
    let name = "localhost/interop/built:1";
    peers.podman(&[
        "build",
        "--quiet",
        "--pull=never",
        "--isolation=chroot",
        "-t",
        name,
        text(dir.path()),
    ])?;
    references.push((name.to_owned(), "built"));

    let container = peers.buildah(&["from", "--pull-never", &base])?;
    peers.buildah(&[
        "run",
        "--isolation",
        "chroot",
        container.trim(),
        "--",
        "sh",
        "-c",
        "printf committed > /from",
    ])?;
    let name = "localhost/interop/committed:1";
    peers.buildah(&["commit", "--quiet", container.trim(), name])?;
    references.push((name.to_owned(), "committed"));

    for (n, (reference, content)) in references.iter().enumerate() {
        let id = podman_id(&peers, reference)?;
        told(&cri, reference, &id)?;
        let found = run_in_pod(&cri, &format!("theirs-{n}"), reference, &["cat", "/from"])?;
        same(reference, &found.as_str(), content)?;
        // Pulling by the name that it has already adds nothing.
        if reference.starts_with(registry.address()) {
            cri.pull(reference)?;
            told(&cri, reference, &id)?;
        }
    }
    // buildah's working container holds its image, and says so.
    cri.remove_image("localhost/interop/built:1")?;
    if peers.podman(&["image", "exists", "localhost/interop/built:1"]).is_ok() {
        return Err("podman still has what criox removed".into());
    }
    if let Ok(()) = cri.remove_image(&references[0].0)
        && cri.image(&references[0].0)?.is_some()
    {
        return Err("an image is said to be removed, and is there".into());
    }
    peers.buildah(&["rm", container.trim()])?;
    same("podman's check", &peers.check(false)?, &None)?;
    same("contradictions", &contradictions(&daemon.root())?, &Vec::new())?;
    daemon.finish()
}

pub(crate) fn half_made() -> Result {
    let registry = Registry::start()?;
    let daemon = Daemon::builder().registry(&registry).without_network().start()?;
    let peers = Peers::of(&daemon)?;
    let cri = daemon.cri()?;
    // Small files are what makes a layer slow to unpack.
    let many: Vec<Entry> = (0..4000).map(|n| Entry::file(&format!("many-{n}"), n.to_string())).collect();
    let image = busybox_image()?.layer(&many).build()?;
    let reference = image.push(&registry, "interop/many", "1")?;
    // The last layer's record: those of the others come and go before.
    let two_below = |root: &std::path::Path| -> Result<bool> {
        let text = std::fs::read_to_string(root.join("overlay-layers/layers.json")).unwrap_or_default();
        let layers: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap_or_default();
        Ok(layers.len() == image.layers.len() && layers.iter().any(|l| l["flags"]["incomplete"] == true))
    };
    let mut podman = peers.podman_command(&["pull", "--quiet", &reference])?;
    let mut podman = podman.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let caught = wait_for("podman to unpack the last layer", Duration::from_secs(60), || {
        if podman.try_wait()?.is_some() {
            return Err("podman ended before it could be killed".into());
        }
        Ok(two_below(&daemon.root())?.then_some(()))
    });
    podman.kill()?;
    podman.wait()?;
    caught?;
    let half = contradictions(&daemon.root())?;
    if !half.iter().any(|line| line.contains("incomplete")) {
        return Err(format!("podman was killed too late: {half:?}").into());
    }
    cri.pull(&reference)?;
    same("contradictions", &contradictions(&daemon.root())?, &Vec::new())?;
    Original::of(&peers, &reference)?.copied_out(&peers)?;
    same("podman's check", &peers.check(true)?, &None)?;
    daemon.finish()
}
