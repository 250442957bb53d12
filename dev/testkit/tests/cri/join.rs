//! Creations that are retried: a retry joins the one in flight, or gets what it made.

use std::path::Path;
use std::time::Duration;

use criox_cri::v1::{
    ContainerConfig, CreateContainerRequest, KeyValue, Mount, PodSandboxConfig, RunPodSandboxRequest,
};
use testkit::harness::Test;
use testkit::{Cri, Node, Result, wait_for};
use tonic::Code;

use crate::NODE;
use crate::pod::{LIMIT, Pod, refused, security};
use crate::socket::get;

pub(crate) const TESTS: &[Test] = &[
    ("fifty identical RunPodSandbox at once make one sandbox", || NODE.test(fifty_pods)),
    ("twenty identical CreateContainer at once make one container", || NODE.test(twenty_containers)),
    ("a retried CreateContainer is the same in another order and with another termination log", || {
        NODE.test(kubelets_retry)
    }),
    ("a RunPodSandbox whose client went away is found by the retry", || NODE.test(cancelled_pod)),
    ("a container that no client was given is in no list, and the retry gets it", || {
        NODE.test(cancelled_container)
    }),
    ("a container that nobody was given makes way for a changed one", || NODE.test(changed_unclaimed)),
    ("a container that was handed over is named with the fields that differ", || NODE.test(changed_claimed)),
    ("a sandbox that was handed over is named with the fields that differ", || NODE.test(changed_pod)),
    ("a failed creation leaves no log file", || NODE.test(no_log)),
    ("the name of a removed container and of a removed pod can be used again", || NODE.test(name_again)),
];

fn fifty_pods(node: &Node) -> Result {
    let config = node.cri.pod("fifty");
    let ids: Vec<String> = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..50).map(|_| scope.spawn(|| node.cri.run_pod(&config))).collect();
        calls.into_iter().map(|call| call.join().expect("no panic")).collect::<Result<_, _>>()
    })?;
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!(node.cri.list_pods()?.len(), 1);
    // And once more when all is over.
    assert_eq!(node.cri.run_pod(&config)?, ids[0]);
    Ok(())
}

fn twenty_containers(node: &Node) -> Result {
    let pod = Pod::without_network(node, "twenty")?;
    let config = pod.shell("c", "true");
    let ids: Vec<String> = std::thread::scope(|scope| {
        let calls: Vec<_> =
            (0..20).map(|_| scope.spawn(|| node.cri.create(&pod.id, &config, &pod.config))).collect();
        calls.into_iter().map(|call| call.join().expect("no panic")).collect::<Result<_, _>>()
    })?;
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!(node.cri.list(None)?.len(), 1);
    Ok(())
}

/// As the kubelet makes it anew for each call.
fn kubelet_container(
    node: &Node,
    pod: &Pod,
    envs: &[(&str, &str)],
    termination: &str,
) -> Result<ContainerConfig> {
    let mut config = pod.shell("c", "true");
    config.envs =
        envs.iter().map(|&(key, value)| KeyValue { key: key.to_owned(), value: value.into() }).collect();
    let host = node.daemon.dir().join(termination);
    std::fs::OpenOptions::new().append(true).create(true).open(&host)?;
    let path = "/dev/termination-log";
    config.mounts.push(Mount {
        container_path: path.to_owned(),
        host_path: host.display().to_string(),
        ..Mount::default()
    });
    config.annotations.insert("io.kubernetes.container.terminationMessagePath".to_owned(), path.to_owned());
    Ok(config)
}

fn kubelets_retry(node: &Node) -> Result {
    let pod = Pod::without_network(node, "retry")?;
    let first = kubelet_container(node, &pod, &[("A", "1"), ("B", "2"), ("C", "3")], "1a2b3c4d")?;
    let retry = kubelet_container(node, &pod, &[("C", "3"), ("A", "1"), ("B", "2")], "99887766")?;
    let id = pod.create(&first)?;
    assert_eq!(pod.create(&retry)?, id);
    // The sandbox's configuration is built anew, too.
    let mut sandbox = pod.config.clone();
    sandbox.annotations.insert("kubernetes.io/config.seen".to_owned(), "later".to_owned());
    assert_eq!(node.cri.create(&pod.id, &retry, &sandbox)?, id);
    assert_eq!(node.cri.run_pod(&sandbox)?, pod.id);
    Ok(())
}

/// A call whose client loses patience, as a cancelled one.
fn abandon_pod(cri: &Cri, config: &PodSandboxConfig, patience: Duration) -> Result {
    let request = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
    let mut runtime = cri.runtime();
    let answer = cri.call(async {
        let call = runtime.run_pod_sandbox(request);
        tokio::time::timeout(patience, call).await.unwrap_or_else(|_| Err(tonic::Status::cancelled("")))
    });
    refused(answer, Code::Cancelled).map(drop)
}

fn abandon_container(pod: &Pod, config: &ContainerConfig, patience: Duration) -> Result {
    let request = CreateContainerRequest {
        pod_sandbox_id: pod.id.clone(),
        config: Some(config.clone()),
        sandbox_config: Some(pod.config.clone()),
    };
    let mut runtime = pod.cri.runtime();
    let answer = pod.cri.call(async {
        let call = runtime.create_container(request);
        tokio::time::timeout(patience, call).await.unwrap_or_else(|_| Err(tonic::Status::cancelled("")))
    });
    refused(answer, Code::Cancelled).map(drop)
}

fn cancelled_pod(node: &Node) -> Result {
    let config = node.cri.pod("cancelled");
    abandon_pod(&node.cri, &config, Duration::from_millis(20))?;
    let begun = wait_for("the sandbox to be under way", LIMIT, || {
        Ok(containers_of_cgroup(node)?.into_iter().next())
    })?;
    let id = node.cri.run_pod(&config)?;
    assert_eq!(id, begun);
    assert_eq!(node.cri.list_pods()?.len(), 1);
    Ok(())
}

/// IDs of the groups `crio-<id>` that lie below the pods' parent.
fn containers_of_cgroup(node: &Node) -> Result<Vec<String>> {
    let parent = testkit::cgroups::parent(node.daemon.cgroup_parent(), "memory");
    let Ok(entries) = std::fs::read_dir(parent) else { return Ok(Vec::new()) };
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(names.filter_map(|name| name.strip_prefix("crio-").map(str::to_owned)).collect())
}

/// Abandons a creation and waits until it has gone on without its client; the container's ID.
pub(crate) fn unclaimed(node: &Node, pod: &Pod, config: &ContainerConfig) -> Result<String> {
    // On a slow node the call may not even have been sent.
    let mut patience = Duration::from_millis(10);
    let id = loop {
        abandon_container(pod, config, patience)?;
        let found = wait_for("the container's cgroup", LIMIT / 4, || {
            Ok(containers_of_cgroup(node)?.into_iter().find(|id| *id != pod.id))
        });
        match found {
            Ok(id) => break id,
            Err(error) if patience > Duration::from_millis(100) => return Err(error),
            Err(_) => patience *= 3,
        }
    };
    node.daemon.note(&id);
    wait_for("the container to be created", LIMIT, || {
        let (status, body) = get(node, &format!("/containers/{id}"))?;
        Ok((status == 200 && body["pid"].as_u64() > Some(0)).then_some(()))
    })?;
    Ok(id)
}

fn cancelled_container(node: &Node) -> Result {
    let pod = Pod::without_network(node, "cancelled")?;
    let config = pod.shell("c", "true");
    let id = unclaimed(node, &pod, &config)?;
    assert!(node.cri.list(None)?.is_empty(), "the kubelet would not adopt it");
    assert_eq!(pod.create(&config)?, id);
    assert_eq!(node.cri.list(None)?.len(), 1);
    Ok(())
}

fn changed_unclaimed(node: &Node) -> Result {
    let pod = Pod::without_network(node, "changed")?;
    let old = unclaimed(node, &pod, &pod.shell("c", "true"))?;
    let new = pod.create(&pod.shell("c", "false"))?;
    assert_ne!(new, old);
    assert_eq!(get(node, &format!("/containers/{old}"))?.0, 404);
    assert!(!containers_of_cgroup(node)?.contains(&old));
    assert_eq!(node.cri.list(None)?.len(), 1);
    Ok(())
}

fn changed_claimed(node: &Node) -> Result {
    let pod = Pod::without_network(node, "claimed")?;
    let config = pod.shell("c", "true");
    let id = pod.create(&config)?;
    let mut other = config.clone();
    other.args = vec!["more".to_owned()];
    other.working_dir = "/tmp".to_owned();
    let message = refused(node.cri.create(&pod.id, &other, &pod.config), Code::AlreadyExists)?;
    for part in [id.as_str(), "args", "working_dir"] {
        assert!(message.contains(part), "{message}");
    }
    assert!(!message.contains("mounts"), "{message}");
    // A number more is another container.
    other.metadata.get_or_insert_default().attempt = 1;
    other.log_path = "c/1.log".to_owned();
    assert_ne!(pod.create(&other)?, id);
    // One that has run is nobody's new container.
    node.cri.start(&id)?;
    node.cri.stop(&id, 5)?;
    refused(node.cri.create(&pod.id, &config, &pod.config), Code::AlreadyExists)?;
    Ok(())
}

fn changed_pod(node: &Node) -> Result {
    let pod = Pod::without_network(node, "changed-pod")?;
    let mut other = pod.config.clone();
    other.labels.insert("more".to_owned(), "labels".to_owned());
    let message = refused(node.cri.run_pod(&other), Code::AlreadyExists)?;
    assert!(message.contains(&pod.id) && message.contains("labels"), "{message}");
    let message = refused(node.cri.run_pod_as(&pod.config, "runc"), Code::AlreadyExists)?;
    assert!(message.contains("runtime_handler"), "{message}");
    node.cri.stop_pod(&pod.id)?;
    refused(node.cri.run_pod(&pod.config), Code::AlreadyExists)?;
    Ok(())
}

fn no_log(node: &Node) -> Result {
    let pod = Pod::without_network(node, "no-log")?;
    let mut bad_user = pod.shell("bad-user", "true");
    security(&mut bad_user).run_as_username = "nobody-knows".to_owned();
    let bad_command = node.cri.container("bad-command", &node.image, &["/no/such/program"]);
    for config in [bad_user, bad_command] {
        let error = pod.start(&config).err().ok_or("a container without a program or a user ran")?;
        let name = config.metadata.ok_or("a name")?.name;
        let directory = Path::new(&pod.config.log_directory).join(&name);
        let left: Vec<_> = std::fs::read_dir(&directory)?.flatten().map(|entry| entry.file_name()).collect();
        assert!(left.is_empty(), "{name}: {left:?} after {error}");
    }
    assert!(node.cri.list(None)?.is_empty());
    Ok(())
}

fn name_again(node: &Node) -> Result {
    let pod = Pod::without_network(node, "again")?;
    let config = pod.shell("c", "true");
    let first = pod.create(&config)?;
    node.cri.remove(&first)?;
    assert_ne!(pod.create(&config)?, first);
    node.cri.remove_pod(&pod.id)?;
    assert_ne!(node.cri.run_pod(&pod.config)?, pod.id);
    Ok(())
}
