//! Bytes on their way from a client to a process or port, bounded over all the streams of a connection.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

/// What the streams of one connection may hold together. SPDY as spoken here has no flow control, so beyond it the
/// connection is not read, and TCP pushes back.
const BUDGET: u32 = 1 << 20;

/// What a piece costs beside its bytes, so that a flood of single bytes is bounded as well.
const OVERHEAD: usize = 256;

/// Pieces up to this size are copied: a small piece must not keep a large read buffer alive.
const SMALL: usize = 16 << 10;

/// The bytes that one connection may hold.
#[derive(Debug, Clone)]
pub(crate) struct Budget(Arc<Semaphore>);

impl Budget {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(BUDGET as usize)))
    }

    /// A queue that draws on this budget.
    pub(crate) fn queue(&self) -> (Sender, Receiver) {
        // Unbounded in pieces, bounded by the budget that each piece holds.
        let (sender, receiver) = mpsc::unbounded_channel();
        (Sender { budget: self.clone(), pieces: sender }, Receiver { pieces: receiver, held: None })
    }
}

/// The end that the connection's reader fills. Dropping it is the end of file.
#[derive(Debug)]
pub(crate) struct Sender {
    budget: Budget,
    pieces: mpsc::UnboundedSender<(Bytes, OwnedSemaphorePermit)>,
}

impl Sender {
    /// Waits until there is room. What nobody receives any more is dropped.
    pub(crate) async fn send(&self, bytes: Bytes) {
        if bytes.is_empty() || self.pieces.is_closed() {
            return;
        }
        let cost = u32::try_from(bytes.len() + OVERHEAD).unwrap_or(BUDGET).min(BUDGET);
        // Waits for the receiver's end, too: a stream that is over gives back what it held, but others may not.
        tokio::select! {
            permit = self.budget.0.clone().acquire_many_owned(cost) => if let Ok(permit) = permit {
                let bytes = if bytes.len() <= SMALL { Bytes::copy_from_slice(&bytes) } else { bytes };
                let _ = self.pieces.send((bytes, permit));
            },
            () = self.pieces.closed() => (),
        }
    }
}

/// The end that is written to the process.
#[derive(Debug)]
pub(crate) struct Receiver {
    pieces: mpsc::UnboundedReceiver<(Bytes, OwnedSemaphorePermit)>,
    held: Option<OwnedSemaphorePermit>,
}

impl Receiver {
    /// The next piece, or the end. A piece counts until the next call.
    pub(crate) async fn next(&mut self) -> Option<Bytes> {
        self.held = None;
        let (bytes, permit) = self.pieces.recv().await?;
        self.held = Some(permit);
        Some(bytes)
    }

    /// Nothing more is taken: what is sent from now on is dropped, and so is what waits.
    pub(crate) fn close(&mut self) {
        self.held = None;
        self.pieces.close();
        while self.pieces.try_recv().is_ok() {}
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    async fn is_full(sender: &Sender) -> bool {
        timeout(Duration::from_millis(20), sender.send(Bytes::from_static(b"x"))).await.is_err()
    }

    #[tokio::test]
    async fn single_bytes_cost_what_they_occupy() {
        let (sender, mut receiver) = Budget::new().queue();
        let mut sent = 0;
        while !is_full(&sender).await {
            sent += 1;
        }
        assert_eq!(sent, BUDGET as usize / (OVERHEAD + 1));
        assert!(receiver.next().await.is_some());
        assert!(is_full(&sender).await, "a piece counts until it is done with");
        assert!(receiver.next().await.is_some());
        assert!(!is_full(&sender).await);
    }

    #[tokio::test]
    async fn a_piece_beyond_the_budget_passes_alone() {
        let (sender, mut receiver) = Budget::new().queue();
        sender.send(Bytes::from(vec![0; 3 << 20])).await;
        assert!(is_full(&sender).await);
        assert_eq!(receiver.next().await.map(|piece| piece.len()), Some(3 << 20));
    }

    #[tokio::test]
    async fn queues_share_a_budget_and_a_dropped_one_gives_it_back() {
        let budget = Budget::new();
        let ((a, receiver), (b, _kept)) = (budget.queue(), budget.queue());
        a.send(Bytes::from(vec![0; 3 << 20])).await;
        assert!(is_full(&b).await);
        drop(receiver);
        assert!(!is_full(&b).await);
        assert!(!is_full(&a).await, "nobody receives: dropped at once");
    }

    #[tokio::test]
    async fn a_sender_that_waits_for_room_notices_that_nobody_receives() {
        let budget = Budget::new();
        let ((a, receiver), (b, _kept)) = (budget.queue(), budget.queue());
        b.send(Bytes::from(vec![0; 3 << 20])).await;
        let waits = tokio::spawn(async move { a.send(Bytes::from_static(b"x")).await });
        tokio::task::yield_now().await;
        drop(receiver);
        timeout(Duration::from_secs(5), waits).await.unwrap().unwrap();
    }
}
