//! Profiles that a registry keeps: an annotation of the pod, or of the container's image, names an OCI artifact, for a
//! container that asks for no filter.

use std::collections::BTreeMap;
use std::fmt;

use criox_cri::v1;
use criox_spec::{SeccompFile, SeccompRequest, gated_annotation, parse_profile, seccomp_request};

use crate::error::{Error, Result};

/// The newer name counts first.
const ANNOTATIONS: [&str; 2] = ["seccomp-profile.crio.io", "seccomp-profile.kubernetes.cri-o.io"];
/// For all containers of a pod.
const POD: &str = "POD";

/// A profile that was fetched.
#[derive(Debug)]
pub struct SeccompArtifact {
    /// Itself.
    pub profile: SeccompFile,
    /// The `repository@digest` that is recorded.
    pub reference: String,
}

/// Which artifact an annotation names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArtifactName {
    /// The annotation's key.
    pub annotation: String,
    /// The reference, as an image is named.
    pub reference: String,
}

impl fmt::Display for ArtifactName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seccomp profile {} (annotation {})", self.reference, self.annotation)
    }
}

impl ArtifactName {
    /// What such artifacts call themselves.
    pub const MEDIA_TYPE: &str = "application/vnd.cncf.seccomp-profile.config.v1+json";
    /// The most bytes that one may have, as in CRI-O.
    pub const MAX_BYTES: u64 = 1 << 20;

    /// The profile that annotations of the pod or of the container's `image` name, if the container asks for no filter and
    /// its handler has the annotation `allowed`. What is wrong with the request is said where the filter is made.
    pub fn of(
        sandbox: &v1::PodSandboxConfig,
        container: &v1::ContainerConfig,
        image: &BTreeMap<String, String>,
        allowed: &[String],
    ) -> Option<Self> {
        if seccomp_request(container) != Ok(SeccompRequest::Unconfined) {
            return None;
        }
        let name = container.metadata.as_ref().map(|metadata| metadata.name.as_str()).unwrap_or_default();
        let (annotation, reference) = named(&sandbox.annotations, image, name, allowed)?;
        Some(Self { annotation, reference: reference.to_owned() })
    }

    /// The profile in an artifact's bytes.
    ///
    /// # Errors
    /// It is none, or none that may come from a registry.
    pub fn parse(&self, bytes: &[u8]) -> Result<SeccompFile> {
        let profile = parse_profile(bytes).map_err(|error| Error::node_because(self.to_string(), error))?;
        // It would have the runtime connect to a socket of the node's.
        if profile.asks_listener() {
            return Err(Error::node(format!(
                "{self}: it asks a listener, which a profile from a registry may not"
            )));
        }
        Ok(profile)
    }
}

/// The annotation that names the profile of a container, and the reference: the pod's before the image's.
fn named<'a>(
    pod: &'a BTreeMap<String, String>,
    image: &'a BTreeMap<String, String>,
    container: &str,
    allowed: &[String],
) -> Option<(String, &'a str)> {
    let of = |suffix: &str| {
        ANNOTATIONS.map(|name| if suffix.is_empty() { name.into() } else { format!("{name}/{suffix}") })
    };
    let find = |annotations: &'a BTreeMap<String, String>, suffixes: &[&str]| {
        let mut keys = suffixes.iter().flat_map(|suffix| of(suffix));
        keys.find_map(|key| {
            let value = gated_annotation(annotations, allowed, &[&key])?;
            Some((key, value))
        })
    };
    find(pod, &[container, POD]).or_else(|| find(image, &["", container, POD]))
}

/// A key that names nobody would be left out without a word.
pub(super) fn check(sandbox: &v1::PodSandboxConfig, allowed: &[String]) -> Result<()> {
    let bare =
        ANNOTATIONS.iter().find(|name| gated_annotation(&sandbox.annotations, allowed, &[name]).is_some());
    match bare {
        Some(name) => Err(Error::invalid(format!(
            "sandbox_config.annotations[{name}]: a pod names its profile by {name}/{POD}, or {name}/ and a container's name"
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn the_pods_word_counts_before_the_images_and_the_closer_one_first() {
        let [new, old] = ANNOTATIONS;
        let allowed = [new.to_owned(), old.to_owned()];
        let mut order = Vec::new();
        let (mut pod, mut image) = (BTreeMap::new(), BTreeMap::new());
        for suffix in ["/app", "/POD"] {
            for name in [new, old] {
                pod.insert(format!("{name}{suffix}"), format!("pod {name}{suffix}"));
                order.push(format!("pod {name}{suffix}"));
            }
        }
        for suffix in ["", "/app", "/POD"] {
            for name in [new, old] {
                image.insert(format!("{name}{suffix}"), format!("image {name}{suffix}"));
                order.push(format!("image {name}{suffix}"));
            }
        }
        for expected in order {
            let (key, value) = named(&pod, &image, "app", &allowed).expect("one is left");
            assert_eq!(value, expected);
            if pod.remove(&key).is_none() {
                image.remove(&key);
            }
        }
        assert_eq!(named(&pod, &image, "app", &allowed), None);
    }

    #[test]
    fn an_annotation_counts_only_where_it_is_allowed_and_for_its_container() {
        let [new, old] = ANNOTATIONS;
        let pod = annotations(&[("seccomp-profile.crio.io/app", "a:1")]);
        let none = BTreeMap::new();
        assert_eq!(named(&pod, &none, "app", &[]), None);
        assert_eq!(named(&pod, &none, "app", &[old.to_owned()]), None);
        assert_eq!(named(&pod, &none, "other", &[new.to_owned()]), None);
        assert!(named(&pod, &none, "app", &[new.to_owned()]).is_some());
        assert!(named(&none, &pod, "app", &[new.to_owned()]).is_some());
        let bare = v1::PodSandboxConfig { annotations: annotations(&[(new, "a:1")]), ..Default::default() };
        assert!(check(&bare, &[]).is_ok());
        let error = check(&bare, &[new.to_owned()]).expect_err("it names nobody");
        assert!(error.to_string().contains("seccomp-profile.crio.io/POD"), "{error}");
    }

    #[test]
    fn a_profile_from_a_registry_reaches_no_socket_of_the_node() {
        let name = ArtifactName { annotation: ANNOTATIONS[0].to_owned(), reference: "r/x:1".to_owned() };
        for hostile in [
            r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/run/x"}"#,
            r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#,
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"a","action":"SCMP_ACT_NOTIFY"}]}"#,
            r#"{"defaultAction":"SCMP_ACT_EVERYTHING"}"#,
            "not JSON",
        ] {
            let error = name.parse(hostile.as_bytes()).expect_err(hostile);
            assert!(error.to_string().contains("r/x:1"), "{hostile}: {error}");
        }
        assert!(name.parse(br#"{"defaultAction":"SCMP_ACT_ALLOW"}"#).is_ok());
    }
}
