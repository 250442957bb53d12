//! Exec: a URL at which the command can be started, once.

use criox_cri::v1;
use criox_streaming::ExecRequest;
use tonic::Status;

use super::Services;
use crate::edge;

pub(super) fn exec(services: &Services, request: v1::ExecRequest) -> Result<v1::ExecResponse, Status> {
    let v1::ExecRequest { container_id, cmd, tty, stdin, stdout, stderr } = request;
    edge::streams(tty, stdin, stdout, stderr)?;
    let container =
        services.lifecycle.check_exec(&container_id, &cmd).map_err(|error| edge::status(&error))?;
    let request = ExecRequest { container: container.to_string(), command: cmd, tty, stdin, stdout, stderr };
    let url = services.streaming.exec_url(request).map_err(edge::url_status)?;
    Ok(v1::ExecResponse { url })
}
