//! ExecSync.

use std::time::Duration;

use criox_cri::v1;
use tonic::Status;

use super::Services;
use crate::edge;

pub(super) async fn exec_sync(
    services: &Services,
    request: v1::ExecSyncRequest,
) -> Result<v1::ExecSyncResponse, Status> {
    let limit = u64::try_from(request.timeout).map_err(|_| edge::invalid("timeout", "is below 0"))?;
    let output =
        services.lifecycle.exec_sync(&request.container_id, &request.cmd, Duration::from_secs(limit)).await;
    let output = output.map_err(|error| edge::status(&error))?;
    Ok(v1::ExecSyncResponse { stdout: output.stdout, stderr: output.stderr, exit_code: output.exit_code })
}
