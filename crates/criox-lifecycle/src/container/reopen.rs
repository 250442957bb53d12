//! ReopenContainerLog: the kubelet has renamed the file and wants a new one.

use criox_monitor_api::client::Client;
use criox_monitor_api::proto::{self, request};
use criox_records::{ContainerPhase, ContainerRecord};

use crate::error::{Error, Kind, Result};
use crate::monitor;

/// Only for a running container; after an error there is no new file.
pub(crate) async fn reopen(client: &Client, record: &ContainerRecord) -> Result<()> {
    let object = format!("container {}", record.id);
    if record.phase != ContainerPhase::Running {
        return Err(Error::new(
            Kind::FailedPrecondition,
            format!("{object} does not run: its log is not reopened"),
        ));
    }
    let verb = request::Verb::ReopenLog(proto::ReopenLog { container_id: record.id.to_string() });
    client
        .done(verb, monitor::ANSWER)
        .await
        .map_err(|error| monitor::refused("reopening the log", &object, error))
}
