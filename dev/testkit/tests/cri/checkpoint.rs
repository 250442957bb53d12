//! Checkpoints with CRIU itself: containers and pods that go on where they were.
//!
//! | module | about |
//! |---|---|
//! | [`refused`] | what is refused, of requests and of hostile checkpoints; no CRIU is needed |
//! | [`faults`] | a CRIU that hangs, callers that go, a daemon that is killed |
//! | [`steps`] | the daemon killed at each step, with CRIU itself |

pub(crate) mod faults;
pub(crate) mod refused;
mod steps;

use std::path::{Path, PathBuf};
use std::process::Command;

use criox_cri::v1::SecurityProfile;
use criox_cri::v1::security_profile::ProfileType;
use criox_cri::v1::{
    CheckpointContainerRequest, CheckpointPodRequest, ContainerConfig, ContainerState,
    ContainerStatusRequest, PodSandboxConfig, RestorePodRequest, RestorePodResponse,
};
use serde_json::Value;
use testkit::daemon::{Builder, peer};
use testkit::harness::{Test, skip};
use testkit::{Compression, Cri, Daemon, ImageBuilder, Node, Result, Shared, wait_for};
use tonic::{Code, Status};

use crate::pod::{Pod, security};

pub(crate) const TESTS: &[Test] = &[
    ("crun: a checkpointed container goes on, and a restored one goes on from there", || {
        REAL.test(|node| archive(node, "crun"))
    }),
    ("runc: a checkpointed container goes on, and a restored one goes on from there", || {
        REAL.test(|node| archive(node, "runc"))
    }),
    ("an image made of an archive is restored as the archive is", || REAL.test(image)),
    ("a pod's containers are captured as of one moment, and a new pod goes on from there", || {
        REAL.test(|node| pod(node, "crun"))
    }),
    ("runc: a pod goes on from its checkpoint", || REAL.test(|node| pod(node, "runc"))),
    ("a checkpoint gets no user, capability or filter that the request does not give", || REAL.test(policy)),
    ("a container that waits to go on is stopped and removed like any other", || REAL.test(unstarted)),
    ("a container that waits to go on outlives the daemon", survives),
    ("a kill at each step of a checkpoint or a restore is mended by a restart", steps::killed),
];

/// A daemon that makes and restores checkpoints with CRIU.
pub(crate) static REAL: Shared = Shared::new(|| {
    Node::start(|registry| with_criu(Daemon::builder().registry(registry), &criu()?)?.start())
});

/// The end of the daemons of these tests.
pub(crate) fn finish() -> Result {
    REAL.finish()?;
    faults::finish()
}

/// CRIU's own directory; skipped where it can't do its work.
pub(crate) fn criu() -> Result<PathBuf> {
    if let Some(reason) = testkit::cgroups::no_restores() {
        return Err(skip(reason));
    }
    let search = std::env::var("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = peer("criu").into_iter().collect();
    places.extend(search.split(':').map(|dir| Path::new(dir).join("criu")).filter(|path| path.is_file()));
    let program =
        places.into_iter().next().ok_or_else(|| skip("there is no CRIU: run scripts/peers criu"))?;
    let checked = Command::new(&program).arg("check").output()?;
    if !checked.status.success() {
        let said =
            String::from_utf8_lossy(&checked.stderr).lines().next_back().unwrap_or_default().to_owned();
        return Err(skip(format!("criu check fails here: {said}")));
    }
    Ok(program.parent().ok_or("CRIU has a directory")?.to_owned())
}

/// Handlers crun and runc of which each has checkpoints, and a CRIU in PATH.
pub(crate) fn with_criu(builder: Builder, directory: &Path) -> Result<Builder> {
    let search = std::env::var("PATH").unwrap_or_default();
    // Without a path they are looked up by their names.
    let newest = |name: &str| peer(name).unwrap_or_default();
    Ok(builder
        .runtime("crun", newest("crun"))
        .runtime("runc", newest("runc"))
        .env("PATH", &format!("{}:{search}", directory.display()))
        .drop_in("[crio.checkpoint_restore]\ncontainer_level_enabled = \"checkpoint_restore\"\n"))
}

/// Counts on its standard output; before, it changes files of its image.
pub(crate) const COUNT: &str =
    "echo new > /made; rm /etc/hello; n=0; while :; do n=$((n+1)); echo $n; sleep 0.05; done";

pub(crate) fn counting(cri: &Cri, name: &str, image: &str) -> ContainerConfig {
    cri.container(name, image, &["sh", "-c", COUNT])
}

/// The numbers that a container has said.
pub(crate) fn numbers(cri: &Cri, id: &str) -> Result<Vec<u64>> {
    Ok(crate::pod::stream(&cri.log(id)?, "stdout").lines().filter_map(|line| line.parse().ok()).collect())
}

pub(crate) fn last(cri: &Cri, id: &str) -> Result<u64> {
    Ok(numbers(cri, id)?.last().copied().unwrap_or(0))
}

/// Waits until it has counted on, which it does twenty times a second unless it is frozen.
pub(crate) fn counts_on(cri: &Cri, id: &str) -> Result<u64> {
    let before = last(cri, id)?;
    wait_for("the container to count on", crate::pod::LIMIT, || {
        let now = last(cri, id)?;
        Ok((now > before + 2).then_some(now))
    })
}

pub(crate) fn checkpoint(cri: &Cri, id: &str, location: &Path, timeout: i64) -> Result<(), Status> {
    let request = CheckpointContainerRequest {
        container_id: id.to_owned(),
        location: location.display().to_string(),
        timeout,
    };
    cri.call(cri.runtime().checkpoint_container(request)).map(drop)
}

pub(crate) fn checkpoint_pod(cri: &Cri, pod: &str, ids: &[&str], output: &Path) -> Result<(), Status> {
    let request = CheckpointPodRequest {
        pod_sandbox_id: pod.to_owned(),
        output_path: output.display().to_string(),
        container_ids: ids.iter().map(|&id| id.to_owned()).collect(),
        ..Default::default()
    };
    cri.call(cri.runtime().checkpoint_pod(request)).map(drop)
}

pub(crate) fn restore_pod(node: &Node, request: RestorePodRequest) -> Result<RestorePodResponse, Status> {
    let answer = node.cri.call(node.cri.runtime().restore_pod(request))?;
    node.daemon.note(&answer.pod_sandbox_id);
    for container in &answer.restored_containers {
        node.daemon.note(&container.container_id);
    }
    Ok(answer)
}

/// A new directory of the caller's.
pub(crate) fn directory(daemon: &Daemon, name: &str) -> Result<PathBuf> {
    let path = daemon.dir().join("checkpoints").join(name);
    std::fs::create_dir_all(&path)?;
    Ok(path)
}

fn run_as<'a>(node: &'a Node, config: PodSandboxConfig, handler: &str) -> Result<Pod<'a>> {
    let id = node.cri.run_pod_as(&config, handler)?;
    Ok(Pod { cri: &node.cri, image: &node.image, id, config })
}

/// `info` of a verbose ContainerStatus.
fn info(node: &Node, id: &str) -> Result<Value> {
    let request = ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
    let answer = node.cri.call(node.cri.runtime().container_status(request))?;
    Ok(serde_json::from_str(answer.info.get("info").ok_or("verbose status has info")?)?)
}

/// What it has counted is more than `before` and goes on, and its files are as they were.
fn goes_on(node: &Node, pod: &Pod<'_>, id: &str, before: u64, after: u64) -> Result {
    wait_for("the restored container to count", crate::pod::LIMIT, || {
        Ok((numbers(&node.cri, id)?.len() > 3).then_some(()))
    })?;
    let said = numbers(&node.cri, id)?;
    assert!(
        said[0] > before && said[0] <= after + 1,
        "from between {before} and {after} it went on with {}",
        said[0]
    );
    assert!(said.windows(2).all(|pair| pair[1] == pair[0] + 1), "{said:?}");
    assert_eq!(pod.exec(id, "cat /made; test -e /etc/hello || echo gone")?, "new\ngone");
    Ok(())
}

fn archive(node: &Node, handler: &str) -> Result {
    let cri = &node.cri;
    let first = run_as(node, cri.pod(&format!("checkpoint-{handler}")), handler)?;
    let mut config = counting(cri, "c", &node.image);
    filtered(&mut config);
    let id = first.start(&config)?;
    let before = counts_on(cri, &id)?;
    let location = directory(&node.daemon, handler)?.join("archive.tar");
    checkpoint(cri, &id, &location, 0)?;
    let after = last(cri, &id)?;
    counts_on(cri, &id)?;
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&location)?.permissions());
    assert_eq!(mode & 0o7777, 0o600);
    assert!(!info(node, &id)?["checkpointedAt"].as_str().ok_or("a time")?.is_empty());
    assert_eq!(info(node, &id)?["restored"], false);
    let captures = node.daemon.root().join("criox/captures");
    assert_eq!(std::fs::read_dir(captures)?.count(), 0, "nothing of the capture stays");
    let images = cri.list_images()?.len();

    let second = run_as(node, cri.pod(&format!("restore-{handler}")), handler)?;
    let mut config = cri.container("again", &location.display().to_string(), &[]);
    filtered(&mut config);
    config.labels.insert("from".into(), "request".into());
    let again = second.create(&config)?;
    let status = cri.status(&again)?;
    assert_eq!(status.state(), ContainerState::ContainerCreated);
    assert_eq!(status.labels.get("from").map(String::as_str), Some("request"));
    assert_eq!(
        crate::socket::get(node, &format!("/containers/{again}"))?.1["pid"],
        0,
        "it has no process yet"
    );
    // What it goes on from may go away.
    std::fs::remove_file(&location)?;
    cri.start(&again)?;
    goes_on(node, &second, &again, before, after)?;
    assert_eq!(info(node, &again)?["restored"], true);
    assert_eq!(cri.list_images()?.len(), images, "a restore gives no names to images");
    cri.stop(&again, 0)?;
    assert_eq!(cri.status(&again)?.exit_code, 137);
    counts_on(cri, &id)?;
    Ok(())
}

/// With the runtime's own filter of system calls.
fn filtered(config: &mut ContainerConfig) {
    let profile = SecurityProfile { profile_type: ProfileType::RuntimeDefault.into(), ..Default::default() };
    security(config).seccomp = Some(profile);
}

fn image(node: &Node) -> Result {
    let cri = &node.cri;
    let first = run_as(node, cri.pod("checkpoint-image"), "crun")?;
    let id = first.start(&counting(cri, "c", &node.image))?;
    let before = counts_on(cri, &id)?;
    let location = directory(&node.daemon, "image")?.join("archive.tar");
    checkpoint(cri, &id, &location, 100)?;
    let after = last(cri, &id)?;
    let image = ImageBuilder::new()
        .raw_layer(std::fs::read(&location)?, Compression::Gzip)
        .annotation("io.kubernetes.cri-o.annotations.checkpoint.name", "c")
        .build()?
        .push(&node.registry, "tests/checkpoint", "1")?;
    cri.pull(&image)?;
    let config = cri.container("again", &image, &[]);
    let again = first.start(&config)?;
    goes_on(node, &first, &again, before, after)?;
    // A retry of what has started is no second container.
    assert!(first.create(&config).is_err());
    Ok(cri.remove_image(&image)?)
}

fn pod(node: &Node, handler: &str) -> Result {
    let cri = &node.cri;
    let first = run_as(node, cri.pod(&format!("pod-{handler}")), handler)?;
    let configs = ["a", "b"].map(|name| counting(cri, name, &node.image));
    let ids = configs.iter().map(|config| first.start(config)).collect::<Result<Vec<_>>>()?;
    // Not part of the checkpoint.
    let other = first.service("other")?;
    let before = ids.iter().map(|id| counts_on(cri, id)).collect::<Result<Vec<_>>>()?;
    let output = directory(&node.daemon, &format!("pod-{handler}"))?;
    checkpoint_pod(cri, &first.id, &[&ids[0], &ids[1]], &output)?;
    let after = ids.iter().map(|id| last(cri, id)).collect::<Result<Vec<_>>>()?;
    for id in &ids {
        counts_on(cri, id)?;
        assert!(!info(node, id)?["checkpointedAt"].as_str().ok_or("a time")?.is_empty());
    }
    assert_eq!(info(node, &other)?["checkpointedAt"], "");
    let refused = checkpoint_pod(cri, &first.id, &[&ids[0]], &output);
    assert!(refused.is_err_and(|status| status.message().contains("not empty")));

    let config = cri.pod(&format!("pod-restored-{handler}"));
    let request = RestorePodRequest {
        checkpoint_path: output.display().to_string(),
        config: Some(config.clone()),
        runtime_handler: handler.to_owned(),
        container_configs: configs.to_vec(),
        ..Default::default()
    };
    let answer = restore_pod(node, request.clone())?;
    assert_eq!(restore_pod(node, request)?, answer, "a retry is given what the first call made");
    // What it goes on from may go away.
    std::fs::rename(&output, output.with_extension("gone"))?;
    let second = Pod { cri, image: &node.image, id: answer.pod_sandbox_id.clone(), config };
    let names: Vec<&str> = answer.restored_containers.iter().map(|made| made.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(cri.list(Some(&second.id))?.len(), 2);
    for (n, made) in answer.restored_containers.iter().enumerate() {
        let id = &made.container_id;
        assert_eq!(cri.status(id)?.state(), ContainerState::ContainerCreated);
        assert_eq!(
            crate::socket::get(node, &format!("/containers/{id}"))?.1["pid"],
            0,
            "it has no process yet"
        );
        assert!(numbers(cri, id)?.is_empty());
        cri.start(id)?;
        goes_on(node, &second, id, before[n], after[n])?;
    }
    Ok(())
}

fn policy(node: &Node) -> Result {
    let cri = &node.cri;
    let pod = run_as(node, cri.pod("checkpoint-policy"), "crun")?;
    let mut config = counting(cri, "c", &node.image);
    security(&mut config).capabilities.get_or_insert_default().add_capabilities = vec!["NET_RAW".into()];
    let id = pod.start(&config)?;
    counts_on(cri, &id)?;
    let location = directory(&node.daemon, "policy")?.join("archive.tar");
    checkpoint(cri, &id, &location, 0)?;
    let archive = location.display().to_string();
    let before = cri.list(None)?.len();
    for (field, change) in [
        ("run_as_user", user as fn(&mut ContainerConfig)),
        ("capabilities", no_capabilities),
        ("no_new_privs", |config| security(config).no_new_privs = true),
        ("seccomp", filtered),
        ("readonly_rootfs", |config| security(config).readonly_rootfs = true),
        ("config.tty", |config| config.tty = true),
        ("config.command", |config| config.command = vec!["sh".into(), "-c".into(), "other".into()]),
    ] {
        let mut config = cri.container("again", &archive, &[]);
        security(&mut config).capabilities.get_or_insert_default().add_capabilities = vec!["NET_RAW".into()];
        change(&mut config);
        let refused = pod.create(&config).err().ok_or_else(|| format!("{field} was not refused"))?;
        assert!(refused.to_string().contains(field), "{field}: {refused}");
        assert_eq!(cri.list(None)?.len(), before);
    }
    let intakes = node.daemon.root().join("criox/intakes");
    assert_eq!(std::fs::read_dir(intakes)?.count(), 0, "nothing of a refused checkpoint stays");
    Ok(())
}

fn user(config: &mut ContainerConfig) {
    security(config).run_as_user = Some(criox_cri::v1::Int64Value { value: 1000 });
}

fn no_capabilities(config: &mut ContainerConfig) {
    security(config).capabilities = None;
}

fn unstarted(node: &Node) -> Result {
    let cri = &node.cri;
    let pod = run_as(node, cri.pod("checkpoint-unstarted"), "crun")?;
    let id = pod.start(&counting(cri, "c", &node.image))?;
    counts_on(cri, &id)?;
    let location = directory(&node.daemon, "unstarted")?.join("archive.tar");
    checkpoint(cri, &id, &location, 0)?;
    let archive = location.display().to_string();
    let stopped = pod.create(&cri.container("stopped", &archive, &[]))?;
    cri.stop(&stopped, 5)?;
    assert_eq!(cri.status(&stopped)?.state(), ContainerState::ContainerExited);
    let late = cri.start(&stopped);
    assert!(late.is_err_and(|status| status.code() == Code::FailedPrecondition));
    cri.remove(&stopped)?;
    let removed = pod.create(&cri.container("removed", &archive, &[]))?;
    cri.remove(&removed)?;
    assert!(!node.daemon.root().join("criox/intakes").join(removed).exists());
    Ok(())
}

fn survives() -> Result {
    let criu = criu()?;
    let mut node = Node::start(|registry| with_criu(Daemon::builder().registry(registry), &criu)?.start())?;
    let config = node.cri.host_network_pod("checkpoint-survives");
    let id = node.cri.run_pod(&config)?;
    let (first, again) = {
        let pod = Pod { cri: &node.cri, image: &node.image, id: id.clone(), config: config.clone() };
        let first = pod.start(&counting(&node.cri, "c", &node.image))?;
        counts_on(&node.cri, &first)?;
        let location = directory(&node.daemon, "survives")?.join("archive.tar");
        checkpoint(&node.cri, &first, &location, 0)?;
        (first, pod.create(&node.cri.container("again", &location.display().to_string(), &[]))?)
    };
    node.daemon.kill()?;
    node.daemon.start()?;
    node.cri = node.daemon.cri()?;
    assert_eq!(node.cri.status(&again)?.state(), ContainerState::ContainerCreated);
    node.cri.start(&again)?;
    counts_on(&node.cri, &again)?;
    counts_on(&node.cri, &first)?;
    node.daemon.finish()
}
