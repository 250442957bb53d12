//! StopContainer.

use std::time::Duration;

use criox_cri::v1;
use tonic::Status;

use super::Services;
use crate::edge;

pub(super) async fn stop_container(
    services: &Services,
    request: &v1::StopContainerRequest,
) -> Result<v1::StopContainerResponse, Status> {
    // Below 0 as 0: at once.
    let grace = Duration::from_secs(u64::try_from(request.timeout).unwrap_or(0));
    let stopped = services.lifecycle.stop_container(&request.container_id, grace).await;
    stopped.map_err(|error| edge::status(&error))?;
    Ok(v1::StopContainerResponse {})
}
