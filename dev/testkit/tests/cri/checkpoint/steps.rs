//! The daemon is killed at each step of a checkpoint and of a restore that the sources name. The containers go on, and
//! after the restart nothing half-made is left.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use criox_cri::v1::RestorePodRequest;
use testkit::{Daemon, Node, Result, wait_for};

use super::{checkpoint, checkpoint_pod, counting, counts_on, criu, directory, with_criu};
use crate::pod::LIMIT;

/// The steps, by their names in the sources.
fn steps() -> Result<BTreeSet<String>> {
    // The guest of tests/node has a copy.
    let here = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates/criox-lifecycle/src");
    let sources = std::env::var_os("CRIOX_LIFECYCLE_SOURCES").map_or_else(here, PathBuf::from);
    let mut names = BTreeSet::new();
    for directory in ["checkpoint", "container"] {
        for entry in std::fs::read_dir(sources.join(directory))?.flatten() {
            let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
            let calls = text.split(" step(\"").skip(1).chain(text.split("::step(\"").skip(1));
            names.extend(calls.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())));
        }
    }
    names.retain(|name| name.starts_with("checkpoint.") || name.starts_with("restore."));
    if names.len() < 9 {
        return Err(format!("steps are missing: {names:?}").into());
    }
    Ok(names)
}

pub(crate) fn killed() -> Result {
    let criu = criu()?;
    let mut node = Node::start(|registry| with_criu(Daemon::builder().registry(registry), &criu)?.start())?;
    let config = node.cri.host_network_pod("steps");
    let sandbox = node.cri.run_pod(&config)?;
    let mut ids = Vec::new();
    for name in ["a", "b"] {
        let id = node.cri.create(&sandbox, &counting(&node.cri, name, &node.image), &config)?;
        node.cri.start(&id)?;
        counts_on(&node.cri, &id)?;
        ids.push(id);
    }
    let good = directory(&node.daemon, "good")?;
    checkpoint_pod(&node.cri, &sandbox, &[&ids[0], &ids[1]], &good)?;
    let (output, archives) = (directory(&node.daemon, "output")?, directory(&node.daemon, "archives")?);
    for step in steps()? {
        node.daemon.terminate()?;
        let mut command = node.daemon.command();
        command.env("CRIOX_FAILPOINTS", format!("{step}=kill"));
        node.daemon.start_with(command)?;
        let cri = node.daemon.cri()?;
        let answer = if step == "checkpoint.thawed" {
            checkpoint(&cri, &ids[0], &archives.join("a.tar"), 100)
        } else if step.starts_with("checkpoint.") {
            checkpoint_pod(&cri, &sandbox, &[&ids[0], &ids[1]], &output)
        } else {
            let request = RestorePodRequest {
                checkpoint_path: good.display().to_string(),
                config: Some(cri.host_network_pod("steps-restored")),
                container_configs: ["a", "b"].map(|name| counting(&cri, name, &node.image)).to_vec(),
                ..Default::default()
            };
            cri.call(cri.runtime().restore_pod(request)).map(drop)
        };
        assert!(answer.is_err() && cri.version().is_err(), "{step}: the daemon was to die: {answer:?}");
        node.daemon.kill()?;
        node.daemon.start()?;
        node.cri = node.daemon.cri()?;
        for id in &ids {
            counts_on(&node.cri, id).map_err(|error| format!("{step}: {error}"))?;
        }
        let places = [
            output.clone(),
            archives.clone(),
            node.daemon.root().join("criox/captures"),
            node.daemon.root().join("criox/intakes"),
        ];
        wait_for(&format!("everything half-made to be gone after {step}"), LIMIT, || {
            let left =
                places.iter().any(|place| place.read_dir().is_ok_and(|mut entries| entries.next().is_some()));
            Ok((!left && node.cri.list_pods()?.len() == 1).then_some(()))
        })?;
    }
    node.daemon.finish()
}
