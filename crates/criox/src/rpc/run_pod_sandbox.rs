//! RunPodSandbox.

use criox_cri::v1;
use tonic::Status;

use super::Services;
use crate::edge;

pub(super) async fn run_pod_sandbox(
    services: &Services,
    request: v1::RunPodSandboxRequest,
) -> Result<v1::RunPodSandboxResponse, Status> {
    let config = request.config.ok_or_else(|| edge::invalid("config", "is missing"))?;
    let id = services.lifecycle.run_pod_sandbox(config, &request.runtime_handler).await;
    let id = id.map_err(|error| edge::status(&error))?;
    Ok(v1::RunPodSandboxResponse { pod_sandbox_id: id.to_string() })
}
