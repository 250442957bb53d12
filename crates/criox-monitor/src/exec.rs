//! Processes that are run in a container.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use criox_monitor_api::proto::{self, ExecFinished, ExecStarted, failure::Kind, reply};
use criox_sys::cgroup::EnterHandle;
use criox_sys::process::Pidfd;

use crate::client::{done, failure, reply as reply_message};
use crate::console::Console;
use crate::container::{Caller, Phase, Purpose, RuntimeRun};
use crate::monitor::{Monitor, Timer};
use crate::namespaces;
use crate::oci::{self, ExecGroup, ExecStart};
use crate::runtime_run::cgroup_in;
use crate::verbs::{not_found, not_started, timeout};

/// How long a tree may hold out against SIGKILL before its exec is answered all the same.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two looks at a dying tree.
const KILL_PAUSE: Duration = Duration::from_millis(2);

pub(crate) struct Exec {
    pub(crate) caller: Caller,
    /// 0 until the runtime has told.
    pub(crate) pid: i32,
    /// Path of its group, and whether it is in there.
    pub(crate) cgroup: String,
    pub(crate) confined: bool,
    /// When the whole tree is killed.
    pub(crate) deadline: Option<Instant>,
    pub(crate) timeout_ms: u64,
    /// The master, until ExecStarted takes it away; a duplicate stays for sizes.
    pub(crate) terminal: Option<OwnedFd>,
    pub(crate) exit_code: Option<i32>,
    /// The tree is being killed: the answer waits for its end, at most until this time.
    pub(crate) killing: Option<Instant>,
    pub(crate) timed_out: bool,
}

impl Monitor {
    /// `fds` in the order stdin, stdout, stderr, those that are asked for.
    pub(crate) fn exec(&mut self, caller: Caller, request: proto::Exec, fds: Vec<OwnedFd>) {
        if let Some(number) = self.find(&request.container_id).filter(|number| self.freezer.holds(*number)) {
            return self.hold_exec(number, caller, request, fds);
        }
        if let Err(result) = self.try_exec(caller, &request, fds) {
            self.answer(caller, result);
        }
    }

    fn try_exec(
        &mut self,
        caller: Caller,
        request: &proto::Exec,
        fds: Vec<OwnedFd>,
    ) -> Result<(), reply::Result> {
        let number = self.find(&request.container_id).ok_or_else(|| not_found(&request.container_id))?;
        let container = self.containers.get(&number).ok_or_else(|| not_found(&request.container_id))?;
        if container.phase != Phase::Running || container.exit.is_some() {
            return Err(failure(Kind::WrongState, format!("container {} is not running", container.id)));
        }
        let id = &request.exec_id;
        if id.is_empty() || !id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_') {
            return Err(failure(Kind::Internal, "the exec ID is no plain name"));
        }
        if container.execs.contains_key(id) {
            return Err(failure(Kind::WrongState, format!("exec {id} is there already")));
        }
        let (runtime, container_id) = (container.runtime.clone(), container.id.clone());
        let cgroup = format!("{}/{id}.mount", container.cgroup.trim_end_matches('/'));
        let exec = Exec {
            caller,
            pid: 0,
            cgroup: cgroup.clone(),
            confined: false,
            deadline: None,
            timeout_ms: request.timeout_ms,
            terminal: None,
            exit_code: None,
            killing: None,
            timed_out: false,
        };
        let sequence = self.number();
        let files = ExecFiles::new(&self.args.run_dir, sequence);
        let started = self.start_exec(request, &runtime, &container_id, &cgroup, &files, fds);
        let (started, console) = started.inspect_err(|_| {
            files.remove();
            drop(self.cgroups.remove(&cgroup, Duration::ZERO));
        })?;
        if let Some(container) = self.containers.get_mut(&number) {
            container.execs.insert(id.clone(), exec);
        }
        let purpose = Purpose::Exec { exec_id: id.clone(), console, process_file: files.process };
        let run = RuntimeRun {
            process: started.process,
            stderr: started.stderr,
            log: files.log,
            pid_file: Some(files.pid),
            container: number,
            purpose,
            timed_out: false,
        };
        self.follow(run, timeout(request.start_timeout_ms));
        Ok(())
    }

    fn start_exec(
        &self,
        request: &proto::Exec,
        runtime: &proto::Runtime,
        container_id: &str,
        cgroup: &str,
        files: &ExecFiles,
        fds: Vec<OwnedFd>,
    ) -> Result<(oci::Started, Option<Console>), reply::Result> {
        let internal =
            |error: io::Error| failure(Kind::Internal, format!("could not prepare the exec: {error}"));
        write_new(&files.process, &request.process).map_err(internal)?;
        let v2 = self.cgroups.is_v2();
        let grouped = self.cgroups.create(cgroup, if v2 { &[] } else { &["freezer"] });
        let name = format!("{}.mount", request.exec_id);
        let group = match grouped {
            Ok(()) => ExecGroup::of(runtime, v2, &name),
            Err(_) => ExecGroup::Moved,
        };
        let mut args: Vec<&OsStr> = vec![
            "exec".as_ref(),
            "--detach".as_ref(),
            "--pid-file".as_ref(),
            files.pid.as_ref(),
            "--process".as_ref(),
            files.process.as_ref(),
        ];
        let mut handle = None;
        if let ExecGroup::Flag(value) | ExecGroup::Inherited(value) = &group {
            args.extend::<[&OsStr; 2]>(["--cgroup".as_ref(), value.as_ref()]);
        }
        if let ExecGroup::Inherited(_) = &group {
            handle = Some(self.v1_groups(cgroup).map_err(internal)?);
        }
        let mut console = None;
        if request.terminal {
            console = Some(Console::listen(&self.args.run_dir, &files.console).map_err(internal)?);
        }
        let terminal = console.as_ref().map(Console::name);
        if let Some(name) = &terminal {
            args.extend::<[&OsStr; 3]>(["--tty".as_ref(), "--console-socket".as_ref(), name.as_ref()]);
        }
        args.push(container_id.as_ref());
        let null: OwnedFd =
            std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").map_err(internal)?.into();
        let mut given = fds.into_iter();
        let mut next = |wanted: bool| if wanted && !request.terminal { given.next() } else { None };
        let stdio = [next(request.stdin), next(request.stdout), next(request.stderr)];
        let borrowed = [0, 1, 2].map(|index: usize| stdio[index].as_ref().unwrap_or(&null).as_fd());
        // With a terminal none of its streams is the command's.
        let stdio = (!request.terminal).then_some(borrowed);
        namespaces::give(stdio.as_ref(), self.pod_root);
        let score: Score = serde_json::from_slice(&request.process)
            .map_err(|error| failure(Kind::Internal, format!("the process is no OCI process: {error}")))?;
        let start =
            ExecStart { cgroup: handle.as_ref(), oom_score: score.oom_score_adj, dies_with_monitor: false };
        let started = oci::start(runtime, &files.log, &args, stdio, Some(start))
            .map_err(|error| not_started(&error))?;
        Ok((started, console))
    }

    /// The container's groups, but the exec's own in the freezer.
    fn v1_groups(&self, cgroup: &str) -> io::Result<EnterHandle> {
        let parent = cgroup.rsplit_once('/').map_or("/", |(parent, _)| parent);
        let freezer = self.cgroups.dir("freezer", "/");
        let dirs: Vec<_> = self
            .cgroups
            .hierarchies()
            .iter()
            .map(|h| {
                let path = if Some(&h.mount) == freezer.as_ref() { cgroup } else { parent };
                h.mount.join(path.trim_start_matches('/'))
            })
            .filter(|dir| dir.is_dir())
            .collect();
        EnterHandle::from_dirs(dirs.iter().map(PathBuf::as_path)).map_err(io::Error::other)
    }

    pub(crate) fn exec_started(
        &mut self,
        number: u32,
        exec_id: &str,
        result: Result<Option<i32>, reply::Result>,
        console: Option<Console>,
    ) {
        let Some(container) = self.containers.get(&number) else { return };
        let Some(exec) = container.execs.get(exec_id) else { return };
        let (caller, cgroup) = (exec.caller, exec.cgroup.clone());
        let no_pid =
            || failure(Kind::Runtime, "the OCI runtime reported success, but wrote no process number");
        let terminal = console.map(|console| console.receive()).transpose();
        let terminal = terminal.map_err(|error| failure(Kind::Runtime, format!("no terminal: {error}")));
        let (pid, terminal) = match result.and_then(|pid| Ok((pid.ok_or_else(no_pid)?, terminal?))) {
            Ok(started) => started,
            Err(refused) => {
                drop(self.cgroups.kill_pass(&cgroup));
                if let Some(container) = self.containers.get_mut(&number) {
                    container.execs.remove(exec_id);
                }
                self.remove_exec_group(number, cgroup);
                return self.answer(caller, refused);
            }
        };
        let caller_there = self.has_client(caller.client);
        let stray = self.strays.remove(&pid);
        let confined = stray.is_some() || self.confine(pid, &cgroup);
        let Some(exec) = self.containers.get_mut(&number).and_then(|c| c.execs.get_mut(exec_id)) else {
            return;
        };
        (exec.pid, exec.confined) = (pid, confined);
        let mut fds = Vec::new();
        if let Some(master) = terminal {
            // A caller that has gone meanwhile holds no terminal, and the process has to learn of that.
            exec.terminal = caller_there.then(|| master.try_clone().ok()).flatten();
            fds.push(master);
        }
        let ended_early = exec.killing.is_some();
        if exec.timeout_ms > 0 {
            let deadline = Instant::now() + Duration::from_millis(exec.timeout_ms);
            exec.deadline = Some(deadline);
            self.at(deadline, Timer::Exec(number, exec_id.to_owned()));
        }
        self.send(
            caller.client,
            reply_message(caller.request, reply::Result::ExecStarted(ExecStarted { pid })),
            fds,
        );
        if let Some(code) = stray {
            self.exec_ended(number, exec_id, code);
        } else if ended_early {
            self.kill_exec(number, exec_id);
        }
    }

    /// Sees that the process is in its group; moves it there where the runtime did not. A child that it made
    /// before is not moved: such runtimes have no way without that gap.
    fn confine(&self, pid: i32, cgroup: &str) -> bool {
        let Ok(text) = std::fs::read_to_string(format!("/proc/{pid}/cgroup")) else { return true };
        let controller = if self.cgroups.is_v2() { "" } else { "freezer" };
        if cgroup_in(&text, controller) == Some(cgroup) {
            return true;
        }
        let Some(dir) = self.cgroups.dir("freezer", cgroup) else { return false };
        let file = std::fs::OpenOptions::new().write(true).open(dir.join("cgroup.procs"));
        file.and_then(|mut file| file.write_all(pid.to_string().as_bytes())).is_ok()
    }

    pub(crate) fn exec_ended(&mut self, number: u32, exec_id: &str, code: i32) {
        let Some(exec) = self.containers.get_mut(&number).and_then(|c| c.execs.get_mut(exec_id)) else {
            return;
        };
        exec.exit_code = Some(code);
        if exec.killing.is_some() {
            return self.look_at_exec(number, exec_id);
        }
        self.finish_exec(number, exec_id);
    }

    /// Answers, and removes the group, now or when what the exec left in it has ended.
    fn finish_exec(&mut self, number: u32, exec_id: &str) {
        let Some(exec) = self.containers.get_mut(&number).and_then(|c| c.execs.remove(exec_id)) else {
            return;
        };
        let finished = ExecFinished { exit_code: exec.exit_code.unwrap_or(137), timed_out: exec.timed_out };
        self.answer(exec.caller, reply::Result::ExecFinished(finished));
        self.remove_exec_group(number, exec.cgroup);
    }

    fn remove_exec_group(&mut self, number: u32, cgroup: String) {
        if self.cgroups.remove(&cgroup, Duration::ZERO).is_err() {
            self.linger(number, cgroup);
        }
    }

    pub(crate) fn end_exec(&mut self, request: &proto::EndExec) -> reply::Result {
        if self.end_held(&request.container_id, &request.exec_id) {
            return done();
        }
        let number = self.find(&request.container_id);
        let known = number
            .and_then(|n| self.containers.get(&n))
            .is_some_and(|c| c.execs.contains_key(&request.exec_id));
        let Some(number) = number.filter(|_| known) else { return not_found(&request.exec_id) };
        self.kill_exec(number, &request.exec_id);
        done()
    }

    fn kill_exec(&mut self, number: u32, exec_id: &str) {
        let Some(exec) = self.containers.get_mut(&number).and_then(|c| c.execs.get_mut(exec_id)) else {
            return;
        };
        exec.killing.get_or_insert_with(|| Instant::now() + KILL_TIMEOUT);
        if exec.pid != 0 {
            self.look_at_exec(number, exec_id);
        }
    }

    /// Kills at the deadline, and goes on until nothing is left; then the answer is due.
    pub(crate) fn look_at_exec(&mut self, number: u32, exec_id: &str) {
        let Some(exec) = self.containers.get_mut(&number).and_then(|c| c.execs.get_mut(exec_id)) else {
            return;
        };
        let now = Instant::now();
        if exec.killing.is_none() {
            if exec.deadline.is_none_or(|deadline| now < deadline) {
                return;
            }
            exec.timed_out = true;
            exec.killing = Some(now + KILL_TIMEOUT);
        }
        let (until, pid, cgroup) = (exec.killing.unwrap_or(now), exec.pid, exec.cgroup.clone());
        let (alive, confined) = (exec.exit_code.is_none(), exec.confined);
        if alive {
            if !confined {
                kill_tree(pid);
            }
            // Not reaped yet, so the number is still its own.
            drop(Pidfd::open(pid).and_then(|process| process.send_signal(9)));
        }
        let left = self.cgroups.kill_pass(&cgroup).unwrap_or(0);
        if (left == 0 && !alive) || now >= until {
            return self.finish_exec(number, exec_id);
        }
        self.after(KILL_PAUSE, Timer::Exec(number, exec_id.to_owned()));
    }
}

/// Kills a process's descendants, youngest last; those that fork meanwhile may escape.
pub(crate) fn kill_tree(pid: i32) {
    for child in children(pid) {
        let held = Pidfd::open(child);
        kill_tree(child);
        drop(held.and_then(|process| process.send_signal(9)));
    }
}

/// The processes that a process has made and that live. Each of its threads has children of its own, and a runtime in Go
/// has many.
pub(crate) fn children(pid: i32) -> Vec<i32> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    let numbers = |list: String| {
        list.split_ascii_whitespace().filter_map(|number| number.parse().ok()).collect::<Vec<i32>>()
    };
    lists.flat_map(numbers).collect()
}

/// What of an OCI process the runtime's own process needs.
#[derive(serde::Deserialize)]
struct Score {
    #[serde(default, rename = "oomScoreAdj")]
    oom_score_adj: i32,
}

/// Files of one exec in the run directory.
struct ExecFiles {
    process: PathBuf,
    pid: PathBuf,
    log: PathBuf,
    console: String,
}

impl ExecFiles {
    fn new(run_dir: &Path, sequence: u32) -> Self {
        let base = run_dir.join(format!("exec-{sequence}"));
        Self {
            process: base.with_extension("json"),
            pid: base.with_extension("pid"),
            log: base.with_extension("log"),
            console: format!("exec-{sequence}.tty"),
        }
    }

    fn remove(&self) {
        for path in [&self.process, &self.pid, &self.log] {
            drop(std::fs::remove_file(path));
        }
    }
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?
        .write_all(bytes)
}

#[cfg(test)]
mod tests {
    use super::children;

    #[test]
    fn children_of_every_thread_are_found() {
        let own = i32::try_from(std::process::id()).unwrap();
        // None of them is the first thread's: this test has a thread of its own, too.
        let (done, wait) = std::sync::mpsc::channel::<()>();
        let (born, told) = std::sync::mpsc::channel();
        let other = std::thread::spawn(move || {
            let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
            born.send(i32::try_from(child.id()).unwrap()).unwrap();
            let _ = wait.recv();
            child.kill().unwrap();
            child.wait().unwrap();
        });
        let child = told.recv().unwrap();
        let found = children(own);
        drop(done);
        other.join().unwrap();
        assert!(found.contains(&child), "{child}: {found:?}");
        assert!(!children(own).contains(&child));
    }
}
