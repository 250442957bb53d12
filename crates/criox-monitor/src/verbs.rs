//! What the daemon asks for. Verbs that need the runtime or the log writer are answered later.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use criox_monitor_api::VERSION;
use criox_monitor_api::frame::FrameError;
use criox_monitor_api::proto::{
    self, HelloReply, ListReply, Request, failure::Kind, message, reply, request::Verb,
};
use criox_sys::pty;

use crate::client::{done, failure, reply as reply_message};
use crate::console::Console;
use crate::container::{Caller, Container, Phase, Purpose, RuntimeRun};
use crate::journald::Origin;
use crate::log_writer::Job;
use crate::monitor::{Monitor, Timer};
use crate::pipes::Pipes;
use crate::{exits, namespaces, oci, seccomp};

/// Where the daemon sets none.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(60);

/// A creation that waits for its log file.
pub(crate) struct WaitingCreate {
    pub(crate) caller: Caller,
    pub(crate) request: proto::Create,
}

pub(crate) fn timeout(milliseconds: u32) -> Duration {
    if milliseconds == 0 { DEFAULT_TIMEOUT } else { Duration::from_millis(milliseconds.into()) }
}

impl Monitor {
    /// An error ends the connection.
    pub(crate) fn request(&mut self, client: u32, request: Request) -> Result<(), FrameError> {
        let caller = Caller { client, request: request.id };
        let Some(verb) = request.verb else {
            self.answer(caller, failure(Kind::Unsupported, "this monitor doesn't know the verb"));
            return Ok(());
        };
        let greeted = self.client(client).is_some_and(|client| client.greeted);
        match verb {
            Verb::Hello(hello) => self.hello(caller, &hello),
            _ if !greeted => {
                self.answer(caller, failure(Kind::WrongState, "the first request must be Hello"))
            }
            Verb::Exec(exec) => {
                let wanted = if exec.terminal {
                    0
                } else {
                    [exec.stdin, exec.stdout, exec.stderr].iter().filter(|w| **w).count()
                };
                let Some(client) = self.client(client) else { return Ok(()) };
                let fds = client.reader.take_fds(wanted)?;
                self.exec(caller, exec, fds);
            }
            Verb::Attach(attach) => {
                let streams = [attach.stdin, attach.stdout, attach.stderr];
                let streams = if attach.terminal { 1 } else { streams.iter().filter(|w| **w).count() };
                let Some(client) = self.client(client) else { return Ok(()) };
                let fds = client.reader.take_fds(1 + streams)?;
                let result = self.attach(&attach, fds);
                self.answer(caller, result);
            }
            Verb::Freeze(freeze) => {
                let Some(client) = self.client(client) else { return Ok(()) };
                for lease in client.reader.take_fds(1)? {
                    self.freeze(caller, &freeze, lease);
                }
            }
            Verb::Checkpoint(checkpoint) => self.checkpoint(caller, &checkpoint),
            Verb::PinNamespaces(request) => self.pin(caller, request),
            Verb::StartSandboxProcess(request) if request.kind == 1 => self.start_init(caller, request),
            Verb::Subscribe(subscribe) => self.subscribe(caller, subscribe.after),
            Verb::Create(create) => self.create(caller, create),
            Verb::Start(start) => self.start(caller, &start),
            Verb::Delete(delete) => self.delete(caller, &delete),
            Verb::Update(update) => self.update(caller, update),
            Verb::ReopenLog(reopen) => self.reopen_log(caller, &reopen.container_id),
            other => {
                let result = self.at_once(other);
                self.answer(caller, result);
            }
        }
        Ok(())
    }

    /// Verbs that are done when this returns.
    fn at_once(&mut self, verb: Verb) -> reply::Result {
        match verb {
            Verb::StartSandboxProcess(request) if request.kind == 0 => done(),
            Verb::Signal(signal) => self.signal(&signal),
            Verb::Thaw(thaw) => self.thaw(&thaw),
            Verb::EndExec(end) => self.end_exec(&end),
            Verb::List(_) => {
                // Losses may not have been told yet.
                self.log_written();
                self.list()
            }
            Verb::Resize(resize) => self.resize(&resize),
            Verb::ListenSeccomp(listen) => self.listen_seccomp(&listen.container_id),
            Verb::CloseStdin(close) => match self.find(&close.container_id) {
                Some(number) => {
                    self.close_stdin(number);
                    done()
                }
                None => not_found(&close.container_id),
            },
            Verb::Shutdown(_) => self.shutdown(),
            _ => failure(Kind::Unsupported, "the verb is not in this version of the monitor"),
        }
    }

    fn hello(&mut self, caller: Caller, hello: &proto::Hello) {
        if !hello.versions.contains(&VERSION) {
            let text = format!("the monitor speaks version {VERSION}, the client {:?}", hello.versions);
            return self.answer(caller, failure(Kind::Unsupported, text));
        }
        if let Some(client) = self.client(caller.client) {
            client.greeted = true;
        }
        let hello = HelloReply {
            version: VERSION,
            pid: i32::try_from(std::process::id()).unwrap_or(0),
            sandbox_id: self.args.sandbox_id.clone(),
            build: env!("CARGO_PKG_VERSION").to_owned(),
        };
        self.answer(caller, reply::Result::Hello(hello));
    }

    fn subscribe(&mut self, caller: Caller, after: u64) {
        let events = self.events.after(after);
        let Some(client) = self.client(caller.client) else { return };
        client.subscribed = true;
        self.answer(caller, done());
        for event in events {
            self.send(caller.client, message::Kind::Event(event), Vec::new());
        }
    }

    fn list(&self) -> reply::Result {
        let mut containers: Vec<_> = self.containers.values().filter_map(Container::state).collect();
        let mut room = seccomp::LISTED_BYTES;
        for state in &mut containers {
            state.forbidden = self.seccomp.calls(&state.container_id, &mut room);
        }
        reply::Result::List(ListReply {
            containers,
            last_event: self.events.last(),
            sandbox_process_pid: self.sandbox_process,
            log_lines_dropped: self.dropped,
            journal_lines_dropped: self.journal.dropped,
        })
    }

    fn shutdown(&mut self) -> reply::Result {
        match self.containers.values().find(|container| container.phase != Phase::Exited) {
            Some(live) => failure(Kind::WrongState, format!("container {} has not ended", live.id)),
            None => {
                // Not reaped here: as a child of a process that ends it goes to process 1.
                if self.sandbox_process != 0 {
                    let init = criox_sys::process::Pidfd::open(self.sandbox_process);
                    drop(init.and_then(|init| init.send_signal(9)));
                }
                // What it takes now; nobody waits for the rest.
                self.journal_ready();
                self.ends = true;
                done()
            }
        }
    }

    fn signal(&mut self, request: &proto::Signal) -> reply::Result {
        if let Some(number) = self.find(&request.container_id) {
            self.let_go(number);
            if request.signal == 9 {
                self.kill_checkpoint(number);
            }
            if self.containers.get(&number).is_some_and(|container| container.restore.is_some()) {
                self.signal_waiting(number, request.signal);
                return done();
            }
        }
        let Some(container) =
            self.find(&request.container_id).and_then(|number| self.containers.get(&number))
        else {
            return not_found(&request.container_id);
        };
        let Some(pidfd) = container.pidfd.as_ref().filter(|_| container.exit.is_none()) else {
            return failure(Kind::WrongState, format!("container {} has no process", request.container_id));
        };
        let all = if request.all && request.signal == 9 {
            self.cgroups.kill_pass(&container.cgroup).map(drop).map_err(|error| error.to_string())
        } else {
            Ok(())
        };
        match pidfd.send_signal(request.signal).map_err(|error| error.to_string()).and(all) {
            Ok(()) => done(),
            Err(error) => {
                failure(Kind::Internal, format!("could not signal {}: {error}", request.container_id))
            }
        }
    }

    fn resize(&mut self, request: &proto::Resize) -> reply::Result {
        let Some(container) =
            self.find(&request.container_id).and_then(|number| self.containers.get(&number))
        else {
            return not_found(&request.container_id);
        };
        let terminal = match container.execs.get(&request.exec_id) {
            Some(exec) => exec.terminal.as_ref(),
            None if request.exec_id.is_empty() => container.terminal.as_ref(),
            None => return not_found(&request.exec_id),
        };
        let Some(terminal) = terminal else { return failure(Kind::WrongState, "it has no terminal") };
        let clamp = |value: u32| u16::try_from(value).unwrap_or(u16::MAX);
        match pty::set_size(terminal, clamp(request.width), clamp(request.height)) {
            Ok(()) => done(),
            Err(error) => failure(Kind::Internal, format!("could not resize the terminal: {error}")),
        }
    }

    fn create(&mut self, caller: Caller, request: proto::Create) {
        let id = request.container_id.clone();
        let valid = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if id.is_empty() || id.starts_with('.') || id.len() > 255 || !id.chars().all(valid) {
            return self.answer(caller, failure(Kind::Internal, "the container ID is no plain name"));
        }
        if self.find(&id).is_some() {
            return self
                .answer(caller, failure(Kind::WrongState, format!("container {id} is there already")));
        }
        let Some(runtime) = request.runtime.clone() else {
            return self.answer(caller, failure(Kind::Internal, "Create names no runtime"));
        };
        exits::remove(&self.args.run_dir, &id);
        let number = self.number();
        let logged = !request.log_path.is_empty();
        let mut container = Container::new(id, runtime, logged);
        container.stdin_once = request.stdin_once;
        container.journal = request.journal.as_ref().filter(|_| logged).map(|journal| {
            self.journal.point_at(journal.socket.as_ref());
            Origin::new(&request.container_id, &journal.name)
        });
        self.containers.insert(number, container);
        if !logged {
            return self.run_create(number, caller, request);
        }
        let open =
            Job::Open { log: number, path: request.log_path.clone().into(), limit: request.log_size_max };
        self.creates.insert(number, WaitingCreate { caller, request });
        if let Err(error) = self.writer.send(open) {
            self.log_opened(number, Err(error.to_string()));
        }
    }

    pub(crate) fn log_opened(&mut self, number: u32, result: Result<(), String>) {
        let Some(waiting) = self.creates.remove(&number) else { return };
        match result {
            Ok(()) => self.run_create(number, waiting.caller, waiting.request),
            Err(error) => {
                self.forget(number, true);
                self.answer(waiting.caller, failure(Kind::Internal, error));
            }
        }
    }

    fn run_create(&mut self, number: u32, caller: Caller, request: proto::Create) {
        if let Err(result) = self.try_create(number, caller, &request) {
            self.forget(number, true);
            self.answer(caller, result);
        }
    }

    fn try_create(
        &mut self,
        number: u32,
        caller: Caller,
        request: &proto::Create,
    ) -> Result<(), reply::Result> {
        let internal = |error: std::io::Error| {
            failure(Kind::Internal, format!("could not prepare the container's streams: {error}"))
        };
        if let Some(from) = &request.restore {
            let created = self.create_waiting(number, request, from)?;
            self.answer(caller, created);
            return Ok(());
        }
        let file = self.args.run_dir.join(format!("create-{number}"));
        let (log, pid_file) = (file.with_extension("log"), file.with_extension("pid"));
        let mut args: Vec<&OsStr> = vec![
            "create".as_ref(),
            "--bundle".as_ref(),
            request.bundle.as_ref(),
            "--pid-file".as_ref(),
            pid_file.as_ref(),
        ];
        let runtime = request.runtime.clone().unwrap_or_default();
        if runtime.no_pivot {
            args.push("--no-pivot".as_ref());
        }
        let name = format!("create-{number}.tty");
        let console = request.terminal.then(|| Console::listen(&self.args.run_dir, &name)).transpose();
        let console = console.map_err(internal)?;
        let terminal = console.as_ref().map(Console::name);
        if let Some(name) = &terminal {
            args.extend::<[&OsStr; 2]>(["--console-socket".as_ref(), name.as_ref()]);
        }
        args.push(request.container_id.as_ref());
        let Pipes { outputs: pipes, stdin, ends } = Pipes::open(request).map_err(internal)?;
        if let Some(container) = self.containers.get_mut(&number) {
            container.stdin = stdin;
        }
        // With a terminal none of its streams is the container's.
        let stdio = (!request.terminal).then(|| ends.borrowed());
        namespaces::give(stdio.as_ref(), self.pod_root);
        let started = oci::start(&runtime, &log, &args, stdio, None).map_err(|e| not_started(&e))?;
        let purpose = Purpose::Create { caller, pipes, console };
        self.follow(
            RuntimeRun {
                process: started.process,
                stderr: started.stderr,
                log,
                pid_file: Some(pid_file),
                container: number,
                purpose,
                timed_out: false,
            },
            timeout(request.timeout_ms),
        );
        Ok(())
    }

    /// Takes note of a runtime process that has been started.
    pub(crate) fn follow(&mut self, run: RuntimeRun, limit: Duration) {
        let pid = run.process.pid();
        self.runtimes.insert(pid, run);
        self.after(limit, Timer::Runtime(pid));
    }

    fn start(&mut self, caller: Caller, request: &proto::Start) {
        let Some(number) = self.find(&request.container_id) else {
            return self.answer(caller, not_found(&request.container_id));
        };
        let Some(container) = self.containers.get(&number) else { return };
        if container.restore.is_some() || container.restored {
            return self.start_restored(number, caller, request);
        }
        match container.phase {
            Phase::Created => {}
            // The daemon asks again after it was killed.
            Phase::Running => return self.answer(caller, done()),
            _ => {
                return self.answer(
                    caller,
                    failure(
                        Kind::WrongState,
                        format!("container {} is not in the created state", container.id),
                    ),
                );
            }
        }
        let log = self.args.run_dir.join(format!("start-{number}.log"));
        let started =
            oci::start(&container.runtime, &log, &["start".as_ref(), container.id.as_ref()], None, None);
        match started {
            Ok(started) => self.follow(
                RuntimeRun {
                    process: started.process,
                    stderr: started.stderr,
                    log,
                    pid_file: None,
                    container: number,
                    purpose: Purpose::Start { caller },
                    timed_out: false,
                },
                timeout(request.timeout_ms),
            ),
            Err(error) => self.answer(caller, not_started(&error)),
        }
    }

    fn delete(&mut self, caller: Caller, request: &proto::Delete) {
        let Some(number) = self.find(&request.container_id) else {
            // Its creation was never asked for.
            self.forget_notifier(&request.container_id);
            return self.answer(caller, done());
        };
        let Some(container) = self.containers.get_mut(&number) else { return };
        container.deleting.push(caller);
        if container.deleting.len() > 1 {
            return;
        }
        if container.phase == Phase::Creating {
            return self.end_creation(number);
        }
        if container.restore.is_some() {
            return self.delete_waiting(number);
        }
        self.let_go(number);
        self.kill_checkpoint(number);
        // A start that hangs is wanted by nobody any more.
        self.kill_runs(number, |purpose| matches!(purpose, Purpose::Start { .. }));
        self.begin_delete(number, timeout(request.timeout_ms));
    }

    pub(crate) fn begin_delete(&mut self, number: u32, limit: Duration) {
        let Some(container) = self.containers.get(&number) else { return };
        let (id, runtime) = (container.id.clone(), container.runtime.clone());
        if let Err(result) = self.run_delete(number, &id, &runtime, Purpose::Delete, limit) {
            self.deleted(number, Some(result));
        }
    }

    pub(crate) fn run_delete(
        &mut self,
        number: u32,
        id: &str,
        runtime: &proto::Runtime,
        purpose: Purpose,
        limit: Duration,
    ) -> Result<(), reply::Result> {
        let log = self.args.run_dir.join(format!("delete-{number}.log"));
        let args: [&OsStr; 3] = ["delete".as_ref(), "--force".as_ref(), id.as_ref()];
        let started = oci::start(runtime, &log, &args, None, None).map_err(|error| not_started(&error))?;
        let oci::Started { process, stderr } = started;
        self.follow(
            RuntimeRun { process, stderr, log, pid_file: None, container: number, purpose, timed_out: false },
            limit,
        );
        Ok(())
    }

    fn reopen_log(&mut self, caller: Caller, id: &str) {
        let Some(number) = self.find(id) else { return self.answer(caller, not_found(id)) };
        if self.containers.get(&number).is_none_or(|c| !c.logged || c.phase == Phase::Exited) {
            return self.answer(caller, failure(Kind::WrongState, format!("container {id} writes no log")));
        }
        self.send_pending(number);
        let job = Job::Reopen { log: number, client: caller.client, request: caller.request };
        if let Err(error) = self.writer.send(job) {
            self.answer(caller, failure(Kind::Internal, error.to_string()));
        }
    }

    pub(crate) fn log_reopened(&mut self, client: u32, request: u64, result: Result<(), String>) {
        let result = result.map_or_else(|error| failure(Kind::Internal, error), |()| done());
        self.send(client, reply_message(request, result), Vec::new());
    }

    /// Drops all that is held of a container. `undone`: its creation failed, and a log file made for it goes too.
    pub(crate) fn forget(&mut self, number: u32, undone: bool) {
        self.let_go(number);
        for output in self.outputs_of(number) {
            self.outputs.remove(&output);
        }
        self.close_stdin(number);
        self.end_attached(number);
        self.send_pending(number);
        self.unwatch_oom(number);
        let Some(container) = self.containers.remove(&number) else { return };
        if container.logged {
            drop(self.writer.send(Job::Close { log: number, forget: undone }));
        }
        self.forget_notifier(&container.id);
        // Of a container that was deleted while it was being created.
        for caller in container.deleting {
            self.answer(caller, done());
        }
    }
}

pub(crate) fn not_found(id: &str) -> reply::Result {
    failure(Kind::NotFound, format!("the monitor has no {id}"))
}

/// Tells a runtime that is absent from other troubles.
pub(crate) fn not_started(error: &criox_sys::process::SpawnError) -> reply::Result {
    let missing = error.step == criox_sys::process::SpawnStep::Execve;
    let kind = if missing { Kind::RuntimeMissing } else { Kind::Internal };
    failure(kind, format!("{error}: {}", error.source))
}

pub(crate) fn pipe() -> std::io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
}
