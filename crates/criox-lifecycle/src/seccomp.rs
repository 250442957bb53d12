//! Which system call filter a container gets: the request's, the handler's, the configuration's, or our own.

use std::path::Path;

use criox_cri::v1;
use criox_spec::{SeccompFile, SeccompProfile, SeccompRequest, parse_profile, seccomp_request};

use crate::error::{Error, Kind, Result};

/// The most that is read of a profile.
const PROFILE_MAX: u64 = 4 << 20;
/// What is recorded for a profile that the configuration gives to RuntimeDefault.
const RUNTIME_DEFAULT: &str = "RuntimeDefault";

/// A pod's annotations that name a filter or a notifier which this version does not have. Whoever lets pods use them
/// must not get containers that run without.
const NOT_YET: [&str; 4] = [
    "seccomp-notifier-action.crio.io",
    "io.kubernetes.cri-o.seccompNotifierAction",
    "seccomp-profile.crio.io",
    "seccomp-profile.kubernetes.cri-o.io",
];

/// The configured default profiles, parsed once.
#[derive(Debug, Default)]
pub struct SeccompDefaults {
    default: Option<SeccompFile>,
    /// Of privileged containers, with its path.
    privileged: Option<(SeccompFile, String)>,
}

/// The filter of one container.
pub(crate) enum Resolved<'a> {
    Unconfined,
    Default,
    Shared(&'a SeccompFile, &'a str),
    Loaded(Box<SeccompFile>, String),
}

impl Resolved<'_> {
    /// As the specification takes it.
    pub(crate) fn as_spec(&self) -> SeccompProfile<'_> {
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
    /// lets pods use.
    ///
    /// # Errors
    /// A profile that can't be read or is none; an annotation that would need what isn't there yet.
    pub(crate) fn resolve(
        &self,
        sandbox: &v1::PodSandboxConfig,
        config: &v1::ContainerConfig,
        handler: Option<&Path>,
        allowed: &[String],
    ) -> Result<Resolved<'_>> {
        refuse_annotations(sandbox, allowed)?;
        let request = seccomp_request(config)
            .map_err(|error| Error::new(Kind::InvalidArgument, format!("config.{error}")))?;
        match (request, handler.filter(|path| !path.as_os_str().is_empty()), &self.default) {
            (SeccompRequest::Unconfined, _, _) => Ok(Resolved::Unconfined),
            (SeccompRequest::Privileged, _, _) => Ok(match &self.privileged {
                Some((profile, path)) => Resolved::Shared(profile, path),
                None => Resolved::Unconfined,
            }),
            (SeccompRequest::Localhost(path), _, _) => {
                Ok(Resolved::Loaded(Box::new(read(Path::new(&path))?), path))
            }
            (SeccompRequest::RuntimeDefault, Some(path), _) => {
                Ok(Resolved::Loaded(Box::new(read(path)?), RUNTIME_DEFAULT.into()))
            }
            (SeccompRequest::RuntimeDefault, None, Some(default)) => {
                Ok(Resolved::Shared(default, RUNTIME_DEFAULT))
            }
            (SeccompRequest::RuntimeDefault, None, None) => Ok(Resolved::Default),
        }
    }
}

/// A key may have the container's name behind a slash.
fn refuse_annotations(sandbox: &v1::PodSandboxConfig, allowed: &[String]) -> Result<()> {
    let asked = |key: &str| {
        let name = NOT_YET.iter().find(|name| key == **name || key.starts_with(&format!("{name}/")));
        name.is_some_and(|name| allowed.iter().any(|allowed| allowed == name))
    };
    match sandbox.annotations.keys().find(|key| asked(key)) {
        Some(key) => Err(Error::new(
            Kind::FailedPrecondition,
            format!(
                "sandbox_config.annotations[{key}]: this version of criox has neither seccomp notifiers nor profiles from images; remove the annotation, or take it from the handler's allowed_annotations"
            ),
        )),
        None => Ok(()),
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
        match defaults.resolve(&sandbox, config, handler, &[]).expect("a filter").as_spec() {
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
                .resolve(&v1::PodSandboxConfig::default(), &config, Some(Path::new("/absent")), &[])
                .is_err()
        );
        let absent = SeccompDefaults::load(Some(&directory.path().join("absent")), None).expect("ours");
        assert_eq!(name(&absent, &config, None), "ours");
    }

    #[test]
    fn an_annotation_that_would_need_a_notifier_is_refused_where_it_is_allowed() {
        let annotation = |key: &str| v1::PodSandboxConfig {
            annotations: [(key.to_owned(), "stop".to_owned())].into(),
            ..Default::default()
        };
        let allowed = ["seccomp-notifier-action.crio.io".to_owned(), "seccomp-profile.crio.io".to_owned()];
        let defaults = SeccompDefaults::default();
        let config = v1::ContainerConfig::default();
        for key in ["seccomp-notifier-action.crio.io", "seccomp-profile.crio.io/app"] {
            let error = defaults.resolve(&annotation(key), &config, None, &allowed).err().expect(key);
            assert!(error.to_string().contains(key), "{error}");
            // Anybody may write it where it does not act.
            assert!(defaults.resolve(&annotation(key), &config, None, &[]).is_ok());
        }
    }
}
