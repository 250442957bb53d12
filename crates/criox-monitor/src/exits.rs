//! Exit records: what a daemon that was away needs to know, one file a container.

use std::io::{self, Write};
use std::path::Path;

use criox_monitor_api::proto::ExitFacts;

/// The form of a record, JSON. Numbers are never used for another meaning; a reader leaves a record of a higher
/// version alone.
#[derive(serde::Serialize)]
struct ExitRecord<'a> {
    version: u32,
    container_id: &'a str,
    exit_code: i32,
    signal: i32,
    oom_killed: bool,
    /// Nanoseconds since the epoch.
    finished_at: i64,
}

/// Writes `<run_dir>/exits/<id>`, and the file that conmon would write if `exit_dir` is given: the code as text.
pub(crate) fn write(run_dir: &Path, exit_dir: Option<&Path>, id: &str, exit: &ExitFacts) -> io::Result<()> {
    let record = ExitRecord {
        version: 1,
        container_id: id,
        exit_code: exit.exit_code,
        signal: exit.signal,
        oom_killed: exit.oom_killed,
        finished_at: exit.finished_at,
    };
    let dir = run_dir.join("exits");
    match std::fs::create_dir(&dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    replace(&dir, id, &serde_json::to_vec(&record)?)?;
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
