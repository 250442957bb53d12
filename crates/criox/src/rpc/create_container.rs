//! CreateContainer. `sandbox_config` repeats what the sandbox was made with and is not looked at.

use criox_cri::v1;
use tonic::Status;

use super::Services;
use crate::edge;

pub(super) async fn create_container(
    services: &Services,
    request: v1::CreateContainerRequest,
) -> Result<v1::CreateContainerResponse, Status> {
    let config = request.config.ok_or_else(|| edge::invalid("config", "is missing"))?;
    let id = services.lifecycle.create_container(&request.pod_sandbox_id, config).await;
    let id = id.map_err(|error| edge::status(&error))?;
    Ok(v1::CreateContainerResponse { container_id: id.to_string() })
}
