//! ImageFsInfo: what images use, by the store's records.

use std::time::{SystemTime, UNIX_EPOCH};

use criox_cri::v1;
use tonic::Status;

use super::Services;
use crate::edge;

pub(super) async fn image_fs_info(services: &Services) -> Result<v1::ImageFsInfoResponse, Status> {
    let context = services.lifecycle.context();
    let images = context.images.clone();
    let usage = tokio::task::spawn_blocking(move || images.fs_usage())
        .await
        .map_err(|error| Status::internal(error.to_string()))?
        .map_err(|error| edge::store_status("usage of images", &error))?;
    let directory = context.store.graph_root().join(format!("{}-images", context.config.root.storage_driver));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let filesystem = v1::FilesystemUsage {
        timestamp: i64::try_from(now.as_nanos()).unwrap_or(i64::MAX),
        fs_id: Some(v1::FilesystemIdentifier { mountpoint: directory.to_string_lossy().into_owned() }),
        used_bytes: Some(v1::UInt64Value { value: usage.bytes }),
        inodes_used: Some(v1::UInt64Value { value: usage.inodes }),
    };
    Ok(v1::ImageFsInfoResponse {
        image_filesystems: vec![filesystem.clone()],
        container_filesystems: vec![filesystem],
    })
}
