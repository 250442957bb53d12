//! HTTP/1 on the CRI socket, in the form that the kubelet's cAdvisor expects of CRI-O: `/info` and `/containers/{id}`,
//! and `/config` for people.

use criox_cri::v1;
use criox_lifecycle::{Lifecycle, PodView};
use criox_records::{ContainerPhase, ContainerRecord, SandboxRecord, namespace_options};
use http::header::CONTENT_TYPE;
use http::{Method, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Bytes;
use serde::Serialize;
use serde_json::json;

use crate::rpc::Services;

/// An answer, always at once: from snapshots.
pub(crate) fn answer(method: &Method, path: &str, services: &Services) -> Response<Full<Bytes>> {
    if method != Method::GET {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is served here");
    }
    match path {
        "/info" => json_of(StatusCode::OK, &info(services)),
        "/config" => reply(StatusCode::OK, "application/toml", services.lifecycle.context().config.render()),
        _ => match path.strip_prefix("/containers/") {
            Some(id) => container(id, &services.lifecycle),
            None => text(StatusCode::NOT_FOUND, "404 page not found"),
        },
    }
}

/// Without a mapping of user IDs there is one range of everything.
#[derive(Serialize)]
struct IdRange {
    container_id: u32,
    host_id: u32,
    size: u32,
}

fn info(services: &Services) -> serde_json::Value {
    let config = &services.lifecycle.context().config;
    let all = || [IdRange { container_id: 0, host_id: 0, size: u32::MAX }];
    json!({
        "storage_driver": config.root.storage_driver,
        "storage_image": "",
        "storage_root": config.root.root,
        "cgroup_driver": config.runtime.cgroup_manager.as_str(),
        "default_id_mappings": { "uids": all(), "gids": all() },
    })
}

fn container(id: &str, lifecycle: &Lifecycle) -> Response<Full<Bytes>> {
    // Full IDs only, as with CRI-O; a container is known here from the first moment of its cgroup.
    if id.len() == 64 {
        if let Ok((view, record)) = lifecycle.context().index.container(id) {
            return json_of(StatusCode::OK, &container_info(&view, &record, lifecycle));
        }
        if let Ok(view) = lifecycle.context().index.pod(id) {
            return json_of(StatusCode::OK, &sandbox_info(&view, lifecycle));
        }
    }
    text(StatusCode::NOT_FOUND, &format!("can't find the container with id {id}"))
}

fn container_info(view: &PodView, record: &ContainerRecord, lifecycle: &Lifecycle) -> serde_json::Value {
    let config = &record.config.0;
    json!({
        "name": config.metadata.as_ref().map(|metadata| metadata.name.as_str()).unwrap_or_default(),
        "pid": pid(record),
        "image": config.image.as_ref().map(|image| image.image.as_str()).unwrap_or_default(),
        "image_ref": record.image.digested,
        "created_time": record.created_at,
        "labels": config.labels,
        "annotations": config.annotations,
        "crio_annotations": {},
        "log_path": record.log_path,
        "root": lifecycle.context().index.root(record),
        "sandbox": record.sandbox_id,
        "ip_addresses": view.sandbox.ips,
        "host_network": host_network(&view.sandbox),
    })
}

/// The group `crio-<sandbox>`: by its label and the number of any process of the pod, cAdvisor finds the pod's network.
fn sandbox_info(view: &PodView, lifecycle: &Lifecycle) -> serde_json::Value {
    let config = &view.sandbox.config.0;
    let mut labels = config.labels.clone();
    labels.insert("io.kubernetes.container.name".into(), "POD".into());
    let init = view.sandbox.init.map(|init| init.pid);
    let running = || view.containers.values().map(|record| pid(record)).find(|pid| *pid > 0);
    json!({
        "name": config.metadata.as_ref().map(|metadata| metadata.name.as_str()).unwrap_or_default(),
        "pid": init.or_else(running).unwrap_or(0),
        "image": "",
        "image_ref": "",
        "created_time": view.sandbox.created_at,
        "labels": labels,
        "annotations": config.annotations,
        "crio_annotations": {},
        "log_path": "",
        "root": lifecycle.context().paths.pod(view.sandbox.id.as_str()),
        "sandbox": view.sandbox.id,
        "ip_addresses": view.sandbox.ips,
        "host_network": host_network(&view.sandbox),
    })
}

fn pid(record: &ContainerRecord) -> i32 {
    match record.phase {
        ContainerPhase::Exited => 0,
        _ => record.process.map_or(0, |process| process.pid),
    }
}

fn host_network(sandbox: &SandboxRecord) -> bool {
    let options = namespace_options(&sandbox.config.0);
    options.network() == v1::NamespaceMode::Node
}

fn json_of(status: StatusCode, value: &serde_json::Value) -> Response<Full<Bytes>> {
    reply(status, "application/json", value.to_string())
}

fn text(status: StatusCode, message: &str) -> Response<Full<Bytes>> {
    reply(status, "text/plain; charset=utf-8", format!("{message}\n"))
}

fn reply(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}
