//! Pinned namespaces: made by a helper process, kept alive by bind mounts of its nsfs files.
//!
//! The helper is this program under another first argument. It reads its orders from a socket, tells its steps
//! there, and lives until the other end is closed: by then its namespaces are pinned.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use criox_monitor_api::frame::{FrameReader, encode};
use criox_monitor_api::proto::{IdMap, PinNamespaces};
use criox_sys::process::{self, Pidfd, SpawnSpec};
use criox_sys::socket;
use rustix::fs::{FileType, Gid, Uid};
use rustix::thread::UnshareFlags;

use crate::side_process::{Line, say};

/// The first argument that makes the program a maker of namespaces.
pub(crate) const ARGUMENT: &str = "make-namespaces";

/// Starts the helper; the socket tells its steps.
pub(crate) fn start(request: &PinNamespaces) -> Result<(Pidfd, OwnedFd), String> {
    let fail = |error: &dyn std::fmt::Display| format!("starting the helper process: {error}");
    let (ours, theirs) = socket::pair().map_err(|e| fail(&e))?;
    let mut orders = Vec::new();
    encode(request, &mut orders).map_err(|e| fail(&e))?;
    rustix::io::ioctl_fionbio(&ours, true).map_err(|e| fail(&e))?;
    // Far below what a socket takes at once, unless somebody sends sysctls by the thousand.
    match rustix::io::write(&ours, &orders) {
        Ok(length) if length == orders.len() => {}
        _ => return Err(fail(&"the request is too long")),
    }
    let spawn = || -> io::Result<Pidfd> {
        let mut spec = SpawnSpec::new("/proc/self/exe")?;
        spec.arg(ARGUMENT)?.fd(theirs.as_fd(), 0).new_session();
        spec.spawn().map_err(|error| io::Error::other(format!("{error}: {}", error.source)))
    };
    Ok((spawn().map_err(|e| fail(&e))?, ours))
}

/// Gives the helper's user namespace its mappings, and lets it go on.
pub(crate) fn map_users(request: &PinNamespaces, helper: i32, line: &OwnedFd) -> Result<(), String> {
    let proc = PathBuf::from(format!("/proc/{helper}"));
    for (name, map) in [("uid_map", &request.uid_map), ("gid_map", &request.gid_map)] {
        let path = proc.join(name);
        let file = std::fs::OpenOptions::new().write(true).open(&path);
        file.and_then(|mut file| file.write_all(map_text(map).as_bytes()))
            .map_err(|error| format!("writing {}: {error}", path.display()))?;
    }
    rustix::io::write(line, b"G").map_err(|error| format!("releasing the helper process: {error}"))?;
    Ok(())
}

/// Who is root in the pod's user namespace, as the node numbers users and groups; none without one.
pub(crate) fn root_of(request: &PinNamespaces) -> Option<(u32, u32)> {
    let host = |map: &[IdMap]| map.iter().find(|range| range.container_id == 0).map(|range| range.host_id);
    (!request.user.is_empty()).then(|| Some((host(&request.uid_map)?, host(&request.gid_map)?))).flatten()
}

/// Gives the pipes of a process to the root of its user namespace: the runtime gives them on to the process's user,
/// without which `/dev/stdout` can't be opened, and can only give what belongs to a user that the namespace knows.
pub(crate) fn give(stdio: Option<&[BorrowedFd<'_>; 3]>, owner: Option<(u32, u32)>) {
    let (Some(stdio), Some((uid, gid))) = (stdio, owner) else { return };
    for fd in stdio {
        let pipe =
            rustix::fs::fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo);
        // A pipe that stays the node's is one that the process can use, and not open anew.
        if pipe {
            let _ = rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        }
    }
}

fn map_text(map: &[IdMap]) -> String {
    map.iter().map(|m| format!("{} {} {}\n", m.container_id, m.host_id, m.length)).collect()
}

/// Pins the namespaces of the helper, which has made them.
pub(crate) fn pin(request: &PinNamespaces, helper: i32) -> Result<(), String> {
    let namespaces = PathBuf::from(format!("/proc/{helper}/ns"));
    let pins =
        [("user", &request.user), ("net", &request.network), ("ipc", &request.ipc), ("uts", &request.uts)];
    let wanted: Vec<_> = pins.into_iter().filter(|(_, path)| !path.is_empty()).collect();
    for (index, (kind, path)) in wanted.iter().enumerate() {
        if let Err(error) = rustix::mount::mount_bind(namespaces.join(kind), Path::new(path)) {
            for (_, done) in &wanted[..index] {
                let _ = rustix::mount::unmount(done.as_str(), rustix::mount::UnmountFlags::DETACH);
            }
            return Err(format!("mounting the {kind} namespace on {path}: {error}"));
        }
    }
    Ok(())
}

/// What the helper does. Returns the exit code.
pub(crate) fn run() -> u8 {
    let Ok(socket) = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3) else { return 1 };
    let line = std::fs::File::from(socket);
    let result = read_orders(&line).and_then(|request| make(&request, &line));
    let last = match result {
        Ok(()) => Line::Done(String::new()),
        Err(error) => Line::Failed(error),
    };
    if say(&line, &last).is_err() {
        return 1;
    }
    // The namespaces must live until they are pinned.
    let _ = (&mut &line).read(&mut [0]);
    u8::from(last != Line::Done(String::new()))
}

fn read_orders(line: &std::fs::File) -> Result<PinNamespaces, String> {
    let mut reader = FrameReader::new();
    loop {
        if let Some(request) = reader.next().map_err(|error| error.to_string())? {
            return Ok(request);
        }
        match reader.read_from(line) {
            Ok(0) => return Err("the monitor has gone".into()),
            Ok(_) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// Tells a step, and does it.
fn step(
    line: &std::fs::File,
    name: impl Into<String>,
    work: impl FnOnce() -> io::Result<()>,
) -> Result<(), String> {
    let name = name.into();
    say(line, &Line::Step(name.clone())).map_err(|error| error.to_string())?;
    work().map_err(|error| format!("{name}: {error}"))
}

fn make(request: &PinNamespaces, line: &std::fs::File) -> Result<(), String> {
    if !request.user.is_empty() {
        step(line, "making the user namespace", || process::unshare(UnshareFlags::NEWUSER))?;
        step(line, "waiting for the user mappings", || {
            say(line, &Line::User)?;
            (&mut &*line).read_exact(&mut [0])
        })?;
        step(line, "becoming root of the user namespace", become_root)?;
    }
    for (kind, path, flag) in [
        ("network", &request.network, UnshareFlags::NEWNET),
        ("IPC", &request.ipc, UnshareFlags::NEWIPC),
        ("UTS", &request.uts, UnshareFlags::NEWUTS),
    ] {
        if !path.is_empty() {
            step(line, format!("making the {kind} namespace"), || process::unshare(flag))?;
        }
    }
    if !request.uts.is_empty() && !request.hostname.is_empty() {
        step(line, "setting the host name", || {
            Ok(rustix::system::sethostname(request.hostname.as_bytes())?)
        })?;
    }
    if !request.network.is_empty() && request.loopback_up {
        step(line, "taking lo up", criox_sys::netns::loopback_up_here)?;
    }
    for (key, value) in &request.sysctls {
        step(line, format!("setting sysctl {key}"), || write_sysctl(key, value))?;
    }
    Ok(())
}

/// Root of the user namespace that this process is in, without groups of the node.
pub(crate) fn become_root() -> io::Result<()> {
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_gid(Gid::ROOT)?;
    Ok(rustix::thread::set_thread_uid(Uid::ROOT)?)
}

fn write_sysctl(key: &str, value: &str) -> io::Result<()> {
    if key.starts_with('/') || key.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut file = std::fs::OpenOptions::new().write(true).open(Path::new("/proc/sys").join(key))?;
    file.write_all(value.as_bytes())
}
