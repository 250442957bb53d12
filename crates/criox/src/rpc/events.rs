//! GetContainerEvents.

use criox_cri::v1;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::Services;

/// Events on their way to one client, beside those in the common buffer.
const QUEUE: usize = 64;

pub(super) fn events(services: &Services) -> ReceiverStream<Result<v1::ContainerEventResponse, Status>> {
    let mut events = services.lifecycle.context().events.subscribe();
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        loop {
            let next = tokio::select! {
                event = events.recv() => event,
                () = sender.closed() => return,
            };
            let item = match next {
                Ok(event) => Ok((*event).clone()),
                Err(RecvError::Closed) => return,
                Err(RecvError::Lagged(missed)) => Err(Status::data_loss(format!(
                    "this client was too slow and missed {missed} events; list, and subscribe again"
                ))),
            };
            let last = item.is_err();
            if sender.send(item).await.is_err() || last {
                return;
            }
        }
    });
    ReceiverStream::new(receiver)
}
