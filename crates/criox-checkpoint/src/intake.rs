//! A checkpoint that came from elsewhere and now lies in a directory of ours.

use std::path::{Path, PathBuf};

use criox_sys::inroot::Root;

use crate::criu;
use crate::directory;
use crate::error::Error;
use crate::metadata::{self, BindMount, ConfigDump, Metadata, SpecDump};
use crate::names;

/// Bounds on what a checkpoint from elsewhere may hold.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of all files together.
    pub max_bytes: u64,
    /// Files and directories, also those that are passed over.
    pub max_entries: u64,
    /// Bytes that stay free on the file system.
    pub reserve_bytes: u64,
}

impl Default for Limits {
    /// 1 TiB, 200 000 entries, [`crate::space::RESERVE`].
    fn default() -> Self {
        Self { max_bytes: 1 << 40, max_entries: 200_000, reserve_bytes: crate::space::RESERVE }
    }
}

/// A checkpoint in a directory of ours: only regular files, all with names that we know.
#[derive(Debug, Clone)]
pub struct Intake {
    dir: PathBuf,
    /// What its JSON files say.
    pub metadata: Metadata,
}

impl Intake {
    /// Looks at the directory `dir` that [`crate::unpack`] or [`crate::copy`] filled.
    ///
    /// # Errors
    /// [`Error::Refused`] when `config.dump`, `spec.dump` or CRIU's images are missing, a JSON file is malformed, or
    /// anything is there that isn't a regular file with a name that we know.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let root = Root::open(dir)?;
        directory::check(&root, dir)?;
        let config = ConfigDump::parse(&required(&root, names::CONFIG_DUMP, metadata::MAX_CONFIG)?)?;
        let spec = SpecDump::parse(&required(&root, names::SPEC_DUMP, metadata::MAX_SPEC)?)?;
        let bind_mounts = match optional(&root, names::BIND_MOUNTS, metadata::MAX_SPEC)? {
            Some(json) => BindMount::parse_all(&json)?,
            None => Vec::new(),
        };
        Ok(Self { dir: dir.to_owned(), metadata: Metadata { config, spec, bind_mounts } })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The directory of CRIU's images, for the runtime's `--image-path`.
    pub fn images(&self) -> PathBuf {
        self.dir.join(names::IMAGES)
    }

    /// The processes that CRIU would make, with their credentials.
    ///
    /// # Errors
    /// [`Error::Refused`] for images that are malformed or don't say it.
    pub fn processes(&self) -> Result<criu::Processes, Error> {
        criu::Processes::read(&self.images())
    }

    /// The mounts that CRIU would make.
    ///
    /// # Errors
    /// [`Error::Refused`] as [`criu::mounts`].
    pub fn mounts(&self) -> Result<Vec<criu::Mount>, Error> {
        criu::mounts(&self.images())
    }
}

fn required(root: &Root, name: &'static str, limit: u64) -> Result<Vec<u8>, Error> {
    optional(root, name, limit)?.ok_or_else(|| Error::refused(name, "missing"))
}

/// A file of the intake; `None` if it isn't there.
pub(crate) fn optional(root: &Root, name: &'static str, limit: u64) -> Result<Option<Vec<u8>>, Error> {
    match root.read_file(Path::new(name), limit) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) => match e.kind() {
            std::io::ErrorKind::NotFound => Ok(None),
            std::io::ErrorKind::InvalidInput => Err(Error::refused(name, "not a regular file")),
            std::io::ErrorKind::FileTooLarge => {
                Err(Error::refused(name, format!("longer than {limit} bytes")))
            }
            _ => Err(e.into()),
        },
    }
}
