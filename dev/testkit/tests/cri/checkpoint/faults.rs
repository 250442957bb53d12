//! A CRIU that hangs, callers that don't wait, containers that are stopped meanwhile, a daemon that is killed: the
//! containers go on, and nothing is left.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use criox_cri::v1::CheckpointPodRequest;
use tempfile::TempDir;
use testkit::harness::Test;
use testkit::{Cri, Daemon, Node, Result, Shared, wait_for};
use tonic::Code;

use super::{checkpoint, checkpoint_pod, counting, counts_on, directory, last, with_criu};
use crate::pod::{LIMIT, Pod, refused};

pub(crate) const TESTS: &[Test] = &[
    ("a CRIU that hangs ends with the time of the call, and the container goes on", || HANGING.test(hung)),
    ("a caller whose deadline has passed leaves no frozen pod and no file", || HANGING.test(deadline)),
    ("a caller that goes away leaves no frozen pod and no file", || HANGING.test(abandoned)),
    ("a stop does not wait for a checkpoint", || HANGING.test(stopped)),
    ("a pod that is removed does not wait for its checkpoint", || HANGING.test(removed)),
    ("a container is captured by one call at a time", || HANGING.test(twice)),
    (
        "kill -9 of the daemon over a pod's checkpoint: the pod goes on, and the files are gone after the restart",
        killed,
    ),
];

/// A daemon whose CRIU hangs.
pub(crate) static HANGING: Shared =
    Shared::new(|| Node::start(|registry| hanging(Daemon::builder().registry(registry))));

fn hanging(builder: testkit::daemon::Builder) -> Result<Daemon> {
    let criu = stand_in()?;
    let mut daemon = with_criu(builder, criu)?.start()?;
    daemon.watch(criu);
    Ok(daemon)
}

/// What [`stand_in`] has made, for its end.
static STAND_IN: Mutex<Option<TempDir>> = Mutex::new(None);

/// Ends the daemon, and removes the stand-in: what is in a `static` is never dropped.
pub(crate) fn finish() -> Result {
    let finished = HANGING.finish();
    if let Some(dir) = STAND_IN.lock().unwrap_or_else(PoisonError::into_inner).take() {
        dir.close()?;
    }
    finished
}

/// The directory of a program `criu` that hangs in it.
pub(crate) fn stand_in() -> Result<&'static Path> {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    if DIRECTORY.get().is_none() {
        let dir = tempfile::Builder::new().prefix("criox-criu-").tempdir()?;
        let (text, path) = (dir.path().join("text"), dir.path().join("criu"));
        let script = "#!/bin/sh\ntrap '' TERM\ncd \"$(dirname \"$0\")\"\nexec sleep 1000\n";
        std::fs::OpenOptions::new().write(true).create_new(true).open(&text)?.write_all(script.as_bytes())?;
        // By another process: a descriptor of ours that a child inherits would keep the program from being started.
        let status = Command::new("install").args(["-m", "755"]).arg(&text).arg(&path).status()?;
        assert!(status.success());
        drop(DIRECTORY.set(dir.path().to_owned()));
        *STAND_IN.lock().unwrap_or_else(PoisonError::into_inner) = Some(dir);
    }
    Ok(DIRECTORY.get().map(PathBuf::as_path).ok_or("the stand-in is there")?)
}

/// Waits until a container stands still: it counts twenty times a second otherwise.
fn frozen(cri: &Cri, id: &str) -> Result {
    wait_for("the container to be frozen", LIMIT, || {
        let before = last(cri, id)?;
        std::thread::sleep(Duration::from_millis(400));
        Ok((before > 0 && last(cri, id)? == before).then_some(()))
    })
}

fn counter<'a>(node: &'a Node, name: &str) -> Result<(Pod<'a>, String)> {
    let pod = Pod::without_network(node, name)?;
    let id = pod.start(&counting(&node.cri, "c", &node.image))?;
    counts_on(&node.cri, &id)?;
    Ok((pod, id))
}

/// Nothing is in a directory; what removes it may just be at work.
fn empty(path: &Path) -> Result {
    wait_for(&format!("{} to be empty", path.display()), LIMIT, || {
        Ok((std::fs::read_dir(path)?.next().is_none()).then_some(()))
    })
}

/// No process of the stand-in is left.
fn no_criu(node: &Node) -> Result {
    wait_for("CRIU to be dead", LIMIT, || {
        let left = node.daemon.leftovers();
        let ours = stand_in()?.display().to_string();
        Ok((!left.iter().any(|line| line.contains("sleep 1000") || line.contains(&ours))).then_some(()))
    })
}

fn hung(node: &Node) -> Result {
    for handler in ["crun", "runc"] {
        let config = node.cri.host_network_pod(&format!("hung-{handler}"));
        let id = node.cri.run_pod_as(&config, handler)?;
        let pod = Pod { cri: &node.cri, image: &node.image, id, config };
        let id = pod.start(&counting(&node.cri, "c", &node.image))?;
        counts_on(&node.cri, &id)?;
        let place = directory(&node.daemon, &format!("hung-{handler}"))?;
        let begun = Instant::now();
        let said = refused(checkpoint(&node.cri, &id, &place.join("a.tar"), 2), Code::DeadlineExceeded)?;
        assert!(begun.elapsed() < Duration::from_secs(12), "{handler}: {:?}", begun.elapsed());
        assert!(said.contains(&id) && said.contains("2.0 s"), "{handler}: {said}");
        counts_on(&node.cri, &id)?;
        empty(&place)?;
        empty(&node.daemon.root().join("criox/captures"))?;
        no_criu(node)?;
    }
    Ok(())
}

fn deadline(node: &Node) -> Result {
    let (pod, id) = counter(node, "deadline")?;
    let output = directory(&node.daemon, "deadline")?;
    let mut request = tonic::Request::new(CheckpointPodRequest {
        pod_sandbox_id: pod.id.clone(),
        output_path: output.display().to_string(),
        container_ids: vec![id.clone()],
        ..Default::default()
    });
    request.set_timeout(Duration::from_secs(8));
    let said = refused(node.cri.call(node.cri.runtime().checkpoint_pod(request)), Code::DeadlineExceeded)?;
    assert!(said.contains(&pod.id), "the answer is ours, and comes before the deadline: {said}");
    counts_on(&node.cri, &id)?;
    assert!(std::fs::read_dir(&output)?.next().is_none(), "removed before the answer");
    no_criu(node)
}

fn abandoned(node: &Node) -> Result {
    let (pod, id) = counter(node, "abandoned")?;
    let output = directory(&node.daemon, "abandoned")?;
    let client = node.daemon.cri()?;
    let mut runtime = client.runtime();
    let request = CheckpointPodRequest {
        pod_sandbox_id: pod.id.clone(),
        output_path: output.display().to_string(),
        container_ids: vec![id.clone()],
        ..Default::default()
    };
    // Dropped in the middle, as when the client's process ends.
    let dropped = client.call(async move {
        let wait = tokio::time::timeout(Duration::from_secs(3), runtime.checkpoint_pod(request)).await;
        Ok(tonic::Response::new(wait.is_err()))
    })?;
    assert!(dropped);
    drop(client);
    counts_on(&node.cri, &id)?;
    empty(&output)?;
    no_criu(node)
}

/// Runs a call in a thread of its own while `meanwhile` looks on; what the call said.
fn beside(
    node: &Node,
    call: impl FnOnce(&Cri) -> Result<(), tonic::Status> + Send + 'static,
    meanwhile: impl FnOnce() -> Result,
) -> Result<Result<(), tonic::Status>> {
    let client = node.daemon.cri()?;
    let call = std::thread::spawn(move || call(&client));
    let looked = meanwhile();
    let said = call.join().map_err(|_| "the call panicked")?;
    looked?;
    Ok(said)
}

fn stopped(node: &Node) -> Result {
    let (_pod, id) = counter(node, "stopped")?;
    let location = directory(&node.daemon, "stopped")?.join("a.tar");
    let (asked, place) = (id.clone(), location.clone());
    let said = beside(
        node,
        move |cri| checkpoint(cri, &asked, &place, 100),
        || {
            frozen(&node.cri, &id)?;
            let begun = Instant::now();
            node.cri.stop(&id, 0)?;
            assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
            Ok(())
        },
    )?;
    assert!(said.is_err() && !location.exists(), "{said:?}");
    no_criu(node)
}

fn removed(node: &Node) -> Result {
    let (pod, id) = counter(node, "removed")?;
    let output = directory(&node.daemon, "removed")?;
    let (sandbox, asked, place) = (pod.id.clone(), id.clone(), output.clone());
    let said = beside(
        node,
        move |cri| checkpoint_pod(cri, &sandbox, &[&asked], &place),
        || {
            frozen(&node.cri, &id)?;
            let begun = Instant::now();
            node.cri.remove_pod(&pod.id)?;
            assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
            Ok(())
        },
    )?;
    assert!(said.is_err(), "{said:?}");
    empty(&output)?;
    no_criu(node)
}

fn twice(node: &Node) -> Result {
    let (_pod, id) = counter(node, "twice")?;
    let place = directory(&node.daemon, "twice")?;
    let (asked, first) = (id.clone(), place.join("first.tar"));
    let said = beside(
        node,
        move |cri| checkpoint(cri, &asked, &first, 6),
        || {
            frozen(&node.cri, &id)?;
            let second = checkpoint(&node.cri, &id, &place.join("second.tar"), 6);
            let said = refused(second, Code::FailedPrecondition)?;
            assert!(said.contains("already"), "{said}");
            Ok(())
        },
    )?;
    refused(said, Code::DeadlineExceeded)?;
    counts_on(&node.cri, &id)?;
    empty(&place)
}

fn killed() -> Result {
    let mut node = Node::start(|registry| hanging(Daemon::builder().registry(registry)))?;
    let config = node.cri.host_network_pod("killed");
    let sandbox = node.cri.run_pod(&config)?;
    let mut ids = Vec::new();
    for name in ["a", "b"] {
        let id = node.cri.create(&sandbox, &counting(&node.cri, name, &node.image), &config)?;
        node.cri.start(&id)?;
        ids.push(id);
    }
    for id in &ids {
        counts_on(&node.cri, id)?;
    }
    let logs: Vec<String> = ids.iter().map(|id| Ok(node.cri.status(id)?.log_path)).collect::<Result<_>>()?;
    let output = directory(&node.daemon, "killed")?;
    let client = node.daemon.cri()?;
    let (asked, place, selected) = (sandbox.clone(), output.clone(), ids.clone());
    let call = std::thread::spawn(move || {
        let ids: Vec<&str> = selected.iter().map(String::as_str).collect();
        checkpoint_pod(&client, &asked, &ids, &place)
    });
    for id in &ids {
        frozen(&node.cri, id)?;
    }
    assert!(output.join("containers/a").is_dir());
    node.daemon.kill()?;
    let begun = Instant::now();
    assert!(call.join().map_err(|_| "the call panicked")?.is_err());
    for log in &logs {
        let length = std::fs::metadata(log)?.len();
        wait_for("the pod to go on without the daemon", Duration::from_secs(5), || {
            Ok((std::fs::metadata(log)?.len() > length).then_some(()))
        })?;
    }
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    node.daemon.start()?;
    node.cri = node.daemon.cri()?;
    empty(&output)?;
    for id in &ids {
        counts_on(&node.cri, id)?;
    }
    no_criu(&node)?;
    node.daemon.finish()
}
