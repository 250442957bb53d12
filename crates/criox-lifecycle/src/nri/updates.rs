//! Changes of containers that plugins ask for: limits, by the way that UpdateContainerResources goes, and ends.

use std::sync::Arc;
use std::time::Duration;

use criox_cri::v1;
use criox_nri::Updates;
use criox_nri::proto::{ContainerEviction, ContainerUpdate, LinuxResources};

use crate::admit::Verb;
use crate::context::Context;
use crate::error::{Error, Kind, Result};
use crate::pod::{Origin, Request};

/// For one update. It may wait for another of the same container.
const UPDATE: Duration = Duration::from_secs(60);

/// Makes what plugins ask for. Evictions run beside.
///
/// # Errors
/// The first update that failed and may not.
pub(super) async fn apply(context: &Arc<Context>, updates: Updates) -> Result<()> {
    evict(context, updates.evictions);
    let mut result = Ok(());
    for update in updates.updates {
        let id = update.container_id.clone();
        match one(context, &update).await {
            Ok(()) => {}
            Err(error) if update.ignore_failure => {
                tracing::info!(
                    container = id,
                    error = error.chain(),
                    "an update that an NRI plugin asked for failed, as it may"
                );
            }
            Err(error) => result = result.and(Err(error)),
        }
    }
    result
}

/// The same beside whoever asks; what fails is logged.
pub(super) fn later(context: &Arc<Context>, updates: Updates) {
    if updates == Updates::default() {
        return;
    }
    let context = context.clone();
    tokio::spawn(async move {
        if let Err(error) = apply(&context, updates).await {
            tracing::warn!(error = error.chain(), "an update that an NRI plugin asked for failed");
        }
    });
}

/// Makes updates that no event asked about. Returns those that failed.
pub(super) async fn unsolicited(
    context: &Arc<Context>,
    updates: Vec<ContainerUpdate>,
) -> Vec<ContainerUpdate> {
    let mut failed = Vec::new();
    for update in updates {
        if let Err(error) = one(context, &update).await {
            tracing::warn!(
                container = update.container_id,
                error = error.chain(),
                "an update that an NRI plugin asked for failed"
            );
            failed.push(update);
        }
    }
    failed
}

async fn one(context: &Arc<Context>, update: &ContainerUpdate) -> Result<()> {
    let wish = update.linux.as_ref().and_then(|linux| linux.resources.clone()).unwrap_or_default();
    let resources = Arc::new(to_cri(&wish, context.cgroups.is_v2())?);
    let (view, record) = context.index.container(&update.container_id)?;
    let (id, origin) = (record.id, Origin::Nri);
    let made = view.pod.ask(|reply| Request::Update { id, resources, origin, reply });
    tokio::time::timeout(UPDATE, made).await.unwrap_or_else(|_| {
        let advice = "another update of it is still at work";
        Err(Error::timed_out(
            "an update that an NRI plugin asked for",
            &format!("container {id}"),
            UPDATE,
            advice,
        ))
    })
}

/// Ends containers without grace, beside whoever asks.
pub(super) fn evict(context: &Arc<Context>, evictions: Vec<ContainerEviction>) {
    for eviction in evictions {
        let context = context.clone();
        tokio::spawn(async move {
            let ContainerEviction { container_id, reason } = eviction;
            tracing::warn!(container = container_id, reason, "an NRI plugin has a container ended");
            let ended = async {
                let (view, record) = context.index.container(&container_id)?;
                let (verb, id, grace) = (Verb::Stop, record.id, Duration::ZERO);
                view.pod.ask(|reply| Request::Act { verb, id, grace, reply }).await
            };
            if let Err(error) = ended.await {
                tracing::warn!(
                    container = container_id,
                    error = error.chain(),
                    "a container that an NRI plugin has ended lives on"
                );
            }
        });
    }
}

/// Limits as UpdateContainerResources takes them. What it has no field for is a file of cgroup v2 where there is one.
///
/// # Errors
/// The field that there is no way for.
pub(super) fn to_cri(wish: &LinuxResources, v2: bool) -> Result<v1::LinuxContainerResources> {
    let (memory, cpu) = (wish.memory.unwrap_or_default(), wish.cpu.clone().unwrap_or_default());
    let refused = [
        ("memory.kernel", memory.kernel.is_some()),
        ("memory.kernel_tcp", memory.kernel_tcp.is_some()),
        ("memory.swappiness", memory.swappiness.is_some()),
        ("memory.disable_oom_killer", memory.disable_oom_killer.is_some()),
        ("memory.use_hierarchy", memory.use_hierarchy.is_some()),
        ("memory.reservation", memory.reservation.is_some() && !v2),
        ("cpu.realtime_runtime", cpu.realtime_runtime.is_some()),
        ("cpu.realtime_period", cpu.realtime_period.is_some()),
        ("pids", wish.pids.is_some() && !v2),
        ("unified", !wish.unified.is_empty() && !v2),
        ("blockio_class", wish.blockio_class.is_some()),
        ("rdt_class", wish.rdt_class.is_some()),
        ("devices", !wish.devices.is_empty()),
    ];
    if let Some((field, _)) = refused.iter().find(|(_, asked)| *asked) {
        let reason = "can't be changed while a container runs on this machine";
        return Err(Error::new(Kind::InvalidArgument, format!("an NRI plugin's update: {field} {reason}")));
    }
    let mut unified = wish.unified.clone();
    if let Some(pids) = wish.pids {
        let limit = if pids.limit < 0 { "max".to_owned() } else { pids.limit.to_string() };
        unified.insert("pids.max".into(), limit);
    }
    if let Some(reservation) = memory.reservation {
        unified.insert("memory.low".into(), reservation.value.max(0).to_string());
    }
    let unsigned = |value: Option<criox_nri::proto::OptionalUInt64>, field: &str| match value {
        None => Ok(0),
        Some(value) => i64::try_from(value.value).map_err(|_| {
            Error::new(Kind::InvalidArgument, format!("an NRI plugin's update: {field} is too large"))
        }),
    };
    Ok(v1::LinuxContainerResources {
        cpu_period: unsigned(cpu.period, "cpu.period")?,
        cpu_quota: cpu.quota.map(|quota| quota.value).unwrap_or_default(),
        cpu_shares: unsigned(cpu.shares, "cpu.shares")?,
        memory_limit_in_bytes: memory.limit.map(|limit| limit.value).unwrap_or_default(),
        memory_swap_limit_in_bytes: memory.swap.map(|swap| swap.value).unwrap_or_default(),
        cpuset_cpus: cpu.cpus,
        cpuset_mems: cpu.mems,
        hugepage_limits: wish
            .hugepage_limits
            .iter()
            .map(|limit| v1::HugepageLimit { page_size: limit.page_size.clone(), limit: limit.limit })
            .collect(),
        unified,
        oom_score_adj: 0,
    })
}

#[cfg(test)]
mod tests {
    use criox_nri::proto::{LinuxCpu, LinuxMemory, LinuxPids, OptionalInt64, OptionalUInt64};

    use super::*;
    use crate::nri::describe;

    #[test]
    fn limits_go_to_a_plugin_and_back_unchanged() {
        let limits = v1::LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: -1,
            cpu_shares: 512,
            memory_limit_in_bytes: 1 << 30,
            memory_swap_limit_in_bytes: 2 << 30,
            cpuset_cpus: "0-1".into(),
            cpuset_mems: "0".into(),
            hugepage_limits: vec![v1::HugepageLimit { page_size: "2MB".into(), limit: 4 }],
            unified: [("memory.high".to_owned(), "5".to_owned())].into(),
            oom_score_adj: 0,
        };
        assert_eq!(to_cri(&describe::limits(&limits), true).expect("all have a way"), limits);
    }

    #[test]
    fn what_has_no_way_is_refused_by_name() {
        let reservation = Some(OptionalInt64 { value: 7 });
        let memory = LinuxMemory { reservation, ..Default::default() };
        let low = LinuxResources { memory: Some(memory), ..Default::default() };
        assert_eq!(to_cri(&low, true).expect("there is a file").unified["memory.low"], "7");
        assert!(to_cri(&low, false).expect_err("v1").to_string().contains("memory.reservation"));
        let pids = LinuxResources { pids: Some(LinuxPids { limit: -1 }), ..Default::default() };
        assert_eq!(to_cri(&pids, true).expect("there is a file").unified["pids.max"], "max");
        let cpu = LinuxCpu { realtime_period: Some(OptionalUInt64 { value: 1 }), ..Default::default() };
        let realtime = LinuxResources { cpu: Some(cpu), ..Default::default() };
        assert!(to_cri(&realtime, true).expect_err("no way").to_string().contains("cpu.realtime_period"));
    }
}
