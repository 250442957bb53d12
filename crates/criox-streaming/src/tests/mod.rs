//! Whole sessions over loopback: a client written for the tests on one side, commands of this machine on the other.
//! The same is done with Kubernetes' own client in `dev/testkit/clients/streaming`.

mod client;
mod exec_spdy;
mod exec_websocket;
mod forward;
mod gone;
#[path = "../../examples/server/host.rs"]
mod host;
mod http;
mod limits;
mod tls;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::backend::{AttachRequest, ExecRequest, PortForwardRequest};
use crate::options::Options;
use crate::server::Server;
use host::{Counts, Host};

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(20);

/// A server that runs.
struct Running {
    server: Arc<Server>,
    counts: Arc<Counts>,
    stop: oneshot::Sender<()>,
    done: JoinHandle<()>,
}

impl Running {
    async fn start() -> Self {
        Self::with(Options::new()).await
    }

    async fn with(options: Options) -> Self {
        let host = Host::default();
        let counts = Arc::clone(&host.counts);
        let server = Arc::new(Server::bind(options, Arc::new(host)).await.unwrap());
        let (stop, stopped) = oneshot::channel();
        let done = tokio::spawn(Arc::clone(&server).run(async {
            let _ = stopped.await;
        }));
        Self { server, counts, stop, done }
    }

    /// Asks for an exec of a shell command.
    fn exec(&self, streams: &str, command: &str) -> String {
        self.exec_in("host", streams, command)
    }

    fn exec_in(&self, container: &str, streams: &str, command: &str) -> String {
        let has = |name| streams.split(' ').any(|found| found == name);
        let request = ExecRequest {
            container: container.to_owned(),
            command: ["sh", "-c", command].map(str::to_owned).to_vec(),
            tty: has("tty"),
            stdin: has("stdin"),
            stdout: has("stdout"),
            stderr: has("stderr"),
        };
        self.server.exec_url(request).unwrap()
    }

    fn attach(&self, streams: &str, command: &str) -> String {
        let has = |name| streams.split(' ').any(|found| found == name);
        let request = AttachRequest {
            container: command.to_owned(),
            tty: has("tty"),
            stdin: has("stdin"),
            stdout: has("stdout"),
            stderr: has("stderr"),
        };
        self.server.attach_url(request).unwrap()
    }

    fn forward(&self, ports: &[u16]) -> String {
        let request = PortForwardRequest { sandbox: "pod".to_owned(), ports: ports.to_vec() };
        self.server.port_forward_url(request).unwrap()
    }

    async fn stop(self) {
        let _ = self.stop.send(());
        timeout(LIMIT, self.done).await.unwrap().unwrap();
    }
}

/// Waits until a number is reached.
async fn reaches(what: &str, number: &AtomicUsize, wanted: usize) {
    until(what, || number.load(Ordering::SeqCst) == wanted).await;
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < end, "waited 20 s for: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Bytes that can't be mistaken for each other.
fn pattern(length: usize) -> Vec<u8> {
    (0u32..).flat_map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()).take(length).collect()
}

/// Descriptors that this process has open.
fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// For tests that count what their process has open: runs the test of that name in a process of its own, and is true
/// there.
async fn is_alone(name: &str) -> bool {
    const ALONE: &str = "CRIOX_STREAMING_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let mut alone = tokio::process::Command::new(std::env::current_exe().unwrap());
    let done = alone.args(["--exact", name]).env(ALONE, "1").output().await.unwrap();
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success() && text.contains("1 passed"), "{text}");
    false
}
