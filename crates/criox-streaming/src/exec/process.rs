//! The process's side of an exec or attach.

use std::io;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::Call;
use super::client::Output;
use crate::backend::{Backend, Control, Failure, Process, Streams, TerminalSize};
use crate::fd::Fd;
use crate::queue::Receiver;
use crate::sink::{Copied, CopyError, Lane};

/// How long output is awaited after the process has ended: descendants may hold its pipe open for ever.
const DRAIN: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });

/// What a pipe can hold at most (`/proc/sys/fs/pipe-max-size`, by default): so much is read even beyond that time, for
/// it can be the process's own.
const PIPE: usize = 1 << 20;

/// Abandons the process unless it has ended.
struct Guard(Option<Box<dyn Control>>);

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(control) = self.0.take() {
            control.abandon();
        }
    }
}

/// The server's ends, ready to be read and written.
enum Ends {
    Pipes { stdin: Option<Fd>, stdout: Option<Fd>, stderr: Option<Fd> },
    Terminal(Fd),
}

impl Ends {
    fn new(streams: Streams) -> io::Result<Self> {
        Ok(match streams {
            Streams::Pipes { stdin, stdout, stderr } => Self::Pipes {
                stdin: stdin.map(Fd::pipe).transpose()?,
                stdout: stdout.map(Fd::output).transpose()?,
                stderr: stderr.map(Fd::output).transpose()?,
            },
            Streams::Terminal(fd) => Self::Terminal(Fd::terminal(fd)?),
        })
    }
}

/// A process that has to be abandoned if nobody waits for its end. The order of the fields is that of their drop: whoever
/// is told hears it before the streams end.
struct Running {
    guard: Guard,
    ends: Ends,
}

/// Starts the process and copies until it has ended and the client has its status. An error means that the client has
/// gone; dropping the future does the same.
pub(super) async fn run(
    backend: &dyn Backend,
    call: &Call,
    output: &Output,
    stdin: Receiver,
    size: watch::Receiver<Option<TerminalSize>>,
) -> io::Result<()> {
    let Process { streams, control } = match call.start(backend).await {
        Ok(process) => process,
        Err(failure) => return output.status(&call.failed(&failure)).await,
    };
    let guard = Guard(Some(control));
    let mut running = match Ends::new(streams) {
        Ok(ends) => Running { guard, ends },
        Err(error) => {
            drop(guard);
            let failure = Failure::new(format!("preparing its streams: {error}"));
            return output.status(&call.failed(&failure)).await;
        }
    };
    let ended = copy(&mut running, output, stdin, size).await?;
    // The process's end of file, before the client's.
    drop(running);
    let status = match ended {
        Ok(code) => call.ended(code),
        Err(failure) => call.failed(&failure),
    };
    output.status(&status).await
}

async fn copy(
    running: &mut Running,
    output: &Output,
    mut pieces: Receiver,
    size: watch::Receiver<Option<TerminalSize>>,
) -> io::Result<Result<u8, Failure>> {
    let Some(control) = &running.guard.0 else { return Ok(Err(Failure::new("it has no control"))) };
    let (over, exited) = watch::channel(None);
    let wait = async {
        let exit = control.wait().await;
        over.send_replace(Some(Instant::now()));
        Ok(exit.map(|exit| exit.code))
    };
    let (out, err) = (output.stdout.as_ref(), output.stderr.as_ref());
    let resize = resize(&**control, size);
    // What the client sends ends with the process; until then these never do.
    let result = match &mut running.ends {
        Ends::Pipes { stdin, stdout, stderr } => {
            let outputs = async {
                tokio::try_join!(
                    wait,
                    read(stdout.as_ref(), out, &exited),
                    read(stderr.as_ref(), err, &exited)
                )
            };
            tokio::select! {
                done = outputs => done.map(|(exit, (), ())| exit),
                (never, ()) = async { tokio::join!(resize, write_pipe(stdin, &mut pieces)) } => match never {},
            }
        }
        Ends::Terminal(end) => {
            let outputs = async { tokio::try_join!(wait, read(Some(end), out, &exited)) };
            tokio::select! {
                done = outputs => done.map(|(exit, ())| exit),
                (never, ()) = async { tokio::join!(resize, write(end, &mut pieces)) } => match never {},
            }
        }
    }?;
    if result.is_ok() {
        running.guard.0 = None;
    }
    Ok(result)
}

/// What a future that never ends gives.
enum Never {}

/// Sends what the process writes, until its end.
async fn read(
    end: Option<&Fd>,
    lane: Option<&Lane>,
    exited: &watch::Receiver<Option<Instant>>,
) -> io::Result<()> {
    let Some(end) = end else { return Ok(()) };
    let mut late = 0;
    loop {
        let mut ready = tokio::select! {
            biased;
            ready = end.readable() => match ready {
                Ok(ready) => ready,
                Err(_) => break,
            },
            () = overdue(exited.clone()) => break,
        };
        let copied = match lane {
            Some(lane) => lane.copy(&mut ready).await,
            None => ready.discard().map_err(CopyError::Read),
        };
        match copied {
            Ok(Copied::Bytes(length)) => {
                let exited = *exited.borrow();
                late += exited.map_or(0, |_| length);
                if late > PIPE && exited.is_some_and(|at| at.elapsed() > DRAIN) {
                    break;
                }
            }
            Ok(Copied::Nothing) => (),
            Ok(Copied::End) => break,
            Err(CopyError::Read(error)) => {
                tracing::debug!("reading a process's output: {error}");
                break;
            }
            Err(CopyError::Client(error)) => return Err(error),
        }
    }
    match lane {
        Some(lane) => lane.finish().await,
        None => Ok(()),
    }
}

/// Waits until the process has ended for so long that no more output is awaited.
async fn overdue(mut exited: watch::Receiver<Option<Instant>>) {
    let ended = exited.wait_for(Option::is_some).await.ok().and_then(|at| *at);
    match ended {
        Some(at) => tokio::time::sleep_until(at + DRAIN).await,
        None => std::future::pending().await,
    }
}

/// Writes what the client sends, and closes the process's input at its end, or when nobody reads it.
async fn write_pipe(end: &mut Option<Fd>, pieces: &mut Receiver) {
    match end {
        Some(end) => write(end, pieces).await,
        None => pieces.close(),
    }
    *end = None;
}

/// Writes what the client sends until its end. What it sends to nobody is dropped, for one who is not read would wait.
async fn write(end: &Fd, pieces: &mut Receiver) {
    while let Some(piece) = pieces.next().await {
        if let Err(error) = end.write_all(&piece).await {
            tracing::debug!("a process takes no more input: {error}");
            break;
        }
    }
    pieces.close();
}

/// Passes on the sizes of the client's terminal; the last one that waits is enough.
async fn resize(control: &dyn Control, mut size: watch::Receiver<Option<TerminalSize>>) -> Never {
    while size.changed().await.is_ok() {
        let wanted = *size.borrow_and_update();
        let Some(wanted) = wanted else { continue };
        if let Err(failure) = control.resize(wanted).await {
            tracing::debug!("a terminal could not be resized: {failure}");
        }
    }
    std::future::pending().await
}
