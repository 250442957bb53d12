//! What runs between clone and execve.
//!
//! The child shares our memory while its parent thread sleeps (`CLONE_VM | CLONE_VFORK`), on a stack of its
//! own: no page tables are copied, and a failed step is simply left in a variable. Its code may not allocate,
//! lock or unwind: another thread may hold any lock.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use super::{Pidfd, SpawnError, SpawnSpec, SpawnStep};

/// Enough for the child's few frames and execve.
const STACK_SIZE: usize = 32 * 1024;

/// All that the child needs, made before it exists.
struct Plan {
    program: *const libc::c_char,
    argv: *const *const libc::c_char,
    envp: *const *const libc::c_char,
    cwd: *const libc::c_char,
    /// Pairs of our number and the child's, and room for the moved copy.
    fds: *mut FdMove,
    fd_count: usize,
    /// Above all numbers the child gets.
    fd_floor: RawFd,
    cgroup_procs: *const RawFd,
    cgroup_count: usize,
    new_session: bool,
    death_signal: libc::c_int,
    oom_score_adj: *const libc::c_char,
    oom_score_len: usize,
    failed: Option<(SpawnStep, i32)>,
}

struct FdMove {
    from: RawFd,
    to: RawFd,
    moved: RawFd,
}

pub(super) fn spawn(spec: &SpawnSpec<'_>) -> Result<Pidfd, SpawnError> {
    let fail = |step, errno: i32| SpawnError {
        program: spec.program.to_string_lossy().into_owned(),
        step,
        source: io::Error::from_raw_os_error(errno),
    };
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, envp) = (pointers(&spec.args), pointers(&spec.env));
    let null = null_device(spec).map_err(|error| fail(SpawnStep::Descriptors, errno_of(&error)))?;
    let mut fds: Vec<FdMove> =
        spec.fds.iter().map(|(fd, to)| FdMove { from: fd.as_raw_fd(), to: *to, moved: -1 }).collect();
    if let Some(null) = &null {
        for to in 0..=2 {
            if !fds.iter().any(|m| m.to == to) {
                fds.push(FdMove { from: null.as_raw_fd(), to, moved: -1 });
            }
        }
    }
    let procs: Vec<RawFd> = spec.cgroup.map(|handle| handle.procs_fds().collect()).unwrap_or_default();
    let oom_score = spec.oom_score_adj.map(|value| value.to_string()).unwrap_or_default();
    let mut plan = Plan {
        program: spec.program.as_ptr(),
        argv: argv.as_ptr(),
        envp: envp.as_ptr(),
        cwd: spec.cwd.as_ref().map_or(std::ptr::null(), |cwd| cwd.as_ptr()),
        fd_floor: fds.iter().map(|m| m.to + 1).max().unwrap_or(0).max(3),
        fd_count: fds.len(),
        fds: fds.as_mut_ptr(),
        cgroup_procs: procs.as_ptr(),
        cgroup_count: procs.len(),
        new_session: spec.new_session,
        death_signal: spec.death_signal.unwrap_or(0),
        oom_score_adj: oom_score.as_ptr().cast(),
        oom_score_len: oom_score.len(),
        failed: None,
    };
    let into = spec.cgroup.and_then(|handle| handle.directory_fd());
    let child = clone_and_run(&mut plan, into).map_err(|errno| fail(SpawnStep::Clone, errno))?;
    match plan.failed {
        None => Ok(child),
        Some((step, errno)) => {
            // It has ended: execve or exit is what woke us.
            let _ = child.try_reap();
            Err(fail(step, errno))
        }
    }
}

fn errno_of(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EINVAL)
}

fn null_device(spec: &SpawnSpec<'_>) -> io::Result<Option<OwnedFd>> {
    if (0..=2).all(|number| spec.fds.iter().any(|(_, to)| *to == number)) {
        return Ok(None);
    }
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
    Ok(Some(rustix::fs::open("/dev/null", flags, rustix::fs::Mode::empty())?))
}

/// `struct clone_args` of clone(2), up to `cgroup`.
#[repr(C)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

fn clone_and_run(plan: &mut Plan, cgroup: Option<RawFd>) -> Result<Pidfd, i32> {
    let mut stack: Vec<u128> = Vec::with_capacity(STACK_SIZE / size_of::<u128>());
    let mut pidfd: RawFd = -1;
    let mut args = CloneArgs {
        flags: (libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD) as u64 | CLONE_CLEAR_SIGHAND,
        pidfd: &raw mut pidfd as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: stack.as_mut_ptr() as u64,
        stack_size: STACK_SIZE as u64,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: 0,
    };
    if let Some(fd) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = fd as u64;
    }
    // SAFETY: all zero is a valid sigset_t; both sets outlive the calls.
    let mut old: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: as above. No signal handler of ours may run on the child's stack in our memory.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut old);
    }
    // SAFETY: `args` is a valid clone_args whose stack is aligned to 16 bytes and outlives the child's use of
    // it, as CLONE_VFORK keeps us here until it has called execve or _exit; so do `plan` and what it points to.
    let result = unsafe { clone3(&args, child_main, std::ptr::from_mut(plan).cast()) };
    // SAFETY: `old` was filled in above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const old, std::ptr::null_mut()) };
    drop(stack);
    let pid = i32::try_from(result).map_err(|_| libc::EOVERFLOW)?;
    if pid < 0 {
        return Err(-pid);
    }
    // SAFETY: CLONE_PIDFD stored a new descriptor, which is ours alone.
    Ok(Pidfd { fd: unsafe { OwnedFd::from_raw_fd(pidfd) }, pid })
}

/// Forks the calling process, which has no other thread; the child runs `work` and ends.
pub(super) fn fork(new_pid_namespace: bool, work: impl FnOnce() -> i32) -> io::Result<Pidfd> {
    fork_with(if new_pid_namespace { libc::CLONE_NEWPID as u64 } else { 0 }, work)
}

/// A child in a new user namespace that only waits for SIGKILL; it gets one when the calling thread ends.
pub(super) fn waiting_in_user_namespace() -> io::Result<Pidfd> {
    // SAFETY: a plain question.
    let parent = unsafe { libc::getpid() };
    // Handlers of ours would write into pipes that it shares with us.
    fork_with(libc::CLONE_NEWUSER as u64 | CLONE_CLEAR_SIGHAND, || {
        // SAFETY: async-signal-safe calls with plain numbers; nothing of ours is touched.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            while libc::getppid() == parent {
                libc::pause();
            }
        }
        0
    })
}

/// `work` may not allocate or lock unless the caller is the process's only thread.
fn fork_with(flags: u64, work: impl FnOnce() -> i32) -> io::Result<Pidfd> {
    let mut pidfd: RawFd = -1;
    let args = CloneArgs {
        flags: libc::CLONE_PIDFD as u64 | flags,
        pidfd: &raw mut pidfd as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: 0,
    };
    // SAFETY: without CLONE_VM this is fork(2): the child has a copy of our memory and stack. It takes no lock that
    // another thread may have held: there is none, or `work` only makes system calls.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    if pid == 0 {
        let code = work();
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(code) }
    }
    let pid = i32::try_from(pid).map_err(io::Error::other)?;
    // SAFETY: CLONE_PIDFD stored a new descriptor, which is ours alone.
    Ok(Pidfd { fd: unsafe { OwnedFd::from_raw_fd(pidfd) }, pid })
}

/// The system call, whose child goes straight into `run` on its own stack: it must never return through frames
/// that it shares with the parent. Returns the child's number or a negated errno.
///
/// # Safety
/// `args` must name a free stack, and all that `run` touches must outlive the child's time in our memory.
#[cfg(target_arch = "x86_64")]
unsafe fn clone3(
    args: &CloneArgs,
    run: extern "C" fn(*mut libc::c_void) -> !,
    data: *mut libc::c_void,
) -> i64 {
    let result: i64;
    // SAFETY: the kernel preserves all registers but rax, rcx and r11; the child's stack top is aligned as a
    // call wants it, and `run` never returns.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r8",
            "call r9",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") std::ptr::from_ref(args),
            in("rsi") size_of::<CloneArgs>(),
            in("r8") data,
            in("r9") run,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

/// As on x86_64.
///
/// # Safety
/// As on x86_64.
#[cfg(target_arch = "aarch64")]
unsafe fn clone3(
    args: &CloneArgs,
    run: extern "C" fn(*mut libc::c_void) -> !,
    data: *mut libc::c_void,
) -> i64 {
    let result: i64;
    // SAFETY: the kernel preserves all registers but x0; the child's stack top is aligned to 16 bytes, and `run`
    // never returns.
    unsafe {
        std::arch::asm!(
            "svc #0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, x9",
            "blr x10",
            "brk #1",
            "2:",
            inlateout("x0") std::ptr::from_ref(args) => result,
            in("x1") size_of::<CloneArgs>(),
            in("x8") libc::SYS_clone3,
            in("x9") data,
            in("x10") run,
        );
    }
    result
}

extern "C" fn child_main(data: *mut libc::c_void) -> ! {
    // SAFETY: `data` is the plan of `clone_and_run`, whose thread sleeps meanwhile.
    let plan = unsafe { &mut *data.cast::<Plan>() };
    // SAFETY: the plan's pointers are valid, see there.
    let failed = unsafe { run(plan) };
    plan.failed = Some(failed);
    // SAFETY: ends the child at once, without handlers of ours.
    unsafe { libc::_exit(127) }
}

fn last_errno() -> i32 {
    // SAFETY: the location of errno of the thread whose TLS we share; that thread sleeps.
    unsafe { *libc::__errno_location() }
}

/// Only async-signal-safe calls. Returns what failed; success is execve, which doesn't return.
///
/// # Safety
/// All pointers of the plan must be valid.
unsafe fn run(plan: &mut Plan) -> (SpawnStep, i32) {
    // SAFETY: each call takes plain numbers or pointers of the plan, valid by this function's contract.
    unsafe {
        for index in 0..plan.cgroup_count {
            // "0" is the writer itself.
            if libc::write(*plan.cgroup_procs.add(index), c"0".as_ptr().cast(), 1) != 1 {
                return (SpawnStep::Cgroup, last_errno());
            }
        }
        if plan.oom_score_len > 0 {
            let file = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
            if file >= 0 {
                libc::write(file, plan.oom_score_adj.cast(), plan.oom_score_len);
                libc::close(file);
            }
        }
        if plan.new_session && libc::setsid() < 0 {
            return (SpawnStep::Session, last_errno());
        }
        if plan.death_signal != 0 && libc::prctl(libc::PR_SET_PDEATHSIG, plan.death_signal) != 0 {
            return (SpawnStep::Session, last_errno());
        }
        if let Err(errno) = place_descriptors(plan) {
            return (SpawnStep::Descriptors, errno);
        }
        if !plan.cwd.is_null() && libc::chdir(plan.cwd) != 0 {
            return (SpawnStep::WorkingDirectory, last_errno());
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        // CLONE_CLEAR_SIGHAND leaves ignored signals ignored, and Rust ignores SIGPIPE.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::execve(plan.program, plan.argv, plan.envp);
        (SpawnStep::Execve, last_errno())
    }
}

/// # Safety
/// All pointers of the plan must be valid.
unsafe fn place_descriptors(plan: &mut Plan) -> Result<(), i32> {
    // SAFETY: plain numbers, and elements of the plan's array within its length.
    unsafe {
        // First above all targets, so that no target is a source still needed.
        for index in 0..plan.fd_count {
            let fd = &mut *plan.fds.add(index);
            fd.moved = libc::fcntl(fd.from, libc::F_DUPFD_CLOEXEC, plan.fd_floor);
            if fd.moved < 0 {
                return Err(last_errno());
            }
        }
        libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
        for index in 0..plan.fd_count {
            let fd = &*plan.fds.add(index);
            if libc::dup2(fd.moved, fd.to) < 0 {
                return Err(last_errno());
            }
        }
    }
    Ok(())
}
