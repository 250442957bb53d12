//! UpdateContainerResources: the monitor changes all limits or none; then the specification on disk and the record
//! follow. What a request leaves out, or says with zero, stays as it is.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use criox_cri::v1;
use criox_monitor_api::client::Client;
use criox_monitor_api::proto::{self, request};
use criox_spec::oci;
use criox_sys::durable;
use serde_json::Value;

use crate::context::{Context, blocking};
use crate::error::{Error, Result};
use crate::monitor;
use crate::record::{ContainerRecord, SandboxRecord};

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
    let request = complete(old, &request)?;
    let score = score(request.oom_score_adj)?;
    let handler = context.handlers.get(&sandbox.runtime_handler)?;
    let features = handler.features().await;
    let document = |resources: &v1::LinuxContainerResources| {
        criox_spec::resources_update(resources, &context.node, &features)
            .map_err(|error| Error::new(crate::error::Kind::InvalidArgument, error.to_string()))
    };
    let (wanted, warnings) = document(&request)?;
    context.clamps.tell(&warnings);
    check_usage(&context, &record, &wanted)?;
    let merged = merge(old, &request);
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

/// CRI's 0 is "not said": a score of 0 can't be asked for.
fn score(asked: i64) -> Result<Option<i32>> {
    match i32::try_from(asked) {
        Ok(0) => Ok(None),
        Ok(score) if (-1000..=1000).contains(&score) => Ok(Some(score)),
        _ => Err(Error::invalid("linux.oom_score_adj", format!("{asked} is not within -1000 to 1000"))),
    }
}

/// Memory and swap are one number in CRI and belong together in the kernel: where one is given, both are.
fn complete(
    old: &v1::LinuxContainerResources,
    request: &v1::LinuxContainerResources,
) -> Result<v1::LinuxContainerResources> {
    let mut request = request.clone();
    if request.memory_limit_in_bytes == 0 && request.memory_swap_limit_in_bytes != 0 {
        if old.memory_limit_in_bytes <= 0 {
            let reason = "the container has no memory limit, which memory_limit_in_bytes would set";
            return Err(Error::invalid("linux.memory_swap_limit_in_bytes", reason));
        }
        request.memory_limit_in_bytes = old.memory_limit_in_bytes;
    }
    let (limit, swap) = (request.memory_limit_in_bytes, old.memory_swap_limit_in_bytes);
    let swaps = swap == -1 || swap > old.memory_limit_in_bytes;
    if limit != 0 && request.memory_swap_limit_in_bytes == 0 && swaps && (swap == -1 || swap >= limit) {
        // It may swap, and goes on doing so.
        request.memory_swap_limit_in_bytes = swap;
    }
    Ok(request)
}

/// The limits after an update.
fn merge(
    old: &v1::LinuxContainerResources,
    new: &v1::LinuxContainerResources,
) -> v1::LinuxContainerResources {
    let number = |old: i64, new: i64| if new == 0 { old } else { new };
    let text = |old: &String, new: &String| if new.is_empty() { old.clone() } else { new.clone() };
    let mut merged = v1::LinuxContainerResources {
        cpu_period: number(old.cpu_period, new.cpu_period),
        cpu_quota: number(old.cpu_quota, new.cpu_quota),
        cpu_shares: number(old.cpu_shares, new.cpu_shares),
        memory_limit_in_bytes: number(old.memory_limit_in_bytes, new.memory_limit_in_bytes),
        oom_score_adj: number(old.oom_score_adj, new.oom_score_adj),
        cpuset_cpus: text(&old.cpuset_cpus, &new.cpuset_cpus),
        cpuset_mems: text(&old.cpuset_mems, &new.cpuset_mems),
        hugepage_limits: old.hugepage_limits.clone(),
        unified: old.unified.clone(),
        memory_swap_limit_in_bytes: number(old.memory_swap_limit_in_bytes, new.memory_swap_limit_in_bytes),
    };
    for limit in &new.hugepage_limits {
        merged.hugepage_limits.retain(|old| old.page_size != limit.page_size);
        merged.hugepage_limits.push(limit.clone());
    }
    merged.unified.extend(new.unified.iter().map(|(file, value)| (file.clone(), value.clone())));
    merged
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

    fn memory(limit: i64, swap: i64) -> v1::LinuxContainerResources {
        v1::LinuxContainerResources {
            memory_limit_in_bytes: limit,
            memory_swap_limit_in_bytes: swap,
            ..Default::default()
        }
    }

    #[test]
    fn zero_leaves_alone_and_the_rest_is_merged() {
        let huge = |size: &str, limit| v1::HugepageLimit { page_size: size.into(), limit };
        let old = v1::LinuxContainerResources {
            cpu_shares: 512,
            cpuset_cpus: "0-1".into(),
            hugepage_limits: vec![huge("2MB", 1), huge("1GB", 2)],
            unified: [("memory.oom.group".to_owned(), "1".to_owned())].into(),
            ..memory(7, 7)
        };
        assert_eq!(merge(&old, &v1::LinuxContainerResources::default()), old);
        // The static CPU manager's request.
        let pinned = v1::LinuxContainerResources { cpuset_cpus: "3".into(), ..Default::default() };
        assert_eq!(
            merge(&old, &pinned),
            v1::LinuxContainerResources { cpuset_cpus: "3".into(), ..old.clone() }
        );
        let new = v1::LinuxContainerResources {
            hugepage_limits: vec![huge("2MB", 3)],
            unified: [("memory.low".to_owned(), "5".to_owned())].into(),
            ..Default::default()
        };
        let merged = merge(&old, &new);
        assert_eq!(merged.hugepage_limits, [huge("1GB", 2), huge("2MB", 3)]);
        assert_eq!(merged.unified.len(), 2);
    }

    #[test]
    fn memory_and_swap_go_together() {
        let swap_of = |old: &_, new: &_| {
            complete(old, new).map(|all| (all.memory_limit_in_bytes, all.memory_swap_limit_in_bytes))
        };
        assert_eq!(swap_of(&memory(100, 0), &memory(200, 0)).ok(), Some((200, 0)), "no swap, as before");
        assert_eq!(swap_of(&memory(100, 100), &memory(200, 0)).ok(), Some((200, 0)));
        assert_eq!(swap_of(&memory(100, 300), &memory(200, 0)).ok(), Some((200, 300)), "swap stays allowed");
        assert_eq!(swap_of(&memory(100, 300), &memory(400, 0)).ok(), Some((400, 0)));
        assert_eq!(swap_of(&memory(100, -1), &memory(400, 0)).ok(), Some((400, -1)));
        assert_eq!(swap_of(&memory(100, 0), &memory(0, 300)).ok(), Some((100, 300)));
        assert!(swap_of(&memory(0, 0), &memory(0, 300)).is_err());
    }

    #[test]
    fn scores_are_the_kernels() {
        assert_eq!(score(0).ok(), Some(None));
        assert_eq!(score(-997).ok(), Some(Some(-997)));
        assert!(score(1001).is_err() && score(i64::MIN).is_err());
    }

    #[test]
    fn a_document_takes_in_what_changed() {
        let mut spec =
            serde_json::json!({"memory": {"limit": 1, "swap": 1}, "devices": [1, 2], "pids": {"limit": -1}});
        put(&mut spec, &serde_json::json!({"memory": {"limit": 5}, "hugepageLimits": [3], "devices": []}));
        let expected = serde_json::json!({"memory": {"limit": 5, "swap": 1}, "devices": [], "pids": {"limit": -1}, "hugepageLimits": [3]});
        assert_eq!(spec, expected);
    }
}
