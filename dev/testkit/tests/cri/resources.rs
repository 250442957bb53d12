//! Cgroups and limits, seen from the node.

use std::path::{Path, PathBuf};

use criox_cri::v1::{ContainerState, LinuxContainerResources, NamespaceMode};
use testkit::cgroups::{self, Limits};
use testkit::harness::Test;
use testkit::{Node, Result};

use crate::NODE;
use crate::pod::{LIMIT, Pod, kill, sandbox_namespaces};

pub(crate) const TESTS: &[Test] = &[
    ("containers' cgroups are crio-ID below the pod's parent, beside an empty one of the sandbox", || {
        NODE.test(names)
    }),
    ("memory, CPU and score of the request are in force", || NODE.test(limits)),
    ("a container that the kernel kills for memory says OOMKilled", || NODE.test(oom)),
    ("a process that dies of SIGKILL by itself is not OOMKilled", || NODE.test(no_oom)),
    ("a limit of memory that no container can live with is refused", || NODE.test(too_little_memory)),
    ("what a container left running in its cgroup dies with it", || NODE.test(whole_group)),
];

/// A controller's group of an ID.
fn group(node: &Node, controller: &str, id: &str) -> PathBuf {
    cgroups::group(node.daemon.cgroup_parent(), controller, id)
}

fn read(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(text.trim_end().to_owned())
}

fn names(node: &Node) -> Result {
    let pod = Pod::without_network(node, "cgroups")?;
    let id = pod.service("c")?;
    for controller in ["memory", "cpu", "devices", "pids"] {
        let processes = read(&group(node, controller, &id).join("cgroup.procs"))?;
        assert!(!processes.is_empty(), "{controller}");
    }
    for controller in ["memory", "cpu"] {
        assert_eq!(read(&group(node, controller, &pod.id).join("cgroup.procs"))?, "", "{controller}");
    }
    let mut names: Vec<String> = std::fs::read_dir(group(node, "memory", &id).parent().ok_or("a parent")?)?
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    let mut expected = vec![format!("crio-{id}"), format!("crio-{}", pod.id)];
    expected.sort();
    // The monitor is elsewhere: the kubelet counts and kills what is below the pod's parent.
    assert_eq!(names, expected);
    Ok(())
}

fn limits(node: &Node) -> Result {
    let pod = Pod::without_network(node, "limits")?;
    let mut config = pod.shell("c", crate::pod::SERVICE);
    let resources = LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 << 20,
        oom_score_adj: 500,
        cpuset_cpus: "0".to_owned(),
        ..LinuxContainerResources::default()
    };
    config.linux.get_or_insert_default().resources = Some(resources.clone());
    let id = pod.up(&config)?;
    let limits = Limits::read(node.daemon.cgroup_parent(), &id)?;
    assert_eq!(limits.memory, (64 << 20).to_string());
    assert!(limits.shares.are(512), "{limits:?}");
    assert_eq!([&*limits.quota, &limits.period, &limits.cpus], ["50000", "100000", "0"]);
    assert_eq!(pod.exec(&id, "cat /proc/1/oom_score_adj")?, "500");
    let reported = node.cri.status(&id)?.resources.and_then(|resources| resources.linux);
    assert_eq!(reported, Some(resources));
    Ok(())
}

fn oom(node: &Node) -> Result {
    let pod = Pod::without_network(node, "oom")?;
    // tail keeps a line that never ends.
    let mut config = node.cri.container("c", &node.image, &["tail", "/dev/zero"]);
    config.linux.get_or_insert_default().resources = Some(LinuxContainerResources {
        memory_limit_in_bytes: 16 << 20,
        ..LinuxContainerResources::default()
    });
    let id = pod.start(&config)?;
    let status = node.cri.wait_state(&id, ContainerState::ContainerExited, LIMIT)?;
    assert_eq!((status.reason.as_str(), status.exit_code), ("OOMKilled", 137));
    Ok(())
}

fn no_oom(node: &Node) -> Result {
    let pod = Pod::without_network(node, "no-oom")?;
    let mut config = pod.shell("c", crate::pod::SERVICE);
    config.linux.get_or_insert_default().resources = Some(LinuxContainerResources {
        memory_limit_in_bytes: 32 << 20,
        ..LinuxContainerResources::default()
    });
    let id = pod.up(&config)?;
    kill(node, &id)?;
    let status = node.cri.wait_state(&id, ContainerState::ContainerExited, LIMIT)?;
    assert_eq!((status.reason.as_str(), status.exit_code), ("Error", 137));
    Ok(())
}

fn too_little_memory(node: &Node) -> Result {
    let pod = Pod::without_network(node, "too-little")?;
    let mut config = pod.shell("c", "true");
    config.linux.get_or_insert_default().resources = Some(LinuxContainerResources {
        memory_limit_in_bytes: 1 << 20,
        ..LinuxContainerResources::default()
    });
    let error = node.cri.create(&pod.id, &config, &pod.config).err().ok_or("one MiB was enough")?;
    assert!(error.message().contains("memory"), "{error}");
    Ok(())
}

fn whole_group(node: &Node) -> Result {
    // With PIDs of its own a container's processes die with its first; with shared ones only the cgroup knows them.
    let mut config = node.cri.host_network_pod("group");
    sandbox_namespaces(&mut config).pid = NamespaceMode::Pod.into();
    let pod = Pod::run_with(node, config)?;
    let mut config = pod.shell("c", "setsid sleep 1000 & echo up; sleep 0.3");
    *crate::pod::namespaces(&mut config) = sandbox_namespaces(&mut pod.config.clone()).clone();
    let id = pod.up(&config)?;
    node.cri.wait_state(&id, ContainerState::ContainerExited, LIMIT)?;
    node.cri.remove(&id)?;
    assert!(!group(node, "memory", &id).exists());
    let other = pod.answer_of(&{
        let mut config = pod.shell("look", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '");
        *crate::pod::namespaces(&mut config) = sandbox_namespaces(&mut pod.config.clone()).clone();
        config
    })?;
    assert!(!other.contains("sleep 1000"), "{other}");
    Ok(())
}
