//! Profiles that a registry keeps: an annotation of the pod, or of the container's image, names an OCI artifact, for a
//! container that asks for no filter.

use std::collections::BTreeMap;
use std::time::Duration;

use criox_cri::v1;
use criox_image::PullRequest;
use criox_spec::{
    HandlerFeatures, SeccompFile, SeccompRequest, gated_annotation, parse_profile, seccomp_request,
};

use crate::container::create::Work;
use crate::context::blocking;
use crate::error::{Error, Kind, Result};

/// The newer name counts first.
const ANNOTATIONS: [&str; 2] = ["seccomp-profile.crio.io", "seccomp-profile.kubernetes.cri-o.io"];
/// For all containers of a pod.
const POD: &str = "POD";
/// What such artifacts call themselves.
const MEDIA_TYPE: &str = "application/vnd.cncf.seccomp-profile.config.v1+json";
/// As in CRI-O.
const MAX_BYTES: u64 = 1 << 20;
/// Registries and parsing together.
const FETCH: Duration = Duration::from_secs(120);

/// A profile, and the `repository@digest` that is recorded.
pub(crate) type Fetched = (SeccompFile, String);

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
        Some(name) => Err(Error::invalid(
            &format!("sandbox_config.annotations[{name}]"),
            format!("a pod names its profile by {name}/{POD}, or {name}/ and a container's name"),
        )),
        None => Ok(()),
    }
}

/// Fetches the profile that the annotations name, if the container asks for no filter and its handler allows them.
///
/// # Errors
/// The artifact can't be had, or is no profile that may come from there. Never without the filter that was asked for.
pub(crate) async fn fetch(
    work: &Work,
    image: &BTreeMap<String, String>,
    features: &HandlerFeatures,
) -> Result<Option<Fetched>> {
    let (sandbox, container) = (&work.sandbox.config.0, &work.record.config.0);
    // What is wrong with the request is said where the filter is made.
    if seccomp_request(container) != Ok(SeccompRequest::Unconfined) {
        return Ok(None);
    }
    let name = container.metadata.as_ref().map(|metadata| metadata.name.as_str()).unwrap_or_default();
    let Some((key, reference)) = named(&sandbox.annotations, image, name, &features.allowed_annotations)
    else {
        return Ok(None);
    };
    if work.source.is_some() {
        let text = format!(
            "annotation {key}: a container that goes on from a checkpoint keeps its filter; remove the annotation"
        );
        return Err(Error::new(Kind::FailedPrecondition, text));
    }
    let namespace = sandbox.metadata.as_ref().map(|metadata| metadata.namespace.clone()).unwrap_or_default();
    let request = PullRequest { image: reference.to_owned(), auth: None, namespace };
    let what = format!("seccomp profile {reference} (annotation {key})");
    let artifact = tokio::time::timeout(FETCH, work.context.images.artifact(&request, MEDIA_TYPE, MAX_BYTES))
        .await
        .map_err(|_| Error::timed_out("fetching", &what, FETCH, "look at the registry"))?
        .map_err(|error| Error::failed(what.clone()).because(error))?;
    let object = what.clone();
    let profile = blocking("reading", &object, FETCH, move || read(&what, &artifact.bytes)).await?;
    Ok(Some((profile, artifact.reference)))
}

fn read(what: &str, bytes: &[u8]) -> Result<SeccompFile> {
    let profile =
        parse_profile(bytes).map_err(|error| Error::new(Kind::FailedPrecondition, what).because(error))?;
    // It would have the runtime connect to a socket of the node's.
    if profile.asks_listener() {
        let text = format!("{what}: it asks a listener, which a profile from a registry may not");
        return Err(Error::new(Kind::FailedPrecondition, text));
    }
    Ok(profile)
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
        for hostile in [
            r#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/run/x"}"#,
            r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#,
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"a","action":"SCMP_ACT_NOTIFY"}]}"#,
            r#"{"defaultAction":"SCMP_ACT_EVERYTHING"}"#,
            "not JSON",
        ] {
            let error = read("seccomp profile r/x:1", hostile.as_bytes()).expect_err(hostile);
            assert!(error.chain().contains("r/x:1"), "{hostile}: {}", error.chain());
        }
        assert!(read("x", br#"{"defaultAction":"SCMP_ACT_ALLOW"}"#).is_ok());
    }
}
