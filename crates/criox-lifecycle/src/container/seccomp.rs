//! Filters of system calls, as far as CreateContainer has to wait for somebody: the registry that keeps a profile, the
//! monitor that is to listen for what a filter refuses.

use std::collections::BTreeMap;
use std::time::Duration;

use criox_confine::{ArtifactName, NotifierAction, SeccompArtifact};
use criox_image::PullRequest;
use criox_monitor_api::proto::{self, failure, reply, request};
use criox_spec::{HandlerFeatures, SeccompRequest, seccomp_request};

use super::create::Work;
use crate::context::blocking;
use crate::error::{Error, Kind, Result};
use crate::monitor;

/// Registries and parsing together.
const FETCH: Duration = Duration::from_secs(120);

/// Fetches the profile that the annotations name, if the container asks for no filter and its handler allows them.
///
/// # Errors
/// The artifact can't be had, or is no profile that may come from there. Never without the filter that was asked for.
pub(crate) async fn fetch(
    work: &Work,
    image: &BTreeMap<String, String>,
    features: &HandlerFeatures,
) -> Result<Option<SeccompArtifact>> {
    let (sandbox, container) = (&work.sandbox.config.0, &work.record.config.0);
    let Some(name) = ArtifactName::of(sandbox, container, image, &features.allowed_annotations) else {
        return Ok(None);
    };
    if work.source.is_some() {
        let text = format!(
            "annotation {}: a container that goes on from a checkpoint keeps its filter; remove the annotation",
            name.annotation
        );
        return Err(Error::new(Kind::FailedPrecondition, text));
    }
    let namespace = sandbox.metadata.as_ref().map(|metadata| metadata.namespace.clone()).unwrap_or_default();
    let request = PullRequest { image: name.reference.clone(), auth: None, namespace };
    let what = name.to_string();
    let pull = work.context.images.artifact(&request, ArtifactName::MEDIA_TYPE, ArtifactName::MAX_BYTES);
    let artifact = tokio::time::timeout(FETCH, pull)
        .await
        .map_err(|_| Error::timed_out("fetching", &what, FETCH, "look at the registry"))?
        .map_err(|error| Error::failed(what.clone()).because(error))?;
    let profile = blocking("reading", &what, FETCH, move || Ok(name.parse(&artifact.bytes)?)).await?;
    Ok(Some(SeccompArtifact { profile, reference: artifact.reference }))
}

/// Lets the monitor listen for a container that is to have a notifier; the path for its specification. `fetched`: it has
/// a filter that its request does not tell of.
///
/// # Errors
/// The handler, or the pod's monitor, can't; or the container's filter is that of a checkpoint.
pub(crate) async fn listen(work: &Work, features: &HandlerFeatures, fetched: bool) -> Result<Option<String>> {
    let (container, client) = (&work.record.config.0, &work.client);
    if NotifierAction::asked(&work.sandbox.config.0, &features.allowed_annotations).is_none() {
        return Ok(None);
    }
    // Nothing is refused there; what is wrong with the request is said where the filter is made.
    if !fetched && seccomp_request(container) == Ok(SeccompRequest::Unconfined) {
        return Ok(None);
    }
    let name = NotifierAction::ANNOTATION;
    if work.source.is_some() {
        return Err(Error::new(
            Kind::FailedPrecondition,
            format!(
                "sandbox_config.annotations[{name}]: a container that goes on from a checkpoint keeps its filter, which tells nobody; remove the annotation"
            ),
        ));
    }
    if !features.seccomp_notify {
        return Err(Error::new(
            Kind::FailedPrecondition,
            format!(
                "sandbox_config.annotations[{name}]: the OCI runtime of this handler does not say, in its features, that it has the seccomp action SCMP_ACT_NOTIFY; use a runtime that has it, or remove the annotation"
            ),
        ));
    }
    let id = work.record.id;
    let operation = "listening for seccomp notifications";
    let verb = request::Verb::ListenSeccomp(proto::ListenSeccomp { container_id: id.to_string() });
    match client.call(verb, monitor::ANSWER).await {
        Ok(reply::Result::SeccompListening(listening)) => Ok(Some(listening.path)),
        Ok(_) => Err(Error::failed(format!("{operation} for container {id}: the monitor's answer does not fit"))),
        Err(error) if error.refusal() == Some(failure::Kind::Unsupported) => Err(Error::new(
            Kind::FailedPrecondition,
            format!(
                "sandbox_config.annotations[{name}]: the pod's monitor is of an older criox, or the kernel has no notifications; recreate the pod, or remove the annotation"
            ),
        )
        .because(error)),
        Err(error) => Err(monitor::refused(operation, &format!("container {id}"), error)),
    }
}
