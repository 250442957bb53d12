//! Exec with streams: the process's pipe ends, or its terminal's master, go to whoever frames them for the client; the
//! monitor starts the process and reaps it.
//!
//! A client that goes away takes the process and its descendants with it. A daemon that dies closes the pipes: who
//! writes to one gets SIGPIPE, who reads an end, and a terminal hangs up; the container is left alone.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use criox_monitor_api::client::ExecCall;
use criox_monitor_api::proto;
use criox_records::ContainerRecord;
use criox_streaming::{Control, ExecRequest, Exit, Failure, Process, Streams, TerminalSize};
use futures_util::future::BoxFuture;

use super::exec::{self, EndOnDrop, START};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::index::PodView;
use crate::monitor;

/// Starts the process. When the future is dropped before its end, the process ends too.
pub(crate) async fn exec(
    context: &Arc<Context>,
    pod: &PodView,
    record: &ContainerRecord,
    request: &ExecRequest,
) -> Result<Process> {
    let object = format!("container {}", record.id);
    let client = exec::ready(pod, record, &request.command)?;
    let operation = format!("execution of {:?}", request.command[0]);
    let process = exec::process(context, record, &request.command, request.tty).await?;
    let piped = |asked: bool| asked && !request.tty;
    let (mut ends, mut streams) = (Vec::new(), [None, None, None]);
    let asked = [request.stdin, request.stdout, request.stderr];
    for (index, stream) in streams.iter_mut().enumerate().filter(|(index, _)| piped(asked[*index])) {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|error| Error::failed(format!("pipes for a command in {object}")).because(error))?;
        let (ours, theirs) = if index == 0 { (write, read) } else { (read, write) };
        *stream = Some(ours);
        ends.push(theirs);
    }
    let exec_id = exec::next_id();
    let verb = proto::Exec {
        container_id: record.id.to_string(),
        exec_id: exec_id.clone(),
        process,
        terminal: request.tty,
        stdin: piped(request.stdin),
        stdout: piped(request.stdout),
        stderr: piped(request.stderr),
        timeout_ms: 0,
        start_timeout_ms: u32::try_from(START.as_millis()).unwrap_or(u32::MAX),
    };
    let guard = EndOnDrop::new(&client, record, exec_id);
    let mut call = client
        .exec(verb, ends, START + monitor::ANSWER)
        .await
        .map_err(|error| monitor::refused(&operation, &object, error))?;
    let terminal = call.terminal.take();
    let resized = terminal.as_ref().and_then(|master| master.try_clone().ok());
    let streams = match (request.tty, terminal) {
        (true, Some(master)) => Streams::Terminal(master),
        (true, None) => return Err(Error::failed(format!("{operation} in {object}: no terminal came"))),
        (false, _) => {
            let [stdin, stdout, stderr] = streams;
            Streams::Pipes { stdin, stdout, stderr }
        }
    };
    let control = ExecControl {
        guard: Mutex::new(Some(guard)),
        call: Mutex::new(Some(call)),
        terminal: resized,
        what: format!("{operation} in {object}"),
    };
    Ok(Process { streams, control: Box::new(control) })
}

/// A process of an exec, for its session.
struct ExecControl {
    /// Ends the process when it is dropped, until it has ended by itself.
    guard: Mutex<Option<EndOnDrop>>,
    call: Mutex<Option<ExecCall>>,
    terminal: Option<OwnedFd>,
    what: String,
}

impl Control for ExecControl {
    fn resize(&self, size: TerminalSize) -> BoxFuture<'_, std::result::Result<(), Failure>> {
        let resized = match &self.terminal {
            Some(master) => criox_sys::pty::set_size(master.as_fd(), size.width, size.height)
                .map_err(|error| Failure::new(format!("size of the terminal: {error}"))),
            None => Err(Failure::new("the command has no terminal")),
        };
        Box::pin(std::future::ready(resized))
    }

    fn wait(&self) -> BoxFuture<'_, std::result::Result<Exit, Failure>> {
        let call = self.call.lock().unwrap_or_else(PoisonError::into_inner).take();
        Box::pin(async move {
            let call = call.ok_or_else(|| Failure::new("the end of the command was asked for twice"))?;
            let finished =
                call.finished().await.map_err(|error| Failure::new(format!("{}: {error}", self.what)))?;
            let guard = self.guard.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(guard) = guard {
                guard.disarm();
            }
            Ok(Exit { code: u8::try_from(finished.exit_code).unwrap_or(u8::MAX) })
        })
    }

    fn abandon(&self) {
        drop(self.guard.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}
