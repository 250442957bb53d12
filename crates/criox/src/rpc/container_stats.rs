//! ContainerStats.

use criox_cri::v1;
use tonic::Status;

use super::Services;
use crate::edge;

pub(super) async fn container_stats(
    services: &Services,
    request: &v1::ContainerStatsRequest,
) -> Result<v1::ContainerStatsResponse, Status> {
    let stats = services.lifecycle.container_stats(&request.container_id).await;
    Ok(v1::ContainerStatsResponse { stats: Some(stats.map_err(|error| edge::status(&error))?) })
}
