//! Pods and containers as plugins see them.

use std::sync::Arc;
use std::time::Duration;

use criox_cri::v1;
use criox_nri::proto;
use criox_spec::oci;

use crate::context::{Context, blocking};
use crate::error::{Error, Result};
use crate::paths::Namespace;
use crate::record::{ContainerPhase, ContainerRecord, SandboxPhase, SandboxRecord};
use crate::sandbox::run;

/// For reading a container's `config.json`: a disk that hangs makes a description poorer, and nothing else.
const READ: Duration = Duration::from_secs(2);

/// A sandbox.
pub(super) fn pod(context: &Context, record: &SandboxRecord) -> proto::PodSandbox {
    let config = &record.config.0;
    let metadata = config.metadata.clone().unwrap_or_default();
    let id = record.id.as_str();
    // What the pod had is given back when it stops.
    let kinds = if record.torn_down { Vec::new() } else { run::pinned(config) };
    let namespace = |kind: Namespace| proto::LinuxNamespace {
        r#type: namespace_type(kind).into(),
        path: context.paths.namespace(kind, id).to_string_lossy().into_owned(),
    };
    let linux = proto::LinuxPodSandbox {
        pod_overhead: record.overhead().map(limits),
        pod_resources: record.resources().map(limits),
        cgroup_parent: record.cgroup_parent.clone(),
        cgroups_path: if record.phase == SandboxPhase::NotReady { String::new() } else { run::group(record) },
        namespaces: kinds.into_iter().map(namespace).collect(),
        resources: None,
    };
    proto::PodSandbox {
        id: id.to_owned(),
        name: metadata.name,
        uid: metadata.uid,
        namespace: metadata.namespace,
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        runtime_handler: record.runtime_handler.clone(),
        linux: Some(linux),
        pid: record.init.and_then(|init| u32::try_from(init.pid).ok()).unwrap_or_default(),
        ips: record.ips.clone(),
    }
}

fn namespace_type(kind: Namespace) -> &'static str {
    match kind {
        Namespace::User => "user",
        Namespace::Network => "network",
        Namespace::Ipc => "ipc",
        Namespace::Uts => "uts",
        Namespace::Pid => "pid",
    }
}

/// A container by its record and the specification that it was made from, where that can be had.
pub(super) async fn container(context: &Arc<Context>, record: &Arc<ContainerRecord>) -> proto::Container {
    let object = format!("container {}", record.id);
    let read = blocking("read of config.json", &object, READ, {
        let (context, record) = (context.clone(), record.clone());
        move || read_spec(&context, &record)
    });
    match read.await {
        Ok(spec) => with_spec(record, &spec),
        Err(error) => {
            tracing::debug!(container = %record.id, error = error.chain(), "NRI plugins are told less of a container");
            bare(record)
        }
    }
}

/// Blocks on the disk.
pub(super) fn read_spec(context: &Context, record: &ContainerRecord) -> Result<oci::Spec> {
    let failed = || Error::failed(format!("specification of container {}", record.id));
    let directory =
        context.store.container_dir(record.id.as_str()).map_err(|error| failed().because(error))?;
    let bytes = std::fs::read(directory.join("config.json")).map_err(|error| failed().because(error))?;
    oci::Spec::from_json(&bytes).map_err(|error| failed().because(error))
}

/// A container by its record alone.
pub(super) fn bare(record: &ContainerRecord) -> proto::Container {
    let config = &record.config.0;
    let exit = record.exit.clone();
    let (finished_at, exit_code, status_reason, status_message) =
        exit.map(|exit| (exit.finished_at, exit.code, exit.reason, exit.message)).unwrap_or_default();
    let digest = record.image.digested.rsplit_once('@').map(|(_, digest)| digest.to_owned());
    let linux = proto::LinuxContainer {
        seccomp_profile: seccomp_profile(config),
        resources: record.resources().map(limits),
        ..Default::default()
    };
    proto::Container {
        id: record.id.to_string(),
        pod_sandbox_id: record.sandbox_id.to_string(),
        name: config.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default(),
        state: state(record.phase).into(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        linux: Some(linux),
        pid: record.process.and_then(|process| u32::try_from(process.pid).ok()).unwrap_or_default(),
        created_at: record.created_at,
        started_at: record.started_at,
        finished_at,
        exit_code,
        status_reason,
        status_message,
        cdi_devices: config
            .cdi_devices
            .iter()
            .map(|device| proto::CdiDevice { name: device.name.clone() })
            .collect(),
        image: Some(proto::Image {
            name: record.image.name.clone(),
            digest: digest.unwrap_or_default(),
            config_digest: record.image.id.clone(),
        }),
        ..Default::default()
    }
}

fn state(phase: ContainerPhase) -> proto::ContainerState {
    match phase {
        ContainerPhase::Creating => proto::ContainerState::ContainerUnknown,
        ContainerPhase::Created => proto::ContainerState::ContainerCreated,
        ContainerPhase::Running => proto::ContainerState::ContainerRunning,
        ContainerPhase::Exited => proto::ContainerState::ContainerStopped,
    }
}

fn seccomp_profile(config: &v1::ContainerConfig) -> Option<proto::SecurityProfile> {
    use proto::security_profile::ProfileType;
    let asked = config.linux.as_ref()?.security_context.as_ref()?.seccomp.as_ref()?;
    let profile_type = match asked.profile_type() {
        v1::security_profile::ProfileType::RuntimeDefault => ProfileType::RuntimeDefault,
        v1::security_profile::ProfileType::Unconfined => ProfileType::Unconfined,
        v1::security_profile::ProfileType::Localhost => ProfileType::Localhost,
    };
    Some(proto::SecurityProfile {
        profile_type: profile_type.into(),
        localhost_ref: asked.localhost_ref.clone(),
    })
}

/// With what the specification says.
pub(super) fn with_spec(record: &ContainerRecord, spec: &oci::Spec) -> proto::Container {
    let known = bare(record);
    let process = &spec.process;
    let linux = linux(spec, known.linux.clone().unwrap_or_default());
    proto::Container {
        args: process.args.clone(),
        env: process.env.clone(),
        mounts: spec.mounts.iter().map(mount).collect(),
        hooks: spec.hooks.as_ref().map(hooks),
        linux: Some(linux),
        rlimits: process
            .rlimits
            .iter()
            .map(|limit| proto::PosixRlimit {
                r#type: limit.kind.clone(),
                hard: limit.hard,
                soft: limit.soft,
            })
            .collect(),
        user: Some(proto::User {
            uid: process.user.uid,
            gid: process.user.gid,
            additional_gids: process.user.additional_gids.clone(),
        }),
        ..known
    }
}

fn mount(mount: &oci::Mount) -> proto::Mount {
    proto::Mount {
        destination: mount.destination.clone(),
        r#type: mount.kind.clone(),
        source: mount.source.clone(),
        options: mount.options.clone(),
    }
}

fn hooks(hooks: &oci::Hooks) -> proto::Hooks {
    let list = |hooks: &[oci::Hook]| hooks.iter().map(hook).collect();
    proto::Hooks {
        prestart: list(&hooks.prestart),
        create_runtime: list(&hooks.create_runtime),
        create_container: list(&hooks.create_container),
        start_container: list(&hooks.start_container),
        poststart: list(&hooks.poststart),
        poststop: list(&hooks.poststop),
    }
}

fn hook(hook: &oci::Hook) -> proto::Hook {
    proto::Hook {
        path: hook.path.clone(),
        args: hook.args.clone(),
        env: hook.env.clone(),
        timeout: hook.timeout.map(|value| proto::OptionalInt { value }),
    }
}

fn linux(spec: &oci::Spec, known: proto::LinuxContainer) -> proto::LinuxContainer {
    let linux = &spec.linux;
    let namespace = |namespace: &oci::Namespace| proto::LinuxNamespace {
        r#type: namespace.kind.clone(),
        path: namespace.path.clone().unwrap_or_default(),
    };
    let device = |device: &oci::Device| proto::LinuxDevice {
        path: device.path.clone(),
        r#type: device.kind.clone(),
        major: device.major,
        minor: device.minor,
        file_mode: device.file_mode.map(|value| proto::OptionalFileMode { value }),
        uid: device.uid.map(|value| proto::OptionalUInt32 { value }),
        gid: device.gid.map(|value| proto::OptionalUInt32 { value }),
    };
    let net_device = |(name, device): (&String, &oci::NetDevice)| {
        (name.clone(), proto::LinuxNetDevice { name: device.name.clone() })
    };
    proto::LinuxContainer {
        namespaces: linux.namespaces.iter().map(namespace).collect(),
        devices: linux.devices.iter().map(device).collect(),
        resources: linux.resources.as_ref().map(resources).or(known.resources),
        oom_score_adj: spec.process.oom_score_adj.map(|score| proto::OptionalInt { value: score.into() }),
        cgroups_path: linux.cgroups_path.clone(),
        io_priority: spec.process.io_priority.as_ref().map(|priority| proto::LinuxIoPriority {
            class: proto::IoPrioClass::from_str_name(&priority.class).unwrap_or_default().into(),
            priority: priority.priority,
        }),
        seccomp_profile: known.seccomp_profile,
        seccomp_policy: linux.seccomp.as_ref().map(seccomp),
        sysctl: linux.sysctl.clone(),
        net_devices: linux.net_devices.iter().map(net_device).collect(),
        scheduler: spec.process.scheduler.as_ref().map(scheduler),
        rdt: linux.intel_rdt.as_ref().map(|rdt| proto::LinuxRdt {
            clos_id: Some(proto::OptionalString { value: rdt.clos_id.clone() }),
            schemata: Some(proto::OptionalRepeatedString { value: rdt.schemata.clone() }),
            enable_monitoring: Some(proto::OptionalBool { value: rdt.enable_monitoring }),
            remove: false,
        }),
    }
}

fn scheduler(scheduler: &oci::Scheduler) -> proto::LinuxScheduler {
    let flag = |name: &String| proto::LinuxSchedulerFlag::from_str_name(name).map(i32::from);
    proto::LinuxScheduler {
        policy: proto::LinuxSchedulerPolicy::from_str_name(&scheduler.policy).unwrap_or_default().into(),
        nice: scheduler.nice,
        priority: scheduler.priority,
        flags: scheduler.flags.iter().filter_map(flag).collect(),
        runtime: scheduler.runtime,
        deadline: scheduler.deadline,
        period: scheduler.period,
    }
}

fn seccomp(seccomp: &oci::Seccomp) -> proto::LinuxSeccomp {
    let argument = |argument: &oci::SyscallArg| proto::LinuxSeccompArg {
        index: argument.index,
        value: argument.value,
        value_two: argument.value_two,
        op: argument.op.clone(),
    };
    let call = |call: &oci::Syscall| proto::LinuxSyscall {
        names: call.names.clone(),
        action: call.action.clone(),
        errno_ret: call.errno_ret.map(|value| proto::OptionalUInt32 { value }),
        args: call.args.iter().map(argument).collect(),
    };
    proto::LinuxSeccomp {
        default_action: seccomp.default_action.clone(),
        default_errno: seccomp.default_errno_ret.map(|value| proto::OptionalUInt32 { value }),
        architectures: seccomp.architectures.clone(),
        flags: seccomp.flags.clone(),
        listener_path: seccomp.listener_path.clone().unwrap_or_default(),
        listener_metadata: seccomp.listener_metadata.clone().unwrap_or_default(),
        syscalls: seccomp.syscalls.iter().map(call).collect(),
    }
}

fn resources(resources: &oci::Resources) -> proto::LinuxResources {
    let signed = |value: Option<i64>| value.map(|value| proto::OptionalInt64 { value });
    let unsigned = |value: Option<u64>| value.map(|value| proto::OptionalUInt64 { value });
    let flag = |value: Option<bool>| value.map(|value| proto::OptionalBool { value });
    let rule = |rule: &oci::DeviceRule| proto::LinuxDeviceCgroup {
        allow: rule.allow,
        r#type: rule.kind.clone().unwrap_or_default(),
        major: signed(rule.major),
        minor: signed(rule.minor),
        access: rule.access.clone(),
    };
    proto::LinuxResources {
        memory: resources.memory.as_ref().map(|memory| proto::LinuxMemory {
            limit: signed(memory.limit),
            reservation: signed(memory.reservation),
            swap: signed(memory.swap),
            kernel: signed(memory.kernel),
            kernel_tcp: signed(memory.kernel_tcp),
            swappiness: unsigned(memory.swappiness),
            disable_oom_killer: flag(memory.disable_oom_killer),
            use_hierarchy: flag(memory.use_hierarchy),
        }),
        cpu: resources.cpu.as_ref().map(|cpu| proto::LinuxCpu {
            shares: unsigned(cpu.shares),
            quota: signed(cpu.quota),
            period: unsigned(cpu.period),
            realtime_runtime: signed(cpu.realtime_runtime),
            realtime_period: unsigned(cpu.realtime_period),
            cpus: cpu.cpus.clone(),
            mems: cpu.mems.clone(),
        }),
        hugepage_limits: resources
            .hugepage_limits
            .iter()
            .map(|limit| proto::HugepageLimit { page_size: limit.page_size.clone(), limit: limit.limit })
            .collect(),
        unified: resources.unified.clone(),
        devices: resources.devices.iter().map(rule).collect(),
        pids: resources.pids.as_ref().map(|pids| proto::LinuxPids { limit: pids.limit }),
        blockio_class: None,
        rdt_class: None,
    }
}

/// Limits of CRI, where 0 and "" mean "not said".
pub(super) fn limits(limits: &v1::LinuxContainerResources) -> proto::LinuxResources {
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
