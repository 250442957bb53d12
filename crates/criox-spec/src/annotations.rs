//! Annotations of `config.json`: those of CRI-O, by which tools (and CRI-O itself, when a node goes back) know containers.

use std::collections::BTreeMap;

use criox_cri::v1;
use serde::Serialize;

use crate::error::{SpecError, Warning, WarningTopic};
use crate::input::SpecInput;
use crate::stop_signal::StopSignal;

/// Annotations that steer the runtime or something behind it. Any pod's author could set them, so each acts, and reaches
/// `config.json`, only where the handler's or the workload's `allowed_annotations` names it. Matched by prefix.
pub const GATED: [&str; 45] = [
    "bundle",
    "cgroup2-mount-hierarchy-rw.crio.io",
    "cpu-c-states.crio.io",
    "cpu-freq-governor.crio.io",
    "cpu-load-balancing.crio.io",
    "cpu-quota.crio.io",
    "cpu-shared.crio.io",
    "devices.crio.io",
    "disable-fips.crio.io",
    "io.containers.trace-syscall",
    "io.kubernetes.cri-o.Devices",
    "io.kubernetes.cri-o.DisableFIPS",
    "io.kubernetes.cri-o.LinkLogs",
    "io.kubernetes.cri-o.PlatformRuntimePath",
    "io.kubernetes.cri-o.PodLinuxOverhead",
    "io.kubernetes.cri-o.PodLinuxResources",
    "io.kubernetes.cri-o.ShmSize",
    "io.kubernetes.cri-o.Spoofed",
    "io.kubernetes.cri-o.TrySkipVolumeSELinuxLabel",
    "io.kubernetes.cri-o.UnifiedCgroup",
    "io.kubernetes.cri-o.cgroup2-mount-hierarchy-rw",
    "io.kubernetes.cri-o.seccompNotifierAction",
    "io.kubernetes.cri-o.umask",
    "io.kubernetes.cri-o.userns-mode",
    "io.kubernetes.cri.container-type",
    "io.kubernetes.cri.rdt-class",
    "irq-load-balancing.crio.io",
    "link-logs.crio.io",
    "module.wasm.image/variant",
    "org.criu.config",
    "org.opencontainers.image.stopSignal",
    "org.systemd.property.",
    "platform-runtime-path.crio.io",
    "pod-linux-overhead.crio.io",
    "pod-linux-resources.crio.io",
    "run.oci.",
    "seccomp-notifier-action.crio.io",
    "seccomp-profile.crio.io",
    "seccomp-profile.kubernetes.cri-o.io",
    "shm-size.crio.io",
    "spoofed.crio.io",
    "try-skip-volume-selinux-label.crio.io",
    "umask.crio.io",
    "unified-cgroup.crio.io",
    "userns-mode.crio.io",
];

/// The annotations that a pod may have: all but the gated ones that `allowed` does not name.
///
/// By prefix both ways, as CRI-O does: allowing `cpu-quota.crio.io` lets `cpu-quota.crio.io/ctr` through.
#[must_use]
pub fn filter_annotations(
    annotations: &BTreeMap<String, String>,
    allowed: &[String],
) -> BTreeMap<String, String> {
    annotations
        .iter()
        .filter(|(key, _)| may_pass(key, allowed))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

fn may_pass(key: &str, allowed: &[String]) -> bool {
    GATED.iter().filter(|gated| key.starts_with(*gated)).all(|gated| allowed.iter().any(|name| name == gated))
}

/// The value of a gated annotation of the pod, by its new or its old name, when the handler allows it.
pub(crate) fn gated<'a>(input: &SpecInput<'a>, new: &str, old: &str) -> Option<&'a str> {
    gated_annotation(&input.sandbox.annotations, &input.handler.allowed_annotations, &[new, old])
}

/// The value of an annotation that steers, by the first of its names that is given and that `allowed` names.
#[must_use]
pub fn gated_annotation<'a>(
    annotations: &'a BTreeMap<String, String>,
    allowed: &[String],
    names: &[&str],
) -> Option<&'a str> {
    names.iter().find_map(|name| {
        let value = annotations.get(*name)?;
        may_pass(name, allowed).then_some(value.as_str())
    })
}

/// `umask.crio.io`: one to four octal digits.
pub(crate) fn umask(input: &SpecInput<'_>) -> Result<Option<u32>, SpecError> {
    let Some(text) = gated(input, "umask.crio.io", "io.kubernetes.cri-o.umask") else { return Ok(None) };
    let valid = (1..=4).contains(&text.len()) && text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    valid.then(|| u32::from_str_radix(text, 8).ok()).flatten().map(Some).ok_or_else(|| {
        SpecError::invalid("annotations[umask.crio.io]", format!("{text:?} is not one to four octal digits"))
    })
}

/// A mount as CRI-O records it (`io.kubernetes.cri-o.Volumes`).
#[derive(Serialize)]
struct Volume<'a> {
    container_path: &'a str,
    host_path: &'a str,
    readonly: bool,
    recursive_read_only: bool,
    propagation: i32,
    selinux_relabel: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<VolumeImage<'a>>,
}

#[derive(Serialize)]
struct VolumeImage<'a> {
    image: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    user_specified_image: &'a str,
}

#[derive(Serialize)]
struct Metadata<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    attempt: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(value: &u32) -> bool {
    *value == 0
}

/// All annotations of the container. The request's own come first, ours replace what collides with them.
pub(crate) fn build(
    input: &SpecInput<'_>,
    stop_signal: StopSignal,
    seccomp: &str,
    warnings: &mut Vec<Warning>,
) -> Result<BTreeMap<String, String>, SpecError> {
    let allowed = &input.handler.allowed_annotations;
    let container = filter_annotations(&input.container.annotations, allowed);
    // A label is any text of the pod's author too.
    let labels = filter_annotations(&input.container.labels, allowed);
    let mut all = filter_annotations(&input.sandbox.annotations, allowed);
    let dropped = (input.sandbox.annotations.len() - all.len())
        + (input.container.annotations.len() - container.len())
        + (input.container.labels.len() - labels.len());
    if dropped > 0 {
        let message = format!("{dropped} annotations that the handler does not allow are left out");
        warnings.push(Warning::new(WarningTopic::Annotation, message));
    }
    all.extend(container.clone());
    all.extend(labels.clone());
    all.extend(recorded(input, stop_signal, seccomp));
    for (key, value) in [
        ("Metadata", json(&metadata(input))?),
        ("Labels", json(&input.container.labels)?),
        ("Annotations", json(&container)?),
        ("Volumes", json(&volumes(input))?),
    ] {
        all.insert(format!("io.kubernetes.cri-o.{key}"), value);
    }
    if input.node.systemd_cgroup {
        all.extend(systemd(input));
    }
    Ok(all)
}

fn json<T: Serialize>(value: &T) -> Result<String, SpecError> {
    serde_json::to_string(value).map_err(|error| SpecError::invalid("annotations", error.to_string()))
}

fn metadata<'a>(input: &SpecInput<'a>) -> Metadata<'a> {
    let metadata = input.container.metadata.as_ref();
    Metadata {
        name: metadata.map_or("", |metadata| metadata.name.as_str()),
        attempt: metadata.map_or(0, |metadata| metadata.attempt),
    }
}

fn volumes<'a>(input: &SpecInput<'a>) -> Vec<Volume<'a>> {
    let volume = |(wanted, resolved): (&'a v1::Mount, &'a crate::input::ResolvedMount)| Volume {
        container_path: &wanted.container_path,
        host_path: &resolved.source,
        readonly: wanted.readonly,
        recursive_read_only: wanted.recursive_read_only,
        propagation: wanted.propagation,
        selinux_relabel: wanted.selinux_relabel,
        image: wanted.image.as_ref().map(|image| VolumeImage {
            image: if resolved.image_id.is_empty() { &image.image } else { &resolved.image_id },
            user_specified_image: &image.user_specified_image,
        }),
    };
    input.container.mounts.iter().zip(input.mounts).map(volume).collect()
}

fn recorded(input: &SpecInput<'_>, stop_signal: StopSignal, seccomp: &str) -> BTreeMap<String, String> {
    let (identity, container) = (input.identity, input.container);
    let image = container.image.as_ref();
    let requested_image = image.map_or("", |image| image.image.as_str());
    let mut list: Vec<(&str, String)> = vec![
        ("Image", requested_image.to_owned()),
        ("ImageName", input.image.name.clone()),
        ("ImageRef", input.image.id.clone()),
        ("Name", identity.container_name.clone()),
        ("ContainerID", identity.container_id.clone()),
        ("SandboxID", identity.sandbox_id.clone()),
        ("SandboxName", identity.sandbox_name.clone()),
        ("ContainerType", "container".to_owned()),
        ("LogPath", identity.log_path.clone()),
        ("ResolvPath", input.provided.resolv_conf.clone().unwrap_or_default()),
        ("MountPoint", input.rootfs.to_owned()),
        ("SeccompProfilePath", seccomp.to_owned()),
        ("Created", identity.created.clone()),
        ("TTY", container.tty.to_string()),
        ("Stdin", container.stdin.to_string()),
        ("StdinOnce", container.stdin_once.to_string()),
    ];
    if !input.image.repo_digests.is_empty() {
        list.push(("ImageRepoDigests", input.image.repo_digests.join(",")));
    }
    let mut all: BTreeMap<String, String> =
        list.into_iter().map(|(key, value)| (format!("io.kubernetes.cri-o.{key}"), value)).collect();
    for (index, ip) in identity.pod_ips.iter().enumerate() {
        all.insert(format!("io.kubernetes.cri-o.IP.{index}"), ip.clone());
    }
    all.insert("platform-runtime-path.crio.io".to_owned(), input.handler.platform_runtime_path.clone());
    // A node that goes back to CRI-O finds its containers by this.
    all.insert("io.container.manager".to_owned(), "cri-o".to_owned());
    all.insert("org.opencontainers.image.stopSignal".to_owned(), stop_signal.name());
    all
}

/// Properties of the scope: systemd waits for the pod's grace period, and stops the scope before the daemon.
fn systemd(input: &SpecInput<'_>) -> Vec<(String, String)> {
    let mut properties = vec![
        ("org.systemd.property.DefaultDependencies".to_owned(), "true".to_owned()),
        ("org.systemd.property.After".to_owned(), "['crio.service']".to_owned()),
    ];
    let grace = input.container.annotations.get("io.kubernetes.pod.terminationGracePeriod");
    if let Some(seconds) = grace.and_then(|text| text.parse::<u32>().ok()) {
        properties
            .push(("org.systemd.property.TimeoutStopUSec".to_owned(), format!("uint64 {seconds}000000")));
    }
    properties
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(key: &str, allowed: &[&str], passes: bool) {
        let annotations = [(key.to_owned(), "x".to_owned())].into_iter().collect();
        let allowed: Vec<String> = allowed.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(!filter_annotations(&annotations, &allowed).is_empty(), passes, "{key} with {allowed:?}");
    }

    #[test]
    fn annotations_that_steer_pass_only_where_the_handler_allows_them() {
        check("example.com/note", &[], true);
        check("run.oci.handler", &[], false);
        check("org.systemd.property.ExecStop", &[], false);
        check("bundle-path", &[], false);
        check("cpu-quota.crio.io/ctr", &[], false);
        check("cpu-quota.crio.io/ctr", &["cpu-quota.crio.io"], true);
        check("io.kubernetes.cri-o.Devices", &["devices.crio.io"], false);
    }

    #[test]
    fn each_name_of_an_annotation_is_allowed_by_itself() {
        let annotations: BTreeMap<_, _> =
            [("io.kubernetes.cri-o.Devices".to_owned(), "/dev/x".to_owned())].into();
        let names = ["devices.crio.io", "io.kubernetes.cri-o.Devices"];
        let ask = |allowed: &str| gated_annotation(&annotations, &[allowed.to_owned()], &names);
        assert_eq!(ask("devices.crio.io"), None);
        assert_eq!(ask("io.kubernetes.cri-o.Devices"), Some("/dev/x"));
    }
}
