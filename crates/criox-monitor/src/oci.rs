//! The OCI runtime's command line, in the dialect that runc and crun share.

use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use criox_monitor_api::proto::Runtime;
use criox_sys::process::{Pidfd, SpawnError, SpawnSpec};

/// How much of a runtime's log is read for its error.
const MAX_LOG: u64 = 64 * 1024;

/// Starts the runtime with a session of its own and its global options; `place` sets descriptors and cgroup.
pub(crate) fn start<'a>(
    runtime: &'a Runtime,
    log: &Path,
    args: &[&OsStr],
    stdio: Option<[BorrowedFd<'a>; 3]>,
    cgroup: Option<&'a criox_sys::cgroup::EnterHandle>,
) -> Result<Pidfd, SpawnError> {
    build(runtime, log, args, stdio, cgroup)
        .map_err(|source| SpawnError {
            program: runtime.path.clone(),
            step: criox_sys::process::SpawnStep::Execve,
            source,
        })?
        .spawn()
}

fn build<'a>(
    runtime: &'a Runtime,
    log: &Path,
    args: &[&OsStr],
    stdio: Option<[BorrowedFd<'a>; 3]>,
    cgroup: Option<&'a criox_sys::cgroup::EnterHandle>,
) -> std::io::Result<SpawnSpec<'a>> {
    let mut spec = SpawnSpec::new(&runtime.path)?;
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
    if let Some(handle) = cgroup {
        spec.cgroup(handle);
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
    use std::io::Read;
    let mut text = Vec::new();
    let read = std::fs::File::open(log).and_then(|file| file.take(MAX_LOG).read_to_end(&mut text));
    let _ = std::fs::remove_file(log);
    read.ok()?;
    last_error(&String::from_utf8_lossy(&text))
}

fn last_error(log: &str) -> Option<String> {
    let lines = log.lines().filter(|line| !line.trim().is_empty());
    let parse = |line: &str| match serde_json::from_str::<LogLine>(line) {
        Ok(line) if matches!(line.level.as_str(), "error" | "fatal" | "panic") => Some(line.msg),
        Ok(_) => None,
        Err(_) => Some(line.to_owned()),
    };
    lines.rev().find_map(parse).filter(|message| !message.is_empty())
}

/// Reads a PID file and removes it.
pub(crate) fn take_pid(path: &PathBuf) -> Option<i32> {
    let text = std::fs::read_to_string(path).ok();
    let _ = std::fs::remove_file(path);
    text?.trim().parse().ok().filter(|pid| *pid > 1)
}

/// How `exec --cgroup` names the sub-group on v1. runc must be told the hierarchy, or it looks for the group in
/// all; crun (1.8.1) then leaves the process in the groups it was started in, so we start it in the right ones.
pub(crate) fn names_hierarchy(runtime: &Runtime) -> bool {
    Path::new(&runtime.path).file_name().is_some_and(|name| name.to_string_lossy().contains("runc"))
}

#[cfg(test)]
mod tests {
    use super::last_error;

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
            ("panic: runtime error\n", Some("panic: runtime error")),
            ("{\"level\":\"error\",\"msg\":\"\"}", None),
        ] {
            assert_eq!(last_error(log).as_deref(), expected, "{log}");
        }
    }
}
