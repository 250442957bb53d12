//! Kills a daemon at its Nth state-changing system call, counted over all its threads, before the call is made.
//!
//! strace counts per thread, and would go on with the daemon's children. This tracer (ptrace(2)) follows threads only.
//! It is a process of its own: whoever traces a process is told of its end first, and the test wants to be told too.

use std::ffi::OsString;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tempfile::TempDir;
use testkit::Result;

use crate::faults::wrapped;

/// The first argument of a process that traces.
const TRACE: &str = "--trace";

/// How a process is started so that its calls are counted.
#[derive(Debug)]
pub(crate) struct Tracer {
    count: PathBuf,
    _dir: TempDir,
}

impl Tracer {
    /// Counts into a file of its own, not the daemon's: a look for leftovers would find a tracer with its directory.
    pub(crate) fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("criox-count-").tempdir()?;
        Ok(Self { count: dir.path().join("calls"), _dir: dir })
    }

    /// The same command, to be killed at the Nth call; at none if it is 0.
    pub(crate) fn command(&self, inner: &Command, kill_at: u64) -> Result<Command> {
        match std::fs::remove_file(&self.count) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let mut command = Command::new("sh");
        // The tracer makes the file when it is ready.
        let script = "\"$0\" --trace $$ \"$1\" \"$2\" & until [ -e \"$2\" ]; do sleep 0.01; done; shift 2; exec \"$@\"";
        command.args(["-c", script]).arg(std::env::current_exe()?).arg(kill_at.to_string()).arg(&self.count);
        Ok(wrapped(command, inner))
    }

    /// Calls so far, and the name of the last one.
    pub(crate) fn counted(&self) -> Result<(u64, String)> {
        let text = std::fs::read_to_string(&self.count)?;
        let mut words = text.split_whitespace();
        let count = words.next().map_or(Ok(0), str::parse)?;
        Ok((count, words.next().unwrap_or_default().to_owned()))
    }
}

/// The tracer's `main`, when this process is one: `--trace PID N FILE`.
pub(crate) fn main() -> Option<ExitCode> {
    let args: Vec<OsString> = std::env::args_os().collect();
    let [_, word, pid, kill_at, file] = args.as_slice() else { return None };
    if word != TRACE {
        return None;
    }
    let number = |text: &OsString| text.to_str().and_then(|text| text.parse::<i32>().ok());
    let (Some(pid), Some(kill_at)) = (number(pid), number(kill_at)) else { return Some(ExitCode::from(2)) };
    Some(match trace(Pid::from_raw(pid), u64::try_from(kill_at).unwrap_or(0), Path::new(file)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the tracer failed: {error}");
            ExitCode::FAILURE
        }
    })
}

fn trace(process: Pid, kill_at: u64, file: &Path) -> Result {
    let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_TRACEEXEC;
    ptrace::seize(process, options)?;
    ptrace::interrupt(process)?;
    let file = std::fs::OpenOptions::new().write(true).create_new(true).open(file)?;
    let mut count = 0;
    loop {
        let (thread, signal) = match waitpid(None, Some(WaitPidFlag::__WALL)) {
            Ok(WaitStatus::PtraceSyscall(thread)) => {
                if let Some(name) = entered(thread) {
                    count += 1;
                    file.write_all_at(format!("{count:8} {name:16}").as_bytes(), 0)?;
                    if count == kill_at {
                        kill(process, Signal::SIGKILL)?;
                        continue;
                    }
                }
                (thread, None)
            }
            Ok(WaitStatus::PtraceEvent(thread, _, event)) => {
                if event == libc::PTRACE_EVENT_EXEC {
                    // What came before was the shell's.
                    count = 0;
                }
                (thread, None)
            }
            Ok(WaitStatus::Stopped(thread, signal)) => (thread, Some(signal)),
            Ok(_) => continue,
            Err(Errno::ECHILD) => return Ok(()),
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        };
        match ptrace::syscall(thread, signal) {
            // It has been killed meanwhile.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether this machine's registers are known here.
pub(crate) const SUPPORTED: bool = cfg!(target_arch = "x86_64");

/// The name of the state-changing call that a stopped thread is about to make.
#[cfg(target_arch = "x86_64")]
fn entered(thread: Pid) -> Option<&'static str> {
    let registers = ptrace::getregs(thread).ok()?;
    // Before a call the kernel has this in the place of the result.
    let entry = registers.rax.cast_signed() == -i64::from(libc::ENOSYS);
    let number = i64::try_from(registers.orig_rax).ok()?;
    CALLS.iter().find(|(call, _)| entry && *call == number).map(|(_, name)| *name)
}

#[cfg(not(target_arch = "x86_64"))]
fn entered(_: Pid) -> Option<&'static str> {
    None
}

#[cfg(target_arch = "x86_64")]
const CALLS: &[(i64, &str)] = &[
    (libc::SYS_rename, "rename"),
    (libc::SYS_renameat, "renameat"),
    (libc::SYS_renameat2, "renameat2"),
    (libc::SYS_link, "link"),
    (libc::SYS_linkat, "linkat"),
    (libc::SYS_symlink, "symlink"),
    (libc::SYS_symlinkat, "symlinkat"),
    (libc::SYS_unlink, "unlink"),
    (libc::SYS_unlinkat, "unlinkat"),
    (libc::SYS_rmdir, "rmdir"),
    (libc::SYS_mkdir, "mkdir"),
    (libc::SYS_mkdirat, "mkdirat"),
    (libc::SYS_ftruncate, "ftruncate"),
    (libc::SYS_mount, "mount"),
    (libc::SYS_fsmount, "fsmount"),
    (libc::SYS_move_mount, "move_mount"),
    (libc::SYS_umount2, "umount2"),
    (libc::SYS_clone, "clone"),
    (libc::SYS_clone3, "clone3"),
    (libc::SYS_vfork, "vfork"),
    (libc::SYS_connect, "connect"),
    (libc::SYS_fsync, "fsync"),
    (libc::SYS_fdatasync, "fdatasync"),
    (libc::SYS_syncfs, "syncfs"),
];
