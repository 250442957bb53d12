//! ContainerStatus.

use criox_answers::status;
use criox_cri::v1;
use criox_lifecycle::Error;
use criox_records::ContainerPhase;
use tonic::Status;

use super::{Services, verbose};
use crate::edge;

pub(super) async fn container_status(
    services: &Services,
    request: &v1::ContainerStatusRequest,
) -> Result<v1::ContainerStatusResponse, Status> {
    let index = &services.lifecycle.context().index;
    let (_, record) = index.container(&request.container_id).map_err(|error| edge::status(&error))?;
    // Known by its ID only to plugins that are being asked about it.
    if record.phase == ContainerPhase::Creating {
        return Err(edge::status(&Error::no_container(&request.container_id)));
    }
    let info = if request.verbose { verbose::container(services, &record).await } else { Default::default() };
    Ok(v1::ContainerStatusResponse { status: Some(status::container_status(&record)), info })
}
