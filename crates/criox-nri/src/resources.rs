//! Limits that plugins set, of a container that is being made or of one that runs: each has one owner.

use crate::owners::Owners;
use crate::plugin::PluginError;
use crate::proto::{Field, LinuxCpu, LinuxMemory, LinuxResources};

/// Takes what `wish` sets over into `target`, and into `second` if there is one.
pub(crate) fn merge(
    owners: &mut Owners,
    (id, plugin): (&str, &str),
    wish: &LinuxResources,
    target: &mut LinuxResources,
) -> Result<(), PluginError> {
    if let Some(memory) = &wish.memory {
        merge_memory(owners, (id, plugin), memory, target.memory.get_or_insert_default())?;
    }
    if let Some(cpu) = &wish.cpu {
        merge_cpu(owners, (id, plugin), cpu, target.cpu.get_or_insert_default())?;
    }
    for limit in &wish.hugepage_limits {
        owners.claim_entry(id, Field::HugepageLimits, &limit.page_size, plugin)?;
        target.hugepage_limits.retain(|other| other.page_size != limit.page_size);
        target.hugepage_limits.push(limit.clone());
    }
    for (key, value) in &wish.unified {
        owners.claim_entry(id, Field::CgroupsUnified, key, plugin)?;
        target.unified.insert(key.clone(), value.clone());
    }
    target.devices.extend(wish.devices.iter().cloned());
    if wish.blockio_class.is_some() {
        owners.claim(id, Field::BlockioClass, plugin)?;
        target.blockio_class.clone_from(&wish.blockio_class);
    }
    if wish.rdt_class.is_some() {
        owners.claim(id, Field::RdtClass, plugin)?;
        target.rdt_class.clone_from(&wish.rdt_class);
    }
    if wish.pids.is_some() {
        owners.claim(id, Field::PidsLimit, plugin)?;
        target.pids = wish.pids;
    }
    Ok(())
}

/// One optional field: claimed and copied when it is set.
macro_rules! take {
    ($owners:expr, $whose:expr, $wish:expr, $target:expr, $($field:ident: $name:expr),+ $(,)?) => {
        $(if $wish.$field.is_some() {
            $owners.claim($whose.0, $name, $whose.1)?;
            $target.$field = $wish.$field;
        })+
    };
}

fn merge_memory(
    owners: &mut Owners,
    whose: (&str, &str),
    wish: &LinuxMemory,
    target: &mut LinuxMemory,
) -> Result<(), PluginError> {
    take!(
        owners, whose, wish, target,
        limit: Field::MemLimit,
        reservation: Field::MemReservation,
        swap: Field::MemSwapLimit,
        kernel: Field::MemKernelLimit,
        kernel_tcp: Field::MemTcpLimit,
        swappiness: Field::MemSwappiness,
        disable_oom_killer: Field::MemDisableOomKiller,
        use_hierarchy: Field::MemUseHierarchy,
    );
    Ok(())
}

fn merge_cpu(
    owners: &mut Owners,
    whose: (&str, &str),
    wish: &LinuxCpu,
    target: &mut LinuxCpu,
) -> Result<(), PluginError> {
    take!(
        owners, whose, wish, target,
        shares: Field::CpuShares,
        quota: Field::CpuQuota,
        period: Field::CpuPeriod,
        realtime_runtime: Field::CpuRealtimeRuntime,
        realtime_period: Field::CpuRealtimePeriod,
    );
    for (wish, target, field) in
        [(&wish.cpus, &mut target.cpus, Field::CpuSetCpUs), (&wish.mems, &mut target.mems, Field::CpuSetMems)]
    {
        if !wish.is_empty() {
            owners.claim(whose.0, field, whose.1)?;
            target.clone_from(wish);
        }
    }
    Ok(())
}
