//! GetContainerEvents: what happened, with the full status, to each connected client in order. The buffer is
//! bounded; a client that falls behind is told so and cut off, and never slows a pod.
//!
//! An event that waits is pointers to the records of its moment, which the index holds anyway: a slow client of a node
//! with long annotations costs no copies of them. Its message is made when it is sent.

use std::sync::{Arc, Mutex, PoisonError};

use criox_answers::status;
use criox_cri::v1;
use criox_records::{ContainerRecord, SandboxRecord};
use tokio::sync::broadcast;

use crate::context::Clock;

/// Events that a slow client may be behind: the whole life of some hundred pods.
const BUFFER: usize = 1024;

/// Something that happened to a container or a sandbox.
#[derive(Debug, Clone)]
pub struct Happening {
    /// The container's or the sandbox's ID.
    pub(crate) id: String,
    /// What.
    pub(crate) kind: v1::ContainerEventType,
    /// The sandbox then.
    pub(crate) sandbox: Arc<SandboxRecord>,
    /// Its containers then.
    pub(crate) containers: Vec<Arc<ContainerRecord>>,
    /// When, in nanoseconds since the epoch; set when it is sent.
    at: i64,
}

impl Happening {
    pub(crate) fn new(
        id: String,
        kind: v1::ContainerEventType,
        sandbox: Arc<SandboxRecord>,
        containers: Vec<Arc<ContainerRecord>>,
    ) -> Self {
        Self { id, kind, sandbox, containers, at: 0 }
    }

    /// As CRI shows it.
    pub fn message(&self) -> v1::ContainerEventResponse {
        v1::ContainerEventResponse {
            container_id: self.id.clone(),
            container_event_type: self.kind.into(),
            created_at: self.at,
            pod_sandbox_status: Some(status::sandbox_status(&self.sandbox)),
            containers_statuses: self
                .containers
                .iter()
                .map(|record| status::container_status(record))
                .collect(),
        }
    }
}

/// Where events are sent and clients subscribe.
#[derive(Debug)]
pub struct Events {
    sender: broadcast::Sender<Arc<Happening>>,
    /// Held from the stamp to the queue, so that times rise in the order in which clients see them.
    order: Mutex<()>,
}

impl Default for Events {
    fn default() -> Self {
        Self { sender: broadcast::Sender::new(BUFFER), order: Mutex::default() }
    }
}

impl Events {
    /// Events from now on. `Lagged` from the receiver means that the client was too slow.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<Happening>> {
        self.sender.subscribe()
    }

    /// Stamps and queues the event; waits for nobody. It is made only if somebody listens.
    pub(crate) fn send(&self, clock: &Clock, event: impl FnOnce() -> Happening) {
        if self.sender.receiver_count() == 0 {
            return;
        }
        let event = event();
        let _order = self.order.lock().unwrap_or_else(PoisonError::into_inner);
        // An error says that the last listener has just gone.
        drop(self.sender.send(Arc::new(Happening { at: clock.now(), ..event })));
    }
}

#[cfg(test)]
mod tests {
    use criox_cri::ids::SandboxId;
    use tokio::sync::broadcast::error::TryRecvError;

    use super::*;

    fn happening(number: usize) -> Happening {
        let id = SandboxId::parse(&"a".repeat(64)).expect("an ID");
        let sandbox = Arc::new(SandboxRecord::without_request(id, "boot", "/crio"));
        Happening::new(number.to_string(), v1::ContainerEventType::ContainerStartedEvent, sandbox, Vec::new())
    }

    #[test]
    fn every_listener_gets_every_event_with_rising_times() {
        let (events, clock) = (Arc::new(Events::default()), Arc::new(Clock::default()));
        let mut listeners = [events.subscribe(), events.subscribe()];
        let senders: Vec<_> = (0..4)
            .map(|sender| {
                let (events, clock) = (events.clone(), clock.clone());
                std::thread::spawn(move || {
                    for number in 0..100 {
                        events.send(&clock, || happening(sender * 100 + number));
                    }
                })
            })
            .collect();
        for sender in senders {
            sender.join().expect("it ends");
        }
        for listener in &mut listeners {
            let mut seen = Vec::new();
            let mut last = 0;
            while let Ok(event) = listener.try_recv() {
                let message = event.message();
                assert!(message.created_at > last, "times rise");
                last = message.created_at;
                seen.push(message.container_id);
            }
            assert_eq!(seen.len(), 400);
            // What one pod sent stays in its order.
            let of_first: Vec<_> =
                seen.iter().filter_map(|id| id.parse().ok()).filter(|id: &usize| *id < 100).collect();
            assert_eq!(of_first, (0..100).collect::<Vec<usize>>());
        }
    }

    #[test]
    fn a_listener_that_falls_behind_is_told() {
        let (events, clock) = (Events::default(), Clock::default());
        let mut listener = events.subscribe();
        for number in 0..BUFFER + 10 {
            events.send(&clock, || happening(number));
        }
        assert_eq!(listener.try_recv().map(|_| ()), Err(TryRecvError::Lagged(10)));
    }

    #[test]
    fn without_a_listener_no_event_is_made() {
        Events::default().send(&Clock::default(), || panic!("nobody listens"));
    }
}
