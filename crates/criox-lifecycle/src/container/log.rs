//! A container's log on disk. The kubelet decides the next attempt by the numbers of the files it finds, so a creation
//! that nobody was given leaves none.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use crate::error::{Error, Result};

/// Makes the directory of a log. The kubelet has made it already; other callers count on the runtime.
pub(crate) fn make_directory(path: &Path) -> Result<()> {
    let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) else {
        return Ok(());
    };
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|error| Error::failed(format!("log directory {}", directory.display())).because(error))
}

/// Removes the log of a container that nobody was given; a link is not followed.
pub(crate) async fn forget(path: &Path) {
    if path.as_os_str().is_empty() {
        return;
    }
    let path = path.to_owned();
    let removed = tokio::task::spawn_blocking(move || super::remove::remove_file(&path)).await;
    if let Ok(Err(error)) = removed {
        tracing::warn!(error = error.chain(), "the log of an undone container stays");
    }
}
