//! GetContainerEvents: what happened, with the full status, to each connected client in order. The buffer is
//! bounded; a client that falls behind is told so and cut off, and never slows a pod.

use std::sync::Arc;

use criox_cri::v1;
use tokio::sync::broadcast;

/// Events that a slow client may be behind.
const BUFFER: usize = 1024;

/// Where events are sent and clients subscribe.
#[derive(Debug, Clone)]
pub struct Events {
    sender: broadcast::Sender<Arc<v1::ContainerEventResponse>>,
}

impl Default for Events {
    fn default() -> Self {
        Self { sender: broadcast::Sender::new(BUFFER) }
    }
}

impl Events {
    /// Events from now on. `Lagged` from the receiver means that the client was too slow.
    pub fn subscribe(&self) -> broadcast::Receiver<Arc<v1::ContainerEventResponse>> {
        self.sender.subscribe()
    }

    /// Makes the event only if somebody listens.
    pub(crate) fn send(&self, event: impl FnOnce() -> v1::ContainerEventResponse) {
        if self.sender.receiver_count() > 0 {
            // An error says that the last listener has just gone.
            drop(self.sender.send(Arc::new(event())));
        }
    }
}
