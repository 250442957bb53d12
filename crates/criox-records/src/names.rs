//! Names that CRI-O gives, for tools that look for them and for a node that goes back to it.

use criox_cri::v1;

use crate::namespaces::namespace_options;
use crate::record::{ContainerRecord, SandboxRecord};

/// The key of our mark in a storage container's metadata; CRI-O leaves keys alone that it doesn't know.
const CREATOR: &str = "creator";

/// `k8s_<pod>_<namespace>_<uid>_<attempt>`.
pub fn sandbox(sandbox: &SandboxRecord) -> String {
    let metadata = sandbox.config.0.metadata.clone().unwrap_or_default();
    format!("k8s_{}_{}_{}_{}", metadata.name, metadata.namespace, metadata.uid, metadata.attempt)
}

/// `k8s_<container>_<pod>_<namespace>_<uid>_<attempt>`.
pub fn container(sandbox: &SandboxRecord, container: &ContainerRecord) -> String {
    let pod = sandbox.config.0.metadata.clone().unwrap_or_default();
    let own = container.config.0.metadata.clone().unwrap_or_default();
    format!("k8s_{}_{}_{}_{}_{}", own.name, pod.name, pod.namespace, pod.uid, own.attempt)
}

/// The metadata of a storage container: whose it is, so that others leave it alone and a sweep finds it.
pub fn storage_metadata(sandbox: &SandboxRecord, container: &ContainerRecord) -> String {
    let pod = sandbox.config.0.metadata.clone().unwrap_or_default();
    let own = container.config.0.metadata.clone().unwrap_or_default();
    let security = container.config.0.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    serde_json::json!({
        CREATOR: "criox",
        "pod-name": self::sandbox(sandbox),
        "pod-id": sandbox.id.as_str(),
        "image-name": container.image.name,
        "image-id": container.image.id,
        "name": self::container(sandbox, container),
        "metadata-name": own.name,
        "uid": pod.uid,
        "namespace": pod.namespace,
        "created-at": container.created_at / 1_000_000_000,
        "attempt": own.attempt,
        "privileged": security.is_some_and(|security| security.privileged),
    })
    .to_string()
}

/// The key of the container whose image volume a storage container is.
const VOLUME_OF: &str = "image-volume-of";

/// The metadata of the storage container that is an image volume.
pub fn volume_metadata(sandbox: &SandboxRecord, container: &ContainerRecord, image: &str) -> String {
    serde_json::json!({
        CREATOR: "criox",
        "pod-name": self::sandbox(sandbox),
        "pod-id": sandbox.id.as_str(),
        "image-id": image,
        VOLUME_OF: container.id.as_str(),
    })
    .to_string()
}

/// The container whose image volume a storage container is, by its metadata.
pub fn volume_of(metadata: &str) -> Option<String> {
    let value: serde_json::Value = serde_json::from_str(metadata).ok()?;
    value.get(VOLUME_OF)?.as_str().map(str::to_owned)
}

/// The sandbox that a storage container belongs to, by its metadata: none for those of other programs, CRI-O's among
/// them, which may run while a node changes over.
pub fn owner_of(metadata: &str) -> Option<String> {
    let value: serde_json::Value = serde_json::from_str(metadata).ok()?;
    let text = |key: &str| value.get(key).and_then(serde_json::Value::as_str).filter(|text| !text.is_empty());
    text(CREATOR)
        .filter(|creator| *creator == "criox")
        .and(text("pod-name"))
        .and(text("pod-id"))
        .map(str::to_owned)
}

/// The sandbox's own, empty cgroup. cAdvisor takes only groups with the name of a scope where systemd manages them; it
/// becomes a scope when a process is in it.
pub fn sandbox_group(record: &SandboxRecord) -> String {
    let parent = record.cgroup_parent.trim_end_matches('/');
    let scope = if parent.ends_with(".slice") { ".scope" } else { "" };
    format!("{parent}/crio-{}{scope}", record.id)
}

/// The host name in the pod's UTS namespace: the request's, the node's with host network, else twelve digits of the ID.
pub fn hostname(sandbox: &SandboxRecord) -> String {
    let config = &sandbox.config.0;
    if !config.hostname.is_empty() {
        return config.hostname.clone();
    }
    let options = namespace_options(config);
    if options.network() == v1::NamespaceMode::Node {
        return rustix::system::uname().nodename().to_string_lossy().into_owned();
    }
    sandbox.id.short().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_storage_containers_with_a_pod_are_ours() {
        let ours = r#"{"creator":"criox","pod-name":"k8s_a_b_c_0","pod-id":"abc"}"#;
        assert_eq!(owner_of(ours), Some("abc".into()));
        assert_eq!(owner_of(r#"{"pod-name":"k8s_a_b_c_0","pod-id":"abc"}"#), None, "CRI-O's");
        assert_eq!(owner_of(r#"{"creator":"criox","pod-name":"","pod-id":"abc"}"#), None);
        assert_eq!(owner_of(r#"{"image-name":"x"}"#), None);
        assert_eq!(owner_of(""), None);
    }
}
