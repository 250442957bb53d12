//! UpdateContainerResources.

use criox_cri::v1;
use tonic::Status;

use super::Services;
use crate::edge;

pub(super) async fn update_container_resources(
    services: &Services,
    request: v1::UpdateContainerResourcesRequest,
) -> Result<v1::UpdateContainerResourcesResponse, Status> {
    if request.windows.is_some() {
        return Err(edge::invalid("windows", "containers here are those of Linux"));
    }
    if !request.annotations.is_empty() {
        return Err(edge::invalid("annotations", "none is known that would change a limit"));
    }
    let resources = request.linux.unwrap_or_default();
    let updated = services.lifecycle.update_container_resources(&request.container_id, resources).await;
    updated.map_err(|error| edge::status(&error))?;
    Ok(v1::UpdateContainerResourcesResponse {})
}
