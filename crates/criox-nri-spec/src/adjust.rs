//! Adjustments of plugins, put into the specification of a container that is being made. What the handler or this
//! machine can't do is refused by name: a wish that is dropped silently would be a container that lacks what a plugin
//! relies on.

use criox_nri::{proto, removal};
use criox_spec::{HandlerFeatures, filter_annotations, oci};
use criox_sys::mount::{self, MountInfo};

use crate::error::{Error, Result};

/// What decides about an adjustment besides itself.
#[derive(Debug, Clone, Copy)]
pub struct Limits<'a> {
    /// What the container's runtime can.
    pub features: &'a HandlerFeatures,
    /// Whether this machine's controllers are those of cgroup v2.
    pub cgroup_v2: bool,
}

fn refused(what: impl std::fmt::Display) -> Error {
    Error::Adjustment(what.to_string())
}

/// Puts an adjustment into the specification. CDI devices are the caller's.
///
/// # Errors
/// A wish that can't be had here, with its field; the table of mounts can't be read.
pub fn adjust(spec: &mut oci::Spec, adjust: &proto::ContainerAdjustment, limits: &Limits<'_>) -> Result<()> {
    annotations(spec, &adjust.annotations, limits.features);
    env(&mut spec.process.env, &adjust.env);
    if !adjust.args.is_empty() {
        spec.process.args.clone_from(&adjust.args);
    }
    if let Some(wish) = &adjust.hooks {
        hooks(spec.hooks.get_or_insert_default(), wish);
    }
    for limit in &adjust.rlimits {
        spec.process.rlimits.retain(|other| other.kind != limit.r#type);
        spec.process.rlimits.push(oci::Rlimit {
            kind: limit.r#type.clone(),
            hard: limit.hard,
            soft: limit.soft,
        });
    }
    if let Some(wish) = &adjust.linux {
        linux(spec, wish, limits)?;
    }
    mounts(spec, &adjust.mounts)
}

/// Annotations that steer criox are taken from plugins only where the handler allows them, as from pods.
fn annotations(
    spec: &mut oci::Spec,
    wish: &std::collections::BTreeMap<String, String>,
    features: &HandlerFeatures,
) {
    for key in wish.keys().filter_map(|key| removal(key)) {
        spec.annotations.remove(key);
    }
    let set = wish.iter().filter(|(key, _)| removal(key).is_none());
    let set = set.map(|(key, value)| (key.clone(), value.clone())).collect();
    spec.annotations.extend(filter_annotations(&set, &features.allowed_annotations));
}

fn env(env: &mut Vec<String>, wish: &[proto::KeyValue]) {
    let name = |pair: &str| pair.split_once('=').map_or(pair, |(name, _)| name).to_owned();
    for variable in wish {
        if let Some(key) = removal(&variable.key) {
            env.retain(|pair| name(pair) != key);
        }
    }
    for variable in wish.iter().filter(|variable| removal(&variable.key).is_none()) {
        let pair = format!("{}={}", variable.key, variable.value);
        match env.iter_mut().find(|other| name(other) == variable.key) {
            Some(other) => *other = pair,
            None => env.push(pair),
        }
    }
}

fn hooks(hooks: &mut oci::Hooks, wish: &proto::Hooks) {
    let hook = |hook: &proto::Hook| oci::Hook {
        path: hook.path.clone(),
        args: hook.args.clone(),
        env: hook.env.clone(),
        timeout: hook.timeout.map(|timeout| timeout.value),
    };
    for (target, wish) in [
        (&mut hooks.prestart, &wish.prestart),
        (&mut hooks.create_runtime, &wish.create_runtime),
        (&mut hooks.create_container, &wish.create_container),
        (&mut hooks.start_container, &wish.start_container),
        (&mut hooks.poststart, &wish.poststart),
        (&mut hooks.poststop, &wish.poststop),
    ] {
        target.extend(wish.iter().map(hook));
    }
}

fn linux(spec: &mut oci::Spec, wish: &proto::LinuxContainerAdjustment, limits: &Limits<'_>) -> Result<()> {
    devices(&mut spec.linux, &wish.devices);
    if let Some(wish) = &wish.resources {
        resources(spec.linux.resources.get_or_insert_default(), wish, limits)?;
    }
    if !wish.cgroups_path.is_empty() {
        spec.linux.cgroups_path.clone_from(&wish.cgroups_path);
    }
    if let Some(score) = wish.oom_score_adj {
        spec.process.oom_score_adj = i32::try_from(score.value).ok();
    }
    if let Some(priority) = wish.io_priority {
        spec.process.io_priority = match priority.class() {
            proto::IoPrioClass::IoprioClassNone => None,
            class => Some(oci::IoPriority { class: class.as_str_name().into(), priority: priority.priority }),
        };
    }
    if let Some(wish) = &wish.scheduler {
        spec.process.scheduler = scheduler(wish);
    }
    if let Some(policy) = &wish.seccomp_policy {
        spec.linux.seccomp = Some(seccomp(policy));
    }
    namespaces(&mut spec.linux.namespaces, &wish.namespaces);
    for key in wish.sysctl.keys().filter_map(|key| removal(key)) {
        spec.linux.sysctl.remove(key);
    }
    let set = wish.sysctl.iter().filter(|(key, _)| removal(key).is_none());
    spec.linux.sysctl.extend(set.map(|(key, value)| (key.clone(), value.clone())));
    net_devices(&mut spec.linux, &wish.net_devices, limits.features)?;
    if let Some(wish) = &wish.rdt {
        rdt(&mut spec.linux, wish, limits.features)?;
    }
    match &wish.memory_policy {
        Some(wish) => memory_policy(&mut spec.linux, wish, limits.features),
        None => Ok(()),
    }
}

fn devices(linux: &mut oci::Linux, wish: &[proto::LinuxDevice]) {
    for device in wish {
        let path = removal(&device.path).unwrap_or(&device.path);
        linux.devices.retain(|other| other.path != path);
        if removal(&device.path).is_some() {
            continue;
        }
        // `u` is an old name of character devices, which cgroups do not know.
        let kind = if device.r#type == "u" { "c" } else { device.r#type.as_str() };
        linux.devices.push(oci::Device {
            path: device.path.clone(),
            kind: kind.into(),
            major: device.major,
            minor: device.minor,
            file_mode: device.file_mode.map(|mode| mode.value),
            uid: device.uid.map(|uid| uid.value),
            gid: device.gid.map(|gid| gid.value),
        });
        if kind != "p" {
            let rules = &mut linux.resources.get_or_insert_default().devices;
            rules.push(oci::DeviceRule {
                allow: true,
                kind: Some(kind.into()),
                major: Some(device.major),
                minor: Some(device.minor),
                access: if kind == "b" { "rwm".into() } else { "rw".into() },
            });
        }
    }
}

fn resources(target: &mut oci::Resources, wish: &proto::LinuxResources, limits: &Limits<'_>) -> Result<()> {
    for (field, class) in [("blockio_class", &wish.blockio_class), ("rdt_class", &wish.rdt_class)] {
        if let Some(class) = class.as_ref().filter(|class| !class.value.is_empty()) {
            return Err(refused(format!("{field} {:?}: criox has no such classes", class.value)));
        }
    }
    if let Some(wish) = &wish.memory {
        memory(target.memory.get_or_insert_default(), wish, limits)?;
    }
    if let Some(wish) = &wish.cpu {
        cpu(target.cpu.get_or_insert_default(), wish);
    }
    for limit in &wish.hugepage_limits {
        target.hugepage_limits.retain(|other| other.page_size != limit.page_size);
        target
            .hugepage_limits
            .push(oci::HugepageLimit { page_size: limit.page_size.clone(), limit: limit.limit });
    }
    if !wish.unified.is_empty() && !limits.cgroup_v2 {
        return Err(refused("unified: this machine has cgroup v1"));
    }
    target.unified.extend(wish.unified.iter().map(|(key, value)| (key.clone(), value.clone())));
    if let Some(pids) = wish.pids {
        target.pids = Some(oci::Pids { limit: pids.limit.max(-1) });
    }
    target.devices.extend(wish.devices.iter().map(|rule| oci::DeviceRule {
        allow: rule.allow,
        kind: Some(rule.r#type.clone()).filter(|kind| !kind.is_empty()),
        major: rule.major.map(|major| major.value),
        minor: rule.minor.map(|minor| minor.value),
        access: rule.access.clone(),
    }));
    Ok(())
}

fn memory(target: &mut oci::Memory, wish: &proto::LinuxMemory, limits: &Limits<'_>) -> Result<()> {
    let v1_only = [
        ("memory.kernel", wish.kernel.is_some()),
        ("memory.kernel_tcp", wish.kernel_tcp.is_some()),
        ("memory.swappiness", wish.swappiness.is_some()),
        ("memory.disable_oom_killer", wish.disable_oom_killer.is_some()),
        ("memory.use_hierarchy", wish.use_hierarchy.is_some()),
    ];
    if let Some((field, _)) = v1_only.iter().find(|(_, asked)| *asked && limits.cgroup_v2) {
        return Err(refused(format!("{field}: this machine has cgroup v2, which has no such limit")));
    }
    if let Some(limit) = wish.limit {
        let minimum = limits.features.container_min_memory;
        if u64::try_from(limit.value).is_ok_and(|limit| limit > 0 && limit < minimum) {
            return Err(refused(format!(
                "memory.limit {} is below container_min_memory, {minimum} bytes",
                limit.value
            )));
        }
        // Without a word about swap there is none, as for a limit of the kubelet's.
        (target.limit, target.swap) = (Some(limit.value), Some(limit.value));
    }
    let value = |wish: Option<proto::OptionalInt64>, old: Option<i64>| wish.map(|wish| wish.value).or(old);
    target.swap = value(wish.swap, target.swap);
    target.reservation = value(wish.reservation, target.reservation);
    target.kernel = value(wish.kernel, target.kernel);
    target.kernel_tcp = value(wish.kernel_tcp, target.kernel_tcp);
    target.swappiness = wish.swappiness.map(|wish| wish.value).or(target.swappiness);
    target.disable_oom_killer = wish.disable_oom_killer.map(|wish| wish.value).or(target.disable_oom_killer);
    target.use_hierarchy = wish.use_hierarchy.map(|wish| wish.value).or(target.use_hierarchy);
    Ok(())
}

fn cpu(target: &mut oci::Cpu, wish: &proto::LinuxCpu) {
    target.shares = wish.shares.map(|wish| wish.value).or(target.shares);
    target.quota = wish.quota.map(|wish| wish.value).or(target.quota);
    target.period = wish.period.map(|wish| wish.value).or(target.period);
    target.realtime_runtime = wish.realtime_runtime.map(|wish| wish.value).or(target.realtime_runtime);
    target.realtime_period = wish.realtime_period.map(|wish| wish.value).or(target.realtime_period);
    for (target, wish) in [(&mut target.cpus, &wish.cpus), (&mut target.mems, &wish.mems)] {
        if !wish.is_empty() {
            target.clone_from(wish);
        }
    }
}

fn scheduler(wish: &proto::LinuxScheduler) -> Option<oci::Scheduler> {
    let policy = match wish.policy() {
        proto::LinuxSchedulerPolicy::SchedNone => return None,
        policy => policy.as_str_name().to_owned(),
    };
    Some(oci::Scheduler {
        policy,
        nice: wish.nice,
        priority: wish.priority,
        flags: wish.flags().map(|flag| flag.as_str_name().to_owned()).collect(),
        runtime: wish.runtime,
        deadline: wish.deadline,
        period: wish.period,
    })
}

fn seccomp(policy: &proto::LinuxSeccomp) -> oci::Seccomp {
    let argument = |argument: &proto::LinuxSeccompArg| oci::SyscallArg {
        index: argument.index,
        value: argument.value,
        value_two: argument.value_two,
        op: argument.op.clone(),
    };
    let call = |call: &proto::LinuxSyscall| oci::Syscall {
        names: call.names.clone(),
        action: call.action.clone(),
        errno_ret: call.errno_ret.map(|errno| errno.value),
        args: call.args.iter().map(argument).collect(),
    };
    let text = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    oci::Seccomp {
        default_action: policy.default_action.clone(),
        default_errno_ret: policy.default_errno.map(|errno| errno.value),
        architectures: policy.architectures.clone(),
        flags: policy.flags.clone(),
        listener_path: text(&policy.listener_path),
        listener_metadata: text(&policy.listener_metadata),
        syscalls: policy.syscalls.iter().map(call).collect(),
    }
}

fn namespaces(target: &mut Vec<oci::Namespace>, wish: &[proto::LinuxNamespace]) {
    for namespace in wish {
        let gone = removal(&namespace.r#type);
        let kind = gone.unwrap_or(&namespace.r#type);
        target.retain(|other| other.kind != kind);
        if gone.is_none() {
            let path = Some(namespace.path.clone()).filter(|path| !path.is_empty());
            target.push(oci::Namespace { kind: kind.to_owned(), path });
        }
    }
}

fn net_devices(
    linux: &mut oci::Linux,
    wish: &std::collections::BTreeMap<String, proto::LinuxNetDevice>,
    features: &HandlerFeatures,
) -> Result<()> {
    for name in wish.keys().filter_map(|name| removal(name)) {
        linux.net_devices.remove(name);
    }
    for (name, device) in wish.iter().filter(|(name, _)| removal(name).is_none()) {
        if !features.net_devices {
            return Err(refused(format!(
                "net_devices {name:?}: the pod's runtime handler does not move network devices"
            )));
        }
        linux.net_devices.insert(name.clone(), oci::NetDevice { name: device.name.clone() });
    }
    Ok(())
}

fn rdt(linux: &mut oci::Linux, wish: &proto::LinuxRdt, features: &HandlerFeatures) -> Result<()> {
    if wish.remove {
        linux.intel_rdt = None;
    }
    if wish.clos_id.is_none() && wish.schemata.is_none() && wish.enable_monitoring.is_none() {
        return Ok(());
    }
    if features.intel_rdt != Some(true) {
        return Err(refused("rdt: the pod's runtime handler does not say that it can set it"));
    }
    let target = linux.intel_rdt.get_or_insert_default();
    if let Some(class) = &wish.clos_id {
        target.clos_id.clone_from(&class.value);
    }
    if let Some(schemata) = &wish.schemata {
        target.schemata.clone_from(&schemata.value);
    }
    if let Some(monitoring) = wish.enable_monitoring {
        target.enable_monitoring = monitoring.value;
    }
    Ok(())
}

fn memory_policy(
    linux: &mut oci::Linux,
    wish: &proto::LinuxMemoryPolicy,
    features: &HandlerFeatures,
) -> Result<()> {
    if !features.memory_policy {
        return Err(refused("memory_policy: the pod's runtime handler does not say that it can set it"));
    }
    linux.memory_policy = Some(oci::MemoryPolicy {
        mode: wish.mode().as_str_name().into(),
        nodes: wish.nodes.clone(),
        flags: wish.flags().map(|flag| flag.as_str_name().to_owned()).collect(),
    });
    Ok(())
}

fn mounts(spec: &mut oci::Spec, wish: &[proto::Mount]) -> Result<()> {
    let mut table = None;
    for mount in wish {
        let destination = removal(&mount.destination).unwrap_or(&mount.destination);
        spec.mounts.retain(|other| other.destination != destination);
        if removal(&mount.destination).is_some() {
            continue;
        }
        let mut options = mount.options.clone();
        options.retain(|option| option != "relabel");
        if options.len() < mount.options.len() && !spec.linux.mount_label.is_empty() {
            return Err(refused(format!(
                "mount at {destination}: relabel, which criox does not do for mounts of plugins"
            )));
        }
        propagate(spec, mount, &mut table)?;
        spec.mounts.push(oci::Mount {
            destination: destination.to_owned(),
            kind: mount.r#type.clone(),
            source: mount.source.clone(),
            options,
            ..Default::default()
        });
    }
    if !wish.is_empty() {
        // What lies below another mount comes after it; otherwise the order stays.
        let depth = |mount: &oci::Mount| mount.destination.split('/').filter(|part| !part.is_empty()).count();
        spec.mounts.sort_by_key(depth);
    }
    Ok(())
}

/// Propagation to or from the node wants a source that propagates, and a root that lets it through.
fn propagate(spec: &mut oci::Spec, mount: &proto::Mount, table: &mut Option<Vec<MountInfo>>) -> Result<()> {
    let wanted = mount.options.iter().rev().find_map(|option| match option.as_str() {
        "shared" | "rshared" => Some("rshared"),
        "slave" | "rslave" => Some("rslave"),
        _ => None,
    });
    let Some(wanted) = wanted else { return Ok(()) };
    if table.is_none() {
        *table = Some(mount::mountinfo().map_err(Error::Mounts)?);
    }
    let below = table
        .iter()
        .flatten()
        .filter(|entry| std::path::Path::new(&mount.source).starts_with(&entry.mount_point))
        .max_by_key(|entry| entry.mount_point.as_os_str().len());
    let fits = below.is_some_and(|entry| entry.is_shared() || (wanted == "rslave" && entry.is_slave()));
    if !fits {
        return Err(refused(format!(
            "mount at {}: {} is on no mount that propagates, as {wanted} needs",
            mount.destination, mount.source
        )));
    }
    let root = &mut spec.linux.rootfs_propagation;
    if wanted == "rshared" || !["rshared", "rslave"].contains(&root.as_str()) {
        *root = wanted.to_owned();
    }
    Ok(())
}

#[cfg(test)]
mod tests;
