//! StreamImages.

use criox_cri::v1;
use tonic::Status;

use super::chunks::{self, Chunks};
use super::{Services, image, list_images};

pub(super) async fn stream_images(
    services: &Services,
    request: v1::StreamImagesRequest,
) -> Result<Chunks<v1::StreamImagesResponse>, Status> {
    let images = list_images::find(services, request.filter).await?;
    Ok(chunks::stream(images, chunks::ITEMS, |part| async move {
        let images = part.iter().map(|info| image::message(info)).collect();
        Ok(Some(v1::StreamImagesResponse { images }))
    }))
}
