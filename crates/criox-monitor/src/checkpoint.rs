//! A checkpoint of a frozen container, by the OCI runtime and CRIU.
//!
//! CRIU lets the freezer go while it holds the processes by ptrace, and freezes again before it lets go of them: so the
//! processes run neither in between nor afterwards. One that is killed does not; then the container is thawed, and the
//! checkpoint has failed. What the runtime started is in a cgroup of its own, by which all of it is killed.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use criox_monitor_api::proto::{self, failure::Kind, reply};
use criox_sys::cgroup::{EnterHandle, FreezeState};
use rustix::fs::{Mode, OFlags};

use crate::client::{done, failure};
use crate::container::{Caller, Phase, Purpose, RuntimeRun};
use crate::freezer::Refusal;
use crate::monitor::{Monitor, Timer};
use crate::oci::{self, ExecStart};
use crate::tell;
use crate::verbs::{not_found, not_started, timeout};

/// How long what a runtime left may hold out against SIGKILL, and a freeze may take to be complete again.
const END_TIMEOUT: Duration = Duration::from_secs(2);
const END_PAUSE: Duration = Duration::from_millis(2);
/// How long a checkpoint that nobody wants any more may take to end by itself.
const GRACE: Duration = Duration::from_secs(2);
/// How much of CRIU's log is read, from its end, and told.
const MAX_LOG: u64 = 64 * 1024;
const MAX_TOLD: usize = 1024;

/// A checkpoint at work.
pub(crate) struct Checkpoint {
    caller: Caller,
    work_path: PathBuf,
    /// Where the runtime and CRIU are; empty where none could be made.
    group: String,
    /// The freeze was ended: when it is killed.
    kill_at: Option<Instant>,
    /// The runtime has ended: what it said, and when its leavings are given up.
    ended: Option<(Result<(), reply::Result>, Instant)>,
}

impl Monitor {
    pub(crate) fn checkpoint(&mut self, caller: Caller, request: &proto::Checkpoint) {
        if let Err(result) = self.try_checkpoint(caller, request) {
            self.answer(caller, result);
        }
    }

    fn try_checkpoint(&mut self, caller: Caller, request: &proto::Checkpoint) -> Result<(), reply::Result> {
        let id = &request.container_id;
        let number = self.find(id).ok_or_else(|| not_found(id))?;
        let container = self.containers.get(&number).ok_or_else(|| not_found(id))?;
        let refused = |text: String| failure(Kind::WrongState, text);
        if container.phase != Phase::Running || container.exit.is_some() {
            return Err(refused(format!("container {id} is not running")));
        }
        if container.updating {
            return Err(refused(format!("container {id} is being changed")));
        }
        self.freezer.begin_checkpoint(number).map_err(|refusal| {
            refused(match refusal {
                Refusal::NotFrozen => format!("container {id} is not frozen"),
                Refusal::AtWork => format!("container {id} is being checkpointed already"),
            })
        })?;
        let group = self.checkpoint_group(number);
        let started = self.run_checkpoint(number, request, group.as_ref().map(|(_, handle)| handle));
        if let Err(result) = started {
            if let Some((group, _)) = &group {
                drop(self.cgroups.remove(group, Duration::ZERO));
            }
            let steps = self.freezer.end_checkpoint(number);
            self.take_steps(steps);
            self.let_go(number);
            return Err(result);
        }
        let group = group.map(|(group, _)| group).unwrap_or_default();
        let work_path = request.work_path.clone().into();
        self.checkpoints.insert(number, Checkpoint { caller, work_path, group, kill_at: None, ended: None });
        Ok(())
    }

    fn run_checkpoint(
        &mut self,
        number: u32,
        request: &proto::Checkpoint,
        group: Option<&EnterHandle>,
    ) -> Result<(), reply::Result> {
        let container = self.containers.get(&number).ok_or_else(|| not_found(&request.container_id))?;
        let log = self.args.run_dir.join(format!("checkpoint-{number}.log"));
        let args = [
            "checkpoint".as_ref(),
            "--image-path".as_ref(),
            request.image_path.as_ref(),
            "--work-path".as_ref(),
            request.work_path.as_ref(),
            "--leave-running".as_ref(),
            "--file-locks".as_ref(),
            container.id.as_ref(),
        ];
        let start = ExecStart { cgroup: group, oom_score: 0, dies_with_monitor: true };
        let started =
            oci::start(&container.runtime, &log, &args, None, Some(start)).map_err(|e| not_started(&e))?;
        self.follow(
            RuntimeRun {
                process: started.process,
                stderr: started.stderr,
                log,
                pid_file: None,
                container: number,
                purpose: Purpose::Checkpoint,
                timed_out: false,
            },
            timeout(request.timeout_ms),
        );
        Ok(())
    }

    /// Below the monitor's own (v1: of that name, for the freezer has none), so that what it costs is not the pod's, and
    /// what a killed monitor leaves of it goes with that. Its end lets cAdvisor skip it.
    fn checkpoint_group(&self, number: u32) -> Option<(String, EnterHandle)> {
        let pid = i32::try_from(std::process::id()).ok()?;
        let own = self.cgroup_of(pid)?;
        // Where a monitor has no cgroup of its own, others are in it too.
        let group = format!("{}/criox-checkpoint-{pid}-{number}.mount", own.trim_end_matches('/'));
        let made = self.cgroups.create(&group, if self.cgroups.is_v2() { &[] } else { &["freezer"] });
        let opened = made.and_then(|()| self.cgroups.enter_handle(&group));
        match opened {
            Ok(handle) => Some((group, handle)),
            Err(error) => {
                drop(self.cgroups.remove(&group, Duration::ZERO));
                tell(&format!("a checkpoint runs in the monitor's own cgroup: {error}"));
                None
            }
        }
    }

    /// The freezer's path of a process, without a slash at its end.
    pub(crate) fn freezer_of(&self, process: &str) -> Option<String> {
        let text = std::fs::read_to_string(format!("/proc/{process}/cgroup")).ok()?;
        let controller = if self.cgroups.is_v2() { "" } else { "freezer" };
        crate::runtime_run::cgroup_in(&text, controller).map(|path| path.trim_end_matches('/').to_owned())
    }

    /// The freeze of a container is over, and its checkpoint of no use. CRIU has code and traps of its own in the
    /// container's processes: killed at an unlucky moment it leaves one of them to die of a SIGTRAP. So it may end first.
    pub(crate) fn abort_checkpoint(&mut self, container: u32) {
        let kill_at = Instant::now() + GRACE;
        if let Some(checkpoint) = self.checkpoints.get_mut(&container) {
            checkpoint.kill_at.get_or_insert(kill_at);
            self.at(kill_at, Timer::Checkpoint(container));
        }
    }

    /// Its time is over, or the container is to die.
    pub(crate) fn kill_checkpoint(&mut self, container: u32) {
        self.kill_runs(container, |purpose| matches!(purpose, Purpose::Checkpoint));
        self.kill_checkpoint_group(container);
    }

    /// How many processes were met.
    fn kill_checkpoint_group(&self, container: u32) -> usize {
        let group = self.checkpoints.get(&container).map_or("", |checkpoint| checkpoint.group.as_str());
        if group.is_empty() {
            return 0;
        }
        self.cgroups.kill_pass(group).unwrap_or_else(|error| {
            tell(&format!("could not end a checkpoint: {error}"));
            0
        })
    }

    /// The runtime has ended.
    pub(crate) fn checkpointed(&mut self, number: u32, result: Result<(), reply::Result>) {
        if let Some(checkpoint) = self.checkpoints.get_mut(&number) {
            let result =
                result.map_err(|refused| with_reason(refused, &checkpoint.work_path.join("dump.log")));
            checkpoint.ended = Some((result, Instant::now() + END_TIMEOUT));
        }
        self.look_at_checkpoint(number);
    }

    /// The answer is due when nothing of the checkpoint runs any more, and the container is as frozen as it was.
    pub(crate) fn look_at_checkpoint(&mut self, number: u32) {
        let now = Instant::now();
        let Some(checkpoint) = self.checkpoints.get(&number) else { return };
        if checkpoint.kill_at.is_some_and(|kill_at| kill_at <= now) {
            self.kill_checkpoint(number);
        }
        let Some((result, until)) = self.checkpoints.get(&number).and_then(|c| c.ended.clone()) else {
            return;
        };
        if self.kill_checkpoint_group(number) > 0 && now < until {
            return self.after(END_PAUSE, Timer::Checkpoint(number));
        }
        let frozen = self.containers.get(&number).map(|owner| self.cgroups.freeze_state(&owner.freezer));
        let result = match (result, frozen) {
            _ if !self.freezer.holds(number) => {
                failure(Kind::WrongState, "the freeze was ended before the checkpoint was complete")
            }
            (Err(refused), _) => refused,
            (Ok(()), Some(Ok(FreezeState::Frozen))) => done(),
            // Told to, and on the way.
            (Ok(()), Some(Ok(FreezeState::Freezing))) if now < until => {
                return self.after(END_PAUSE, Timer::Checkpoint(number));
            }
            (Ok(()), _) => failure(
                Kind::Runtime,
                "the OCI runtime left the container running, so that what it wrote is of another moment than the rest",
            ),
        };
        self.end_checkpoint(number, result);
    }

    fn end_checkpoint(&mut self, number: u32, result: reply::Result) {
        let Some(checkpoint) = self.checkpoints.remove(&number) else { return };
        if !checkpoint.group.is_empty()
            && let Err(error) = self.cgroups.remove(&checkpoint.group, Duration::ZERO)
        {
            tell(&format!("cgroup of a checkpoint: {error}"));
        }
        let steps = self.freezer.end_checkpoint(number);
        self.take_steps(steps);
        if !matches!(result, reply::Result::Done(_)) {
            self.let_go(number);
        }
        self.answer(checkpoint.caller, result);
    }
}

/// Adds CRIU's own words to a refusal: the runtime's are mostly that there are some.
pub(crate) fn with_reason(refused: reply::Result, log: &Path) -> reply::Result {
    match (refused, errors_in(log)) {
        (reply::Result::Failure(mut failed), Some(errors)) if failed.kind() == Kind::Runtime => {
            failed.message = format!("{} (CRIU: {errors})", failed.message);
            reply::Result::Failure(failed)
        }
        (refused, _) => refused,
    }
}

fn errors_in(log: &Path) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file: OwnedFd = rustix::fs::open(log, flags, Mode::empty()).ok()?;
    let mut file = File::from(file);
    let length = file.metadata().ok().filter(std::fs::Metadata::is_file)?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(MAX_LOG))).ok()?;
    let mut text = Vec::new();
    file.take(MAX_LOG).read_to_end(&mut text).ok()?;
    last_errors(&String::from_utf8_lossy(&text))
}

/// The last lines of the form `(00.098504) Error (criu/util.c:1534): what`, without their beginnings. What they name may
/// be the container's choice.
fn last_errors(log: &str) -> Option<String> {
    let mut errors: Vec<String> = Vec::new();
    let mut length = 0;
    for line in log.lines().rev() {
        let Some((_, error)) = line.split_once(") Error (") else { continue };
        let (_, what) = error.split_once("): ").unwrap_or(("", error));
        // Always there without CAP_SYS_RESOURCE, and harmless.
        if what.contains("Can't setup RLIMIT_NOFILE") {
            continue;
        }
        let what: String = what.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        length += what.len();
        if length > MAX_TOLD {
            break;
        }
        errors.push(what.trim().to_owned());
    }
    errors.reverse();
    (!errors.is_empty()).then(|| errors.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crius_errors_are_told_without_what_is_no_error() {
        let log = "(00.000001) Version: 4.2\n\
            (00.098504) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n\
            (00.198504) Error (criu/sk-inet.c:191): inet: Connected TCP socket, consider using --tcp-established option.\n\
            (00.2) Warn  (criu/mount.c:1267): mnt: odd\n\
            (00.298504) Error (criu/cr-dump.c:2098): Dumping FAILED\u{1b}[31m.\n";
        assert_eq!(
            last_errors(log).as_deref(),
            Some(
                "inet: Connected TCP socket, consider using --tcp-established option.; Dumping FAILED [31m."
            )
        );
        assert_eq!(last_errors("(00.1) Warn (a): b\n"), None);
        assert_eq!(last_errors(""), None);
        let long =
            format!("(0) Error (a:1): first\n(0) Error (a:1): {}\n(0) Error (a:1): last\n", "x".repeat(2000));
        assert_eq!(last_errors(&long).as_deref(), Some("last"));
    }

    #[test]
    fn a_log_that_is_no_file_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("dump.log");
        std::os::unix::fs::symlink("/etc/passwd", &link).unwrap();
        assert_eq!(errors_in(&link), None);
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert_eq!(errors_in(&fifo), None);
    }
}
