//! Changed limits.

use criox_cri::v1::{
    LinuxContainerResources, UpdateContainerResourcesRequest, UpdatePodSandboxResourcesRequest,
};
use testkit::cgroups::Limits;
use testkit::harness::Test;
use testkit::{Node, Result};
use tonic::{Code, Status};

use crate::NODE;
use crate::pod::{Pod, refused};

pub(crate) const TESTS: &[Test] = &[
    ("an update changes what it says, and the status says so", || NODE.test(changes)),
    ("zero in an update leaves alone: the static CPU manager sends cpuset_cpus only", || NODE.test(zero)),
    ("an update that can't be done in whole changes nothing", || NODE.test(all_or_nothing)),
    ("memory is not decreased below what is used", || NODE.test(usage)),
    ("the score of an update is that of later execs too", || NODE.test(score)),
    ("only created and running containers are updated", || NODE.test(states)),
    ("a wrong field of an update is named", || NODE.test(fields)),
    ("runc's limits are changed as crun's", || NODE.test(under_runc)),
    ("UpdatePodSandboxResources is taken, and NotFound for no sandbox", || NODE.test(sandbox)),
];

fn update(node: &Node, id: &str, linux: LinuxContainerResources) -> Result<(), Status> {
    let request = UpdateContainerResourcesRequest {
        container_id: id.to_owned(),
        linux: Some(linux),
        ..Default::default()
    };
    let mut runtime = node.cri.runtime();
    node.cri.call(async move { runtime.update_container_resources(request).await }).map(drop)
}

fn limits(node: &Node, id: &str) -> Result<Limits> {
    Limits::read(node.daemon.cgroup_parent(), id)
}

fn begin(node: &Node, pod: &Pod<'_>) -> Result<String> {
    let mut config = pod.shell("c", crate::pod::SERVICE);
    config.linux.get_or_insert_default().resources = Some(first());
    let id = pod.up(&config)?;
    let limits = limits(node, &id)?;
    assert!(limits.shares.are(512), "{limits:?}");
    Ok(id)
}

fn first() -> LinuxContainerResources {
    LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 << 20,
        oom_score_adj: 500,
        ..LinuxContainerResources::default()
    }
}

fn reported(node: &Node, id: &str) -> Result<LinuxContainerResources> {
    Ok(node
        .cri
        .status(id)?
        .resources
        .and_then(|resources| resources.linux)
        .ok_or("resources are reported")?)
}

fn changes(node: &Node) -> Result {
    let pod = Pod::without_network(node, "update")?;
    let id = begin(node, &pod)?;
    for (megabytes, quota) in [(128, 70_000), (48, 20_000)] {
        let all = LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: quota,
            cpu_shares: 1000 + megabytes,
            memory_limit_in_bytes: megabytes << 20,
            cpuset_cpus: "0".to_owned(),
            oom_score_adj: 500 + megabytes,
            ..LinuxContainerResources::default()
        };
        update(node, &id, all.clone())?;
        let (bytes, limits) = ((megabytes << 20).to_string(), limits(node, &id)?);
        assert_eq!([&limits.memory, &limits.memory_and_swap, &limits.cpus], [&bytes, &bytes, "0"]);
        assert_eq!([&limits.quota, &limits.period], [&quota.to_string(), "100000"]);
        assert!(limits.shares.are(u64::try_from(all.cpu_shares)?), "{limits:?}");
        assert_eq!(reported(node, &id)?, all);
    }
    Ok(())
}

fn zero(node: &Node) -> Result {
    let pod = Pod::without_network(node, "update-zero")?;
    let id = begin(node, &pod)?;
    let before = limits(node, &id)?;
    update(node, &id, LinuxContainerResources::default())?;
    assert_eq!(limits(node, &id)?, before);
    update(node, &id, LinuxContainerResources { cpuset_cpus: "1".to_owned(), ..Default::default() })?;
    assert_eq!(limits(node, &id)?, Limits { cpus: "1".to_owned(), ..before });
    assert_eq!(reported(node, &id)?, LinuxContainerResources { cpuset_cpus: "1".to_owned(), ..first() });
    Ok(())
}

fn all_or_nothing(node: &Node) -> Result {
    let pod = Pod::without_network(node, "update-none")?;
    let id = begin(node, &pod)?;
    let before = limits(node, &id)?;
    let impossible = LinuxContainerResources {
        memory_limit_in_bytes: 128 << 20,
        cpu_quota: 80_000,
        cpu_period: 100_000,
        cpu_shares: 100,
        cpuset_cpus: "4095".to_owned(),
        oom_score_adj: 777,
        ..LinuxContainerResources::default()
    };
    let said = refused(update(node, &id, impossible), Code::Unknown)?;
    assert!(said.contains("update of container") && said.contains("cpuset"), "{said}");
    assert_eq!(limits(node, &id)?, before, "{said}");
    assert_eq!(reported(node, &id)?, first());
    assert_eq!(pod.exec(&id, "cat /proc/1/oom_score_adj")?, "500");
    Ok(())
}

fn usage(node: &Node) -> Result {
    let pod = Pod::without_network(node, "update-usage")?;
    // A script of 20 MB in the shell's memory.
    let mut config = pod
        .shell("c", "x=$(dd if=/dev/zero bs=1M count=20 2>/dev/null | tr '\\0' x); echo up; sleep 600; true");
    config.linux.get_or_insert_default().resources = Some(first());
    let id = pod.up(&config)?;
    let little = LinuxContainerResources { memory_limit_in_bytes: 13 << 20, ..Default::default() };
    let said = refused(update(node, &id, little), Code::FailedPrecondition)?;
    assert!(said.contains("cannot decrease memory limit to 13631488 bytes: current usage is"), "{said}");
    assert_eq!(limits(node, &id)?.memory, (64 << 20).to_string());
    Ok(())
}

fn score(node: &Node) -> Result {
    let pod = Pod::without_network(node, "update-score")?;
    let id = begin(node, &pod)?;
    update(node, &id, LinuxContainerResources { oom_score_adj: 800, ..Default::default() })?;
    assert_eq!(pod.exec(&id, "cat /proc/1/oom_score_adj /proc/self/oom_score_adj")?, "800\n800");
    Ok(())
}

fn states(node: &Node) -> Result {
    let pod = Pod::without_network(node, "update-states")?;
    let id = pod.create(&pod.shell("c", "true"))?;
    update(node, &id, LinuxContainerResources { cpu_shares: 100, ..Default::default() })?;
    let limits = limits(node, &id)?;
    assert!(limits.shares.are(100), "{limits:?}");
    node.cri.start(&id)?;
    node.cri.wait_state(&id, criox_cri::v1::ContainerState::ContainerExited, crate::pod::LIMIT)?;
    let late = LinuxContainerResources { cpu_shares: 200, ..Default::default() };
    refused(update(node, &id, late.clone()), Code::FailedPrecondition)?;
    assert_eq!(reported(node, &id)?.cpu_shares, 100);
    refused(update(node, &"0".repeat(64), late), Code::NotFound)?;
    Ok(())
}

fn fields(node: &Node) -> Result {
    let pod = Pod::without_network(node, "update-fields")?;
    let id = pod.service("c")?;
    for (resources, field) in [
        (LinuxContainerResources { cpu_quota: -7, ..Default::default() }, "linux.cpu_quota"),
        (LinuxContainerResources { cpuset_cpus: "x".into(), ..Default::default() }, "linux.cpuset_cpus"),
        (LinuxContainerResources { oom_score_adj: 1001, ..Default::default() }, "linux.oom_score_adj"),
        (
            LinuxContainerResources { memory_limit_in_bytes: 1, ..Default::default() },
            "linux.memory_limit_in_bytes",
        ),
        (
            LinuxContainerResources { memory_swap_limit_in_bytes: 99, ..Default::default() },
            "linux.memory_swap_limit_in_bytes",
        ),
    ] {
        let said = refused(update(node, &id, resources), Code::InvalidArgument)?;
        assert!(said.contains(field), "{said}");
    }
    Ok(())
}

fn under_runc(node: &Node) -> Result {
    let config = node.cri.host_network_pod("update-runc");
    let id = node.cri.run_pod_as(&config, "runc")?;
    let pod = Pod { cri: &node.cri, image: &node.image, id, config };
    let container = begin(node, &pod)?;
    let all = LinuxContainerResources {
        memory_limit_in_bytes: 128 << 20,
        cpu_quota: 20_000,
        cpu_period: 100_000,
        ..LinuxContainerResources::default()
    };
    update(node, &container, all)?;
    let now = limits(node, &container)?;
    assert_eq!([&*now.memory, &now.quota], ["134217728", "20000"]);
    assert!(now.shares.are(512), "{now:?}");
    let impossible =
        LinuxContainerResources { cpu_shares: 100, cpuset_cpus: "4095".to_owned(), ..Default::default() };
    refused(update(node, &container, impossible), Code::Unknown)?;
    assert_eq!(limits(node, &container)?, now);
    Ok(())
}

fn sandbox(node: &Node) -> Result {
    let pod = Pod::without_network(node, "update-pod")?;
    let update = |id: &str| {
        let request = UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: id.to_owned(),
            overhead: None,
            resources: Some(first()),
        };
        let mut runtime = node.cri.runtime();
        node.cri.call(async move { runtime.update_pod_sandbox_resources(request).await }).map(drop)
    };
    update(&pod.id)?;
    refused(update(&"0".repeat(64)), Code::NotFound)?;
    // The record keeps it.
    let record = node.daemon.root().join("criox/pods").join(&pod.id).join("sandbox.json");
    assert!(std::fs::read_to_string(record)?.contains("\"updated\":{\"resources\":\""));
    Ok(())
}
