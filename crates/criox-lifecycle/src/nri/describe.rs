//! Containers as plugins see them, with the specifications that lie on disk.

use std::sync::Arc;
use std::time::Duration;

use criox_nri::proto;
use criox_nri_spec::with_spec;
use criox_records::ContainerRecord;
use criox_spec::oci;

use crate::context::{Context, blocking};
use crate::error::{Error, Result};

/// For reading a container's `config.json`: a disk that hangs makes a description poorer, and nothing else.
const READ: Duration = Duration::from_secs(2);

/// A container by its record and the specification that it was made from, where that can be had.
pub(super) async fn container(context: &Arc<Context>, record: &Arc<ContainerRecord>) -> proto::Container {
    let object = format!("container {}", record.id);
    let read = blocking("read of config.json", &object, READ, {
        let (context, record) = (context.clone(), record.clone());
        move || read_spec(&context, &record)
    });
    match read.await {
        Ok(spec) => with_spec(record, &spec),
        Err(error) => {
            tracing::debug!(container = %record.id, error = error.chain(), "NRI plugins are told less of a container");
            criox_nri_spec::container(record)
        }
    }
}

/// Blocks on the disk.
pub(super) fn read_spec(context: &Context, record: &ContainerRecord) -> Result<oci::Spec> {
    let failed = || Error::failed(format!("specification of container {}", record.id));
    let directory =
        context.store.container_dir(record.id.as_str()).map_err(|error| failed().because(error))?;
    let bytes = std::fs::read(directory.join("config.json")).map_err(|error| failed().because(error))?;
    oci::Spec::from_json(&bytes).map_err(|error| failed().because(error))
}
