//! What the checks look at: the text files that git knows or would add, and what cargo says.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// A text file of the repository.
#[derive(Debug, Clone)]
pub(crate) struct TextFile {
    /// From the root of the repository, with `/`.
    pub(crate) path: String,
    pub(crate) text: String,
    pub(crate) executable: bool,
}

/// The text files of a checkout; binary ones are left out.
#[derive(Debug, Default)]
pub(crate) struct Repository {
    pub(crate) root: PathBuf,
    pub(crate) files: Vec<TextFile>,
}

impl Repository {
    /// Reads the checkout around the current directory.
    pub(crate) fn open() -> Result<Self, String> {
        let root = output(Command::new("git").args(["rev-parse", "--show-toplevel"]))?;
        let root = PathBuf::from(root.trim_end());
        // New files count before they are added: a finding should come before the commit.
        let listing = output(Command::new("git").current_dir(&root).args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ]))?;
        let mut files = Vec::new();
        for path in listing.split_terminator('\0') {
            files.extend(read(&root, path)?);
        }
        Ok(Self { root, files })
    }

    /// The Rust sources.
    pub(crate) fn rust(&self) -> impl Iterator<Item = &TextFile> {
        self.files.iter().filter(|file| file.path.ends_with(".rs"))
    }

    pub(crate) fn file(&self, path: &str) -> Option<&TextFile> {
        self.files.iter().find(|file| file.path == path)
    }

    /// The line, from 1, of the first line of `path` that `found` accepts; 1 when there is none.
    pub(crate) fn line_where(&self, path: &str, found: impl Fn(&str) -> bool) -> usize {
        let text = self.file(path).map_or("", |file| file.text.as_str());
        text.lines().position(found).map_or(1, |at| at + 1)
    }

    /// A repository for tests, of paths and texts; scripts are executable.
    #[cfg(test)]
    pub(crate) fn of(files: &[(&str, &str)]) -> Self {
        let file = |(path, text): &(&str, &str)| TextFile {
            path: (*path).to_owned(),
            text: (*text).to_owned(),
            executable: text.starts_with("#!"),
        };
        Self { root: PathBuf::from("/repository"), files: files.iter().map(file).collect() }
    }
}

/// `None` for what is no text: a binary file, a link, a file that was deleted and not yet committed.
fn read(root: &Path, path: &str) -> Result<Option<TextFile>, String> {
    let full = root.join(path);
    let Ok(metadata) = full.symlink_metadata() else { return Ok(None) };
    if !metadata.is_file() {
        return Ok(None);
    }
    let bytes = std::fs::read(&full).map_err(|error| format!("reading {path}: {error}"))?;
    let executable = metadata.permissions().mode() & 0o111 != 0;
    Ok(String::from_utf8(bytes).ok().map(|text| TextFile { path: path.to_owned(), text, executable }))
}

/// The standard output of a command that succeeded.
fn output(command: &mut Command) -> Result<String, String> {
    let name = format!("{command:?}");
    let done = command.output().map_err(|error| format!("starting {name}: {error}"))?;
    if !done.status.success() {
        return Err(format!("{name}: {}: {}", done.status, String::from_utf8_lossy(&done.stderr).trim_end()));
    }
    String::from_utf8(done.stdout).map_err(|error| format!("output of {name}: {error}"))
}

/// What `cargo metadata` says, with a lock file that must be up to date.
pub(crate) fn cargo_metadata(root: &Path, arguments: &[&str]) -> Result<Value, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root).args(["metadata", "--format-version", "1", "--locked"]).args(arguments);
    serde_json::from_str(&output(&mut command)?).map_err(|error| format!("cargo metadata: {error}"))
}

/// The packages of `cargo metadata`'s answer.
pub(crate) fn packages(metadata: &Value) -> &[Value] {
    metadata["packages"].as_array().map_or(&[], Vec::as_slice)
}

/// A string field of it; empty when it is not there.
pub(crate) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// The line of `Cargo.lock` that pins this version of a package.
pub(crate) fn lock_line(repository: &Repository, name: &str, version: &str) -> usize {
    let lock = repository.file("Cargo.lock").map_or("", |file| file.text.as_str());
    let wanted = (format!("name = \"{name}\""), format!("version = \"{version}\""));
    let mut pairs = lock.lines().zip(lock.lines().skip(1));
    pairs.position(|(one, two)| (one, two) == (wanted.0.as_str(), wanted.1.as_str())).map_or(1, |at| at + 1)
}
