//! Checkpoints: a container as an archive, a pod as a directory, and both brought back to life.
//!
//! | module | about |
//! |---|---|
//! | [`switch`] | whether any of it is allowed on this node |
//! | [`place`] | where a checkpoint may be written |
//! | [`effort`] | how long a call may work, and who may end it sooner |
//! | [`cut`] | containers frozen together, each captured, thawed |
//! | [`lease`] | what holds containers frozen |
//! | [`describe`] | what a checkpoint says about its container |
//! | [`container`] | CheckpointContainer |
//! | [`pod`] | CheckpointPod |
//! | [`intent`] | what a daemon that was killed over a pod's checkpoint has left |
//! | [`source`] | what CreateContainer is to restore, copied to a place of ours |
//! | [`fits`] | whether a checkpoint is what the request expects and allows |
//! | [`restore_pod`] | RestorePod |
//!
//! Nothing in a checkpoint is a policy: users, capabilities, filters, labels, mounts, limits and annotations come from
//! the request that restores it.

mod container;
mod cut;
mod describe;
mod effort;
mod fits;
mod intent;
mod lease;
mod place;
mod pod;
mod restore_pod;
pub(crate) mod source;
mod switch;

use std::time::Duration;

pub(crate) use container::sweep;
pub(crate) use intent::undo;
pub use restore_pod::RestoredPod;
pub use switch::Checkpoints;

use crate::error::{Error, Kind, Result};
use crate::names;
use crate::record::ContainerRecord;

/// How long a call may take that sets no time itself.
const DEFAULT: Duration = Duration::from_secs(600);

/// A place at which a test makes criox die, fail or wait. Not among the failpoints of every pod's life: these take CRIU,
/// and a test of their own goes through them.
pub(crate) fn step(name: &'static str) -> Result<()> {
    crate::error::failpoint(name)
}

/// An error over a checkpoint's files; what failed comes first.
fn failed(what: impl Into<String>, error: criox_checkpoint::Error) -> Error {
    let kind = match &error {
        error if error.is_refusal() => Kind::InvalidArgument,
        criox_checkpoint::Error::Location { .. } => Kind::InvalidArgument,
        criox_checkpoint::Error::NoSpace { .. } => Kind::FailedPrecondition,
        criox_checkpoint::Error::Cancelled { .. } => Kind::DeadlineExceeded,
        _ => Kind::Failed,
    };
    Error::new(kind, what).because(error)
}

/// When a container was last checkpointed, as RFC 3339; empty if never.
pub fn checkpointed_at(record: &ContainerRecord) -> String {
    if record.checkpointed_at == 0 { String::new() } else { names::rfc3339(record.checkpointed_at) }
}
