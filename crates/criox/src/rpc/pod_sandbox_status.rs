//! PodSandboxStatus.

use criox_answers::status;
use criox_cri::v1;
use criox_lifecycle::Error;
use tonic::Status;

use super::{Services, verbose};
use crate::edge;

pub(super) async fn pod_sandbox_status(
    services: &Services,
    request: &v1::PodSandboxStatusRequest,
) -> Result<v1::PodSandboxStatusResponse, Status> {
    let view = services
        .lifecycle
        .context()
        .index
        .shown_pod(&request.pod_sandbox_id)
        .map_err(|error| edge::status(&error))?;
    // Known by its ID only to plugins that are being asked about it.
    if !view.listed() {
        return Err(edge::status(&Error::no_sandbox(&request.pod_sandbox_id)));
    }
    let info = if request.verbose { verbose::sandbox(&view) } else { Default::default() };
    Ok(v1::PodSandboxStatusResponse {
        status: Some(status::sandbox_status(&view.sandbox)),
        info,
        containers_statuses: view
            .listed_containers()
            .map(|record| status::container_status(record))
            .collect(),
        // A kubelet with evented PLEG takes containers' states from here only with a time, and then unsorted: 0.
        timestamp: 0,
    })
}
