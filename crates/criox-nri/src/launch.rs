//! Plugins that lie in a directory and are started by us, with one end of a pair of sockets.

use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use criox_sys::process::{Pidfd, SpawnSpec};
use criox_sys::socket;
use tokio::net::UnixStream;

use crate::join::Known;
use crate::plugin::Name;

/// The longest configuration that is read.
const CONFIG_MAX: u64 = 1 << 20;
/// Programs that are started at most.
const PROGRAMS: usize = 64;
/// The descriptor under which a plugin finds its socket.
const SOCKET: i32 = 3;
const SIGKILL: i32 = 9;
/// From SIGKILL to the end.
const DEATH: Duration = Duration::from_secs(5);

/// A program that is to be started.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    pub(crate) known: Known,
}

/// Why a program was not started.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub(crate) struct LaunchError {
    what: &'static str,
    source: Box<dyn std::error::Error + Send + Sync>,
}

fn failed<E: std::error::Error + Send + Sync + 'static>(what: &'static str) -> impl FnOnce(E) -> LaunchError {
    move |error| LaunchError { what, source: Box::new(error) }
}

/// The programs of a directory, in their order. What can't be started is told in the log.
pub(crate) fn discover(plugins: &Path, configs: &Path) -> Vec<Program> {
    let entries = match std::fs::read_dir(plugins) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            tracing::error!(directory = %plugins.display(), %error, "NRI plugins can't be looked for");
            return Vec::new();
        }
    };
    let mut programs: Vec<Program> =
        entries.flatten().filter_map(|entry| program(&entry.path(), configs)).collect();
    programs.sort_by(|a, b| a.known.name.cmp(&b.known.name));
    for left_out in programs.drain(programs.len().min(PROGRAMS)..) {
        tracing::error!(file = %left_out.path.display(), "too many NRI plugins; this one is not started");
    }
    programs
}

fn program(path: &Path, configs: &Path) -> Option<Program> {
    let metadata = std::fs::metadata(path).ok()?;
    if !metadata.is_file() || metadata.permissions().mode() & 0o111 == 0 {
        return None;
    }
    let refused = |why: String| {
        tracing::error!(file = %path.display(), "an NRI plugin is not started: {why}");
        None
    };
    let name = match Name::of_file(&path.file_name()?.to_string_lossy()) {
        Ok(name) => name,
        Err(error) => return refused(format!("its file must be called 10-name: {error}")),
    };
    if is_wasm(path) {
        return refused("it is a WebAssembly module, which criox does not run".into());
    }
    match config(configs, &name) {
        Ok(config) => Some(Program { path: path.to_owned(), known: Known { name, config } }),
        Err(error) => refused(format!("its configuration can't be read: {error}")),
    }
}

fn is_wasm(path: &Path) -> bool {
    let mut magic = [0; 4];
    std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *b"\0asm"
}

/// `10-name.conf`, else `name.conf`, else nothing.
fn config(directory: &Path, name: &Name) -> std::io::Result<String> {
    for file in [format!("{name}.conf"), format!("{}.conf", name.base())] {
        match std::fs::File::open(directory.join(file)) {
            Ok(file) => {
                let mut text = String::new();
                file.take(CONFIG_MAX + 1).read_to_string(&mut text)?;
                if text.len() as u64 > CONFIG_MAX {
                    return Err(std::io::Error::other("it is longer than 1 MiB"));
                }
                return Ok(text);
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(String::new())
}

/// Starts a program. What it writes to its standard error goes where ours goes.
pub(crate) fn launch(program: &Program) -> Result<(UnixStream, Pidfd), LaunchError> {
    let (ours, theirs) = socket::pair().map_err(failed("its sockets"))?;
    let name = &program.known.name;
    let stderr = std::io::stderr();
    let process = (|| {
        let mut spec = SpawnSpec::new(&program.path)?;
        spec.env(format!("NRI_PLUGIN_NAME={}", name.base()))?
            .env(format!("NRI_PLUGIN_IDX={}", name.index()))?
            .env(format!("NRI_PLUGIN_SOCKET={SOCKET}"))?
            .fd(stderr.as_fd(), 2)
            .fd(theirs.as_fd(), SOCKET)
            .new_session();
        std::io::Result::Ok(spec.spawn())
    })();
    let process = process.map_err(failed("its start"))?.map_err(failed("its start"))?;
    let ours = std::os::unix::net::UnixStream::from(ours);
    let socket = ours.set_nonblocking(true).and_then(|()| UnixStream::from_std(ours));
    match socket {
        Ok(socket) => Ok((socket, process)),
        Err(error) => {
            end(&process);
            Err(failed("its socket")(error))
        }
    }
}

/// Ends a program that was started, and takes its exit. Blocks until it has ended.
pub(crate) fn end(process: &Pidfd) {
    // It has ended by itself: so much the better.
    drop(process.send_signal(SIGKILL));
    match process.wait_ended(DEATH) {
        Ok(true) => drop(process.try_reap()),
        _ => tracing::warn!(pid = process.pid(), "an NRI plugin does not die"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(directory: &Path, name: &str, text: &str, mode: u32) {
        let path = directory.join(name);
        std::io::Write::write_all(&mut open(&path), text.as_bytes()).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn open(path: &Path) -> std::fs::File {
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).open(path).unwrap()
    }

    #[test]
    fn programs_are_found_in_their_order_with_their_configurations() {
        let (plugins, configs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        file(plugins.path(), "20-b", "#!/bin/sh", 0o755);
        file(plugins.path(), "10-a", "#!/bin/sh", 0o755);
        file(plugins.path(), "30-wasm", "\0asm\u{1}", 0o755);
        file(plugins.path(), "nameless", "#!/bin/sh", 0o755);
        file(plugins.path(), "40-not-executable", "", 0o644);
        file(configs.path(), "a.conf", "general", 0o644);
        file(configs.path(), "20-b.conf", "own", 0o644);
        file(configs.path(), "b.conf", "general", 0o644);
        let found: Vec<_> = discover(plugins.path(), configs.path())
            .into_iter()
            .map(|program| (program.known.name.to_string(), program.known.config))
            .collect();
        assert_eq!(found, [("10-a".into(), "general".into()), ("20-b".into(), "own".into())]);
    }

    #[test]
    fn an_absent_directory_is_an_empty_one() {
        assert!(discover(Path::new("/nonexistent"), Path::new("/nonexistent")).is_empty());
    }
}
