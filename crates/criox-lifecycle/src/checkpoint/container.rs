//! CheckpointContainer: a running container as one archive. It is frozen only while its memory and the changes of its
//! files are being captured, and runs again while the archive is being written.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use criox_checkpoint::space::RESERVE;
use criox_checkpoint::{archive, copy_log};
use criox_checkpoint_policy::{capturable, place};
use criox_cri::ids::ContainerId;
use criox_sys::durable;

use super::call::Call;
use super::cut::{self, Part};
use super::effort::Effort;
use super::{describe, failed, own_directories, step};
use crate::context::{Context, blocking};
use crate::engine::Lifecycle;
use crate::error::{Error, Result};
use crate::pod::Grant;

/// How long the disk may take to remove a capture, or to look at a path.
const DISK: Duration = Duration::from_secs(60);

impl Lifecycle {
    /// CheckpointContainer: writes an archive to `location` within `limit`, or within ten minutes. The container goes on.
    ///
    /// # Errors
    /// Checkpoints are off, or can't be made here; unknown or not running; a place that can't be written to; CRIU
    /// failed, or took too long. Nothing is left then, and the container runs.
    pub async fn checkpoint_container(
        &self,
        id: &str,
        location: &str,
        limit: Option<Duration>,
    ) -> Result<()> {
        let context = &self.context;
        context.checkpoints.checkpoint()?;
        let (view, record) = context.index.container(id)?;
        let object = format!("checkpoint of container {}", record.id);
        let location = blocking("look at the location", &object, DISK, {
            let (context, location) = (context.clone(), location.to_owned());
            move || Ok(place::archive(&own_directories(&context), &location)?)
        });
        let location = location.await?;
        let claim = context.checkpoints.claim(location.display().to_string())?;
        let handler = context.handlers.get(&view.sandbox.runtime_handler)?;
        let runtime = handler.checkpoints().await?;
        capturable(&record)?;
        let call = Call { view: &view, ids: vec![record.id], object: &object, claim, limit };
        call.work(|grant, mut effort| {
            let context = context.clone();
            Box::pin(async move { checkpoint(&context, &grant, &runtime, &location, &mut effort).await })
        })
        .await
    }
}

/// When it was captured, in nanoseconds since the epoch.
async fn checkpoint(
    context: &Arc<Context>,
    grant: &Grant,
    runtime: &str,
    location: &Path,
    effort: &mut Effort,
) -> Result<i64> {
    let Some(record) = grant.containers.first() else { return Err(Error::failed("no container to capture")) };
    let directory = context.paths.capture(record.id.as_str());
    let done = Box::pin(steps(context, grant, runtime, &directory, location, effort)).await;
    let removed = remove(context, record.id).await;
    if let Err(error) = removed {
        tracing::warn!(container = %record.id, error = error.chain(), "what was captured stays until the next start of criox");
    }
    done
}

async fn steps(
    context: &Arc<Context>,
    grant: &Grant,
    runtime: &str,
    directory: &Path,
    location: &Path,
    effort: &mut Effort,
) -> Result<i64> {
    let Some(record) = grant.containers.first() else { return Err(Error::failed("no container to capture")) };
    let at = context.clock.now();
    let begin = {
        let (context, sandbox, record) = (context.clone(), grant.sandbox.clone(), record.clone());
        let (runtime, directory, location) = (runtime.to_owned(), directory.to_owned(), location.to_owned());
        move || {
            remove_now(&context, record.id)?;
            describe::make_directory(&directory)?;
            note_location(&context, record.id, &location)?;
            describe::begin(&context, &sandbox, &record, &runtime, at, &directory)
        }
    };
    let described = effort.blocking(move |_| begin()).await?;
    let part = Part { record: record.clone(), directory: directory.to_owned(), described };
    Box::pin(cut::take(context, grant, std::slice::from_ref(&part), effort)).await?;
    step("checkpoint.thawed")?;
    // It runs again, and may end.
    effort.heed_no_container();
    let (id, log) = (record.id, record.log_path.clone());
    let (directory, location) = (directory.to_owned(), location.to_owned());
    let archived = effort.blocking(move |cancel| {
        let what = |error| failed(format!("archive of container {id}"), error);
        copy_log(&log, &directory, cancel).map_err(what)?;
        archive::write(&directory, &location, RESERVE, cancel).map_err(what)
    });
    let bytes = archived.await?;
    tracing::info!(container = %record.id, bytes, "checkpointed");
    Ok(at)
}

/// Beside the capture, for a daemon that is killed while it takes the place of an older archive.
fn location_note(context: &Context, id: ContainerId) -> PathBuf {
    context.paths.captures().join(format!("{id}.location"))
}

fn note_location(context: &Context, id: ContainerId, location: &Path) -> Result<()> {
    use std::os::unix::ffi::OsStrExt as _;
    durable::write_atomic(&location_note(context, id), location.as_os_str().as_bytes(), 0o600)
        .map_err(|error| Error::failed(format!("checkpoint of container {id}")).because(error))
}

async fn remove(context: &Arc<Context>, id: ContainerId) -> Result<()> {
    let shared = context.clone();
    blocking("removal of a capture", &format!("container {id}"), DISK, move || remove_now(&shared, id)).await
}

fn remove_now(context: &Context, id: ContainerId) -> Result<()> {
    let failed = |error| Error::failed(format!("capture of container {id}")).because(error);
    durable::remove_tree(&context.paths.capture(id.as_str())).map_err(failed)?;
    durable::remove_tree(&location_note(context, id)).map_err(failed)
}

/// Removes what a daemon that was killed had captured, and what it had begun to write elsewhere.
pub(crate) fn sweep(context: &Context) {
    use std::os::unix::ffi::OsStringExt as _;
    let Ok(entries) = std::fs::read_dir(context.paths.captures()) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "location")
            && let Ok(location) = std::fs::read(&path)
        {
            let location = PathBuf::from(std::ffi::OsString::from_vec(location));
            if let Err(error) = archive::remove_partial(&location) {
                tracing::warn!(error = crate::error::chain(&error), "a part of an archive stays");
            }
        }
        if let Err(error) = durable::remove_tree(&path) {
            tracing::warn!(error = crate::error::chain(&error), "a capture of a killed daemon stays");
        }
    }
}
