//! The OCI runtime's command line, in the dialect that runc and crun share.

use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use criox_monitor_api::proto::Runtime;
use criox_monitor_api::proto::runtime::Flavor;
use criox_sys::process::{Pidfd, SpawnError, SpawnSpec, SpawnStep};

/// How much of a runtime's log is read for its error.
const MAX_LOG: u64 = 64 * 1024;
/// How much of what it says elsewhere.
const MAX_SAID: usize = 2 * 1024;

/// crun executes itself a second time through a read-only mount of its binary, so that no container can write to
/// it; with this set, and executed through such a mount, it leaves that out (libcrun, cloned_binary.c).
const CLONED: &str = "_LIBCONTAINER_CLONED_BINARY=1";

/// A runtime that has been started, and what it may say besides its log where its streams are not the container's.
pub(crate) struct Started {
    pub(crate) process: Pidfd,
    pub(crate) stderr: Option<OwnedFd>,
}

/// What the runtime is born with that starts an exec or a restore, for its process to inherit; or a checkpoint.
pub(crate) struct ExecStart<'a> {
    pub(crate) cgroup: Option<&'a criox_sys::cgroup::EnterHandle>,
    /// crun sets none for an exec, and the monitor's own is far below that of any container.
    pub(crate) oom_score: i32,
    /// It must not go on when nobody is there to end it.
    pub(crate) dies_with_monitor: bool,
}

/// Starts the runtime with a session of its own and its global options. Without `stdio` its standard error is kept.
pub(crate) fn start<'a>(
    runtime: &'a Runtime,
    log: &Path,
    args: &[&OsStr],
    stdio: Option<[BorrowedFd<'a>; 3]>,
    exec: Option<ExecStart<'a>>,
) -> Result<Started, SpawnError> {
    let mount = if runtime.flavor() == Flavor::Crun { read_only_program(&runtime.path) } else { None };
    let program = match &mount {
        Some(mount) => format!("/proc/self/fd/{}", mount.as_raw_fd()),
        None => runtime.path.clone(),
    };
    let failed = |source| SpawnError { program: runtime.path.clone(), step: SpawnStep::Descriptors, source };
    let said = if stdio.is_none() { Some(side_pipe().map_err(failed)?) } else { None };
    let mut spec = build(runtime, &program, log, args, stdio).map_err(failed)?;
    if let Some(exec) = exec {
        spec.oom_score_adj(exec.oom_score);
        if exec.dies_with_monitor {
            spec.death_signal(9);
        }
        if let Some(cgroup) = exec.cgroup {
            spec.cgroup(cgroup);
        }
    }
    if mount.is_some() {
        spec.name(&runtime.path).and_then(|spec| spec.env(CLONED)).map_err(failed)?;
    }
    if let Some((_, end)) = &said {
        spec.fd(end.as_fd(), 2);
    }
    let process = spec.spawn().map_err(|error| SpawnError { program: runtime.path.clone(), ..error })?;
    drop(spec);
    Ok(Started { process, stderr: said.map(|(stderr, _)| stderr) })
}

/// Neither end waits: nobody reads before the runtime has ended.
fn side_pipe() -> std::io::Result<(OwnedFd, OwnedFd)> {
    let flags = rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK;
    Ok(rustix::pipe::pipe_with(flags)?)
}

/// What the runtime wrote to its standard error, or that of the container which it was to be; only what is there.
pub(crate) fn said(stderr: &OwnedFd) -> Option<String> {
    let mut text = Vec::with_capacity(MAX_SAID);
    rustix::io::ioctl_fionbio(stderr, true).ok()?;
    rustix::io::read(stderr, rustix::buffer::spare_capacity(&mut text)).ok()?;
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    (!text.is_empty()).then_some(text)
}

/// The binary through a read-only mount of its own; `None` where there is no such thing, as for a script, whose
/// interpreter could not open it.
fn read_only_program(path: &str) -> Option<OwnedFd> {
    let mut magic = [0; 4];
    std::fs::File::open(path).ok()?.read_exact(&mut magic).ok()?;
    if magic != *b"\x7fELF" {
        return None;
    }
    crate::init::read_only(Path::new(path)).ok()
}

fn build<'a>(
    runtime: &'a Runtime,
    program: &str,
    log: &Path,
    args: &[&OsStr],
    stdio: Option<[BorrowedFd<'a>; 3]>,
) -> std::io::Result<SpawnSpec<'a>> {
    let mut spec = SpawnSpec::new(program)?;
    if !runtime.root.is_empty() {
        spec.arg("--root")?.arg(&runtime.root)?;
    }
    spec.arg("--log")?.arg(log)?.arg("--log-format")?.arg("json")?;
    if runtime.systemd_cgroup {
        spec.arg("--systemd-cgroup")?;
    }
    for arg in args {
        spec.arg(arg)?;
    }
    for pair in &runtime.env {
        spec.env(pair)?;
    }
    for (number, fd) in (0..).zip(stdio.into_iter().flatten()) {
        spec.fd(fd, number);
    }
    spec.new_session();
    Ok(spec)
}

#[derive(serde::Deserialize)]
struct LogLine {
    #[serde(default)]
    level: String,
    #[serde(default)]
    msg: String,
}

/// The last error of a runtime's JSON log, which is removed. Lines that are no JSON count as errors: a panic.
pub(crate) fn take_error(log: &Path) -> Option<String> {
    let mut text = Vec::new();
    let read = std::fs::File::open(log).and_then(|file| file.take(MAX_LOG).read_to_end(&mut text));
    let _ = std::fs::remove_file(log);
    read.ok()?;
    last_error(&String::from_utf8_lossy(&text))
}

/// runc and crun 1.8 write a record a line, crun 1.28 spreads one over several.
fn last_error(log: &str) -> Option<String> {
    let mut last = None;
    let mut rest = log.trim_start();
    while !rest.is_empty() {
        let mut records = serde_json::Deserializer::from_str(rest).into_iter::<LogLine>();
        let message = match records.next() {
            Some(Ok(record)) => {
                rest = &rest[records.byte_offset()..];
                matches!(record.level.as_str(), "error" | "fatal" | "panic").then_some(record.msg)
            }
            _ => {
                let (line, after) = rest.split_once('\n').unwrap_or((rest, ""));
                rest = after;
                Some(line.trim_end().to_owned())
            }
        };
        rest = rest.trim_start();
        last = message.filter(|message| !message.is_empty()).or(last);
    }
    last
}

/// Reads a PID file and removes it.
pub(crate) fn take_pid(path: &PathBuf) -> Option<i32> {
    let text = std::fs::read_to_string(path).ok();
    let _ = std::fs::remove_file(path);
    text?.trim().parse().ok().filter(|pid| *pid > 1)
}

/// How an exec's process gets into its own group.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ExecGroup {
    /// By this value of `exec --cgroup`.
    Flag(String),
    /// The runtime is started in it; this value of `exec --cgroup` keeps it from leaving.
    Inherited(String),
    /// Moved by us when the runtime has told its number.
    Moved,
}

impl ExecGroup {
    /// `name` is that of the group below the container's. On v1, where only the freezer's hierarchy has it, runc
    /// must be told that hierarchy, or it looks for the group in all. crun moves the process in those hierarchies
    /// where a group of the name is; the first move after a while waits for the kernel's RCU, 10 ms and more, and
    /// we have moved the runtime already: a name that is nowhere spares it.
    pub(crate) fn of(runtime: &Runtime, v2: bool, name: &str) -> Self {
        match (runtime.exec_cgroup_flag, v2, runtime.flavor()) {
            (true, true, _) => Self::Flag(name.to_owned()),
            (true, false, Flavor::Runc) => Self::Flag(format!("freezer:{name}")),
            (true, false, Flavor::Crun) => Self::Inherited(format!("{name}.none")),
            _ => Self::Moved,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_of_a_runtime_log_is_told() {
        for (log, expected) in [
            ("", None),
            (r#"{"msg":"cannot find `x`","level":"error","time":"t"}"#, Some("cannot find `x`")),
            (
                "{\"level\":\"warning\",\"msg\":\"w\"}\n{\"level\":\"error\",\"msg\":\"first\"}\n{\"level\":\"error\",\"msg\":\"last\"}\n{\"level\":\"debug\",\"msg\":\"d\"}\n",
                Some("last"),
            ),
            ("{\"level\":\"info\",\"msg\":\"i\"}", None),
            (
                "{\n  \"msg\": \"not found\",\n  \"level\": \"error\",\n  \"time\": \"t\"\n}\n{\n  \"level\": \"debug\",\n  \"msg\": \"d\"\n}\n",
                Some("not found"),
            ),
            ("panic: runtime error\n", Some("panic: runtime error")),
            ("{\"level\":\"error\",\"msg\":\"\"}", None),
        ] {
            assert_eq!(last_error(log).as_deref(), expected, "{log}");
        }
    }

    #[test]
    fn an_exec_gets_into_its_group_as_the_runtime_can() {
        let check = |flag: bool, flavor: Flavor, v2: bool| {
            let runtime = Runtime { exec_cgroup_flag: flag, flavor: flavor.into(), ..Default::default() };
            ExecGroup::of(&runtime, v2, "e")
        };
        assert_eq!(check(true, Flavor::Runc, true), ExecGroup::Flag("e".into()));
        assert_eq!(check(true, Flavor::Runc, false), ExecGroup::Flag("freezer:e".into()));
        assert_eq!(check(true, Flavor::Crun, false), ExecGroup::Inherited("e.none".into()));
        assert_eq!(check(true, Flavor::Other, false), ExecGroup::Moved);
        assert_eq!(check(false, Flavor::Crun, true), ExecGroup::Moved);
    }
}
