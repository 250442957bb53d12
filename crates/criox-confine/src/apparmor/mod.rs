//! AppArmor: the default profile of our own, loaded when it is not there, and the check that a profile is loaded before
//! a container is confined by it.
//!
//! A container that names a profile, or the runtime's default by name, never runs without it. One that names nothing
//! gets the default where that can be had, and otherwise runs as on a kernel without AppArmor, which Status says.
//!
//! Looking a profile up takes no lock. At most one load of ours is in flight; who wants the profile meanwhile waits for
//! it, for some seconds, and gets what it comes to. Who wants another profile waits for nobody.

mod flight;

use std::fs;
use std::io::{self, Read as _, Seek as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use criox_sys::durable;
use criox_sys::lsm::AppArmorFiles;
use criox_sys::process::{ExitStatus, Pidfd, SpawnSpec};

use crate::error::{Error, Result};
use flight::Flights;

/// The profile that is ours to load, as in CRI-O.
const DEFAULT: &str = "crio-default";
/// Its text.
const PROFILE: &str = include_str!("crio-default.profile");
/// A value of `apparmor_profile`: none.
const UNCONFINED: &str = "unconfined";
/// What the parser may take; on a slow machine it takes a second.
const LOAD: Duration = Duration::from_secs(20);
/// From SIGKILL to the parser's end; after that it hangs in the kernel.
const DEATH: Duration = Duration::from_secs(1);
/// How much longer than the parser somebody waits for a load that another began.
const MARGIN: Duration = Duration::from_secs(4);
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
    /// Of our profile.
    loads: Flights<Result<()>>,
    /// What the parser may take.
    patience: Duration,
    /// A parser that SIGKILL did not end.
    hung: Mutex<Option<Pidfd>>,
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
            loads: Flights::default(),
            patience: LOAD,
            hung: Mutex::default(),
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
    pub fn require(&self, name: &str) -> Result<()> {
        if self.is_loaded(name)? {
            return Ok(());
        }
        if name == DEFAULT && self.default == DEFAULT {
            return self.load();
        }
        Err(Error::node(format!(
            "AppArmor profile {name:?} is not loaded on this node; load it with apparmor_parser or correct the name"
        )))
    }

    fn is_loaded(&self, name: &str) -> Result<bool> {
        self.kernel.is_loaded(name).map_err(|error| {
            let list = self.kernel.list().display();
            let message = format!("AppArmor profile {name:?} can't be looked up in {list}; mount securityfs");
            Error::node_because(message, error)
        })
    }

    /// Loads our profile, or waits for the load that is in flight.
    fn load(&self) -> Result<()> {
        let patience = self.patience + DEATH + MARGIN;
        self.loads.join(patience, || self.load_alone()).unwrap_or_else(|| {
            Err(Error::Late(format!(
                "load of AppArmor profile {DEFAULT:?}, which another container began, did not end within {:.1} s; look for an apparmor_parser in state D",
                patience.as_secs_f64()
            )))
        })
    }

    fn load_alone(&self) -> Result<()> {
        let current = fs::read(&self.copy).is_ok_and(|bytes| bytes == PROFILE.as_bytes());
        if current && self.is_loaded(DEFAULT)? {
            return Ok(());
        }
        let message = |advice: &str| format!("AppArmor profile {DEFAULT:?} could not be loaded{advice}");
        let failed = |error: io::Error| Error::node_because(message(""), error);
        let parser = self.parsers.iter().find(|path| path.exists()).ok_or_else(|| {
            Error::node(message(
                ": there is no apparmor_parser; install the package apparmor and restart criox",
            ))
        })?;
        let directory = self.copy.parent().unwrap_or(Path::new("/"));
        // The text that is given to the parser; its name is not that of the copy, which says that it was loaded.
        let given = directory.join(format!("{DEFAULT}.given"));
        fs::create_dir_all(directory)
            .map_err(io::Error::other)
            .and_then(|()| durable::write_atomic(&given, PROFILE.as_bytes(), 0o600).map_err(io::Error::other))
            .map_err(failed)?;
        self.run(parser, &given).map_err(failed)?;
        if !self.is_loaded(DEFAULT)? {
            let lie = message(": apparmor_parser reported success, and the kernel does not know it");
            return Err(Error::node(lie));
        }
        fs::rename(&given, &self.copy).map_err(failed)?;
        tracing::info!(profile = DEFAULT, "loaded the default AppArmor profile");
        Ok(())
    }

    /// Replaces the profiles of a file in the kernel, without the parser's cache, which may be read-only.
    fn run(&self, parser: &Path, file: &Path) -> io::Result<()> {
        self.refuse_while_hung()?;
        let said = output_file()?;
        let mut spec = SpawnSpec::new(parser)?;
        for argument in ["--replace", "--skip-cache"] {
            spec.arg(argument)?;
        }
        spec.arg(file)?.env("PATH=/usr/sbin:/usr/bin:/sbin:/bin")?.env("LC_ALL=C")?;
        spec.fd(said.as_fd(), 1).fd(said.as_fd(), 2);
        let child = spec.spawn().map_err(io::Error::other)?;
        if !child.wait_ended(self.patience)? {
            // SIGKILL.
            child.send_signal(9)?;
            if child.wait_ended(DEATH)? {
                drop(child.try_reap());
            } else {
                *self.hung() = Some(child);
            }
            let waited = self.patience.as_secs_f64();
            let message = format!("{} did not end within {waited:.1} s", parser.display());
            return Err(io::Error::new(io::ErrorKind::TimedOut, message));
        }
        result(parser, child.try_reap()?, said)
    }

    /// Each container that is tried again would leave another one.
    fn refuse_while_hung(&self) -> io::Result<()> {
        let Some(child) = self.hung().take() else { return Ok(()) };
        if child.wait_ended(Duration::ZERO)? {
            drop(child.try_reap());
            return Ok(());
        }
        *self.hung() = Some(child);
        let message = "the apparmor_parser of an earlier load hangs in the kernel; look at its disk and at the kernel's log";
        Err(io::Error::other(message))
    }

    fn hung(&self) -> MutexGuard<'_, Option<Pidfd>> {
        self.hung.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the parser's end says.
fn result(parser: &Path, status: Option<ExitStatus>, mut said: fs::File) -> io::Result<()> {
    match status {
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
