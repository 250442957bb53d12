//! How long a call may work on checkpoints, and who may end it sooner: its caller by going away, and whoever stops or
//! removes a container that is being captured.

use std::time::Duration;

use criox_checkpoint::Cancel;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use crate::error::{Error, Kind, Result};

/// How long blocking work that was told to end may take to heed it: a disk that does not answer is not waited for.
const GRACE: Duration = Duration::from_secs(5);

/// As long as this lives, somebody waits for the answer.
#[derive(Debug)]
pub(super) struct Caller {
    _present: watch::Sender<()>,
}

/// What the work of a call has to heed.
#[derive(Debug)]
pub(super) struct Effort {
    object: String,
    limit: Duration,
    until: Instant,
    caller: watch::Receiver<()>,
    /// Turns true when a container is being stopped or removed, or has ended.
    ends: Vec<watch::Receiver<bool>>,
    cancel: Cancel,
}

impl Effort {
    /// Of a call that works on an object, as it is named in errors, for at most `limit`.
    pub(super) fn new(object: impl Into<String>, limit: Duration) -> (Self, Caller) {
        let (present, caller) = watch::channel(());
        let effort = Self {
            object: object.into(),
            limit,
            until: Instant::now() + limit,
            caller,
            ends: Vec::new(),
            cancel: Cancel::new(),
        };
        (effort, Caller { _present: present })
    }

    /// Ends when one of these turns true.
    pub(super) fn heed(&mut self, ends: impl IntoIterator<Item = watch::Receiver<bool>>) {
        self.ends.extend(ends);
    }

    /// Heeds no container any more: what comes now concerns its files only.
    pub(super) fn heed_no_container(&mut self) {
        self.ends.clear();
    }

    /// What is left of the time.
    pub(super) fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// Resolves when the work has to end, with the reason.
    pub(super) async fn interrupted(&mut self) -> Error {
        let Self { object, limit, until, caller, ends, .. } = self;
        let ended = async {
            if ends.is_empty() {
                return std::future::pending::<()>().await;
            }
            let waits = ends.iter_mut().map(|end| {
                Box::pin(async {
                    // A task that has gone has ended them all.
                    drop(end.wait_for(|end| *end).await);
                })
            });
            futures_util::future::select_all(waits).await;
        };
        tokio::select! {
            biased;
            _ = caller.changed() => Error::new(Kind::Cancelled, format!("whoever asked for {object} has gone")),
            () = ended => Error::new(
                Kind::FailedPrecondition,
                format!("{object} was given up: a container has ended, or is being stopped or removed"),
            ),
            () = sleep_until(*until) => {
                Error::timed_out("work", object, *limit, "allow more time, or look for what does not answer: CRIU, a disk")
            }
        }
    }

    /// Waits for a step, which is dropped when the work has to end.
    pub(super) async fn step<T>(&mut self, step: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            biased;
            error = self.interrupted() => Err(error),
            result = step => result,
        }
    }

    /// Runs a step that blocks and can be called off. When the work has to end it is waited for, so that whoever removes
    /// what it makes comes after it.
    pub(super) async fn blocking<T: Send + 'static>(
        &mut self,
        step: impl FnOnce(&Cancel) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let cancel = self.cancel.clone();
        let mut working: JoinHandle<Result<T>> = tokio::task::spawn_blocking(move || step(&cancel));
        let error = tokio::select! {
            done = &mut working => {
                return done.unwrap_or_else(|panic| {
                    Err(Error::failed(format!("internal error in {}", self.object)).because(panic))
                });
            }
            error = self.interrupted() => error,
        };
        self.cancel.cancel();
        if timeout(GRACE, working).await.is_err() {
            tracing::warn!(work = self.object, "it was told to end and goes on: a disk does not answer");
        }
        Err(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn long() -> (Effort, Caller) {
        Effort::new("a test", Duration::from_secs(600))
    }

    #[tokio::test]
    async fn a_caller_that_goes_ends_the_work() {
        let (mut effort, caller) = long();
        assert_eq!(effort.step(async { Ok(7) }).await.ok(), Some(7));
        drop(caller);
        let error = effort.step(std::future::pending::<Result<()>>()).await.expect_err("nobody waits");
        assert_eq!(error.kind(), Kind::Cancelled);
    }

    #[tokio::test]
    async fn blocking_work_is_told_to_end_and_waited_for() {
        let (mut effort, _caller) = long();
        let (end, ends) = watch::channel(false);
        effort.heed([ends]);
        let (heeded, seen) = std::sync::mpsc::channel();
        let work = effort.blocking(move |cancel| {
            while !cancel.is_cancelled() {
                std::thread::sleep(Duration::from_millis(1));
            }
            heeded.send(()).map_err(|_| Error::failed("nobody listens"))
        });
        let (result, ()) = tokio::join!(work, async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            end.send_replace(true);
        });
        assert_eq!(result.expect_err("it was given up").kind(), Kind::FailedPrecondition);
        seen.try_recv().expect("it has ended before");
    }

    #[tokio::test]
    async fn the_work_ends_with_its_time() {
        let (mut effort, _caller) = Effort::new("a test", Duration::from_millis(20));
        let error = effort.step(std::future::pending::<Result<()>>()).await.expect_err("too long");
        assert_eq!(error.kind(), Kind::DeadlineExceeded);
        assert_eq!(effort.left(), Duration::ZERO);
    }
}
