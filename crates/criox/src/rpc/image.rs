//! ImageService: each method hands its request to whoever does the work.

use criox_cri::v1;
use criox_cri::v1::image_service_server::ImageService;
use criox_image::{ImageInfo, ImageUser};
use tonic::{Request, Response, Status};

use super::Services;
use super::chunks::Chunks;

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl ImageService for Services {
    async fn list_images(&self, request: Request<v1::ListImagesRequest>) -> Answer<v1::ListImagesResponse> {
        super::list_images::list_images(self, request.into_inner()).await.map(Response::new)
    }

    type StreamImagesStream = Chunks<v1::StreamImagesResponse>;

    async fn stream_images(
        &self,
        request: Request<v1::StreamImagesRequest>,
    ) -> Answer<Self::StreamImagesStream> {
        super::stream_images::stream_images(self, request.into_inner()).await.map(Response::new)
    }

    async fn image_status(
        &self,
        request: Request<v1::ImageStatusRequest>,
    ) -> Answer<v1::ImageStatusResponse> {
        super::image_status::image_status(self, request.into_inner()).await.map(Response::new)
    }

    async fn pull_image(&self, request: Request<v1::PullImageRequest>) -> Answer<v1::PullImageResponse> {
        super::pull_image::pull_image(self, request.into_inner()).await.map(Response::new)
    }

    async fn remove_image(
        &self,
        request: Request<v1::RemoveImageRequest>,
    ) -> Answer<v1::RemoveImageResponse> {
        super::remove_image::remove_image(self, request.into_inner()).await.map(Response::new)
    }

    async fn image_fs_info(&self, _: Request<v1::ImageFsInfoRequest>) -> Answer<v1::ImageFsInfoResponse> {
        super::image_fs_info::image_fs_info(self).await.map(Response::new)
    }
}

/// An image as CRI shows it.
pub(super) fn message(image: &ImageInfo) -> v1::Image {
    let (uid, username) = match &image.user {
        // The kubelet takes an absent user for root, too.
        ImageUser::Unset => (Some(v1::Int64Value { value: 0 }), String::new()),
        ImageUser::Uid(uid) => (Some(v1::Int64Value { value: *uid }), String::new()),
        ImageUser::Name(name) => (None, name.clone()),
    };
    v1::Image {
        id: image.id.clone(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size,
        uid,
        username,
        spec: Some(v1::ImageSpec { annotations: (*image.annotations).clone(), ..Default::default() }),
        pinned: image.pinned,
    }
}
