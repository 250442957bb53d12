//! StreamContainerStats.

use criox_cri::v1;

use super::Services;
use super::chunks::{self, Chunks};
use crate::edge;

pub(super) fn stream_container_stats(
    services: &Services,
    request: &v1::StreamContainerStatsRequest,
) -> Chunks<v1::StreamContainerStatsResponse> {
    let lifecycle = services.lifecycle.clone();
    let containers = lifecycle.measured_containers(request.filter.as_ref());
    chunks::stream(containers, chunks::ITEMS, move |part| {
        let lifecycle = lifecycle.clone();
        async move {
            let read = lifecycle.container_stats_of(part).await;
            let container_stats = read.map_err(|error| edge::status(&error))?;
            let message = v1::StreamContainerStatsResponse { container_stats };
            Ok((!message.container_stats.is_empty()).then_some(message))
        }
    })
}
