//! Which files of CRI-O's are read, in which order.

use std::path::{Path, PathBuf};

use super::{ConfigFile, LoadOptions};
use crate::problem::Origin;
use crate::table::Sink;

/// Deepest nesting of drop-in directories; a loop of mounts must not hang the start.
const MAX_DEPTH: usize = 16;

/// The main file and the drop-ins in the order of reading, and whether each must exist.
pub(super) fn list(options: &LoadOptions, sink: &mut Sink) -> Vec<(PathBuf, bool)> {
    let mut files = match &options.config_path {
        ConfigFile::None => Vec::new(),
        ConfigFile::Optional(path) => vec![(path.clone(), false)],
        ConfigFile::Required(path) => vec![(path.clone(), true)],
    };
    if let Some(dir) = &options.drop_in_dir {
        let mut found = Vec::new();
        walk(dir, 0, &mut found, sink);
        files.extend(found.into_iter().map(|path| (path, false)));
    }
    files
}

/// Every regular file below the directory, whatever its name, in lexical order directory by directory.
fn walk(dir: &Path, depth: usize, found: &mut Vec<PathBuf>, sink: &mut Sink) {
    let entries = match std::fs::read_dir(dir).and_then(Iterator::collect::<Result<Vec<_>, _>>) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return,
        Err(e) => return sink.problems.add(Origin::whole(dir), "", format!("can't be listed: {e}")),
    };
    if depth == MAX_DEPTH {
        return sink.problems.add(Origin::whole(dir), "", "is nested too deeply");
    }
    let mut entries: Vec<_> = entries.into_iter().map(|entry| (entry.file_name(), entry)).collect();
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    for (_, entry) in entries {
        let path = entry.path();
        // Links to files are followed (a mounted ConfigMap has only links); one to a directory is an error in CRI-O,
        // and a mistake here.
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => walk(&path, depth + 1, found, sink),
            Ok(kind) if kind.is_symlink() && path.is_dir() => {
                sink.problems.add(Origin::whole(&path), "", "is a link to a directory, not a file");
            }
            _ => found.push(path),
        }
    }
}
