//! PodSandboxStats.

use criox_cri::v1;
use tonic::Status;

use super::Services;
use crate::edge;

pub(super) async fn pod_sandbox_stats(
    services: &Services,
    request: &v1::PodSandboxStatsRequest,
) -> Result<v1::PodSandboxStatsResponse, Status> {
    let stats = services.lifecycle.pod_sandbox_stats(&request.pod_sandbox_id).await;
    Ok(v1::PodSandboxStatsResponse { stats: Some(stats.map_err(|error| edge::status(&error))?) })
}
