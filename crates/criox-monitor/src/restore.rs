//! Containers that go on from a checkpoint.
//!
//! Created, such a container has its log and streams, but no process: the runtime is run at the start, for what it
//! restores runs at once. It is in the phase Created until then, so that it is listed, attached to, stopped and deleted
//! as others are. A restore that fails leaves nothing behind, and may be tried again.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use criox_monitor_api::proto::{self, CreateReply, failure::Kind, reply, runtime::Flavor};
use criox_sys::process::{ExitStatus, Pidfd};

use crate::checkpoint::with_reason;
use crate::client::failure;
use crate::console::Console;
use crate::container::{Caller, Container, Phase, Purpose, RuntimeRun};
use crate::log::Stream;
use crate::monitor::{Monitor, Timer};
use crate::oci::{self, ExecStart};
use crate::pipes::{Ends, Pipes};
use crate::stream::Output;
use crate::verbs::{not_found, not_started, timeout};
use crate::{clock, exec, namespaces, tell};

/// For the runtime to delete what a failed restore left.
const UNDO_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the processes of one may hold out against SIGKILL.
const EMPTY_TIMEOUT: Duration = Duration::from_secs(2);
const EMPTY_PAUSE: Duration = Duration::from_millis(2);

/// A container that waits to be restored.
pub(crate) struct Waiting {
    request: proto::Create,
    from: proto::Restore,
    /// Not read before the restore has worked: what a runtime says that fails is no output of the container.
    outputs: Vec<(OwnedFd, Stream)>,
    /// Held as long: without them the streams would end.
    ends: Ends,
    /// Who waits for the restore; empty: none is at work.
    starting: Vec<Caller>,
    /// The score for the OOM killer that its bundle says.
    oom_score: i32,
    /// It was signalled meanwhile.
    signal: Option<i32>,
    /// The restore has failed, and what it left is being ended, until this time.
    failed: Option<(reply::Result, Instant)>,
}

impl Waiting {
    /// Where the runtime says what its log doesn't.
    pub(crate) fn stderr(&self) -> Option<&OwnedFd> {
        self.outputs.last().map(|(fd, _)| fd)
    }

    /// Throws away what a failed restore has written.
    fn drain(&self) {
        let mut space = [0; 4096];
        for (fd, _) in &self.outputs {
            // At most what a pipe can hold, for somebody may still write.
            let mut left: usize = 1 << 20;
            let quiet = rustix::io::ioctl_fionbio(fd, true).is_ok();
            while quiet && left > 0 {
                match rustix::io::read(fd, &mut space) {
                    Ok(count) if count > 0 => left = left.saturating_sub(count),
                    _ => break,
                }
            }
        }
    }

    pub(crate) fn terminal(&self) -> bool {
        self.request.terminal
    }
}

/// What of a bundle's configuration the runtime's own process needs.
#[derive(Default, serde::Deserialize)]
struct Bundle {
    #[serde(default)]
    process: Process,
}

#[derive(Default, serde::Deserialize)]
struct Process {
    #[serde(default, rename = "oomScoreAdj")]
    oom_score_adj: i32,
}

impl Monitor {
    /// The creation of one: no runtime is run.
    pub(crate) fn create_waiting(
        &mut self,
        number: u32,
        request: &proto::Create,
        from: &proto::Restore,
    ) -> Result<reply::Result, reply::Result> {
        let internal = |error: std::io::Error| {
            failure(Kind::Internal, format!("could not prepare the container's streams: {error}"))
        };
        let absolute = |path: &str| Path::new(path).is_absolute();
        if !absolute(&from.image_path) || !absolute(&from.work_path) {
            return Err(failure(Kind::Internal, "the paths to restore from are not absolute"));
        }
        let pipes = Pipes::open(request).map_err(internal)?;
        let Some(container) = self.containers.get_mut(&number) else {
            return Err(not_found(&request.container_id));
        };
        container.stdin = pipes.stdin;
        container.phase = Phase::Created;
        container.restore = Some(Box::new(Waiting {
            request: request.clone(),
            from: from.clone(),
            outputs: pipes.outputs,
            ends: pipes.ends,
            starting: Vec::new(),
            oom_score: 0,
            signal: None,
            failed: None,
        }));
        Ok(reply::Result::Create(CreateReply::default()))
    }

    /// Starts one, or tells what came of it: the daemon asks again after it was killed.
    pub(crate) fn start_restored(&mut self, number: u32, caller: Caller, request: &proto::Start) {
        let Some(container) = self.containers.get_mut(&number) else { return };
        let Some(waiting) = &mut container.restore else {
            let result = restored_reply(container);
            return self.answer(caller, result);
        };
        if !container.deleting.is_empty() || waiting.signal.is_some() {
            let text = format!("container {} is being stopped or deleted", container.id);
            return self.answer(caller, failure(Kind::WrongState, text));
        }
        if waiting.starting.is_empty() && !waiting.terminal() && waiting.outputs.is_empty() {
            // The runtime said that it had restored it, and had not.
            let text = format!("container {} can't be restored any more: remove it", container.id);
            return self.answer(caller, failure(Kind::WrongState, text));
        }
        waiting.starting.push(caller);
        if waiting.starting.len() > 1 {
            return;
        }
        if let Err(result) = self.run_restore(number, timeout(request.timeout_ms))
            && let Some(waiting) = self.containers.get_mut(&number).and_then(|c| c.restore.as_mut())
        {
            waiting.starting.clear();
            self.answer(caller, result);
        }
    }

    fn run_restore(&mut self, number: u32, limit: Duration) -> Result<(), reply::Result> {
        let internal = |error: std::io::Error| {
            failure(Kind::Internal, format!("could not prepare the restore: {error}"))
        };
        let container = self.containers.get(&number).ok_or_else(|| not_found("container"))?;
        let waiting = container.restore.as_ref().ok_or_else(|| not_found("checkpoint"))?;
        let (request, from) = (&waiting.request, &waiting.from);
        let file = self.args.run_dir.join(format!("restore-{number}"));
        let (log, pid_file) = (file.with_extension("log"), file.with_extension("pid"));
        let name = format!("restore-{number}.tty");
        let console = request.terminal.then(|| Console::listen(&self.args.run_dir, &name)).transpose();
        let console = console.map_err(internal)?;
        let socket = console.as_ref().map(Console::name);
        let pairs: [(&str, &OsStr); 7] = [
            ("--bundle", request.bundle.as_ref()),
            ("--pid-file", pid_file.as_ref()),
            ("--image-path", from.image_path.as_ref()),
            ("--work-path", from.work_path.as_ref()),
            ("--console-socket", socket.as_deref().map_or("".as_ref(), Path::as_os_str)),
            ("--lsm-profile", from.lsm_profile.as_ref()),
            ("--lsm-mount-context", from.lsm_mount_context.as_ref()),
        ];
        let mut args: Vec<&OsStr> = vec!["restore".as_ref(), "--detach".as_ref(), "--file-locks".as_ref()];
        for (flag, value) in pairs.iter().filter(|(_, value)| !value.is_empty()) {
            args.extend([flag.as_ref(), *value]);
        }
        // crun's restore has no such option, and doesn't pivot by itself.
        if container.runtime.no_pivot && container.runtime.flavor() == Flavor::Runc {
            args.push("--no-pivot".as_ref());
        }
        args.push(container.id.as_ref());
        // With a terminal none of its streams is the container's.
        let stdio = (!request.terminal).then(|| waiting.ends.borrowed());
        namespaces::give(stdio.as_ref(), self.pod_root);
        // A process that had none at the checkpoint gets none from CRIU: without this it had the monitor's.
        let config = std::fs::read(Path::new(&request.bundle).join("config.json")).map_err(internal)?;
        let bundle: Bundle = serde_json::from_slice(&config).unwrap_or_default();
        let start =
            ExecStart { cgroup: None, oom_score: bundle.process.oom_score_adj, dies_with_monitor: true };
        let started =
            oci::start(&container.runtime, &log, &args, stdio, Some(start)).map_err(|e| not_started(&e))?;
        self.follow(
            RuntimeRun {
                process: started.process,
                stderr: started.stderr,
                log,
                pid_file: Some(pid_file),
                container: number,
                purpose: Purpose::Restore { console },
                timed_out: false,
            },
            limit,
        );
        if let Some(waiting) = self.containers.get_mut(&number).and_then(|c| c.restore.as_mut()) {
            waiting.oom_score = bundle.process.oom_score_adj;
        }
        Ok(())
    }

    /// The runtime has ended.
    pub(crate) fn restored(
        &mut self,
        number: u32,
        result: Result<Option<i32>, reply::Result>,
        console: Option<Console>,
    ) {
        let result = result.and_then(|pid| {
            // Its process may have run, ended and been reaped in the meantime.
            let ended = pid.and_then(|pid| self.strays.remove(&pid)).map(ExitStatus::Code);
            if let Some(pid) = pid.filter(|_| ended.is_none()) {
                self.check_groups(number, pid)?;
            }
            let waiting = self.containers.get_mut(&number).and_then(|c| c.restore.as_mut());
            let outputs = waiting.map(|waiting| std::mem::take(&mut waiting.outputs)).unwrap_or_default();
            if ended.is_none() {
                self.created(number, pid, outputs, console)?;
                return Ok(None);
            }
            for (fd, stream) in outputs {
                drop(self.add_output(Output::new(number, fd, stream)));
            }
            Ok(ended)
        });
        match result {
            Ok(ended) => self.restore_worked(number, ended),
            Err(refused) => self.restore_failed(number, refused),
        }
    }

    /// CRIU puts each process into the group that its checkpoint says, and a runtime sees to the first alone: one from
    /// elsewhere could say a group without limits. None lives on then.
    fn check_groups(&self, number: u32, first: i32) -> Result<(), reply::Result> {
        let waiting = self.containers.get(&number).and_then(|container| container.restore.as_ref());
        let Some(name) = waiting.and_then(|waiting| Path::new(&waiting.from.cgroup).file_name()) else {
            return Ok(());
        };
        let Some(outside) = outside(first, name) else { return Ok(()) };
        exec::kill_tree(first);
        drop(Pidfd::open(first).and_then(|process| process.send_signal(9)));
        let text =
            format!("process {outside} of the checkpoint was to run outside of the container's cgroup");
        Err(failure(Kind::Runtime, text))
    }

    fn restore_worked(&mut self, number: u32, ended: Option<ExitStatus>) {
        let Some(container) = self.containers.get_mut(&number) else { return };
        let Some(waiting) = container.restore.take() else { return };
        let (id, cgroup, pid) = (container.id.clone(), container.cgroup.clone(), container.pid);
        if ended.is_none()
            && let Err(error) = self.give_oom_score(&cgroup, pid, waiting.oom_score)
        {
            tell(&format!(
                "the restored container {id} has not the OOM score {}: {error}",
                waiting.oom_score
            ));
        }
        let Some(container) = self.containers.get_mut(&number) else { return };
        // It is restored as it was: frozen, on v1.
        if let Err(error) = self.cgroups.thaw(&container.freezer)
            && ended.is_none()
        {
            tell(&format!("could not thaw the restored container {id}: {error}"));
        }
        container.restored = true;
        container.phase = Phase::Running;
        container.started_at = clock::now();
        let result = restored_reply(container);
        if waiting.signal.is_some()
            && let Some(process) = &container.pidfd
        {
            drop(process.send_signal(9));
        }
        let deleting = !container.deleting.is_empty();
        for caller in waiting.starting {
            self.answer(caller, result.clone());
        }
        // What attached clients wrote before there was a terminal.
        self.stdin_ready(number);
        if let Some(status) = ended {
            self.container_ended(number, status);
        }
        if deleting {
            self.begin_delete(number, UNDO_TIMEOUT);
        }
    }

    fn restore_failed(&mut self, number: u32, refused: reply::Result) {
        let Some(container) = self.containers.get_mut(&number) else { return };
        let (id, runtime) = (container.id.clone(), container.runtime.clone());
        container.phase = Phase::Created;
        let Some(waiting) = &mut container.restore else { return };
        let refused = with_reason(refused, &Path::new(&waiting.from.work_path).join("restore.log"));
        waiting.failed = Some((refused, Instant::now() + UNDO_TIMEOUT + EMPTY_TIMEOUT));
        if self.run_delete(number, &id, &runtime, Purpose::Unrestore, UNDO_TIMEOUT).is_err() {
            self.look_at_unrestored(number);
        }
    }

    /// The runtime has forgotten it; its processes end now, if any are left.
    pub(crate) fn look_at_unrestored(&mut self, number: u32) {
        let Some(container) = self.containers.get(&number) else { return };
        let Some(waiting) = &container.restore else { return };
        let Some((refused, until)) = waiting.failed.clone() else { return };
        let group = if waiting.from.cgroup.is_empty() { &container.cgroup } else { &waiting.from.cgroup };
        if !group.trim_matches('/').is_empty() {
            let left = self.cgroups.kill_pass(group).unwrap_or(0);
            if left > 0 && Instant::now() < until {
                return self.after(EMPTY_PAUSE, Timer::Unrestored(number));
            }
            if let Err(error) = self.cgroups.remove(group, Duration::ZERO) {
                tell(&format!("cgroup of a failed restore of {}: {error}", container.id));
            }
        }
        self.unrestored(number, refused);
    }

    fn unrestored(&mut self, number: u32, refused: reply::Result) {
        self.unwatch_oom(number);
        let Some(container) = self.containers.get_mut(&number) else { return };
        (container.pid, container.start_time, container.pidfd) = (0, 0, None);
        (container.oom, container.terminal) = (None, None);
        container.cgroup.clear();
        container.freezer.clear();
        let Some(waiting) = &mut container.restore else { return };
        waiting.failed = None;
        waiting.drain();
        let (starting, signal) = (std::mem::take(&mut waiting.starting), waiting.signal.take());
        let deleting = !container.deleting.is_empty();
        for caller in starting {
            self.answer(caller, refused.clone());
        }
        if let Some(signal) = signal {
            self.end_waiting(number, signal);
        }
        if deleting {
            self.deleted(number, None);
        }
    }

    /// A signal for one that waits: it ends it, for there is no process to think otherwise.
    pub(crate) fn signal_waiting(&mut self, number: u32, signal: i32) {
        let Some(waiting) = self.containers.get_mut(&number).and_then(|c| c.restore.as_mut()) else { return };
        if waiting.starting.is_empty() {
            return self.end_waiting(number, signal);
        }
        waiting.signal = Some(signal);
        self.kill_runs(number, |purpose| matches!(purpose, Purpose::Restore { .. }));
    }

    fn end_waiting(&mut self, number: u32, signal: i32) {
        if let Some(container) = self.containers.get_mut(&number) {
            // With the ends its output is over.
            container.restore = None;
        }
        self.container_ended(number, ExitStatus::Signal(signal));
    }

    /// The deletion of one that waits.
    pub(crate) fn delete_waiting(&mut self, number: u32) {
        let Some(container) = self.containers.get(&number) else { return };
        let at_work = container.restore.as_ref().is_some_and(|waiting| !waiting.starting.is_empty());
        if at_work {
            self.kill_runs(number, |purpose| matches!(purpose, Purpose::Restore { .. }));
        } else {
            self.deleted(number, None);
        }
    }
}

/// The first of a process and its descendants that is not in the group of that name of the first one, in each hierarchy
/// where that has one.
fn outside(first: i32, name: &OsStr) -> Option<i32> {
    let groups = |pid: i32| -> Vec<(String, PathBuf)> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let line = |line: &str| {
            let mut fields = line.splitn(3, ':').skip(1);
            Some((fields.next()?.to_owned(), PathBuf::from(fields.next()?)))
        };
        text.lines().filter_map(line).collect()
    };
    let own: Vec<(String, PathBuf)> = groups(first)
        .into_iter()
        .filter_map(|(hierarchy, path)| {
            let group = path.ancestors().find(|group| group.file_name() == Some(name))?.to_owned();
            Some((hierarchy, group))
        })
        .collect();
    if own.is_empty() {
        return Some(first);
    }
    let mut processes = exec::children(first);
    while let Some(process) = processes.pop() {
        let is_out = |(hierarchy, path): &(String, PathBuf)| {
            own.iter().any(|(own, group)| own == hierarchy && !path.starts_with(group))
        };
        // One that has ended has none.
        if groups(process).iter().any(is_out) {
            return Some(process);
        }
        processes.extend(exec::children(process));
    }
    None
}

fn restored_reply(container: &Container) -> reply::Result {
    match container.phase {
        Phase::Running => reply::Result::Create(CreateReply {
            pid: container.pid,
            start_time: container.start_time,
            cgroup: container.cgroup.clone(),
        }),
        _ => failure(Kind::WrongState, format!("container {} is not in the created state", container.id)),
    }
}
