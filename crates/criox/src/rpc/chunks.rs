//! Lists as streams: each message holds some tens of items and is made when the one before has been taken, so that a
//! list of any length costs the memory of one message. Each item is in exactly one message; an empty list has none.

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// The answer to a request for a list in parts.
pub(super) type Chunks<M> = ReceiverStream<Result<M, Status>>;

/// Items of a message: with long annotations still far below what a client takes at once.
pub(super) const ITEMS: usize = 32;

/// Makes a message of each part of `items`, one after the other. `make` answers none for a part of which nothing is
/// left. It ends with an error, or when the client goes.
pub(super) fn stream<T, M, F>(
    items: Vec<T>,
    size: usize,
    make: impl Fn(Vec<T>) -> F + Send + 'static,
) -> Chunks<M>
where
    T: Send + 'static,
    M: Send + 'static,
    F: Future<Output = Result<Option<M>, Status>> + Send,
{
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut items = items.into_iter();
        loop {
            let part: Vec<T> = items.by_ref().take(size.max(1)).collect();
            if part.is_empty() {
                return;
            }
            let message = match make(part).await {
                Ok(None) => continue,
                Ok(Some(message)) => Ok(message),
                Err(error) => Err(error),
            };
            let last = message.is_err();
            if sender.send(message).await.is_err() || last {
                return;
            }
        }
    });
    ReceiverStream::new(receiver)
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt as _;

    use super::*;

    async fn parts(items: Vec<u32>) -> Vec<Result<Vec<u32>, tonic::Code>> {
        let make = async |part: Vec<u32>| match part.first() {
            Some(100) => Err(Status::aborted("no more")),
            Some(200) => Ok(None),
            _ => Ok(Some(part)),
        };
        stream(items, 3, make).map(|part| part.map_err(|error| error.code())).collect().await
    }

    #[tokio::test]
    async fn each_item_is_in_one_message_and_no_message_is_empty() {
        assert_eq!(parts(Vec::new()).await, []);
        assert_eq!(parts(vec![1, 2, 3]).await, [Ok(vec![1, 2, 3])]);
        assert_eq!(parts(vec![1, 2, 3, 4]).await, [Ok(vec![1, 2, 3]), Ok(vec![4])]);
        assert_eq!(parts(vec![200, 2, 3, 4]).await, [Ok(vec![4])]);
    }

    #[tokio::test]
    async fn an_error_ends_the_list() {
        assert_eq!(parts(vec![1, 2, 3, 100, 5, 6, 7]).await, [Ok(vec![1, 2, 3]), Err(tonic::Code::Aborted)]);
    }
}
