//! RemoveImage: an image that is absent is success.

use criox_cri::v1;
use tonic::Status;

use super::Services;
use crate::edge;

pub(super) async fn remove_image(
    services: &Services,
    request: v1::RemoveImageRequest,
) -> Result<v1::RemoveImageResponse, Status> {
    let name = request.image.map(|image| image.image).unwrap_or_default();
    if name.is_empty() {
        return Err(edge::invalid("image.image", "must not be empty"));
    }
    let images = services.lifecycle.context().images.clone();
    tokio::task::spawn_blocking(move || images.remove(&name))
        .await
        .map_err(|error| Status::internal(error.to_string()))?
        .map_err(|error| edge::store_status("removal of an image", &error))?;
    Ok(v1::RemoveImageResponse {})
}
