//! CNI configurations and plugins.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use criox_cri::v1::{RuntimeCondition, StatusRequest};
use testkit::harness::Test;
use testkit::standin::COMPLAINT;
use testkit::{Behaviour, Node, Result, wait_for};

use crate::{NODE, StandIns, refused, still_works, with_stand_ins};

pub(crate) const TESTS: &[Test] = &[
    ("a plugin that fails is named with its words, and nothing of the pod is left", || {
        with_stand_ins(|node, stand_ins| failing_add(node, stand_ins, Behaviour::Fail))
    }),
    ("a plugin that fails after its work is undone", || {
        with_stand_ins(|node, stand_ins| failing_add(node, stand_ins, Behaviour::FailAfter))
    }),
    ("a plugin that doesn't undo fails the stop, and the repeated stop succeeds", || {
        with_stand_ins(failing_del)
    }),
    ("a plugin that isn't there makes the network not ready, by name", || NODE.test(missing_plugin)),
    ("a network configuration that can't be read is named and passed over", || NODE.test(malformed)),
];

const LIMIT: Duration = Duration::from_secs(20);

fn failing_add(node: &Node, stand_ins: &StandIns, how: Behaviour) -> Result {
    let before = stand_ins.bridge.calls().len();
    stand_ins.bridge.set("ADD", how)?;
    for _ in 0..3 {
        refused(node.cri.run_pod(&node.cri.pod("failing-add")), &["bridge", COMPLAINT])?;
    }
    let calls = stand_ins.bridge.calls().split_off(before);
    let count = |verb: &str| calls.iter().filter(|call| *call == verb).count();
    assert_eq!(count("ADD"), 3, "{calls:?}");
    assert!(count("DEL") >= 3, "{calls:?}");
    assert!(node.cri.list_pods()?.is_empty());
    assert_eq!(node.daemon.leftovers(), Vec::<String>::new());
    stand_ins.bridge.set("ADD", Behaviour::Real)?;
    // The kubelet's retry, with the same attempt.
    node.cri.run_pod(&node.cri.pod("failing-add"))?;
    Ok(())
}

fn failing_del(node: &Node, stand_ins: &StandIns) -> Result {
    let pod = node.cri.run_pod(&node.cri.pod("failing-del"))?;
    stand_ins.bridge.set("DEL", Behaviour::Fail)?;
    for _ in 0..2 {
        refused(node.cri.stop_pod(&pod), &["bridge", COMPLAINT])?;
    }
    assert_eq!(node.cri.list_pods()?.len(), 1, "what holds an address is not forgotten");
    stand_ins.bridge.set("DEL", Behaviour::Real)?;
    node.cri.stop_pod(&pod)?;
    node.cri.remove_pod(&pod)?;
    Ok(())
}

/// A file among the network configurations, read before the good one, and gone at the end.
struct Conflist(PathBuf);

impl Conflist {
    #[expect(clippy::disallowed_methods, reason = "a file in the test's own directory")]
    fn new(node: &Node, text: &str) -> Result<Self> {
        let path = node.daemon.network_dir().join("00-bad.conflist");
        fs::write(&path, text)?;
        Ok(Self(path))
    }
}

impl Drop for Conflist {
    fn drop(&mut self) {
        // The directory goes with the test in any case.
        let _gone = fs::remove_file(&self.0);
    }
}

fn network(node: &Node) -> Result<RuntimeCondition> {
    let status = node.cri.call(node.cri.runtime().status(StatusRequest { verbose: true }))?;
    let conditions = status.status.ok_or("a status")?.conditions;
    conditions
        .into_iter()
        .find(|condition| condition.r#type == "NetworkReady")
        .ok_or_else(|| "no such condition".into())
}

fn missing_plugin(node: &Node) -> Result {
    let text = r#"{"cniVersion": "1.0.0", "name": "bad", "plugins": [{"type": "no-such-plugin"}]}"#;
    let conflist = Conflist::new(node, text)?;
    // The good one is out of the way meanwhile: a network that can't be used is passed over.
    let good = node.daemon.network_dir().join("10-test.conflist");
    let hidden = good.with_extension("hidden");
    fs::rename(&good, &hidden)?;
    let result = without_plugin(node);
    fs::rename(&hidden, &good)?;
    drop(conflist);
    result?;
    wait_for("the network to be ready again", LIMIT, || Ok(network(node)?.status.then_some(())))?;
    still_works(node)
}

fn without_plugin(node: &Node) -> Result {
    let condition = wait_for("the network to be not ready", LIMIT, || {
        let condition = network(node)?;
        Ok((!condition.status).then_some(condition))
    })?;
    assert!(condition.message.contains("no-such-plugin"), "{condition:?}");
    assert!(!condition.reason.is_empty());
    refused(node.cri.run_pod(&node.cri.pod("no-plugin")), &["no-such-plugin"])?;
    // Pods with the node's network don't ask.
    node.cri.run_pod(&node.cri.host_network_pod("node-network"))?;
    Ok(())
}

fn malformed(node: &Node) -> Result {
    for text in [
        "not json",
        "{}",
        r#"{"cniVersion": "1.0.0", "name": "bad", "plugins": []}"#,
        r#"{"cniVersion": "9.9.9", "name": "bad", "plugins": [{"type": "bridge"}]}"#,
    ] {
        let conflist = Conflist::new(node, text)?;
        let told = wait_for(&format!("{text} to be noticed"), LIMIT, || {
            let status = node.cri.call(node.cri.runtime().status(StatusRequest { verbose: true }))?;
            let text = format!("{:?} {:?}", status.info.get("criox"), status.status);
            Ok(text.contains("00-bad.conflist").then_some(()))
        });
        drop(conflist);
        told?;
        wait_for("the network to be ready again", LIMIT, || Ok(network(node)?.status.then_some(())))?;
    }
    still_works(node)
}
