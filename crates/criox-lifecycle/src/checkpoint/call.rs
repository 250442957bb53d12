//! The frame around a call that captures containers: they are granted to it and to no other, it works for as long as its
//! caller waits, and what it has done is noted.

use std::time::Duration;

use criox_checkpoint_policy::Claim;
use criox_cri::ids::ContainerId;

use super::DEFAULT;
use super::effort::Effort;
use crate::error::{Error, Result};
use crate::index::PodView;
use crate::pod::{Grant, Request};

/// A call, with what it has been allowed.
pub(super) struct Call<'a> {
    pub(super) view: &'a PodView,
    pub(super) ids: Vec<ContainerId>,
    /// What it works on, as errors name it.
    pub(super) object: &'a str,
    /// What belongs to it until its work has ended.
    pub(super) claim: Claim,
    /// The time that it has; [`DEFAULT`] if it says none.
    pub(super) limit: Option<Duration>,
}

impl Call<'_> {
    /// Does the work, which says when the containers were captured, in nanoseconds since the epoch.
    ///
    /// # Errors
    /// The containers can't be granted; or the work's own.
    pub(super) async fn work<F>(self, work: impl FnOnce(Grant, Effort) -> F) -> Result<()>
    where
        F: Future<Output = Result<i64>> + Send + 'static,
    {
        let Self { view, ids, object, claim, limit } = self;
        let grant = view.pod.ask(|reply| Request::Checkpoint { ids: ids.clone(), reply }).await?;
        let (mut effort, caller) = Effort::new(object, limit.unwrap_or(DEFAULT));
        effort.heed(grant.ends.iter().cloned());
        let work = work(grant, effort);
        // Detached: whoever asked may go, and what was made has to be removed all the same.
        let work = tokio::spawn(async move {
            let done = work.await;
            drop(claim);
            done
        });
        let done = work.await;
        drop(caller);
        let at =
            done.map_err(|panic| Error::failed(format!("internal error in {object}")).because(panic))??;
        let noted = view.pod.ask(|reply| Request::Checkpointed { ids, at, reply }).await;
        if let Err(error) = noted {
            tracing::debug!(sandbox = %view.sandbox.id, error = error.chain(), "gone since its checkpoint");
        }
        Ok(())
    }
}
