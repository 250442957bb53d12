//! The socket itself: HTTP for cAdvisor, mode, and sizes of messages.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use criox_cri::v1::{
    CgroupDriver, GetEventsRequest, ListPodSandboxRequest, PodSandboxFilter, RuntimeConfigRequest,
    UpdateRuntimeConfigRequest,
};
use serde_json::Value;
use testkit::cri::Place;
use testkit::harness::Test;
use testkit::{Cri, Node, Result};
use tonic::Code;

use crate::NODE;
use crate::pod::{LIMIT, Pod};

pub(crate) const TESTS: &[Test] = &[
    ("the socket is for root and its group", || NODE.test(mode)),
    ("GET /info says where images are and which cgroup driver is used", || NODE.test(info)),
    ("GET /containers/ID describes containers and sandboxes as cAdvisor wants them", || {
        NODE.test(containers)
    }),
    ("anything else on HTTP/1 is an error and no more", || NODE.test(other_http)),
    ("a message of 80 MiB is accepted, a bigger one refused", || NODE.test(sizes)),
    ("a client that never closes its connections keeps nobody out", || NODE.test(many_connections)),
    ("Version and RuntimeConfig answer what the kubelet counts on", || NODE.test(version)),
];

/// One HTTP/1.1 request on the CRI socket: the status, and the body when it is JSON.
pub(crate) fn get(node: &Node, path: &str) -> Result<(u16, Value)> {
    let (status, body) =
        http(node, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"))?;
    Ok((status, serde_json::from_str(&body).unwrap_or(Value::Null)))
}

fn http(node: &Node, request: &str) -> Result<(u16, String)> {
    let mut stream = UnixStream::connect(node.daemon.socket())?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(request.as_bytes())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8(bytes)?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or("an HTTP answer")?;
    let status = head.split(' ').nth(1).ok_or("a status line")?.parse()?;
    Ok((status, body.to_owned()))
}

/// critest opens two connections for each of its specs, and keeps them all.
fn many_connections(node: &Node) -> Result {
    let connect = || {
        let place = Place {
            cgroup_parent: node.daemon.cgroup_parent().to_owned(),
            logs: node.daemon.dir().join("logs"),
        };
        Cri::connect(&node.daemon.socket(), place, LIMIT)
    };
    let watcher = connect()?;
    let mut events = watcher.call(watcher.runtime().get_container_events(GetEventsRequest {}))?;
    let kept = (0..400)
        .map(|_| {
            let client = connect()?;
            client.version()?;
            Ok(client)
        })
        .collect::<Result<Vec<_>>>()?;
    // One that had to make room connects again without its user's knowledge; a stream of events is work, and stays.
    kept[0].version()?;
    let pod = Pod::run(node, "after-many")?;
    let event =
        watcher.call(async { events.message().await.map(tonic::Response::new) })?.ok_or("an event")?;
    assert_eq!(event.container_id, pod.id);
    Ok(())
}

fn mode(node: &Node) -> Result {
    let mode = std::fs::metadata(node.daemon.socket())?.permissions().mode() & 0o7777;
    assert_eq!(mode, 0o660, "{mode:o}");
    Ok(())
}

fn info(node: &Node) -> Result {
    let (status, body) = get(node, "/info")?;
    assert_eq!(status, 200);
    assert_eq!(body["storage_driver"], "overlay");
    assert_eq!(body["storage_root"].as_str(), node.daemon.root().to_str());
    assert_eq!(body["cgroup_driver"], "cgroupfs");
    Ok(())
}

fn containers(node: &Node) -> Result {
    let pod = Pod::run(node, "http")?;
    let id = pod.service("c")?;
    let ip = node.cri.pod_status(&pod.id)?.network.ok_or("a network")?.ip;
    let (status, body) = get(node, &format!("/containers/{id}"))?;
    assert_eq!(status, 200);
    assert_eq!(body["name"], "c");
    assert_eq!(body["image"], node.image);
    assert_eq!(body["sandbox"], pod.id);
    assert_eq!(body["ip_addresses"], serde_json::json!([ip]));
    let pid = body["pid"].as_u64().ok_or("a pid")?;
    assert!(std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?.contains(&format!("crio-{id}")));
    assert!(
        body["root"].as_str().is_some_and(|root| std::path::Path::new(root).join("etc/hello").exists()),
        "{body}"
    );
    let (status, body) = get(node, &format!("/containers/{}", pod.id))?;
    assert_eq!(status, 200);
    assert_eq!(body["labels"]["io.kubernetes.container.name"], "POD");
    let layer = body["root"].as_str().map(|root| std::path::Path::new(root).join("diff"));
    assert!(layer.is_some_and(|layer| layer.is_dir()), "cAdvisor measures it: {body}");
    let pid = body["pid"].as_u64().ok_or("a pid")?;
    let network = std::fs::read_link(format!("/proc/{pid}/ns/net"))?;
    assert_eq!(
        network.to_string_lossy(),
        pod.exec(&id, "readlink /proc/self/ns/net")?,
        "by it cAdvisor finds the network"
    );
    node.cri.stop(&id, 0)?;
    assert_eq!(get(node, &format!("/containers/{id}"))?.1["pid"], 0);
    Ok(())
}

fn other_http(node: &Node) -> Result {
    for path in ["/", "/containers/", "/containers/../info", "/containers/0123", "/no/such"] {
        assert_eq!(get(node, path)?.0, 404, "{path}");
    }
    let (status, _) =
        http(node, "POST /info HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")?;
    assert_eq!(status, 405);
    Ok(())
}

fn sizes(node: &Node) -> Result {
    let ask = |bytes: usize| {
        let filter = PodSandboxFilter { id: "x".repeat(bytes), ..PodSandboxFilter::default() };
        node.cri.call(node.cri.runtime().list_pod_sandbox(ListPodSandboxRequest { filter: Some(filter) }))
    };
    assert!(ask((80 << 20) - 64)?.items.is_empty());
    let status = ask((80 << 20) + 64).err().ok_or("a message over the limit was taken")?;
    assert!(matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted), "{status}");
    node.cri.version()?;
    Ok(())
}

fn version(node: &Node) -> Result {
    let version = node.cri.version()?;
    assert_eq!(version.version, "0.1.0");
    assert_eq!(version.runtime_name, "cri-o");
    assert_eq!(version.runtime_api_version, "v1");
    let numbers = version.runtime_version.split(['-', '+']).next().unwrap_or_default();
    assert_eq!(numbers.split('.').filter(|part| part.parse::<u32>().is_ok()).count(), 3, "{version:?}");
    let cri = &node.cri;
    let config = cri.call(cri.runtime().runtime_config(RuntimeConfigRequest {}))?;
    assert_eq!(config.linux.ok_or("a driver")?.cgroup_driver(), CgroupDriver::Cgroupfs);
    cri.call(cri.runtime().update_runtime_config(UpdateRuntimeConfigRequest::default()))?;
    Ok(())
}
