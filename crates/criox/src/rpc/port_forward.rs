//! PortForward: a URL at which ports of the pod can be reached, by one client.

use criox_cri::v1;
use criox_streaming::PortForwardRequest;
use tonic::Status;

use super::Services;
use crate::edge;

pub(super) fn port_forward(
    services: &Services,
    request: v1::PortForwardRequest,
) -> Result<v1::PortForwardResponse, Status> {
    let sandbox = services.lifecycle.check_port_forward(&request.pod_sandbox_id);
    let sandbox = sandbox.map_err(|error| edge::status(&error))?.to_string();
    let ports: Option<Vec<u16>> =
        request.port.iter().map(|port| u16::try_from(*port).ok().filter(|port| *port > 0)).collect();
    let ports = ports.ok_or_else(|| edge::invalid("port", "is not within 1 to 65535"))?;
    let url = services
        .streaming
        .port_forward_url(PortForwardRequest { sandbox, ports })
        .map_err(edge::url_status)?;
    Ok(v1::PortForwardResponse { url })
}
