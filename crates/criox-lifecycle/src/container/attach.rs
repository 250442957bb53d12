//! Attach: one pipe a stream, or one socket for a terminal, whose other ends the monitor couples to the container's.
//! A further socket, the lease, ends with the container; closing it detaches.

use std::os::fd::OwnedFd;

use criox_monitor_api::client::Client;
use criox_monitor_api::proto::{self, request};
use criox_records::ContainerRecord;
use criox_streaming::{AttachRequest, Control, Exit, Failure, Process, Streams, TerminalSize};
use criox_sys::socket;
use futures_util::future::BoxFuture;
use tokio::io::Interest;
use tokio::net::UnixStream;

use super::exec;
use crate::error::{Error, Kind, Result};
use crate::index::PodView;
use crate::monitor;

/// Whether the request fits the container.
pub(crate) fn check(record: &ContainerRecord, tty: bool) -> Result<()> {
    let has = record.config.0.tty;
    if has == tty {
        return Ok(());
    }
    let what = if has { "has a terminal, and tty is false" } else { "has no terminal, and tty is true" };
    Err(Error::invalid("tty", format!("container {} {what}", record.id)))
}

/// Attaches.
pub(crate) async fn attach(
    pod: &PodView,
    record: &ContainerRecord,
    request: &AttachRequest,
) -> Result<Process> {
    let object = format!("container {}", record.id);
    check(record, request.tty)?;
    let client = exec::connected(pod, record)?;
    let failed = |error: std::io::Error| Error::failed(format!("streams of {object}")).because(error);
    let (lease, theirs) = socket::pair().map_err(failed)?;
    let mut ends = vec![theirs];
    let streams = if request.tty {
        let (ours, theirs) = socket::pair().map_err(failed)?;
        ends.push(theirs);
        Streams::Terminal(ours)
    } else {
        let mut pipe = |asked: bool, input: bool| -> Result<Option<OwnedFd>> {
            if !asked {
                return Ok(None);
            }
            let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
                .map_err(|error| failed(error.into()))?;
            let (ours, theirs) = if input { (write, read) } else { (read, write) };
            ends.push(theirs);
            Ok(Some(ours))
        };
        Streams::Pipes {
            stdin: pipe(request.stdin, true)?,
            stdout: pipe(request.stdout, false)?,
            stderr: pipe(request.stderr, false)?,
        }
    };
    let verb = proto::Attach {
        container_id: record.id.to_string(),
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr && !request.tty,
        terminal: request.tty,
    };
    client
        .attach(verb, ends, monitor::ANSWER)
        .await
        .map_err(|error| monitor::refused("attach", &object, error))?;
    rustix::io::ioctl_fionbio(&lease, true).map_err(|error| failed(error.into()))?;
    let lease = UnixStream::from_std(lease.into()).map_err(failed)?;
    let control = AttachControl { lease, client, container: record.id.to_string() };
    Ok(Process { streams, control: Box::new(control) })
}

/// An attached client, for its session.
struct AttachControl {
    lease: UnixStream,
    client: Client,
    container: String,
}

impl Control for AttachControl {
    fn resize(&self, size: TerminalSize) -> BoxFuture<'_, std::result::Result<(), Failure>> {
        let resize = proto::Resize {
            container_id: self.container.clone(),
            exec_id: String::new(),
            width: size.width.into(),
            height: size.height.into(),
        };
        Box::pin(async move {
            let resized = self.client.done(request::Verb::Resize(resize), monitor::ANSWER).await;
            resized.map_err(|error| Failure::new(format!("size of the terminal: {error}")))
        })
    }

    fn wait(&self) -> BoxFuture<'_, std::result::Result<Exit, Failure>> {
        Box::pin(async {
            loop {
                let ready = self.lease.ready(Interest::READABLE).await;
                ready.map_err(|error| Failure::new(format!("connection to the monitor: {error}")))?;
                match self.lease.try_read(&mut [0; 1]) {
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    // Nothing is ever said on it.
                    Ok(_) | Err(_) => return Ok(Exit { code: 0 }),
                }
            }
        })
    }

    /// The word that tells a client that went away from a daemon that died: it ends a stdin that is open once.
    fn abandon(&self) {
        if let Err(error) = self.lease.try_write(b"x") {
            tracing::debug!(container = self.container, %error, "a client left, and the monitor was not told");
        }
    }
}

/// Whether anybody can attach to it.
pub(crate) fn ready(pod: &PodView, record: &ContainerRecord) -> Result<()> {
    use criox_records::ContainerPhase::{Created, Running};
    if !matches!(record.phase, Created | Running) {
        let message = format!("container {} does not run: nobody can attach to it", record.id);
        return Err(Error::new(Kind::FailedPrecondition, message));
    }
    exec::connected(pod, record).map(drop)
}
