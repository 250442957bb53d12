//! RestorePod.

use criox_cri::v1;
use tonic::{Request, Status};

use super::{Services, deadline};
use crate::edge;

pub(super) async fn restore_pod(
    services: &Services,
    request: Request<v1::RestorePodRequest>,
) -> Result<v1::RestorePodResponse, Status> {
    let limit = deadline::of(request.metadata());
    let made = services.lifecycle.restore_pod(request.into_inner(), limit).await;
    let made = made.map_err(|error| edge::status(&error))?;
    let container = |(name, id): (String, criox_cri::ids::ContainerId)| v1::RestoredContainer {
        name,
        container_id: id.to_string(),
    };
    Ok(v1::RestorePodResponse {
        pod_sandbox_id: made.sandbox.to_string(),
        restored_containers: made.containers.into_iter().map(container).collect(),
    })
}
