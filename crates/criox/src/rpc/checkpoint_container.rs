//! CheckpointContainer.

use std::time::Duration;

use criox_cri::v1;
use tonic::{Request, Status};

use super::{Services, deadline};
use crate::edge;

pub(super) async fn checkpoint_container(
    services: &Services,
    request: Request<v1::CheckpointContainerRequest>,
) -> Result<v1::CheckpointContainerResponse, Status> {
    let patience = deadline::of(request.metadata());
    let request = request.into_inner();
    let seconds = u64::try_from(request.timeout).map_err(|_| edge::invalid("timeout", "is below 0"))?;
    let asked = (seconds > 0).then(|| Duration::from_secs(seconds));
    let limit = asked.into_iter().chain(patience).min();
    let done = services.lifecycle.checkpoint_container(&request.container_id, &request.location, limit).await;
    done.map_err(|error| edge::status(&error))?;
    Ok(v1::CheckpointContainerResponse {})
}
