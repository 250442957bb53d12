//! Records as the messages of CRI.

use criox_cri::v1;
use criox_records::{ContainerPhase, ContainerRecord, SandboxPhase, SandboxRecord, namespace_options};
use criox_spec::StopSignal;

/// The state that CRI knows.
pub fn sandbox_state(record: &SandboxRecord) -> v1::PodSandboxState {
    match record.phase {
        SandboxPhase::Ready => v1::PodSandboxState::SandboxReady,
        SandboxPhase::Creating | SandboxPhase::NotReady => v1::PodSandboxState::SandboxNotready,
    }
}

/// The state that CRI knows.
pub fn container_state(record: &ContainerRecord) -> v1::ContainerState {
    match record.phase {
        ContainerPhase::Creating | ContainerPhase::Created => v1::ContainerState::ContainerCreated,
        ContainerPhase::Running => v1::ContainerState::ContainerRunning,
        ContainerPhase::Exited => v1::ContainerState::ContainerExited,
    }
}

/// An entry of ListPodSandbox.
pub fn sandbox_entry(record: &SandboxRecord) -> v1::PodSandbox {
    let config = &record.config.0;
    v1::PodSandbox {
        id: record.id.to_string(),
        metadata: Some(config.metadata.clone().unwrap_or_default()),
        state: sandbox_state(record).into(),
        created_at: record.created_at,
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        runtime_handler: record.runtime_handler.clone(),
    }
}

/// PodSandboxStatus. `linux` is always set, for the kubelet reads it unasked.
pub fn sandbox_status(record: &SandboxRecord) -> v1::PodSandboxStatus {
    let config = &record.config.0;
    let mut ips = record.ips.iter();
    v1::PodSandboxStatus {
        id: record.id.to_string(),
        metadata: Some(config.metadata.clone().unwrap_or_default()),
        state: sandbox_state(record).into(),
        created_at: record.created_at,
        network: Some(v1::PodSandboxNetworkStatus {
            ip: ips.next().cloned().unwrap_or_default(),
            additional_ips: ips.map(|ip| v1::PodIp { ip: ip.clone() }).collect(),
        }),
        linux: Some(v1::LinuxPodSandboxStatus {
            namespaces: Some(v1::Namespace { options: Some(namespace_options(config)) }),
        }),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        runtime_handler: record.runtime_handler.clone(),
    }
}

/// An entry of ListContainers. The image is what the kubelet gave, for it looks for that text.
pub fn container_entry(record: &ContainerRecord) -> v1::Container {
    let config = &record.config.0;
    v1::Container {
        id: record.id.to_string(),
        pod_sandbox_id: record.sandbox_id.to_string(),
        metadata: Some(config.metadata.clone().unwrap_or_default()),
        image: Some(config.image.clone().unwrap_or_default()),
        image_ref: record.image.digested.clone(),
        state: container_state(record).into(),
        created_at: record.created_at,
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        image_id: record.image.id.clone(),
    }
}

/// ContainerStatus.
pub fn container_status(record: &ContainerRecord) -> v1::ContainerStatus {
    let config = &record.config.0;
    let exit = record.exit.as_ref();
    v1::ContainerStatus {
        id: record.id.to_string(),
        metadata: Some(config.metadata.clone().unwrap_or_default()),
        state: container_state(record).into(),
        created_at: record.created_at,
        started_at: record.started_at,
        finished_at: exit.map_or(0, |exit| exit.finished_at),
        exit_code: exit.map_or(0, |exit| exit.code),
        image: Some(v1::ImageSpec {
            image: record.image.name.clone(),
            user_specified_image: config
                .image
                .as_ref()
                .map(|image| image.user_specified_image.clone())
                .unwrap_or_default(),
            ..Default::default()
        }),
        image_ref: record.image.digested.clone(),
        reason: exit.map(|exit| exit.reason.clone()).unwrap_or_default(),
        message: exit.map(|exit| exit.message.clone()).unwrap_or_default(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        mounts: mounts(record),
        log_path: record.log_path.to_string_lossy().into_owned(),
        resources: record
            .resources()
            .cloned()
            .map(|linux| v1::ContainerResources { linux: Some(linux), windows: None }),
        image_id: record.image.id.clone(),
        user: record.user.as_ref().map(|user| (*user.0).clone()),
        stop_signal: stop_signal(record.stop_signal).into(),
    }
}

/// The mounts of the request, with the images that they really are: the kubelet leaves an image alone whose ID it finds.
fn mounts(record: &ContainerRecord) -> Vec<v1::Mount> {
    let mut mounts = record.config.0.mounts.clone();
    for volume in &record.image_volumes {
        if let Some(image) = mounts.get_mut(volume.mount).and_then(|mount| mount.image.as_mut()) {
            image.image.clone_from(&volume.image);
            image.image_ref.clone_from(&volume.image);
        }
    }
    mounts
}

/// The interface's value for a signal's number.
fn stop_signal(number: i32) -> v1::Signal {
    StopSignal::parse(&number.to_string()).map_or(v1::Signal::RuntimeDefault, StopSignal::to_cri)
}

/// The attributes of a container in its statistics.
pub fn container_attributes(record: &ContainerRecord) -> v1::ContainerAttributes {
    let config = &record.config.0;
    v1::ContainerAttributes {
        id: record.id.to_string(),
        metadata: Some(config.metadata.clone().unwrap_or_default()),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
    }
}

/// The attributes of a sandbox in its statistics.
pub fn sandbox_attributes(record: &SandboxRecord) -> v1::PodSandboxAttributes {
    let config = &record.config.0;
    v1::PodSandboxAttributes {
        id: record.id.to_string(),
        metadata: Some(config.metadata.clone().unwrap_or_default()),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
    }
}

/// Whether a sandbox passes a filter: all of its fields must fit, labels exactly.
pub fn sandbox_passes(record: &SandboxRecord, filter: Option<&v1::PodSandboxFilter>) -> bool {
    let Some(filter) = filter else { return true };
    (filter.id.is_empty() || record.id.as_str().starts_with(&filter.id))
        && filter.state.is_none_or(|state| state.state == i32::from(sandbox_state(record)))
        && filter.label_selector.iter().all(|(key, value)| record.config.0.labels.get(key) == Some(value))
}

/// Whether a container passes a filter: all of its fields must fit, labels exactly.
pub fn container_passes(record: &ContainerRecord, filter: Option<&v1::ContainerFilter>) -> bool {
    let Some(filter) = filter else { return true };
    (filter.id.is_empty() || record.id.as_str().starts_with(&filter.id))
        && (filter.pod_sandbox_id.is_empty()
            || record.sandbox_id.as_str().starts_with(&filter.pod_sandbox_id))
        && filter.state.is_none_or(|state| state.state == i32::from(container_state(record)))
        && filter.label_selector.iter().all(|(key, value)| record.config.0.labels.get(key) == Some(value))
}

/// The same for statistics, whose filter has no state.
pub fn container_stats_pass(record: &ContainerRecord, filter: Option<&v1::ContainerStatsFilter>) -> bool {
    let filter = filter.map(|filter| v1::ContainerFilter {
        id: filter.id.clone(),
        pod_sandbox_id: filter.pod_sandbox_id.clone(),
        label_selector: filter.label_selector.clone(),
        state: None,
    });
    container_passes(record, filter.as_ref())
}

/// The same for statistics, whose filter has no state.
pub fn sandbox_stats_pass(record: &SandboxRecord, filter: Option<&v1::PodSandboxStatsFilter>) -> bool {
    let filter = filter.map(|filter| v1::PodSandboxFilter {
        id: filter.id.clone(),
        label_selector: filter.label_selector.clone(),
        state: None,
    });
    sandbox_passes(record, filter.as_ref())
}
