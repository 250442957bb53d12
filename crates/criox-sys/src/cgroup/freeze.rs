//! The freezer: all processes of a cgroup, and of those below it, stopped (v2: `cgroup.freeze` of cgroups(7); v1:
//! `freezer.state` of the kernel's freezer-subsystem document).

use std::path::PathBuf;

use super::fs::{check_plain, error, is_gone, write};
use super::{CgroupError, Cgroups};

/// What the kernel says of a cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FreezeState {
    /// Its processes run.
    Thawed,
    /// It was told to freeze, and some of its processes have not stopped yet.
    Freezing,
    /// All of them have stopped.
    Frozen,
}

impl Cgroups {
    /// Tells a cgroup to freeze, without waiting until its processes have stopped: see [`Cgroups::freeze_state`].
    ///
    /// # Errors
    /// It is the root, there is none, or no freezer is mounted.
    pub fn freeze(&self, path: &str) -> Result<(), CgroupError> {
        let (file, value, _) = self.freezer(path)?;
        write(&file, value)
    }

    /// Lets a cgroup run. One that is not frozen, or not there, is fine. The processes of one whose parent is frozen
    /// stay stopped.
    ///
    /// # Errors
    /// It is the root, or the kernel refuses.
    pub fn thaw(&self, path: &str) -> Result<(), CgroupError> {
        let (file, _, value) = self.freezer(path)?;
        match write(&file, value) {
            Err(CgroupError::Io { source, .. }) if is_gone(&source) => Ok(()),
            other => other,
        }
    }

    /// How far a freeze or thaw is.
    ///
    /// # Errors
    /// It is the root, or there is none.
    pub fn freeze_state(&self, path: &str) -> Result<FreezeState, CgroupError> {
        let (file, ..) = self.freezer(path)?;
        let read = |file: &PathBuf| std::fs::read_to_string(file).map_err(error("read", file));
        let told = read(&file)?;
        if !self.is_v2() {
            return Ok(v1_state(&told));
        }
        let events = file.with_file_name("cgroup.events");
        Ok(v2_state(&told, &read(&events)?))
    }

    /// The file that is written to, and the words for freeze and thaw.
    fn freezer(&self, path: &str) -> Result<(PathBuf, &'static str, &'static str), CgroupError> {
        // The root would stop the node; v2 has no file there.
        if path.trim_matches('/').is_empty() {
            return Err(CgroupError::BadPath(path.to_owned()));
        }
        check_plain(path)?;
        let dir = self.dir("freezer", path).ok_or(CgroupError::NoFreezer)?;
        Ok(match self.is_v2() {
            true => (dir.join("cgroup.freeze"), "1", "0"),
            false => (dir.join("freezer.state"), "FROZEN", "THAWED"),
        })
    }
}

fn v1_state(told: &str) -> FreezeState {
    match told.trim() {
        "FROZEN" => FreezeState::Frozen,
        "FREEZING" => FreezeState::Freezing,
        _ => FreezeState::Thawed,
    }
}

/// `cgroup.freeze` says what was asked for this group; `cgroup.events` what is, also by the doing of a parent.
fn v2_state(told: &str, events: &str) -> FreezeState {
    match (events.lines().any(|line| line == "frozen 1"), told.trim()) {
        (true, _) => FreezeState::Frozen,
        (false, "1") => FreezeState::Freezing,
        (false, _) => FreezeState::Thawed,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::process::SpawnSpec;

    #[test]
    fn both_forms_of_the_kernels_answer_are_read() {
        for (told, expected) in [
            ("THAWED\n", FreezeState::Thawed),
            ("FREEZING\n", FreezeState::Freezing),
            ("FROZEN\n", FreezeState::Frozen),
            ("", FreezeState::Thawed),
        ] {
            assert_eq!(v1_state(told), expected, "{told}");
        }
        for (told, events, expected) in [
            ("0\n", "populated 1\nfrozen 0\n", FreezeState::Thawed),
            ("1\n", "populated 1\nfrozen 0\n", FreezeState::Freezing),
            ("1\n", "populated 1\nfrozen 1\n", FreezeState::Frozen),
            ("0\n", "populated 1\nfrozen 1\n", FreezeState::Frozen),
            ("0\n", "populated 0\n", FreezeState::Thawed),
        ] {
            assert_eq!(v2_state(told, events), expected, "{told} {events}");
        }
    }

    #[test]
    fn the_root_is_never_frozen() {
        let v2 = "30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let cgroups = Cgroups::from_mountinfo(v2).unwrap();
        for path in ["", "/", "//"] {
            assert!(matches!(cgroups.freeze(path), Err(CgroupError::BadPath(_))), "{path}");
        }
        assert!(matches!(cgroups.freeze("/a/../b"), Err(CgroupError::BadPath(_))));
        let without = "26 20 0:23 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let cgroups = Cgroups::from_mountinfo(without).unwrap();
        assert!(matches!(cgroups.freeze("/a"), Err(CgroupError::NoFreezer)));
    }

    #[test]
    fn processes_stop_and_go_on() {
        let Ok(cgroups) = Cgroups::detect() else { return };
        let path = format!("/criox-sys-freeze-{}", std::process::id());
        if let Err(error) = cgroups.create(&path, &[]) {
            eprintln!("skipped: no cgroups can be made here: {error}");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("count");
        let handle = cgroups.enter_handle(&path).unwrap();
        let mut spec = SpawnSpec::new("/bin/sh").unwrap();
        let script = "while :; do (echo x >> \"$0\"); /bin/sleep 0.01; done";
        spec.arg("-c").unwrap().arg(script).unwrap().arg(&file).unwrap().cgroup(&handle);
        let child = spec.spawn().unwrap();
        let count = || std::fs::metadata(&file).map_or(0, |meta| meta.len());
        let grows = || {
            let (before, until) = (count(), Instant::now() + Duration::from_secs(5));
            while count() == before && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
            }
            count() > before
        };
        assert!(grows());
        assert_eq!(cgroups.freeze_state(&path).unwrap(), FreezeState::Thawed);
        cgroups.freeze(&path).unwrap();
        let until = Instant::now() + Duration::from_secs(5);
        while cgroups.freeze_state(&path).unwrap() != FreezeState::Frozen {
            assert!(Instant::now() < until, "it does not freeze");
            std::thread::sleep(Duration::from_millis(1));
        }
        let before = count();
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(count(), before);
        cgroups.thaw(&path).unwrap();
        cgroups.thaw(&path).unwrap();
        assert!(grows());
        cgroups.kill_all(&path, Duration::from_secs(5)).unwrap();
        assert!(child.wait_ended(Duration::from_secs(5)).unwrap());
        child.try_reap().unwrap();
        cgroups.remove(&path, Duration::from_secs(5)).unwrap();
        cgroups.thaw(&path).unwrap();
        assert!(cgroups.freeze(&path).is_err() && cgroups.freeze_state(&path).is_err());
    }
}
