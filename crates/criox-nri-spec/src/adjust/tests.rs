//! Adjustments in a specification.

use criox_nri::proto::{
    ContainerAdjustment, Hook, Hooks, HugepageLimit, KeyValue, LinuxContainerAdjustment, LinuxCpu,
    LinuxDevice, LinuxIoPriority, LinuxMemory, LinuxNamespace, LinuxPids, LinuxRdt, LinuxResources,
    LinuxScheduler, LinuxSeccomp, Mount, OptionalFileMode, OptionalInt, OptionalInt64, OptionalString,
    OptionalUInt64, PosixRlimit,
};

use super::*;

fn spec() -> oci::Spec {
    let mount = |destination: &str| oci::Mount { destination: destination.into(), ..Default::default() };
    let mut spec = oci::Spec {
        mounts: vec![mount("/proc"), mount("/dev"), mount("/dev/shm"), mount("/data")],
        annotations: [("kept".to_owned(), "k".to_owned()), ("gone".to_owned(), "g".to_owned())].into(),
        ..Default::default()
    };
    spec.process.env = vec!["PATH=/bin".into(), "A=1".into(), "B=2".into()];
    spec.process.args = vec!["old".into()];
    spec.process.rlimits = vec![oci::Rlimit { kind: "RLIMIT_NOFILE".into(), hard: 9, soft: 9 }];
    spec.linux.namespaces = vec![oci::Namespace { kind: "cgroup".into(), path: None }];
    spec.linux.devices = vec![oci::Device { path: "/dev/x".into(), kind: "c".into(), ..Default::default() }];
    spec
}

fn all() -> HandlerFeatures {
    HandlerFeatures { net_devices: true, memory_policy: true, intel_rdt: Some(true), ..Default::default() }
}

fn adjusted(wish: &ContainerAdjustment) -> oci::Spec {
    let mut spec = spec();
    adjust(&mut spec, wish, &Limits { features: &all(), cgroup_v2: true }).expect("it can be");
    spec
}

fn linux(linux: LinuxContainerAdjustment) -> ContainerAdjustment {
    ContainerAdjustment { linux: Some(linux), ..Default::default() }
}

#[track_caller]
fn check_refused(wish: &ContainerAdjustment, features: &HandlerFeatures, v2: bool, part: &str) {
    let error = adjust(&mut spec(), wish, &Limits { features, cgroup_v2: v2 }).expect_err("it can't be");
    assert!(error.to_string().contains(part), "{error}");
}

#[test]
fn nothing_asked_for_is_nothing_changed() {
    assert_eq!(adjusted(&ContainerAdjustment::default()), spec());
    assert_eq!(adjusted(&linux(LinuxContainerAdjustment::default())), spec());
}

#[test]
fn the_process_is_adjusted() {
    let pair = |key: &str, value: &str| KeyValue { key: key.into(), value: value.into() };
    let spec = adjusted(&ContainerAdjustment {
        env: vec![pair("-A", ""), pair("B", "9"), pair("C", "3")],
        args: vec!["new".into(), "arg".into()],
        rlimits: vec![PosixRlimit { r#type: "RLIMIT_NOFILE".into(), hard: 7, soft: 5 }],
        annotations: [
            ("-gone".to_owned(), String::new()),
            ("own".to_owned(), "o".to_owned()),
            ("io.kubernetes.cri-o.userns-mode".to_owned(), "auto".to_owned()),
        ]
        .into(),
        hooks: Some(Hooks {
            create_runtime: vec![Hook {
                path: "/hook".into(),
                timeout: Some(OptionalInt { value: 3 }),
                ..Default::default()
            }],
            ..Default::default()
        }),
        ..Default::default()
    });
    assert_eq!(spec.process.env, ["PATH=/bin", "B=9", "C=3"]);
    assert_eq!(spec.process.args, ["new", "arg"]);
    assert_eq!(spec.process.rlimits, [oci::Rlimit { kind: "RLIMIT_NOFILE".into(), hard: 7, soft: 5 }]);
    // What steers criox is not taken from a plugin unless the handler allows it.
    assert_eq!(spec.annotations.keys().collect::<Vec<_>>(), ["kept", "own"]);
    assert_eq!(spec.hooks.expect("hooks").create_runtime[0].timeout, Some(3));
}

#[test]
fn mounts_are_replaced_removed_and_ordered_by_depth() {
    let mount = |destination: &str| Mount {
        destination: destination.into(),
        r#type: "tmpfs".into(),
        source: "tmpfs".into(),
        options: vec!["ro".into()],
    };
    let mounts = vec![mount("/data"), mount("/data/below/it"), mount("-/dev/shm"), mount("/a")];
    let spec = adjusted(&ContainerAdjustment { mounts, ..Default::default() });
    let order: Vec<_> = spec.mounts.iter().map(|mount| mount.destination.as_str()).collect();
    assert_eq!(order, ["/proc", "/dev", "/data", "/a", "/data/below/it"]);
    assert_eq!(spec.mounts[2].options, ["ro"]);
}

#[test]
fn propagation_wants_a_source_that_propagates() {
    let mount = Mount {
        destination: "/a".into(),
        r#type: "bind".into(),
        source: "/proc".into(),
        options: vec!["rbind".into(), "rshared".into()],
    };
    let adjust = ContainerAdjustment { mounts: vec![mount], ..Default::default() };
    let shared = mount::mountinfo()
        .expect("there is a table")
        .iter()
        .any(|entry| entry.mount_point == std::path::Path::new("/proc") && entry.is_shared());
    match shared {
        true => assert_eq!(adjusted(&adjust).linux.rootfs_propagation, "rshared"),
        false => check_refused(&adjust, &all(), true, "propagates"),
    }
}

#[test]
fn linux_is_adjusted() {
    let device = LinuxDevice {
        path: "/dev/y".into(),
        r#type: "b".into(),
        major: 8,
        minor: 1,
        file_mode: Some(OptionalFileMode { value: 0o660 }),
        ..Default::default()
    };
    let memory = LinuxMemory { limit: Some(OptionalInt64 { value: 1 << 30 }), ..Default::default() };
    let cpu =
        LinuxCpu { shares: Some(OptionalUInt64 { value: 512 }), cpus: "0-1".into(), ..Default::default() };
    let scheduler = LinuxScheduler { policy: 4, nice: 5, flags: vec![0], ..Default::default() };
    let spec = adjusted(&linux(LinuxContainerAdjustment {
        devices: vec![LinuxDevice { path: "-/dev/x".into(), ..Default::default() }, device],
        resources: Some(LinuxResources {
            memory: Some(memory),
            cpu: Some(cpu),
            pids: Some(LinuxPids { limit: 50 }),
            hugepage_limits: vec![HugepageLimit { page_size: "2MB".into(), limit: 4 }],
            unified: [("memory.high".to_owned(), "7".to_owned())].into(),
            ..Default::default()
        }),
        cgroups_path: "/elsewhere".into(),
        oom_score_adj: Some(OptionalInt { value: -5 }),
        io_priority: Some(LinuxIoPriority { class: 2, priority: 4 }),
        seccomp_policy: Some(LinuxSeccomp { default_action: "SCMP_ACT_LOG".into(), ..Default::default() }),
        namespaces: vec![LinuxNamespace { r#type: "-cgroup".into(), path: String::new() }],
        sysctl: [("net.a".to_owned(), "1".to_owned())].into(),
        scheduler: Some(scheduler),
        rdt: Some(LinuxRdt { clos_id: Some(OptionalString { value: "gold".into() }), ..Default::default() }),
        memory_policy: Some(proto::LinuxMemoryPolicy { mode: 2, nodes: "0".into(), flags: vec![0] }),
        net_devices: [("eth9".to_owned(), proto::LinuxNetDevice { name: "net1".into() })].into(),
    }));
    let resources = spec.linux.resources.expect("resources");
    assert_eq!(spec.linux.devices.iter().map(|device| device.path.as_str()).collect::<Vec<_>>(), ["/dev/y"]);
    assert_eq!(
        resources.devices.last().map(|rule| (rule.major, rule.access.as_str())),
        Some((Some(8), "rwm"))
    );
    let memory = resources.memory.expect("memory");
    assert_eq!((memory.limit, memory.swap), (Some(1 << 30), Some(1 << 30)));
    let cpu = resources.cpu.expect("cpu");
    assert_eq!((cpu.shares, cpu.cpus.as_str()), (Some(512), "0-1"));
    assert_eq!(resources.pids, Some(oci::Pids { limit: 50 }));
    assert_eq!(resources.unified["memory.high"], "7");
    assert_eq!(spec.linux.cgroups_path, "/elsewhere");
    assert_eq!(spec.process.oom_score_adj, Some(-5));
    assert_eq!(spec.process.io_priority.expect("priority").class, "IOPRIO_CLASS_BE");
    let scheduler = spec.process.scheduler.expect("scheduler");
    assert_eq!((scheduler.policy.as_str(), scheduler.nice), ("SCHED_BATCH", 5));
    assert_eq!(scheduler.flags, ["SCHED_FLAG_RESET_ON_FORK"]);
    assert_eq!(spec.linux.seccomp.expect("seccomp").default_action, "SCMP_ACT_LOG");
    assert!(spec.linux.namespaces.is_empty());
    assert_eq!(spec.linux.sysctl["net.a"], "1");
    assert_eq!(spec.linux.intel_rdt.expect("rdt").clos_id, "gold");
    assert_eq!(spec.linux.memory_policy.expect("policy").mode, "MPOL_BIND");
    assert_eq!(spec.linux.net_devices["eth9"].name, "net1");
}

#[test]
fn what_the_handler_or_the_machine_can_not_do_is_refused_by_name() {
    let nothing = HandlerFeatures::default();
    let rdt = LinuxRdt { clos_id: Some(OptionalString { value: "gold".into() }), ..Default::default() };
    check_refused(
        &linux(LinuxContainerAdjustment { rdt: Some(rdt), ..Default::default() }),
        &nothing,
        true,
        "rdt",
    );
    let policy = Some(proto::LinuxMemoryPolicy::default());
    let policy = linux(LinuxContainerAdjustment { memory_policy: policy, ..Default::default() });
    check_refused(&policy, &nothing, true, "memory_policy");
    let devices = [("eth9".to_owned(), proto::LinuxNetDevice::default())].into();
    let devices = linux(LinuxContainerAdjustment { net_devices: devices, ..Default::default() });
    check_refused(&devices, &nothing, true, "net_devices");
    let resources =
        |resources| linux(LinuxContainerAdjustment { resources: Some(resources), ..Default::default() });
    let class = Some(OptionalString { value: "slow".into() });
    check_refused(
        &resources(LinuxResources { blockio_class: class, ..Default::default() }),
        &all(),
        true,
        "blockio_class",
    );
    let unified = [("memory.high".to_owned(), "7".to_owned())].into();
    check_refused(&resources(LinuxResources { unified, ..Default::default() }), &all(), false, "unified");
    let swappiness = Some(OptionalUInt64 { value: 1 });
    let memory = LinuxMemory { swappiness, ..Default::default() };
    let memory = resources(LinuxResources { memory: Some(memory), ..Default::default() });
    check_refused(&memory, &all(), true, "memory.swappiness");
    let least = HandlerFeatures { container_min_memory: 100, ..all() };
    let memory = LinuxMemory { limit: Some(OptionalInt64 { value: 5 }), ..Default::default() };
    let memory = resources(LinuxResources { memory: Some(memory), ..Default::default() });
    check_refused(&memory, &least, true, "container_min_memory");
}
