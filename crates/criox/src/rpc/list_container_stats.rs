//! ListContainerStats.

use criox_cri::v1;
use tonic::Status;

use super::Services;
use super::fit::fit;
use crate::edge;

pub(super) async fn list_container_stats(
    services: &Services,
    request: &v1::ListContainerStatsRequest,
) -> Result<v1::ListContainerStatsResponse, Status> {
    let containers = services.lifecycle.measured_containers(request.filter.as_ref());
    let stats = services.lifecycle.container_stats_of(containers).await;
    Ok(v1::ListContainerStatsResponse { stats: fit(stats.map_err(|error| edge::status(&error))?) })
}
