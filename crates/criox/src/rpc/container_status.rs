//! ContainerStatus.

use criox_cri::v1;
use criox_lifecycle::status;
use tonic::Status;

use super::{Services, verbose};
use crate::edge;

pub(super) async fn container_status(
    services: &Services,
    request: &v1::ContainerStatusRequest,
) -> Result<v1::ContainerStatusResponse, Status> {
    let index = &services.lifecycle.context().index;
    let (_, record) = index.container(&request.container_id).map_err(|error| edge::status(&error))?;
    let info = if request.verbose { verbose::container(services, &record).await } else { Default::default() };
    Ok(v1::ContainerStatusResponse { status: Some(status::container_status(&record)), info })
}
