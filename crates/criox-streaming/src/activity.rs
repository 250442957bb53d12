//! When a session was last used, for the idle timeout.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// The time of the last byte in either direction.
#[derive(Debug)]
pub(crate) struct Activity {
    begun: Instant,
    /// Milliseconds after `begun`.
    last: AtomicU64,
}

impl Activity {
    pub(crate) fn new() -> Self {
        Self { begun: Instant::now(), last: AtomicU64::new(0) }
    }

    /// Bytes have passed.
    pub(crate) fn touch(&self) {
        let now = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    /// Waits until nothing has passed for `limit`.
    pub(crate) async fn idle(&self, limit: Duration) {
        loop {
            let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
            // A limit beyond what a clock can show is none.
            let Some(end) = self.begun.checked_add(last).and_then(|last| last.checked_add(limit)) else {
                return std::future::pending().await;
            };
            if end <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_touch_puts_the_end_off() {
        let activity = Activity::new();
        let limit = Duration::from_millis(60);
        let start = Instant::now();
        tokio::join!(activity.idle(limit), async {
            tokio::time::sleep(Duration::from_millis(40)).await;
            activity.touch();
        });
        assert!(start.elapsed() >= Duration::from_millis(99), "{:?}", start.elapsed());
    }
}
