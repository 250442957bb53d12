//! One per pod: owns the pod's processes, their streams, logs and exit codes.
//!
//! Started by the daemon with the listening socket as descriptor 0 and its own log as descriptor 2; outlives it.
//! One epoll loop ([`monitor`]); log files are written by a thread of their own ([`log_writer`]).

mod args;
mod attach;
mod checkpoint;
mod client;
mod clock;
mod console;
mod container;
mod exec;
mod exits;
mod freeze;
mod freezer;
mod held;
mod init;
mod journald;
mod log;
mod log_writer;
mod monitor;
mod namespaces;
mod oci;
mod oom;
mod output;
mod pipes;
mod restore;
mod runtime_run;
mod seccomp;
mod side_process;
mod stream;
mod update;
mod verbs;

use std::io::Write;
use std::process::ExitCode;

use criox_sys::process;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1).peekable();
    match args.peek() {
        Some(first) if first == init::ARGUMENT => return ExitCode::from(init::run(args.skip(1))),
        Some(first) if first == namespaces::ARGUMENT => return ExitCode::from(namespaces::run()),
        _ => {}
    }
    let args = match args::parse(args) {
        Ok(args) => args,
        Err(message) => {
            tell(&message);
            return ExitCode::from(2);
        }
    };
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&format!("monitor ends: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn run(args: args::Args) -> std::io::Result<()> {
    process::keep_allocator_small();
    process::become_subreaper()?;
    process::set_name(c"criox-monitor")?;
    // Refused without CAP_SYS_RESOURCE: then the kernel may take the monitor like any process.
    let score = std::fs::OpenOptions::new().write(true).open("/proc/self/oom_score_adj");
    let _ = score.and_then(|mut file| file.write_all(b"-998"));
    let mut monitor = monitor::Monitor::new(args)?;
    let result = monitor.run();
    monitor.thaw_all();
    result
}

/// A line for the monitor's own log.
pub(crate) fn tell(message: &str) {
    let time = log::timestamp(clock::now());
    let line = format!("{} {}\n", String::from_utf8_lossy(&time), message.escape_debug());
    let _ = std::io::stderr().write_all(line.as_bytes());
}
