//! ListPodSandboxMetrics.

use criox_cri::v1;
use tonic::Status;

use super::Services;
use crate::edge;

pub(super) async fn list_pod_sandbox_metrics(
    services: &Services,
) -> Result<v1::ListPodSandboxMetricsResponse, Status> {
    let pods = services.lifecycle.pods_with_metrics();
    let metrics = services.lifecycle.metrics_of(pods).await;
    Ok(v1::ListPodSandboxMetricsResponse { pod_metrics: metrics.map_err(|error| edge::status(&error))? })
}
