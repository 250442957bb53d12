//! What holds containers frozen: a socket, whose other end is the monitor's. However it ends, the monitor thaws.

use std::os::fd::OwnedFd;
use std::time::Duration;

use criox_monitor_api::client::{CallError, Client};
use criox_monitor_api::proto::{self, request};
use criox_sys::socket;

use crate::error::{Error, Result};
use crate::monitor::{self, ANSWER};

/// As long as it lives its containers are frozen, unless the monitor has thawed one for a signal or an end.
#[derive(Debug)]
pub(super) struct Lease {
    ids: Vec<String>,
    _ours: OwnedFd,
}

/// Freezes all processes of these containers, or none.
///
/// # Errors
/// They did not stop within `limit`; the monitor does not know how.
pub(super) async fn freeze(
    client: &Client,
    ids: Vec<String>,
    limit: Duration,
    object: &str,
) -> Result<Lease> {
    let pair = socket::pair().map_err(|error| Error::failed(format!("freeze of {object}")).because(error));
    let (ours, theirs) = pair?;
    // Here already, so that a call that is dropped half-way thaws.
    let lease = Lease { ids: ids.clone(), _ours: ours };
    let verb = proto::Freeze { container_ids: ids, timeout_ms: milliseconds(limit) };
    let frozen = client.freeze(verb, theirs, limit + ANSWER).await;
    frozen.map_err(|error| monitor::refused("freeze", object, error))?;
    Ok(lease)
}

impl Lease {
    /// Thaws, and returns when that is done. Others of the pod may be held by another call.
    pub(super) async fn thaw(self, client: &Client) -> std::result::Result<(), CallError> {
        let verb = proto::Thaw { container_ids: self.ids.clone() };
        client.done(request::Verb::Thaw(verb), ANSWER).await
    }
}

/// Thaws one container, which ends a capture of it.
pub(super) async fn thaw_one(client: &Client, id: &str) -> std::result::Result<(), CallError> {
    let one = request::Verb::Thaw(proto::Thaw { container_ids: vec![id.to_owned()] });
    client.done(one, ANSWER).await
}

/// Captures the memory of a container that a lease holds.
pub(super) async fn checkpoint(
    client: &Client,
    verb: proto::Checkpoint,
) -> std::result::Result<(), CallError> {
    // After the limit the monitor waits for what it has killed to be gone.
    let limit = Duration::from_millis(verb.timeout_ms.into()) + ANSWER * 2;
    monitor::attended(client, client.done(request::Verb::Checkpoint(verb), limit)).await
}

/// For the monitor's protocol.
pub(super) fn milliseconds(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}
