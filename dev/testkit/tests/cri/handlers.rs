//! Each runtime: those of the machine, and newer ones from the private root.

use criox_cri::v1::{ContainerState, RuntimeHandlerFeatures, StatusRequest};
use serde_json::Value;
use testkit::daemon::peer;
use testkit::harness::Test;
use testkit::{Node, Result};
use tonic::Code;

use crate::NODE;
use crate::pod::{LIMIT, Pod, SERVICE, refused};

pub(crate) const TESTS: &[Test] = &[
    ("crun of the machine runs a pod", || runs("crun")),
    ("runc of the machine runs a pod", || runs("runc")),
    ("the newer crun runs a pod", || peer("crun").map_err(missing).and_then(|_| runs(&of_peer("crun")))),
    ("the newer runc runs a pod", || peer("runc").map_err(missing).and_then(|_| runs(&of_peer("runc")))),
    ("an unknown handler is refused, naming those that there are", || NODE.test(unknown)),
    ("what Status says of a handler is what its runtime says of itself", || NODE.test(features)),
    ("Status lists each handler once, and the default also without a name", || NODE.test(listed)),
];

/// Each handler's features are those that its own `features` tells, and the kernel has.
fn features(node: &Node) -> Result {
    let status = node.cri.call(node.cri.runtime().status(StatusRequest { verbose: false }))?;
    let said = |name: &str| -> Result<RuntimeHandlerFeatures> {
        let mut found = status.runtime_handlers.iter().filter(|handler| handler.name == name);
        Ok(found
            .next()
            .and_then(|handler| handler.features)
            .ok_or_else(|| format!("no features of {name:?}"))?)
    };
    assert_eq!(said("")?, said("crun")?, "the default is crun");
    let mut asked = 0;
    for name in ["crun", "runc"] {
        asked += 1;
        check_features(std::path::Path::new(name), &said(name)?)?;
    }
    for name in PEERS {
        if let Ok(path) = peer(name) {
            asked += 1;
            check_features(&path, &said(&of_peer(name))?)?;
        }
    }
    assert_eq!(asked + 1, status.runtime_handlers.len());
    let features = status.features.ok_or("features of the runtime")?;
    assert!(features.supplemental_groups_policy && features.mount_options);
    // Never for a runtime that makes no user namespaces.
    assert!(said("")?.user_namespaces || !features.user_namespaces_host_network);
    Ok(())
}

fn check_features(program: &std::path::Path, said: &RuntimeHandlerFeatures) -> Result {
    let output = std::process::Command::new(program).arg("features").output()?;
    let told: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let has =
        |list: &Value, word: &str| list.as_array().is_some_and(|list| list.iter().any(|item| item == word));
    let rro = has(&told["mountOptions"], "rro");
    // Each kernel that these tests run on has it.
    assert_eq!(said.recursive_read_only_mounts, rro, "{}", program.display());
    let idmap = told["linux"]["mountExtensions"]["idmap"]["enabled"] == true;
    let users = has(&told["linux"]["namespaces"], "user");
    assert!(!said.user_namespaces || (idmap && users), "{}: {said:?}", program.display());
    Ok(())
}

/// Runtimes in the private root of other programs.
pub(crate) const PEERS: &[&str] = &["crun", "runc"];

/// The handler of such a runtime.
pub(crate) fn of_peer(name: &str) -> String {
    format!("{name}-new")
}

fn missing(error: testkit::Error) -> testkit::Error {
    testkit::harness::skip(error.to_string())
}

fn runs(handler: &str) -> Result {
    NODE.test(|node| {
        let config = node.cri.pod(handler);
        let pod =
            Pod { cri: &node.cri, image: &node.image, id: node.cri.run_pod_as(&config, handler)?, config };
        assert_eq!(node.cri.pod_status(&pod.id)?.runtime_handler, handler);
        assert_eq!(node.cri.list_pods()?.pop().ok_or("the pod")?.runtime_handler, handler);
        // The runtime was asked: its state is in the handler's own root, and nowhere else.
        let id = pod.service("c")?;
        let roots: Vec<bool> = ["crun", "runc", "crun-new", "runc-new"]
            .iter()
            .map(|name| node.daemon.run_root().join(name).join(&id).exists())
            .collect();
        assert_eq!(roots.iter().filter(|exists| **exists).count(), 1, "{roots:?}");
        assert!(node.daemon.run_root().join(handler).join(&id).exists());
        assert_eq!(pod.exec(&id, "cat /etc/hello")?, "hello from the image");
        assert_eq!(node.cri.exec(&id, &["sh", "-c", "exit 7"], 10)?.exit_code, 7);
        assert_eq!(pod.answer("second", "echo $((6 * 7))")?, "42");
        let message = refused_command(&pod)?;
        assert!(message.contains("/no/such/program"), "{message}");
        node.cri.stop(&id, 10)?;
        assert_eq!(node.cri.wait_state(&id, ContainerState::ContainerExited, LIMIT)?.exit_code, 0);
        let stubborn = pod.up(&pod.shell("stubborn", &SERVICE.replace("exit 0", "")))?;
        node.cri.stop(&stubborn, 0)?;
        node.cri.remove_pod(&pod.id)?;
        Ok(())
    })
}

/// A program that isn't there: an error of create or of start, as the runtime has it.
fn refused_command(pod: &Pod) -> Result<String> {
    let config = pod.cri.container("bad", pod.image, &["/no/such/program"]);
    let created = match pod.cri.create(&pod.id, &config, &pod.config) {
        Ok(id) => id,
        Err(status) => return Ok(status.message().to_owned()),
    };
    let status = pod.cri.start(&created).err().ok_or("a program that isn't there was started")?;
    Ok(status.message().to_owned())
}

fn unknown(node: &Node) -> Result {
    let message =
        refused(node.cri.run_pod_as(&node.cri.pod("unknown"), "no-such-handler"), Code::InvalidArgument)?;
    assert!(message.contains("no-such-handler") && message.contains("crun"), "{message}");
    assert!(node.cri.list_pods()?.is_empty());
    Ok(())
}

fn listed(node: &Node) -> Result {
    let status = node.cri.call(node.cri.runtime().status(StatusRequest { verbose: true }))?;
    let mut names: Vec<&str> = status.runtime_handlers.iter().map(|handler| handler.name.as_str()).collect();
    names.sort_unstable();
    let unique = names.len();
    names.dedup();
    assert_eq!(names.len(), unique);
    for name in ["", "crun", "runc"] {
        assert!(names.contains(&name), "{names:?}");
    }
    let conditions = status.status.ok_or("a status")?.conditions;
    for kind in ["RuntimeReady", "NetworkReady"] {
        assert!(
            conditions.iter().any(|condition| condition.r#type == kind && condition.status),
            "{conditions:?}"
        );
    }
    assert!(!status.info.is_empty());
    let quiet = node.cri.call(node.cri.runtime().status(StatusRequest { verbose: false }))?;
    assert!(quiet.info.is_empty());
    Ok(())
}
