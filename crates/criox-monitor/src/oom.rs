//! OOM kills of a container's memory cgroup, counted by the kernel; the file is opened at creation, as the
//! cgroup may be gone when the question comes.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use criox_sys::cgroup::Cgroups;
use rustix::event::{EventfdFlags, eventfd};

/// What the loop waits on for news.
pub(crate) struct OomWatch {
    counts: File,
    /// v1: signalled when the group runs out of memory.
    event: Option<OwnedFd>,
    seen: u64,
}

impl OomWatch {
    pub(crate) fn open(cgroups: &Cgroups, cgroup: &str) -> io::Result<Self> {
        let dir = cgroups.dir("memory", cgroup).ok_or(io::ErrorKind::NotFound)?;
        if cgroups.is_v2() {
            return Ok(Self { counts: File::open(dir.join("memory.events"))?, event: None, seen: 0 });
        }
        let counts = File::open(dir.join("memory.oom_control"))?;
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let control = std::fs::OpenOptions::new().write(true).open(dir.join("cgroup.event_control"))?;
        let line = format!("{} {}", event.as_raw_fd(), counts.as_raw_fd());
        io::Write::write_all(&mut &control, line.as_bytes())?;
        Ok(Self { counts, event: Some(event), seen: 0 })
    }

    /// The descriptor to poll: for input (v1) or priority (v2).
    pub(crate) fn poll_fd(&self) -> (BorrowedFd<'_>, bool) {
        match &self.event {
            Some(event) => (event.as_fd(), false),
            None => (self.counts.as_fd(), true),
        }
    }

    /// Kills since the last call. An error means that the group is gone.
    pub(crate) fn new_kills(&mut self) -> io::Result<u64> {
        if let Some(event) = &self.event {
            let _ = rustix::io::read(event, &mut [0; 8]);
        }
        let mut text = [0; 512];
        let length = self.counts.read_at(&mut text, 0)?;
        let kills = oom_kills(&String::from_utf8_lossy(&text[..length]));
        let new = kills.saturating_sub(self.seen);
        self.seen = kills;
        Ok(new)
    }

    /// Kills seen so far.
    pub(crate) fn kills(&self) -> u64 {
        self.seen
    }
}

/// The line `oom_kill N`, which both files have.
fn oom_kills(text: &str) -> u64 {
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn kills_are_read_from_either_file() {
        assert_eq!(super::oom_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), 3);
        assert_eq!(super::oom_kills("low 0\nhigh 0\nmax 9\noom 2\noom_kill 1\noom_group_kill 0\n"), 1);
        assert_eq!(super::oom_kills(""), 0);
    }
}
