//! Following the configuration: a task that reads the directories again when they change, and one that asks STATUS.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;

use crate::Network;

/// Editors and installers write in several steps.
const SETTLE: Duration = Duration::from_millis(100);
/// Without a change: directories that appear, drop-in directories, and hosts without inotify watches left.
const RESCAN: Duration = Duration::from_secs(30);
/// The same, when inotify isn't to be had at all.
const RESCAN_BLIND: Duration = Duration::from_secs(2);
/// Between two STATUS while all is well.
const STATUS_WELL: Duration = Duration::from_secs(10);
/// Between two STATUS while the network isn't ready.
const STATUS_ILL: Duration = Duration::from_secs(1);

/// Watching goes on as long as this lives.
#[derive(Debug)]
#[must_use = "watching ends when this is dropped"]
pub struct Watching {
    tasks: [JoinHandle<()>; 2],
}

impl Watching {
    pub(crate) fn start(network: &Network, dirs: Vec<PathBuf>) -> Self {
        Self { tasks: [tokio::spawn(follow(network.clone(), dirs)), tokio::spawn(ask(network.clone()))] }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn follow(network: Network, dirs: Vec<PathBuf>) {
    let watch = Watch::new().map_err(|error| {
        tracing::warn!(%error, "no inotify (see fs.inotify.max_user_instances): the CNI directories are polled");
    });
    let mut changed = false;
    loop {
        // Added anew each time: it changes nothing for a directory that is watched already, and finds one that was
        // removed and made again.
        if let Ok(watch) = &watch {
            watch.add(&dirs);
        }
        let reader = network.clone();
        if tokio::task::spawn_blocking(move || reader.reload()).await.is_err() {
            return;
        }
        if changed {
            // A plugin may have been replaced, by one that is better or worse.
            network.ask_soon();
        }
        changed = false;
        match &watch {
            Ok(watch) => {
                if tokio::time::timeout(RESCAN, watch.changed()).await.is_ok() {
                    tokio::time::sleep(SETTLE).await;
                    watch.drain();
                    changed = true;
                }
            }
            Err(()) => tokio::time::sleep(RESCAN_BLIND).await,
        }
    }
}

async fn ask(network: Network) {
    loop {
        let pause = if network.ask_status().await { STATUS_WELL } else { STATUS_ILL };
        let _early = tokio::time::timeout(pause, network.asked_soon()).await;
    }
}

struct Watch {
    fd: AsyncFd<OwnedFd>,
}

impl Watch {
    fn new() -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        #[expect(deprecated, reason = "its successor is unsafe; an OwnedFd is what it was always sound for")]
        let fd = AsyncFd::new(fd)?;
        Ok(Self { fd })
    }

    fn add(&self, dirs: &[PathBuf]) {
        let flags = WatchFlags::CREATE
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        for dir in dirs {
            if let Err(error) = inotify::add_watch(self.fd.get_ref(), dir, flags) {
                tracing::debug!(dir = %dir.display(), %error, "not watched; it is read twice a minute");
            }
        }
    }

    async fn changed(&self) {
        if let Ok(mut ready) = self.fd.readable().await {
            self.drain();
            ready.clear_ready();
        }
    }

    fn drain(&self) {
        let mut space = [MaybeUninit::<u8>::uninit(); 4096];
        let mut reader = inotify::Reader::new(self.fd.get_ref(), &mut space);
        while reader.next().is_ok() {}
    }
}
