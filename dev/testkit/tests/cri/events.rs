//! GetContainerEvents.

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
