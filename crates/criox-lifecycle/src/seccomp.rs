//! Which system call filter a container gets: the request's, the handler's, the configuration's, or our own.

use std::path::Path;

use criox_cri::v1;
use criox_spec::{SeccompFile, SeccompProfile, SeccompRequest, parse_profile, seccomp_request};

use crate::error::{Error, Kind, Result};

/// The most that is read of a profile.
const PROFILE_MAX: u64 = 4 << 20;
/// What is recorded for a profile that the configuration gives to RuntimeDefault.
const RUNTIME_DEFAULT: &str = "RuntimeDefault";

/// The configured default profile, parsed once.
#[derive(Debug, Default)]
pub struct SeccompDefaults {
    default: Option<SeccompFile>,
}

/// The filter of one container.
pub(crate) enum Resolved<'a> {
    Unconfined,
    Default,
    Shared(&'a SeccompFile),
    Loaded(Box<SeccompFile>, String),
}

impl Resolved<'_> {
    /// As the specification takes it.
    pub(crate) fn as_spec(&self) -> SeccompProfile<'_> {
        match self {
            Self::Unconfined => SeccompProfile::Unconfined,
            Self::Default => SeccompProfile::Default,
            Self::Shared(profile) => SeccompProfile::Loaded { profile, path: RUNTIME_DEFAULT },
            Self::Loaded(profile, path) => SeccompProfile::Loaded { profile, path },
        }
    }
}

impl SeccompDefaults {
    /// Reads `seccomp_profile` of the configuration; none means our own.
    ///
    /// # Errors
    /// The file can't be read or is no profile.
    pub fn load(path: Option<&Path>) -> Result<Self> {
        let default = match path.filter(|path| !path.as_os_str().is_empty()) {
            Some(path) => Some(read(path)?),
            None => None,
        };
        Ok(Self { default })
    }

    pub(crate) fn resolve(
        &self,
        config: &v1::ContainerConfig,
        handler: Option<&Path>,
    ) -> Result<Resolved<'_>> {
        let request = seccomp_request(config)
            .map_err(|error| Error::new(Kind::InvalidArgument, format!("config.{error}")))?;
        match (request, handler.filter(|path| !path.as_os_str().is_empty()), &self.default) {
            (SeccompRequest::Unconfined | SeccompRequest::Privileged, _, _) => Ok(Resolved::Unconfined),
            (SeccompRequest::Localhost(path), _, _) => {
                Ok(Resolved::Loaded(Box::new(read(Path::new(&path))?), path))
            }
            (SeccompRequest::RuntimeDefault, Some(path), _) => {
                Ok(Resolved::Loaded(Box::new(read(path)?), RUNTIME_DEFAULT.into()))
            }
            (SeccompRequest::RuntimeDefault, None, Some(default)) => Ok(Resolved::Shared(default)),
            (SeccompRequest::RuntimeDefault, None, None) => Ok(Resolved::Default),
        }
    }
}

fn read(path: &Path) -> Result<SeccompFile> {
    use std::io::Read as _;
    let refused = || Error::new(Kind::InvalidArgument, format!("seccomp profile {}", path.display()));
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(PROFILE_MAX + 1).read_to_end(&mut bytes))
        .map_err(|error| refused().because(error))?;
    parse_profile(&bytes).map_err(|error| refused().because(error))
}
