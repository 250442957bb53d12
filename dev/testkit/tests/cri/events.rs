//! GetContainerEvents.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use criox_cri::v1::{
    ContainerEventResponse, ContainerEventType, ContainerState, GetEventsRequest, PodSandboxState,
};
use testkit::harness::Test;
use testkit::{Cri, Node, Result};
use tonic::{Code, Response, Status, Streaming};

use crate::NODE;
use crate::pod::{Pod, SERVICE};

pub(crate) const TESTS: &[Test] = &[
    ("each pod and container is created, started, stopped and deleted, in this order", || NODE.test(order)),
    ("an exit by itself is an event, with the state that it leaves", || NODE.test(exit)),
    ("what the removal of a pod kills has stopped before it is deleted", || NODE.test(removal)),
    ("under the load of 20 pods each client sees every event once and in order", || NODE.test(load)),
    (
        "while thousands of events happen, who reads loses none; who doesn't costs little, is told and cut off",
        || NODE.test(slow),
    ),
];

use ContainerEventType::{
    ContainerCreatedEvent as Created, ContainerDeletedEvent as Deleted, ContainerStartedEvent as Started,
    ContainerStoppedEvent as Stopped,
};

fn subscribe(node: &Node) -> Result<Streaming<ContainerEventResponse>> {
    subscribe_as(&node.cri)
}

fn subscribe_as(cri: &Cri) -> Result<Streaming<ContainerEventResponse>> {
    Ok(cri.call(cri.runtime().get_container_events(GetEventsRequest {}))?)
}

fn next(node: &Node, events: &mut Streaming<ContainerEventResponse>) -> Result<ContainerEventResponse> {
    Ok(next_of(&node.cri, events)?)
}

fn next_of(
    cri: &Cri,
    events: &mut Streaming<ContainerEventResponse>,
) -> std::result::Result<ContainerEventResponse, Status> {
    cri.call(async {
        let wait = tokio::time::timeout(crate::pod::LIMIT, events.message());
        let event = wait.await.map_err(|_| Status::deadline_exceeded("no event came"))??;
        event.map(Response::new).ok_or_else(|| Status::aborted("the stream ended"))
    })
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

/// Each pod makes four events and is gone again. More than the buffer of a client that doesn't read (1024 events), and
/// what lies in its connection; `$CRIOX_TEST_EVENT_PODS` asks for more.
#[expect(clippy::print_stdout, reason = "says what was measured, for the longer run")]
fn slow(node: &Node) -> Result {
    /// They make the messages long, so that few of them fill a connection.
    const NOTE: usize = 16 << 10;
    const WORKERS: usize = 4;
    let pods: usize =
        std::env::var("CRIOX_TEST_EVENT_PODS").ok().and_then(|text| text.parse().ok()).unwrap_or(400);
    // Of its own: streams of one connection share its window, and the reader must not wait for the sleeper.
    let sleeper = node.daemon.cri()?;
    let mut unread = subscribe_as(&sleeper)?;
    let mut read = subscribe(node)?;
    let before = resident(node)?;
    let next_pod = AtomicUsize::new(0);
    let seen = std::thread::scope(|scope| -> Result<Vec<ContainerEventResponse>> {
        let reader = scope.spawn(|| {
            let mut seen = Vec::new();
            while seen.len() < pods * 4 {
                let mut event = next(node, &mut read).map_err(|error| error.to_string())?;
                // Only what is compared is kept.
                event.pod_sandbox_status = None;
                seen.push(event);
            }
            Ok::<_, String>(seen)
        });
        let workers: Vec<_> = (0..WORKERS)
            .map(|_| {
                scope.spawn(|| -> std::result::Result<(), Status> {
                    loop {
                        let number = next_pod.fetch_add(1, Ordering::Relaxed);
                        if number >= pods {
                            return Ok(());
                        }
                        let mut config = node.cri.host_network_pod(&format!("slow-{number}"));
                        config.annotations.insert("note".into(), "x".repeat(NOTE));
                        let id = node.cri.run_pod(&config)?;
                        node.cri.stop_pod(&id)?;
                        node.cri.remove_pod(&id)?;
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.join().map_err(|_| "a panic")??;
        }
        Ok(reader.join().map_err(|_| "a panic")??)
    })?;
    let grown = resident(node)?.saturating_sub(before);
    let mut kinds: HashMap<&str, Vec<ContainerEventType>> = HashMap::new();
    for event in &seen {
        kinds.entry(&event.container_id).or_default().push(event.container_event_type());
    }
    assert_eq!(kinds.len(), pods);
    assert!(
        kinds.values().all(|kinds| kinds[..] == [Created, Started, Stopped, Deleted]),
        "each once, in order"
    );
    // At most its buffer's records are kept for the sleeper, and what was sent already.
    assert!(grown < 96 << 10, "the daemon has grown by {grown} kB");
    let mut expected = seen.iter();
    let error = loop {
        match next_of(&sleeper, &mut unread) {
            Ok(event) => {
                let wanted = expected.next().ok_or("it has more events than happened")?;
                let of = |event: &ContainerEventResponse| {
                    (event.container_id.clone(), event.container_event_type, event.created_at)
                };
                assert_eq!(of(&event), of(wanted), "no gap before it is told");
            }
            Err(error) => break error,
        }
    };
    assert_eq!(error.code(), Code::DataLoss, "{error}");
    assert!(error.message().contains("subscribe again"), "{error}");
    println!(
        "{} events: the sleeper got {} and then {:?}; the daemon grew by {grown} kB",
        seen.len(),
        seen.len() - expected.len(),
        error.message()
    );
    let mut again = subscribe_as(&sleeper)?;
    let pod = Pod::without_network(node, "after")?;
    assert_eq!(next_of(&sleeper, &mut again)?.container_id, pod.id);
    Ok(())
}

/// Kilobytes of memory of the daemon.
fn resident(node: &Node) -> Result<u64> {
    let pid = node.daemon.pid().ok_or("the daemon runs")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
