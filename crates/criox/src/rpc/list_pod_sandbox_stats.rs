//! ListPodSandboxStats.

use criox_cri::v1;
use tonic::Status;

use super::Services;
use super::fit::fit;
use crate::edge;

pub(super) async fn list_pod_sandbox_stats(
    services: &Services,
    request: &v1::ListPodSandboxStatsRequest,
) -> Result<v1::ListPodSandboxStatsResponse, Status> {
    let pods = services.lifecycle.measured_pod_sandboxes(request.filter.as_ref());
    let stats = services.lifecycle.pod_sandbox_stats_of(pods).await;
    Ok(v1::ListPodSandboxStatsResponse { stats: fit(stats.map_err(|error| edge::status(&error))?) })
}
