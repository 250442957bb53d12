//! With fake plugins: what is called, with what, and what a failure leads to.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use criox_sys::netns;
use serde_json::{Value, json};

use super::{Node, in_private_host, until};
use crate::record::{AttachmentRef, Dns};
use crate::{Bandwidth, HostPort, Network, NetworkError, NetworkOptions, Protocol};

/// ADD answers with an address.
const OK: &str = r#"[ $CNI_COMMAND = ADD ] && echo '{"cniVersion":"VERSION","interfaces":[{"name":"eth0","sandbox":"x"}],"ips":[{"address":"10.1.0.2/16","interface":0},{"address":"fd00::2/64","interface":0}]}'; exit 0"#;

fn ok(version: &str) -> String {
    OK.replace("VERSION", version)
}

/// A node with the chain `first`, `second`.
fn node(version: &str, more: &str) -> Node {
    let node = Node::new();
    node.fake("first", &ok(version));
    node.fake("second", &ok(version));
    let list = format!(
        r#"{{"cniVersion":"{version}","name":"pods",{more}"plugins":[{{"type":"first","own":1,"capabilities":{{"bandwidth":true,"mac":false}}}},
            {{"type":"second","capabilities":{{"portMappings":true,"dns":true,"io.kubernetes.cri.pod-annotations":true}}}}]}}"#
    );
    node.write("net.d/10-pods.conflist", &list);
    node
}

#[test]
fn a_chain_is_called_in_order_and_back() {
    in_private_host("fake::a_chain_is_called_in_order_and_back", || async {
        let node = node("1.0.0", "");
        let network = node.network();
        let mut request = node.request("a");
        request.bandwidth = Some(Bandwidth { ingress: Some(1000), egress: None });
        request.mac = Some("02:00:00:00:00:01".into());
        request.dns = Some(Dns { servers: vec!["10.0.0.10".into()], ..Dns::default() });
        request.host_ports = vec![HostPort::from_cri(Protocol::Tcp, 80, 8080, "10.0.0.1").unwrap().unwrap()];
        request.annotations.insert("k".into(), "v".into());
        let intent = network.prepare(&request).unwrap();
        assert!(intent.host_ports.is_empty(), "a plugin maps them");
        let stored = serde_json::to_string(&intent).unwrap();
        let attachment = network.add(&serde_json::from_str(&stored).unwrap()).await.unwrap();
        assert_eq!(attachment.primary_ip().unwrap().to_string(), "10.1.0.2");
        assert_eq!(attachment.additional_ips().map(|ip| ip.to_string()).collect::<Vec<_>>(), ["fd00::2"]);
        let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod-a;K8S_POD_INFRA_CONTAINER_ID=a;K8S_POD_UID=uid-a";
        let ns = request.netns.display();
        assert_eq!(
            node.lines(),
            [
                format!("first ADD id=a netns={ns} if=eth0 args={args}"),
                format!("second ADD id=a netns={ns} if=eth0 args={args}")
            ]
        );
        let first = node.stdin("first", "ADD");
        assert_eq!(
            (&first["name"], &first["cniVersion"], &first["own"]),
            (&json!("pods"), &json!("1.0.0"), &json!(1))
        );
        assert_eq!(
            first["runtimeConfig"],
            json!({"bandwidth":{"ingressRate":1000,"ingressBurst":34_359_738_359_u64}})
        );
        assert_eq!(first.get("prevResult"), None);
        let second = node.stdin("second", "ADD");
        assert_eq!(second["prevResult"]["ips"][0]["address"], "10.1.0.2/16");
        assert_eq!(
            second["runtimeConfig"],
            json!({"dns":{"servers":["10.0.0.10"]},
            "portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp","hostIP":"10.0.0.1"}],
            "io.kubernetes.cri.pod-annotations":{"k":"v"}})
        );
        assert!(node.path("cache/results/pods-a-eth0").exists());

        network.check(&attachment).await.unwrap();
        assert_eq!(node.calls(), ["first CHECK", "second CHECK"]);
        // The configuration may be gone by then.
        std::fs::remove_file(node.path("net.d/10-pods.conflist")).unwrap();
        network.reload();
        network.del(&attachment).await.unwrap();
        assert_eq!(node.calls(), ["second DEL", "first DEL"]);
        assert_eq!(node.stdin("first", "DEL")["prevResult"], attachment.result);
        assert!(!node.path("cache/results/pods-a-eth0").exists());
        network.del(&attachment).await.unwrap();
    });
}

#[test]
fn a_port_that_a_plugin_maps_has_one_holder() {
    in_private_host("fake::a_port_that_a_plugin_maps_has_one_holder", || async {
        let node = node("1.0.0", "");
        let network = node.network();
        let intent = |network: &Network, id: &str, port| {
            let mut request = node.request(id);
            request.host_ports = vec![HostPort::from_cri(Protocol::Tcp, 80, port, "").unwrap().unwrap()];
            network.prepare(&request).unwrap()
        };
        let first = network.add(&intent(&network, "a", 8080)).await.unwrap();
        node.calls();
        let second = intent(&network, "b", 8080);
        let error = network.add(&second).await.unwrap_err();
        assert_eq!(error.to_string(), "host port *:8080/tcp is already mapped to sandbox a");
        assert!(node.calls().is_empty(), "no plugin is asked");
        network.add(&intent(&network, "c", 8081)).await.unwrap();
        network.del(&first).await.unwrap();
        let second = network.add(&second).await.unwrap();
        // Also those of before a restart count, and nobody has rules of ours.
        let network = node.network();
        network.restore(std::slice::from_ref(&second)).await.unwrap();
        let error = network.add(&intent(&network, "d", 8080)).await.unwrap_err();
        assert!(matches!(error, NetworkError::HostPortTaken { .. }), "{error}");
        network.del(&second).await.unwrap();
        network.add(&intent(&network, "e", 8080)).await.unwrap();
    });
}

#[test]
fn a_port_whose_del_is_owed_stays_taken_after_a_restart() {
    in_private_host("fake::a_port_whose_del_is_owed_stays_taken_after_a_restart", || async {
        for disable_hostport_mapping in [false, true] {
            let node = node("1.0.0", "");
            let restarted =
                || Network::new(NetworkOptions { disable_hostport_mapping, ..node.options() }).unwrap();
            let intent = |network: &Network, id: &str| {
                let mut request = node.request(id);
                request.host_ports = vec![HostPort::from_cri(Protocol::Tcp, 80, 8080, "").unwrap().unwrap()];
                network.prepare(&request).unwrap()
            };
            let network = restarted();
            let gone = intent(&network, "gone");
            network.add(&gone).await.unwrap();
            node.fake("second", r#"[ $CNI_COMMAND = DEL ] && { echo '{"code":100,"msg":"busy"}'; exit 1; }"#);
            network.del(&gone).await.unwrap_err();

            // The pod is removed; only its intent is left, and no attachment is restored.
            let network = restarted();
            network.claim([&gone]).await;
            network.restore(&[]).await.unwrap();
            let next = intent(&network, "next");
            node.calls();
            let error = network.add(&next).await.unwrap_err();
            assert_eq!(error.to_string(), "host port *:8080/tcp is already mapped to sandbox gone");
            assert!(node.calls().is_empty(), "no plugin is asked");
            network.del(&gone).await.unwrap_err();
            assert!(matches!(network.add(&next).await, Err(NetworkError::HostPortTaken { .. })));
            node.fake("second", &ok("1.0.0"));
            network.del(&gone).await.unwrap();
            network.add(&next).await.unwrap();
        }
    });
}

#[test]
fn del_after_a_crash_needs_only_the_intent() {
    in_private_host("fake::del_after_a_crash_needs_only_the_intent", || async {
        let node = node("1.0.0", "");
        let intent = node.network().prepare(&node.request("a")).unwrap();
        node.network().add(&intent).await.unwrap();
        node.calls();
        // Another process: only the intent and the cache are left.
        let network = node.network();
        network.del(&intent).await.unwrap();
        assert_eq!(node.calls(), ["second DEL", "first DEL"]);
        assert_eq!(
            node.stdin("second", "DEL")["prevResult"]["ips"][0]["address"],
            "10.1.0.2/16",
            "from the cache"
        );
        network.del(&intent).await.unwrap();
        assert_eq!(node.stdin("second", "DEL").get("prevResult"), None);
    });
}

#[test]
fn del_never_runs_in_another_namespace() {
    in_private_host("fake::del_never_runs_in_another_namespace", || async {
        let node = node("1.0.0", "");
        let network = node.network();
        let request = node.request("a");
        let attachment = network.add(&network.prepare(&request).unwrap()).await.unwrap();
        node.calls();
        node.unpin(&request.netns);
        network.del(&attachment).await.unwrap();
        assert!(node.lines().iter().all(|line| line.contains(" netns= if=")), "gone");

        // Another namespace at the same path, and with the same number if the kernel hands it out in time.
        for _ in 0..100 {
            let other = node.pin("a");
            if netns::identity(netns::open(&other).unwrap()).unwrap().ino == attachment.intent.netns.ino {
                break;
            }
            node.unpin(&other);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if !request.netns.exists() {
            node.pin("a");
        }
        network.del(&attachment).await.unwrap();
        let lines = node.lines();
        assert!(lines.len() == 2 && lines.iter().all(|line| line.contains(" netns= if=")), "{lines:?}");
        let error = network.add(&attachment.intent).await.unwrap_err();
        assert!(matches!(error, NetworkError::NetnsReplaced { .. }), "{error}");
        let error = network.check(&attachment).await.unwrap_err();
        assert!(matches!(error, NetworkError::NetnsReplaced { .. }), "{error}");
        assert!(node.calls().is_empty());
    });
}

#[test]
fn the_hosts_namespace_and_plain_files_are_refused() {
    in_private_host("fake::the_hosts_namespace_and_plain_files_are_refused", || async {
        let node = node("1.0.0", "");
        let network = node.network();
        let mut request = node.request("a");
        request.netns = "/proc/self/ns/net".into();
        let error = network.prepare(&request).unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("the host's own"), "{source}");
        node.write("plain", "");
        request.netns = node.path("plain");
        assert!(matches!(network.prepare(&request), Err(NetworkError::Netns { .. })));
        request = node.request("b");
        request.name = "x;K8S_POD_UID=forged".into();
        assert!(matches!(network.prepare(&request), Err(NetworkError::InvalidRequest { .. })));
        request.sandbox_id = "../x".into();
        assert!(matches!(network.prepare(&request), Err(NetworkError::InvalidRequest { .. })));
        assert!(node.calls().is_empty());
    });
}

#[test]
fn a_failed_add_is_undone_on_the_whole_chain() {
    in_private_host("fake::a_failed_add_is_undone_on_the_whole_chain", || async {
        let node = node("1.0.0", "");
        let network = node.network();
        let request = node.request("a");
        let intent = network.prepare(&request).unwrap();
        for (body, want) in [
            (
                r#"[ $CNI_COMMAND = DEL ] || { echo '{"code":11,"msg":"no address left"}'; exit 1; }"#,
                "no address left",
            ),
            ("[ $CNI_COMMAND = DEL ] || echo '{'", "not JSON"),
            ("exit 0", "it printed nothing"),
            (r#"[ $CNI_COMMAND = DEL ] || echo '{"cniVersion":"1.0.0"}'"#, "no IP address"),
            (
                r#"[ $CNI_COMMAND = DEL ] || echo '{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.1"}]}'"#,
                "prefix length",
            ),
        ] {
            node.fake("second", body);
            let error = network.add(&intent).await.unwrap_err();
            assert_eq!(error.to_string(), "sandbox a, network \"pods\": ADD");
            let source = std::error::Error::source(&error).unwrap().to_string();
            assert!(source.starts_with("CNI plugin second ADD") && source.contains(want), "{source}");
            assert_eq!(node.calls(), ["first ADD", "second ADD", "second DEL", "first DEL"], "{want}");
            assert!(!node.path("cache/results/pods-a-eth0").exists());
        }
        node.fake("second", &ok("1.0.0"));
        network.add(&intent).await.unwrap();
    });
}

#[test]
fn a_hanging_plugin_costs_only_its_own_pod() {
    in_private_host("fake::a_hanging_plugin_costs_only_its_own_pod", || async {
        let node = node("1.0.0", "");
        node.fake(
            "second",
            &format!("[ $CNI_COMMAND$CNI_CONTAINERID = ADDslow ] && sleep 600\n{}", ok("1.0.0")),
        );
        let mut options = node.options();
        options.deadlines.add = Duration::from_secs(3);
        let network = Network::new(options).unwrap();
        let slow = network.prepare(&node.request("slow")).unwrap();
        let hanging = tokio::spawn({
            let (network, slow) = (network.clone(), slow.clone());
            async move { network.add(&slow).await }
        });
        tokio::time::sleep(Duration::from_millis(300)).await;
        let begun = Instant::now();
        let other = network.prepare(&node.request("quick")).unwrap();
        let attachment = network.add(&other).await.unwrap();
        network.del(&attachment).await.unwrap();
        assert!(network.status().ready);
        assert!(
            begun.elapsed() < Duration::from_secs(2) && !hanging.is_finished(),
            "the other pod didn't wait"
        );
        let error = hanging.await.unwrap().unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.starts_with("CNI plugin second ADD did not answer in 3s and was killed"), "{source}");
        let ends = node.lines().into_iter().filter(|line| line.contains("DEL id=slow")).count();
        assert_eq!(ends, 2, "DEL of the whole chain");
    });
}

#[test]
fn del_goes_on_after_a_failure_and_can_be_repeated() {
    in_private_host("fake::del_goes_on_after_a_failure_and_can_be_repeated", || async {
        let node = node("1.0.0", "");
        let network = node.network();
        let attachment = network.add(&network.prepare(&node.request("a")).unwrap()).await.unwrap();
        node.calls();
        node.fake("second", r#"echo '{"code":100,"msg":"busy"}'; exit 1"#);
        std::fs::remove_file(node.path("bin/first")).unwrap();
        let error = network.del(&attachment).await.unwrap_err().to_string();
        assert!(
            error.contains("busy") && error.contains("\"first\" is not in") && error.contains("retried"),
            "{error}"
        );
        assert!(node.path("cache/results/pods-a-eth0").exists(), "the result is kept for the next try");
        node.fake("first", &ok("1.0.0"));
        node.fake("second", &ok("1.0.0"));
        node.calls();
        network.del(&attachment).await.unwrap();
        assert_eq!(node.calls(), ["second DEL", "first DEL"]);
    });
}

#[test]
fn old_configurations_get_old_words() {
    in_private_host("fake::old_configurations_get_old_words", || async {
        for (version, dels) in [("0.3.1", false), ("0.4.0", true)] {
            let node = node(version, "");
            let network = node.network();
            // Answers in a newer form than it was asked in.
            node.fake("first", &ok("1.0.0"));
            let attachment = network.add(&network.prepare(&node.request("a")).unwrap()).await.unwrap();
            let prev = &node.stdin("second", "ADD")["prevResult"];
            assert_eq!((&prev["cniVersion"], &prev["ips"][1]["version"]), (&json!(version), &json!("6")));
            node.calls();
            network.check(&attachment).await.unwrap();
            assert_eq!(node.calls().len(), if dels { 2 } else { 0 }, "CHECK is new in 0.4.0");
            network.del(&attachment).await.unwrap();
            assert_eq!(node.stdin("first", "DEL").get("prevResult").is_some(), dels);
        }
        let node = Node::new();
        node.fake("first", r#"[ $CNI_COMMAND = ADD ] && echo '{"ip4":{"ip":"10.1.0.2/16"}}'; exit 0"#);
        node.write("net.d/1.conf", r#"{"cniVersion":"0.2.0","name":"old","type":"first"}"#);
        let network = node.network();
        let attachment = network.add(&network.prepare(&node.request("a")).unwrap()).await.unwrap();
        assert_eq!(attachment.result, json!({"cniVersion":"0.2.0","ip4":{"ip":"10.1.0.2/16"}}));
        assert_eq!(attachment.result_1_0()["ips"][0]["address"], "10.1.0.2/16");
        network.del(&attachment).await.unwrap();
    });
}

#[test]
fn only_new_configurations_get_gc_and_status() {
    in_private_host("fake::only_new_configurations_get_gc_and_status", || async {
        for version in ["0.3.1", "0.4.0", "1.0.0"] {
            let node = node(version, "");
            let network = node.network();
            let watching = network.start();
            tokio::time::sleep(Duration::from_millis(300)).await;
            network.gc(&[]).await.unwrap();
            assert!(network.status().ready);
            drop(watching);
            assert_eq!(node.calls(), [""; 0], "{version}");
        }
        let node = node("1.1.0", "");
        let network = node.network();
        assert!(!network.status().ready);
        let _watching = network.start();
        until(&network, "STATUS is asked", |status| status.ready).await;
        let asked = node.calls();
        assert_eq!(asked[..2], ["first STATUS", "second STATUS"], "{asked:?}");
        let attachment = network.add(&network.prepare(&node.request("a")).unwrap()).await.unwrap();
        node.calls();
        network.gc(&[AttachmentRef::from(&attachment)]).await.unwrap();
        let mut asked = node.calls();
        asked.retain(|call| !call.ends_with("STATUS"));
        assert_eq!(asked, ["first GC", "second GC"]);
        let want = json!([{"containerID":"a","ifname":"eth0"}]);
        assert_eq!(node.stdin("first", "GC")["cni.dev/valid-attachments"], want);
        node.write(
            "net.d/10-pods.conflist",
            &std::fs::read_to_string(node.path("net.d/10-pods.conflist"))
                .unwrap()
                .replace("\"plugins\"", "\"disableGC\":true,\"plugins\""),
        );
        network.reload();
        network.gc(&[]).await.unwrap();
        assert!(!node.calls().iter().any(|call| call.ends_with("GC")), "disableGC");
    });
}

#[test]
fn gc_removes_what_is_stale_and_spares_the_rest() {
    in_private_host("fake::gc_removes_what_is_stale_and_spares_the_rest", || async {
        let node = node("1.1.0", "");
        let made = node.network();
        let _watching = made.start();
        until(&made, "ready", |status| status.ready).await;
        let mut kept = Vec::new();
        for id in ["stale", "live"] {
            kept.push(made.add(&made.prepare(&node.request(id)).unwrap()).await.unwrap());
        }
        let mut foreign: Value = serde_json::from_str(
            &std::fs::read_to_string(node.path("cache/results/pods-live-eth0")).unwrap(),
        )
        .unwrap();
        foreign["containerId"] = json!("podman");
        foreign["cniArgs"] = json!([]);
        node.write("cache/results/pods-podman-eth0", &foreign.to_string());
        made.gc(&[]).await.unwrap();
        assert!(
            node.path("cache/results/pods-stale-eth0").exists(),
            "this process made it and knows that it lives"
        );
        drop(_watching);

        let network = node.network();
        node.calls();
        network.gc(&[AttachmentRef::from(&kept[1].intent)]).await.unwrap();
        let lines = node.lines();
        assert!(
            lines[0].starts_with("second DEL id=stale netns= if=eth0 args=IgnoreUnknown=1;"),
            "{lines:?}"
        );
        assert!(lines[1].starts_with("first DEL id=stale netns= "), "{lines:?}");
        assert_eq!(lines.len(), 4, "{lines:?}");
        let valid = node.stdin("second", "GC")["cni.dev/valid-attachments"].clone();
        let mut ids: Vec<_> =
            valid.as_array().unwrap().iter().map(|v| v["containerID"].as_str().unwrap()).collect();
        ids.sort_unstable();
        assert_eq!(ids, ["live", "podman"]);
        assert!(!node.path("cache/results/pods-stale-eth0").exists());
        assert!(node.path("cache/results/pods-podman-eth0").exists());
    });
}

#[test]
fn a_hanging_gc_ends_in_time() {
    in_private_host("fake::a_hanging_gc_ends_in_time", || async {
        let node = node("1.1.0", "");
        let first = node.network();
        let watching = first.start();
        first.ready_within(Duration::from_secs(20)).await.unwrap();
        first.add(&first.prepare(&node.request("stale")).unwrap()).await.unwrap();
        drop(watching);
        for name in ["first", "second"] {
            node.fake(name, "sleep 600");
        }
        let mut options = node.options();
        options.deadlines.gc = Duration::from_secs(1);
        let begun = Instant::now();
        let error = Network::new(options).unwrap().gc(&[]).await.unwrap_err().to_string();
        assert!(error.contains("GC is incomplete") && error.contains("second DEL did not answer"), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    });
}

#[test]
fn gc_is_put_off_while_a_pod_is_attached() {
    in_private_host("fake::gc_is_put_off_while_a_pod_is_attached", || async {
        let node = node("1.0.0", "");
        node.fake("second", &format!("sleep 1\n{}", ok("1.0.0")));
        let network = node.network();
        let intent = network.prepare(&node.request("a")).unwrap();
        let adding = tokio::spawn({
            let network = network.clone();
            async move { network.add(&intent).await }
        });
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(matches!(network.gc(&[]).await, Err(NetworkError::Busy)));
        adding.await.unwrap().unwrap();
        network.gc(&[]).await.unwrap();
    });
}

#[test]
fn the_directories_are_watched() {
    in_private_host("fake::the_directories_are_watched", || async {
        let node = Node::new();
        let network =
            Network::new(NetworkOptions { status_grace_period: Duration::ZERO, ..node.options() }).unwrap();
        let error = network.prepare(&node.request("early")).unwrap_err().to_string();
        assert!(error.starts_with("network is not ready: no valid CNI configuration in"), "{error}");
        assert!(network.ready_within(Duration::from_millis(10)).await.is_err());
        let _watching = network.start();
        node.write("net.d/20-b.conf", r#"{"cniVersion":"1.0.0","name":"b","type":"absent"}"#);
        until(&network, "the plugin is missing", |status| status.message.contains("\"absent\" is not in"))
            .await;
        node.fake("absent", &ok("1.0.0"));
        until(&network, "the plugin came", |status| status.ready && status.network.as_deref() == Some("b"))
            .await;
        node.write(
            "net.d/10-a.conflist",
            r#"{"cniVersion":"1.1.0","name":"a","plugins":[{"type":"absent"}]}"#,
        );
        until(&network, "an earlier file", |status| status.ready && status.network.as_deref() == Some("a"))
            .await;
        node.fake(
            "absent",
            r#"[ $CNI_COMMAND = STATUS ] && { echo '{"code":50,"msg":"agent is down"}'; exit 1; }"#,
        );
        until(&network, "STATUS fails", |status| !status.ready && status.message.contains("agent is down"))
            .await;
        node.write("net.d/05-broken.conf", "{");
        std::fs::remove_file(node.path("net.d/10-a.conflist")).unwrap();
        until(&network, "back to the other", |status| status.ready && status.network.as_deref() == Some("b"))
            .await;
        assert!(network.status().problems[0].contains("05-broken.conf"), "{:?}", network.status());
    });
}

#[test]
fn the_pods_loopback_is_up_without_a_plugin() {
    in_private_host("fake::the_pods_loopback_is_up_without_a_plugin", || async {
        let node = Node::new();
        let ns = netns::open(&node.pin("a")).unwrap();
        netns::loopback_up(ns.as_fd()).unwrap();
        let found = netns::addresses(ns.as_fd()).unwrap();
        assert!(found.iter().any(|a| a.interface == "lo" && a.up && a.address.is_loopback()), "{found:?}");
    });
}
