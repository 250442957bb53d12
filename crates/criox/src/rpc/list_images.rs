//! ListImages.

use criox_cri::v1;
use tonic::Status;

use super::{Services, image};
use crate::edge;

pub(super) async fn list_images(
    services: &Services,
    request: v1::ListImagesRequest,
) -> Result<v1::ListImagesResponse, Status> {
    let images = services.lifecycle.context().images.clone();
    let name = request.filter.and_then(|filter| filter.image).map(|image| image.image).unwrap_or_default();
    let listed = tokio::task::spawn_blocking(move || match name.as_str() {
        "" => images.list().map(|list| list.iter().map(|info| image::message(info)).collect()),
        name => images.find(name).map(|found| found.iter().map(|info| image::message(info)).collect()),
    })
    .await
    .map_err(|error| Status::internal(error.to_string()))?;
    let images = listed.map_err(|error| edge::store_status("list of images", &error))?;
    Ok(v1::ListImagesResponse { images })
}
