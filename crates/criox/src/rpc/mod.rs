//! The CRI services: one file per request that does more than pass a field on.

mod attach;
mod checkpoint_container;
mod checkpoint_pod;
mod chunks;
mod container_stats;
mod container_status;
mod create_container;
mod deadline;
mod events;
mod exec;
mod exec_sync;
mod fit;
mod image;
mod image_fs_info;
mod image_status;
mod list_container_stats;
mod list_images;
mod list_metric_descriptors;
mod list_pod_sandbox_metrics;
mod list_pod_sandbox_stats;
pub(crate) mod lists;
mod pod_sandbox_stats;
mod pod_sandbox_status;
mod port_forward;
mod pull_image;
mod remove_image;
mod restore_pod;
mod run_pod_sandbox;
mod runtime;
mod status;
mod stop_container;
mod stream_container_stats;
mod stream_containers;
mod stream_images;
mod stream_pod_sandbox_metrics;
mod stream_pod_sandbox_stats;
mod stream_pod_sandboxes;
mod update_container_resources;
mod update_pod_sandbox_resources;
mod verbose;
mod version;

use std::sync::Arc;

use criox_lifecycle::Lifecycle;
use criox_streaming::Server;

pub(crate) use version::RUNTIME_VERSION;

/// What the services work with.
#[derive(Debug, Clone)]
pub(crate) struct Services {
    pub(crate) lifecycle: Lifecycle,
    pub(crate) streaming: Arc<Server>,
}
