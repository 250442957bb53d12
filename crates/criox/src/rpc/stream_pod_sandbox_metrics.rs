//! StreamPodSandboxMetrics.

use criox_cri::v1;

use super::Services;
use super::chunks::{self, Chunks};
use crate::edge;

/// Pods of a message: each has some sixty metrics a container.
const PODS: usize = chunks::ITEMS / 4;

pub(super) fn stream_pod_sandbox_metrics(services: &Services) -> Chunks<v1::StreamPodSandboxMetricsResponse> {
    let lifecycle = services.lifecycle.clone();
    let pods = lifecycle.pods_with_metrics();
    chunks::stream(pods, PODS, move |part| {
        let lifecycle = lifecycle.clone();
        async move {
            let read = lifecycle.metrics_of(part).await;
            let pod_sandbox_metrics = read.map_err(|error| edge::status(&error))?;
            let message = v1::StreamPodSandboxMetricsResponse { pod_sandbox_metrics };
            Ok((!message.pod_sandbox_metrics.is_empty()).then_some(message))
        }
    })
}
