//! Image volumes: an image's tree, read-only, as a mount of a container.
//!
//! In the store each is a container of its own on top of the image, so that nobody removes the image meanwhile, neither
//! RemoveImage nor podman. Its name begins with the ID of the container that it belongs to, by which it is undone.

use std::os::fd::AsFd as _;
use std::path::PathBuf;

use criox_confine::{SubPath, Users};
use criox_cri::{reasons, v1};
use criox_image::ImageInfo;
use criox_records::{ContainerRecord, SandboxRecord, names};
use criox_spec::ResolvedMount;
use criox_store::{ContainerDraft, Store};

use crate::context::{Context, new_container_id};
use crate::error::{Error, Kind, Result};
use crate::userns;

/// One of a container's mounts with an image.
pub(crate) struct Wanted<'a> {
    /// Its place among the request's mounts.
    pub(crate) index: usize,
    pub(crate) mount: &'a v1::Mount,
    pub(crate) image: &'a v1::ImageSpec,
}

/// Mounts it; what the specification is made from.
///
/// # Errors
/// They begin with the word by which the kubelet knows them: the image is not there, or has no such sub-path.
pub(crate) fn mount(
    context: &Context,
    sandbox: &SandboxRecord,
    record: &ContainerRecord,
    wanted: &Wanted<'_>,
) -> Result<ResolvedMount> {
    let field = |name: &str| format!("config.mounts[{}].{name}", wanted.index);
    let sub_path = SubPath::parse(&wanted.mount.image_sub_path)
        .map_err(|reason| refused(Kind::InvalidArgument, &field("image_sub_path"), reason))?;
    let image =
        find(context, wanted.image).map_err(|(kind, reason)| refused(kind, &field("image"), reason))?;
    let broken = |error: Error| {
        let text =
            format!("{}: {}: the image can't be mounted", reasons::IMAGE_VOLUME_MOUNT_FAILED, field("image"));
        Error::new(error.kind(), text).because(error)
    };
    let root = mount_tree(context, sandbox, record, wanted.index, &image).map_err(broken)?;
    let (source, is_dir) = sub_path.look_up(&root).map_err(|error| {
        let reason = format!("{:?} is not in the image", wanted.mount.image_sub_path);
        refused(Kind::InvalidArgument, &field("image_sub_path"), reason).because(error)
    })?;
    Ok(ResolvedMount {
        source: source.to_string_lossy().into_owned(),
        is_dir,
        image_id: image.id,
        ..ResolvedMount::default()
    })
}

fn refused(kind: Kind, field: &str, reason: impl std::fmt::Display) -> Error {
    Error::new(kind, format!("{}: {field}: {reason}", reasons::IMAGE_VOLUME_MOUNT_FAILED))
}

fn find(context: &Context, image: &v1::ImageSpec) -> std::result::Result<ImageInfo, (Kind, String)> {
    let name = &image.image;
    if name.is_empty() {
        return Err((Kind::InvalidArgument, "its name must not be empty".to_owned()));
    }
    match context.images.find(name) {
        Ok(Some(found)) => Ok(ImageInfo::clone(&found)),
        Ok(None) => {
            Err((Kind::FailedPrecondition, format!("image {name:?} is not on this node; pull it first")))
        }
        Err(error) => Err((Kind::Failed, crate::error::chain(&error))),
    }
}

/// The image's whole tree, with the owners of the pod.
fn mount_tree(
    context: &Context,
    sandbox: &SandboxRecord,
    record: &ContainerRecord,
    index: usize,
    image: &ImageInfo,
) -> Result<PathBuf> {
    let failed = |error| Error::failed(format!("image {}", image.id)).because(error);
    let users = Users::of(&sandbox.config.0);
    let id = new_container_id()?.to_string();
    let draft = ContainerDraft {
        id: id.clone(),
        names: vec![name(record.id.as_str(), index)],
        image_id: Some(image.id.clone()),
        metadata: names::volume_metadata(sandbox, record, &image.id),
        mount_options: ["ro", "nodev", "nosuid"].map(str::to_owned).to_vec(),
        users: users.as_ref().map(|users| users.users.clone()).unwrap_or_default(),
        groups: users.as_ref().map(|users| users.groups.clone()).unwrap_or_default(),
        volatile: true,
        ..ContainerDraft::default()
    };
    context.store.create_container(draft).map_err(failed)?;
    crate::error::failpoint("container.image-volume-stored")?;
    match users {
        None => context.store.mount(&id).map_err(failed),
        Some(_) => {
            let owners = userns::open(context, sandbox.id.as_str())?;
            context.store.mount_mapped(&id, owners.as_fd()).map_err(failed)
        }
    }
}

fn name(container: &str, index: usize) -> String {
    format!("{}{index}", prefix(container))
}

/// How the names of all of a container's image volumes begin.
fn prefix(container: &str) -> String {
    format!("{container}-image-volume-")
}

/// The storage containers that are image volumes of a container.
fn of(store: &Store, container: &str) -> Result<Vec<String>> {
    let prefix = prefix(container);
    let all = store
        .containers()
        .map_err(|error| Error::failed(format!("image volumes of container {container}")).because(error))?;
    let own = all.iter().filter(|other| other.names.iter().any(|name| name.starts_with(&prefix)));
    Ok(own.map(|other| other.id.clone()).collect())
}

/// Unmounts the image volumes of a container that has ended.
pub(crate) fn unmount(store: &Store, container: &str) -> Result<()> {
    for id in of(store, container)? {
        match store.unmount_all(&id) {
            Err(error) if !error.is_unknown() => {
                return Err(Error::failed(format!("image volume of container {container}")).because(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Removes the image volumes of a container; needs only its ID.
pub(crate) fn remove(store: &Store, container: &str) -> Result<()> {
    for id in of(store, container)? {
        store.delete_container(&id).map_err(|error| {
            Error::failed(format!("image volume of container {container}")).because(error)
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_volumes_of_a_container_are_found_by_its_id() {
        let id = "c".repeat(64);
        assert!(name(&id, 12).starts_with(&prefix(&id)));
        assert!(!name(&id, 12).starts_with(&prefix(&"d".repeat(64))));
    }
}
