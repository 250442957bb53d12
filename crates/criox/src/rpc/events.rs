//! GetContainerEvents.

use std::sync::Arc;

use criox_cri::v1;
use criox_lifecycle::Happening;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::Services;

/// Messages on their way to one client, beside those in the common buffer, which are small.
const QUEUE: usize = 16;

pub(super) fn events(services: &Services) -> ReceiverStream<Result<v1::ContainerEventResponse, Status>> {
    relay(services.lifecycle.context().events.subscribe(), |event: Arc<Happening>| event.message())
}

/// Passes on what comes, in order, until the client goes or falls too far behind: that is an error, never a gap.
fn relay<T: Clone + Send + 'static, M: Send + 'static>(
    mut events: Receiver<T>,
    message: impl Fn(T) -> M + Send + 'static,
) -> ReceiverStream<Result<M, Status>> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        loop {
            let next = tokio::select! {
                event = events.recv() => event,
                () = sender.closed() => return,
            };
            let item = match next {
                Ok(event) => Ok(message(event)),
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

#[cfg(test)]
mod tests {
    use tokio::sync::broadcast;
    use tokio_stream::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn a_client_that_keeps_up_misses_nothing() {
        let events = broadcast::Sender::new(8);
        let mut stream = relay(events.subscribe(), |event: u32| event);
        for number in 0..1000 {
            events.send(number).expect("a listener");
            assert_eq!(stream.next().await.map(|item| item.ok()), Some(Some(number)));
        }
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_is_cut_off_after_what_it_could_have_read() {
        let events = broadcast::Sender::new(8);
        let mut stream = relay(events.subscribe(), |event: u32| event);
        for number in 0..1000 {
            events.send(number).expect("a listener");
            tokio::task::yield_now().await;
        }
        let mut expected = 0;
        let error = loop {
            match stream.next().await.expect("an error comes before the end") {
                Ok(number) => {
                    assert_eq!(number, expected, "no gap without an error");
                    expected += 1;
                }
                Err(error) => break error,
            }
        };
        assert_eq!(error.code(), tonic::Code::DataLoss);
        assert!(error.message().contains("subscribe again"), "{error}");
        assert!(stream.next().await.is_none());
    }

    #[tokio::test]
    async fn a_client_that_has_gone_is_forgotten() {
        let events = broadcast::Sender::new(8);
        drop(relay(events.subscribe(), |event: u32| event));
        while events.receiver_count() > 0 {
            tokio::task::yield_now().await;
        }
    }
}
