//! Plugins that are built on the stub of the reference implementation (`dev/testkit/nri-plugins`, in Go): one that lies
//! in the directory of plugins and logs, one that connects and injects.
#![expect(clippy::disallowed_methods, reason = "files of a test")]

use std::path::Path;
use std::process::{Child, Command};

use criox_cri::v1::PodSandboxConfig;
use testkit::daemon::peer;
use testkit::harness::{Test, skip};
use testkit::{Cri, Daemon, Node, Result, wait_for};

use crate::{IDLE, LIMIT, said};

pub(crate) const TESTS: &[Test] = &[
    ("a plugin of the directory is started, hears everything, and is started again after a kill", logger),
    ("a plugin of the reference implementation injects and updates", injector),
];

/// A plugin's log: the events, with the objects' IDs.
fn events(report: &Path) -> Result<Vec<serde_json::Value>> {
    let text = std::fs::read_to_string(report).unwrap_or_default();
    Ok(text.lines().map(serde_json::from_str).collect::<std::result::Result<_, _>>()?)
}

fn names(report: &Path, of: &str) -> Result<Vec<String>> {
    let of_it = |event: &serde_json::Value| event["pod"] == of;
    let all = events(report)?;
    Ok(all
        .iter()
        .filter(|event| of_it(event))
        .filter_map(|event| event["event"].as_str().map(str::to_owned))
        .collect())
}

/// What the last synchronization told.
fn synchronized(report: &Path, key: &str) -> Result<Vec<String>> {
    let all = events(report)?;
    let last = all.iter().rev().find(|event| event["event"] == "Synchronize").ok_or("no synchronization")?;
    let ids = last[key].as_array().cloned().unwrap_or_default();
    Ok(ids.iter().filter_map(|id| id.as_str().map(str::to_owned)).collect())
}

fn logger() -> Result {
    let program = peer("nri-logger").map_err(|error| skip(error.to_string()))?;
    let mut node = Node::start(|registry| {
        let mut daemon = Daemon::builder().registry(registry).prepare()?;
        for directory in ["nri-plugins", "nri-config"] {
            std::fs::create_dir(daemon.dir().join(directory))?;
        }
        std::fs::copy(&program, daemon.dir().join("nri-plugins/50-logger"))?;
        let report = daemon.dir().join("report");
        std::fs::write(daemon.dir().join("nri-config/50-logger.conf"), report.display().to_string())?;
        daemon.start()?;
        Ok(daemon)
    })?;
    let report = node.daemon.dir().join("report");
    // Started before the first request is served.
    let begun: Vec<_> =
        events(&report)?.iter().filter_map(|e| e["event"].as_str().map(str::to_owned)).collect();
    assert_eq!(begun, ["Configure", "Synchronize"]);
    let config = node.cri.pod("logged");
    let (sandbox, container) = whole_life(&node.cri, &node.image, &config)?;
    wait_for("all events to be logged", LIMIT, || {
        Ok((names(&report, &sandbox)?.last().map(String::as_str) == Some("RemovePodSandbox")).then_some(()))
    })?;
    let expected = [
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
    assert_eq!(names(&report, &sandbox)?, expected);
    let all = events(&report)?;
    let started = all.iter().find(|event| event["event"] == "PostStartContainer").ok_or("it started")?;
    assert_eq!(
        (&started["container"], &started["state"]),
        (&container.as_str().into(), &"CONTAINER_RUNNING".into())
    );
    // Killed, the daemon's plugin goes with it, and is there again after the start.
    let kept = node.cri.run("kept", &node.image, IDLE)?;
    node.daemon.kill()?;
    node.daemon.start()?;
    node.cri = node.daemon.cri()?;
    // The first answer comes after it.
    node.cri.version()?;
    assert_eq!(synchronized(&report, "pods")?, [kept.0]);
    assert_eq!(synchronized(&report, "containers")?, [kept.1]);
    node.daemon.finish()
}

fn whole_life(cri: &Cri, image: &str, config: &PodSandboxConfig) -> Result<(String, String)> {
    let sandbox = cri.run_pod(config)?;
    let container = cri.create(&sandbox, &cri.container("c", image, IDLE), config)?;
    cri.start(&container)?;
    cri.stop(&container, 0)?;
    cri.remove(&container)?;
    cri.stop_pod(&sandbox)?;
    cri.remove_pod(&sandbox)?;
    Ok((sandbox, container))
}

/// Ends with the test, however that ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn injector() -> Result {
    let program = peer("nri-injector").map_err(|error| skip(error.to_string()))?;
    let node = Node::start(|registry| Daemon::builder().registry(registry).start())?;
    let log =
        std::fs::File::options().create(true).append(true).open(node.daemon.dir().join("injector.log"))?;
    // The stub's default path is the only one that it takes without a word of its own: it stands in a directory of ours.
    let link = Path::new("/run/nri");
    std::fs::create_dir_all(link)?;
    let mounted = Command::new("mount").arg("--bind").arg(node.daemon.dir()).arg(link).status()?;
    assert!(mounted.success());
    let plugin = Command::new(program)
        .env("NRI_PLUGIN_IDX", "20")
        .env("NRI_PLUGIN_NAME", "injector")
        .stderr(log)
        .spawn()?;
    let plugin = Running(plugin);
    wait_for("the plugin to join", LIMIT, || Ok(node.daemon.log().contains("20-injector").then_some(())))?;
    let mut config = node.cri.host_network_pod("injected");
    for (key, value) in [
        ("inject.test/env", "INJECTED=by the plugin"),
        ("inject.test/mount", "/proc/sys/kernel:/injected"),
        ("inject.test/device", "/dev/injected:1:5"),
        ("inject.test/shares", "333"),
    ] {
        config.annotations.insert(key.into(), value.into());
    }
    let sandbox = node.cri.run_pod(&config)?;
    let id = node.cri.create(&sandbox, &node.cri.container("c", &node.image, IDLE), &config)?;
    node.cri.start(&id)?;
    assert!(said(&node, &id, "tr '\\0' '\\n' < /proc/1/environ")?.contains("INJECTED=by the plugin"));
    assert_eq!(said(&node, &id, "test -e /injected/hostname && echo there")?, "there\n");
    assert_eq!(said(&node, &id, "head -c 2 /dev/injected | od -An -tx1")?.trim(), "00 00");
    wait_for("the plugin's update", LIMIT, || {
        let linux = node.cri.status(&id)?.resources.and_then(|resources| resources.linux);
        Ok(linux.is_some_and(|linux| linux.cpu_shares == 333).then_some(()))
    })?;
    drop(plugin);
    Command::new("umount").arg("-l").arg(link).status()?;
    node.daemon.finish()
}
