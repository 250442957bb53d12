//! The validator that is built in: what plugins may not do, and which of them must have seen a container.

use std::collections::HashSet;

use crate::owners::Owners;
use crate::plugin::PluginError;
use crate::proto::{Field, PodSandbox, ValidateContainerAdjustmentRequest, security_profile::ProfileType};

/// Its name in messages: it is the first of the plugins.
const NAME: &str = "00-default-validator";
/// The annotation by which a pod names plugins that must have seen its containers, as a YAML list.
const REQUIRED: &str = "required-plugins.noderesource.dev";

/// What it is to refuse.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ValidatorOptions {
    /// OCI hooks.
    pub reject_oci_hooks: bool,
    /// A policy of a plugin in place of the runtime's default seccomp profile.
    pub reject_runtime_default_seccomp: bool,
    /// The same in place of none.
    pub reject_unconfined_seccomp: bool,
    /// The same in place of a profile of the node.
    pub reject_custom_seccomp: bool,
    /// Namespaces.
    pub reject_namespaces: bool,
    /// Plugins that must be there, by name or by index and name.
    pub required_plugins: Vec<String>,
    /// An annotation of a pod that does without them; empty: none.
    pub tolerate_missing_annotation: String,
}

#[derive(Debug)]
pub(crate) struct Validator(ValidatorOptions);

impl Validator {
    pub(crate) fn new(options: ValidatorOptions) -> Self {
        Self(options)
    }

    /// Lets pass, or says why not.
    pub(crate) fn check(
        &self,
        request: &ValidateContainerAdjustmentRequest,
        owners: &Owners,
    ) -> Result<(), PluginError> {
        let reason = self.hooks(request, owners).or_else(|| self.seccomp(request, owners)).or_else(|| {
            self.namespaces(request, owners).or_else(|| self.required(request).unwrap_or_else(Some))
        });
        match reason {
            Some(reason) => Err(PluginError::Rejected { validator: NAME.into(), reason }),
            None => Ok(()),
        }
    }

    fn hooks(&self, request: &ValidateContainerAdjustmentRequest, owners: &Owners) -> Option<String> {
        let plugins = owners.of(id(request), Field::OciHooks)?;
        self.0.reject_oci_hooks.then(|| format!("{plugins} may not add OCI hooks"))
    }

    fn seccomp(&self, request: &ValidateContainerAdjustmentRequest, owners: &Owners) -> Option<String> {
        let plugin = owners.of(id(request), Field::SeccompPolicy)?;
        let linux = request.container.as_ref().and_then(|container| container.linux.as_ref());
        let profile = linux.and_then(|linux| linux.seccomp_profile.as_ref());
        let (refused, what) = match profile.map_or(ProfileType::Unconfined, |profile| profile.profile_type())
        {
            ProfileType::Unconfined => (self.0.reject_unconfined_seccomp, "an unconfined container"),
            ProfileType::RuntimeDefault => {
                (self.0.reject_runtime_default_seccomp, "a container with the default profile")
            }
            ProfileType::Localhost => (self.0.reject_custom_seccomp, "a container with a profile of its own"),
        };
        refused.then(|| format!("{plugin} may not change the seccomp policy of {what}"))
    }

    fn namespaces(&self, request: &ValidateContainerAdjustmentRequest, owners: &Owners) -> Option<String> {
        if !self.0.reject_namespaces {
            return None;
        }
        let changed: Vec<String> = owners
            .entries(id(request), Field::Namespace)
            .map(|(kind, plugin)| format!("{plugin} may not change the {kind} namespace"))
            .collect();
        (!changed.is_empty()).then(|| changed.join(", "))
    }

    /// Plugins that are missing; an annotation that can't be read counts as a reason, too.
    fn required(&self, request: &ValidateContainerAdjustmentRequest) -> Result<Option<String>, String> {
        let unnamed = PodSandbox::default();
        let pod = request.pod.as_ref().unwrap_or(&unnamed);
        let container =
            request.container.as_ref().map(|container| container.name.as_str()).unwrap_or_default();
        let tolerate = &self.0.tolerate_missing_annotation;
        if !tolerate.is_empty()
            && let Some(value) = effective(pod, tolerate, container)
        {
            match value {
                "1" | "t" | "T" | "true" | "TRUE" | "True" => return Ok(None),
                "0" | "f" | "F" | "false" | "FALSE" | "False" => {}
                other => return Err(format!("annotation {tolerate} is {other:?}, neither true nor false")),
            }
        }
        let mut required = self.0.required_plugins.clone();
        if let Some(value) = effective(pod, REQUIRED, container) {
            required.extend(list(value).ok_or_else(|| {
                format!("annotation {REQUIRED} is {value:?}, not a list such as [a, b] or lines of \"- a\"")
            })?);
        }
        let present: HashSet<String> = request
            .plugins
            .iter()
            .flat_map(|plugin| [plugin.name.clone(), format!("{}-{}", plugin.index, plugin.name)])
            .collect();
        required.retain(|name| !present.contains(name));
        required.dedup();
        Ok((!required.is_empty()).then(|| format!("required plugins are not there: {}", required.join(", "))))
    }
}

fn id(request: &ValidateContainerAdjustmentRequest) -> &str {
    request.container.as_ref().map(|container| container.id.as_str()).unwrap_or_default()
}

/// The value of an annotation for a container: its own, else the pod's.
fn effective<'a>(pod: &'a PodSandbox, key: &str, container: &str) -> Option<&'a str> {
    let keys = [format!("{key}/container.{container}"), format!("{key}/pod"), key.to_owned()];
    keys.iter().find_map(|key| pod.annotations.get(key)).map(String::as_str)
}

/// A YAML list of plain or quoted words, in either of the two forms.
fn list(text: &str) -> Option<Vec<String>> {
    let text = text.trim();
    let items: Vec<&str> = match text.strip_prefix('[') {
        Some(rest) => {
            let inside = rest.strip_suffix(']')?.trim();
            if inside.is_empty() { Vec::new() } else { inside.split(',').collect() }
        }
        None => {
            let lines = text.lines().filter(|line| !line.trim().is_empty());
            lines.map(|line| line.trim_start().strip_prefix("- ")).collect::<Option<_>>()?
        }
    };
    items.into_iter().map(word).collect()
}

fn word(item: &str) -> Option<String> {
    let item = item.trim();
    let quoted = ['"', '\''].iter().find_map(|quote| item.strip_prefix(*quote)?.strip_suffix(*quote));
    let word = quoted.unwrap_or(item);
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.+".contains(c);
    (!word.is_empty() && word.chars().all(plain)).then(|| word.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{Container, LinuxContainer, PluginInstance, SecurityProfile};

    fn request(annotations: &[(&str, &str)], plugins: &[(&str, &str)]) -> ValidateContainerAdjustmentRequest {
        let annotations = annotations.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        let instance =
            |(index, name): &(&str, &str)| PluginInstance { name: (*name).into(), index: (*index).into() };
        ValidateContainerAdjustmentRequest {
            pod: Some(PodSandbox { annotations, ..Default::default() }),
            container: Some(Container { id: "c".into(), name: "web".into(), ..Default::default() }),
            plugins: plugins.iter().map(instance).collect(),
            ..Default::default()
        }
    }

    #[track_caller]
    fn check(options: ValidatorOptions, request: &ValidateContainerAdjustmentRequest, expected: &str) {
        let owners = Owners::default();
        match Validator::new(options).check(request, &owners) {
            Ok(()) => assert_eq!(expected, ""),
            Err(error) => {
                assert!(!expected.is_empty() && error.to_string().contains(expected), "{error}")
            }
        }
    }

    fn needs(plugins: &[&str]) -> ValidatorOptions {
        ValidatorOptions {
            required_plugins: plugins.iter().map(|plugin| (*plugin).into()).collect(),
            tolerate_missing_annotation: "tolerate".into(),
            ..Default::default()
        }
    }

    #[test]
    fn required_plugins_are_missed_by_name() {
        check(needs(&["a"]), &request(&[], &[]), "not there: a");
        check(needs(&["a"]), &request(&[], &[("10", "a")]), "");
        check(needs(&["10-a"]), &request(&[], &[("10", "a")]), "");
        check(needs(&["20-a"]), &request(&[], &[("10", "a")]), "20-a");
    }

    #[test]
    fn a_pod_may_require_more_and_tolerate_less() {
        check(needs(&[]), &request(&[(REQUIRED, "[a, \"b\"]")], &[("10", "a")]), "not there: b");
        check(needs(&[]), &request(&[(REQUIRED, "- a\n- b\n")], &[("10", "a"), ("11", "b")]), "");
        check(needs(&[]), &request(&[(REQUIRED, "{a: b}")], &[]), REQUIRED);
        check(needs(&["a"]), &request(&[("tolerate", "true")], &[]), "");
        check(needs(&["a"]), &request(&[("tolerate", "maybe")], &[]), "tolerate");
        // The container's own word counts before the pod's.
        let own = [("tolerate/container.web", "false"), ("tolerate/pod", "true")];
        check(needs(&["a"]), &request(&own, &[]), "not there");
    }

    #[test]
    fn seccomp_hooks_and_namespaces_are_refused_by_owner() {
        let mut owners = Owners::default();
        owners.claim("c", Field::SeccompPolicy, "10-a").unwrap();
        owners.share("c", Field::OciHooks, "20-b");
        owners.claim_entry("c", Field::Namespace, "pid", "30-c").unwrap();
        let mut request = request(&[], &[]);
        let profile =
            SecurityProfile { profile_type: ProfileType::RuntimeDefault.into(), ..Default::default() };
        let linux = LinuxContainer { seccomp_profile: Some(profile), ..Default::default() };
        request.container.get_or_insert_default().linux = Some(linux);
        let refusal = |options: ValidatorOptions| {
            Validator::new(options).check(&request, &owners).map_err(|error| error.to_string())
        };
        refusal(ValidatorOptions::default()).unwrap();
        refusal(ValidatorOptions { reject_custom_seccomp: true, ..Default::default() }).unwrap();
        for (options, plugin) in [
            (ValidatorOptions { reject_runtime_default_seccomp: true, ..Default::default() }, "10-a"),
            (ValidatorOptions { reject_oci_hooks: true, ..Default::default() }, "20-b"),
            (ValidatorOptions { reject_namespaces: true, ..Default::default() }, "30-c"),
        ] {
            let error = refusal(options).unwrap_err();
            assert!(error.contains(plugin), "{error}");
        }
    }
}
