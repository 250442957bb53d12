//! States, and requests that are repeated or come too late.

use std::time::Duration;

use criox_cri::v1::{ContainerState, PodSandboxState, PortMapping, ReopenContainerLogRequest};
use testkit::harness::Test;
use testkit::{Node, Result};
use tonic::Code;

use crate::NODE;
use crate::pod::{LIMIT, Pod, kill, refused};

pub(crate) const TESTS: &[Test] = &[
    ("stop and remove of what never was are success", || NODE.test(unknown)),
    ("stop and remove can be repeated", || NODE.test(repeated)),
    ("what does not exist is NotFound", || NODE.test(not_found)),
    ("a container is created, runs and exits, with rising times", || NODE.test(states)),
    ("start can be repeated, but not after the exit", || NODE.test(start_again)),
    ("a stopped pod is not ready and takes no container", || NODE.test(stopped_pod)),
    ("a pod is removed with what runs in it", || NODE.test(removed_with_containers)),
    ("a running container is removed by force", || NODE.test(removed_by_force)),
    ("a created container that never ran is stopped and removed", || NODE.test(never_ran)),
    ("a grace of more seconds than a clock counts can still be cut short", || NODE.test(endless_grace)),
    ("a failed sandbox leaves no dead monitor to the daemon", || NODE.test(no_zombie)),
    ("an ID can be shortened as long as it is one's own", || NODE.test(prefixes)),
];

const UNKNOWN: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn unknown(node: &Node) -> Result {
    for id in [UNKNOWN, "nonsense", "../../etc"] {
        node.cri.stop(id, 5)?;
        node.cri.remove(id)?;
        node.cri.stop_pod(id)?;
        node.cri.remove_pod(id)?;
    }
    Ok(())
}

fn repeated(node: &Node) -> Result {
    let pod = Pod::run(node, "repeated")?;
    let container = pod.service("c")?;
    for _ in 0..3 {
        node.cri.stop(&container, 10)?;
    }
    assert_eq!(node.cri.status(&container)?.exit_code, 0);
    for _ in 0..3 {
        node.cri.remove(&container)?;
    }
    for _ in 0..3 {
        node.cri.stop_pod(&pod.id)?;
    }
    for _ in 0..3 {
        node.cri.remove_pod(&pod.id)?;
    }
    // The kubelet's usual order after its own restart.
    node.cri.stop(&container, 0)?;
    node.cri.stop_pod(&pod.id)?;
    Ok(())
}

fn not_found(node: &Node) -> Result {
    let cri = &node.cri;
    for id in [UNKNOWN, "nonsense", ""] {
        let mut messages = vec![
            refused(cri.status(id), Code::NotFound)?,
            refused(cri.pod_status(id), Code::NotFound)?,
            refused(cri.start(id), Code::NotFound)?,
            refused(cri.exec(id, &["true"], 5), Code::NotFound)?,
            refused(
                cri.create(id, &cri.container("c", &node.image, &["true"]), &cri.pod("p")),
                Code::NotFound,
            )?,
        ];
        let reopen = ReopenContainerLogRequest { container_id: id.to_owned() };
        messages.push(refused(cri.call(cri.runtime().reopen_container_log(reopen)), Code::NotFound)?);
        for message in messages {
            assert!(message.contains(id), "{message}");
        }
    }
    Ok(())
}

fn states(node: &Node) -> Result {
    let pod = Pod::without_network(node, "states")?;
    let id = pod.create(&pod.shell("c", "sleep 0.3; exit 9"))?;
    let created = node.cri.status(&id)?;
    assert_eq!(created.state(), ContainerState::ContainerCreated);
    assert!(created.created_at > 1_700_000_000_000_000_000, "nanoseconds: {}", created.created_at);
    assert_eq!((created.started_at, created.finished_at), (0, 0));
    node.cri.start(&id)?;
    let running = node.cri.status(&id)?;
    assert_eq!(running.state(), ContainerState::ContainerRunning);
    assert!(running.started_at >= running.created_at && running.finished_at == 0, "{running:?}");
    let exited = node.cri.wait_state(&id, ContainerState::ContainerExited, LIMIT)?;
    assert!(exited.finished_at - exited.started_at > 200_000_000, "{exited:?}");
    assert_eq!((exited.exit_code, exited.reason.as_str()), (9, "Error"));
    let completed = pod.start(&pod.shell("ok", "true"))?;
    let completed = node.cri.wait_state(&completed, ContainerState::ContainerExited, LIMIT)?;
    assert_eq!((completed.exit_code, completed.reason.as_str()), (0, "Completed"));
    assert!(completed.created_at > exited.created_at, "the kubelet sorts by it");
    let killed = pod.service("killed")?;
    kill(node, &killed)?;
    assert_eq!(node.cri.wait_state(&killed, ContainerState::ContainerExited, LIMIT)?.exit_code, 137);
    // What the kubelet can't do without.
    let status = node.cri.status(&completed.id)?;
    assert_eq!(status.image.map(|image| image.image), Some(node.image.clone()));
    assert_eq!(status.log_path, format!("{}/ok/0.log", pod.config.log_directory));
    let image = node.cri.image(&node.image)?.ok_or("the image is there")?;
    assert_eq!(status.image_id, image.id);
    assert_eq!(image.repo_digests, [status.image_ref]);
    Ok(())
}

fn start_again(node: &Node) -> Result {
    let pod = Pod::without_network(node, "start-again")?;
    let id = pod.service("c")?;
    node.cri.start(&id)?;
    node.cri.stop(&id, 10)?;
    let message = refused(node.cri.start(&id), Code::FailedPrecondition)?;
    assert!(message.contains(&id), "{message}");
    Ok(())
}

fn stopped_pod(node: &Node) -> Result {
    let pod = Pod::run(node, "stopped")?;
    let ip = node.cri.pod_status(&pod.id)?.network.ok_or("a network")?.ip;
    assert!(!ip.is_empty());
    let id = pod.service("c")?;
    node.cri.stop_pod(&pod.id)?;
    assert_eq!(node.cri.pod_status(&pod.id)?.state(), PodSandboxState::SandboxNotready);
    let status = node.cri.status(&id)?;
    assert_eq!(status.state(), ContainerState::ContainerExited);
    assert!(status.finished_at > 0);
    let message =
        refused(node.cri.create(&pod.id, &pod.shell("late", "true"), &pod.config), Code::FailedPrecondition)?;
    assert!(message.contains(&pod.id), "{message}");
    assert!(!std::path::Path::new(&pod.config.log_directory).join("late/0.log").exists());
    // The address is free again: the leak check of the daemon sees leases.
    assert_eq!(node.daemon.leftovers().iter().filter(|line| line.starts_with("lease")).count(), 0);
    Ok(())
}

fn removed_with_containers(node: &Node) -> Result {
    let pod = Pod::run(node, "removed")?;
    let ids = [pod.service("a")?, pod.service("b")?, pod.create(&pod.shell("c", "true"))?];
    node.cri.remove_pod(&pod.id)?;
    for id in &ids {
        refused(node.cri.status(id), Code::NotFound)?;
    }
    assert!(node.cri.list(None)?.is_empty() && node.cri.list_pods()?.is_empty());
    // Logs are the kubelet's.
    assert!(std::path::Path::new(&pod.config.log_directory).join("a/0.log").exists());
    Ok(())
}

fn removed_by_force(node: &Node) -> Result {
    let pod = Pod::without_network(node, "by-force")?;
    let id = pod.up(&pod.shell("c", "trap '' TERM INT; echo up; while :; do sleep 0.05; done"))?;
    let begun = std::time::Instant::now();
    node.cri.remove(&id)?;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    refused(node.cri.status(&id), Code::NotFound)?;
    Ok(())
}

fn never_ran(node: &Node) -> Result {
    let pod = Pod::without_network(node, "never-ran")?;
    let stopped = pod.create(&pod.shell("a", "true"))?;
    let removed = pod.create(&pod.shell("b", "true"))?;
    let begun = std::time::Instant::now();
    node.cri.stop(&stopped, 30)?;
    node.cri.remove(&removed)?;
    // Its process is the runtime's: no grace is waited for.
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(node.cri.status(&stopped)?.state(), ContainerState::ContainerExited);
    refused(node.cri.status(&removed), Code::NotFound)?;
    // The answer comes after the container has left the lists, every time.
    for _ in 0..20 {
        let removed = pod.create(&pod.shell("c", "true"))?;
        node.cri.remove(&removed)?;
        assert!(node.cri.list(None)?.iter().all(|container| container.id != removed));
    }
    Ok(())
}

fn prefixes(node: &Node) -> Result {
    let pod = Pod::without_network(node, "prefixes")?;
    let id = pod.create(&pod.shell("c", "true"))?;
    assert_eq!(node.cri.status(&id[..12])?.id, id);
    assert_eq!(node.cri.pod_status(&pod.id[..12])?.id, pod.id);
    node.cri.remove(&id[..12])?;
    refused(node.cri.status(&id), Code::NotFound)?;
    Ok(())
}

/// A pod's `terminationGracePeriodSeconds` is any number of 64 bits.
fn endless_grace(node: &Node) -> Result {
    let pod = Pod::without_network(node, "endless-grace")?;
    let id = pod.up(&pod.shell("deaf", "echo up; trap '' TERM; while :; do sleep 0.05; done"))?;
    std::thread::scope(|scope| {
        let patient = scope.spawn(|| node.cri.stop(&id, i64::MAX));
        std::thread::sleep(Duration::from_millis(300));
        let running = node.cri.status(&id)?.state() == ContainerState::ContainerRunning;
        node.cri.stop(&id, 0)?;
        patient.join().map_err(|_| "the patient stop panicked")??;
        assert!(running, "the first stop waits");
        assert_eq!(node.cri.status(&id)?.exit_code, 137);
        Ok(())
    })
}

fn no_zombie(node: &Node) -> Result {
    let mut config = node.cri.pod("no-port");
    config.port_mappings =
        vec![PortMapping { container_port: 80, host_port: 70_000, ..PortMapping::default() }];
    refused(node.cri.run_pod(&config), Code::InvalidArgument)?;
    let daemon = node.daemon.pid().ok_or("the daemon runs")?;
    let mut dead = Vec::new();
    for thread in std::fs::read_dir(format!("/proc/{daemon}/task"))?.flatten() {
        let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace() {
            let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            dead.extend((stat.contains("(criox-monitor)") && stat.contains(") Z ")).then_some(stat));
        }
    }
    assert!(dead.is_empty(), "{dead:?}");
    Ok(())
}
