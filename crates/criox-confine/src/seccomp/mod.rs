//! Which system call filter a container gets: the request's, the handler's, the configuration's, or our own.

mod artifact;
mod notifier;

use std::path::Path;

use criox_cri::v1;
use criox_spec::{SeccompFile, SeccompProfile, SeccompRequest, parse_profile, seccomp_request};

use crate::error::{Error, Result};
pub use artifact::{ArtifactName, SeccompArtifact};
pub use notifier::NotifierAction;

/// The most that is read of a profile.
const PROFILE_MAX: u64 = 4 << 20;
/// What is recorded for a profile that the configuration gives to RuntimeDefault.
const RUNTIME_DEFAULT: &str = "RuntimeDefault";

/// The configured default profiles, parsed once.
#[derive(Debug, Default)]
pub struct SeccompDefaults {
    default: Option<SeccompFile>,
    /// Of privileged containers, with its path.
    privileged: Option<(SeccompFile, String)>,
}

/// The filter of one container.
#[derive(Debug)]
pub enum SeccompFilter<'a> {
    /// None.
    Unconfined,
    /// Our own default.
    Default,
    /// A profile that others have as well, and what is recorded for it.
    Shared(&'a SeccompFile, &'a str),
    /// A profile that was read for this container, and what is recorded for it.
    Loaded(Box<SeccompFile>, String),
}

impl SeccompFilter<'_> {
    /// As the specification takes it.
    pub fn as_spec(&self) -> SeccompProfile<'_> {
        match self {
            Self::Unconfined => SeccompProfile::Unconfined,
            Self::Default => SeccompProfile::Default,
            Self::Shared(profile, path) => SeccompProfile::Loaded { profile, path },
            Self::Loaded(profile, path) => SeccompProfile::Loaded { profile, path },
        }
    }
}

impl SeccompDefaults {
    /// Reads `seccomp_profile` and `privileged_seccomp_profile` of the configuration; none means our own, and none for
    /// privileged containers. As in CRI-O a default that is not there stands for our own.
    ///
    /// # Errors
    /// A file can't be read or is no profile.
    pub fn load(path: Option<&Path>, privileged: Option<&Path>) -> Result<Self> {
        let given =
            |path: Option<&'_ Path>| path.filter(|path| !path.as_os_str().is_empty()).map(Path::to_owned);
        let default = match given(path) {
            Some(path) if !path.exists() => {
                tracing::warn!(path = %path.display(), "seccomp_profile is not there; our own default is used");
                None
            }
            Some(path) => Some(read(&path)?),
            None => None,
        };
        let privileged = match given(privileged) {
            Some(path) => Some((read(&path)?, path.to_string_lossy().into_owned())),
            None => None,
        };
        Ok(Self { default, privileged })
    }

    /// The filter that a request asks for. `handler` is the handler's own default, `allowed` the annotations that it
    /// lets pods use, `artifact` the profile that they name where the request asks for none.
    ///
    /// # Errors
    /// A profile that can't be read or is none; an annotation that names a profile and no container.
    pub fn resolve<'a>(
        &'a self,
        sandbox: &v1::PodSandboxConfig,
        config: &v1::ContainerConfig,
        handler: Option<&Path>,
        allowed: &[String],
        artifact: Option<&'a SeccompArtifact>,
    ) -> Result<SeccompFilter<'a>> {
        artifact::check(sandbox, allowed)?;
        let request = seccomp_request(config).map_err(|error| Error::invalid(format!("config.{error}")))?;
        match (request, handler.filter(|path| !path.as_os_str().is_empty()), &self.default) {
            (SeccompRequest::Unconfined, _, _) => Ok(match artifact {
                Some(artifact) => SeccompFilter::Shared(&artifact.profile, &artifact.reference),
                None => SeccompFilter::Unconfined,
            }),
            (SeccompRequest::Privileged, _, _) => Ok(match &self.privileged {
                Some((profile, path)) => SeccompFilter::Shared(profile, path),
                None => SeccompFilter::Unconfined,
            }),
            (SeccompRequest::Localhost(path), _, _) => {
                Ok(SeccompFilter::Loaded(Box::new(read(Path::new(&path))?), path))
            }
            (SeccompRequest::RuntimeDefault, Some(path), _) => {
                Ok(SeccompFilter::Loaded(Box::new(read(path)?), RUNTIME_DEFAULT.into()))
            }
            (SeccompRequest::RuntimeDefault, None, Some(default)) => {
                Ok(SeccompFilter::Shared(default, RUNTIME_DEFAULT))
            }
            (SeccompRequest::RuntimeDefault, None, None) => Ok(SeccompFilter::Default),
        }
    }
}

fn read(path: &Path) -> Result<SeccompFile> {
    use std::io::Read as _;
    let what = || format!("seccomp profile {}", path.display());
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(PROFILE_MAX + 1).read_to_end(&mut bytes))
        .map_err(|error| Error::invalid_because(what(), error))?;
    parse_profile(&bytes).map_err(|error| Error::invalid_because(what(), error))
}

#[cfg(test)]
mod tests {
    use criox_cri::v1::security_profile::ProfileType;

    use super::*;

    fn request(kind: Option<ProfileType>, privileged: bool) -> v1::ContainerConfig {
        let mut config = v1::ContainerConfig::default();
        let context = config.linux.get_or_insert_default().security_context.get_or_insert_default();
        context.privileged = privileged;
        context.seccomp =
            kind.map(|kind| v1::SecurityProfile { profile_type: kind.into(), localhost_ref: String::new() });
        config
    }

    fn file(directory: &Path, name: &str) -> std::path::PathBuf {
        let path = directory.join(name);
        let text = br#"{"defaultAction":"SCMP_ACT_ALLOW"}"#;
        criox_sys::durable::write_atomic(&path, text, 0o600).expect("a profile");
        path
    }

    fn name(defaults: &SeccompDefaults, config: &v1::ContainerConfig, handler: Option<&Path>) -> String {
        let sandbox = v1::PodSandboxConfig::default();
        match defaults.resolve(&sandbox, config, handler, &[], None).expect("a filter").as_spec() {
            SeccompProfile::Unconfined => "none".to_owned(),
            SeccompProfile::Default => "ours".to_owned(),
            SeccompProfile::Loaded { path, .. } => path.to_owned(),
        }
    }

    #[test]
    fn privileged_containers_have_the_configured_profile_or_none() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = file(directory.path(), "privileged.json");
        let config = request(Some(ProfileType::RuntimeDefault), true);
        assert_eq!(name(&SeccompDefaults::default(), &config, None), "none");
        let defaults = SeccompDefaults::load(None, Some(&path)).expect("read");
        assert_eq!(name(&defaults, &config, None), path.to_string_lossy());
        assert_eq!(name(&defaults, &request(None, false), None), "none");
        assert_eq!(name(&defaults, &request(Some(ProfileType::RuntimeDefault), false), None), "ours");
        assert!(SeccompDefaults::load(None, Some(&directory.path().join("absent"))).is_err());
    }

    #[test]
    fn the_runtimes_default_is_the_handlers_then_the_configurations_then_ours() {
        let directory = tempfile::tempdir().expect("a directory");
        let (node, handler) = (file(directory.path(), "node.json"), file(directory.path(), "handler.json"));
        let config = request(Some(ProfileType::RuntimeDefault), false);
        let defaults = SeccompDefaults::load(Some(&node), None).expect("read");
        // Recorded as what was asked for.
        assert_eq!(name(&defaults, &config, None), "RuntimeDefault");
        assert_eq!(name(&defaults, &config, Some(&handler)), "RuntimeDefault");
        assert!(
            defaults
                .resolve(&v1::PodSandboxConfig::default(), &config, Some(Path::new("/absent")), &[], None)
                .is_err()
        );
        let absent = SeccompDefaults::load(Some(&directory.path().join("absent")), None).expect("ours");
        assert_eq!(name(&absent, &config, None), "ours");
    }
}
