//! StreamPodSandboxes.

use criox_answers::status;
use criox_cri::v1;

use super::Services;
use super::chunks::{self, Chunks};

pub(super) fn stream_pod_sandboxes(
    services: &Services,
    request: &v1::StreamPodSandboxesRequest,
) -> Chunks<v1::StreamPodSandboxesResponse> {
    let pods = services.lifecycle.context().index.listed_pods(request.filter.as_ref());
    chunks::stream(pods, chunks::ITEMS, |part| async move {
        let pod_sandboxes = part.iter().map(|view| status::sandbox_entry(&view.sandbox)).collect();
        Ok(Some(v1::StreamPodSandboxesResponse { pod_sandboxes }))
    })
}
