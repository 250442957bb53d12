//! The checks, one file each. A check is a function from what is in the repository to findings, so that its
//! test can show it a repository that is wrong.

mod arrows;
mod config_keys;
mod duplicates;
mod file_size;
mod licences;
mod machine_paths;
mod module_names;
mod pure_spec;
mod repository;
mod rust_code;
mod scripts;
mod traps;
mod unsafe_code;

use std::fmt;

use repository::Repository;

/// Something that is wrong, where, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    /// From the root of the repository.
    pub(crate) path: String,
    /// From 1.
    pub(crate) line: usize,
    /// What is wrong; then, after a semicolon, what to do.
    pub(crate) message: String,
}

impl Finding {
    fn new(path: &str, line: usize, message: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, message: message.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.message)
    }
}

/// Runs every check on the repository around the current directory.
///
/// # Errors
/// A text when the repository or its dependencies could not be read.
pub(crate) fn run() -> Result<Vec<Finding>, String> {
    let repository = Repository::open()?;
    let crates = repository::cargo_metadata(&repository.root, &["--no-deps"])?;
    // One platform is enough: the dependencies of the others hardly differ, and they would all be downloaded.
    let all =
        repository::cargo_metadata(&repository.root, &["--filter-platform", "x86_64-unknown-linux-gnu"])?;

    let mut findings = arrows::check(&repository, &crates);
    findings.extend(unsafe_code::check(&repository));
    findings.extend(config_keys::check(&repository));
    findings.extend(file_size::check(&repository));
    findings.extend(module_names::check(&repository));
    findings.extend(pure_spec::check(&repository));
    findings.extend(machine_paths::check(&repository));
    findings.extend(scripts::check(&repository));
    findings.extend(traps::check(&repository));
    findings.extend(licences::check(&repository, &all));
    findings.extend(duplicates::check(&repository, &all));
    findings.sort();
    Ok(findings)
}
