//! The `info` of verbose answers, with CRI-O's keys.

use std::collections::BTreeMap;

use criox_lifecycle::PodView;
use criox_records::ContainerRecord;
use serde_json::json;

use super::Services;

/// `crictl inspectp`.
pub(super) fn sandbox(view: &PodView) -> BTreeMap<String, String> {
    let sandbox = &view.sandbox;
    let info = json!({
        "image": "",
        "pid": sandbox.init.map_or(0, |init| init.pid),
        "monitorPid": sandbox.monitor.map_or(0, |monitor| monitor.pid),
        "cgroupParent": sandbox.cgroup_parent,
    });
    BTreeMap::from([("info".into(), info.to_string())])
}

/// `crictl inspect`.
pub(super) async fn container(services: &Services, record: &ContainerRecord) -> BTreeMap<String, String> {
    let spec = runtime_spec(services, record).await;
    let security = record.config.0.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let mut info = json!({
        "sandboxID": record.sandbox_id,
        "pid": record.process.map_or(0, |process| process.pid),
        "runtimeSpec": spec,
        "privileged": security.is_some_and(|security| security.privileged),
    });
    // As CRI-O, only where checkpoints are on.
    if services.lifecycle.context().checkpoints.criu().is_some() {
        info["checkpointedAt"] = criox_lifecycle::checkpointed_at(record).into();
        info["restored"] = record.restored.into();
    }
    BTreeMap::from([("info".into(), info.to_string())])
}

/// What the runtime was given; null when the file is gone.
async fn runtime_spec(services: &Services, record: &ContainerRecord) -> serde_json::Value {
    let Ok(directory) = services.lifecycle.context().store.container_dir(record.id.as_str()) else {
        return serde_json::Value::Null;
    };
    let bytes = tokio::fs::read(directory.join("config.json")).await.unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}
