//! Processes: started without fork handlers or allocation in between, held by pidfd, told from others by their
//! start time.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

pub use rustix::process::{Pid, Signal};
use rustix::process::{WaitId, WaitIdOptions};

use crate::cgroup::EnterHandle;

mod child;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// It exited with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

impl ExitStatus {
    /// The code as shells and CRI give it: 128 plus the signal's number for a process that a signal ended.
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }

    /// The signal that ended it.
    pub fn signal(self) -> Option<i32> {
        match self {
            Self::Code(_) => None,
            Self::Signal(signal) => Some(signal),
        }
    }
}

/// A descriptor of a process: never means another process that got the same number later.
#[derive(Debug)]
pub struct Pidfd {
    fd: OwnedFd,
    pid: i32,
}

impl Pidfd {
    /// Opens the process of that number (`pidfd_open`, close-on-exec). `NotFound` if there is none.
    pub fn open(pid: i32) -> io::Result<Self> {
        let number = Pid::from_raw(pid).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        match rustix::process::pidfd_open(number, rustix::process::PidfdFlags::empty()) {
            Ok(fd) => Ok(Self { fd, pid }),
            Err(rustix::io::Errno::SRCH) => Err(io::ErrorKind::NotFound.into()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The number the process had when it was opened.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Sends a signal by number (0 only tests). `NotFound` if the process has ended and been reaped.
    pub fn send_signal(&self, signal: i32) -> io::Result<()> {
        // SAFETY: plain numbers and a null siginfo pointer, which the kernel allows.
        let result = unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, self.fd.as_raw_fd(), signal, std::ptr::null::<()>(), 0)
        };
        if result == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        Err(if error.raw_os_error() == Some(libc::ESRCH) { io::ErrorKind::NotFound.into() } else { error })
    }

    /// Whether the process has ended: waits at most `timeout` (zero: only looks). Works for any process.
    pub fn wait_ended(&self, timeout: Duration) -> io::Result<bool> {
        wait_readable(self.fd.as_fd(), timeout)
    }

    /// Reaps the process, which must be a child (or adopted by a subreaper) of this one, if it has ended;
    /// `None` if it still runs.
    pub fn try_reap(&self) -> io::Result<Option<ExitStatus>> {
        let status = rustix::io::retry_on_intr(|| {
            rustix::process::waitid(
                WaitId::PidFd(self.fd.as_fd()),
                WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
            )
        })?;
        Ok(status.map(|status| match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => ExitStatus::Code(code),
            (None, signal) => ExitStatus::Signal(signal.unwrap_or(0)),
        }))
    }
}

impl AsFd for Pidfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Polls one descriptor for reading.
fn wait_readable(fd: BorrowedFd<'_>, timeout: Duration) -> io::Result<bool> {
    let until = std::time::Instant::now() + timeout;
    loop {
        let left = until.saturating_duration_since(std::time::Instant::now());
        let left = rustix::event::Timespec::try_from(left).ok();
        let mut polled = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
        match rustix::event::poll(&mut polled, left.as_ref()) {
            Ok(count) => return Ok(count > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// What a process to be started is given. Nothing is inherited but what is named: descriptors above those given
/// are closed, signals are at their defaults and unblocked, the environment is empty.
#[derive(Debug)]
pub struct SpawnSpec<'a> {
    program: CString,
    args: Vec<CString>,
    env: Vec<CString>,
    fds: Vec<(BorrowedFd<'a>, i32)>,
    cwd: Option<CString>,
    cgroup: Option<&'a EnterHandle>,
    new_session: bool,
    death_signal: Option<i32>,
    oom_score_adj: Option<i32>,
}

impl<'a> SpawnSpec<'a> {
    /// Starts `program` (a path; `PATH` is not searched), which is also its first argument.
    /// `InvalidInput` if the path holds a NUL.
    pub fn new(program: impl AsRef<Path>) -> io::Result<Self> {
        let program = CString::new(program.as_ref().as_os_str().as_bytes())?;
        Ok(Self {
            args: vec![program.clone()],
            program,
            env: Vec::new(),
            fds: Vec::new(),
            cwd: None,
            cgroup: None,
            new_session: false,
            death_signal: None,
            oom_score_adj: None,
        })
    }

    /// Gives a first argument other than the program's path: what the program takes as its own name.
    pub fn name(&mut self, name: impl AsRef<std::ffi::OsStr>) -> io::Result<&mut Self> {
        let name = CString::new(name.as_ref().as_bytes())?;
        if let Some(first) = self.args.first_mut() {
            *first = name;
        }
        Ok(self)
    }

    /// Adds an argument.
    pub fn arg(&mut self, arg: impl AsRef<std::ffi::OsStr>) -> io::Result<&mut Self> {
        self.args.push(CString::new(arg.as_ref().as_bytes())?);
        Ok(self)
    }

    /// Adds `NAME=value` to the environment.
    pub fn env(&mut self, pair: impl AsRef<std::ffi::OsStr>) -> io::Result<&mut Self> {
        self.env.push(CString::new(pair.as_ref().as_bytes())?);
        Ok(self)
    }

    /// Gives a descriptor under `number` in the child. Numbers 0 to 2 that are not given are `/dev/null`.
    pub fn fd(&mut self, fd: BorrowedFd<'a>, number: i32) -> &mut Self {
        self.fds.push((fd, number));
        self
    }

    /// Working directory; otherwise that of the caller.
    pub fn cwd(&mut self, path: impl AsRef<Path>) -> io::Result<&mut Self> {
        self.cwd = Some(CString::new(path.as_ref().as_os_str().as_bytes())?);
        Ok(self)
    }

    /// The cgroups that the process is born in (v2) or enters before its `execve` (v1).
    pub fn cgroup(&mut self, handle: &'a EnterHandle) -> &mut Self {
        self.cgroup = Some(handle);
        self
    }

    /// Makes it the leader of a session of its own.
    pub fn new_session(&mut self) -> &mut Self {
        self.new_session = true;
        self
    }

    /// The signal it gets when the *thread* that starts it ends.
    pub fn death_signal(&mut self, signal: i32) -> &mut Self {
        self.death_signal = Some(signal);
        self
    }

    /// Written to `/proc/self/oom_score_adj`; a refusal (no CAP_SYS_RESOURCE) is ignored.
    pub fn oom_score_adj(&mut self, value: i32) -> &mut Self {
        self.oom_score_adj = Some(value);
        self
    }

    /// Starts the process, which has run its `execve` when this returns. Safe in a process of many threads.
    pub fn spawn(&self) -> Result<Pidfd, SpawnError> {
        child::spawn(self)
    }
}

/// The step of starting a process that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpawnStep {
    /// Making the process, also into its v2 cgroup.
    Clone,
    /// Entering a v1 cgroup.
    Cgroup,
    /// A session of its own, the death signal.
    Session,
    /// Putting the descriptors in place.
    Descriptors,
    /// The working directory.
    WorkingDirectory,
    /// Running the program: `NotFound` and `PermissionDenied` mean that it is absent or not executable.
    Execve,
}

impl SpawnStep {
    /// What the step does, for messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Clone => "making the process",
            Self::Cgroup => "entering the cgroup",
            Self::Session => "making the session",
            Self::Descriptors => "placing the descriptors",
            Self::WorkingDirectory => "changing the working directory",
            Self::Execve => "executing the program",
        }
    }
}

/// A process could not be started.
#[derive(Debug, thiserror::Error)]
#[error("could not start {program}: {} failed", step.name())]
pub struct SpawnError {
    /// The program.
    pub program: String,
    /// What failed.
    pub step: SpawnStep,
    /// Why.
    pub source: io::Error,
}

/// Start time of a process in clock ticks since boot (field 22 of `/proc/<pid>/stat`, see proc(5)): with the
/// boot ID and the number it names a process for good. `NotFound` if there is none.
pub fn start_time(pid: i32) -> io::Result<u64> {
    let stat = read_proc(&format!("/proc/{pid}/stat"))?;
    stat_field(&stat, 22).and_then(|field| field.parse().ok()).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat has no start time"))
    })
}

/// State letter of a process (field 3 of `/proc/<pid>/stat`); `Z` and `X` are dead.
pub fn state(pid: i32) -> io::Result<char> {
    let stat = read_proc(&format!("/proc/{pid}/stat"))?;
    stat_field(&stat, 3)
        .and_then(|field| field.chars().next())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat has no state")))
}

/// Number of the parent process (field 4 of `/proc/<pid>/stat`).
pub fn parent(pid: i32) -> io::Result<i32> {
    let stat = read_proc(&format!("/proc/{pid}/stat"))?;
    stat_field(&stat, 4)
        .and_then(|field| field.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat has no parent")))
}

/// Whether the process with that number and start time lives (zombies don't).
pub fn is_alive(pid: i32, started: u64) -> bool {
    start_time(pid).is_ok_and(|time| time == started) && state(pid).is_ok_and(|s| s != 'Z' && s != 'X')
}

/// ID of this boot of the kernel (`/proc/sys/kernel/random/boot_id`).
pub fn boot_id() -> io::Result<String> {
    Ok(read_proc("/proc/sys/kernel/random/boot_id")?.trim_end().to_owned())
}

/// Makes this process adopt the orphans among its descendants (`PR_SET_CHILD_SUBREAPER`).
pub fn become_subreaper() -> io::Result<()> {
    Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
}

/// Sets the name that `ps` shows for the calling thread, at most 15 bytes.
pub fn set_name(name: &CStr) -> io::Result<()> {
    Ok(rustix::thread::set_name(name)?)
}

/// Blocks the signals and makes a descriptor that reads them (close-on-exec, non-blocking; see signalfd(2)).
pub fn signalfd(signals: &[Signal]) -> io::Result<OwnedFd> {
    // SAFETY: an all-zero sigset_t is a valid value to be overwritten by sigemptyset.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a valid sigset_t that outlives the calls.
    unsafe {
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, signal.as_raw());
        }
        if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: `set` is initialised; -1 asks for a new descriptor.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes the pending notifications out of a signalfd, throwing them away.
pub fn drain_signalfd(fd: impl AsFd) {
    let mut buffer = [0; 512];
    while matches!(rustix::io::read(fd.as_fd(), &mut buffer), Ok(count) if count == buffer.len()) {}
}

/// The number of a child (or adopted orphan) that has ended and not been reaped: its facts in `/proc` and its
/// cgroup can still be read. `None` if there is none.
pub fn peek_ended_child() -> io::Result<Option<i32>> {
    // SAFETY: all zero is a valid siginfo_t, to be overwritten.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: `info` outlives the call.
    if unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, options) } != 0 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::ECHILD) { Ok(None) } else { Err(error) };
    }
    // SAFETY: waitid filled in the SIGCHLD form, or left zeroes.
    let pid = unsafe { info.si_pid() };
    Ok((pid != 0).then_some(pid))
}

/// Reaps the child of that number, if it has ended.
pub fn reap_child(pid: i32) -> io::Result<Option<ExitStatus>> {
    let number = Pid::from_raw(pid).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    let status = rustix::io::retry_on_intr(|| rustix::process::waitid(WaitId::Pid(number), options))?;
    Ok(status.map(|status| match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => ExitStatus::Code(code),
        (None, signal) => ExitStatus::Signal(signal.unwrap_or(0)),
    }))
}

/// Leaves shared namespaces for new ones (unshare(2)), for the calling thread.
pub fn unshare(flags: rustix::thread::UnshareFlags) -> io::Result<()> {
    // SAFETY: the flag that may break invariants of others' code is FILES, which takes the descriptor table
    // out of the sharing of threads; descriptors then stay valid in both tables.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

/// Runs `work` in a forked child, which exits with what it returns. Only for a process of one thread, as the
/// child may allocate: refused (`Unsupported`) in any other. `new_pid_namespace` makes the child process 1 of
/// one.
pub fn fork_single_threaded(new_pid_namespace: bool, work: impl FnOnce() -> i32) -> io::Result<Pidfd> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "fork in a process of many threads"));
    }
    child::fork(new_pid_namespace, work)
}

/// A child in a user namespace of its own, still without mappings, which only waits to be killed: for the namespace's
/// sake (`/proc/<pid>/ns/user`). It ends with the calling thread at the latest. From a process of any number of threads.
///
/// # Errors
/// What clone3 answered: user namespaces may be switched off.
pub(crate) fn waiting_in_user_namespace() -> io::Result<Pidfd> {
    child::waiting_in_user_namespace()
}

/// Makes the allocator give memory back soon, at some cost in time: one arena, large blocks mapped on their own.
/// For a small process that stands many times. Nothing but glibc knows these settings.
pub fn keep_allocator_small() {
    #[cfg(target_env = "gnu")]
    // SAFETY: plain numbers; called before other threads exist.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 * 1024);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 * 1024);
        libc::mallopt(libc::M_TOP_PAD, 0);
    }
}

/// Gives the allocator's free pages back to the kernel (malloc_trim(3)); for a process that has been busy and is
/// not now. Does nothing but on glibc.
pub fn release_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a plain number, and the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

fn read_proc(path: &str) -> io::Result<String> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        // A process that ends between open and read.
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Err(io::ErrorKind::NotFound.into()),
        Err(error) => Err(error),
    }
}

/// A field of `/proc/<pid>/stat`, counted from 1 as proc(5) does. The second may hold blanks and parentheses:
/// it ends at the last `)`.
fn stat_field(stat: &str, number: usize) -> Option<&str> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(number.checked_sub(3)?)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;

    fn end(child: &Pidfd) -> ExitStatus {
        assert!(child.wait_ended(Duration::from_secs(10)).unwrap());
        child.try_reap().unwrap().unwrap()
    }

    #[test]
    fn a_started_process_gets_what_is_named_and_no_more() {
        let mut output = tempfile::tempfile().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mut spec = SpawnSpec::new("/bin/sh").unwrap();
        spec.arg("-c").unwrap().arg("pwd; env | grep -v PWD; ls /proc/self/fd | wc -l; echo 3>&7").unwrap();
        spec.env("A=b").unwrap().cwd(dir.path()).unwrap().new_session();
        spec.fd(output.as_fd(), 1).fd(output.as_fd(), 2).fd(output.as_fd(), 7);
        assert_eq!(end(&spec.spawn().unwrap()), ExitStatus::Code(0));
        let mut text = String::new();
        output.rewind().unwrap();
        output.read_to_string(&mut text).unwrap();
        assert!(text.starts_with(&format!("{}\n", dir.path().display())), "{text}");
        assert!(text.contains("A=b\n") && text.contains("\n5\n"), "{text}");
    }

    #[test]
    fn a_missing_program_is_told_as_such() {
        let error = SpawnSpec::new("/no/such").unwrap().spawn().unwrap_err();
        assert_eq!((error.step, error.source.kind()), (SpawnStep::Execve, io::ErrorKind::NotFound));
        let mut spec = SpawnSpec::new("/bin/true").unwrap();
        let error = spec.cwd("/no/such").unwrap().spawn().unwrap_err();
        assert_eq!(error.step, SpawnStep::WorkingDirectory);
    }

    #[test]
    fn a_signal_reaches_the_process_and_its_number_is_told() {
        let mut spec = SpawnSpec::new("/bin/sleep").unwrap();
        spec.arg("60").unwrap();
        let child = spec.spawn().unwrap();
        let started = start_time(child.pid()).unwrap();
        assert!(is_alive(child.pid(), started) && !is_alive(child.pid(), started + 1));
        assert_eq!(parent(child.pid()).unwrap(), i32::try_from(std::process::id()).unwrap());
        assert!(child.try_reap().unwrap().is_none());
        child.send_signal(15).unwrap();
        let status = end(&child);
        assert_eq!((status, status.code(), status.signal()), (ExitStatus::Signal(15), 143, Some(15)));
        assert_eq!(child.send_signal(0).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn processes_start_from_many_threads_at_once() {
        std::thread::scope(|scope| {
            for code in 0..4 {
                scope.spawn(move || {
                    for _ in 0..25 {
                        let mut spec = SpawnSpec::new("/bin/sh").unwrap();
                        spec.arg("-c").unwrap().arg(format!("exit {code}")).unwrap();
                        assert_eq!(end(&spec.spawn().unwrap()), ExitStatus::Code(code));
                    }
                });
            }
        });
    }

    #[test]
    fn a_command_name_with_blanks_and_parentheses_hides_no_field() {
        assert_eq!(stat_field("12 (a) b) S 1 2", 3), Some("S"));
        assert_eq!(stat_field("12 (a) b) S 1 2", 4), Some("1"));
        assert_eq!(stat_field("12 (a) b) S 1 2", 22), None);
        assert_eq!(stat_field("no parenthesis", 3), None);
    }
}
