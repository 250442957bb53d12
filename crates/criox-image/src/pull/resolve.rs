//! What the node's configuration says about a reference: what a short name means, where it is pulled from, whether
//! it may be pulled at all, and with which credentials.

use std::path::PathBuf;
use std::sync::Arc;

use criox_config::policy::Verdict;
use criox_config::value::ShortNameMode;
use criox_config::{AuthFile, Credentials, Policy};

use super::PullRequest;
use crate::error::{PullError, PullErrorKind};
use crate::images::ImageOptions;
use crate::reference::{ImageName, Reference};
use crate::registry::Endpoint;

/// An endpoint that may have the image.
pub(crate) struct Source {
    pub(crate) endpoint: Endpoint,
}

/// The full references that a name may stand for, in order, as they are pulled.
pub(crate) fn candidates(options: &ImageOptions, image: &str) -> Result<Vec<Reference>, PullError> {
    let name = ImageName::parse(image).map_err(|e| PullError::from_reference(image, e))?;
    full_names(options, name, options.short_name_mode)
        .map_err(|e| PullError::with(PullErrorKind::InvalidReference, image, "resolving the short name", e))
}

fn full_names(
    options: &ImageOptions,
    name: ImageName,
    mode: ShortNameMode,
) -> Result<Vec<Reference>, criox_config::registries::ResolveError> {
    let (name, tag, digest) = match name {
        ImageName::Qualified(reference) => return Ok(vec![reference.for_pull()]),
        ImageName::Short { name, tag, digest } => (name, tag, digest),
    };
    let names = options.registries.resolve_short_name(&name, mode)?;
    let suffix = match (digest, tag) {
        (Some(digest), _) => format!("@{digest}"),
        (None, Some(tag)) => format!(":{tag}"),
        (None, None) => String::new(),
    };
    let references = names.iter().filter_map(|full| Reference::parse(&format!("{full}{suffix}")).ok());
    Ok(references.map(Reference::for_pull).collect())
}

/// The names under which an image that was asked for like this may stand in the store. Unlike a pull, a look at the
/// store can't go to the wrong registry: every search registry counts, whatever the mode.
pub(crate) fn local_names(options: &ImageOptions, image: &str) -> Vec<Reference> {
    let Ok(name) = ImageName::parse(image) else { return Vec::new() };
    full_names(options, name, ShortNameMode::Disabled).unwrap_or_default()
}

/// Whether the signature policy lets the image in. The namespace's own policy replaces the node's.
pub(crate) async fn check_policy(
    options: &Arc<ImageOptions>,
    request: &PullRequest,
    reference: &Reference,
) -> Result<(), PullError> {
    let image = reference.to_string();
    let path = policy_path(options, &request.namespace);
    let shown = path.display().to_string();
    let configuration =
        |e| PullError::with(PullErrorKind::Configuration, &image, format!("signature policy {shown}"), e);
    let policy = off_thread(&image, move || Policy::load(&path)).await?.map_err(configuration)?;
    let (host, repository) = (reference.domain(), reference.path());
    let suffix = match (reference.digest(), reference.tag()) {
        (Some(digest), _) => format!("@{digest}"),
        (None, tag) => format!(":{}", tag.unwrap_or("latest")),
    };
    let stage = match policy.evaluate(host, repository, &suffix) {
        Verdict::Accept => return Ok(()),
        Verdict::Reject { scope } => format!("{shown} rejects it (scope {scope})"),
        Verdict::NeedsSignature { scope, requirement } => {
            format!("{shown} requires {requirement} (scope {scope}), and criox can't verify signatures yet")
        }
    };
    Err(PullError::new(PullErrorKind::SignatureValidationFailed, &image, stage))
}

fn policy_path(options: &ImageOptions, namespace: &str) -> PathBuf {
    // A namespace becomes a file name here, and must not lead elsewhere.
    let plain = !namespace.is_empty() && namespace.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let own = options.policy_dir.as_ref().filter(|_| plain).map(|dir| dir.join(format!("{namespace}.json")));
    own.filter(|path| path.exists()).unwrap_or_else(|| options.policy.clone())
}

/// The endpoints to ask, in order, with certificates and credentials.
pub(crate) async fn sources(
    options: &Arc<ImageOptions>,
    request: &PullRequest,
    reference: &Reference,
) -> Result<Vec<Source>, PullError> {
    let image = reference.to_string();
    let given = match &request.auth {
        Some(auth) => auth.credentials(&image)?,
        None => None,
    };
    let (options, reference) = (options.clone(), reference.clone());
    off_thread(&image.clone(), move || {
        let endpoints = options
            .registries
            .resolve(reference.domain(), reference.path(), reference.digest().is_some())
            .map_err(|e| PullError::with(PullErrorKind::InvalidReference, &image, "registries.conf", e))?;
        endpoints
            .into_iter()
            .map(|endpoint| {
                // Credentials of the request belong to the registry that the reference names, not to mirrors.
                let own = !endpoint.mirror || endpoint.host == reference.domain();
                let credentials = match &given {
                    Some(given) if own => Some(given.clone()),
                    _ => stored_credentials(&options, &image, &endpoint.host, &endpoint.repository)?,
                };
                let certificates = options.certs.lookup(&endpoint.host).map_err(|e| {
                    let stage = format!("certificates for {}", endpoint.host);
                    PullError::with(PullErrorKind::Configuration, &image, stage, e)
                })?;
                let endpoint = Endpoint {
                    insecure: endpoint.insecure || options.is_insecure(&endpoint.host),
                    host: endpoint.host,
                    repository: endpoint.repository,
                    certificates,
                    credentials,
                };
                Ok(Source { endpoint })
            })
            .collect()
    })
    .await?
}

/// Blocking: the first auth file that knows the registry counts.
fn stored_credentials(
    options: &ImageOptions,
    image: &str,
    host: &str,
    repository: &str,
) -> Result<Option<Credentials>, PullError> {
    for path in &options.auth_files {
        let stage = || format!("auth file {}", path.display());
        let file = AuthFile::load(path)
            .map_err(|e| PullError::with(PullErrorKind::Configuration, image, stage(), e))?;
        let found = file
            .lookup(host, repository)
            .map_err(|e| PullError::with(PullErrorKind::Configuration, image, stage(), e))?;
        if let Some(credentials) = found.filter(|c| !c.is_empty()) {
            return Ok(Some(credentials));
        }
    }
    Ok(None)
}

/// Small configuration files, read where blocking does no harm.
async fn off_thread<T: Send + 'static>(
    image: &str,
    read: impl FnOnce() -> T + Send + 'static,
) -> Result<T, PullError> {
    tokio::task::spawn_blocking(read)
        .await
        .map_err(|e| PullError::with(PullErrorKind::Configuration, image, "reading the configuration", e))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn options(registries: &str) -> ImageOptions {
        ImageOptions {
            registries: Arc::new(
                criox_config::Registries::parse(Path::new("test.conf"), registries.as_bytes()).unwrap(),
            ),
            ..Default::default()
        }
    }

    fn names(registries: &str, image: &str) -> Result<Vec<String>, PullErrorKind> {
        candidates(&options(registries), image)
            .map(|all| all.iter().map(ToString::to_string).collect())
            .map_err(|e| e.kind())
    }

    #[test]
    fn short_names_become_full_in_the_order_of_registries_conf() {
        let two = r#"unqualified-search-registries = ["docker.io", "quay.io"]
            [aliases]
            "fedora" = "registry.fedoraproject.org/fedora""#;
        assert_eq!(names(two, "fedora:40"), Ok(vec!["registry.fedoraproject.org/fedora:40".into()]));
        assert_eq!(names(two, "busybox"), Err(PullErrorKind::InvalidReference));
        let one = r#"unqualified-search-registries = ["docker.io"]"#;
        assert_eq!(names(one, "busybox"), Ok(vec!["docker.io/library/busybox:latest".into()]));
        assert_eq!(names("", "busybox"), Err(PullErrorKind::InvalidReference));
        assert_eq!(names("", "quay.io/a/b"), Ok(vec!["quay.io/a/b:latest".into()]));
        let locally: Vec<String> =
            local_names(&options(two), "busybox").iter().map(ToString::to_string).collect();
        assert_eq!(locally, ["docker.io/library/busybox:latest", "quay.io/busybox:latest"]);
    }

    #[test]
    fn a_namespace_never_leads_out_of_the_policy_directory() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("policies");
        std::fs::create_dir(&dir).unwrap();
        for file in [root.path().join("x.json"), dir.join("team.json")] {
            std::fs::OpenOptions::new().create_new(true).write(true).open(file).unwrap();
        }
        let options =
            ImageOptions { policy: "/p".into(), policy_dir: Some(dir.clone()), ..Default::default() };
        assert_eq!(policy_path(&options, "team"), dir.join("team.json"));
        for other in ["", "other", "../x", ".", "team/../team"] {
            assert_eq!(policy_path(&options, other), Path::new("/p"), "{other}");
        }
    }

    async fn verdict(policy: &str, image: &str) -> Result<(), PullError> {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("policy.json");
        let mut file = std::fs::OpenOptions::new().create_new(true).write(true).open(&path).unwrap();
        std::io::Write::write_all(&mut file, policy.as_bytes()).unwrap();
        let options = Arc::new(ImageOptions { policy: path, ..Default::default() });
        check_policy(&options, &PullRequest::default(), &Reference::parse(image).unwrap().for_pull()).await
    }

    #[tokio::test]
    async fn the_policy_decides_and_its_refusal_has_the_kubelet_s_word() {
        let policy = r#"{"default":[{"type":"reject"}],"transports":{"docker":{
            "quay.io/ok":[{"type":"insecureAcceptAnything"}],
            "quay.io/signed":[{"type":"sigstoreSigned","keyPath":"/k"}]}}}"#;
        assert!(verdict(policy, "quay.io/ok/a").await.is_ok());
        for image in ["quay.io/other", "quay.io/signed/a:1"] {
            let error = verdict(policy, image).await.unwrap_err();
            assert!(error.to_string().starts_with("SignatureValidationFailed"), "{error}");
        }
        assert_eq!(verdict("{}", "quay.io/ok").await.unwrap_err().kind(), PullErrorKind::Configuration);
    }
}
