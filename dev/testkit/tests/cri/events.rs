//! GetContainerEvents.

use std::collections::HashMap;

use criox_cri::v1::{
    ContainerEventResponse, ContainerEventType, ContainerState, GetEventsRequest, PodSandboxState,
};
use testkit::harness::Test;
use testkit::{Node, Result};
use tonic::{Response, Status, Streaming};

use crate::NODE;
use crate::pod::{Pod, SERVICE};

pub(crate) const TESTS: &[Test] = &[
    ("each pod and container is created, started, stopped and deleted, in this order", || NODE.test(order)),
    ("an exit by itself is an event, with the state that it leaves", || NODE.test(exit)),
    ("what the removal of a pod kills has stopped before it is deleted", || NODE.test(removal)),
    ("under the load of 20 pods each client sees every event once and in order", || NODE.test(load)),
];

use ContainerEventType::{
    ContainerCreatedEvent as Created, ContainerDeletedEvent as Deleted, ContainerStartedEvent as Started,
    ContainerStoppedEvent as Stopped,
};

fn subscribe(node: &Node) -> Result<Streaming<ContainerEventResponse>> {
    Ok(node.cri.call(node.cri.runtime().get_container_events(GetEventsRequest {}))?)
}

fn next(node: &Node, events: &mut Streaming<ContainerEventResponse>) -> Result<ContainerEventResponse> {
    Ok(node.cri.call(async {
        let wait = tokio::time::timeout(crate::pod::LIMIT, events.message());
        let event = wait.await.map_err(|_| Status::deadline_exceeded("no event came"))??;
        event.map(Response::new).ok_or_else(|| Status::data_loss("the stream ended"))
    })?)
}

fn order(node: &Node) -> Result {
    let mut events = subscribe(node)?;
    let pod = Pod::without_network(node, "events")?;
    let id = pod.start(&pod.shell("c", SERVICE))?;
    node.cri.stop(&id, 0)?;
    node.cri.remove(&id)?;
    node.cri.stop_pod(&pod.id)?;
    node.cri.remove_pod(&pod.id)?;
    let mut seen = Vec::new();
    let mut last = 0;
    while seen.last() != Some(&(pod.id.clone(), Deleted)) {
        let event = next(node, &mut events)?;
        assert!(event.created_at >= last, "times don't go back");
        last = event.created_at;
        let kind = event.container_event_type();
        let status = event.pod_sandbox_status.ok_or("an event has the sandbox's status")?;
        assert_eq!(status.id, pod.id);
        if kind == Created && event.container_id == id {
            assert_eq!(event.containers_statuses.len(), 1);
        }
        seen.push((event.container_id, kind));
    }
    let of = |wanted: &str| -> Vec<ContainerEventType> {
        seen.iter().filter(|(id, _)| id == wanted).map(|(_, kind)| *kind).collect()
    };
    assert_eq!(of(&id), [Created, Started, Stopped, Deleted]);
    assert_eq!(of(&pod.id), [Created, Started, Stopped, Deleted]);
    assert_eq!(seen.len(), 8);
    Ok(())
}

fn exit(node: &Node) -> Result {
    let pod = Pod::without_network(node, "exit-event")?;
    let mut events = subscribe(node)?;
    let id = pod.start(&pod.shell("c", "exit 3"))?;
    let stopped = loop {
        let event = next(node, &mut events)?;
        if event.container_event_type() == Stopped {
            break event;
        }
    };
    assert_eq!(stopped.container_id, id);
    let status = stopped.containers_statuses.first().ok_or("the container's status")?;
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 3));
    assert_eq!(stopped.pod_sandbox_status.ok_or("a sandbox")?.state(), PodSandboxState::SandboxReady);
    Ok(())
}

/// All events until so many are there.
fn take(
    node: &Node,
    events: &mut Streaming<ContainerEventResponse>,
    count: usize,
) -> Result<Vec<ContainerEventResponse>> {
    (0..count).map(|_| next(node, events)).collect()
}

fn removal(node: &Node) -> Result {
    let mut events = subscribe(node)?;
    let pod = Pod::without_network(node, "removed")?;
    let id = pod.start(&pod.shell("c", SERVICE))?;
    node.cri.remove_pod(&pod.id)?;
    let seen = take(node, &mut events, 8)?;
    for wanted in [&id, &pod.id] {
        let of: Vec<&ContainerEventResponse> =
            seen.iter().filter(|event| event.container_id == *wanted).collect();
        let kinds: Vec<ContainerEventType> = of.iter().map(|event| event.container_event_type()).collect();
        assert_eq!(kinds, [Created, Started, Stopped, Deleted], "{wanted}");
    }
    let stopped =
        seen.iter().find(|event| event.container_id == id && event.container_event_type() == Stopped);
    let status =
        stopped.and_then(|event| event.containers_statuses.first()).ok_or("the container's status")?;
    assert_eq!(status.state(), ContainerState::ContainerExited);
    Ok(())
}

fn load(node: &Node) -> Result {
    const PODS: usize = 20;
    const CLIENTS: usize = 2;
    let mut streams = Vec::new();
    for _ in 0..CLIENTS {
        streams.push(subscribe(node)?);
    }
    let lives = std::thread::scope(|scope| {
        let lives: Vec<_> = (0..PODS)
            .map(|number| scope.spawn(move || life(node, number).map_err(|error| error.to_string())))
            .collect();
        lives
            .into_iter()
            .map(|life| life.join().unwrap_or_else(|_| Err("a panic".into())))
            .collect::<Vec<_>>()
    });
    for mut stream in streams {
        let mut last = 0;
        let mut kinds: HashMap<String, Vec<ContainerEventType>> = HashMap::new();
        for event in take(node, &mut stream, PODS * 8)? {
            assert!(event.created_at > last, "times rise, over all pods");
            last = event.created_at;
            let kind = event.container_event_type();
            let sandbox = event.pod_sandbox_status.ok_or("an event has the sandbox's status")?;
            let container = event.containers_statuses.iter().find(|status| status.id == event.container_id);
            // The status is that of the moment.
            match (container, kind) {
                (Some(status), Created) => assert_eq!(status.state(), ContainerState::ContainerCreated),
                (Some(status), Started) => assert_eq!(status.state(), ContainerState::ContainerRunning),
                (Some(status), Stopped | Deleted) => {
                    assert_eq!(status.state(), ContainerState::ContainerExited);
                }
                (None, _) => assert_eq!(sandbox.id, event.container_id),
            }
            kinds.entry(event.container_id).or_default().push(kind);
        }
        for life in &lives {
            let (pod, container) = life.as_ref().map_err(Clone::clone)?;
            for id in [pod, container] {
                assert_eq!(
                    kinds.get(id).map(Vec::as_slice),
                    Some(&[Created, Started, Stopped, Deleted][..]),
                    "{id}"
                );
            }
        }
    }
    Ok(())
}

/// A pod's whole life; the IDs of the sandbox and its container.
fn life(node: &Node, number: usize) -> Result<(String, String)> {
    let pod = Pod::without_network(node, &format!("load-{number}"))?;
    let id = pod.start(&pod.shell("c", SERVICE))?;
    node.cri.stop(&id, 0)?;
    node.cri.remove(&id)?;
    node.cri.stop_pod(&pod.id)?;
    node.cri.remove_pod(&pod.id)?;
    Ok((pod.id, id))
}
