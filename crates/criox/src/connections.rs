//! The open connections of the socket, so that one that nobody uses can make room for a new one.
//!
//! Their number is bounded, and some clients open connections without ever closing one (critest does). A bound alone would
//! then keep everybody out, the kubelet too; so the connection that has had nothing to do for the longest time is asked to
//! end. A gRPC client that still wants it connects again by itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// All of them.
#[derive(Debug, Clone)]
pub(crate) struct Connections {
    room: Arc<Semaphore>,
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    uses: HashMap<u64, Use>,
}

/// What one connection is doing.
#[derive(Debug)]
struct Use {
    /// Requests whose answer, with its last byte, is not out yet.
    running: usize,
    idle_since: Instant,
    /// Asked to end; another is asked next time.
    leaving: bool,
    leave: Arc<Notify>,
}

impl Connections {
    /// Room for `most`.
    pub(crate) fn new(most: usize) -> Self {
        Self { room: Arc::new(Semaphore::new(most)), open: Arc::default() }
    }

    /// Waits for room; where there is none, the connection that was idle for longest is asked to leave. If all are at
    /// work, one has to end by itself.
    pub(crate) async fn enter(&self) -> Connection {
        let permit = match Arc::clone(&self.room).try_acquire_owned() {
            Ok(permit) => Some(permit),
            Err(_) => {
                self.ask_the_idlest();
                // It is never closed.
                Arc::clone(&self.room).acquire_owned().await.ok()
            }
        };
        let leave = Arc::new(Notify::new());
        let mut open = self.lock();
        let number = open.next;
        open.next += 1;
        open.uses.insert(
            number,
            Use { running: 0, idle_since: Instant::now(), leaving: false, leave: Arc::clone(&leave) },
        );
        drop(open);
        Connection { number, all: self.clone(), leave, _permit: permit }
    }

    fn ask_the_idlest(&self) {
        let mut open = self.lock();
        let idle = open.uses.values_mut().filter(|one| one.running == 0 && !one.leaving);
        if let Some(one) = idle.min_by_key(|one| one.idle_since) {
            one.leaving = true;
            one.leave.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of one connection; dropped, there is room for another.
#[derive(Debug)]
pub(crate) struct Connection {
    number: u64,
    all: Connections,
    leave: Arc<Notify>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Connection {
    /// Ends when this connection should make room.
    pub(crate) async fn asked_to_leave(&self) {
        self.leave.notified().await;
    }

    /// Whether a request is being answered.
    pub(crate) fn is_at_work(&self) -> bool {
        self.all.lock().uses.get(&self.number).is_some_and(|one| one.running > 0)
    }

    /// To be called when a request has come, and kept until its answer is out.
    pub(crate) fn request(&self) -> Running {
        if let Some(one) = self.all.lock().uses.get_mut(&self.number) {
            one.running += 1;
        }
        Running { number: self.number, all: self.all.clone() }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.all.lock().uses.remove(&self.number);
    }
}

/// A request that is being answered.
#[derive(Debug)]
pub(crate) struct Running {
    number: u64,
    all: Connections,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(one) = self.all.lock().uses.get_mut(&self.number) {
            one.running -= 1;
            one.idle_since = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    async fn asked(connection: &Connection) -> bool {
        timeout(Duration::from_millis(20), connection.asked_to_leave()).await.is_ok()
    }

    #[tokio::test]
    async fn where_there_is_room_nobody_is_asked_to_leave() {
        let all = Connections::new(2);
        let (first, second) = (all.enter().await, all.enter().await);
        assert!(!asked(&first).await && !asked(&second).await);
    }

    #[tokio::test]
    async fn the_one_that_was_idle_for_longest_makes_room() {
        let all = Connections::new(2);
        let (first, second) = (all.enter().await, all.enter().await);
        drop(first.request());
        let third = tokio::spawn({
            let all = all.clone();
            async move { all.enter().await }
        });
        assert!(asked(&second).await && !asked(&first).await);
        drop(second);
        timeout(Duration::from_secs(5), third).await.expect("room").expect("no panic");
    }

    #[tokio::test]
    async fn one_that_is_at_work_is_never_asked() {
        let all = Connections::new(1);
        let first = all.enter().await;
        let running = first.request();
        assert!(first.is_at_work());
        assert!(timeout(Duration::from_millis(20), all.enter()).await.is_err());
        assert!(!asked(&first).await);
        drop(running);
        assert!(!first.is_at_work());
        assert!(timeout(Duration::from_millis(20), all.enter()).await.is_err());
        assert!(asked(&first).await);
    }
}
