//! Where a pod's checkpoint is being written to: noted before, so that a start after a kill removes what is half there.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use criox_checkpoint::pod;
use criox_checkpoint_policy::place::Output;
use criox_cri::ids::SandboxId;
use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::error::{Error, Result, chain};

/// The note.
#[derive(Debug, Serialize, Deserialize)]
struct Intent {
    version: u32,
    output: PathBuf,
    /// The directory itself, whatever has its name later.
    device: u64,
    inode: u64,
}

/// Notes it.
pub(super) fn note(context: &Context, sandbox: &SandboxId, output: &Output) -> Result<()> {
    let intent = Intent {
        version: criox_records::VERSION,
        output: output.path.clone(),
        device: output.device,
        inode: output.inode,
    };
    criox_records::write(&context.paths.checkpoint_intent(sandbox.as_str()), &intent)
        .map_err(|error| Error::failed(format!("checkpoint of pod sandbox {sandbox}")).because(error))
}

/// The checkpoint is complete, or nothing of it is there any more.
pub(super) fn forget(context: &Context, sandbox: &SandboxId) -> Result<()> {
    crate::container::remove::remove_file(&context.paths.checkpoint_intent(sandbox.as_str()))
}

/// Removes what a daemon that was killed has written of a pod's checkpoint: its caller was given an error.
pub(crate) fn undo(context: &Context, sandbox: &SandboxId) {
    let path = context.paths.checkpoint_intent(sandbox.as_str());
    let intent: Intent = match criox_records::read(&path) {
        Ok(intent) => intent,
        Err(criox_records::RecordError::Io { source, .. })
            if source.kind() == std::io::ErrorKind::NotFound =>
        {
            return;
        }
        Err(error) => {
            return tracing::warn!(error = chain(&error), "a half-written checkpoint of a pod may stay");
        }
    };
    let same = std::fs::symlink_metadata(&intent.output)
        .is_ok_and(|now| now.is_dir() && (now.dev(), now.ino()) == (intent.device, intent.inode));
    if same && let Err(error) = pod::remove_partial(&intent.output) {
        return tracing::warn!(error = chain(&error), "a half-written checkpoint of a pod stays");
    }
    match forget(context, sandbox) {
        Ok(()) => {
            tracing::info!(%sandbox, output = %intent.output.display(), "removed a half-written checkpoint")
        }
        Err(error) => tracing::warn!(%sandbox, error = error.chain(), "the note of a checkpoint stays"),
    }
}
