//! Those who don't answer: everything hangs at once, each ends in its time with an error that names it, and everybody
//! else is served meanwhile.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use criox_cri::v1::{
    ContainerState, ImageSpec, ListContainersRequest, ListPodSandboxRequest, Mount, PodSandboxState,
    StatusRequest,
};
use testkit::harness::Test;
use testkit::{Behaviour, Daemon, Node, Result, wait_for};

use crate::{StandIns, refused, still_works, with_stand_ins};

pub(crate) const TESTS: &[Test] = &[
    (
        "a registry, a plugin and a runtime that hang are given up with a name, and others are served meanwhile",
        || with_stand_ins(all_hang),
    ),
    ("the stop of a pod ends a creation whose runtime hangs", || {
        with_stand_ins(|node, stand_ins| ended_with_its_pod(node, stand_ins, End::Stop))
    }),
    ("the removal of a pod ends a creation whose runtime hangs", || {
        with_stand_ins(|node, stand_ins| ended_with_its_pod(node, stand_ins, End::Removal))
    }),
    ("a stop or a removal ends a start whose runtime hangs, of the container and of its pod", || {
        with_stand_ins(hanging_start)
    }),
    (
        "a disk that hangs while a container is made holds up no stop, and what comes late is undone",
        late_storage,
    ),
];

/// How a pod ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Stop,
    Removal,
}

/// What anybody may have to wait for an answer that needs nothing of those who hang.
const PATIENCE: Duration = Duration::from_secs(1);

fn all_hang(node: &Node, stand_ins: &StandIns) -> Result {
    let config = node.cri.host_network_pod("hang");
    let pod = node.cri.run_pod(&config)?;
    let running = node.cri.container("running", &node.image, &["sleep", "1000"]);
    let running = node.cri.create(&pod, &running, &config)?;
    node.cri.start(&running)?;
    node.registry.freeze()?;
    stand_ins.bridge.set("ADD", Behaviour::Hang)?;
    stand_ins.runtime.set("create", Behaviour::Hang)?;
    let ended = AtomicBool::new(false);
    let result = std::thread::scope(|scope| -> Result {
        let served = scope.spawn(|| others_are_served(node, &running, &ended));
        let pull = scope.spawn(|| {
            let reference = format!("{}/hanging:1", node.registry.address());
            refused(
                node.cri.pull(&reference),
                &["RegistryUnavailable", &reference, node.registry.address(), "no answer for 2 s"],
            )?;
            Ok(())
        });
        let create = scope.spawn(|| {
            let container = node.cri.container("hanging", &node.image, &["true"]);
            refused(node.cri.create(&pod, &container, &config), &["create by", "did not end within"])?;
            Ok(())
        });
        let network = scope.spawn(|| {
            refused(node.cri.run_pod(&node.cri.pod("hanging")), &["bridge", "60"])?;
            Ok(())
        });
        let seen = scope.spawn(|| seen_from_its_cgroup_on(node, &running));
        // All are joined before any is judged: the one that serves others must be told to stop.
        let joined = [pull, create, network, seen].map(|hanging| hanging.join());
        ended.store(true, Ordering::Relaxed);
        let served = served.join().expect("no panic");
        let outcomes = joined.map(|outcome| outcome.expect("no panic"));
        outcomes.into_iter().chain([served]).collect()
    });
    node.registry.thaw()?;
    result?;
    stand_ins.bridge.set("ADD", Behaviour::Real)?;
    stand_ins.runtime.set("create", Behaviour::Real)?;
    assert_eq!(node.cri.list(None)?.len(), 1, "only the one that ran before");
    node.cri.remove_pod(&pod)?;
    assert_eq!(node.daemon.leftovers(), Vec::<String>::new());
    node.cri.pull(&node.image)?;
    still_works(node)
}

fn ended_with_its_pod(node: &Node, stand_ins: &StandIns, end: End) -> Result {
    let config = node.cri.host_network_pod("hanging-create");
    let pod = node.cri.run_pod(&config)?;
    stand_ins.runtime.set("create", Behaviour::Hang)?;
    let before = stand_ins.runtime.calls().len();
    std::thread::scope(|scope| -> Result {
        let create = scope.spawn(|| {
            let container = node.cri.container("hanging", &node.image, &["true"]);
            refused(node.cri.create(&pod, &container, &config), &["given up", "being stopped"])
        });
        wait_for("the runtime to hang", Duration::from_secs(20), || {
            Ok(stand_ins.runtime.calls()[before..].iter().any(|verb| verb == "create").then_some(()))
        })?;
        let begun = Instant::now();
        match end {
            End::Stop => node.cri.stop_pod(&pod)?,
            End::Removal => node.cri.remove_pod(&pod)?,
        }
        // The runtime has thirty seconds.
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
        create.join().expect("no panic")?;
        Ok(())
    })?;
    stand_ins.runtime.set("create", Behaviour::Real)?;
    assert!(node.cri.list(None)?.is_empty());
    assert!(!std::path::Path::new(&config.log_directory).join("hanging/0.log").exists());
    if end == End::Stop {
        assert_eq!(node.cri.pod_status(&pod)?.state(), PodSandboxState::SandboxNotready);
        node.cri.remove_pod(&pod)?;
    }
    assert_eq!(node.daemon.leftovers(), Vec::<String>::new());
    still_works(node)
}

/// The runtime has a minute for a start.
fn hanging_start(node: &Node, stand_ins: &StandIns) -> Result {
    let config = node.cri.host_network_pod("hanging-start");
    type Ending = fn(&Node, &str, &str) -> Result<(), tonic::Status>;
    let endings: [(&str, Ending); 4] = [
        ("stop", |node, _, container| node.cri.stop(container, 1)),
        ("removal", |node, _, container| node.cri.remove(container)),
        ("stop of the pod", |node, pod, _| node.cri.stop_pod(pod)),
        ("removal of the pod", |node, pod, _| node.cri.remove_pod(pod)),
    ];
    for (what, end) in endings {
        stand_ins.runtime.set("start", Behaviour::Real)?;
        let pod = node.cri.run_pod(&config)?;
        let container = node.cri.container("hanging", &node.image, &["sleep", "1000"]);
        let container = node.cri.create(&pod, &container, &config)?;
        stand_ins.runtime.set("start", Behaviour::Hang)?;
        let before = stand_ins.runtime.calls().len();
        std::thread::scope(|scope| -> Result {
            let start = scope.spawn(|| refused(node.cri.start(&container), &["given up", "to be stopped"]));
            wait_for("the runtime to hang", Duration::from_secs(20), || {
                Ok(stand_ins.runtime.calls()[before..].iter().any(|verb| verb == "start").then_some(()))
            })?;
            let begun = Instant::now();
            end(node, &pod, &container).map_err(|status| format!("{what}: {status}"))?;
            assert!(begun.elapsed() < Duration::from_secs(20), "{what}: {:?}", begun.elapsed());
            start.join().expect("no panic")?;
            Ok(())
        })?;
        if what == "stop" {
            assert_eq!(node.cri.status(&container)?.state(), ContainerState::ContainerExited);
        }
        node.cri.remove_pod(&pod)?;
        assert_eq!(node.daemon.leftovers(), Vec::<String>::new(), "{what}");
    }
    stand_ins.runtime.set("start", Behaviour::Real)?;
    still_works(node)
}

/// The disk is a failpoint: the work goes on after its creation has been undone.
fn late_storage() -> Result {
    let node = Node::start(|registry| {
        let late = "container.recorded=sleep(4000)*1;container.image-volume-stored=sleep(4000)*1";
        Daemon::builder().registry(registry).env("CRIOX_FAILPOINTS", late).start()
    })?;
    let config = node.cri.host_network_pod("late");
    let pod = node.cri.run_pod(&config)?;
    std::thread::scope(|scope| -> Result {
        let create = scope.spawn(|| {
            let mut container = node.cri.container("late", &node.image, &["true"]);
            container.mounts = vec![Mount {
                container_path: "/volume".to_owned(),
                readonly: true,
                image: Some(ImageSpec { image: node.image.clone(), ..ImageSpec::default() }),
                ..Mount::default()
            }];
            refused(node.cri.create(&pod, &container, &config), &["given up"])
        });
        wait_for("the record of the creation", Duration::from_secs(20), || {
            let entries = std::fs::read_dir(node.daemon.root().join("criox/pods").join(&pod))?.flatten();
            let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
            Ok(names.into_iter().any(|name| name.starts_with("container-")).then_some(()))
        })?;
        let begun = Instant::now();
        node.cri.stop_pod(&pod)?;
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        create.join().expect("no panic")?;
        Ok(())
    })?;
    wait_for("the late work to be undone", Duration::from_secs(20), || {
        let undone = "undid what came after nobody waited for it any more";
        Ok((node.daemon.log().matches(undone).count() >= 1).then_some(()))
    })?;
    wait_for("nothing to be left", Duration::from_secs(10), || {
        let containers = std::fs::read_dir(node.daemon.root().join("overlay-containers"))?.flatten();
        Ok((containers.filter(|entry| entry.path().is_dir()).count() == 0).then_some(()))
    })?;
    node.cri.remove_pod(&pod)?;
    // The daemon's next life would sweep it: it must be gone before.
    assert_eq!(node.daemon.leftovers(), Vec::<String>::new());
    node.daemon.finish()
}

/// A runtime that is at work has made the container's cgroup, by which cAdvisor asks for the container, once.
fn seen_from_its_cgroup_on(node: &Node, running: &str) -> Result {
    let root = wait_for("the root of a container that is being created", Duration::from_secs(20), || {
        for entry in std::fs::read_dir(node.daemon.root().join("overlay-containers"))?.flatten() {
            let id = entry.file_name().to_string_lossy().into_owned();
            if id.len() != 64 || id == running {
                continue;
            }
            let mut stream = UnixStream::connect(node.daemon.socket())?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(
                format!("GET /containers/{id} HTTP/1.1\r\nHost: crio\r\nConnection: close\r\n\r\n")
                    .as_bytes(),
            )?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            let body = answer.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
            let body: serde_json::Value = serde_json::from_str(body)?;
            if body["root"].as_str().is_some_and(|root| !root.is_empty()) && body["name"] == "hanging" {
                return Ok(body["root"].as_str().map(PathBuf::from));
            }
        }
        Ok(None)
    })?;
    assert!(root.join("etc/hello").exists(), "{}", root.display());
    Ok(())
}

/// Asks all that a kubelet asks in between, until told to stop.
fn others_are_served(node: &Node, running: &str, ended: &AtomicBool) -> Result {
    let cri = &node.cri;
    let timed = |what: &str, call: &dyn Fn() -> Result<(), tonic::Status>| -> Result {
        let begun = Instant::now();
        call().map_err(|status| format!("{what}: {status}"))?;
        assert!(begun.elapsed() < PATIENCE, "{what} took {:?}", begun.elapsed());
        Ok(())
    };
    let mut round = 0;
    while !ended.load(Ordering::Relaxed) {
        timed("Version", &|| cri.version().map(drop))?;
        timed("Status", &|| cri.call(cri.runtime().status(StatusRequest { verbose: true })).map(drop))?;
        timed("ListPodSandbox", &|| {
            cri.call(cri.runtime().list_pod_sandbox(ListPodSandboxRequest::default())).map(drop)
        })?;
        timed("ListContainers", &|| {
            cri.call(cri.runtime().list_containers(ListContainersRequest::default())).map(drop)
        })?;
        timed("ListImages", &|| cri.list_images().map(drop))?;
        timed("ImageStatus", &|| cri.image(&node.image).map(drop))?;
        timed("ContainerStatus", &|| cri.status(running).map(drop))?;
        timed("ExecSync", &|| cri.exec(running, &["true"], 5).map(drop))?;
        // Whole lives of other pods, with a runtime and a network that work.
        if round % 20 == 0 {
            other_pod(node)?;
        }
        round += 1;
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn other_pod(node: &Node) -> Result {
    let config = node.cri.host_network_pod("other");
    let pod = node.cri.run_pod_as(&config, "real")?;
    let id = node.cri.create(&pod, &node.cri.container("c", &node.image, &["sleep", "1000"]), &config)?;
    node.cri.start(&id)?;
    node.cri.stop(&id, 0)?;
    node.cri.remove_pod(&pod)?;
    Ok(())
}
