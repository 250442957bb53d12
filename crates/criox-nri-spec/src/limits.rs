//! Limits: CRI's message and that of plugins.

use criox_cri::v1;
use criox_nri::proto;

use crate::error::{Error, Result};

/// Limits of CRI, where 0 and "" mean "not said".
pub fn limits(limits: &v1::LinuxContainerResources) -> proto::LinuxResources {
    let signed = |value: i64| (value != 0).then_some(proto::OptionalInt64 { value });
    let unsigned = |value: i64| {
        u64::try_from(value).ok().filter(|value| *value > 0).map(|value| proto::OptionalUInt64 { value })
    };
    proto::LinuxResources {
        memory: Some(proto::LinuxMemory {
            limit: signed(limits.memory_limit_in_bytes),
            swap: signed(limits.memory_swap_limit_in_bytes),
            ..Default::default()
        }),
        cpu: Some(proto::LinuxCpu {
            shares: unsigned(limits.cpu_shares),
            quota: signed(limits.cpu_quota),
            period: unsigned(limits.cpu_period),
            cpus: limits.cpuset_cpus.clone(),
            mems: limits.cpuset_mems.clone(),
            ..Default::default()
        }),
        hugepage_limits: limits
            .hugepage_limits
            .iter()
            .map(|limit| proto::HugepageLimit { page_size: limit.page_size.clone(), limit: limit.limit })
            .collect(),
        unified: limits.unified.clone(),
        ..Default::default()
    }
}

/// Limits as UpdateContainerResources takes them. What it has no field for is a file of cgroup v2 where there is one.
///
/// # Errors
/// The field that there is no way for.
pub fn update_of(wish: &proto::LinuxResources, v2: bool) -> Result<v1::LinuxContainerResources> {
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
        return Err(Error::Update(format!("{field} {reason}")));
    }
    let mut unified = wish.unified.clone();
    if let Some(pids) = wish.pids {
        let limit = if pids.limit < 0 { "max".to_owned() } else { pids.limit.to_string() };
        unified.insert("pids.max".into(), limit);
    }
    if let Some(reservation) = memory.reservation {
        unified.insert("memory.low".into(), reservation.value.max(0).to_string());
    }
    let unsigned = |value: Option<proto::OptionalUInt64>, field: &str| match value {
        None => Ok(0),
        Some(value) => i64::try_from(value.value).map_err(|_| Error::Update(format!("{field} is too large"))),
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
    use criox_nri::proto::{LinuxCpu, LinuxMemory, LinuxPids, LinuxResources, OptionalInt64, OptionalUInt64};

    use super::*;

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
        assert_eq!(update_of(&super::limits(&limits), true).expect("all have a way"), limits);
    }

    #[test]
    fn what_has_no_way_is_refused_by_name() {
        let reservation = Some(OptionalInt64 { value: 7 });
        let memory = LinuxMemory { reservation, ..Default::default() };
        let low = LinuxResources { memory: Some(memory), ..Default::default() };
        assert_eq!(update_of(&low, true).expect("there is a file").unified["memory.low"], "7");
        assert!(update_of(&low, false).expect_err("v1").to_string().contains("memory.reservation"));
        let pids = LinuxResources { pids: Some(LinuxPids { limit: -1 }), ..Default::default() };
        assert_eq!(update_of(&pids, true).expect("there is a file").unified["pids.max"], "max");
        let cpu = LinuxCpu { realtime_period: Some(OptionalUInt64 { value: 1 }), ..Default::default() };
        let realtime = LinuxResources { cpu: Some(cpu), ..Default::default() };
        assert!(update_of(&realtime, true).expect_err("no way").to_string().contains("cpu.realtime_period"));
    }
}
