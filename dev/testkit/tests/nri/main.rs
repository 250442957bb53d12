//! NRI plugins and real containers: what plugins hear, what they may change, and what their faults cost.
//!
//! | module | about |
//! |---|---|
//! | [`plugin`] | a plugin of our own making, by the wire |
//! | [`wishes`] | adjustments and updates |
//! | [`faults`] | errors, hangs, kills |
//! | [`reference`] | plugins on the reference implementation's stub (Go) |
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod faults;
#[path = "../../../../crates/criox-nri/tests/loopback/plugin.rs"]
mod plugin;
mod reference;
mod wishes;

use std::process::ExitCode;
use std::sync::LazyLock;
use std::time::Duration;

use criox_cri::v1::PodSandboxConfig;
use criox_nri::proto::Event;
use plugin::{Answer, TestPlugin};
use testkit::harness::Test;
use testkit::{Daemon, Node, Result, Shared, wait_for};
use tokio::runtime::Runtime;

/// For what takes milliseconds on an idle machine.
const LIMIT: Duration = Duration::from_secs(20);
/// What plugins have, as configured: the default.
const PATIENCE: Duration = Duration::from_secs(2);
/// Runs until it is killed.
const IDLE: &[&str] = &["sleep", "100000"];
/// The usual events.
const EVENTS: &[Event] = &[
    Event::RunPodSandbox,
    Event::StopPodSandbox,
    Event::RemovePodSandbox,
    Event::CreateContainer,
    Event::PostCreateContainer,
    Event::StartContainer,
    Event::PostStartContainer,
    Event::UpdateContainer,
    Event::PostUpdateContainer,
    Event::StopContainer,
    Event::RemoveContainer,
];

/// Where the plugins of our own making run.
static TOKIO: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());

static NODE: Shared = Shared::new(|| Node::start(|registry| Daemon::builder().registry(registry).start()));

fn main() -> ExitCode {
    let tests: Vec<Test> = [wishes::TESTS, faults::TESTS, reference::TESTS].concat();
    testkit::harness::run_then(&tests, || NODE.finish())
}

/// Connects a plugin and waits until it has been told of everything.
fn connect(
    daemon: &Daemon,
    index: &str,
    name: &str,
    act: impl FnMut(&str, &[u8]) -> Answer + Send + 'static,
) -> Result<TestPlugin> {
    let socket = daemon.dir().join("nri.sock");
    let plugin = TOKIO.block_on(TestPlugin::connect(&socket, index, name, EVENTS, Box::new(act)));
    wait_for("the plugin to be told of everything", LIMIT, || {
        Ok(plugin.seen.lock().unwrap().methods().contains(&"Synchronize".to_owned()).then_some(()))
    })?;
    Ok(plugin)
}

/// A plugin that does nothing of its own.
fn usual(_: &str, _: &[u8]) -> Answer {
    Answer::Usual
}

/// One that answers CreateContainer with this, and everything else as usual.
fn creating(
    answer: impl Fn() -> Answer + Send + 'static,
) -> impl FnMut(&str, &[u8]) -> Answer + Send + 'static {
    move |method, _| if method == "CreateContainer" { answer() } else { Answer::Usual }
}

/// A pod and its configuration.
fn pod(node: &Node, name: &str) -> Result<(String, PodSandboxConfig)> {
    let config = node.cri.host_network_pod(name);
    Ok((node.cri.run_pod(&config)?, config))
}

/// What a command in a container prints.
fn said(node: &Node, container: &str, script: &str) -> Result<String> {
    let answer = node.cri.exec(container, &["sh", "-c", script], 20)?;
    assert_eq!(answer.exit_code, 0, "{}", String::from_utf8_lossy(&answer.stderr));
    Ok(String::from_utf8(answer.stdout)?)
}
