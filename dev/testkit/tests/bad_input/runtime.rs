//! OCI runtimes.

use std::path::Path;

use criox_cri::v1::ContainerState;
use testkit::harness::Test;
use testkit::standin::COMPLAINT;
use testkit::{Behaviour, Node, Result};

use crate::{NODE, StandIns, refused, still_works, with_stand_ins};

pub(crate) const TESTS: &[Test] = &[
    ("a runtime that isn't there is named, and no pod is made", || NODE.test(missing)),
    ("a runtime that fails to create is told with its words, and nothing is left", || {
        with_stand_ins(|node, stand_ins| failing_create(node, stand_ins, Behaviour::Fail))
    }),
    ("a runtime that fails after creating is undone", || {
        with_stand_ins(|node, stand_ins| failing_create(node, stand_ins, Behaviour::FailAfter))
    }),
    ("a runtime that fails to start ends the container with its words", || with_stand_ins(failing_start)),
    ("a runtime that fails to execute is told with its words", || with_stand_ins(failing_exec)),
    ("a runtime that fails to kill and to delete leaves no process", || with_stand_ins(failing_end)),
];

const SERVICE: &[&str] = &["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done"];

fn missing(node: &Node) -> Result {
    refused(node.cri.run_pod_as(&node.cri.host_network_pod("missing"), "absent"), &["absent"])?;
    // As CRI-O, the daemon starts without a handler that can't be used, and says why.
    assert!(node.daemon.log().contains("/no/such/runtime"));
    assert!(node.cri.list_pods()?.is_empty());
    still_works(node)
}

fn failing_create(node: &Node, stand_ins: &StandIns, how: Behaviour) -> Result {
    let config = node.cri.host_network_pod("failing-create");
    let pod = node.cri.run_pod(&config)?;
    let container = node.cri.container("c", &node.image, SERVICE);
    stand_ins.runtime.set("create", how)?;
    for _ in 0..3 {
        refused(node.cri.create(&pod, &container, &config), &[COMPLAINT])?;
        assert!(node.cri.list(None)?.is_empty());
        assert!(!Path::new(&config.log_directory).join("c/0.log").exists());
    }
    let containers = std::fs::read_dir(node.daemon.root().join("overlay-containers"))?.flatten();
    let left: Vec<_> =
        containers.filter(|entry| entry.path().is_dir()).map(|entry| entry.file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
    stand_ins.runtime.set("create", Behaviour::Real)?;
    let id = node.cri.create(&pod, &container, &config)?;
    node.cri.start(&id)?;
    Ok(())
}

fn failing_start(node: &Node, stand_ins: &StandIns) -> Result {
    let config = node.cri.host_network_pod("failing-start");
    let pod = node.cri.run_pod(&config)?;
    let id = node.cri.create(&pod, &node.cri.container("c", &node.image, SERVICE), &config)?;
    stand_ins.runtime.set("start", Behaviour::Fail)?;
    refused(node.cri.start(&id), &[&id, COMPLAINT])?;
    let status = node.cri.status(&id)?;
    assert_eq!(status.state(), ContainerState::ContainerExited, "the kubelet makes another");
    assert!(status.exit_code != 0 && status.finished_at > 0, "{status:?}");
    assert!(status.message.contains(COMPLAINT), "{status:?}");
    stand_ins.runtime.set("start", Behaviour::Real)?;
    assert!(node.cri.start(&id).is_err());
    node.cri.remove(&id)?;
    Ok(())
}

fn failing_exec(node: &Node, stand_ins: &StandIns) -> Result {
    let config = node.cri.host_network_pod("failing-exec");
    let pod = node.cri.run_pod(&config)?;
    let id = node.cri.create(&pod, &node.cri.container("c", &node.image, SERVICE), &config)?;
    node.cri.start(&id)?;
    stand_ins.runtime.set("exec", Behaviour::Fail)?;
    refused(node.cri.exec(&id, &["true"], 5), &[&id, COMPLAINT])?;
    stand_ins.runtime.set("exec", Behaviour::Real)?;
    assert_eq!(node.cri.exec(&id, &["true"], 5)?.exit_code, 0);
    Ok(())
}

fn failing_end(node: &Node, stand_ins: &StandIns) -> Result {
    let config = node.cri.host_network_pod("failing-end");
    let pod = node.cri.run_pod(&config)?;
    let create = |name: &str| -> Result<String> {
        let id = node.cri.create(&pod, &node.cri.container(name, &node.image, SERVICE), &config)?;
        node.cri.start(&id)?;
        Ok(id)
    };
    let (stopped, removed) = (create("stopped")?, create("removed")?);
    stand_ins.runtime.set("kill", Behaviour::Fail)?;
    stand_ins.runtime.set("delete", Behaviour::Fail)?;
    node.cri.stop(&stopped, 1)?;
    assert_eq!(node.cri.status(&stopped)?.state(), ContainerState::ContainerExited);
    // Removal goes on without the runtime, or is repeated when it works again.
    drop(node.cri.remove(&removed));
    stand_ins.runtime.set("kill", Behaviour::Real)?;
    stand_ins.runtime.set("delete", Behaviour::Real)?;
    node.cri.remove(&removed)?;
    node.cri.remove(&stopped)?;
    assert!(node.cri.list(None)?.is_empty());
    node.cri.remove_pod(&pod)?;
    Ok(())
}
