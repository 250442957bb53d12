//! UpdateContainerResources: the monitor changes all limits or none; then the specification on disk and the record
//! follow. What a request leaves out, or says with zero, stays as it is.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use criox_cri::v1;
use criox_monitor_api::client::Client;
use criox_monitor_api::proto::{self, request};
use criox_records::{ContainerRecord, SandboxRecord};
use criox_spec::oci;
use criox_sys::durable;
use serde_json::Value;

use crate::context::{Context, blocking};
use crate::error::{Error, Result};
use crate::monitor;

/// How long the runtime may take.
const RUNTIME: Duration = Duration::from_secs(20);
/// Twice, for it may have to put old values back, and a little for the rest.
const ANSWER: Duration = Duration::from_secs(50);
/// For reading and writing two documents.
const DOCUMENTS: Duration = Duration::from_secs(30);

/// What an update needs to see.
pub(crate) struct Work {
    pub(crate) context: Arc<Context>,
    pub(crate) sandbox: Arc<SandboxRecord>,
    pub(crate) client: Client,
    pub(crate) record: Arc<ContainerRecord>,
    pub(crate) request: Arc<v1::LinuxContainerResources>,
}

/// Returns the limits that hold afterwards.
pub(crate) async fn update(work: Work) -> Result<v1::LinuxContainerResources> {
    let Work { context, sandbox, client, record, request } = work;
    let object = format!("container {}", record.id);
    let nothing = v1::LinuxContainerResources::default();
    let old = record.resources().unwrap_or(&nothing);
    let request = criox_spec::completed_update(old, &request).map_err(Error::of_request)?;
    let score = criox_spec::updated_oom_score(request.oom_score_adj).map_err(Error::of_request)?;
    let handler = context.handlers.get(&sandbox.runtime_handler)?;
    let features = handler.features().await;
    let document = |resources: &v1::LinuxContainerResources| {
        criox_spec::resources_update(resources, &context.node, &features).map_err(Error::of_request)
    };
    let (wanted, warnings) = document(&request)?;
    context.clamps.tell(&warnings);
    check_usage(&context, &record, &wanted)?;
    let merged = criox_spec::merged_update(old, &request);
    if wanted == oci::Resources::default() && score.is_none() {
        return Ok(merged);
    }
    let encode = |resources: &oci::Resources| {
        serde_json::to_vec(resources)
            .map_err(|error| Error::failed(format!("resources of {object}")).because(error))
    };
    // Nothing is lost if what was in force can't be said: the files are put back all the same.
    let previous = document(old).ok().and_then(|(old, _)| encode(&old).ok()).unwrap_or_default();
    let verb = request::Verb::Update(proto::Update {
        container_id: record.id.to_string(),
        resources: encode(&wanted)?,
        timeout_ms: u32::try_from(RUNTIME.as_millis()).unwrap_or(u32::MAX),
        previous,
        oom_score_adj: score,
    });
    monitor::attended(&client, client.done(verb, ANSWER))
        .await
        .map_err(|error| monitor::refused("update", &object, error))?;
    let documents = blocking("specification", &object, DOCUMENTS, {
        let (context, record) = (context.clone(), record.clone());
        move || rewrite(&context, &record, &wanted, score)
    });
    if let Err(error) = documents.await {
        tracing::warn!(container = %record.id, error = error.chain(), "limits have changed, and config.json still has the old ones");
    }
    Ok(merged)
}

/// cgroup v2 takes a limit below what is used, and the kernel then kills.
fn check_usage(context: &Context, record: &ContainerRecord, wanted: &oci::Resources) -> Result<()> {
    let Some(limit) = wanted.memory.as_ref().and_then(|memory| u64::try_from(memory.limit?).ok()) else {
        return Ok(());
    };
    let file = if context.cgroups.is_v2() { "memory.current" } else { "memory.usage_in_bytes" };
    let Some(directory) = context.cgroups.dir("memory", &record.cgroup) else { return Ok(()) };
    let usage =
        std::fs::read_to_string(directory.join(file)).ok().and_then(|text| text.trim().parse::<u64>().ok());
    match usage {
        Some(usage) if limit < usage => Err(Error::new(
            crate::error::Kind::FailedPrecondition,
            format!("cannot decrease memory limit to {limit} bytes: current usage is {usage} bytes"),
        )),
        _ => Ok(()),
    }
}

/// The container's `config.json`, for execs and for tools.
fn rewrite(
    context: &Context,
    record: &ContainerRecord,
    wanted: &oci::Resources,
    score: Option<i32>,
) -> Result<()> {
    let failed = || Error::failed(format!("specification of container {}", record.id));
    let change = serde_json::to_value(wanted).map_err(|error| failed().because(error))?;
    let id = record.id.as_str();
    for directory in [context.store.container_run_dir(id), context.store.container_dir(id)] {
        let path = directory.map_err(|error| failed().because(error))?.join("config.json");
        rewrite_one(&path, &change, score).map_err(|error| failed().because(error))?;
    }
    Ok(())
}

fn rewrite_one(path: &Path, change: &Value, score: Option<i32>) -> std::io::Result<()> {
    let mut spec: Value = serde_json::from_slice(&std::fs::read(path)?)?;
    if let Some(process) = spec.get_mut("process").and_then(Value::as_object_mut)
        && let Some(score) = score
    {
        process.insert("oomScoreAdj".into(), score.into());
    }
    if let Some(linux) = spec.get_mut("linux").and_then(Value::as_object_mut) {
        put(linux.entry("resources").or_insert_with(|| Value::Object(Default::default())), change);
    }
    durable::write_atomic(path, &serde_json::to_vec(&spec)?, 0o600).map_err(std::io::Error::other)
}

/// Objects are merged; anything else takes the place of what was there.
fn put(into: &mut Value, change: &Value) {
    match (into, change) {
        (Value::Object(into), Value::Object(change)) => {
            for (key, value) in change {
                put(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, change) => *into = change.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_takes_in_what_changed() {
        let mut spec =
            serde_json::json!({"memory": {"limit": 1, "swap": 1}, "devices": [1, 2], "pids": {"limit": -1}});
        put(&mut spec, &serde_json::json!({"memory": {"limit": 5}, "hugepageLimits": [3], "devices": []}));
        let expected = serde_json::json!({"memory": {"limit": 5, "swap": 1}, "devices": [], "pids": {"limit": -1}, "hugepageLimits": [3]});
        assert_eq!(spec, expected);
    }
}
