//! A cut through containers: all of them frozen, each captured, all of them thawed. Whatever happens to the daemon, the
//! monitor thaws when the lease that it was given ends.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use criox_checkpoint::RootChanges;
use criox_checkpoint::space::RESERVE;
use criox_confine::Users;
use criox_monitor_api::proto;
use criox_records::ContainerRecord;
use tokio::time::timeout;

use super::describe::Described;
use super::effort::Effort;
use super::{failed, lease, step};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::monitor;
use crate::pod::Grant;

/// How long the processes of all containers may take to stop.
const FREEZE: Duration = Duration::from_secs(10);
/// How long a capture that was called off may take to be gone.
const GONE: Duration = Duration::from_secs(5);

/// A container that is to be captured, and where.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) record: Arc<ContainerRecord>,
    pub(super) directory: PathBuf,
    pub(super) described: Described,
}

/// Captures them all as of one moment. They run again when this returns, whatever it returns.
pub(super) async fn take(
    context: &Arc<Context>,
    grant: &Grant,
    parts: &[Part],
    effort: &mut Effort,
) -> Result<()> {
    let object = format!("pod sandbox {}", grant.sandbox.id);
    let ids = parts.iter().map(|part| part.record.id.to_string()).collect();
    // Dropped half-way it thaws, too.
    let limit = FREEZE.min(effort.left());
    let lease = effort.step(lease::freeze(&grant.client, ids, limit, &object)).await?;
    let mut captured = step("checkpoint.frozen");
    for part in parts {
        if captured.is_ok() {
            captured = Box::pin(capture(context, grant, part, effort)).await;
        }
    }
    let thawed = lease.thaw(&grant.client).await;
    captured?;
    thawed.map_err(|error| monitor::refused("thaw", &object, error))
}

/// Memory by CRIU, and what the container changed in its root file system.
async fn capture(context: &Arc<Context>, grant: &Grant, part: &Part, effort: &mut Effort) -> Result<()> {
    let id = part.record.id;
    let verb = proto::Checkpoint {
        container_id: id.to_string(),
        image_path: text(part.directory.join(criox_checkpoint::names::IMAGES)),
        work_path: text(part.directory.clone()),
        // The thaw at our own deadline lets it end in order; killed, it could take a process along.
        timeout_ms: lease::milliseconds(effort.left() + GONE),
    };
    let call = lease::checkpoint(&grant.client, verb);
    tokio::pin!(call);
    let answer = tokio::select! {
        answer = &mut call => answer,
        error = effort.interrupted() => {
            // The thaw kills it; only then what it has written can be removed.
            let thaw = lease::thaw_one(&grant.client, id.as_str());
            drop(timeout(GONE, async { tokio::join!(thaw, call) }).await);
            return Err(error);
        }
    };
    answer.map_err(|error| monitor::refused("checkpoint", &format!("container {id}"), error))?;
    step("checkpoint.dumped")?;
    let (context, sandbox, directory) = (context.clone(), grant.sandbox.clone(), part.directory.clone());
    let skip = part.described.mounts.clone();
    effort
        .blocking(move |cancel| {
            let error = |error| Error::failed(format!("root file system of container {id}")).because(error);
            let dirs = context.store.root_dirs(id.as_str()).map_err(error)?;
            let users = Users::of(&sandbox.config.0);
            let (users, groups) = users.map(|users| (users.users, users.groups)).unwrap_or_default();
            let changes = RootChanges {
                upper: &dirs.upper,
                lowers: &dirs.lowers,
                merged: &dirs.merged,
                users: &users,
                groups: &groups,
                skip: &skip,
                reserve: RESERVE,
            };
            let what = || format!("changes in the root file system of container {id}");
            changes.write(&directory, cancel).map(drop).map_err(|error| failed(what(), error))
        })
        .await
}

fn text(path: PathBuf) -> String {
    path.to_string_lossy().into_owned()
}
