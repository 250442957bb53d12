//! PullImage.

use criox_cri::v1;
use criox_image::{Auth, PullRequest};
use tonic::Status;

use super::Services;
use crate::edge;

pub(super) async fn pull_image(
    services: &Services,
    request: v1::PullImageRequest,
) -> Result<v1::PullImageResponse, Status> {
    let spec = request.image.unwrap_or_default();
    if spec.image.is_empty() {
        return Err(edge::invalid("image.image", "must not be empty"));
    }
    let context = services.lifecycle.context();
    if !spec.runtime_handler.is_empty() {
        context.handlers.get(&spec.runtime_handler).map_err(|error| edge::status(&error.into()))?;
    }
    let metadata = request.sandbox_config.and_then(|config| config.metadata).unwrap_or_default();
    let auth = request.auth.map(|auth| Auth {
        username: auth.username,
        password: auth.password,
        auth: auth.auth,
        server_address: auth.server_address,
        identity_token: auth.identity_token,
        registry_token: auth.registry_token,
    });
    let pull = PullRequest { image: spec.image, auth, namespace: metadata.namespace };
    let pulled = context.images.pull(pull).await.map_err(|error| edge::pull_status(&error))?;
    // The same string as Image.id and Container.image_id: the kubelet's garbage collection compares them.
    Ok(v1::PullImageResponse { image_ref: pulled.id })
}
