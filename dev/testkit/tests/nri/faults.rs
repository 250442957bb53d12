//! Plugins that object, hang, talk nonsense or die, and a daemon that is killed while it asks one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use criox_nri::proto::{CreateContainerRequest, RunPodSandboxRequest};
use prost::Message as _;
use testkit::harness::Test;
use testkit::{Daemon, Node, Result, wait_for};

use crate::plugin::Answer;
use crate::{IDLE, LIMIT, NODE, PATIENCE, connect, pod, usual};

pub(crate) const TESTS: &[Test] = &[
    ("a plugin's error fails RunPodSandbox, which leaves nothing and can be repeated", || NODE.test(no_pod)),
    ("a plugin's error fails CreateContainer, which leaves nothing and can be repeated", || {
        NODE.test(no_container)
    }),
    ("an object is shown by no call while plugins are asked about it", || NODE.test(unseen)),
    ("a plugin that hangs costs its pod its limit, and another pod nothing", || NODE.test(hangs)),
    ("a plugin that goes in the middle of an event costs nothing", || NODE.test(goes)),
    ("a killed daemon undoes what plugins were being asked about, and tells them of the rest", killed),
    ("a container without a required plugin is refused, unless its pod tolerates that", required),
];

fn no_pod(node: &Node) -> Result {
    let mut first = true;
    let plugin = connect(&node.daemon, "10", "no", move |method, _| match method {
        "RunPodSandbox" if std::mem::take(&mut first) => Answer::Error(2, "not here".into()),
        _ => Answer::Usual,
    })?;
    let config = node.cri.pod("no-pod");
    let error = node.cri.run_pod(&config).unwrap_err();
    assert!(error.message().contains("10-no") && error.message().contains("not here"), "{}", error.message());
    assert!(node.cri.list_pods()?.is_empty());
    assert!(node.daemon.leftovers().is_empty(), "{:?}", node.daemon.leftovers());
    let seen = plugin.seen.lock().unwrap().methods();
    // It hears that nothing came of it.
    assert_eq!(seen[2..], ["RunPodSandbox", "StopPodSandbox", "RemovePodSandbox"]);
    node.cri.run_pod(&config)?;
    Ok(())
}

fn no_container(node: &Node) -> Result {
    let mut first = true;
    let _plugin = connect(&node.daemon, "10", "no", move |method, _| match method {
        "CreateContainer" if std::mem::take(&mut first) => Answer::Error(2, "not here".into()),
        _ => Answer::Usual,
    })?;
    let (sandbox, config) = pod(node, "no-container")?;
    let container = node.cri.container("c", &node.image, IDLE);
    let error = node.cri.create(&sandbox, &container, &config).unwrap_err();
    assert!(error.message().contains("10-no") && error.message().contains("not here"), "{}", error.message());
    assert!(node.cri.list(Some(&sandbox))?.is_empty());
    let logs = std::path::Path::new(&config.log_directory).join("c");
    assert!(!logs.join("0.log").exists(), "its log would decide the next attempt");
    let id = node.cri.create(&sandbox, &container, &config)?;
    node.cri.start(&id)?;
    Ok(())
}

fn unseen(node: &Node) -> Result {
    let pause = Duration::from_millis(700);
    let _plugin = connect(&node.daemon, "10", "slow", move |method, _| match method {
        "RunPodSandbox" | "CreateContainer" => Answer::Later(pause),
        _ => Answer::Usual,
    })?;
    let config = node.cri.host_network_pod("unseen");
    let other = node.daemon.cri()?;
    // Looked at from beside, as long as the call lasts.
    let watched = |during: &dyn Fn() -> Result<String>,
                   look: &(dyn Fn() -> Result<usize> + Sync)|
     -> Result<String> {
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let looks = scope.spawn(|| {
                let (begun, mut most) = (Instant::now(), 0);
                while !over.load(Ordering::Acquire) && begun.elapsed() < pause - Duration::from_millis(200) {
                    most = most.max(look().map_err(|error| error.to_string())?);
                    std::thread::sleep(Duration::from_millis(10));
                }
                Ok::<usize, String>(most)
            });
            let id = during();
            over.store(true, Ordering::Release);
            assert_eq!(looks.join().unwrap()?, 0);
            id
        })
    };
    let sandbox = watched(&|| Ok(node.cri.run_pod(&config)?), &|| Ok(other.list_pods()?.len()))?;
    let container = node.cri.container("c", &node.image, IDLE);
    let id = watched(&|| Ok(node.cri.create(&sandbox, &container, &config)?), &|| {
        Ok(other.list(Some(&sandbox))?.len())
    })?;
    assert_eq!(node.cri.list(Some(&sandbox))?[0].id, id);
    Ok(())
}

fn hangs(node: &Node) -> Result {
    let asked = Arc::new(AtomicBool::new(false));
    let hung = asked.clone();
    let plugin = connect(&node.daemon, "10", "hung", move |method, payload| {
        let is_slow = |payload| RunPodSandboxRequest::decode(payload).unwrap().pod.unwrap().name == "slow";
        if method == "RunPodSandbox" && is_slow(payload) {
            hung.store(true, Ordering::Release);
            return Answer::Silence;
        }
        Answer::Usual
    })?;
    let other = node.daemon.cri()?;
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| other.run_pod(&other.host_network_pod("slow")).map(drop));
        wait_for("the plugin to hang", LIMIT, || Ok(asked.load(Ordering::Acquire).then_some(())))?;
        let quick = Instant::now();
        let (sandbox, config) = pod(node, "quick")?;
        node.cri.create(&sandbox, &node.cri.container("c", &node.image, IDLE), &config)?;
        assert!(quick.elapsed() < PATIENCE, "{:?}", quick.elapsed());
        slow.join().unwrap()?;
        assert!(begun.elapsed() >= PATIENCE, "{:?}", begun.elapsed());
        Ok::<(), testkit::Error>(())
    })?;
    wait_for("the plugin to be dropped", LIMIT, || Ok(plugin.is_closed().then_some(())))?;
    // And nobody waits for it again.
    let after = Instant::now();
    pod(node, "after")?;
    assert!(after.elapsed() < PATIENCE, "{:?}", after.elapsed());
    Ok(())
}

fn goes(node: &Node) -> Result {
    let _plugin = connect(&node.daemon, "10", "nonsense", |method, _| match method {
        "CreateContainer" => Answer::Nonsense,
        _ => Answer::Usual,
    })?;
    let (sandbox, config) = pod(node, "goes")?;
    let begun = Instant::now();
    let id = node.cri.create(&sandbox, &node.cri.container("c", &node.image, IDLE), &config)?;
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    node.cri.start(&id)?;
    Ok(())
}

fn killed() -> Result {
    let mut node = Node::start(|registry| Daemon::builder().registry(registry).start())?;
    let config = node.cri.pod("killed");
    let sandbox = node.cri.run_pod(&config)?;
    let lives = node.cri.create(&sandbox, &node.cri.container("lives", &node.image, IDLE), &config)?;
    node.cri.start(&lives)?;
    let asked = Arc::new(AtomicBool::new(false));
    let hung = asked.clone();
    let plugin = connect(&node.daemon, "10", "hung", move |method, payload| {
        let is_half =
            |payload| CreateContainerRequest::decode(payload).unwrap().container.unwrap().name == "half";
        if method == "CreateContainer" && is_half(payload) {
            hung.store(true, Ordering::Release);
            return Answer::Silence;
        }
        Answer::Usual
    })?;
    let half = node.cri.container("half", &node.image, IDLE);
    let client = node.daemon.cri()?;
    std::thread::scope(|scope| {
        let creation = scope.spawn(|| client.create(&sandbox, &half, &config));
        wait_for("the plugin to be asked", LIMIT, || Ok(asked.load(Ordering::Acquire).then_some(())))?;
        node.daemon.kill()?;
        assert!(creation.join().unwrap().is_err());
        Ok::<(), testkit::Error>(())
    })?;
    drop(plugin);
    node.daemon.start()?;
    node.cri = node.daemon.cri()?;
    // The first answer comes after plugins can connect; external ones come back by themselves.
    node.cri.version()?;
    let again = connect(&node.daemon, "10", "again", usual)?;
    let told = again.seen.lock().unwrap().synchronized.clone();
    assert_eq!(told.pods.iter().map(|pod| pod.id.as_str()).collect::<Vec<_>>(), [sandbox.as_str()]);
    assert_eq!(told.containers.iter().map(|c| c.id.as_str()).collect::<Vec<_>>(), [lives.as_str()]);
    assert_eq!(node.cri.list(Some(&sandbox))?.len(), 1);
    // The same request, as a kubelet repeats it.
    node.cri.create(&sandbox, &half, &config)?;
    node.daemon.finish()
}

fn required() -> Result {
    let validator = "[crio.nri.default_validator]\nnri_enable_default_validator = true\nnri_validator_required_plugins = [\"guard\"]\nnri_validator_tolerate_missing_plugins_annotation = \"tolerate.test\"\n";
    let node = Node::start(|registry| Daemon::builder().registry(registry).drop_in(validator).start())?;
    let create =
        |config: &criox_cri::v1::PodSandboxConfig| -> Result<std::result::Result<String, tonic::Status>> {
            let sandbox = node.cri.run_pod(config)?;
            Ok(node.cri.create(&sandbox, &node.cri.container("c", &node.image, IDLE), config))
        };
    let error = create(&node.cri.host_network_pod("without"))?.unwrap_err();
    assert!(error.message().contains("guard"), "{}", error.message());
    let mut tolerant = node.cri.host_network_pod("tolerant");
    tolerant.annotations.insert("tolerate.test".into(), "true".into());
    create(&tolerant)??;
    let _guard = connect(&node.daemon, "10", "guard", usual)?;
    create(&node.cri.host_network_pod("with"))??;
    node.daemon.finish()
}
