//! With the real plugins, as root, in a private host: Debian's 1.1.1, and 1.9.1 for what is new in CNI 1.1.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use criox_sys::netns;

use super::{Node, in_private_host, in_private_host_with, until};
use crate::plugin::tests::write_plugin;
use crate::record::AttachmentRef;
use crate::{HostPort, Network, Protocol};

/// Debian's plugins: up to CNI 1.0.0.
fn old_plugins(test: &str) -> Option<PathBuf> {
    there(test, PathBuf::from("/usr/lib/cni"), "install containernetworking-plugins")
}

/// Plugins with GC and STATUS.
fn new_plugins(test: &str) -> Option<PathBuf> {
    let peers = std::env::var_os("CRIOX_PEERS").map(|peers| Path::new(&peers).join("cni"));
    let dir = std::env::var_os("CRIOX_CNI_1_9").map(PathBuf::from).or(peers);
    let how = "run scripts/peers cni and set CRIOX_CNI_1_9 to the directory of the plugins";
    there(test, dir.unwrap_or_default(), how)
}

fn there(test: &str, dir: PathBuf, how: &str) -> Option<PathBuf> {
    if dir.join("bridge").exists() && dir.join("host-local").exists() && dir.join("portmap").exists() {
        return Some(dir);
    }
    eprintln!("{test}: not run, no CNI plugins in {:?}: {how}", dir.display());
    None
}

/// A node whose plugins are the real ones, each behind a script that notes what it is called for.
fn node(bin: PathBuf, version: &str, portmap: bool) -> Node {
    let node = Node::new();
    for name in ["bridge", "host-local", "portmap"] {
        let note = format!("echo \"{name} $CNI_COMMAND\" >>{}", node.path("calls").display());
        write_plugin(&node.bin, name, &format!("{note}\nexec {}/{name}", bin.display()));
    }
    let portmap = if portmap { r#",{"type":"portmap","capabilities":{"portMappings":true}}"# } else { "" };
    let list = format!(
        r#"{{"cniVersion":"{version}","name":"pods","plugins":[{{"type":"bridge","bridge":"cni0","isGateway":true,"hairpinMode":true,
            "ipMasq":true,"ipam":{{"type":"host-local","dataDir":"{}","ranges":[[{{"subnet":"10.99.0.0/24"}}],
            [{{"subnet":"fd99::/64"}}]],"routes":[{{"dst":"0.0.0.0/0"}},{{"dst":"::/0"}}]}}}}{portmap}]}}"#,
        node.path("ipam").display()
    );
    node.write("net.d/10-pods.conflist", &list);
    node
}

/// The addresses that host-local has handed out.
fn leases(node: &Node) -> Vec<String> {
    let entries = std::fs::read_dir(node.path("ipam/pods")).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| name.parse::<IpAddr>().is_ok())
        .collect();
    names.sort();
    names
}

/// Answers "hi" to each connection to the pod's port, on both families.
fn serve(ns: &Path, port: u16) {
    let ns = netns::open(ns).unwrap();
    let listener = netns::within(ns.as_fd(), move || TcpListener::bind(("::", port)).unwrap()).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _closed = stream.and_then(|mut stream| stream.write_all(b"hi"));
        }
    });
}

fn reaches(to: &str) -> bool {
    let to: SocketAddr = to.parse().unwrap();
    let Ok(mut stream) = TcpStream::connect_timeout(&to, Duration::from_secs(1)) else { return false };
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).is_ok() && said == "hi"
}

/// The same for what must come through: an IPv6 address counts only after a second or two of looking for others
/// that have it.
fn comes_to_reach(to: &str) -> bool {
    (0..20).any(|_| {
        let reached = reaches(to);
        if !reached {
            std::thread::sleep(Duration::from_millis(250));
        }
        reached
    })
}

fn comes_to_reach_from(ns: &Path, to: &str) -> bool {
    let ns = netns::open(ns).unwrap();
    netns::within(ns.as_fd(), || comes_to_reach(to)).unwrap()
}

fn port(host_port: i32, container_port: i32) -> HostPort {
    HostPort::from_cri(Protocol::Tcp, container_port, host_port, "").unwrap().unwrap()
}

#[test]
fn a_pod_gets_a_dual_stack_bridge_and_gives_it_back() {
    let name = "real::a_pod_gets_a_dual_stack_bridge_and_gives_it_back";
    let Some(bin) = old_plugins(name) else { return };
    in_private_host(name, || async {
        let node = node(bin, "1.0.0", true);
        let network = node.network();
        let _watching = network.start();
        assert!(network.status().ready);
        let mut request = node.request("pod-one");
        request.host_ports = vec![port(8080, 80)];
        let intent = network.prepare(&request).unwrap();
        let attachment = network.add(&intent).await.unwrap();
        let ips: Vec<String> = attachment.ips.iter().map(|ip| ip.address.to_string()).collect();
        assert_eq!(ips, ["10.99.0.2", "fd99::2"]);
        assert_eq!(leases(&node), ["10.99.0.2", "fd99::2"]);
        let ns = netns::open(&request.netns).unwrap();
        let inside = netns::addresses(ns.as_fd()).unwrap();
        for ip in &attachment.ips {
            let there =
                |a: &netns::InterfaceAddress| a.interface == "eth0" && a.up && a.address == ip.address;
            assert!(inside.iter().any(there), "{inside:?}");
        }
        serve(&request.netns, 80);
        assert!(comes_to_reach("10.99.0.2:80") && comes_to_reach("[fd99::2]:80"));
        assert!(comes_to_reach("10.99.0.1:8080"), "portmap maps the host port");
        network.gc(&[AttachmentRef::from(&attachment)]).await.unwrap();
        // Without host ports: portmap 1.1.1 can't check those of two families.
        let plain = network.add(&network.prepare(&node.request("pod-two")).unwrap()).await.unwrap();
        network.check(&plain).await.unwrap();
        network.del(&plain).await.unwrap();
        assert_eq!(leases(&node).len(), 2);
        network.del(&attachment).await.unwrap();
        assert!(leases(&node).is_empty());
        assert!(!reaches("10.99.0.1:8080"));

        // After a reboot there is no namespace, and only the record.
        let again = network.add(&intent).await.unwrap();
        node.unpin(&request.netns);
        network.del(&again).await.unwrap();
        assert!(leases(&node).is_empty());
        network.del(&again).await.unwrap();
        let mut verbs: Vec<String> =
            node.calls().iter().map(|call| call.split(' ').nth(1).unwrap().into()).collect();
        verbs.sort();
        verbs.dedup();
        assert_eq!(
            verbs,
            ["ADD", "CHECK", "DEL"],
            "plugins of an older configuration never get GC or STATUS"
        );
    });
}

#[test]
fn a_killed_daemon_leaks_no_address() {
    let name = "real::a_killed_daemon_leaks_no_address";
    let Some(bin) = old_plugins(name) else { return };
    in_private_host(name, || async {
        let node = node(bin, "0.4.0", false);
        let intent = node.network().prepare(&node.request("pod-one")).unwrap();
        // It dies after the plugins and before the result is recorded: the cache file isn't there either.
        node.network().add(&intent).await.unwrap();
        std::fs::remove_file(node.path("cache/results/pods-pod-one-eth0")).unwrap();
        assert_eq!(leases(&node).len(), 2);
        node.network().del(&intent).await.unwrap();
        assert!(leases(&node).is_empty());
        let ns = netns::open(&intent.netns.path).unwrap();
        let left = netns::addresses(ns.as_fd()).unwrap();
        assert!(left.iter().all(|a| a.interface != "eth0"), "{left:?}");
    });
}

#[test]
fn old_plugins_refuse_a_new_configuration_clearly() {
    let name = "real::old_plugins_refuse_a_new_configuration_clearly";
    let Some(bin) = old_plugins(name) else { return };
    in_private_host(name, || async {
        let node = node(bin, "1.1.0", false);
        let network = node.network();
        let _watching = network.start();
        until(&network, "STATUS is refused", |status| {
            !status.ready && status.message.contains("bridge STATUS")
        })
        .await;
    });
}

#[test]
fn host_ports_work_without_a_plugin_by_nftables() {
    let name = "real::host_ports_work_without_a_plugin_by_nftables";
    let Some(bin) = old_plugins(name) else { return };
    if Command::new("nft").arg("--version").output().is_err() {
        eprintln!("{name}: not run, nft is not installed");
        return;
    }
    in_private_host(name, || async {
        host_ports(bin).await;
        let left = Command::new("nft").args(["list", "ruleset"]).output().unwrap();
        let left = String::from_utf8_lossy(&left.stdout).into_owned();
        assert!(!left.contains("criox"), "{left}");
    });
}

#[test]
fn host_ports_work_without_a_plugin_by_iptables() {
    let name = "real::host_ports_work_without_a_plugin_by_iptables";
    let Some(bin) = old_plugins(name) else { return };
    // A host without nft.
    let programs = tempfile::tempdir().unwrap();
    let mut wanted = vec!["unshare", "true"];
    wanted.extend(["iptables", "iptables-restore", "iptables-save", "ip6tables", "ip6tables-restore"]);
    for program in wanted {
        let Some(found) = std::env::split_paths(&std::env::var_os("PATH").unwrap())
            .map(|dir| dir.join(program))
            .find(|path| path.exists())
        else {
            eprintln!("{name}: not run, {program} is not installed");
            return;
        };
        symlink(found, programs.path().join(program)).unwrap();
    }
    in_private_host_with(name, programs.path().as_os_str(), || async {
        host_ports(bin).await;
        let left = Command::new("iptables-save").output().unwrap();
        let left = String::from_utf8_lossy(&left.stdout).into_owned();
        assert!(!left.contains("CRIOX"), "{left}");
    });
}

async fn host_ports(bin: PathBuf) {
    let node = node(bin, "1.0.0", false);
    let network = node.network();
    network.restore(&[]).await.unwrap();
    let mut first = node.request("first");
    first.host_ports = vec![port(8080, 80)];
    let intent = network.prepare(&first).unwrap();
    assert_eq!(intent.host_ports.len(), 1, "no plugin maps them");
    let attachment = network.add(&intent).await.unwrap();
    serve(&first.netns, 80);
    let other = node.request("other");
    let other_attachment = network.add(&network.prepare(&other).unwrap()).await.unwrap();
    let check = |when: &str| {
        assert!(comes_to_reach("10.99.0.1:8080"), "{when}: from the host");
        assert!(comes_to_reach("127.0.0.1:8080"), "{when}: from the host by its loopback");
        assert!(comes_to_reach("[fd99::1]:8080"), "{when}: by IPv6");
        assert!(comes_to_reach_from(&other.netns, "10.99.0.1:8080"), "{when}: from a neighbour");
        assert!(comes_to_reach_from(&other.netns, "[fd99::1]:8080"), "{when}: from a neighbour by IPv6");
        assert!(comes_to_reach_from(&first.netns, "10.99.0.1:8080"), "{when}: from the pod itself");
        assert!(!reaches("10.99.0.3:8080"), "{when}: what is for others is left alone");
    };
    check("mapped");
    let mut rival = node.request("rival");
    rival.host_ports = vec![port(8080, 81)];
    let error = network.add(&network.prepare(&rival).unwrap()).await.unwrap_err();
    assert_eq!(error.to_string(), "host port *:8080/tcp is already mapped to sandbox first");
    assert_eq!(leases(&node).len(), 4, "it got no address");

    // The daemon is killed, and somebody removes the rules. (Not the whole ruleset: these plugins could not DEL then.)
    drop(network);
    let _either = Command::new("nft").args(["delete", "table", "inet", "criox-hostports"]).status();
    let network = node.network();
    network.restore(std::slice::from_ref(&attachment)).await.unwrap();
    check("restored");
    network.restore(std::slice::from_ref(&attachment)).await.unwrap();
    check("restored twice");

    network.del(&attachment).await.unwrap();
    network.del(&attachment).await.unwrap();
    network.del(&other_attachment).await.unwrap();
    assert!(!reaches("10.99.0.1:8080") && !reaches("127.0.0.1:8080"));
    assert!(leases(&node).is_empty());

    let without =
        Network::new(crate::NetworkOptions { disable_hostport_mapping: true, ..node.options() }).unwrap();
    assert!(without.prepare(&rival).unwrap().host_ports.is_empty());
}

#[test]
fn new_plugins_are_asked_status_and_collect_garbage() {
    let name = "real::new_plugins_are_asked_status_and_collect_garbage";
    let Some(bin) = new_plugins(name) else { return };
    in_private_host(name, || async {
        let node = node(bin, "1.1.0", true);
        let network = node.network();
        let _watching = network.start();
        until(&network, "STATUS succeeds", |status| status.ready).await;
        let (live, lost) = (node.request("live"), node.request("lost"));
        let attachment = network.add(&network.prepare(&live).unwrap()).await.unwrap();
        network.add(&network.prepare(&lost).unwrap()).await.unwrap();
        assert_eq!(attachment.result["cniVersion"], "1.1.0");
        network.check(&attachment).await.unwrap();
        assert_eq!(leases(&node).len(), 4);
        let calls = node.calls();
        assert!(
            calls.contains(&"bridge STATUS".into()) && calls.contains(&"portmap STATUS".into()),
            "{calls:?}"
        );
        // The daemon lost all trace of a pod but the cache file. (No plugin of 1.9.1 frees anything at GC by itself;
        // the specification has the runtime delete what is stale, too.)
        let restarted = node.network();
        restarted.gc(&[AttachmentRef::from(&attachment)]).await.unwrap();
        let calls = node.calls();
        assert!(calls.contains(&"bridge GC".into()) && calls.contains(&"portmap GC".into()), "{calls:?}");
        assert_eq!(leases(&node), ["10.99.0.2", "fd99::2"]);
        restarted.check(&attachment).await.unwrap();
        restarted.del(&attachment).await.unwrap();
        assert!(leases(&node).is_empty());
    });
}
