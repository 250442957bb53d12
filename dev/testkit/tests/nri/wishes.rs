//! What plugins ask for is what containers get.

use criox_cri::v1::{ContainerState, LinuxContainerResources, UpdateContainerResourcesRequest};
use criox_nri::proto::{
    ContainerAdjustment, ContainerEviction, ContainerUpdate, CreateContainerRequest, CreateContainerResponse,
    Hook, Hooks, KeyValue, LinuxContainerAdjustment, LinuxContainerUpdate, LinuxCpu, LinuxDevice,
    LinuxMemory, LinuxResources, Mount, OptionalFileMode, OptionalInt, OptionalInt64, OptionalUInt64,
    PosixRlimit, UpdateContainerRequest, UpdateContainerResponse, UpdateContainersRequest,
    UpdateContainersResponse,
};
use prost::Message as _;
use testkit::harness::Test;
use testkit::{Node, Result, wait_for};

use crate::plugin::Answer;
use crate::{IDLE, LIMIT, NODE, TOKIO, connect, creating, pod, said, usual};

pub(crate) const TESTS: &[Test] = &[
    ("a plugin hears of a container's whole life, in order and once", || NODE.test(life)),
    ("what a plugin wants adjusted is what the container gets", || NODE.test(adjusted)),
    ("two plugins that set the same fail the creation, which names both and leaves nothing", || {
        NODE.test(conflict)
    }),
    ("what can't be adjusted is refused by name", || NODE.test(refused)),
    ("a plugin changes limits, of the container that is updated and of another", || NODE.test(updated)),
    ("a plugin's own update and eviction are made", || NODE.test(unsolicited)),
    ("a plugin that joins late is told of what there is", || NODE.test(late)),
];

fn answer(adjust: ContainerAdjustment) -> Answer {
    Answer::Message(CreateContainerResponse { adjust: Some(adjust), ..Default::default() }.encode_to_vec())
}

fn env(key: &str, value: &str) -> ContainerAdjustment {
    let env = vec![KeyValue { key: key.into(), value: value.into() }];
    ContainerAdjustment { env, ..Default::default() }
}

fn life(node: &Node) -> Result {
    let plugin = connect(&node.daemon, "10", "ear", usual)?;
    let (sandbox, config) = pod(node, "life")?;
    let id =
        node.cri.create(&sandbox, &node.cri.container("c", &node.image, &["sh", "-c", "exit 3"]), &config)?;
    node.cri.start(&id)?;
    node.cri.wait_state(&id, ContainerState::ContainerExited, LIMIT)?;
    node.cri.remove(&id)?;
    node.cri.stop_pod(&sandbox)?;
    node.cri.stop_pod(&sandbox)?;
    node.cri.remove_pod(&sandbox)?;
    let seen = plugin.seen.lock().unwrap().methods();
    let expected = [
        "Configure",
        "Synchronize",
        "RunPodSandbox",
        "CreateContainer",
        "PostCreateContainer",
        "StartContainer",
        "PostStartContainer",
        "StopContainer",
        "RemoveContainer",
        "StopPodSandbox",
        "RemovePodSandbox",
    ];
    assert_eq!(seen, expected);
    Ok(())
}

/// As much as works with every runtime here, and is seen from inside.
fn wish() -> ContainerAdjustment {
    let hook = Hook {
        path: "/bin/sh".into(),
        args: vec!["sh".into(), "-c".into(), "cat > /dev/null".into()],
        ..Default::default()
    };
    let device = LinuxDevice {
        path: "/dev/other-zero".into(),
        r#type: "c".into(),
        major: 1,
        minor: 5,
        file_mode: Some(OptionalFileMode { value: 0o666 }),
        ..Default::default()
    };
    let cpu = LinuxCpu { shares: Some(OptionalUInt64 { value: 512 }), ..Default::default() };
    let memory = LinuxMemory { limit: Some(OptionalInt64 { value: 64 << 20 }), ..Default::default() };
    ContainerAdjustment {
        annotations: [("of.a.plugin".to_owned(), "yes".to_owned())].into(),
        mounts: vec![Mount {
            destination: "/plugged".into(),
            r#type: "bind".into(),
            source: "/proc/sys/kernel".into(),
            options: vec!["rbind".into(), "ro".into()],
        }],
        env: vec![
            KeyValue { key: "PLUGGED".into(), value: "in".into() },
            KeyValue { key: "-GONE".into(), value: String::new() },
        ],
        hooks: Some(Hooks { poststop: vec![hook], ..Default::default() }),
        rlimits: vec![PosixRlimit { r#type: "RLIMIT_CORE".into(), hard: 0, soft: 0 }],
        linux: Some(LinuxContainerAdjustment {
            devices: vec![device],
            resources: Some(LinuxResources { cpu: Some(cpu), memory: Some(memory), ..Default::default() }),
            oom_score_adj: Some(OptionalInt { value: 500 }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn adjusted(node: &Node) -> Result {
    let plugin = connect(&node.daemon, "10", "hand", creating(|| answer(wish())))?;
    let (sandbox, config) = pod(node, "adjusted")?;
    let mut container = node.cri.container("c", &node.image, IDLE);
    for key in ["GONE", "KEPT"] {
        container.envs.push(criox_cri::v1::KeyValue { key: key.into(), value: "1".into() });
    }
    let id = node.cri.create(&sandbox, &container, &config)?;
    node.cri.start(&id)?;
    let variables = said(node, &id, "tr '\\0' '\\n' < /proc/1/environ")?;
    assert!(variables.contains("PLUGGED=in") && variables.contains("KEPT=1"), "{variables}");
    assert!(!variables.contains("GONE"), "{variables}");
    assert_eq!(said(node, &id, "test -e /plugged/hostname && echo there")?, "there\n");
    assert_eq!(said(node, &id, "head -c 4 /dev/other-zero | od -An -tx1")?.trim(), "00 00 00 00");
    assert_eq!(said(node, &id, "cat /proc/1/oom_score_adj")?, "500\n");
    assert!(said(node, &id, "grep core /proc/1/limits")?.contains(" 0 "), "core size");
    let spec = node.daemon.root().join("overlay-containers").join(&id).join("userdata/config.json");
    let spec: serde_json::Value = serde_json::from_slice(&std::fs::read(spec)?)?;
    assert_eq!(spec["annotations"]["of.a.plugin"], "yes");
    assert_eq!(spec["linux"]["resources"]["cpu"]["shares"], 512);
    assert_eq!(spec["linux"]["resources"]["memory"]["limit"], 64 << 20);
    assert_eq!(spec["hooks"]["poststop"][0]["path"], "/bin/sh");
    // What the plugin was shown is what there was before.
    let calls = plugin.seen.lock().unwrap().calls.clone();
    let (_, asked) = calls.iter().find(|(method, _)| method == "CreateContainer").ok_or("it was asked")?;
    let shown = CreateContainerRequest::decode(asked.as_slice())?.container.ok_or("about a container")?;
    assert_eq!((shown.id.as_str(), shown.name.as_str()), (id.as_str(), "c"));
    assert_eq!(shown.args, IDLE);
    assert!(shown.mounts.iter().any(|mount| mount.destination == "/proc"), "{:?}", shown.mounts);
    node.cri.stop(&id, 0)?;
    Ok(())
}

fn conflict(node: &Node) -> Result {
    let _first = connect(&node.daemon, "10", "first", creating(|| answer(env("X", "1"))))?;
    let second = connect(&node.daemon, "20", "second", creating(|| answer(env("X", "2"))))?;
    let (sandbox, config) = pod(node, "conflict")?;
    let container = node.cri.container("c", &node.image, IDLE);
    let error = node.cri.create(&sandbox, &container, &config).unwrap_err();
    let message = error.message().to_owned();
    assert!(message.contains("10-first") && message.contains("20-second"), "{message}");
    assert!(node.cri.list(Some(&sandbox))?.is_empty());
    // Both hear that nothing came of it.
    let last = second.seen.lock().unwrap().methods().last().cloned();
    assert_eq!(last.as_deref(), Some("RemoveContainer"));
    second.disconnect();
    wait_for("the second plugin to be forgotten", LIMIT, || {
        Ok(node.cri.create(&sandbox, &container, &config).ok())
    })?;
    Ok(())
}

fn refused(node: &Node) -> Result {
    let swappiness = LinuxMemory { swappiness: Some(OptionalUInt64 { value: 1 }), ..Default::default() };
    let class = LinuxResources {
        blockio_class: Some(criox_nri::proto::OptionalString { value: "slow".into() }),
        memory: Some(swappiness),
        ..Default::default()
    };
    let wish = ContainerAdjustment {
        linux: Some(LinuxContainerAdjustment { resources: Some(class), ..Default::default() }),
        ..Default::default()
    };
    let plugin = connect(&node.daemon, "10", "hand", creating(move || answer(wish.clone())))?;
    let (sandbox, config) = pod(node, "refused")?;
    let container = node.cri.container("c", &node.image, IDLE);
    let error = node.cri.create(&sandbox, &container, &config).unwrap_err();
    assert!(error.message().contains("blockio_class"), "{}", error.message());
    plugin.disconnect();
    Ok(())
}

fn shares(value: u64) -> LinuxResources {
    let cpu = LinuxCpu { shares: Some(OptionalUInt64 { value }), ..Default::default() };
    LinuxResources { cpu: Some(cpu), ..Default::default() }
}

fn update(id: &str, resources: LinuxResources) -> ContainerUpdate {
    let linux = Some(LinuxContainerUpdate { resources: Some(resources) });
    ContainerUpdate { container_id: id.into(), linux, ignore_failure: false }
}

/// The CPU shares that are in force, as ContainerStatus says.
fn shares_of(node: &Node, id: &str) -> Result<i64> {
    let linux = node.cri.status(id)?.resources.and_then(|resources| resources.linux);
    Ok(linux.map(|linux| linux.cpu_shares).unwrap_or_default())
}

fn updated(node: &Node) -> Result {
    let (sandbox, config) = pod(node, "updated")?;
    let mut ids = Vec::new();
    for name in ["one", "other"] {
        let id = node.cri.create(&sandbox, &node.cri.container(name, &node.image, IDLE), &config)?;
        node.cri.start(&id)?;
        ids.push(id);
    }
    let other = ids[1].clone();
    let plugin = connect(&node.daemon, "10", "hand", move |method, payload| match method {
        "UpdateContainer" => {
            let request = UpdateContainerRequest::decode(payload).unwrap();
            let asked = request.linux_resources.unwrap().cpu.unwrap().shares.unwrap().value;
            let id = request.container.unwrap().id;
            let update = vec![update(&id, shares(asked + 1)), update(&other, shares(asked + 2))];
            Answer::Message(UpdateContainerResponse { update, evict: Vec::new() }.encode_to_vec())
        }
        _ => Answer::Usual,
    })?;
    let request = UpdateContainerResourcesRequest {
        container_id: ids[0].clone(),
        linux: Some(LinuxContainerResources { cpu_shares: 300, ..Default::default() }),
        ..Default::default()
    };
    node.cri.call(node.cri.runtime().update_container_resources(request))?;
    assert_eq!(shares_of(node, &ids[0])?, 301);
    wait_for("the other's update", LIMIT, || Ok((shares_of(node, &ids[1])? == 302).then_some(())))?;
    let seen = plugin.seen.lock().unwrap().methods();
    // A plugin's own update is not told to plugins.
    assert_eq!(seen, ["Configure", "Synchronize", "UpdateContainer", "PostUpdateContainer"]);
    Ok(())
}

fn unsolicited(node: &Node) -> Result {
    let plugin = connect(&node.daemon, "10", "hand", usual)?;
    let (sandbox, config) = pod(node, "unsolicited")?;
    let id = node.cri.create(&sandbox, &node.cri.container("c", &node.image, IDLE), &config)?;
    node.cri.start(&id)?;
    let unknown = "f".repeat(64);
    let request = UpdateContainersRequest {
        update: vec![update(&id, shares(77)), update(&unknown, shares(1))],
        evict: vec![],
    };
    let call = |request: UpdateContainersRequest| {
        let answer = TOKIO.block_on(plugin.call("UpdateContainers", request.encode_to_vec()));
        UpdateContainersResponse::decode(answer.unwrap().payload.as_slice()).unwrap()
    };
    let failed = call(request).failed;
    assert_eq!(failed.iter().map(|failed| failed.container_id.clone()).collect::<Vec<_>>(), [unknown]);
    assert_eq!(shares_of(node, &id)?, 77);
    let eviction = ContainerEviction { container_id: id.clone(), reason: "no room".into() };
    call(UpdateContainersRequest { update: Vec::new(), evict: vec![eviction] });
    let ended = node.cri.wait_state(&id, ContainerState::ContainerExited, LIMIT)?;
    assert_eq!(ended.exit_code, 137);
    Ok(())
}

fn late(node: &Node) -> Result {
    let (sandbox, config) = pod(node, "late")?;
    let container = node.cri.container("c", &node.image, IDLE);
    let id = node.cri.create(&sandbox, &container, &config)?;
    node.cri.start(&id)?;
    let plugin = connect(&node.daemon, "10", "late", usual)?;
    let told = plugin.seen.lock().unwrap().synchronized.clone();
    let pods: Vec<_> = told.pods.iter().map(|pod| (pod.id.clone(), pod.name.clone())).collect();
    assert_eq!(pods, [(sandbox, "late".to_owned())]);
    let shown = told.containers.first().ok_or("it is told of the container")?;
    assert_eq!((told.containers.len(), shown.id.as_str(), shown.name.as_str()), (1, id.as_str(), "c"));
    assert_eq!(shown.state(), criox_nri::proto::ContainerState::ContainerRunning);
    assert_eq!((shown.args.as_slice(), shown.pid > 0), (container.command.as_slice(), true));
    Ok(())
}
