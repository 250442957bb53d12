//! AppArmor: the default profile of our own, loaded when it is not there, and the check that a profile is loaded before
//! a container is confined by it.
//!
//! A container that names a profile, or the runtime's default by name, never runs without it. One that names nothing
//! gets the default where that can be had, and otherwise runs as on a kernel without AppArmor, which Status says.

use std::fs;
use std::io::{self, Read as _, Seek as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use criox_sys::durable;
use criox_sys::lsm::AppArmorFiles;
use criox_sys::process::SpawnSpec;

use crate::error::{Error, Kind, Result};

/// The profile that is ours to load, as in CRI-O.
const DEFAULT: &str = "crio-default";
/// Its text.
const PROFILE: &str = include_str!("crio-default.profile");
/// A value of `apparmor_profile`: none.
const UNCONFINED: &str = "unconfined";
/// What the parser may take; on a slow machine it takes a second.
const LOAD: Duration = Duration::from_secs(20);
/// Where distributions put it.
const PARSERS: [&str; 4] = [
    "/usr/sbin/apparmor_parser",
    "/sbin/apparmor_parser",
    "/usr/local/sbin/apparmor_parser",
    "/usr/bin/apparmor_parser",
];
/// The most that is kept of what the parser says.
const SAID: u64 = 2048;

/// AppArmor of this node, and what the configuration wants of it.
#[derive(Debug)]
pub struct AppArmor {
    kernel: AppArmorFiles,
    enabled: bool,
    default: String,
    parsers: Vec<PathBuf>,
    /// Holds a copy of our profile once it has been loaded in this boot.
    copy: PathBuf,
    /// One load at a time; others wait for it and find the profile loaded.
    loading: Mutex<()>,
}

impl AppArmor {
    /// Of the running kernel, with `apparmor_profile` of the configuration; nothing is loaded yet. `run_root` must not
    /// survive a boot, for profiles don't.
    pub fn new(default: &str, run_root: &Path) -> Self {
        let parsers = PARSERS.iter().map(PathBuf::from).collect();
        Self::with(AppArmorFiles::default(), parsers, default, run_root)
    }

    fn with(kernel: AppArmorFiles, parsers: Vec<PathBuf>, default: &str, run_root: &Path) -> Self {
        Self {
            enabled: kernel.is_enabled(),
            kernel,
            default: default.to_owned(),
            parsers,
            copy: run_root.join("criox").join("apparmor").join(DEFAULT),
            loading: Mutex::new(()),
        }
    }

    /// Whether the kernel confines by AppArmor.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Sees to the default profile: ours is loaded if it isn't, or if another version of criox loaded it.
    ///
    /// # Errors
    /// Why containers can't have it: the parser is absent, fails or hangs; a profile of the administrator's own is not
    /// loaded.
    pub fn prepare(&self) -> Result<()> {
        if !self.enabled || self.default.is_empty() || self.default == UNCONFINED {
            return Ok(());
        }
        if self.default != DEFAULT {
            return self.require(&self.default);
        }
        let current = fs::read(&self.copy).is_ok_and(|bytes| bytes == PROFILE.as_bytes());
        if current && self.is_loaded(DEFAULT)? { Ok(()) } else { self.load() }
    }

    /// That a profile is there for a container about to be made. Ours is loaded again if somebody unloaded it, as tools
    /// do that clean up what no file of theirs describes.
    ///
    /// # Errors
    /// It is not loaded; the message names it.
    pub(crate) fn require(&self, name: &str) -> Result<()> {
        if self.is_loaded(name)? {
            return Ok(());
        }
        if name == DEFAULT && self.default == DEFAULT {
            return self.load();
        }
        Err(Error::new(
            Kind::FailedPrecondition,
            format!(
                "AppArmor profile {name:?} is not loaded on this node; load it with apparmor_parser or correct the name"
            ),
        ))
    }

    fn is_loaded(&self, name: &str) -> Result<bool> {
        self.kernel.is_loaded(name).map_err(|error| {
            let list = self.kernel.list().display();
            Error::new(
                Kind::FailedPrecondition,
                format!("AppArmor profile {name:?} can't be looked up in {list}; mount securityfs"),
            )
            .because(error)
        })
    }

    fn load(&self) -> Result<()> {
        let _alone = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        let current = fs::read(&self.copy).is_ok_and(|bytes| bytes == PROFILE.as_bytes());
        if current && self.is_loaded(DEFAULT)? {
            return Ok(());
        }
        let failed = |advice: &str| {
            Error::new(
                Kind::FailedPrecondition,
                format!("AppArmor profile {DEFAULT:?} could not be loaded{advice}"),
            )
        };
        let parser = self.parsers.iter().find(|path| path.exists()).ok_or_else(|| {
            failed(": there is no apparmor_parser; install the package apparmor and restart criox")
        })?;
        let directory = self.copy.parent().unwrap_or(Path::new("/"));
        // The text that is given to the parser; its name is not that of the copy, which says that it was loaded.
        let given = directory.join(format!("{DEFAULT}.given"));
        fs::create_dir_all(directory)
            .map_err(io::Error::other)
            .and_then(|()| durable::write_atomic(&given, PROFILE.as_bytes(), 0o600).map_err(io::Error::other))
            .map_err(|error| failed("").because(error))?;
        run(parser, &given).map_err(|error| failed("").because(error))?;
        if !self.is_loaded(DEFAULT)? {
            return Err(failed(": apparmor_parser reported success, and the kernel does not know it"));
        }
        fs::rename(&given, &self.copy).map_err(|error| failed("").because(error))?;
        tracing::info!(profile = DEFAULT, "loaded the default AppArmor profile");
        Ok(())
    }
}

/// Replaces the profiles of a file in the kernel, without the parser's cache, which may be read-only.
fn run(parser: &Path, file: &Path) -> io::Result<()> {
    let mut said = output_file()?;
    let mut spec = SpawnSpec::new(parser)?;
    for argument in ["--replace", "--skip-cache"] {
        spec.arg(argument)?;
    }
    spec.arg(file)?.env("PATH=/usr/sbin:/usr/bin:/sbin:/bin")?.env("LC_ALL=C")?;
    let error = said.try_clone()?;
    spec.fd(error.as_fd(), 1).fd(error.as_fd(), 2);
    let child = spec.spawn().map_err(io::Error::other)?;
    if !child.wait_ended(LOAD)? {
        // SIGKILL. It may hang in the kernel: who has it reaped then is this process at its end.
        child.send_signal(9)?;
        child.wait_ended(Duration::from_secs(1))?;
        drop(child.try_reap());
        return Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("{} did not end within {} s", parser.display(), LOAD.as_secs()),
        ));
    }
    match child.try_reap()? {
        Some(status) if status.code() == 0 => Ok(()),
        status => {
            said.rewind()?;
            let mut text = Vec::new();
            said.take(SAID).read_to_end(&mut text)?;
            let text = String::from_utf8_lossy(&text);
            let code = status.map_or_else(|| "unknown".to_owned(), |status| status.code().to_string());
            Err(io::Error::other(format!("{} ended with {code}: {}", parser.display(), text.trim())))
        }
    }
}

/// Where the parser's words go: a file without a name, which can't fill up as a pipe would.
fn output_file() -> io::Result<fs::File> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    Ok(fs::File::from(rustix::fs::memfd_create("apparmor_parser", flags)?))
}

#[cfg(test)]
mod tests;
