//! The CRI services: one file per request that does more than pass a field on. Requests that are not there yet answer
//! `Unimplemented`; none pretends.

mod container_status;
mod create_container;
mod events;
mod exec_sync;
mod image;
mod image_fs_info;
mod image_status;
mod list_images;
mod pod_sandbox_status;
mod pull_image;
mod remove_image;
mod run_pod_sandbox;
mod runtime;
mod status;
mod stop_container;
mod verbose;
mod version;

use criox_lifecycle::Lifecycle;

pub(crate) use version::RUNTIME_VERSION;

/// What the services work with.
#[derive(Debug, Clone)]
pub(crate) struct Services {
    pub(crate) lifecycle: Lifecycle,
}
