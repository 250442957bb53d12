//! Process 1 of a pod whose containers share a PID namespace: it reaps, and ends on SIGTERM.
//!
//! It is the monitor's own binary under another first argument, executed through a detached read-only mount of
//! it: containers of the pod see it in `/proc/1/exe`, and nothing there can be written, at no cost in memory (a
//! sealed copy would cost its size). It has an empty root, so that `/proc/1/root` leads nowhere, no
//! capabilities, and is not dumpable.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use criox_sys::process::{self, Pidfd, Signal, SpawnSpec};
use rustix::mount::{MountPropagationFlags, OpenTreeFlags, UnmountFlags};
use rustix::process::DumpableBehavior;
use rustix::thread::{
    CapabilitySet, CapabilitySets, LinkNameSpaceType, UnshareFlags, move_into_link_name_space,
};

use criox_monitor_api::proto::StartSandboxProcess;

use crate::side_process::{Line, say};

/// The first argument that makes the program an init.
pub(crate) const ARGUMENT: &str = "sandbox-init";

/// See mount_setattr(2).
const MOUNT_ATTR_RDONLY: u64 = 1;

/// Starts the helper that becomes its parent; the pipe tells its steps, and at last the init's number.
pub(crate) fn start(request: &StartSandboxProcess) -> Result<(Pidfd, OwnedFd), String> {
    let fail = |step: &str, error: io::Error| format!("{step}: {error}");
    let binary =
        read_only(Path::new("/proc/self/exe")).map_err(|e| fail("making its binary read-only", e))?;
    let program = format!("/proc/self/fd/{}", binary.as_raw_fd());
    let (told, tell) = pipe().map_err(|e| fail("making a pipe", e))?;
    rustix::io::ioctl_fionbio(&told, true).map_err(|e| fail("making a pipe", e.into()))?;
    let dirs: Vec<&Path> = request.cgroup_dirs.iter().map(Path::new).collect();
    let cgroup = criox_sys::cgroup::EnterHandle::from_dirs(dirs)
        .map_err(|e| fail("its cgroups", io::Error::other(e)))?;
    let spawn = || -> io::Result<Pidfd> {
        let mut spec = SpawnSpec::new(&program)?;
        spec.arg(ARGUMENT)?;
        for path in [&request.user, &request.ipc, &request.network, &request.uts] {
            spec.arg(path)?;
        }
        spec.cgroup(&cgroup).new_session().fd(tell.as_fd(), 1);
        spec.spawn().map_err(|error| io::Error::other(format!("{error}: {}", error.source)))
    };
    Ok((spawn().map_err(|e| fail("starting it", e))?, told.into()))
}

/// Pins the namespace of the init whose number the helper told.
pub(crate) fn pin(request: &StartSandboxProcess, told: &str) -> Result<i32, String> {
    let pid: i32 = told.parse().map_err(|_| format!("the helper process tells {told:?} as its number"))?;
    if !request.pid_namespace.is_empty() {
        let source = format!("/proc/{pid}/ns/pid");
        if let Err(error) = rustix::mount::mount_bind(source.as_str(), request.pid_namespace.as_str()) {
            let _ = Pidfd::open(pid).and_then(|init| init.send_signal(9));
            return Err(format!("pinning its PID namespace: {error}"));
        }
    }
    Ok(pid)
}

/// What the started binary does: enters the namespaces, forks process 1 into a new PID namespace, and tells its
/// number on stdout. Returns the exit code.
pub(crate) fn run(mut args: impl Iterator<Item = OsString>) -> u8 {
    let last = match enter(&mut args) {
        Ok(pid) => Line::Done(pid.to_string()),
        Err((step, error)) => Line::Failed(format!("{step}: {error}")),
    };
    u8::from(say(io::stdout(), &last).is_err() || matches!(last, Line::Failed(_)))
}

type Step<T> = Result<T, (&'static str, io::Error)>;

fn enter(args: &mut impl Iterator<Item = OsString>) -> Step<i32> {
    let kinds = [
        ("entering the user namespace", LinkNameSpaceType::User),
        ("entering the IPC namespace", LinkNameSpaceType::InterProcessCommunication),
        ("entering the network namespace", LinkNameSpaceType::Network),
        ("entering the UTS namespace", LinkNameSpaceType::HostNameAndNISDomainName),
    ];
    // Opened before the first is entered: in the user namespace the node's root may not search the node's directories.
    let mut wanted = Vec::new();
    for (name, kind) in kinds {
        let path = args.next().unwrap_or_default();
        if !path.is_empty() {
            begin(name)?;
            wanted.push((name, kind, std::fs::File::open(&path).map_err(|e| (name, e))?));
        }
    }
    for (name, kind, file) in &wanted {
        begin(name)?;
        move_into_link_name_space(file.as_fd(), Some(*kind)).map_err(|e| (*name, e.into()))?;
    }
    if wanted.iter().any(|(_, kind, _)| *kind == LinkNameSpaceType::User) {
        let name = "becoming root of the user namespace";
        begin(name)?;
        crate::namespaces::become_root().map_err(|e| (name, e))?;
    }
    begin("making process 1 of a PID namespace")?;
    let (mut ready, tell) = pipe().map_err(|e| ("making a pipe", e))?;
    let child = process::fork_single_threaded(true, || match become_init() {
        Ok(signals) => {
            let _ = (&tell).write_all(b"1");
            reap(&signals)
        }
        Err(_) => 1,
    })
    .map_err(|e| ("making process 1 of a PID namespace", e))?;
    drop(tell);
    begin("waiting for process 1")?;
    io::Read::read_exact(&mut ready, &mut [0]).map_err(|e| ("waiting for process 1", e))?;
    Ok(child.pid())
}

fn begin(step: &'static str) -> Step<()> {
    say(io::stdout(), &Line::Step(step.into())).map_err(|e| (step, e))
}

/// In process 1: nothing of the host stays in its hands.
fn become_init() -> io::Result<OwnedFd> {
    // The other end waits for all holders of this pipe to end.
    rustix::stdio::dup2_stdout(rustix::stdio::stdin())?;
    process::set_name(c"sandbox-init")?;
    let signals = process::signalfd(&[Signal::CHILD, Signal::TERM, Signal::INT])?;
    process::unshare(UnshareFlags::NEWNS)?;
    empty_root()?;
    rustix::thread::set_no_new_privs(true)?;
    let none = CapabilitySet::empty();
    // The bounding set needs no thought: nothing is executed from here.
    rustix::thread::set_capabilities(
        None,
        CapabilitySets { effective: none, permitted: none, inheritable: none },
    )?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(signals)
}

/// A mount of a program that is in no mount table and can't be written through.
pub(crate) fn read_only(program: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = rustix::mount::open_tree(rustix::fs::CWD, program, flags)?;
    criox_sys::mount::set_attributes(mount.as_fd(), MOUNT_ATTR_RDONLY, 0, false)?;
    Ok(mount)
}

/// A root with nothing in it, for this mount namespace.
fn empty_root() -> io::Result<()> {
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let flags = rustix::mount::MountFlags::NOSUID
        | rustix::mount::MountFlags::NODEV
        | rustix::mount::MountFlags::NOEXEC;
    rustix::mount::mount(
        "tmpfs",
        "/proc",
        "tmpfs",
        flags | rustix::mount::MountFlags::RDONLY,
        c"size=4k,mode=555",
    )?;
    std::env::set_current_dir("/proc")?;
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    std::env::set_current_dir("/")
}

fn reap(set: &OwnedFd) -> i32 {
    let _ = rustix::fs::fcntl_setfl(set, rustix::fs::OFlags::empty());
    let mut buffer = [0; 128];
    loop {
        match rustix::io::read(set, &mut buffer) {
            // The first field of signalfd_siginfo is the signal's number.
            Ok(count) if count >= 4 => {
                let number = u32::from_ne_bytes([buffer[0], buffer[1], buffer[2], buffer[3]]);
                if number != Signal::CHILD.as_raw().unsigned_abs() {
                    return 0;
                }
            }
            Err(rustix::io::Errno::INTR) => {}
            _ => return 1,
        }
        while let Ok(Some(pid)) = process::peek_ended_child() {
            let _ = process::reap_child(pid);
        }
    }
}

fn pipe() -> io::Result<(std::fs::File, std::fs::File)> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    Ok((read.into(), write.into()))
}
