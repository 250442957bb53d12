//! StreamContainers.

use criox_answers::status;
use criox_cri::v1;

use super::Services;
use super::chunks::{self, Chunks};

pub(super) fn stream_containers(
    services: &Services,
    request: &v1::StreamContainersRequest,
) -> Chunks<v1::StreamContainersResponse> {
    let containers = services.lifecycle.context().index.listed_containers(request.filter.as_ref());
    chunks::stream(containers, chunks::ITEMS, |part| async move {
        let containers = part.iter().map(|record| status::container_entry(record)).collect();
        Ok(Some(v1::StreamContainersResponse { containers }))
    })
}
