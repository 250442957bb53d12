//! Whether a pod asks that calls which a filter refuses be told of.

use criox_cri::v1;
use criox_spec::gated_annotation;
use serde::{Deserialize, Serialize};

/// Of a pod; the newer name counts first. CRI-O's.
const ANNOTATIONS: [&str; 2] = [NotifierAction::ANNOTATION, "io.kubernetes.cri-o.seccompNotifierAction"];
/// The value that ends the container. Every other one only tells.
const STOP: &str = "stop";

/// What comes of calls that are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NotifierAction {
    /// They are told in the log.
    Tell,
    /// The container is stopped as well.
    Stop,
}

impl NotifierAction {
    /// The annotation by which a pod asks for it, as errors name it.
    pub const ANNOTATION: &str = "seccomp-notifier-action.crio.io";

    /// What the pod asks for, where its handler allows the annotation.
    pub fn asked(sandbox: &v1::PodSandboxConfig, allowed: &[String]) -> Option<Self> {
        let value = gated_annotation(&sandbox.annotations, allowed, &ANNOTATIONS)?;
        Some(if value == STOP { Self::Stop } else { Self::Tell })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(annotations: &[(&str, &str)], allowed: &[&str], expected: Option<NotifierAction>) {
        let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let sandbox = v1::PodSandboxConfig { annotations: annotations.collect(), ..Default::default() };
        let allowed: Vec<String> = allowed.iter().map(|name| (*name).to_owned()).collect();
        let asked = NotifierAction::asked(&sandbox, &allowed);
        assert_eq!(asked, expected, "{:?} with {allowed:?}", sandbox.annotations);
    }

    #[test]
    fn the_annotation_counts_where_it_is_allowed_and_the_newer_name_first() {
        let [new, old] = ANNOTATIONS;
        check(&[(new, "stop")], &[], None);
        check(&[(new, "stop")], &[old], None);
        check(&[(new, "stop")], &[new], Some(NotifierAction::Stop));
        check(&[(new, "")], &[new], Some(NotifierAction::Tell));
        check(&[(old, "stop")], &[old], Some(NotifierAction::Stop));
        check(&[(new, "log"), (old, "stop")], &[new, old], Some(NotifierAction::Tell));
        check(&[(new, "log"), (old, "stop")], &[old], Some(NotifierAction::Stop));
        check(&[], &[new, old], None);
    }
}
