//! ExecSync: straight to the monitor, past the pod's task. The output comes through pipes that the daemon made, so
//! that no byte passes through the monitor.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use criox_monitor_api::client::Client;
use criox_monitor_api::proto::{self, request};
use criox_records::{ContainerPhase, ContainerRecord};
use tokio::net::unix::pipe;
use tokio::time::timeout;

use crate::context::Context;
use crate::error::{Error, Kind, Result};
use crate::index::PodView;
use crate::monitor;

/// Both outputs together: the kubelet takes answers of 16 MiB, and a little is for the rest of the message.
pub(crate) const OUTPUT_MAX: usize = (16 << 20) - (64 << 10);
/// Output of all commands in flight: fifty probes that print without end must not exhaust the node.
const HELD_MAX: usize = 256 << 20;
/// Reads that empty a pipe of the largest size the kernel allows by default, 1 MiB.
const PIPE_PIECES: usize = 16;
/// How long the runtime may take to start the process.
pub(crate) const START: Duration = Duration::from_secs(30);
/// Beyond the command's own timeout, for the end of its whole tree.
const REAP: Duration = Duration::from_secs(20);

/// What a command said.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// Standard output, cut just below 16 MiB together with the other.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// 128 plus the signal's number for a process that a signal ended.
    pub exit_code: i32,
}

/// Runs a command in a container and waits for its end, at most `limit` (zero: without limit).
pub(crate) async fn exec(
    context: &Arc<Context>,
    pod: &PodView,
    record: &ContainerRecord,
    command: &[String],
    limit: Duration,
) -> Result<Output> {
    let object = format!("container {}", record.id);
    let client = ready(pod, record, command)?;
    // Runtimes don't always say which program they could not execute.
    let operation = format!("execution of {:?}", command[0]);
    let process = process(context, record, command, false).await?;
    let failed = |error| Error::failed(format!("pipes for a command in {object}")).because(error);
    let (mut stdout, stdout_end) = make_pipe().map_err(failed)?;
    let (mut stderr, stderr_end) = make_pipe().map_err(failed)?;
    let exec_id = next_id();
    let verb = proto::Exec {
        container_id: record.id.to_string(),
        exec_id: exec_id.clone(),
        process,
        terminal: false,
        stdin: false,
        stdout: true,
        stderr: true,
        timeout_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
        start_timeout_ms: u32::try_from(START.as_millis()).unwrap_or(u32::MAX),
    };
    // A caller that goes away takes its command with it.
    let guard = EndOnDrop::new(&client, record, exec_id);
    let call = client
        .exec(verb, vec![stdout_end, stderr_end], START + monitor::ANSWER)
        .await
        .map_err(|error| monitor::refused(&operation, &object, error))?;
    let finished = async {
        match limit.is_zero() {
            true => Ok(call.finished().await),
            false => timeout(limit + REAP, call.finished()).await,
        }
    };
    let mut output = Output::default();
    let mut room = Room::default();
    tokio::pin!(finished);
    let (mut out_open, mut err_open) = (true, true);
    let mut buffer = vec![0; 64 << 10];
    let finished = loop {
        tokio::select! {
            biased;
            ready = stdout.readable(), if out_open => {
                out_open = ready.is_ok() && take(&mut stdout, &mut buffer, &mut output.stdout, &mut room);
            }
            ready = stderr.readable(), if err_open => {
                err_open = ready.is_ok() && take(&mut stderr, &mut buffer, &mut output.stderr, &mut room);
            }
            finished = &mut finished => break finished,
        }
    };
    guard.disarm();
    // All that the process wrote is in the pipes by now; what its children still write is not waited for, and a pipe holds
    // no more than so many pieces.
    for _ in 0..PIPE_PIECES {
        out_open = out_open && take_rest(&stdout, &mut buffer, &mut output.stdout, &mut room);
        err_open = err_open && take_rest(&stderr, &mut buffer, &mut output.stderr, &mut room);
    }
    let finished = finished
        .map_err(|_| {
            Error::timed_out(
                "end of a timed-out command",
                &object,
                limit + REAP,
                "its processes do not die of SIGKILL",
            )
        })?
        .map_err(|error| monitor::refused(&operation, &object, error))?;
    if finished.timed_out {
        return Err(Error::new(
            Kind::DeadlineExceeded,
            format!(
                "command {:?} in {object} did not end within {} s and was killed",
                command[0],
                limit.as_secs()
            ),
        ));
    }
    output.exit_code = finished.exit_code;
    Ok(output)
}

/// Whether a command could be started now, and who would start it.
pub(crate) fn ready(pod: &PodView, record: &ContainerRecord, command: &[String]) -> Result<Client> {
    if record.phase != ContainerPhase::Running {
        return Err(Error::new(
            Kind::NotFound,
            format!("container {} does not run: no command can be executed in it", record.id),
        ));
    }
    if command.is_empty() {
        return Err(Error::invalid("cmd", "must not be empty"));
    }
    connected(pod, record)
}

/// The connection to the container's monitor.
pub(crate) fn connected(pod: &PodView, record: &ContainerRecord) -> Result<Client> {
    pod.pod.monitor().ok_or_else(|| {
        Error::new(Kind::FailedPrecondition, format!("container {} has lost its monitor", record.id))
    })
}

/// The OCI process: the container's own with another command line.
pub(crate) async fn process(
    context: &Arc<Context>,
    record: &ContainerRecord,
    command: &[String],
    terminal: bool,
) -> Result<Vec<u8>> {
    let bundle = context
        .store
        .container_run_dir(record.id.as_str())
        .map_err(|error| Error::failed(format!("bundle of container {}", record.id)).because(error))?;
    let failed = || Error::failed(format!("specification of container {}", record.id));
    let bytes = tokio::fs::read(bundle.join("config.json")).await.map_err(|error| failed().because(error))?;
    let spec: ProcessOfSpec = serde_json::from_slice(&bytes).map_err(|error| failed().because(error))?;
    let process = criox_spec::exec_process(&spec.process, command, terminal).map_err(Error::of_request)?;
    serde_json::to_vec(&process).map_err(|error| failed().because(error))
}

/// The part of a bundle's document that is looked at: most of it is the seccomp filter, which need not be built.
#[derive(serde::Deserialize)]
struct ProcessOfSpec {
    process: criox_spec::oci::Process,
}

fn make_pipe() -> std::io::Result<(pipe::Receiver, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&read, true)?;
    Ok((pipe::Receiver::from_owned_fd(read)?, write))
}

/// Reads once, keeping what there is room for. False at the end.
fn take(from: &mut pipe::Receiver, buffer: &mut [u8], to: &mut Vec<u8>, room: &mut Room) -> bool {
    match from.try_read(buffer) {
        Ok(0) => false,
        Ok(count) => {
            let kept = room.reserve(count);
            to.extend_from_slice(&buffer[..kept]);
            true
        }
        Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
    }
}

/// Reads once past the reactor, which may not have heard yet of what is in the pipe. False at the end, and when nothing is
/// there.
fn take_rest(from: &pipe::Receiver, buffer: &mut [u8], to: &mut Vec<u8>, room: &mut Room) -> bool {
    match rustix::io::read(from, &mut *buffer) {
        Ok(0) | Err(_) => false,
        Ok(count) => {
            let kept = room.reserve(count);
            to.extend_from_slice(&buffer[..kept]);
            true
        }
    }
}

/// What of a command's output is kept: [`OUTPUT_MAX`], and of all commands together [`HELD_MAX`]. The rest is read and
/// thrown away, which CRI allows.
#[derive(Debug, Default)]
struct Room {
    kept: usize,
}

/// Bytes of output that all commands in flight hold.
static HELD: AtomicUsize = AtomicUsize::new(0);

impl Room {
    /// How many of so many bytes may be kept.
    fn reserve(&mut self, wanted: usize) -> usize {
        let own = wanted.min(OUTPUT_MAX - self.kept);
        let before = HELD.fetch_add(own, Ordering::Relaxed);
        let granted = own.min(HELD_MAX.saturating_sub(before));
        HELD.fetch_sub(own - granted, Ordering::Relaxed);
        self.kept += granted;
        granted
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        HELD.fetch_sub(self.kept, Ordering::Relaxed);
    }
}

/// Unique among the commands of a container, also after a restart of the daemon.
pub(crate) fn next_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let now = crate::context::Clock::default().now();
    format!("exec-{now:x}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Ends a command whose caller has gone.
#[derive(Debug)]
pub(crate) struct EndOnDrop {
    client: Client,
    container: String,
    exec: String,
    armed: bool,
}

impl EndOnDrop {
    pub(crate) fn new(client: &Client, record: &ContainerRecord, exec: String) -> Self {
        Self { client: client.clone(), container: record.id.to_string(), exec, armed: true }
    }

    /// The command has ended.
    pub(crate) fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let client = self.client.clone();
        let end = proto::EndExec {
            container_id: std::mem::take(&mut self.container),
            exec_id: std::mem::take(&mut self.exec),
        };
        tokio::spawn(async move {
            if let Err(error) = client.done(request::Verb::EndExec(end), monitor::ANSWER).await {
                tracing::debug!(%error, "an abandoned command could not be ended");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a runtime with one thread the reactor hears of nothing between two awaits.
    #[tokio::test]
    async fn what_the_reactor_has_not_heard_of_is_read_at_the_end() {
        let (stdout, end) = make_pipe().unwrap();
        rustix::io::write(&end, b"last words").unwrap();
        let (mut buffer, mut said, mut room) = (vec![0; 4], Vec::new(), Room::default());
        while take_rest(&stdout, &mut buffer, &mut said, &mut room) {}
        assert_eq!(said, b"last words");
    }

    #[test]
    fn one_command_keeps_its_share_and_all_of_them_no_more_than_theirs() {
        let mut rooms: Vec<Room> = (0..20).map(|_| Room::default()).collect();
        let kept: usize = rooms.iter_mut().map(|room| room.reserve(OUTPUT_MAX + 1)).sum();
        assert!(kept <= HELD_MAX && kept > HELD_MAX - OUTPUT_MAX, "{kept}");
        assert_eq!(rooms[0].kept, OUTPUT_MAX);
        drop(rooms);
        assert_eq!(Room::default().reserve(7), 7, "what is over is given back");
    }
}
