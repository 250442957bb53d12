//! Pods and containers as plugins see them.

use std::sync::Arc;
use std::time::Duration;

use criox_nri::proto;
use criox_nri_spec::{limits, seccomp_profile};
use criox_spec::oci;

use crate::context::{Context, blocking};
use crate::error::{Error, Result};
use crate::paths::Namespace;
use crate::record::{ContainerPhase, ContainerRecord, SandboxPhase, SandboxRecord};
use crate::sandbox::run;

/// For reading a container's `config.json`: a disk that hangs makes a description poorer, and nothing else.
const READ: Duration = Duration::from_secs(2);

/// A sandbox.
pub(super) fn pod(context: &Context, record: &SandboxRecord) -> proto::PodSandbox {
    let config = &record.config.0;
    let metadata = config.metadata.clone().unwrap_or_default();
    let id = record.id.as_str();
    // What the pod had is given back when it stops.
    let kinds = if record.torn_down { Vec::new() } else { run::pinned(config) };
    let namespace = |kind: Namespace| proto::LinuxNamespace {
        r#type: namespace_type(kind).into(),
        path: context.paths.namespace(kind, id).to_string_lossy().into_owned(),
    };
    let linux = proto::LinuxPodSandbox {
        pod_overhead: record.overhead().map(limits),
        pod_resources: record.resources().map(limits),
        cgroup_parent: record.cgroup_parent.clone(),
        cgroups_path: if record.phase == SandboxPhase::NotReady { String::new() } else { run::group(record) },
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

/// A container by its record and the specification that it was made from, where that can be had.
pub(super) async fn container(context: &Arc<Context>, record: &Arc<ContainerRecord>) -> proto::Container {
    let object = format!("container {}", record.id);
    let read = blocking("read of config.json", &object, READ, {
        let (context, record) = (context.clone(), record.clone());
        move || read_spec(&context, &record)
    });
    match read.await {
        Ok(spec) => with_spec(record, &spec),
        Err(error) => {
            tracing::debug!(container = %record.id, error = error.chain(), "NRI plugins are told less of a container");
            bare(record)
        }
    }
}

/// Blocks on the disk.
pub(super) fn read_spec(context: &Context, record: &ContainerRecord) -> Result<oci::Spec> {
    let failed = || Error::failed(format!("specification of container {}", record.id));
    let directory =
        context.store.container_dir(record.id.as_str()).map_err(|error| failed().because(error))?;
    let bytes = std::fs::read(directory.join("config.json")).map_err(|error| failed().because(error))?;
    oci::Spec::from_json(&bytes).map_err(|error| failed().because(error))
}

/// A container by its record alone.
pub(super) fn bare(record: &ContainerRecord) -> proto::Container {
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

/// With what the specification says.
pub(super) fn with_spec(record: &ContainerRecord, spec: &oci::Spec) -> proto::Container {
    criox_nri_spec::describe(spec, bare(record))
}
