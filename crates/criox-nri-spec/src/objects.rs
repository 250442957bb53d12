//! Pods and containers as plugins see them, by their records.

use criox_nri::proto;
use criox_records::{ContainerPhase, ContainerRecord, Namespace, Paths, SandboxPhase, SandboxRecord, names};
use criox_spec::oci;

use crate::describe::{describe, seccomp_profile};
use crate::limits::limits;

/// A sandbox.
pub fn pod(paths: &Paths, record: &SandboxRecord) -> proto::PodSandbox {
    let config = &record.config.0;
    let metadata = config.metadata.clone().unwrap_or_default();
    let id = record.id.as_str();
    // What the pod had is given back when it stops.
    let kinds = if record.torn_down { Vec::new() } else { Namespace::pinned(config) };
    let namespace = |kind: Namespace| proto::LinuxNamespace {
        r#type: namespace_type(kind).into(),
        path: paths.namespace(kind, id).to_string_lossy().into_owned(),
    };
    let linux = proto::LinuxPodSandbox {
        pod_overhead: record.overhead().map(limits),
        pod_resources: record.resources().map(limits),
        cgroup_parent: record.cgroup_parent.clone(),
        cgroups_path: if record.phase == SandboxPhase::NotReady {
            String::new()
        } else {
            names::sandbox_group(record)
        },
        namespaces: kinds.into_iter().map(namespace).collect(),
        resources: None,
    };
    proto::PodSandbox {
        id: id.to_owned(),
        name: metadata.name,
        uid: metadata.uid,
        namespace: metadata.namespace,
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        runtime_handler: record.runtime_handler.clone(),
        linux: Some(linux),
        pid: record.init.and_then(|init| u32::try_from(init.pid).ok()).unwrap_or_default(),
        ips: record.ips.clone(),
    }
}

fn namespace_type(kind: Namespace) -> &'static str {
    match kind {
        Namespace::User => "user",
        Namespace::Network => "network",
        Namespace::Ipc => "ipc",
        Namespace::Uts => "uts",
        Namespace::Pid => "pid",
    }
}

/// A container by its record alone.
pub fn container(record: &ContainerRecord) -> proto::Container {
    let config = &record.config.0;
    let exit = record.exit.clone();
    let (finished_at, exit_code, status_reason, status_message) =
        exit.map(|exit| (exit.finished_at, exit.code, exit.reason, exit.message)).unwrap_or_default();
    let digest = record.image.digested.rsplit_once('@').map(|(_, digest)| digest.to_owned());
    let linux = proto::LinuxContainer {
        seccomp_profile: seccomp_profile(config),
        resources: record.resources().map(limits),
        ..Default::default()
    };
    proto::Container {
        id: record.id.to_string(),
        pod_sandbox_id: record.sandbox_id.to_string(),
        name: config.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default(),
        state: state(record.phase).into(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        linux: Some(linux),
        pid: record.process.and_then(|process| u32::try_from(process.pid).ok()).unwrap_or_default(),
        created_at: record.created_at,
        started_at: record.started_at,
        finished_at,
        exit_code,
        status_reason,
        status_message,
        cdi_devices: config
            .cdi_devices
            .iter()
            .map(|device| proto::CdiDevice { name: device.name.clone() })
            .collect(),
        image: Some(proto::Image {
            name: record.image.name.clone(),
            digest: digest.unwrap_or_default(),
            config_digest: record.image.id.clone(),
        }),
        ..Default::default()
    }
}

fn state(phase: ContainerPhase) -> proto::ContainerState {
    match phase {
        ContainerPhase::Creating => proto::ContainerState::ContainerUnknown,
        ContainerPhase::Created => proto::ContainerState::ContainerCreated,
        ContainerPhase::Running => proto::ContainerState::ContainerRunning,
        ContainerPhase::Exited => proto::ContainerState::ContainerStopped,
    }
}

/// A container by its record and the specification that it was made from.
pub fn with_spec(record: &ContainerRecord, spec: &oci::Spec) -> proto::Container {
    describe(spec, container(record))
}
