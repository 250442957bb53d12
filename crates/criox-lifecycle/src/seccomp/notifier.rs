//! The notifier of a container: calls that its filter refuses are answered and counted by the pod's monitor, so that
//! they are known of, and also while the daemon is not there. The annotation's value `stop` ends the container for them.

use criox_cri::{reasons, v1};
use criox_monitor_api::proto::{self, failure, reply, request};
use criox_spec::{HandlerFeatures, SeccompRequest, gated_annotation, seccomp_request};
use serde::{Deserialize, Serialize};

use crate::container::create::Work;
use crate::error::{Error, Kind, Result};
use crate::monitor;
use crate::record::Exit;

/// Of a pod; the newer name counts first.
const ANNOTATIONS: [&str; 2] =
    ["seccomp-notifier-action.crio.io", "io.kubernetes.cri-o.seccompNotifierAction"];
/// The value that ends the container. Every other one only tells.
const STOP: &str = "stop";

/// What comes of calls that are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// They are told in the log.
    Tell,
    /// The container is stopped as well.
    Stop,
}

/// A container's notifier, in its record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notifier {
    /// What comes of calls that are refused.
    pub action: Action,
    /// The container is being stopped, or was, because of this: `Used forbidden syscalls: …`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
}

impl Notifier {
    /// The end of a container, with its reason if it was stopped for its calls.
    pub(crate) fn explain(notifier: Option<&Self>, exit: Exit) -> Exit {
        match notifier.and_then(|notifier| notifier.stopped.clone()) {
            Some(message) if exit.reason != reasons::OOM_KILLED => {
                Exit { reason: reasons::SECCOMP_KILLED.into(), message, ..exit }
            }
            _ => exit,
        }
    }
}

/// What the pod asks for, where its handler allows the annotation.
pub(crate) fn asked(sandbox: &v1::PodSandboxConfig, allowed: &[String]) -> Option<Action> {
    let value = gated_annotation(&sandbox.annotations, allowed, &ANNOTATIONS)?;
    Some(if value == STOP { Action::Stop } else { Action::Tell })
}

/// Lets the monitor listen for a container that is to have a notifier; the path for its specification. `fetched`: it has
/// a filter that its request does not tell of.
///
/// # Errors
/// The handler, or the pod's monitor, can't; or the container's filter is that of a checkpoint.
pub(crate) async fn listen(work: &Work, features: &HandlerFeatures, fetched: bool) -> Result<Option<String>> {
    let (container, client) = (&work.record.config.0, &work.client);
    if asked(&work.sandbox.config.0, &features.allowed_annotations).is_none() {
        return Ok(None);
    }
    // Nothing is refused there; what is wrong with the request is said where the filter is made.
    if !fetched && seccomp_request(container) == Ok(SeccompRequest::Unconfined) {
        return Ok(None);
    }
    let [name, _] = ANNOTATIONS;
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

/// `Used forbidden syscalls: a (1x), b (2x)`, as CRI-O says it.
pub(crate) fn describe(forbidden: &proto::ForbiddenCalls) -> String {
    let calls = forbidden.calls.iter().map(|call| (call.arch, call.number, call.count));
    format!("Used forbidden syscalls: {}", criox_spec::call_counts(calls))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(annotations: &[(&str, &str)], allowed: &[&str], expected: Option<Action>) {
        let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let sandbox = v1::PodSandboxConfig { annotations: annotations.collect(), ..Default::default() };
        let allowed: Vec<String> = allowed.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(asked(&sandbox, &allowed), expected, "{:?} with {allowed:?}", sandbox.annotations);
    }

    #[test]
    fn the_annotation_counts_where_it_is_allowed_and_the_newer_name_first() {
        let [new, old] = ANNOTATIONS;
        check(&[(new, "stop")], &[], None);
        check(&[(new, "stop")], &[old], None);
        check(&[(new, "stop")], &[new], Some(Action::Stop));
        check(&[(new, "")], &[new], Some(Action::Tell));
        check(&[(old, "stop")], &[old], Some(Action::Stop));
        check(&[(new, "log"), (old, "stop")], &[new, old], Some(Action::Tell));
        check(&[(new, "log"), (old, "stop")], &[old], Some(Action::Stop));
        check(&[], &[new, old], None);
    }

    #[test]
    fn the_reason_of_a_stop_for_calls_is_shown_unless_memory_ran_out_first() {
        let exit =
            |reason: &str| Exit { code: 137, finished_at: 7, reason: reason.into(), message: String::new() };
        let stopped =
            Notifier { action: Action::Stop, stopped: Some("Used forbidden syscalls: a (1x)".into()) };
        let told = Notifier { action: Action::Stop, stopped: None };
        let explain = |notifier, reason| {
            let exit = Notifier::explain(notifier, exit(reason));
            (exit.reason, exit.message)
        };
        let [error, oom] = [reasons::ERROR, reasons::OOM_KILLED];
        assert_eq!(explain(None, error), (error.into(), String::new()));
        assert_eq!(explain(Some(&told), error), (error.into(), String::new()));
        assert_eq!(explain(Some(&stopped), oom), (oom.into(), String::new()));
        let (reason, message) = explain(Some(&stopped), error);
        assert_eq!(
            (reason.as_str(), message.as_str()),
            ("seccomp killed", "Used forbidden syscalls: a (1x)")
        );
    }
}
