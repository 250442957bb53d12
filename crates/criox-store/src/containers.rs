//! Containers: records, their writable layers, directories and mounts.

use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;

use criox_sys::durable;
use criox_sys::failpoint;
use criox_sys::idmap::IdRange;
use serde_json::{Map, Value};

use crate::error::Error;
use crate::images::find;
use crate::layers::Trash;
use crate::record::{Container, Layer, Place, VOLATILE};
use crate::store::{Store, check_id, make_dir, random_id};
use crate::time::Timestamp;

/// A container to be recorded.
#[derive(Debug, Clone, Default)]
pub struct ContainerDraft {
    /// 64 hex digits.
    pub id: String,
    /// Unique names; the first also names the layer, with `-layer` behind it.
    pub names: Vec<String>,
    /// The image (ID or name) whose top layer is below the container's; none for an empty root.
    pub image_id: Option<String>,
    /// The creator's text.
    pub metadata: String,
    /// SELinux label of its mounts, or empty.
    pub mount_label: String,
    /// SELinux label of its process, or empty.
    pub process_label: String,
    /// Overlay options instead of the store's; empty for the store's.
    pub mount_options: Vec<String>,
    /// Users of the container's user namespace, none without one: the files of the image then belong to those.
    pub users: Vec<IdRange>,
    /// Groups of the namespace.
    pub groups: Vec<IdRange>,
    /// Records and layer needn't survive a power cut, and nothing of the root file system is synced.
    pub volatile: bool,
}

impl Store {
    /// All containers, as of now or of a moment ago: waits for nobody.
    ///
    /// # Errors
    /// What loading records answered, when none are in memory yet.
    pub fn containers(&self) -> Result<Arc<[Arc<Container>]>, Error> {
        Ok(self.shared.containers.glance()?.list.clone())
    }

    /// The container with this ID or name; waits for nobody.
    ///
    /// # Errors
    /// [`Error::ContainerUnknown`].
    pub fn container(&self, id_or_name: &str) -> Result<Arc<Container>, Error> {
        let snapshot = self.shared.containers.glance()?;
        let found = snapshot.get(id_or_name).or_else(|| snapshot.by_name(id_or_name));
        found.cloned().ok_or_else(|| Error::ContainerUnknown(id_or_name.into()))
    }

    /// Makes a container: its writable layer on top of the image's, its directories, its record.
    ///
    /// # Errors
    /// [`Error::ImageUnknown`]; [`Error::LayerUnknown`] when the image lacks its layer; [`Error::NameInUse`],
    /// [`Error::IdInUse`]; what writing answered (nothing is left then).
    pub fn create_container(&self, draft: ContainerDraft) -> Result<Arc<Container>, Error> {
        check_id("container ID", &draft.id)?;
        let mut layers = self.shared.layers.write()?;
        let (_images_guard, images) = self.shared.images.read()?;
        let image = draft.image_id.as_deref().map(|image| find(&images, image)).transpose()?;
        let parent = image.as_ref().and_then(|image| image.top_layer()).map(str::to_owned);
        let mut containers = self.shared.containers.write()?;
        if containers.snapshot.get(&draft.id).is_some() {
            return Err(Error::IdInUse { id: draft.id, why: "there is a container with this ID" });
        }
        for name in &draft.names {
            if let Some(owner) = containers.snapshot.by_name(name) {
                return Err(Error::NameInUse { name: name.clone(), owner: owner.id.clone() });
            }
        }
        let place = if draft.volatile { Place::Volatile } else { Place::Durable };
        let layer = container_layer(&draft, parent.as_deref(), place);
        self.make_layer(&mut layers, layer.clone())?;
        let (users, groups) = (draft.users.clone(), draft.groups.clone());
        let container = record(draft, image.map(|image| image.id.clone()), &layer.id, place);
        let result = (|| {
            if !users.is_empty() {
                self.shared.overlay.map_root(&layer.id, &users, &groups)?;
            }
            make_dir(&self.container_dir_of(&container.id))?;
            make_dir(&self.container_run_dir_of(&container.id))?;
            failpoint::hit("store.container-layered")?;
            containers.put(container.clone())
        })();
        drop(containers);
        if result.is_err() {
            let mut trash = Trash::default();
            // The first error is the one to tell; what stays is swept at the next open.
            let _ = self.remove_layers(&mut layers, std::slice::from_ref(&layer.id), &mut trash);
            let _ = self.remove_container_dirs(&container.id);
            drop(layers);
            trash.empty();
        }
        result
    }

    /// Mounts the container's root file system, or counts one more user of the mount; its path.
    ///
    /// # Errors
    /// [`Error::ContainerUnknown`], [`Error::LayerUnknown`]; what mounting answered.
    /// [`Error::MappingsNeeded`] for one with a user namespace that isn't mounted yet: see [`Store::mount_mapped`].
    pub fn mount(&self, id: &str) -> Result<PathBuf, Error> {
        let container = self.container(id)?;
        self.mount_layer(&container, None)
    }

    /// As [`Store::mount`], for a container that was made with mappings; `owners` is a user namespace that has them. The
    /// image's layers are mounted idmapped below the container's own, which is how the peers do it.
    ///
    /// # Errors
    /// As [`Store::mount`]; the graph root's file system can't be idmapped ([`Store::probe_idmap`]).
    pub fn mount_mapped(&self, id: &str, owners: BorrowedFd<'_>) -> Result<PathBuf, Error> {
        let container = self.container(id)?;
        self.mount_layer(&container, Some(owners))
    }

    /// Gives back one mount of the container's root file system; the last one unmounts it. Whether it is unmounted now.
    ///
    /// # Errors
    /// [`Error::ContainerUnknown`]; what unmounting answered.
    pub fn unmount(&self, id: &str) -> Result<bool, Error> {
        let container = self.container(id)?;
        self.unmount_layer(&container.layer, false)
    }

    /// Unmounts the container's root file system whatever the count.
    ///
    /// # Errors
    /// As [`Store::unmount`].
    pub fn unmount_all(&self, id: &str) -> Result<(), Error> {
        let container = self.container(id)?;
        self.unmount_layer(&container.layer, true).map(|_| ())
    }

    /// Removes a container: unmounts it, removes its record, then its layer and directories. One that isn't there is
    /// success (`false`).
    ///
    /// # Errors
    /// What unmounting, removing or writing answered; the call can be repeated.
    pub fn delete_container(&self, id: &str) -> Result<bool, Error> {
        let mut trash = Trash::default();
        {
            let mut layers = self.shared.layers.write()?;
            let mut containers = self.shared.containers.write()?;
            let Some(container) =
                containers.snapshot.get(id).or_else(|| containers.snapshot.by_name(id)).cloned()
            else {
                return Ok(false);
            };
            self.shared.mounts.forget(&container.layer, &self.shared.overlay.merged_dir(&container.layer))?;
            // The record before the layer: what a crash leaves is then a layer that nobody needs, and opening sweeps it. A
            // record that lacks its layer is damage in the peers' eyes.
            containers.drop_record(&container.id)?;
            if layers.snapshot.get(&container.layer).is_some()
                && let Err(error) =
                    self.remove_layers(&mut layers, std::slice::from_ref(&container.layer), &mut trash)
            {
                // So that the call can be repeated; if this fails too, the first error is the one to tell.
                let _ = containers.put(Container::clone(&container));
                return Err(error);
            }
            drop(layers);
            self.remove_container_dirs(&container.id)?;
        }
        trash.empty();
        Ok(true)
    }

    /// Replaces the creator's text of a container's record.
    ///
    /// # Errors
    /// [`Error::ContainerUnknown`], what writing answered.
    pub fn set_container_metadata(&self, id: &str, metadata: &str) -> Result<(), Error> {
        let mut containers = self.shared.containers.write()?;
        let known = containers.snapshot.get(id).ok_or_else(|| Error::ContainerUnknown(id.into()))?;
        let mut changed = Container::clone(known);
        changed.metadata = metadata.into();
        containers.put(changed).map(|_| ())
    }

    /// The container's directory in the graph root (`userdata`), kept over reboots.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an ID that is none.
    pub fn container_dir(&self, id: &str) -> Result<PathBuf, Error> {
        check_id("container ID", id)?;
        Ok(self.container_dir_of(id))
    }

    /// The container's directory in the run root (`userdata`), gone after a reboot.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an ID that is none.
    pub fn container_run_dir(&self, id: &str) -> Result<PathBuf, Error> {
        check_id("container ID", id)?;
        Ok(self.container_run_dir_of(id))
    }

    fn container_dir_of(&self, id: &str) -> PathBuf {
        self.shared.options.graph_root.join("overlay-containers").join(id).join("userdata")
    }

    fn container_run_dir_of(&self, id: &str) -> PathBuf {
        self.shared.options.run_root.join("overlay-containers").join(id).join("userdata")
    }

    pub(crate) fn remove_container_dirs(&self, id: &str) -> Result<(), Error> {
        for root in [&self.shared.options.graph_root, &self.shared.options.run_root] {
            durable::remove_tree(&root.join("overlay-containers").join(id))?;
        }
        Ok(())
    }
}

fn container_layer(draft: &ContainerDraft, parent: Option<&str>, place: Place) -> Layer {
    let mut extra = Map::new();
    if !draft.mount_label.is_empty() {
        extra.insert("mountlabel".into(), draft.mount_label.clone().into());
    }
    Layer {
        id: random_id(),
        names: draft.names.first().map(|name| format!("{name}-layer")).into_iter().collect(),
        parent: parent.unwrap_or_default().into(),
        created: Timestamp::now().to_string(),
        compressed_digest: None,
        compressed_size: 0,
        diff_id: None,
        diff_size: 0,
        compression: 0,
        uids: Vec::new(),
        gids: Vec::new(),
        flags: Map::new(),
        big_data_names: Vec::new(),
        extra,
        place,
    }
}

fn record(draft: ContainerDraft, image: Option<String>, layer: &str, place: Place) -> Container {
    let mut flags = Map::new();
    if draft.volatile {
        flags.insert(VOLATILE.into(), Value::Bool(true));
    }
    flags.insert("MountLabel".into(), draft.mount_label.into());
    flags.insert("ProcessLabel".into(), draft.process_label.into());
    if !draft.mount_options.is_empty() {
        flags.insert("MountOpts".into(), draft.mount_options.into());
    }
    let mut extra = Map::new();
    for (key, ranges) in [("uidmap", &draft.users), ("gidmap", &draft.groups)] {
        if !ranges.is_empty() {
            extra.insert(key.into(), ranges.iter().map(range).collect());
        }
    }
    Container {
        id: draft.id,
        names: draft.names,
        image: image.unwrap_or_default(),
        layer: layer.into(),
        metadata: draft.metadata,
        created: Timestamp::now().to_string(),
        flags,
        extra,
        place,
    }
}

/// As the peers write it.
fn range(range: &IdRange) -> Value {
    serde_json::json!({ "container_id": range.inside, "host_id": range.host, "size": range.length })
}
