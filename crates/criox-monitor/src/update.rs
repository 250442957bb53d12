//! Changed limits of a container: all of them, or none.
//!
//! The OCI runtime writes them, for it knows how the driver keeps them (files, and with systemd a scope's properties).
//! It stops at the first that the kernel refuses; what the files said before is therefore read first, and written
//! back then.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use criox_monitor_api::proto::{self, failure::Kind, reply};
use criox_sys::cgroup::Cgroups;
use serde::Deserialize;

use crate::client::{done, failure};
use crate::container::{Caller, Phase, Purpose, RuntimeRun};
use crate::monitor::Monitor;
use crate::verbs::{not_found, not_started, timeout};
use crate::{oci, tell};

/// Files of limits on v1, with the controller that has them.
const FILES_V1: [(&str, &str); 8] = [
    ("cpu", "cpu.shares"),
    ("cpu", "cpu.cfs_period_us"),
    ("cpu", "cpu.cfs_quota_us"),
    ("cpuset", "cpuset.cpus"),
    ("cpuset", "cpuset.mems"),
    ("memory", "memory.limit_in_bytes"),
    ("memory", "memory.memsw.limit_in_bytes"),
    ("memory", "memory.soft_limit_in_bytes"),
];
/// Files of limits on v2.
const FILES_V2: [&str; 9] = [
    "cpu.weight",
    "cpu.max",
    "cpuset.cpus",
    "cpuset.mems",
    "memory.max",
    "memory.swap.max",
    "memory.high",
    "memory.low",
    "memory.min",
];
/// Some files take their old values only after others have: memory below memory and swap, a quota below its period.
const PASSES: usize = 3;
/// How often processes that were forked meanwhile are looked for.
const LOOKS: usize = 3;

/// What of an OCI resources object names files that nothing else names.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Resources {
    unified: BTreeMap<String, String>,
    hugepage_limits: Vec<HugepageLimit>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct HugepageLimit {
    page_size: String,
    limit: u64,
}

/// An update at work.
pub(crate) struct Change {
    caller: Caller,
    request: proto::Update,
    resources: Resources,
    saved: Saved,
    /// The document that the runtime reads.
    document: PathBuf,
    /// Set once the runtime is to put the old values back: what to answer then.
    refused: Option<reply::Result>,
}

impl Monitor {
    pub(crate) fn update(&mut self, caller: Caller, request: proto::Update) {
        if let Err(result) = self.try_update(caller, request) {
            self.answer(caller, result);
        }
    }

    fn try_update(&mut self, caller: Caller, request: proto::Update) -> Result<(), reply::Result> {
        let id = request.container_id.clone();
        let number = self.find(&id).ok_or_else(|| not_found(&id))?;
        let container = self.containers.get(&number).ok_or_else(|| not_found(&id))?;
        if !matches!(container.phase, Phase::Created | Phase::Running) || container.exit.is_some() {
            return Err(failure(Kind::WrongState, format!("container {id} is neither created nor running")));
        }
        if container.updating || !container.deleting.is_empty() {
            return Err(failure(Kind::WrongState, format!("container {id} is being changed already")));
        }
        if container.cgroup.trim_matches('/').is_empty() {
            return Err(failure(Kind::WrongState, format!("container {id} has no cgroup of its own")));
        }
        let resources: Resources = serde_json::from_slice(&request.resources).map_err(|error| {
            failure(Kind::Internal, format!("the resources are no OCI resources: {error}"))
        })?;
        let saved = Saved::take(&self.cgroups, &container.cgroup, &resources);
        let document = self.args.run_dir.join(format!("update-{number}.json"));
        let change = Change { caller, request, resources, saved, document, refused: None };
        self.run_update(number, change)
    }

    /// Lets the runtime write the new values, or the old ones once the new were refused.
    fn run_update(&mut self, number: u32, change: Change) -> Result<(), reply::Result> {
        let container =
            self.containers.get_mut(&number).ok_or_else(|| not_found(&change.request.container_id))?;
        let back = change.refused.is_some();
        let bytes = if back { &change.request.previous } else { &change.request.resources };
        write_document(&change.document, bytes)
            .map_err(|error| failure(Kind::Internal, format!("could not prepare the update: {error}")))?;
        let log = self.args.run_dir.join(format!("update-{number}.log"));
        let args =
            ["update".as_ref(), "--resources".as_ref(), change.document.as_os_str(), container.id.as_ref()];
        let started = oci::start(&container.runtime, &log, &args, None, None).map_err(|error| {
            drop(std::fs::remove_file(&change.document));
            not_started(&error)
        })?;
        container.updating = true;
        let limit = timeout(change.request.timeout_ms);
        self.follow(
            RuntimeRun {
                process: started.process,
                stderr: started.stderr,
                log,
                pid_file: None,
                container: number,
                purpose: Purpose::Update(Box::new(change)),
                timed_out: false,
            },
            limit,
        );
        Ok(())
    }

    /// The runtime has ended.
    pub(crate) fn updated(&mut self, number: u32, mut change: Change, refused: Option<reply::Result>) {
        drop(std::fs::remove_file(&change.document));
        let caller = change.caller;
        let Some(container) = self.containers.get_mut(&number) else {
            return self.answer(caller, not_found(&change.request.container_id));
        };
        container.updating = false;
        if let Some(first) = change.refused.take() {
            if let Some(reply::Result::Failure(error)) = refused {
                tell(&format!("systemd may keep refused limits of {}: {}", container.id, error.message));
            }
            change.saved.restore(&container.id);
            return self.answer(caller, first);
        }
        let (id, cgroup, pid) = (container.id.clone(), container.cgroup.clone(), container.pid);
        if container.exit.is_some() {
            // Its number may be another's by now.
            let result = failure(Kind::WrongState, format!("container {id} has ended meanwhile"));
            return self.answer(caller, result);
        }
        let result = match refused {
            Some(result) => Err(result),
            None => self.write_rest(&change, &cgroup, pid).map_err(|text| failure(Kind::Runtime, text)),
        };
        let Err(refused) = result else { return self.answer(caller, done()) };
        let systemd = self.containers.get(&number).is_some_and(|c| c.runtime.systemd_cgroup);
        if systemd && !change.request.previous.is_empty() {
            let saved = change.saved.clone();
            change.refused = Some(refused.clone());
            if self.run_update(number, change).is_ok() {
                return;
            }
            saved.restore(&id);
        } else {
            change.saved.restore(&id);
        }
        self.answer(caller, refused);
    }

    /// What runtimes leave out of an update: huge pages (runc), and the OOM score, which is no cgroup's.
    fn write_rest(&self, change: &Change, cgroup: &str, pid: i32) -> Result<(), String> {
        for limit in &change.resources.hugepage_limits {
            let file = hugetlb_file(&limit.page_size, self.cgroups.is_v2());
            let Some(path) = self.cgroups.dir("hugetlb", cgroup).map(|dir| dir.join(file)) else { continue };
            // Absent where the controller isn't enabled for the group: then only "none" is as asked.
            if !path.exists() && limit.limit == 0 {
                continue;
            }
            put(&path, &limit.limit.to_string())
                .map_err(|error| format!("write {}: {error}", path.display()))?;
        }
        let Some(score) = change.request.oom_score_adj else { return Ok(()) };
        self.set_oom_score(cgroup, pid, score)
            .map_err(|error| format!("set the OOM score of process {pid} to {score}: {error}"))
    }

    /// The first process decides; others follow that have not chosen another score than it had.
    fn set_oom_score(&self, cgroup: &str, pid: i32, score: i32) -> io::Result<()> {
        let old = oom_score(pid)?;
        if old == score {
            return Ok(());
        }
        put(&score_file(pid), &score.to_string())?;
        self.follow_oom_score(cgroup, pid, score, |now| now == old);
        Ok(())
    }

    /// After a restore: CRIU gives each process the score that it had at the checkpoint, which may have been that of
    /// another kind of pod, or anything in one from elsewhere. None is left below the container's.
    pub(crate) fn give_oom_score(&self, cgroup: &str, pid: i32, score: i32) -> io::Result<()> {
        let old = oom_score(pid)?;
        if old != score {
            put(&score_file(pid), &score.to_string())?;
        }
        self.follow_oom_score(cgroup, pid, score, |now| now < score || (now == old && now != score));
        Ok(())
    }

    fn follow_oom_score(&self, cgroup: &str, first: i32, score: i32, follows: impl Fn(i32) -> bool) {
        for _ in 0..LOOKS {
            let mut found = false;
            for other in self.cgroups.procs(cgroup).unwrap_or_default() {
                if other != first && oom_score(other).is_ok_and(&follows) {
                    // One that has ended meanwhile is no error.
                    found |= put(&score_file(other), &score.to_string()).is_ok();
                }
            }
            if !found {
                break;
            }
        }
    }
}

fn score_file(pid: i32) -> PathBuf {
    format!("/proc/{pid}/oom_score_adj").into()
}

fn oom_score(pid: i32) -> io::Result<i32> {
    let text = std::fs::read_to_string(score_file(pid))?;
    text.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
}

fn hugetlb_file(size: &str, v2: bool) -> String {
    if v2 { format!("hugetlb.{size}.max") } else { format!("hugetlb.{size}.limit_in_bytes") }
}

fn put(path: &Path, value: &str) -> io::Result<()> {
    std::fs::OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

fn write_document(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(bytes)
}

/// What the files of limits said.
#[derive(Debug, Clone, Default)]
struct Saved(Vec<(PathBuf, String)>);

impl Saved {
    fn take(cgroups: &Cgroups, cgroup: &str, resources: &Resources) -> Self {
        let v2 = cgroups.is_v2();
        let mut files: Vec<(&str, String)> = if v2 {
            FILES_V2.iter().map(|file| ("", (*file).to_owned())).collect()
        } else {
            FILES_V1.iter().map(|(controller, file)| (*controller, (*file).to_owned())).collect()
        };
        let pages = resources.hugepage_limits.iter();
        files.extend(pages.map(|limit| ("hugetlb", hugetlb_file(&limit.page_size, v2))));
        if v2 {
            files.extend(resources.unified.keys().map(|name| ("", name.clone())));
        }
        let paths = files
            .into_iter()
            .filter(|(_, file)| !file.contains('/'))
            .filter_map(|(controller, file)| Some(cgroups.dir(controller, cgroup)?.join(file)));
        Self::read(paths)
    }

    fn read(paths: impl Iterator<Item = PathBuf>) -> Self {
        // Absent: a controller that is not there, whose limits nobody can change.
        Self(paths.filter_map(|path| std::fs::read_to_string(&path).ok().map(|text| (path, text))).collect())
    }

    /// Writes back what differs.
    fn restore(&self, id: &str) {
        let mut failed = Vec::new();
        for _ in 0..PASSES {
            failed.clear();
            for (path, old) in &self.0 {
                if std::fs::read_to_string(path).is_ok_and(|now| now == *old) {
                    continue;
                }
                // With the container its group may have gone.
                if let Err(error) = put(path, old.trim_end())
                    && error.kind() != io::ErrorKind::NotFound
                {
                    failed.push(format!("{}: {error}", path.display()));
                }
            }
            if failed.is_empty() {
                return;
            }
        }
        tell(&format!("limits of {id} that could not be put back: {}", failed.join("; ")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_is_written_back() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        for (path, text) in [(&one, "1000\n"), (&two, "max\n")] {
            write_document(path, text.as_bytes()).unwrap();
        }
        let saved = Saved::read([one.clone(), two.clone(), dir.path().join("absent")].into_iter());
        write_document(&one, b"7\n").unwrap();
        saved.restore("c");
        assert_eq!(std::fs::read_to_string(&one).unwrap().trim_end().len(), 4);
        assert_eq!(std::fs::read_to_string(&two).unwrap(), "max\n");
    }

    #[test]
    fn a_document_names_its_own_files() {
        let json = br#"{"cpu":{"shares":2},"unified":{"memory.oom.group":"1"},"hugepageLimits":[{"pageSize":"2MB","limit":0}]}"#;
        let resources: Resources = serde_json::from_slice(json).unwrap();
        assert_eq!(resources.unified.len(), 1);
        assert_eq!(hugetlb_file(&resources.hugepage_limits[0].page_size, true), "hugetlb.2MB.max");
    }
}
