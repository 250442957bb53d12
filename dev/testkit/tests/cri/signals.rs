//! How a container is stopped.

use std::time::{Duration, Instant};

use criox_cri::v1::{ContainerState, Signal};
use serde_json::json;
use testkit::harness::Test;
use testkit::{Node, Result, busybox_image};

use crate::NODE;
use crate::pod::{LIMIT, Pod};

pub(crate) const TESTS: &[Test] = &[
    ("a container is stopped with SIGTERM, the image's signal, or its own", || NODE.test(stop_signals)),
    ("a container that ignores its signal is killed after the grace period", || NODE.test(escalation)),
    ("without a grace period a container is killed at once", || NODE.test(no_grace)),
    ("a second stop with less patience shortens the first, more patience does not lengthen it", || {
        NODE.test(shorter)
    }),
    ("all stops of one container are answered when it has ended", || NODE.test(together)),
    ("a removal does not wait for a stop's grace period", || NODE.test(remove_while_stopping)),
    ("a pod's stop ends containers that ignore signals", || NODE.test(stubborn_pod)),
];

const STUBBORN: &str = "trap '' TERM; echo up; while :; do sleep 0.05; done";

/// Runs a script that ends with a code for each signal, stops it, and says which code it was.
fn code_of_stop(pod: &Pod, name: &str, image: &str, signal: Signal) -> Result<i32> {
    let script = "trap 'exit 15' TERM; trap 'exit 10' USR1; trap 'exit 12' USR2; trap 'exit 2' INT; echo up; while :; do sleep 0.05; done";
    let mut config = pod.cri.container(name, image, &["sh", "-c", script]);
    config.stop_signal = signal.into();
    let id = pod.up(&config)?;
    let shown = pod.cri.status(&id)?.stop_signal();
    pod.cri.stop(&id, 20)?;
    let code = pod.cri.status(&id)?.exit_code;
    let expected = match code {
        15 => Signal::Sigterm,
        10 => Signal::Sigusr1,
        12 => Signal::Sigusr2,
        2 => Signal::Sigint,
        _ => Signal::RuntimeDefault,
    };
    assert_eq!(shown, expected, "the status shows the signal that is used");
    Ok(code)
}

fn stop_signals(node: &Node) -> Result {
    let pod = Pod::without_network(node, "stop-signals")?;
    let with = |name: &str, signal: &str| -> Result<String> {
        let image = busybox_image()?.config("StopSignal", json!(signal)).build()?;
        let reference = image.push(&node.registry, &format!("tests/{name}"), "1")?;
        node.cri.pull(&reference)?;
        Ok(reference)
    };
    let (named, numbered) = (with("sigusr2", "SIGUSR2")?, with("sigint", "2")?);
    assert_eq!(code_of_stop(&pod, "default", &node.image, Signal::RuntimeDefault)?, 15);
    assert_eq!(code_of_stop(&pod, "image", &named, Signal::RuntimeDefault)?, 12);
    assert_eq!(code_of_stop(&pod, "number", &numbered, Signal::RuntimeDefault)?, 2);
    assert_eq!(code_of_stop(&pod, "own", &named, Signal::Sigusr1)?, 10);
    Ok(())
}

fn escalation(node: &Node) -> Result {
    let pod = Pod::without_network(node, "escalation")?;
    let id = pod.up(&pod.shell("c", STUBBORN))?;
    let begun = Instant::now();
    node.cri.stop(&id, 1)?;
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(5), "{took:?}");
    let status = node.cri.status(&id)?;
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 137));
    Ok(())
}

fn no_grace(node: &Node) -> Result {
    let pod = Pod::without_network(node, "no-grace")?;
    let id = pod.service("c")?;
    let begun = Instant::now();
    node.cri.stop(&id, 0)?;
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert_eq!(node.cri.status(&id)?.exit_code, 137);
    Ok(())
}

fn shorter(node: &Node) -> Result {
    let pod = Pod::without_network(node, "shorter")?;
    let id = pod.up(&pod.shell("c", STUBBORN))?;
    let begun = Instant::now();
    std::thread::scope(|scope| -> Result {
        let patient = scope.spawn(|| node.cri.stop(&id, 100));
        std::thread::sleep(Duration::from_millis(200));
        let hurried = scope.spawn(|| node.cri.stop(&id, 1));
        std::thread::sleep(Duration::from_millis(200));
        node.cri.stop(&id, 100)?;
        patient.join().expect("no panic")?;
        Ok(hurried.join().expect("no panic")?)
    })?;
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(6), "{took:?}");
    Ok(())
}

fn together(node: &Node) -> Result {
    let pod = Pod::without_network(node, "together")?;
    let id =
        pod.up(&pod.shell("c", "trap 'sleep 0.5; exit 4' TERM; echo up; while :; do sleep 0.05; done"))?;
    std::thread::scope(|scope| -> Result {
        let calls: Vec<_> = (0..10)
            .map(|_| {
                scope.spawn(|| -> Result {
                    node.cri.stop(&id, 20)?;
                    // An answer that comes early would be a "CRI violation" to the kubelet.
                    assert_eq!(node.cri.status(&id)?.state(), ContainerState::ContainerExited);
                    Ok(())
                })
            })
            .collect();
        calls.into_iter().try_for_each(|call| call.join().expect("no panic"))
    })?;
    assert_eq!(node.cri.status(&id)?.exit_code, 4);
    Ok(())
}

fn remove_while_stopping(node: &Node) -> Result {
    let pod = Pod::without_network(node, "remove-stopping")?;
    let id = pod.up(&pod.shell("c", STUBBORN))?;
    let begun = Instant::now();
    std::thread::scope(|scope| -> Result {
        let stop = scope.spawn(|| node.cri.stop(&id, 60));
        std::thread::sleep(Duration::from_millis(300));
        node.cri.remove(&id)?;
        Ok(stop.join().expect("no panic")?)
    })?;
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    Ok(())
}

fn stubborn_pod(node: &Node) -> Result {
    let pod = Pod::run(node, "stubborn")?;
    let ids = [pod.up(&pod.shell("a", STUBBORN))?, pod.service("b")?];
    let begun = Instant::now();
    node.cri.stop_pod(&pod.id)?;
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    for id in &ids {
        node.cri.wait_state(id, ContainerState::ContainerExited, LIMIT)?;
    }
    Ok(())
}
