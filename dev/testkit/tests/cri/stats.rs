//! Statistics of containers and pods.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use criox_cri::v1::{
    ContainerStats, ContainerStatsFilter, ContainerStatsRequest, LinuxContainerResources,
    ListContainerStatsRequest, ListPodSandboxStatsRequest, PodSandboxStats, PodSandboxStatsFilter,
    PodSandboxStatsRequest, UInt64Value,
};
use testkit::harness::Test;
use testkit::{Daemon, Node, Registry, Result, busybox_image, wait_for};
use tonic::Code;

use crate::NODE;
use crate::pod::{LIMIT, Pod, refused};

pub(crate) const TESTS: &[Test] = &[
    ("a running container has figures of each kind, each with its time", || NODE.test(figures)),
    ("cores in use are those that the container burns", || NODE.test(rate)),
    ("what a container writes to its layer is counted, and links once", || NODE.test(layer)),
    ("a pod has the figures of its containers and of its network", || NODE.test(pod)),
    ("a pod with a cgroup of its own has that group's figures", || NODE.test(own_group)),
    ("lists of statistics hold what runs and passes the filter", || NODE.test(lists)),
    ("statistics of what doesn't run have attributes, of what is unknown NotFound", || NODE.test(absent)),
    ("descriptors of a container and its network are closed when they end", || NODE.test(descriptors)),
    ("the daemon's limit of open files is raised, and what runs in pods keeps the old one", open_file_limit),
];

pub(crate) fn container_stats(node: &Node, id: &str) -> Result<ContainerStats> {
    let request = ContainerStatsRequest { container_id: id.to_owned() };
    let stats = node.cri.call(node.cri.runtime().container_stats(request))?.stats;
    Ok(stats.ok_or("the answer holds no statistics")?)
}

fn pod_stats(node: &Node, id: &str) -> Result<PodSandboxStats> {
    let request = PodSandboxStatsRequest { pod_sandbox_id: id.to_owned() };
    let stats = node.cri.call(node.cri.runtime().pod_sandbox_stats(request))?.stats;
    Ok(stats.ok_or("the answer holds no statistics")?)
}

fn number(value: Option<UInt64Value>) -> Result<u64> {
    Ok(value.ok_or("a figure is absent")?.value)
}

fn figures(node: &Node) -> Result {
    let pod = Pod::without_network(node, "figures")?;
    let mut config = pod.shell("c", crate::pod::SERVICE);
    config.labels = [("app".to_owned(), "figures".to_owned())].into();
    config.annotations = [("note".to_owned(), "kept".to_owned())].into();
    config.linux.get_or_insert_default().resources = Some(LinuxContainerResources {
        memory_limit_in_bytes: 64 << 20,
        ..LinuxContainerResources::default()
    });
    let id = pod.up(&config)?;
    // The writable layer is counted beside the start, and a rate takes a moment.
    let stats = wait_for("all figures to be there", LIMIT, || {
        let stats = container_stats(node, &id)?;
        let rate = stats.cpu.as_ref().is_some_and(|cpu| cpu.usage_nano_cores.is_some());
        Ok(Some(stats).filter(|stats| rate && stats.writable_layer.is_some()))
    })?;
    let attributes = stats.attributes.ok_or("no attributes")?;
    assert_eq!((attributes.id, attributes.metadata), (id.clone(), config.metadata));
    assert_eq!((attributes.labels, attributes.annotations), (config.labels, config.annotations));

    let cpu = stats.cpu.ok_or("no CPU")?;
    assert!(cpu.timestamp > 0 && number(cpu.usage_core_nano_seconds)? > 0);
    number(cpu.usage_nano_cores)?;
    let memory = stats.memory.ok_or("no memory")?;
    assert!(memory.timestamp > 0);
    let (usage, set) = (number(memory.usage_bytes)?, number(memory.working_set_bytes)?);
    assert!(set > 0 && set <= usage && usage < 64 << 20, "{set} of {usage}");
    assert_eq!(number(memory.available_bytes)? + set, 64 << 20);
    assert!(number(memory.rss_bytes)? <= usage);
    assert!(number(memory.page_faults)? > 0);
    number(memory.major_page_faults)?;
    if let Some(swap) = stats.swap {
        assert!(swap.timestamp > 0);
    }
    let layer = stats.writable_layer.ok_or("no layer")?;
    assert!(layer.timestamp > 0 && number(layer.inodes_used)? >= 1);
    number(layer.used_bytes)?;
    // A kubelet asks the file system of this path for its size.
    assert!(Path::new(&layer.fs_id.ok_or("no file system")?.mountpoint).is_dir());
    Ok(())
}

fn rate(node: &Node) -> Result {
    let pod = Pod::without_network(node, "rate")?;
    let mut config = pod.shell("c", "echo up; while :; do :; done");
    config.linux.get_or_insert_default().resources = Some(LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 20_000,
        ..LinuxContainerResources::default()
    });
    let id = pod.up(&config)?;
    let mut last = 0;
    wait_for("a fifth of a core to be seen", LIMIT, || {
        let cpu = container_stats(node, &id)?.cpu.ok_or("no CPU")?;
        let usage = number(cpu.usage_core_nano_seconds)?;
        assert!(usage >= last, "the time of the CPU does not go back");
        last = usage;
        let cores = cpu.usage_nano_cores.map_or(0, |cores| cores.value);
        assert!(cores < 1_000_000_000, "a limit of 0.2 cores holds: {cores}");
        // The machine may be busy with others; what starts costs more than the quota at first.
        Ok((50_000_000..260_000_000).contains(&cores).then_some(()))
    })
}

fn layer(node: &Node) -> Result {
    let pod = Pod::without_network(node, "layer")?;
    let id = pod.service("c")?;
    let read = || -> Result<Option<(u64, u64)>> {
        let Some(layer) = container_stats(node, &id)?.writable_layer else { return Ok(None) };
        Ok(Some((number(layer.used_bytes)?, number(layer.inodes_used)?)))
    };
    let (bytes, inodes) = wait_for("the first figure", LIMIT, read)?;
    pod.exec(
        &id,
        "mkdir /data && dd if=/dev/zero of=/data/a bs=1M count=3 2>/dev/null && ln /data/a /data/b && touch /data/c && sync",
    )?;
    let (bytes_after, inodes_after) =
        wait_for("the next figure", 3 * LIMIT, || Ok(read()?.filter(|(_, now)| *now > inodes)))?;
    // The directory, one file with two names, an empty file.
    assert_eq!(inodes_after - inodes, 3);
    let grown = bytes_after - bytes;
    assert!((3 << 20..4 << 20).contains(&grown), "{grown}");
    Ok(())
}

fn pod(node: &Node) -> Result {
    let pod = Pod::run(node, "pod-stats")?;
    let (one, two) = (pod.service("one")?, pod.service("two")?);
    let gateway = pod.exec(&one, "ip route | awk '/^default/ {print $3}'")?;
    pod.exec(&one, &format!("ping -c 1 -W 5 {gateway} >/dev/null || true; wget -q -T 2 -O /dev/null http://{gateway}:1/ || true"))?;
    let stats = pod_stats(node, &pod.id)?;
    let attributes = stats.attributes.ok_or("no attributes")?;
    assert_eq!((attributes.id, attributes.metadata), (pod.id.clone(), pod.config.metadata.clone()));
    assert_eq!(attributes.labels, pod.config.labels);
    let linux = stats.linux.ok_or("no linux")?;
    let mut ids: Vec<String> = linux
        .containers
        .iter()
        .filter_map(|container| Some(container.attributes.as_ref()?.id.clone()))
        .collect();
    ids.sort();
    let mut expected = vec![one.clone(), two.clone()];
    expected.sort();
    assert_eq!(ids, expected);
    // The pods of this test share a cgroup: the pod is the sum of its containers.
    let mut sum = 0;
    for container in &linux.containers {
        sum += number(container.memory.as_ref().ok_or("no memory")?.working_set_bytes)?;
    }
    let memory = linux.memory.ok_or("no memory")?;
    assert_eq!(number(memory.working_set_bytes)?, sum);
    let cpu = linux.cpu.ok_or("no CPU")?;
    assert!(cpu.timestamp > 0 && memory.timestamp > 0 && number(cpu.usage_core_nano_seconds)? > 0);
    let process = linux.process.ok_or("no processes")?;
    assert!(process.timestamp > 0 && number(process.process_count)? >= 2);

    let network = linux.network.ok_or("no network")?;
    assert!(network.timestamp > 0);
    let default = network.default_interface.ok_or("no default interface")?;
    assert_eq!(default.name, "eth0");
    assert!(number(default.tx_bytes)? > 0 && number(default.rx_bytes)? > 0, "{default:?}");
    assert_eq!((number(default.rx_errors)?, number(default.tx_errors)?), (0, 0));
    assert!(network.interfaces.iter().all(|interface| interface.name != "lo" && interface.name != "eth0"));

    // What has ended still counts: the pod's time of the CPU does not go back.
    node.cri.stop(&two, 0)?;
    let after = pod_stats(node, &pod.id)?.linux.and_then(|linux| linux.cpu).ok_or("no CPU")?;
    assert!(number(after.usage_core_nano_seconds)? > 0);
    Ok(())
}

fn own_group(node: &Node) -> Result {
    let mut config = node.cri.host_network_pod("own-group");
    let uid = "0b1c-77".to_owned();
    config.metadata.get_or_insert_default().uid.clone_from(&uid);
    let parent = format!("{}/pod{uid}", node.daemon.cgroup_parent());
    config.linux.get_or_insert_default().cgroup_parent.clone_from(&parent);
    let _group = Group(parent);
    let pod = Pod::run_with(node, config)?;
    let id = pod.service("c")?;
    let linux = pod_stats(node, &pod.id)?.linux.ok_or("no linux")?;
    let of_pod = number(linux.memory.ok_or("no memory")?.usage_bytes)?;
    let of_container = number(container_stats(node, &id)?.memory.ok_or("no memory")?.usage_bytes)?;
    // What an exec or a file of the sandbox costs is in the pod's group, too; both were read at different times.
    assert!(of_pod > 0 && of_pod + (1 << 20) >= of_container, "{of_pod} of {of_container}");
    assert!(number(linux.process.ok_or("no processes")?.process_count)? >= 1);
    // The node's network is not the pod's.
    assert_eq!(linux.network, None);
    node.cri.remove_pod(&pod.id)?;
    Ok(())
}

/// Removes a pod's cgroup at the end, as a kubelet does.
struct Group(String);

impl Drop for Group {
    fn drop(&mut self) {
        // Only where it was made: the v2 tree of a hybrid node is hidden from tests.
        for controller in
            ["cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd", ""]
        {
            let root = Path::new("/sys/fs/cgroup").join(controller);
            // One that stays is found at the end.
            drop(std::fs::remove_dir(root.join(self.0.trim_start_matches('/'))));
        }
    }
}

fn listed(node: &Node, filter: Option<ContainerStatsFilter>) -> Result<Vec<String>> {
    let request = ListContainerStatsRequest { filter };
    let stats = node.cri.call(node.cri.runtime().list_container_stats(request))?.stats;
    let mut ids: Vec<String> = stats.into_iter().filter_map(|stats| Some(stats.attributes?.id)).collect();
    ids.sort();
    Ok(ids)
}

fn listed_pods(node: &Node, filter: Option<PodSandboxStatsFilter>) -> Result<Vec<String>> {
    let request = ListPodSandboxStatsRequest { filter };
    let stats = node.cri.call(node.cri.runtime().list_pod_sandbox_stats(request))?.stats;
    let mut ids = Vec::new();
    for stats in stats {
        assert!(stats.linux.is_some(), "a kubelet looks into it unasked");
        ids.push(stats.attributes.ok_or("no attributes")?.id);
    }
    ids.sort();
    Ok(ids)
}

fn lists(node: &Node) -> Result {
    let (one, two) = (Pod::without_network(node, "stats-1")?, Pod::without_network(node, "stats-2")?);
    let mut config = one.shell("a", crate::pod::SERVICE);
    let selector: BTreeMap<String, String> = [("app".to_owned(), "a".to_owned())].into();
    config.labels = selector.clone();
    let a = one.up(&config)?;
    let b = two.service("b")?;
    let created = two.create(&two.shell("created", "true"))?;
    let exited = two.start(&two.shell("exited", "true"))?;
    node.cri.wait_state(&exited, criox_cri::v1::ContainerState::ContainerExited, LIMIT)?;
    let sorted = |ids: &[&String]| -> Vec<String> {
        let mut ids: Vec<String> = ids.iter().map(|&id| id.clone()).collect();
        ids.sort();
        ids
    };
    let all = ContainerStatsFilter::default();
    assert_eq!(listed(node, None)?, sorted(&[&a, &b]));
    assert_eq!(listed(node, Some(all.clone()))?, sorted(&[&a, &b]));
    assert_eq!(
        listed(node, Some(ContainerStatsFilter { id: a[..12].to_owned(), ..all.clone() }))?,
        sorted(&[&a])
    );
    assert!(listed(node, Some(ContainerStatsFilter { id: created, ..all.clone() }))?.is_empty());
    let of_two = ContainerStatsFilter { pod_sandbox_id: two.id.clone(), ..all.clone() };
    assert_eq!(listed(node, Some(of_two.clone()))?, sorted(&[&b]));
    let labelled = ContainerStatsFilter { label_selector: selector.clone(), ..all };
    assert_eq!(listed(node, Some(labelled))?, sorted(&[&a]));
    assert!(listed(node, Some(ContainerStatsFilter { label_selector: selector, ..of_two }))?.is_empty());

    assert_eq!(listed_pods(node, None)?, sorted(&[&one.id, &two.id]));
    let by_id = PodSandboxStatsFilter { id: one.id[..12].to_owned(), ..PodSandboxStatsFilter::default() };
    assert_eq!(listed_pods(node, Some(by_id))?, sorted(&[&one.id]));
    let by_label = PodSandboxStatsFilter {
        label_selector: [("app".to_owned(), "stats-2".to_owned())].into(),
        ..PodSandboxStatsFilter::default()
    };
    assert_eq!(listed_pods(node, Some(by_label))?, sorted(&[&two.id]));
    node.cri.stop_pod(&two.id)?;
    assert_eq!(listed_pods(node, None)?, sorted(&[&one.id]));
    assert_eq!(listed(node, None)?, sorted(&[&a]));
    Ok(())
}

fn absent(node: &Node) -> Result {
    for id in ["", "no-id", &"ab".repeat(32)] {
        let request = ContainerStatsRequest { container_id: id.to_owned() };
        refused(node.cri.call(node.cri.runtime().container_stats(request)), Code::NotFound)?;
        // A kubelet asks for the pod "" at its start, to see whether the call is there.
        let request = PodSandboxStatsRequest { pod_sandbox_id: id.to_owned() };
        refused(node.cri.call(node.cri.runtime().pod_sandbox_stats(request)), Code::NotFound)?;
    }
    let pod = Pod::without_network(node, "absent")?;
    let id = pod.start(&pod.shell("c", "true"))?;
    node.cri.wait_state(&id, criox_cri::v1::ContainerState::ContainerExited, LIMIT)?;
    let stats = container_stats(node, &id)?;
    assert_eq!(stats.attributes.map(|attributes| attributes.id), Some(id));
    assert!(stats.cpu.is_none() && stats.memory.is_none());
    node.cri.stop_pod(&pod.id)?;
    let stats = pod_stats(node, &pod.id)?;
    let linux = stats.linux.ok_or("a kubelet looks into it unasked")?;
    assert!(linux.cpu.is_none() && linux.network.is_none() && linux.containers.is_empty());
    Ok(())
}

/// The daemon's open files whose names hold a text.
fn open_files(node: &Node, text: &str) -> Result<usize> {
    let pid = node.daemon.pid().ok_or("the daemon runs")?;
    let files = std::fs::read_dir(format!("/proc/{pid}/fd"))?.flatten();
    let names = files.filter_map(|file| std::fs::read_link(file.path()).ok());
    Ok(names.filter(|name| name.to_string_lossy().contains(text)).count())
}

fn descriptors(node: &Node) -> Result {
    let pod = Pod::run(node, "descriptors")?;
    let id = pod.service("c")?;
    let devs = open_files(node, "/net/dev")?;
    for _ in 0..3 {
        container_stats(node, &id)?;
        pod_stats(node, &pod.id)?;
    }
    let kept = open_files(node, &format!("crio-{id}"))?;
    assert!((3..=8).contains(&kept), "{kept} files of one container");
    assert_eq!(open_files(node, "/net/dev")?, devs + 1);
    node.cri.stop(&id, 0)?;
    assert_eq!(open_files(node, &format!("crio-{id}"))?, 0);
    node.cri.stop_pod(&pod.id)?;
    wait_for("the pod's network namespace to be let go", LIMIT, || {
        Ok((open_files(node, "/net/dev")? == devs).then_some(()))
    })
}

fn open_file_limit() -> Result {
    let registry = Registry::start()?;
    let image = busybox_image()?.build()?.push(&registry, "limits/busybox", "1")?;
    let mut daemon = Daemon::builder().registry(&registry).start()?;
    daemon.terminate()?;
    let usual = daemon.command();
    let mut command = Command::new("sh");
    command
        .args(["-c", "ulimit -Sn 900 && exec \"$0\" \"$@\""])
        .arg(usual.get_program())
        .args(usual.get_args());
    for (name, value) in usual.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    daemon.start_with(command)?;
    let cri = daemon.cri()?;
    cri.pull(&image)?;
    let (_, container) = cri.run("limits", &image, &["sleep", "1000"])?;
    let inside = cri.exec(&container, &["sh", "-c", "ulimit -Sn"], 20)?;
    assert_eq!(String::from_utf8(inside.stdout)?.trim_end(), "900");
    let pid = daemon.pid().ok_or("the daemon runs")?;
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let line = limits.lines().find(|line| line.starts_with("Max open files")).ok_or("a limit")?;
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    assert_eq!(fields.get(3), fields.get(4), "the soft limit is the hard one");
    daemon.finish()
}
