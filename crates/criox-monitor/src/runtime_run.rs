//! What follows when a run of the OCI runtime, or a container's process, has ended.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use criox_monitor_api::proto::{CreateReply, ExitFacts, Exited, event, failure::Kind, reply};
use criox_sys::process::{self, ExitStatus, Pidfd};

use crate::client::{done, failure};
use crate::console::Console;
use crate::container::{Caller, Phase, Purpose, RuntimeRun};
use crate::log::Stream;
use crate::monitor::{Monitor, Timer};
use crate::oom::OomWatch;
use crate::stream::Output;
use crate::{clock, exec, exits, oci, tell};

/// For undoing a failed creation.
const UNDO_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an exit waits for its last output to be in the log.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a group may hold out against SIGKILL before the deletion of its container fails.
const EMPTY_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two looks at a dying container.
const EMPTY_PAUSE: Duration = Duration::from_millis(2);
/// How often groups of execs that left processes are tried.
const LINGER: Duration = Duration::from_secs(5);

impl Monitor {
    /// The runtime's time is over, if it still runs.
    pub(crate) fn runtime_late(&mut self, pid: i32) {
        let Some(run) = self.runtimes.get_mut(&pid) else { return };
        run.timed_out = true;
        exec::kill_tree(pid);
        drop(run.process.send_signal(9));
        let container = run.container;
        if matches!(run.purpose, Purpose::Checkpoint) {
            self.kill_checkpoint(container);
        }
    }

    /// Ends what the runtime is doing for a container; what follows then is as when its time is over.
    pub(crate) fn kill_runs(&self, container: u32, which: impl Fn(&Purpose) -> bool) {
        for run in self.runtimes.values().filter(|run| run.container == container && which(&run.purpose)) {
            exec::kill_tree(run.process.pid());
            drop(run.process.send_signal(9));
        }
    }

    /// Nobody wants a container any more that is being created: its runtime may hang. What its end leaves is undone as
    /// after any failure, and [`Monitor::forget`] answers who asked for it.
    pub(crate) fn end_creation(&mut self, number: u32) {
        // Its log file is not open yet: a disk that hangs holds up nobody.
        if let Some(waiting) = self.creates.remove(&number) {
            self.forget(number, true);
            return self.answer(waiting.caller, given_up());
        }
        let creates =
            |run: &&mut RuntimeRun| run.container == number && matches!(run.purpose, Purpose::Create { .. });
        if let Some(run) = self.runtimes.values_mut().find(creates) {
            exec::kill_tree(run.process.pid());
            drop(run.process.send_signal(9));
        }
    }

    fn is_given_up(&self, run: &RuntimeRun) -> bool {
        matches!(run.purpose, Purpose::Create { .. })
            && self.containers.get(&run.container).is_some_and(|container| !container.deleting.is_empty())
    }

    pub(crate) fn runtime_ended(&mut self, run: RuntimeRun, status: ExitStatus) {
        let pid = run.pid_file.as_ref().and_then(oci::take_pid);
        let error = oci::take_error(&run.log);
        // Nothing of the container runs yet when its creation fails: what its pipe holds is the runtime's.
        let stderr = run.stderr.as_ref().or(match &run.purpose {
            Purpose::Create { pipes, .. } => pipes.last().map(|(fd, _)| fd),
            Purpose::Restore { .. } => {
                let container = self.containers.get(&run.container);
                container.and_then(|container| container.restore.as_ref()?.stderr())
            }
            _ => None,
        });
        let result = match status {
            _ if run.timed_out => {
                Err(failure(Kind::RuntimeTimeout, "the OCI runtime did not end in time and was killed"))
            }
            ExitStatus::Code(0) => Ok(pid),
            _ if self.is_given_up(&run) => Err(given_up()),
            _ => {
                let text = error
                    .or_else(|| stderr.and_then(oci::said))
                    .unwrap_or_else(|| format!("the OCI runtime failed ({status:?}) and told no error"));
                Err(failure(Kind::Runtime, text))
            }
        };
        match run.purpose {
            Purpose::Create { caller, pipes, console } => {
                let result = result.and_then(|pid| self.created(run.container, pid, pipes, console));
                self.finish_create(run.container, caller, result);
            }
            Purpose::Start { caller } => {
                let result = result.map_or_else(|failure| failure, |_| self.started(run.container));
                self.answer(caller, result);
            }
            Purpose::Exec { exec_id, console, process_file } => {
                drop(std::fs::remove_file(process_file));
                self.exec_started(run.container, &exec_id, result, console);
            }
            Purpose::Checkpoint => self.checkpointed(run.container, result.map(drop)),
            Purpose::Restore { console } => self.restored(run.container, result, console),
            Purpose::Unrestore => self.look_at_unrestored(run.container),
            Purpose::Update(change) => self.updated(run.container, *change, result.err()),
            Purpose::Delete => self.deleted(run.container, result.err()),
            Purpose::Undo { caller, failure } => {
                self.forget(run.container, true);
                self.answer(caller, failure);
            }
        }
    }

    pub(crate) fn created(
        &mut self,
        number: u32,
        pid: Option<i32>,
        pipes: Vec<(OwnedFd, Stream)>,
        console: Option<Console>,
    ) -> Result<CreateReply, reply::Result> {
        let broken =
            |what: &str| failure(Kind::Runtime, format!("the OCI runtime reported success, but {what}"));
        let pid = pid.ok_or_else(|| broken("wrote no process number"))?;
        let pidfd = Pidfd::open(pid).map_err(|_| broken("its process has ended already"))?;
        let start_time = process::start_time(pid).map_err(|_| broken("its process has ended already"))?;
        let cgroup = self.cgroup_of(pid).unwrap_or_default();
        let freezer = self.freezer_of(&pid.to_string()).unwrap_or_default();
        let internal = |error: std::io::Error| {
            failure(Kind::Internal, format!("could not take the container's streams: {error}"))
        };
        let mut outputs: Vec<Output> =
            pipes.into_iter().map(|(fd, stream)| Output::new(number, fd, stream)).collect();
        let Some(container) = self.containers.get_mut(&number) else { return Err(broken("it is forgotten")) };
        if let Some(console) = console {
            let master = console.receive().map_err(internal)?;
            outputs.push(Output::new(number, master.try_clone().map_err(internal)?, Stream::Stdout));
            container.terminal = Some(master);
        }
        container.oom = OomWatch::open(&self.cgroups, &cgroup).ok();
        (container.pid, container.start_time, container.pidfd) = (pid, start_time, Some(pidfd));
        container.cgroup.clone_from(&cgroup);
        container.freezer = freezer;
        container.phase = Phase::Created;
        for output in outputs {
            self.add_output(output).map_err(internal)?;
        }
        self.watch_oom(number);
        Ok(CreateReply { pid, start_time, cgroup })
    }

    fn finish_create(&mut self, number: u32, caller: Caller, result: Result<CreateReply, reply::Result>) {
        match result {
            Ok(created) => {
                self.answer(caller, reply::Result::Create(created));
                let pid = self.containers.get(&number).map_or(0, |container| container.pid);
                if let Some(code) = self.strays.remove(&pid) {
                    self.container_ended(number, ExitStatus::Code(code));
                }
                self.delete_created(number);
            }
            Err(failure) => {
                let Some(container) = self.containers.get_mut(&number) else { return };
                container.phase = Phase::Creating;
                let (id, runtime) = (container.id.clone(), container.runtime.clone());
                let undo = Purpose::Undo { caller, failure: failure.clone() };
                if self.run_delete(number, &id, &runtime, undo, UNDO_TIMEOUT).is_err() {
                    self.forget(number, true);
                    self.answer(caller, failure);
                }
            }
        }
    }

    /// It was created a moment before it was to be given up.
    fn delete_created(&mut self, number: u32) {
        let Some(container) = self.containers.get(&number).filter(|one| !one.deleting.is_empty()) else {
            return;
        };
        let (id, runtime) = (container.id.clone(), container.runtime.clone());
        if let Err(result) = self.run_delete(number, &id, &runtime, Purpose::Delete, UNDO_TIMEOUT) {
            self.deleted(number, Some(result));
        }
    }

    /// As `/proc/<pid>/cgroup` names it: the v2 path, or that of the memory hierarchy.
    pub(crate) fn cgroup_of(&self, pid: i32) -> Option<String> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        cgroup_in(&text, if self.cgroups.is_v2() { "" } else { "memory" }).map(str::to_owned)
    }

    fn started(&mut self, number: u32) -> reply::Result {
        let Some(container) = self.containers.get_mut(&number) else {
            return failure(Kind::NotFound, "the container was deleted meanwhile");
        };
        container.started_at = clock::now();
        if container.phase == Phase::Created {
            container.phase = Phase::Running;
        }
        done()
    }

    /// The first process has ended and been reaped.
    pub(crate) fn container_ended(&mut self, number: u32, status: ExitStatus) {
        self.let_go(number);
        self.kill_checkpoint(number);
        let Some(container) = self.containers.get_mut(&number) else { return };
        let killed = container.oom.as_ref().is_some_and(|oom| oom.kills() > 0);
        container.exit = Some(ExitFacts {
            exit_code: status.code(),
            signal: status.signal().unwrap_or(0),
            oom_killed: killed && status.code() != 0,
            finished_at: clock::now(),
        });
        container.settling = Some(Instant::now() + SETTLE_TIMEOUT);
        // Without a PID namespace of its own others may live on. The root group is refused.
        if !container.cgroup.is_empty()
            && let Err(error) = self.cgroups.kill_pass(&container.cgroup)
        {
            tell(&format!("could not end what is left of {}: {error}", container.id));
        }
        self.after(SETTLE_TIMEOUT, Timer::Settle(number));
        self.settle(number);
    }

    /// Reports an exit once its output is in the log, or has had its time.
    pub(crate) fn settle(&mut self, number: u32) {
        let Some(until) = self.containers.get(&number).and_then(|container| container.settling) else {
            return;
        };
        if !self.outputs_of(number).is_empty() {
            self.drain_outputs(number, true);
        }
        let clean = self.outputs_of(number).is_empty();
        let Some(container) = self.containers.get_mut(&number) else { return };
        if container.settling.is_none() {
            return;
        }
        if (!clean || container.queued > 0) && Instant::now() < until {
            return self.writer.hurry();
        }
        container.settling = None;
        container.phase = Phase::Exited;
        self.close_stdin(number);
        self.output_over(number);
        let Some(container) = self.containers.get(&number) else { return };
        let (id, exit) = (container.id.clone(), container.exit);
        let Some(facts) = exit else { return };
        let exit_dir = self.args.exit_dir.as_deref();
        if let Err(error) = exits::write(&self.args.run_dir, exit_dir, &id, &facts) {
            tell(&format!("could not write the exit record of {id}: {error}"));
        }
        self.publish(event::Kind::Exited(Exited { container_id: id, exit }));
    }

    /// The runtime's `delete` has ended; the answer waits until nothing lives in the cgroup.
    pub(crate) fn deleted(&mut self, number: u32, refused: Option<reply::Result>) {
        let Some(container) = self.containers.get_mut(&number) else { return };
        let now = Instant::now();
        let until = *container.delete_until.get_or_insert(now + EMPTY_TIMEOUT);
        let rootless = container.cgroup.trim_matches('/').is_empty();
        let result = match refused {
            // runc fails for a container whose state is gone: what counts is that nothing lives.
            Some(result) if container.exit.is_none() => result,
            _ if rootless => done(),
            _ => match self.cgroups.kill_pass(&container.cgroup) {
                Ok(0) => {
                    drop(self.cgroups.remove(&container.cgroup, Duration::ZERO));
                    done()
                }
                Ok(_) if now < until => return self.after(EMPTY_PAUSE, Timer::Delete(number)),
                Ok(left) => {
                    let text =
                        format!("{left} processes of {} don't end: they wait in the kernel", container.id);
                    failure(Kind::Internal, text)
                }
                Err(error) => failure(Kind::Internal, error.to_string()),
            },
        };
        container.delete_until = None;
        let callers = std::mem::take(&mut container.deleting);
        if matches!(result, reply::Result::Done(_)) {
            self.forget_deleted(number);
        }
        for caller in callers {
            self.answer(caller, result.clone());
        }
    }

    /// A container deleted while it ran still has its exit reported.
    fn forget_deleted(&mut self, number: u32) {
        self.reap_all();
        if let Some(container) = self.containers.get_mut(&number)
            && container.settling.is_some()
        {
            container.settling = Some(Instant::now());
            self.settle(number);
        }
        self.forget(number, false);
    }

    pub(crate) fn linger(&mut self, number: u32, cgroup: String) {
        let Some(container) = self.containers.get_mut(&number) else { return };
        if container.lingering.is_empty() {
            self.after(LINGER, Timer::Linger(number));
        }
        if let Some(container) = self.containers.get_mut(&number) {
            container.lingering.push(cgroup);
        }
    }

    pub(crate) fn remove_lingering(&mut self, number: u32) {
        let Some(container) = self.containers.get_mut(&number) else { return };
        let cgroups = &self.cgroups;
        container.lingering.retain(|cgroup| cgroups.remove(cgroup, Duration::ZERO).is_err());
        if !container.lingering.is_empty() {
            self.after(LINGER, Timer::Linger(number));
        }
    }
}

/// What the creator of a container is told that was deleted meanwhile.
fn given_up() -> reply::Result {
    failure(Kind::WrongState, "it was deleted while it was being created")
}

/// The path of one hierarchy in the text of `/proc/<pid>/cgroup` (cgroups(7)); an empty name is v2.
pub(crate) fn cgroup_in<'a>(text: &'a str, controller: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, names, path) = (fields.next()?, fields.next()?, fields.next()?);
        names.split(',').any(|name| name == controller).then_some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::cgroup_in;

    #[test]
    fn a_process_has_one_path_a_hierarchy() {
        let text = "6:freezer:/f\n4:memory:/pods/a:b\n2:cpu,cpuacct:/c\n1:name=systemd:/s\n0::/u\n";
        for (controller, path) in [("memory", "/pods/a:b"), ("cpuacct", "/c"), ("", "/u"), ("freezer", "/f")]
        {
            assert_eq!(cgroup_in(text, controller), Some(path));
        }
        assert_eq!(cgroup_in(text, "pids"), None);
    }
}
