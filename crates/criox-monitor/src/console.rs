//! Where an OCI runtime sends the terminal that it made (`--console-socket`).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use criox_sys::{pty, socket};
use rustix::fs::{Mode, OFlags};

/// A socket that waits for a terminal. Its file goes with it.
pub(crate) struct Console {
    listener: OwnedFd,
    path: PathBuf,
    directory: OwnedFd,
}

impl Console {
    /// Listens at a name in the run directory.
    pub(crate) fn listen(run_dir: &Path, name: &str) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(run_dir, flags, Mode::empty())?;
        let path = run_dir.join(name);
        Ok(Self { listener: socket::bind_listen(&path, 1)?, path, directory })
    }

    /// The name for the runtime. A run directory may lie deeper than the 107 bytes that an address holds, which runc
    /// does not help itself with; by our descriptor of it the name is short.
    pub(crate) fn name(&self) -> PathBuf {
        let directory = format!("/proc/{}/fd/{}", std::process::id(), self.directory.as_raw_fd());
        Path::new(&directory).join(self.path.file_name().unwrap_or_default())
    }

    /// The master that the runtime, which has ended, has sent.
    pub(crate) fn receive(&self) -> io::Result<OwnedFd> {
        pty::receive_master(socket::accept(&self.listener)?)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.path));
    }
}
