//! What is wrong with a configuration, and where.

use std::fmt;
use std::path::{Path, PathBuf};

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Built in.
    Default,
    /// `storage.conf`, which CRI-O reads below its own files.
    StorageConf,
    /// A file; the line counts from 1, and 0 means the file as a whole.
    File {
        /// Path as opened.
        path: PathBuf,
        /// Line of the key.
        line: usize,
    },
    /// An environment variable.
    Env(String),
    /// A command line flag, without dashes.
    Flag(String),
}

impl Origin {
    /// A whole file.
    pub(crate) fn whole(path: &Path) -> Self {
        Self::File { path: path.to_owned(), line: 0 }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::StorageConf => f.write_str("storage.conf"),
            Self::File { path, line: 0 } => write!(f, "{}", path.display()),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Env(name) => write!(f, "${name}"),
            Self::Flag(name) => write!(f, "--{name}"),
        }
    }
}

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where the offending value stands.
    pub origin: Origin,
    /// Full name of the key, as `crio.runtime.cgroup_manager`; empty if the mistake is not about one key.
    pub key: String,
    /// What is wrong and what would be right.
    pub message: String,
}

impl Problem {
    pub(crate) fn new(origin: Origin, key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { origin, key: key.into(), message: message.into() }
    }

    /// The file, if the value came from one.
    pub fn file(&self) -> Option<&Path> {
        match &self.origin {
            Origin::File { path, .. } => Some(path),
            _ => None,
        }
    }

    /// The line in that file, from 1.
    pub fn line(&self) -> Option<usize> {
        match &self.origin {
            Origin::File { line, .. } if *line > 0 => Some(*line),
            _ => None,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.key.is_empty() {
            write!(f, "{}: {}", self.origin, self.message)
        } else {
            write!(f, "{}: {}: {}", self.origin, self.key, self.message)
        }
    }
}

/// Every mistake that was found, never empty when returned as an error. Displayed one a line.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    pub(crate) fn one(origin: Origin, key: impl Into<String>, message: impl Into<String>) -> Self {
        Self(vec![Problem::new(origin, key, message)])
    }

    pub(crate) fn add(&mut self, origin: Origin, key: impl Into<String>, message: impl Into<String>) {
        self.0.push(Problem::new(origin, key, message));
    }

    /// `Err(self)` if there is any, otherwise the value.
    pub(crate) fn or<T>(mut self, value: T) -> Result<T, Self> {
        self.0.sort_by(|a, b| a.origin.cmp(&b.origin));
        if self.0.is_empty() { Ok(value) } else { Err(self) }
    }

    /// The mistakes, file by file and line by line.
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.0.iter()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// A key and where it was set; displayed as `key (origin)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRef {
    /// Full name of the key.
    pub key: String,
    /// Where it was set.
    pub origin: Origin,
}

impl fmt::Display for KeyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.key, self.origin)
    }
}
