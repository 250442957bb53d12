//! UpdatePodSandboxResources: the kubelet has changed the pod's cgroup itself, and tells what it gave.

use criox_cri::v1;
use tonic::Status;

use super::Services;
use crate::edge;

pub(super) async fn update_pod_sandbox_resources(
    services: &Services,
    request: v1::UpdatePodSandboxResourcesRequest,
) -> Result<v1::UpdatePodSandboxResourcesResponse, Status> {
    let v1::UpdatePodSandboxResourcesRequest { pod_sandbox_id, overhead, resources } = request;
    let updated = services.lifecycle.update_pod_sandbox_resources(&pod_sandbox_id, resources, overhead).await;
    updated.map_err(|error| edge::status(&error))?;
    Ok(v1::UpdatePodSandboxResourcesResponse {})
}
