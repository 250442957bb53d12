//! Work on the mounted hierarchies.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};

use super::{CgroupError, Cgroups, EnterHandle, Hierarchy, Layout};

/// How long a v1 freezer may take before a pass kills what it can.
const FREEZE_WAIT: Duration = Duration::from_millis(20);
const FIRST_PAUSE: Duration = Duration::from_micros(500);
const LAST_PAUSE: Duration = Duration::from_millis(20);

impl Cgroups {
    /// Reads `/proc/self/mountinfo`.
    pub fn detect() -> Result<Self, CgroupError> {
        let path = Path::new("/proc/self/mountinfo");
        let mountinfo = std::fs::read_to_string(path).map_err(error("read", path))?;
        Self::from_mountinfo(&mountinfo)
    }

    /// As [`Cgroups::detect`], from the text of a mountinfo file (proc_pid_mountinfo(5)).
    pub fn from_mountinfo(mountinfo: &str) -> Result<Self, CgroupError> {
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let Some(mount) = left.split(' ').nth(4) else { continue };
            let mut right = right.split(' ');
            let controllers = match right.next() {
                Some("cgroup2") => Vec::new(),
                Some("cgroup") => v1_controllers(right.nth(1).unwrap_or("")),
                _ => continue,
            };
            // A hierarchy may be mounted more than once: the first place will do.
            if !hierarchies.iter().any(|known| known.controllers == controllers) {
                hierarchies.push(Hierarchy { mount: unescape(mount), controllers });
            }
        }
        let v1 = hierarchies.iter().any(|h| h.controllers.iter().any(|c| !c.starts_with("name=")));
        let v2 = hierarchies.iter().any(|h| h.controllers.is_empty());
        let layout = match (v1, v2) {
            (true, true) => Layout::Hybrid,
            (true, false) => Layout::V1,
            (false, true) => Layout::V2,
            (false, false) => return Err(CgroupError::NotMounted),
        };
        Ok(Self { layout, hierarchies })
    }

    /// How the hierarchies are mounted.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// All hierarchies, those without controllers of ours included.
    pub fn hierarchies(&self) -> &[Hierarchy] {
        &self.hierarchies
    }

    /// Whether limits are those of v2.
    pub fn is_v2(&self) -> bool {
        self.layout == Layout::V2
    }

    /// The directory of `path` in the hierarchy of a v1 controller, or in the one hierarchy of v2. `None` if no
    /// such controller is mounted.
    pub fn dir(&self, controller: &str, path: &str) -> Option<PathBuf> {
        let hierarchy = if self.is_v2() {
            self.hierarchies.iter().find(|h| h.controllers.is_empty())
        } else {
            self.hierarchies.iter().find(|h| h.controllers.iter().any(|c| c == controller))
        }?;
        Some(below(&hierarchy.mount, path))
    }

    /// The directories of `path` in all hierarchies where it exists.
    pub fn existing_dirs(&self, path: &str) -> Vec<PathBuf> {
        self.hierarchies.iter().map(|h| below(&h.mount, path)).filter(|dir| dir.is_dir()).collect()
    }

    /// Whether the cgroup exists in any hierarchy.
    pub fn exists(&self, path: &str) -> bool {
        !self.existing_dirs(path).is_empty()
    }

    /// Makes a cgroup and its parents; one that exists is fine. `controllers`: on v1 the hierarchies to make it
    /// in (empty: all but the v2 one of a hybrid), on v2 those enabled for it in its ancestors where they can be.
    pub fn create(&self, path: &str, controllers: &[&str]) -> Result<(), CgroupError> {
        check_plain(path)?;
        if self.is_v2() {
            return self.create_v2(path, controllers);
        }
        for hierarchy in self.hierarchies.iter().filter(|h| !h.controllers.is_empty()) {
            if !controllers.is_empty()
                && !hierarchy.controllers.iter().any(|c| controllers.contains(&c.as_str()))
            {
                continue;
            }
            let cpuset = hierarchy.controllers.iter().any(|c| c == "cpuset");
            let mut dir = hierarchy.mount.clone();
            for part in path.split('/').filter(|part| !part.is_empty()) {
                let parent = dir.clone();
                dir.push(part);
                make_dir(&dir)?;
                if cpuset {
                    inherit_cpuset(&parent, &dir)?;
                }
            }
        }
        Ok(())
    }

    fn create_v2(&self, path: &str, controllers: &[&str]) -> Result<(), CgroupError> {
        let mut dir = self.dir("", "/").ok_or(CgroupError::NotMounted)?;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            for controller in controllers {
                // Refused where the controller is absent or the parent holds processes; limits then fail later,
                // with the file's name.
                let _ = write(&dir.join("cgroup.subtree_control"), &format!("+{controller}"));
            }
            dir.push(part);
            make_dir(&dir)?;
        }
        Ok(())
    }

    /// Processes of the cgroup and those below it, each once, over all hierarchies.
    pub fn procs(&self, path: &str) -> Result<Vec<i32>, CgroupError> {
        let mut pids = Vec::new();
        for dir in self.existing_dirs(path) {
            collect_procs(&dir, &mut pids)?;
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Whether no process lives in the cgroup or below it. A cgroup that doesn't exist is empty.
    pub fn is_empty(&self, path: &str) -> Result<bool, CgroupError> {
        Ok(self.procs(path)?.is_empty())
    }

    /// One pass of killing all that lives in the cgroup and below it, without waiting for their ends. Returns
    /// how many processes it met: call again until that is 0. On v2 one pass is enough but for the waiting
    /// (`cgroup.kill`); on v1 the freezer keeps a fork loop from outrunning it.
    pub fn kill_pass(&self, path: &str) -> Result<usize, CgroupError> {
        if path.trim_matches('/').is_empty() {
            return Err(CgroupError::BadPath(path.to_owned()));
        }
        if self.is_v2() {
            let Some(dir) = self.dir("", path) else { return Ok(0) };
            match write(&dir.join("cgroup.kill"), "1") {
                Ok(()) => return Ok(self.procs(path)?.len()),
                Err(CgroupError::Io { source, .. }) if is_gone(&source) => {
                    // Before Linux 5.14, or the cgroup is gone.
                    if !dir.is_dir() {
                        return Ok(0);
                    }
                }
                Err(error) => return Err(error),
            }
            return self.signal_all(path, Signal::KILL);
        }
        let freezer = self.dir("freezer", path).filter(|dir| dir.is_dir());
        let frozen = freezer.as_deref().is_some_and(freeze_v1);
        let met = self.signal_all(path, Signal::KILL);
        if frozen && let Some(dir) = &freezer {
            thaw_v1(dir)?;
        }
        met
    }

    /// Sends a signal to each process of the cgroup and below it. Returns how many there were.
    pub fn signal_all(&self, path: &str, signal: Signal) -> Result<usize, CgroupError> {
        let pids = self.procs(path)?;
        let own = rustix::process::getpid().as_raw_nonzero().get();
        for pid in pids.iter().filter_map(|pid| (*pid != own).then(|| Pid::from_raw(*pid)).flatten()) {
            // One that has ended meanwhile is no error.
            let _ = kill_process(pid, signal);
        }
        Ok(pids.len())
    }

    /// Kills all that lives in the cgroup and below it, and waits until it is empty, at most `timeout`.
    pub fn kill_all(&self, path: &str, timeout: Duration) -> Result<(), CgroupError> {
        let mut pause = Pause::new(timeout);
        loop {
            let left = self.kill_pass(path)?;
            if left == 0 {
                return Ok(());
            }
            if !pause.sleep() {
                return Err(CgroupError::NotEmptied { path: path.to_owned(), left, waited: timeout });
            }
        }
    }

    /// Removes the cgroup and all below it, in every hierarchy; one that doesn't exist is fine. The kernel lets
    /// go of a group some moments after its last process: retried for at most `timeout` (zero: tried once).
    pub fn remove(&self, path: &str, timeout: Duration) -> Result<(), CgroupError> {
        if path.trim_matches('/').is_empty() {
            return Err(CgroupError::BadPath(path.to_owned()));
        }
        check_plain(path)?;
        let mut pause = Pause::new(timeout);
        loop {
            let mut refused = None;
            for dir in self.existing_dirs(path) {
                refused = remove_tree(&dir).err().or(refused);
            }
            let Some(source) = refused else { return Ok(()) };
            if !pause.sleep() {
                return Err(CgroupError::Busy { path: path.to_owned(), waited: timeout, source });
            }
        }
    }

    /// As [`Cgroups::procs`], from the hierarchy of one controller alone, for those who count: reading all of them costs
    /// v1 ten times as much. A process that moves meanwhile may be seen twice or not at all.
    pub fn procs_in(&self, controller: &str, path: &str) -> Result<Vec<i32>, CgroupError> {
        let mut pids = Vec::new();
        if let Some(dir) = self.dir(controller, path) {
            collect_procs(&dir, &mut pids)?;
        }
        Ok(pids)
    }

    /// Opens the cgroup, in each hierarchy where it exists, for a process to be started in it.
    pub fn enter_handle(&self, path: &str) -> Result<EnterHandle, CgroupError> {
        check_plain(path)?;
        if self.is_v2() {
            let dir = self.dir("", path).ok_or(CgroupError::NotMounted)?;
            return EnterHandle::from_dirs([dir.as_path()]);
        }
        let dirs = self.existing_dirs(path);
        if dirs.is_empty() {
            let dir = self.dir("memory", path).ok_or(CgroupError::NotMounted)?;
            return Err(error("open", &dir)(io::ErrorKind::NotFound.into()));
        }
        EnterHandle::from_dirs(dirs.iter().map(PathBuf::as_path))
    }
}

impl EnterHandle {
    /// Opens cgroups by their directories, one a hierarchy.
    pub fn from_dirs<'a>(dirs: impl IntoIterator<Item = &'a Path>) -> Result<Self, CgroupError> {
        let mut handle = Self { directory: None, procs: Vec::new() };
        for dir in dirs {
            // Only v2 has this file, and not at its root, where nothing is placed.
            if dir.join("cgroup.events").exists() && !dir.join("tasks").exists() && handle.directory.is_none()
            {
                handle.directory = Some(open(dir, OFlags::RDONLY | OFlags::DIRECTORY)?);
            } else {
                handle.procs.push(open(&dir.join("cgroup.procs"), OFlags::WRONLY)?);
            }
        }
        Ok(handle)
    }
}

/// Waits that grow, until a deadline.
struct Pause {
    until: Instant,
    next: Duration,
}

impl Pause {
    fn new(timeout: Duration) -> Self {
        Self { until: Instant::now() + timeout, next: FIRST_PAUSE }
    }

    /// False when the time is over.
    fn sleep(&mut self) -> bool {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        std::thread::sleep(self.next.min(left));
        self.next = (self.next * 2).min(LAST_PAUSE);
        true
    }
}

pub(super) fn error<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> CgroupError + 'a {
    move |source| CgroupError::Io { action, path: path.to_owned(), source }
}

pub(super) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

pub(super) fn below(mount: &Path, path: &str) -> PathBuf {
    mount.join(path.trim_start_matches('/'))
}

pub(super) fn check_plain(path: &str) -> Result<(), CgroupError> {
    let plain =
        path.starts_with('/') && !path.contains('\0') && !path.split('/').any(|p| p == "." || p == "..");
    if plain { Ok(()) } else { Err(CgroupError::BadPath(path.to_owned())) }
}

fn v1_controllers(options: &str) -> Vec<String> {
    const KNOWN: [&str; 14] = [
        "cpu",
        "cpuacct",
        "cpuset",
        "memory",
        "devices",
        "freezer",
        "blkio",
        "pids",
        "net_cls",
        "net_prio",
        "perf_event",
        "hugetlb",
        "rdma",
        "misc",
    ];
    let known = |o: &&str| KNOWN.contains(o) || o.starts_with("name=");
    options.split(',').filter(known).map(str::to_owned).collect()
}

/// mountinfo writes blanks, tabs, newlines and backslashes as `\ooo`.
fn unescape(text: &str) -> PathBuf {
    let mut plain = text.to_owned();
    for (code, c) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        plain = plain.replace(code, c);
    }
    plain.into()
}

fn open(path: &Path, flags: OFlags) -> Result<OwnedFd, CgroupError> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| error("open", path)(errno.into()))
}

fn make_dir(dir: &Path) -> Result<(), CgroupError> {
    match std::fs::create_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(error("make", dir)(e)),
        _ => Ok(()),
    }
}

pub(super) fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    let file = std::fs::OpenOptions::new().write(true).open(path);
    file.and_then(|mut file| file.write_all(value.as_bytes())).map_err(error("write", path))
}

/// A v1 cpuset takes no process until it has CPUs and memory nodes.
fn inherit_cpuset(parent: &Path, dir: &Path) -> Result<(), CgroupError> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let file = dir.join(name);
        if std::fs::read_to_string(&file).is_ok_and(|value| value.trim().is_empty()) {
            let from = parent.join(name);
            let value = std::fs::read_to_string(&from).map_err(error("read", &from))?;
            write(&file, value.trim())?;
        }
    }
    Ok(())
}

fn collect_procs(dir: &Path, pids: &mut Vec<i32>) -> Result<(), CgroupError> {
    let file = dir.join("cgroup.procs");
    match std::fs::read_to_string(&file) {
        Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|p| *p > 0)),
        Err(e) if is_gone(&e) => return Ok(()),
        // A threaded v2 group lists its processes in its domain, above.
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
        Err(e) => return Err(error("read", &file)(e)),
    }
    for child in child_dirs(dir) {
        collect_procs(&child, pids)?;
    }
    Ok(())
}

fn child_dirs(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let is_dir = |e: &std::fs::DirEntry| e.file_type().is_ok_and(|kind| kind.is_dir());
    entries.flatten().filter(is_dir).map(|entry| entry.path()).collect()
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    match std::fs::remove_dir(dir) {
        Err(e) if is_gone(&e) => return Ok(()),
        Ok(()) => return Ok(()),
        Err(_) => {}
    }
    for child in child_dirs(dir) {
        remove_tree(&child)?;
    }
    match std::fs::remove_dir(dir) {
        Err(e) if !is_gone(&e) => Err(e),
        _ => Ok(()),
    }
}

/// Returns whether the freezer was told to freeze. Waits a moment for it to be complete: then nothing forks
/// while the list is read.
fn freeze_v1(dir: &Path) -> bool {
    let state = dir.join("freezer.state");
    if write(&state, "FROZEN").is_err() {
        return false;
    }
    let until = Instant::now() + FREEZE_WAIT;
    while std::fs::read_to_string(&state).is_ok_and(|s| s.trim() != "FROZEN") && Instant::now() < until {
        std::thread::yield_now();
    }
    true
}

fn thaw_v1(dir: &Path) -> Result<(), CgroupError> {
    match write(&dir.join("freezer.state"), "THAWED") {
        Err(CgroupError::Io { source, .. }) if is_gone(&source) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::SpawnSpec;

    const V1: &str = "25 20 0:22 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
        26 20 0:23 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        27 20 0:24 / /sys/fs/cgroup/systemd rw shared:9 - cgroup cgroup rw,xattr,name=systemd\n";
    const V2: &str = "30 20 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn the_layout_is_told_from_the_mounts() {
        let layout = |text: &str| Cgroups::from_mountinfo(text).ok().map(|c| c.layout());
        assert_eq!(layout(V1), Some(Layout::V1));
        assert_eq!(layout(V2), Some(Layout::V2));
        assert_eq!(layout(&format!("{V1}{V2}")), Some(Layout::Hybrid));
        assert_eq!(layout("1 1 0:1 / / rw - ext4 /dev/vda rw"), None);
        let v1 = Cgroups::from_mountinfo(V1).unwrap();
        assert_eq!(v1.dir("cpuacct", "/a/b").unwrap(), Path::new("/sys/fs/cgroup/cpu,cpuacct/a/b"));
        assert_eq!(v1.dir("pids", "/a"), None);
        assert_eq!(
            Cgroups::from_mountinfo(V2).unwrap().dir("memory", "/a").unwrap(),
            Path::new("/sys/fs/cgroup/a")
        );
    }

    #[test]
    fn the_root_and_paths_with_dots_are_never_touched() {
        let cgroups = Cgroups::from_mountinfo(V2).unwrap();
        for path in ["", "/", "//"] {
            assert!(matches!(cgroups.kill_pass(path), Err(CgroupError::BadPath(_))), "{path}");
            assert!(matches!(cgroups.remove(path, Duration::ZERO), Err(CgroupError::BadPath(_))), "{path}");
        }
        assert!(matches!(cgroups.create("/a/../b", &[]), Err(CgroupError::BadPath(_))));
    }

    #[test]
    fn a_process_is_born_in_its_group_and_killed_with_it() {
        let Ok(cgroups) = Cgroups::detect() else { return };
        let path = format!("/criox-sys-test-{}", std::process::id());
        if let Err(error) = cgroups.create(&format!("{path}/inner"), &[]) {
            eprintln!("not run: no cgroups can be made here: {error}");
            return;
        }
        let handle = cgroups.enter_handle(&format!("{path}/inner")).unwrap();
        let mut spec = SpawnSpec::new("/bin/sh").unwrap();
        spec.arg("-c").unwrap().arg("while :; do (sleep 5 & sleep 5) & /bin/sleep 0.01; done").unwrap();
        spec.cgroup(&handle);
        let child = spec.spawn().unwrap();
        assert!(cgroups.procs(&path).unwrap().contains(&child.pid()));
        std::thread::sleep(Duration::from_millis(100));
        assert!(cgroups.remove(&path, Duration::ZERO).is_err());
        // Zombies don't count; their parent is reaped by us.
        cgroups.kill_all(&path, Duration::from_secs(5)).unwrap();
        assert!(child.wait_ended(Duration::from_secs(5)).unwrap());
        child.try_reap().unwrap();
        cgroups.remove(&path, Duration::from_secs(5)).unwrap();
        assert!(!cgroups.exists(&path));
    }
}
