//! What a specification tells plugins.

use criox_cri::v1;
use criox_nri::proto;
use criox_spec::oci;

/// The system call filter that a container asks for.
pub(crate) fn seccomp_profile(config: &v1::ContainerConfig) -> Option<proto::SecurityProfile> {
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

/// A container of which something is `known`, with what its specification says.
pub(crate) fn describe(spec: &oci::Spec, known: proto::Container) -> proto::Container {
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

#[cfg(test)]
mod tests {
    use criox_spec::HandlerFeatures;

    use super::*;
    use crate::{Limits, adjust};

    fn spec() -> oci::Spec {
        let mut spec = oci::Spec {
            mounts: vec![oci::Mount {
                destination: "/data".into(),
                kind: "bind".into(),
                source: "/srv".into(),
                options: vec!["rbind".into(), "ro".into()],
                ..Default::default()
            }],
            ..Default::default()
        };
        spec.process.args = vec!["run".into()];
        spec.process.env = vec!["PATH=/bin".into(), "A=1=2".into()];
        spec.process.user.additional_gids = vec![7];
        spec.process.oom_score_adj = Some(-5);
        spec.process.rlimits = vec![oci::Rlimit { kind: "RLIMIT_CORE".into(), hard: 2, soft: 1 }];
        spec.process.io_priority = Some(oci::IoPriority { class: "IOPRIO_CLASS_BE".into(), priority: 3 });
        spec.linux.cgroups_path = "/a/b".into();
        spec.linux.namespaces = vec![
            oci::Namespace { kind: "network".into(), path: Some("/run/netns/x".into()) },
            oci::Namespace { kind: "mount".into(), path: None },
        ];
        spec.linux.sysctl = [("net.ipv4.ip_forward".to_owned(), "1".to_owned())].into();
        spec.linux.seccomp = Some(oci::Seccomp {
            default_action: "SCMP_ACT_ERRNO".into(),
            default_errno_ret: Some(1),
            syscalls: vec![oci::Syscall {
                names: vec!["read".into()],
                action: "SCMP_ACT_ALLOW".into(),
                ..Default::default()
            }],
            ..Default::default()
        });
        let resources = spec.linux.resources.get_or_insert_default();
        resources.memory =
            Some(oci::Memory { limit: Some(1 << 30), swap: Some(2 << 30), ..Default::default() });
        resources.cpu = Some(oci::Cpu { shares: Some(512), quota: Some(-1), ..Default::default() });
        resources.pids = Some(oci::Pids { limit: 100 });
        resources.unified = [("memory.high".to_owned(), "5".to_owned())].into();
        spec
    }

    #[test]
    fn a_plugin_that_asks_for_what_it_was_told_changes_nothing() {
        let told = describe(&spec(), proto::Container::default());
        let linux = told.linux.expect("a container of Linux");
        let pair = |pair: &String| {
            let (key, value) = pair.split_once('=').expect("a variable");
            proto::KeyValue { key: key.into(), value: value.into() }
        };
        let wish = proto::ContainerAdjustment {
            args: told.args,
            env: told.env.iter().map(pair).collect(),
            mounts: told.mounts,
            rlimits: told.rlimits,
            linux: Some(proto::LinuxContainerAdjustment {
                resources: linux.resources,
                cgroups_path: linux.cgroups_path,
                oom_score_adj: linux.oom_score_adj,
                io_priority: linux.io_priority,
                seccomp_policy: linux.seccomp_policy,
                namespaces: linux.namespaces,
                sysctl: linux.sysctl,
                ..Default::default()
            }),
            ..Default::default()
        };
        let mut again = spec();
        let features = HandlerFeatures::default();
        adjust(&mut again, &wish, &Limits { features: &features, cgroup_v2: true }).expect("it is there");
        assert_eq!(again, spec());
    }

    #[test]
    fn what_is_known_beside_the_specification_stays() {
        let limits =
            proto::LinuxResources { pids: Some(proto::LinuxPids { limit: 4 }), ..Default::default() };
        let linux = proto::LinuxContainer { resources: Some(limits), ..Default::default() };
        let known = proto::Container { id: "c".into(), linux: Some(linux.clone()), ..Default::default() };
        let told = describe(&oci::Spec::default(), known);
        assert_eq!((told.id.as_str(), told.linux.and_then(|linux| linux.resources)), ("c", linux.resources));
    }
}
