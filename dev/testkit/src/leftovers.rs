//! What a dead pod should not have left: mounts, namespaces, cgroups, processes, files below `/run`, firewall rules.
//!
//! Only names made from our own IDs, directories and cgroup parents count: on a shared machine foreign cgroups, mounts and
//! processes come and go.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cgroups::hierarchies;

/// By what something is known to be ours.
#[derive(Debug, Clone, Default)]
pub struct Traces {
    /// IDs of sandboxes and containers.
    pub ids: Vec<String>,
    /// Directories that only this test uses.
    pub dirs: Vec<PathBuf>,
    /// Cgroup parents that only this test uses, from the hierarchy's root: `/criox-test-x`.
    pub cgroup_parents: Vec<String>,
    /// Processes that may live on: a daemon that is still wanted.
    pub except: Vec<u32>,
}

impl Traces {
    /// Whether a line or a path names one of ours.
    fn marks(&self, text: &str) -> bool {
        self.ids.iter().any(|id| text.contains(id.as_str()))
            || self.dirs.iter().any(|dir| dir.to_str().is_some_and(|dir| text.contains(dir)))
    }
}

/// One line for each thing found; empty is what a test wants.
pub fn leftovers(traces: &Traces) -> Vec<String> {
    let mut found = Vec::new();
    found.extend(mounts(traces).into_iter().map(|path| format!("mount {}", path.display())));
    found.extend(cgroups(traces).into_iter().map(|path| format!("cgroup {}", path.display())));
    found.extend(processes(traces).into_iter().map(|(pid, name)| format!("process {pid} ({name})")));
    found.extend(named_files(traces).into_iter().map(|path| format!("file {}", path.display())));
    for (program, args) in
        [("iptables-save", &[][..]), ("ip6tables-save", &[]), ("nft", &["list", "ruleset"])]
    {
        found.extend(rules(program, args, traces));
    }
    found
}

/// Mount points of this namespace that are ours, the deepest first.
pub fn mounts(traces: &Traces) -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut points: Vec<PathBuf> = text
        .lines()
        .filter(|line| traces.marks(line))
        .filter_map(|line| line.split(' ').nth(4).map(PathBuf::from))
        .collect();
    points.reverse();
    points
}

/// Our cgroups, the deepest first; a parent that is empty is no leftover, for the kubelet makes and removes it.
pub fn cgroups(traces: &Traces) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for hierarchy in hierarchies() {
        let parents: Vec<PathBuf> = traces
            .cgroup_parents
            .iter()
            .map(|parent| hierarchy.join(parent.trim_start_matches('/')))
            .collect();
        walk_cgroups(&hierarchy, &parents, traces, false, &mut found);
    }
    found
}

fn walk_cgroups(dir: &Path, parents: &[PathBuf], traces: &Traces, ours: bool, found: &mut Vec<PathBuf>) {
    // A cgroup that goes away meanwhile is none of ours that stays.
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let path = entry.path();
        let named = traces.marks(&entry.file_name().to_string_lossy());
        walk_cgroups(&path, parents, traces, ours || parents.contains(&path), found);
        if ours || named {
            found.push(path);
        }
    }
}

/// Removes the given cgroup parents, which must be empty, from all hierarchies.
pub(crate) fn remove_cgroup_parents(traces: &Traces) {
    for hierarchy in hierarchies() {
        for parent in &traces.cgroup_parents {
            // It was never made in a hierarchy that nothing used.
            drop(fs::remove_dir(hierarchy.join(parent.trim_start_matches('/'))));
        }
    }
}

/// Living processes whose command line, working directory or cgroup is ours. A zombie is its parent's affair.
pub fn processes(traces: &Traces) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir("/proc") else { return found };
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if pid == std::process::id() || traces.except.contains(&pid) {
            continue;
        }
        let dir = entry.path();
        let stat = fs::read_to_string(dir.join("stat")).unwrap_or_default();
        // After the name in brackets: state, parent.
        let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        if fields.next() == Some("Z") {
            continue;
        }
        let command = fs::read(dir.join("cmdline")).unwrap_or_default();
        // A daemon's child between fork and exec has the daemon's command line.
        let parent = fields.next().and_then(|pid| pid.parse::<u32>().ok());
        if let Some(parent) = parent.filter(|pid| traces.except.contains(pid))
            && fs::read(format!("/proc/{parent}/cmdline")).is_ok_and(|same| same == command)
        {
            continue;
        }
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let cgroup = fs::read_to_string(dir.join("cgroup")).unwrap_or_default();
        let cwd = fs::read_link(dir.join("cwd")).unwrap_or_default();
        let under_parent = traces.cgroup_parents.iter().any(|parent| cgroup.contains(parent.as_str()));
        if under_parent
            || traces.marks(&command)
            || traces.marks(&cgroup)
            || traces.marks(&cwd.to_string_lossy())
        {
            found.push((pid, command.trim_end().to_owned()));
        }
    }
    found
}

/// Files and directories with one of our IDs in their name, in the places that all runtimes share.
pub(crate) fn named_files(traces: &Traces) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for place in ["/run", "/var/lib/cni", "/var/lib/criox"] {
        files(Path::new(place), 6, traces, &mut found);
    }
    found
}

fn files(dir: &Path, depth: usize, traces: &Traces, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if traces.marks(&entry.file_name().to_string_lossy()) {
            found.push(path);
        } else if depth > 1
            && entry.file_type().is_ok_and(|kind| kind.is_dir())
            && !traces.dirs.iter().any(|dir| path.starts_with(dir))
        {
            files(&path, depth - 1, traces, found);
        }
    }
}

/// Firewall rules carry the container's ID in a comment. No such program: no such rules.
fn rules(program: &str, args: &[&str], traces: &Traces) -> Vec<String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).stderr(Stdio::null()).output();
    let Ok(output) = output else { return Vec::new() };
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter(|line| traces.ids.iter().any(|id| line.contains(id.as_str())))
        .map(|line| format!("firewall rule {}", line.trim()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_in_our_directory_is_found_and_one_elsewhere_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new("sleep").arg("60").current_dir(dir.path()).spawn().unwrap();
        let traces = Traces { dirs: vec![dir.path().to_owned()], ..Traces::default() };
        let seen = processes(&traces);
        let spared = processes(&Traces { except: vec![child.id()], ..traces.clone() });
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(seen.iter().map(|(pid, _)| *pid).collect::<Vec<_>>(), [child.id()]);
        assert!(spared.is_empty());
        assert!(processes(&traces).is_empty());
    }

    #[test]
    fn a_child_that_has_not_become_another_program_yet_is_its_parents() {
        let dir = tempfile::tempdir().unwrap();
        let script = "exec 3<&0; (read -r line <&3) & echo; wait";
        let mut parent = Command::new("sh")
            .args(["-c", script, "sh", dir.path().to_str().unwrap()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0];
        std::io::Read::read_exact(parent.stdout.as_mut().unwrap(), &mut ready).unwrap();
        let traces = Traces { dirs: vec![dir.path().to_owned()], ..Traces::default() };
        let all = processes(&traces).len();
        let spared = processes(&Traces { except: vec![parent.id()], ..traces }).len();
        drop(parent.stdin.take());
        parent.kill().unwrap();
        parent.wait().unwrap();
        assert_eq!((all, spared), (2, 0));
    }

    #[test]
    fn no_id_marks_nothing() {
        assert!(!Traces::default().marks("anything"));
    }
}
