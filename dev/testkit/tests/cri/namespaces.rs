//! What containers share with their pod, with the node and with each other.

use std::io::{Read, Write};
use std::net::TcpStream;

use criox_cri::v1::{NamespaceMode, PortMapping};
use testkit::harness::Test;
use testkit::{Node, Result, wait_for};
use tonic::Code;

use crate::NODE;
use crate::pod::{LIMIT, Pod, SERVICE, namespaces, refused, sandbox_namespaces};

pub(crate) const TESTS: &[Test] = &[
    ("a pod's containers share its network, IPC and host name and nothing of the node's", || NODE.test(own)),
    ("host modes give the node's network, IPC, PIDs and host name", || NODE.test(host)),
    ("with shared PIDs process 1 is ours, and containers see each other", || NODE.test(shared_pids)),
    ("shared PIDs outlive each container, and orphans are reaped", || NODE.test(shared_pids_reap)),
    ("TARGET joins another container's PIDs", || NODE.test(target)),
    ("TARGET of a container that isn't in the pod, or doesn't run, is refused", || NODE.test(bad_target)),
    ("containers of a pod reach each other on its loopback", || NODE.test(loopback)),
    ("host ports reach the pod, and go with it", || NODE.test(host_ports)),
    ("ports of a pod with the node's network are no host ports", || NODE.test(no_host_ports)),
    ("a namespaced sysctl is set, any other is refused", || NODE.test(sysctls)),
    ("modes that a sandbox can't have are refused with the field", || NODE.test(bad_modes)),
];

const KINDS: &[&str] = &["net", "ipc", "uts", "pid", "mnt"];

/// The namespaces of the first process of a container.
fn inside(pod: &Pod, id: &str) -> Result<Vec<String>> {
    KINDS.iter().map(|kind| pod.exec(id, &format!("readlink /proc/1/ns/{kind}"))).collect()
}

/// The same as this test's process has them: it plays the node, as the daemon does.
fn ours() -> Result<Vec<String>> {
    let link = |kind: &&str| Ok(std::fs::read_link(format!("/proc/self/ns/{kind}"))?.display().to_string());
    KINDS.iter().map(link).collect()
}

fn own(node: &Node) -> Result {
    let pod = Pod::run(node, "own")?;
    let (a, b) = (pod.service("a")?, pod.service("b")?);
    let (a, b, ours) = (inside(&pod, &a)?, inside(&pod, &b)?, ours()?);
    for (kind, ((a, b), ours)) in KINDS.iter().zip(a.iter().zip(&b).zip(&ours)) {
        assert_ne!(a, ours, "{kind}");
        assert_eq!(a == b, matches!(*kind, "net" | "ipc" | "uts"), "{kind}");
    }
    Ok(())
}

fn host(node: &Node) -> Result {
    let mut config = node.cri.host_network_pod("host");
    let options = sandbox_namespaces(&mut config);
    options.pid = NamespaceMode::Node.into();
    options.ipc = NamespaceMode::Node.into();
    let pod = Pod::run_with(node, config)?;
    let mut config = pod.shell("c", SERVICE);
    *namespaces(&mut config) = sandbox_namespaces(&mut pod.config.clone()).clone();
    let id = pod.up(&config)?;
    // PID 1 is the node's, so the container's own process is asked.
    for kind in ["net", "ipc", "pid"] {
        let inside = pod.exec(&id, &format!("readlink /proc/self/ns/{kind}"))?;
        let ours = std::fs::read_link(format!("/proc/self/ns/{kind}"))?.display().to_string();
        assert_eq!(inside, ours, "{kind}");
    }
    let mine = std::process::id();
    pod.exec(&id, &format!("test -d /proc/{mine}"))?;
    assert_eq!(pod.exec(&id, "hostname")?, rustix::system::uname().nodename().to_string_lossy());
    assert_eq!(node.cri.pod_status(&pod.id)?.network.unwrap_or_default().ip, "");
    let options = node.cri.pod_status(&pod.id)?.linux.and_then(|linux| linux.namespaces?.options);
    assert_eq!(options.map(|options| options.network()), Some(NamespaceMode::Node));
    Ok(())
}

/// A pod whose containers share their process numbers.
fn shared<'a>(node: &'a Node, name: &str) -> Result<Pod<'a>> {
    let mut config = node.cri.host_network_pod(name);
    sandbox_namespaces(&mut config).pid = NamespaceMode::Pod.into();
    Pod::run_with(node, config)
}

fn in_shared(pod: &Pod, name: &str, script: &str) -> Result<String> {
    let mut config = pod.shell(name, script);
    *namespaces(&mut config) = sandbox_namespaces(&mut pod.config.clone()).clone();
    pod.up(&config)
}

fn shared_pids(node: &Node) -> Result {
    let pod = shared(node, "shared")?;
    let a = in_shared(&pod, "a", &format!(": marker-of-a; {SERVICE}"))?;
    let b = in_shared(&pod, "b", SERVICE)?;
    let first = pod.exec(&b, "cat /proc/1/cmdline | tr '\\0' ' '")?;
    assert!(first.contains("sandbox-init"), "{first}");
    let processes = pod.exec(&b, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")?;
    assert!(processes.contains("marker-of-a"), "{processes}");
    assert_eq!(pod.exec(&a, "readlink /proc/self/ns/pid")?, pod.exec(&b, "readlink /proc/self/ns/pid")?);
    assert_ne!(
        pod.exec(&a, "readlink /proc/self/ns/pid")?,
        std::fs::read_link("/proc/self/ns/pid")?.display().to_string()
    );
    node.cri.stop_pod(&pod.id)?;
    // It is criox that ends process 1 then: nothing to warn of.
    let warns = |line: &str| line.contains(&pod.id) && line.contains("process 1 of the pod has ended");
    assert!(!node.daemon.log().lines().any(warns));
    Ok(())
}

fn shared_pids_reap(node: &Node) -> Result {
    let pod = shared(node, "reap")?;
    let a = in_shared(&pod, "a", SERVICE)?;
    let b = in_shared(&pod, "b", SERVICE)?;
    node.cri.stop(&a, 10)?;
    node.cri.remove(&a)?;
    pod.exec(&b, "for i in 1 2 3 4 5; do (sleep 0.1 &) ; done")?;
    wait_for("orphans to be reaped", LIMIT, || {
        let states = pod.exec(&b, "cat /proc/[0-9]*/stat 2>/dev/null | grep -E 'sleep|\\) Z ' || true")?;
        // The service itself sleeps, too: it is no zombie.
        Ok((!states.contains(") Z ")).then_some(()))
    })?;
    let c = in_shared(&pod, "c", SERVICE)?;
    assert_eq!(node.cri.status(&c)?.exit_code, 0);
    Ok(())
}

fn target(node: &Node) -> Result {
    let pod = Pod::without_network(node, "target")?;
    let app = pod.up(&pod.shell("app", &format!(": marker-of-app; {SERVICE}")))?;
    let mut config = pod.shell("debugger", SERVICE);
    let options = namespaces(&mut config);
    *options = sandbox_namespaces(&mut pod.config.clone()).clone();
    options.pid = NamespaceMode::Target.into();
    options.target_id = app.clone();
    let debugger = pod.up(&config)?;
    let first = pod.exec(&debugger, "cat /proc/1/cmdline")?;
    assert!(first.contains("marker-of-app"), "{first}");
    // The debugger's end is not the target's.
    node.cri.stop(&debugger, 10)?;
    assert_eq!(pod.exec(&app, "echo alive")?, "alive");
    Ok(())
}

fn bad_target(node: &Node) -> Result {
    let (pod, other) = (Pod::without_network(node, "bad-target")?, Pod::without_network(node, "other")?);
    let foreign = other.service("c")?;
    let created = pod.create(&pod.shell("created", "true"))?;
    for id in [foreign.as_str(), created.as_str(), "", "no-such-container"] {
        let mut config = pod.shell("debugger", "true");
        let options = namespaces(&mut config);
        options.network = NamespaceMode::Node.into();
        options.pid = NamespaceMode::Target.into();
        options.target_id = id.to_owned();
        let message = refused(node.cri.create(&pod.id, &config, &pod.config), Code::InvalidArgument)?;
        assert!(message.contains("target_id") && message.contains(id), "{message}");
    }
    Ok(())
}

fn loopback(node: &Node) -> Result {
    let pod = Pod::run(node, "loopback")?;
    let server = pod.up(&pod.shell("server", "echo up; while :; do echo served | nc -l -p 7000; done"))?;
    let answer = wait_for("the server to listen", LIMIT, || {
        let client = pod.shell("client", "nc 127.0.0.1 7000 < /dev/null");
        let id = pod.start(&client)?;
        let status = node.cri.wait_state(&id, criox_cri::v1::ContainerState::ContainerExited, LIMIT)?;
        let said = node.cri.log(&id)?;
        node.cri.remove(&id)?;
        Ok((status.exit_code == 0 && said.contains("served")).then_some(said))
    })?;
    assert!(answer.contains(" stdout F served\n"), "{answer}");
    let ip = node.cri.pod_status(&pod.id)?.network.ok_or("a network")?.ip;
    assert!(pod.exec(&server, "ip -4 addr show dev eth0")?.contains(&ip));
    assert!(pod.exec(&server, "ip -4 addr show dev lo")?.contains("127.0.0.1"));
    Ok(())
}

/// Sends nothing and reads to the end.
fn read(address: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address.parse()?, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.flush()?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

const WEB: &str = "echo up; while :; do echo from the pod | nc -l -p 8080; done";

fn host_ports(node: &Node) -> Result {
    let mut config = node.cri.pod("ports");
    let port = |host: i32| PortMapping { container_port: 8080, host_port: host, ..PortMapping::default() };
    // 0 is no host port, never a random one.
    config.port_mappings = vec![port(18080), port(0)];
    let pod = Pod::run_with(node, config)?;
    let web = pod.up(&pod.shell("web", WEB))?;
    for address in ["127.0.0.1:18080", "10.231.0.1:18080"] {
        let text = wait_for(&format!("an answer at {address}"), LIMIT, || {
            // Between two connections nobody listens.
            Ok(read(address).ok().filter(|text| !text.is_empty()))
        })?;
        assert_eq!(text, "from the pod\n");
    }
    node.cri.stop(&web, 0)?;
    node.cri.stop_pod(&pod.id)?;
    assert!(read("127.0.0.1:18080").is_err());
    Ok(())
}

fn no_host_ports(node: &Node) -> Result {
    let mut config = node.cri.host_network_pod("node-ports");
    config.port_mappings =
        vec![PortMapping { container_port: 8081, host_port: 8081, ..PortMapping::default() }];
    let pod = Pod::run_with(node, config)?;
    pod.up(&pod.shell("web", &WEB.replace("8080", "8081")))?;
    let text =
        wait_for("an answer", LIMIT, || Ok(read("127.0.0.1:8081").ok().filter(|text| !text.is_empty())))?;
    assert_eq!(text, "from the pod\n");
    Ok(())
}

fn sysctls(node: &Node) -> Result {
    let mut config = node.cri.pod("sysctls");
    let sysctls = &mut config.linux.get_or_insert_default().sysctls;
    sysctls.insert("net.ipv4.ip_unprivileged_port_start".to_owned(), "77".to_owned());
    sysctls.insert("kernel.shm_rmid_forced".to_owned(), "1".to_owned());
    let pod = Pod::run_with(node, config)?;
    let script = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced";
    assert_eq!(pod.answer("c", script)?, "77\n1");
    let mut bad = node.cri.pod("bad-sysctl");
    bad.linux.get_or_insert_default().sysctls.insert("vm.swappiness".to_owned(), "1".to_owned());
    let message = refused(node.cri.run_pod(&bad), Code::InvalidArgument)?;
    assert!(message.contains("vm.swappiness"), "{message}");
    let mut hostnet = node.cri.host_network_pod("host-sysctl");
    let key = "net.ipv4.ip_unprivileged_port_start".to_owned();
    hostnet.linux.get_or_insert_default().sysctls.insert(key.clone(), "1".to_owned());
    let message = refused(node.cri.run_pod(&hostnet), Code::InvalidArgument)?;
    assert!(message.contains(&key), "{message}");
    Ok(())
}

fn bad_modes(node: &Node) -> Result {
    for (field, mode) in [
        ("network", NamespaceMode::Container),
        ("ipc", NamespaceMode::Target),
        ("pid", NamespaceMode::Target),
    ] {
        let mut config = node.cri.pod("bad-mode");
        let options = sandbox_namespaces(&mut config);
        match field {
            "network" => options.network = mode.into(),
            "ipc" => options.ipc = mode.into(),
            _ => options.pid = mode.into(),
        }
        let message = refused(node.cri.run_pod(&config), Code::InvalidArgument)?;
        assert!(message.contains(&format!("namespace_options.{field}")), "{message}");
    }
    assert!(node.cri.list_pods()?.is_empty());
    Ok(())
}
