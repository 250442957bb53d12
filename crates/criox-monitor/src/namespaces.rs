//! Pinned namespaces: made by a forked child, kept alive by bind mounts of its nsfs files.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use criox_monitor_api::proto::{IdMap, PinNamespaces};
use criox_sys::process;
use rustix::thread::UnshareFlags;

/// The child's work is a few system calls; more time means that one of them hangs.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Makes and pins what is asked for. The error names the step.
pub(crate) fn pin(request: &PinNamespaces) -> Result<(), String> {
    let fail = |step: &str, error: io::Error| format!("could not pin namespaces: {step}: {error}");
    // The child tells "made" (or an error) and then waits for the end of `go`.
    let (mut from_child, to_parent) = pipe().map_err(|e| fail("making a pipe", e))?;
    let (from_parent, go) = pipe().map_err(|e| fail("making a pipe", e))?;
    let go = std::cell::Cell::new(Some(go));
    let child = process::fork_single_threaded(false, || {
        // The child's copy, or it would never see the end.
        drop(go.take());
        let result = child(request, from_parent, &to_parent);
        let Err((step, error)) = result else { return 0 };
        let _ = (&to_parent).write_all(format!("E{step}: {error}").as_bytes());
        1
    })
    .map_err(|e| fail("making the helper process", e))?;
    drop(to_parent);
    let result = match go.take() {
        Some(mut go) => guide(request, &child, &mut from_child, &mut go),
        None => Err(("making a pipe".into(), io::ErrorKind::BrokenPipe.into())),
    };
    let ended = child.wait_ended(TIMEOUT).unwrap_or(false);
    if !ended {
        let _ = child.send_signal(9);
        let _ = child.wait_ended(TIMEOUT);
    }
    let _ = child.try_reap();
    result.map_err(|(step, error)| fail(&step, error))
}

type Step<T> = Result<T, (String, io::Error)>;

fn at<T>(step: impl Into<String>, result: io::Result<T>) -> Step<T> {
    result.map_err(|error| (step.into(), error))
}

/// The parent's side: user mappings when asked for, then the pins.
fn guide(
    request: &PinNamespaces,
    child: &process::Pidfd,
    from_child: &mut std::fs::File,
    go: &mut std::fs::File,
) -> Step<()> {
    let proc = PathBuf::from(format!("/proc/{}", child.pid()));
    if !request.user.is_empty() {
        expect(from_child, b'U')?;
        write_map(&proc.join("uid_map"), &request.uid_map)?;
        write_map(&proc.join("gid_map"), &request.gid_map)?;
        at("releasing the helper process", go.write_all(b"G"))?;
    }
    expect(from_child, b'M')?;
    let pins =
        [("user", &request.user), ("net", &request.network), ("ipc", &request.ipc), ("uts", &request.uts)];
    let wanted: Vec<_> = pins.into_iter().filter(|(_, path)| !path.is_empty()).collect();
    for (index, (kind, path)) in wanted.iter().enumerate() {
        let source = proc.join("ns").join(kind);
        if let Err(error) = rustix::mount::mount_bind(&source, Path::new(path)) {
            for (_, done) in &wanted[..index] {
                let _ = rustix::mount::unmount(done.as_str(), rustix::mount::UnmountFlags::DETACH);
            }
            return Err((format!("mounting the {kind} namespace on {path}"), error.into()));
        }
    }
    Ok(())
}

fn expect(from_child: &mut std::fs::File, word: u8) -> Step<()> {
    let mut first = [0];
    at("waiting for the helper process", from_child.read_exact(&mut first))?;
    if first[0] == word {
        return Ok(());
    }
    let mut text = String::new();
    let _ = from_child.read_to_string(&mut text);
    Err(("helper process".into(), io::Error::other(text)))
}

fn write_map(path: &Path, map: &[IdMap]) -> Step<()> {
    let lines: String =
        map.iter().map(|m| format!("{} {} {}\n", m.container_id, m.host_id, m.length)).collect();
    let file = std::fs::OpenOptions::new().write(true).open(path);
    at(format!("writing {}", path.display()), file.and_then(|mut f| f.write_all(lines.as_bytes())))
}

fn child(request: &PinNamespaces, mut go: std::fs::File, tell: &std::fs::File) -> Step<()> {
    if !request.user.is_empty() {
        unshare("user", UnshareFlags::NEWUSER)?;
        at("telling", (&mut &*tell).write_all(b"U"))?;
        at("waiting for the user mapping", go.read_exact(&mut [0]))?;
        at(
            "becoming root of the user namespace",
            rustix::thread::set_thread_gid(rustix::process::Gid::ROOT).map_err(Into::into),
        )?;
        at(
            "becoming root of the user namespace",
            rustix::thread::set_thread_uid(rustix::process::Uid::ROOT).map_err(Into::into),
        )?;
    }
    for (kind, path, flag) in [
        ("network", &request.network, UnshareFlags::NEWNET),
        ("IPC", &request.ipc, UnshareFlags::NEWIPC),
        ("UTS", &request.uts, UnshareFlags::NEWUTS),
    ] {
        if !path.is_empty() {
            unshare(kind, flag)?;
        }
    }
    if !request.uts.is_empty() && !request.hostname.is_empty() {
        at(
            "setting the host name",
            rustix::system::sethostname(request.hostname.as_bytes()).map_err(Into::into),
        )?;
    }
    if !request.network.is_empty() && request.loopback_up {
        at("taking lo up", criox_sys::netns::loopback_up_here())?;
    }
    for (key, value) in &request.sysctls {
        write_sysctl(key, value)?;
    }
    at("telling", (&mut &*tell).write_all(b"M"))?;
    // The namespaces must live until they are pinned.
    let _ = go.read(&mut [0]);
    Ok(())
}

fn write_sysctl(key: &str, value: &str) -> Step<()> {
    if key.starts_with('/') || key.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err((format!("sysctl {key}"), io::ErrorKind::InvalidInput.into()));
    }
    let file = std::fs::OpenOptions::new().write(true).open(Path::new("/proc/sys").join(key));
    at(format!("setting sysctl {key}"), file.and_then(|mut f| f.write_all(value.as_bytes())))
}

fn unshare(kind: &str, flags: UnshareFlags) -> Step<()> {
    at(format!("making the {kind} namespace"), process::unshare(flags))
}

fn pipe() -> io::Result<(std::fs::File, std::fs::File)> {
    let (read, write): (OwnedFd, OwnedFd) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    Ok((read.into(), write.into()))
}
