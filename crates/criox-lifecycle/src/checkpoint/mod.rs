//! Checkpoints: a container as an archive, a pod as a directory, and both brought back to life.
//!
//! | module | about |
//! |---|---|
//! | [`effort`] | how long a call may work, and who may end it sooner |
//! | [`call`] | the frame around a call: grant, time, detached work |
//! | [`cut`] | containers frozen together, each captured, thawed |
//! | [`lease`] | what holds containers frozen |
//! | [`describe`] | what a checkpoint says about its container |
//! | [`container`] | CheckpointContainer |
//! | [`pod`] | CheckpointPod |
//! | [`intent`] | what a daemon that was killed over a pod's checkpoint has left |
//! | [`source`] | what CreateContainer is to restore, copied to a place of ours |
//! | [`restore_pod`] | RestorePod |
//!
//! Whether it is allowed, where to, and whether a checkpoint fits a request, is `criox-checkpoint-policy`'s to say.

mod call;
mod container;
mod cut;
mod describe;
mod effort;
mod intent;
mod lease;
mod pod;
mod restore_pod;
pub(crate) mod source;

use std::path::Path;
use std::time::Duration;

pub(crate) use container::sweep;
pub(crate) use intent::undo;
pub use restore_pod::RestoredPod;

use criox_records::ContainerRecord;
use criox_store::Timestamp;

use crate::context::Context;
use crate::error::{Error, Kind, Result};

/// How long a call may take that sets no time itself.
const DEFAULT: Duration = Duration::from_secs(600);

/// A place at which a test makes criox die, fail or wait. Not among the failpoints of every pod's life: these take CRIU,
/// and a test of their own goes through them.
pub(crate) fn step(name: &'static str) -> Result<()> {
    crate::error::failpoint(name)
}

/// An error over a checkpoint's files; what failed comes first.
pub(crate) fn failed(what: impl Into<String>, error: criox_checkpoint::Error) -> Error {
    let kind = match &error {
        error if error.is_refusal() => Kind::InvalidArgument,
        criox_checkpoint::Error::Location { .. } => Kind::InvalidArgument,
        criox_checkpoint::Error::NoSpace { .. } => Kind::FailedPrecondition,
        criox_checkpoint::Error::Cancelled { .. } => Kind::DeadlineExceeded,
        _ => Kind::Failed,
    };
    Error::new(kind, what).because(error)
}

/// Where nothing of others is written: among images, containers and pods.
fn own_directories(context: &Context) -> [&Path; 2] {
    [context.store.graph_root(), &context.store.options().run_root]
}

/// When a container was last checkpointed, as RFC 3339; empty if never.
pub fn checkpointed_at(record: &ContainerRecord) -> String {
    if record.checkpointed_at == 0 {
        String::new()
    } else {
        Timestamp::from_unix_nanos(record.checkpointed_at).to_string()
    }
}
