//! ListImages.

use std::sync::Arc;

use criox_cri::v1;
use criox_image::ImageInfo;
use tonic::Status;

use super::fit::fit;
use super::{Services, image};
use crate::edge;

pub(super) async fn list_images(
    services: &Services,
    request: v1::ListImagesRequest,
) -> Result<v1::ListImagesResponse, Status> {
    let found = find(services, request.filter).await?;
    Ok(v1::ListImagesResponse { images: fit(found.iter().map(|info| image::message(info)).collect()) })
}

/// The images that pass a filter; without a name all of them.
pub(super) async fn find(
    services: &Services,
    filter: Option<v1::ImageFilter>,
) -> Result<Vec<Arc<ImageInfo>>, Status> {
    let images = services.lifecycle.context().images.clone();
    let name = filter.and_then(|filter| filter.image).map(|image| image.image).unwrap_or_default();
    let listed = tokio::task::spawn_blocking(move || match name.as_str() {
        "" => images.list().map(|list| list.to_vec()),
        name => images.find(name).map(|found| found.into_iter().collect()),
    })
    .await
    .map_err(|error| Status::internal(error.to_string()))?;
    listed.map_err(|error| edge::store_status("list of images", &error))
}
