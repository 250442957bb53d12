//! A backend without containers: commands run on this machine, and ports are those of its loopback.
//!
//! Names with a meaning: a container `missing` fails, and one called `slow` never comes. A container to attach to is a
//! command for the shell.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use criox_streaming::{
    AttachRequest, Backend, Control, ExecRequest, Exit, Failure, Process, Streams, TerminalSize,
};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use rustix::process::{Pid, Signal, kill_process_group};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::process::{Child, Command};
use tokio::sync::watch;

/// Runs commands of this machine.
#[derive(Debug, Default, Clone)]
pub(crate) struct Host {
    /// What has happened so far.
    pub(crate) counts: Arc<Counts>,
}

/// Numbers of events.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Calls of exec and attach.
    pub(crate) asked: AtomicUsize,
    /// Calls that were dropped before they had a process.
    pub(crate) dropped: AtomicUsize,
    /// Processes that were started.
    pub(crate) started: AtomicUsize,
    /// Processes that were abandoned.
    pub(crate) abandoned: AtomicUsize,
    /// Processes that have ended.
    pub(crate) ended: AtomicUsize,
    /// The last one's process ID.
    pub(crate) pid: AtomicUsize,
}

/// Counts a call that is dropped.
struct Pending<'a>(&'a AtomicUsize, bool);

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if !self.1 {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl Host {
    async fn start(&self, container: &str, request: ExecRequest) -> Result<Process, Failure> {
        self.counts.asked.fetch_add(1, Ordering::SeqCst);
        let mut pending = Pending(&self.counts.dropped, false);
        match container {
            "missing" => {
                pending.1 = true;
                return Err(Failure::new("no such container: missing"));
            }
            "slow" => std::future::pending().await,
            _ => (),
        }
        let process = self.spawn(&request).map_err(|error| Failure::new(error.to_string()));
        pending.1 = true;
        process
    }

    fn spawn(&self, request: &ExecRequest) -> io::Result<Process> {
        let [program, arguments @ ..] = &request.command[..] else {
            return Err(io::Error::other("an empty command"));
        };
        let pipe = |wanted| if wanted { Stdio::piped() } else { Stdio::null() };
        let (mut command, terminal) = if request.tty {
            let (master, slave) = terminal()?;
            let mut command = Command::new("setsid");
            command.arg("--ctty").arg("--wait").arg(program).args(arguments);
            command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave);
            (command, Some(master))
        } else {
            let mut command = Command::new(program);
            command.args(arguments);
            command.stdin(pipe(request.stdin)).stdout(pipe(request.stdout)).stderr(pipe(request.stderr));
            (command, None)
        };
        let mut child = command.process_group(0).spawn()?;
        // Its slaves close with it: the last one's end is the end of file.
        drop(command);
        let pid = child.id().unwrap_or_default();
        self.counts.started.fetch_add(1, Ordering::SeqCst);
        self.counts.pid.store(pid as usize, Ordering::SeqCst);
        let (streams, size) = match terminal {
            Some(master) => {
                let size = master.try_clone()?;
                (Streams::Terminal(master), Some(size))
            }
            None => (pipes(&mut child)?, None),
        };
        let (sender, exit) = watch::channel(None);
        let counts = Arc::clone(&self.counts);
        tokio::spawn(async move {
            let status = child.wait().await;
            counts.ended.fetch_add(1, Ordering::SeqCst);
            let code = status.map(|status| match (status.code(), status.signal()) {
                (Some(code), _) => code,
                (None, signal) => 128 + signal.unwrap_or(0),
            });
            let code = code.ok().and_then(|code| u8::try_from(code).ok()).unwrap_or(255);
            sender.send_replace(Some(code));
        });
        let group = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let control = Running { group, size, exit, counts: Arc::clone(&self.counts) };
        Ok(Process { streams, control: Box::new(control) })
    }
}

fn terminal() -> io::Result<(OwnedFd, OwnedFd)> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname(&master, Vec::new())?;
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
    let slave = rustix::fs::open(name, flags, rustix::fs::Mode::empty())?;
    Ok((master, slave))
}

fn pipes(child: &mut Child) -> io::Result<Streams> {
    Ok(Streams::Pipes {
        stdin: child.stdin.take().map(|end| end.into_owned_fd()).transpose()?,
        stdout: child.stdout.take().map(|end| end.into_owned_fd()).transpose()?,
        stderr: child.stderr.take().map(|end| end.into_owned_fd()).transpose()?,
    })
}

impl Backend for Host {
    fn exec(&self, request: ExecRequest) -> BoxFuture<'_, Result<Process, Failure>> {
        async move { self.start(&request.container.clone(), request).await }.boxed()
    }

    fn attach(&self, request: AttachRequest) -> BoxFuture<'_, Result<Process, Failure>> {
        let AttachRequest { container, tty, stdin, stdout, stderr } = request;
        let command = ["sh", "-c", container.as_str()].map(str::to_owned).to_vec();
        let request = ExecRequest { container: container.clone(), command, tty, stdin, stdout, stderr };
        async move { self.start(&container, request).await }.boxed()
    }

    fn port_forward(&self, _sandbox: &str, port: u16) -> BoxFuture<'_, Result<OwnedFd, Failure>> {
        async move {
            let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await;
            let stream = stream.and_then(tokio::net::TcpStream::into_std);
            stream.map(OwnedFd::from).map_err(|error| Failure::new(format!("connecting: {error}")))
        }
        .boxed()
    }
}

struct Running {
    group: Option<Pid>,
    size: Option<OwnedFd>,
    exit: watch::Receiver<Option<u8>>,
    counts: Arc<Counts>,
}

impl Control for Running {
    fn resize(&self, size: TerminalSize) -> BoxFuture<'_, Result<(), Failure>> {
        let set = self.size.as_ref().map_or(Ok(()), |terminal| {
            let size = Winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
            tcsetwinsize(terminal.as_fd(), size)
        });
        std::future::ready(set.map_err(|error| Failure::new(error.to_string()))).boxed()
    }

    fn wait(&self) -> BoxFuture<'_, Result<Exit, Failure>> {
        let mut exit = self.exit.clone();
        async move {
            let code = exit.wait_for(Option::is_some).await.ok().and_then(|code| *code);
            code.map(|code| Exit { code }).ok_or_else(|| Failure::new("its end was not seen"))
        }
        .boxed()
    }

    fn abandon(&self) {
        self.counts.abandoned.fetch_add(1, Ordering::SeqCst);
        if let Some(group) = self.group {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}
