//! Wishes of several plugins, put together.

use super::*;
use crate::proto::{
    ContainerUpdate, Hook, LinuxContainerUpdate, LinuxMemory, LinuxResources, OptionalInt, OptionalInt64,
    OptionalString, PosixRlimit,
};

fn container() -> Container {
    Container {
        id: "c".into(),
        env: vec!["PATH=/bin".into(), "A=1".into()],
        mounts: vec![mount("/proc", "proc"), mount("/data", "old")],
        annotations: [("kept".to_owned(), "k".to_owned()), ("gone".to_owned(), "g".to_owned())].into(),
        ..Default::default()
    }
}

fn mount(destination: &str, source: &str) -> Mount {
    Mount { destination: destination.into(), source: format!("/{source}"), ..Default::default() }
}

fn var(key: &str, value: &str) -> KeyValue {
    KeyValue { key: key.into(), value: value.into() }
}

fn answer(adjust: ContainerAdjustment) -> CreateContainerResponse {
    CreateContainerResponse { adjust: Some(adjust), ..Default::default() }
}

fn linux(linux: LinuxContainerAdjustment) -> CreateContainerResponse {
    answer(ContainerAdjustment { linux: Some(linux), ..Default::default() })
}

#[test]
fn a_later_plugin_sees_what_an_earlier_one_asked_for() {
    let mut merge = Merge::new(container());
    let wish = ContainerAdjustment {
        env: vec![var("B", "2"), var("A", "9")],
        mounts: vec![mount("/data", "new")],
        annotations: [("own".to_owned(), "o".to_owned())].into(),
        args: vec!["sh".into()],
        ..Default::default()
    };
    merge.take("10-a", answer(wish)).unwrap();
    assert_eq!(merge.container.env, ["PATH=/bin", "B=2", "A=9"]);
    assert_eq!(merge.container.mounts, [mount("/proc", "proc"), mount("/data", "new")]);
    assert_eq!(merge.container.annotations["own"], "o");
    assert_eq!(merge.container.args, ["sh"]);
    assert_eq!(merge.adjust.mounts, [mount("/data", "new")]);
}

#[test]
fn removals_reach_the_container_and_earlier_wishes() {
    let mut merge = Merge::new(container());
    let first = ContainerAdjustment {
        env: vec![var("B", "2")],
        annotations: [("own".to_owned(), "o".to_owned())].into(),
        ..Default::default()
    };
    let second = ContainerAdjustment {
        env: vec![var("-B", ""), var("-A", "")],
        mounts: vec![mount("-/data", "")],
        annotations: [("-own".to_owned(), String::new()), ("-gone".to_owned(), String::new())].into(),
        ..Default::default()
    };
    merge.take("10-a", answer(first)).unwrap();
    merge.take("20-b", answer(second)).unwrap();
    assert_eq!(merge.container.env, ["PATH=/bin"]);
    assert_eq!(merge.adjust.env, [var("-B", ""), var("-A", "")]);
    assert_eq!(merge.container.mounts, [mount("/proc", "proc")]);
    assert_eq!(merge.container.annotations.keys().collect::<Vec<_>>(), ["kept"]);
    assert!(merge.adjust.annotations.contains_key("-gone") && !merge.adjust.annotations.contains_key("own"));
}

#[test]
fn the_same_thing_set_twice_is_a_conflict_and_removed_first_it_is_none() {
    let set = |value: &str| answer(ContainerAdjustment { env: vec![var("A", value)], ..Default::default() });
    let mut merge = Merge::new(container());
    merge.take("10-a", set("1")).unwrap();
    let error = merge.take("20-b", set("2")).unwrap_err().to_string();
    assert!(error.contains("10-a") && error.contains("20-b") && error.contains("Env \"A\""), "{error}");

    let mut merge = Merge::new(container());
    merge.take("10-a", set("1")).unwrap();
    let both = ContainerAdjustment { env: vec![var("-A", ""), var("A", "2")], ..Default::default() };
    merge.take("20-b", answer(both)).unwrap();
    assert_eq!(merge.container.env, ["PATH=/bin", "A=2"]);
}

#[test]
fn arguments_are_overridden_only_on_purpose() {
    let args = |words: &[&str]| {
        let args = words.iter().map(|word| (*word).to_owned()).collect();
        answer(ContainerAdjustment { args, ..Default::default() })
    };
    let mut merge = Merge::new(container());
    merge.take("10-a", args(&["a"])).unwrap();
    assert!(merge.take("20-b", args(&["b"])).is_err());
    merge.take("20-b", args(&["", "b"])).unwrap();
    assert_eq!(merge.adjust.args, ["b"]);
}

#[test]
fn hooks_of_several_plugins_add_up() {
    let hook = |path: &str| {
        let hook = Hook { path: path.into(), ..Default::default() };
        answer(ContainerAdjustment {
            hooks: Some(Hooks { prestart: vec![hook], ..Default::default() }),
            ..Default::default()
        })
    };
    let mut merge = Merge::new(container());
    merge.take("10-a", hook("/a")).unwrap();
    merge.take("20-b", hook("/b")).unwrap();
    assert_eq!(merge.adjust.hooks.as_ref().unwrap().prestart.len(), 2);
    assert_eq!(merge.owners.of("c", Field::OciHooks), Some("10-a,20-b"));
}

#[test]
fn each_field_of_linux_has_one_owner() {
    let memory = LinuxMemory { limit: Some(OptionalInt64 { value: 1 << 30 }), ..Default::default() };
    let wish = LinuxContainerAdjustment {
        oom_score_adj: Some(OptionalInt { value: 5 }),
        cgroups_path: "/x".into(),
        resources: Some(LinuxResources { memory: Some(memory), ..Default::default() }),
        namespaces: vec![LinuxNamespace { r#type: "-cgroup".into(), path: String::new() }],
        sysctl: [("net.a".to_owned(), "1".to_owned())].into(),
        rdt: Some(LinuxRdt { clos_id: Some(OptionalString { value: "x".into() }), ..Default::default() }),
        ..Default::default()
    };
    let parts: Vec<LinuxContainerAdjustment> = vec![
        LinuxContainerAdjustment { oom_score_adj: wish.oom_score_adj, ..Default::default() },
        LinuxContainerAdjustment { cgroups_path: wish.cgroups_path.clone(), ..Default::default() },
        LinuxContainerAdjustment { resources: wish.resources.clone(), ..Default::default() },
        LinuxContainerAdjustment { namespaces: wish.namespaces.clone(), ..Default::default() },
        LinuxContainerAdjustment { sysctl: wish.sysctl.clone(), ..Default::default() },
        LinuxContainerAdjustment { rdt: wish.rdt.clone(), ..Default::default() },
    ];
    for part in parts {
        let mut merge = Merge::new(container());
        merge.take("10-a", linux(wish.clone())).unwrap();
        let shown = format!("{part:?}");
        assert!(merge.take("20-b", linux(part)).is_err(), "{shown}");
    }
}

#[test]
fn limits_are_shown_to_later_plugins() {
    let memory = LinuxMemory { limit: Some(OptionalInt64 { value: 7 }), ..Default::default() };
    let resources = Some(LinuxResources { memory: Some(memory), ..Default::default() });
    let mut merge = Merge::new(container());
    merge.take("10-a", linux(LinuxContainerAdjustment { resources, ..Default::default() })).unwrap();
    let shown = merge.container.linux.unwrap().resources.unwrap().memory.unwrap();
    assert_eq!(shown.limit.unwrap().value, 7);
    let asked = merge.adjust.linux.unwrap().resources.unwrap().memory.unwrap();
    assert_eq!(asked.limit.unwrap().value, 7);
}

#[test]
fn a_resource_limit_is_set_once() {
    let limit = |soft| {
        let limit = PosixRlimit { r#type: "RLIMIT_NOFILE".into(), hard: 9, soft };
        answer(ContainerAdjustment { rlimits: vec![limit], ..Default::default() })
    };
    let mut merge = Merge::new(container());
    merge.take("10-a", limit(1)).unwrap();
    assert!(merge.take("20-b", limit(2)).is_err());
}

#[test]
fn the_container_itself_is_adjusted_and_not_updated() {
    let update = ContainerUpdate {
        container_id: "c".into(),
        linux: Some(LinuxContainerUpdate::default()),
        ignore_failure: true,
    };
    let answer = CreateContainerResponse { update: vec![update], ..Default::default() };
    let error = Merge::new(container()).take("10-a", answer).unwrap_err().to_string();
    assert!(error.contains("10-a") && error.contains("while it is being made"), "{error}");
}
