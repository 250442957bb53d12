//! ImageStatus: an image that is absent is an empty answer.

use std::collections::BTreeMap;

use criox_cri::v1;
use criox_image::ImageInfo;
use serde_json::json;
use tonic::Status;

use super::{Services, image};
use crate::edge;

pub(super) async fn image_status(
    services: &Services,
    request: v1::ImageStatusRequest,
) -> Result<v1::ImageStatusResponse, Status> {
    let name = request.image.map(|image| image.image).unwrap_or_default();
    if name.is_empty() {
        return Err(edge::invalid("image.image", "must not be empty"));
    }
    let images = services.lifecycle.context().images.clone();
    let found = tokio::task::spawn_blocking(move || images.find(&name))
        .await
        .map_err(|error| Status::internal(error.to_string()))?
        .map_err(|error| edge::store_status("status of an image", &error))?;
    let info = found.as_ref().filter(|_| request.verbose).map(|image| info(image)).unwrap_or_default();
    Ok(v1::ImageStatusResponse { image: found.as_ref().map(|info| image::message(info)), info })
}

/// `crictl inspecti`.
fn info(image: &ImageInfo) -> BTreeMap<String, String> {
    let config = &image.config;
    let info = json!({
        "labels": config.labels,
        "imageSpec": {
            "created": image.created.map(|created| created.to_string()),
            "config": {
                "User": config.user,
                "Env": config.env,
                "Entrypoint": config.entrypoint,
                "Cmd": config.cmd,
                "WorkingDir": config.working_dir,
                "Labels": config.labels,
                "StopSignal": config.stop_signal,
            },
        },
    });
    BTreeMap::from([("info".into(), info.to_string())])
}
