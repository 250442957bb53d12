//! The container's log goes along with its checkpoint.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use criox_sys::durable::{self, PathError};
use rustix::fs::OFlags;

use crate::cancel::Cancel;
use crate::directory;
use crate::error::Error;
use crate::names;

/// Copies the log `log` as it is now into the capture `dir`; its length, or `None` when there is no such file. What is
/// appended meanwhile is left out. A link, FIFO or device in its place is not followed and not read.
///
/// # Errors
/// What reading or writing answered; [`Error::Cancelled`].
pub fn copy_log(log: &Path, dir: &Path, cancel: &Cancel) -> Result<Option<u64>, Error> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let flags = i32::try_from(flags.bits()).unwrap_or_default();
    let file = match File::options().read(true).custom_flags(flags).open(log) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(PathError::new("open", log, e).into()),
    };
    let meta = file.metadata().map_err(|e| PathError::new("look at", log, e))?;
    if !meta.is_file() {
        return Ok(None);
    }
    let mut copied = Ok(0);
    let target = dir.join(names::LOG);
    let placed = durable::replace(&target, 0o600, false, |out| {
        copied = directory::copy_content(&file, log, out, &target, meta.len(), cancel);
        if copied.is_ok() { Ok(()) } else { Err(io::Error::other("copying failed")) }
    });
    // The first error is the one that tells more.
    let copied = copied?;
    placed?;
    Ok(Some(copied))
}
