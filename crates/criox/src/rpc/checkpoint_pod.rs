//! CheckpointPod.

use criox_cri::v1;
use tonic::{Request, Status};

use super::{Services, deadline};
use crate::edge;

pub(super) async fn checkpoint_pod(
    services: &Services,
    request: Request<v1::CheckpointPodRequest>,
) -> Result<v1::CheckpointPodResponse, Status> {
    let limit = deadline::of(request.metadata());
    let done = services.lifecycle.checkpoint_pod(request.into_inner(), limit).await;
    done.map_err(|error| edge::status(&error))?;
    Ok(v1::CheckpointPodResponse {})
}
