//! Attach: a URL at which a client can join the container's process, once.

use criox_cri::v1;
use criox_streaming::AttachRequest;
use tonic::Status;

use super::Services;
use crate::edge;

pub(super) fn attach(services: &Services, request: v1::AttachRequest) -> Result<v1::AttachResponse, Status> {
    let v1::AttachRequest { container_id, stdin, tty, stdout, stderr } = request;
    edge::streams(tty, stdin, stdout, stderr)?;
    let container =
        services.lifecycle.check_attach(&container_id, tty).map_err(|error| edge::status(&error))?;
    let request = AttachRequest { container: container.to_string(), tty, stdin, stdout, stderr };
    let url = services.streaming.attach_url(request).map_err(edge::url_status)?;
    Ok(v1::AttachResponse { url })
}
