//! Exit records: what a daemon that was away needs to know, one file a container.

use std::io::{self, Write};
use std::path::Path;

use criox_monitor_api::exit_record;
use criox_monitor_api::proto::ExitFacts;

/// Writes `<run_dir>/exits/<id>`, and the file that conmon would write if `exit_dir` is given: the code as text.
pub(crate) fn write(run_dir: &Path, exit_dir: Option<&Path>, id: &str, exit: &ExitFacts) -> io::Result<()> {
    let dir = run_dir.join("exits");
    match std::fs::create_dir(&dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    replace(&dir, id, &exit_record::to_bytes(id, exit)?)?;
    exit_dir.map_or(Ok(()), |dir| replace(dir, id, exit.exit_code.to_string().as_bytes()))
}

/// Forgets the record of an earlier container of that ID.
pub(crate) fn remove(run_dir: &Path, id: &str) {
    let _ = std::fs::remove_file(run_dir.join("exits").join(id));
}

/// Atomic, not synced: the run directory doesn't outlive a power cut.
fn replace(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = dir.join(format!(".{name}.new"));
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).open(&temporary)?;
    file.write_all(bytes)?;
    std::fs::rename(&temporary, dir.join(name))
}
