//! StreamPodSandboxStats.

use criox_cri::v1;

use super::Services;
use super::chunks::{self, Chunks};
use crate::edge;

/// Pods of a message: each holds its containers' statistics, too.
const PODS: usize = chunks::ITEMS / 2;

pub(super) fn stream_pod_sandbox_stats(
    services: &Services,
    request: &v1::StreamPodSandboxStatsRequest,
) -> Chunks<v1::StreamPodSandboxStatsResponse> {
    let lifecycle = services.lifecycle.clone();
    let pods = lifecycle.measured_pod_sandboxes(request.filter.as_ref());
    chunks::stream(pods, PODS, move |part| {
        let lifecycle = lifecycle.clone();
        async move {
            let read = lifecycle.pod_sandbox_stats_of(part).await;
            let pod_sandbox_stats = read.map_err(|error| edge::status(&error))?;
            let message = v1::StreamPodSandboxStatsResponse { pod_sandbox_stats };
            Ok((!message.pod_sandbox_stats.is_empty()).then_some(message))
        }
    })
}
