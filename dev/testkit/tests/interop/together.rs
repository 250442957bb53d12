//! Both at once, without haste: who sees whom, and what the other's cleaning takes.

use std::time::Duration;

use criox_cri::v1::ContainerState;
use serde_json::Value;
use testkit::{Cri, Daemon, Entry, Registry, Result, busybox_image};

use crate::peers::{Peers, json_list, same};
use crate::store::{contradictions, records};

const LIMIT: Duration = Duration::from_secs(20);

/// A pod with the node's network and one container of the same name, created and not started.
fn created(cri: &Cri, name: &str, image: &str, command: &[&str]) -> Result<String> {
    let config = cri.host_network_pod(name);
    let pod = cri.run_pod(&config)?;
    Ok(cri.create(&pod, &cri.container(name, image, command), &config)?)
}

fn started(cri: &Cri, name: &str, image: &str, command: &[&str]) -> Result<String> {
    let container = created(cri, name, image, command)?;
    cri.start(&container)?;
    Ok(container)
}

/// A file of the image and one of its own are there.
fn unharmed(cri: &Cri, container: &str) -> Result {
    let read = cri.exec(container, &["sh", "-c", "cat /etc/hello /own"], 20)?;
    let found = [read.stdout, read.stderr].concat();
    same(
        "the files of a running container, and the code of reading them",
        &(String::from_utf8_lossy(&found).as_ref(), read.exit_code),
        &("hello from the image\nown\n", 0),
    )
}

/// How many of the store's layers are counted as mounted, and how often in all.
fn mounted(daemon: &Daemon) -> Result<Vec<i64>> {
    let text = match std::fs::read(daemon.run_root().join("overlay-layers/mountpoints.json")) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let list: Vec<Value> = serde_json::from_slice(&text)?;
    Ok(list.iter().filter_map(|mount| mount["count"].as_i64()).collect())
}

pub(crate) fn shown_and_spared() -> Result {
    let registry = Registry::start()?;
    let used = busybox_image()?.build()?.push(&registry, "interop/used", "1")?;
    let unused = busybox_image()?.layer(&[Entry::file("unused", "x")]).build()?.push(
        &registry,
        "interop/unused",
        "1",
    )?;
    let daemon = Daemon::builder().registry(&registry).without_network().start()?;
    let peers = Peers::of(&daemon)?;
    let cri = daemon.cri()?;
    cri.pull(&used)?;
    cri.pull(&unused)?;
    let running = started(&cri, "running", &used, &["sh", "-c", "echo own > /own; sleep 1000"])?;
    let waiting = created(&cri, "waiting", &used, &["sh", "-c", "cat /etc/hello > /own; sleep 1000"])?;
    let ended = started(&cri, "ended", &used, &["sh", "-c", "echo last words"])?;
    cri.wait_state(&ended, ContainerState::ContainerExited, LIMIT)?;

    for args in [
        &["ps", "--all", "--external", "--format", "json"][..],
        &["container", "list", "--all", "--external", "--format", "json"],
    ] {
        let shown = json_list(&peers.podman(args)?)?;
        for id in [&running, &waiting, &ended] {
            let container = shown.iter().find(|container| container["Id"] == **id);
            let container = container.ok_or_else(|| format!("podman doesn't show {id}: {shown:?}"))?;
            same("podman's image of a container", &container["Image"], &Value::from(used.as_str()))?;
            let recorded = records(&daemon.root(), "containers")?;
            let recorded = recorded.iter().find(|record| record["id"] == **id).ok_or("no record")?;
            same("podman's names of a container", &container["Names"], &recorded["names"])?;
        }
    }
    for args in [
        &["image", "prune", "--force"][..],
        &["image", "prune", "--force", "--all"],
        &["container", "prune", "--force"],
        &["system", "prune", "--force"],
        &["system", "prune", "--force", "--all", "--volumes"],
        &["system", "prune", "--force", "--external"],
    ] {
        peers.podman(args)?;
        same("podman's quick check", &peers.check(true)?, &None)?;
        unharmed(&cri, &running).map_err(|error| format!("after podman {}: {error}", args.join(" ")))?;
    }
    if peers.podman(&["rmi", &used]).is_ok() {
        return Err("podman removed an image that a container of criox uses".into());
    }
    same("an image that podman pruned", &cri.image(&unused)?, &None)?;
    if cri.image(&used)?.is_none() {
        return Err("podman pruned an image that containers use".into());
    }
    same("contradictions", &contradictions(&daemon.root())?, &Vec::new())?;
    cri.start(&waiting)?;
    let logged = cri.log(&ended)?;
    if !logged.contains("last words") {
        return Err(format!("the log of the ended container holds {logged:?}").into());
    }
    same("podman's whole check", &peers.check(false)?, &None)?;
    unharmed(&cri, &running)?;
    cri.remove_all_pods()?;
    same("what podman shows", &peers.podman(&["ps", "--all", "--external", "--quiet"])?, &String::new())?;
    peers.podman(&["image", "prune", "--force", "--all"])?;
    same("images left", &cri.list_images()?.len(), &0)?;
    same("layers left", &records(&daemon.root(), "layers")?.len(), &0)?;
    daemon.finish()
}

pub(crate) fn mounts_stay() -> Result {
    let registry = Registry::start()?;
    let reference = busybox_image()?.build()?.push(&registry, "interop/mounts", "1")?;
    let mut daemon = Daemon::builder().registry(&registry).without_network().prepare()?;
    let peers = Peers::of(&daemon)?;
    let service = ["sh", "-c", "echo own > /own; sleep 1000"];
    // podman's container is there before criox is, with the driver's home bound by podman.
    peers.podman(&["pull", "--quiet", &reference])?;
    let mut args =
        vec!["run", "--detach", "--name=first", "--network=host", "--cgroups=disabled", &reference];
    args.extend(service);
    peers.podman(&args)?;
    daemon.start()?;
    let cri = daemon.cri()?;
    // Whether that is an error or not, an image that podman's container uses stays.
    drop(cri.remove_image(&reference));
    if cri.image(&reference)?.is_none() {
        return Err("criox removed an image that a container of podman uses".into());
    }
    let container = started(&cri, "second", &reference, &service)?;
    same("counts of mounts", &mounted(&daemon)?, &vec![1, 1])?;
    let from_first = |cri: &Cri| {
        unharmed(cri, &container)?;
        same("podman's container", &peers.podman(&["exec", "first", "cat", "/own"])?.as_str(), &"own\n")
    };
    from_first(&cri)?;
    // criox goes without a word, podman looks, criox comes back.
    daemon.kill()?;
    same("podman's quick check", &peers.check(true)?, &None)?;
    same("podman's container", &peers.podman(&["exec", "first", "cat", "/own"])?.as_str(), &"own\n")?;
    daemon.start()?;
    let cri = daemon.cri()?;
    from_first(&cri)?;
    same("counts of mounts", &mounted(&daemon)?, &vec![1, 1])?;
    // podman's last container goes, and its programs shut the driver down as they end.
    peers.podman(&["rm", "--force", "--time=0", "first"])?;
    peers.podman(&["images"])?;
    peers.run(&reference, &["true"])?;
    unharmed(&cri, &container)?;
    same("counts of mounts", &mounted(&daemon)?, &vec![1])?;
    // With nothing mounted the peers unbind the home; the next pod binds it again.
    cri.remove_all_pods()?;
    same("counts of mounts", &mounted(&daemon)?, &Vec::new())?;
    peers.podman(&["images"])?;
    let container = started(&cri, "third", &reference, &service)?;
    peers.podman(&["images"])?;
    peers.run(&reference, &["true"])?;
    unharmed(&cri, &container)?;
    same("podman's whole check", &peers.check(false)?, &None)?;
    daemon.finish()
}
