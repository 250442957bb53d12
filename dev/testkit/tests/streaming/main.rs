//! Exec, Attach and PortForward with real containers, over WebSocket. What SPDY adds is tested in `criox-streaming`, and
//! with `crictl` in the test `crictl`.
//!
//! | module | about |
//! |---|---|
//! | [`socket`] | a client |
//! | [`exec`] | Exec |
//! | [`attach`] | Attach |
//! | [`forward`] | PortForward |
//! | [`kubernetes`] | all three with Kubernetes' own client, over SPDY, too |
//! | [`ends`] | clients, daemons and sessions that end: what is left |

mod attach;
mod ends;
mod exec;
mod forward;
mod kubernetes;
mod socket;

use std::process::ExitCode;
use std::time::Duration;

use criox_cri::v1::{AttachRequest, ContainerConfig, ExecRequest, PortForwardRequest};
use testkit::harness::Test;
use testkit::{Cri, Daemon, Node, Result, Shared};
use tonic::Status;

/// For what takes milliseconds on an idle machine.
const LIMIT: Duration = Duration::from_secs(20);
/// The newest of exec and attach.
const V5: &str = "v5.channel.k8s.io";
const V4: &str = "v4.channel.k8s.io";

static NODE: Shared = Shared::new(|| {
    Node::start(|registry| {
        Daemon::builder().registry(registry).runtime("crun", "").runtime("runc", "").start()
    })
});

fn main() -> ExitCode {
    let modules: &[&[Test]] = &[exec::TESTS, attach::TESTS, forward::TESTS, kubernetes::TESTS, ends::TESTS];
    testkit::harness::run_then(&modules.concat(), || NODE.finish())
}

/// A pod of the node's network with one container that runs a script.
fn run(
    cri: &Cri,
    image: &str,
    name: &str,
    script: &str,
    change: impl FnOnce(&mut ContainerConfig),
) -> Result<String> {
    run_as(cri, image, (name, ""), script, change)
}

/// The same for a handler beside the name.
fn run_as(
    cri: &Cri,
    image: &str,
    (name, handler): (&str, &str),
    script: &str,
    change: impl FnOnce(&mut ContainerConfig),
) -> Result<String> {
    let config = cri.host_network_pod(name);
    let pod = cri.run_pod_as(&config, handler)?;
    let mut container = cri.container("c", image, &["sh", "-c", script]);
    change(&mut container);
    let id = cri.create(&pod, &container, &config)?;
    cri.start(&id)?;
    Ok(id)
}

/// One that does nothing until it is stopped.
fn idle(node: &Node, name: &str) -> Result<String> {
    run(&node.cri, &node.image, name, "trap 'exit 0' TERM; while :; do sleep 0.1; done", |_| {})
}

/// An Exec of a script; by default both outputs are asked for.
fn exec_request(id: &str, script: &str) -> ExecRequest {
    ExecRequest {
        container_id: id.to_owned(),
        cmd: ["sh", "-c", script].map(str::to_owned).to_vec(),
        stdout: true,
        stderr: true,
        ..Default::default()
    }
}

fn exec_url(cri: &Cri, request: ExecRequest) -> Result<String, Status> {
    let mut runtime = cri.runtime();
    cri.call(async move { runtime.exec(request).await }).map(|answer| answer.url)
}

fn attach_url(cri: &Cri, request: AttachRequest) -> Result<String, Status> {
    let mut runtime = cri.runtime();
    cri.call(async move { runtime.attach(request).await }).map(|answer| answer.url)
}

fn forward_url(cri: &Cri, pod: &str, port: i32) -> Result<String, Status> {
    let request = PortForwardRequest { pod_sandbox_id: pod.to_owned(), port: vec![port] };
    let mut runtime = cri.runtime();
    cri.call(async move { runtime.port_forward(request).await }).map(|answer| answer.url)
}

/// The message of a call that must be refused with this code.
#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: tonic::Code) -> String {
    match result {
        Err(status) if status.code() == code => status.message().to_owned(),
        other => panic!("{code:?} expected: {other:?}"),
    }
}
