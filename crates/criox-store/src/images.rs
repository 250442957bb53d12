//! Images: records, names, big data, removal.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use criox_sys::durable;
use criox_sys::durable::PathError;
use criox_sys::failpoint;

use crate::bigdata;
use crate::digest::Digest;
use crate::error::Error;
use crate::layers::Trash;
use crate::record::{Image, Layer, Place};
use crate::store::{Store, check_id, make_dir};
use crate::table::{Snapshot, Writer};
use crate::time::Timestamp;

/// One piece of an image's big data.
#[derive(Debug, Clone)]
pub struct BigData {
    /// `manifest`, `manifest-<digest>`, the configuration's digest, `signatures`, `signature-<hex>`.
    pub key: String,
    /// The content.
    pub bytes: Vec<u8>,
    /// Its digest, if it is not plainly SHA-256 of the bytes (a signed schema 1 manifest).
    pub digest: Option<Digest>,
}

/// An image to be recorded; its layers are in the store already.
#[derive(Debug, Clone, Default)]
pub struct ImageDraft {
    /// Hex of the configuration's digest.
    pub id: String,
    /// Full references that the image gets; another image loses them.
    pub names: Vec<String>,
    /// ID of the top layer; none for an image without layers.
    pub top_layer: Option<String>,
    /// Digest that the image is known by (the manifest's).
    pub digest: Option<Digest>,
    /// From the image's configuration.
    pub created: Option<Timestamp>,
    /// JSON text with the sizes of signatures, or empty.
    pub metadata: String,
    /// Written in this order. A key that the image has already is replaced.
    pub big_data: Vec<BigData>,
}

impl Store {
    /// All images, as of now or of a moment ago: waits for nobody.
    ///
    /// # Errors
    /// What loading records answered, when none are in memory yet.
    pub fn images(&self) -> Result<Arc<[Arc<Image>]>, Error> {
        Ok(self.shared.images.glance()?.list.clone())
    }

    /// The image with this ID, else with this name, else the only one with this ID prefix; waits for nobody.
    ///
    /// # Errors
    /// [`Error::ImageUnknown`], [`Error::ImageAmbiguous`].
    pub fn image(&self, id_or_name: &str) -> Result<Arc<Image>, Error> {
        find(&*self.shared.images.glance()?, id_or_name)
    }

    /// The images that have `digest` among their own and their manifests' digests; waits for nobody.
    ///
    /// # Errors
    /// What loading records answered, when none are in memory yet.
    pub fn images_by_digest(&self, digest: &Digest) -> Result<Vec<Arc<Image>>, Error> {
        let snapshot = self.shared.images.glance()?;
        Ok(snapshot.list.iter().filter(|image| image.digests().contains(&digest)).cloned().collect())
    }

    /// One piece of big data.
    ///
    /// # Errors
    /// [`Error::ImageUnknown`], [`Error::BigDataUnknown`]; [`Error::Corrupt`] when it isn't what was recorded.
    pub fn image_big_data(&self, id_or_name: &str, key: &str) -> Result<Vec<u8>, Error> {
        let image = self.image(id_or_name)?;
        let path = bigdata::path(&self.image_dir(&image.id), key)?;
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(Error::BigDataUnknown { owner: image.id.clone(), key: key.into() });
            }
            Err(e) => return Err(PathError::new("read", path, e).into()),
        };
        let size = image.big_data_sizes.get(key);
        if size.is_some_and(|size| u64::try_from(*size).ok() != Some(bytes.len() as u64)) {
            return Err(Error::Corrupt {
                what: format!("data {key:?} of image {}", image.id),
                why: "wrong size".into(),
            });
        }
        Ok(bytes)
    }

    /// Bytes of the image: its layers' contents and its data.
    ///
    /// # Errors
    /// [`Error::ImageUnknown`].
    pub fn image_size(&self, id_or_name: &str) -> Result<u64, Error> {
        let image = self.image(id_or_name)?;
        let layers = self.shared.layers.glance()?;
        let mut size: u64 = image.big_data_sizes.values().map(|size| u64::try_from(*size).unwrap_or(0)).sum();
        for layer in chain(&layers, image.top_layer()) {
            size += layer.size();
        }
        Ok(size)
    }

    /// Records an image, or completes the one that has its ID: big data first, synced, then the record.
    ///
    /// # Errors
    /// [`Error::LayerUnknown`] when the top layer is missing; [`Error::IdInUse`] when the image exists with another
    /// top layer; what writing answered (a new image is then not there).
    pub fn put_image(&self, draft: ImageDraft) -> Result<Arc<Image>, Error> {
        check_id("image ID", &draft.id)?;
        let (_layers_guard, layers) = self.shared.layers.read()?;
        let top = draft.top_layer.clone().unwrap_or_default();
        if !top.is_empty() && layers.get(&top).is_none_or(|layer| layer.is_incomplete()) {
            return Err(Error::LayerUnknown(top));
        }
        let mut images = self.shared.images.write()?;
        let mut image = match images.snapshot.get(&draft.id) {
            Some(known) if known.top_layer != top => {
                return Err(Error::IdInUse {
                    id: draft.id,
                    why: "the image is there with another top layer",
                });
            }
            Some(known) => Image::clone(known),
            None => fresh(&draft, top),
        };
        if !draft.metadata.is_empty() {
            image.metadata.clone_from(&draft.metadata);
        }
        self.write_big_data(&mut image, &draft.big_data)?;
        failpoint::hit("image.data-written")?;
        image.digest =
            draft.digest.or(image.digest).or_else(|| image.big_data_digests.get("manifest").cloned());
        add(&mut image, &draft.names);
        commit_names(&mut images, image)
    }

    /// Writes the files, syncs their directory once, and notes them in `image`.
    fn write_big_data(&self, image: &mut Image, items: &[BigData]) -> Result<(), Error> {
        let dir = self.image_dir(&image.id);
        make_dir(&dir)?;
        for item in items {
            let path = bigdata::path(&dir, &item.key)?;
            durable::replace(&path, 0o600, true, |file| io::Write::write_all(file, &item.bytes))?;
            let digest = item.digest.clone().unwrap_or_else(|| Digest::sha256(&item.bytes));
            let size = i64::try_from(item.bytes.len()).unwrap_or(i64::MAX);
            image.big_data_sizes.insert(item.key.clone(), size);
            image.big_data_digests.insert(item.key.clone(), digest);
            if !image.big_data_names.contains(&item.key) {
                image.big_data_names.push(item.key.clone());
            }
        }
        durable::sync_dir(&dir)?;
        durable::sync_dir(&self.shared.options.graph_root.join("overlay-images"))?;
        Ok(())
    }

    /// Gives the image more names, in front of those it has; another image loses them.
    ///
    /// # Errors
    /// [`Error::ImageUnknown`], what writing answered.
    pub fn add_names(&self, id: &str, names: &[String]) -> Result<Arc<Image>, Error> {
        self.change_names(id, |image| add(image, names))
    }

    /// Takes names from the image; those it hasn't are ignored.
    ///
    /// # Errors
    /// [`Error::ImageUnknown`], what writing answered.
    pub fn remove_names(&self, id: &str, names: &[String]) -> Result<Arc<Image>, Error> {
        self.change_names(id, |image| image.names.retain(|name| !names.contains(name)))
    }

    /// Makes `names` the image's names; another image loses them.
    ///
    /// # Errors
    /// [`Error::ImageUnknown`], what writing answered.
    pub fn set_names(&self, id: &str, names: &[String]) -> Result<Arc<Image>, Error> {
        self.change_names(id, |image| {
            image.names.clear();
            add(image, names);
        })
    }

    fn change_names(&self, id: &str, change: impl FnOnce(&mut Image)) -> Result<Arc<Image>, Error> {
        let mut images = self.shared.images.write()?;
        let mut image = Image::clone(&*find(&images.snapshot, id)?);
        change(&mut image);
        commit_names(&mut images, image)
    }

    /// Removes an image and those of its layers that nothing else needs; the IDs of the removed layers, top first.
    ///
    /// # Errors
    /// [`Error::ImageUnknown`]; [`Error::ImageInUse`] while a container was made from it; what writing answered.
    pub fn delete_image(&self, id: &str) -> Result<Vec<String>, Error> {
        let mut trash = Trash::default();
        let removed = {
            let mut layers = self.shared.layers.write()?;
            let mut images = self.shared.images.write()?;
            let (_containers_guard, containers) = self.shared.containers.read()?;
            let image = find(&images.snapshot, id)?;
            if let Some(user) = containers.list.iter().find(|container| container.image == image.id) {
                return Err(Error::ImageInUse { image: image.id.clone(), container: user.id.clone() });
            }
            // The record first: a crash then leaves layers that nothing needs, not an image that lacks some.
            images.drop_record(&image.id)?;
            failpoint::hit("image.record-dropped")?;
            let unneeded = unneeded_layers(&layers.snapshot, &images.snapshot, &image, |layer| {
                containers.list.iter().any(|container| container.layer == layer)
            });
            durable::remove_tree(&self.image_dir(&image.id))?;
            self.remove_layers(&mut layers, &unneeded, &mut trash)?;
            unneeded
        };
        // Contents go after the locks are free.
        trash.empty();
        Ok(removed)
    }

    pub(crate) fn image_dir(&self, id: &str) -> PathBuf {
        self.shared.options.graph_root.join("overlay-images").join(id)
    }
}

pub(crate) fn find(snapshot: &Snapshot<Image>, id_or_name: &str) -> Result<Arc<Image>, Error> {
    if let Some(image) = snapshot.get(id_or_name).or_else(|| snapshot.by_name(id_or_name)) {
        return Ok(image.clone());
    }
    let mut matching =
        snapshot.list.iter().filter(|image| !id_or_name.is_empty() && image.id.starts_with(id_or_name));
    match (matching.next(), matching.next()) {
        (Some(image), None) => Ok(image.clone()),
        (Some(_), Some(_)) => Err(Error::ImageAmbiguous(id_or_name.into())),
        (None, _) => Err(Error::ImageUnknown(id_or_name.into())),
    }
}

fn fresh(draft: &ImageDraft, top_layer: String) -> Image {
    Image {
        id: draft.id.clone(),
        digest: None,
        names: Vec::new(),
        names_history: Vec::new(),
        top_layer,
        mapped_layers: Vec::new(),
        metadata: String::new(),
        big_data_names: Vec::new(),
        big_data_sizes: BTreeMap::new(),
        big_data_digests: BTreeMap::new(),
        created: draft.created.unwrap_or_else(Timestamp::now).to_string(),
        flags: serde_json::Map::new(),
        extra: serde_json::Map::new(),
    }
}

/// New names come first, also in the history.
fn add(image: &mut Image, names: &[String]) {
    for list in [&mut image.names, &mut image.names_history] {
        let mut all: Vec<String> = Vec::with_capacity(names.len() + list.len());
        for name in names.iter().chain(list.iter()) {
            if !all.contains(name) {
                all.push(name.clone());
            }
        }
        *list = all;
    }
}

/// Saves `image`, taking its names from all others.
fn commit_names(images: &mut Writer<'_, Image>, image: Image) -> Result<Arc<Image>, Error> {
    let image = Arc::new(image);
    let mut records = images.records();
    for other in &mut records {
        if other.id != image.id && other.names.iter().any(|name| image.names.contains(name)) {
            let mut changed = Image::clone(other);
            changed.names.retain(|name| !image.names.contains(name));
            *other = Arc::new(changed);
        }
    }
    match records.iter().position(|record| record.id == image.id) {
        Some(at) => records[at] = image.clone(),
        None => records.push(image.clone()),
    }
    images.save(records, &[Place::Durable])?;
    Ok(image)
}

/// The layers from `top` down.
pub(crate) fn chain<'a>(layers: &'a Snapshot<Layer>, top: Option<&str>) -> Vec<&'a Arc<Layer>> {
    let mut chain = Vec::new();
    let mut next = top.and_then(|id| layers.get(id));
    while let Some(layer) = next {
        chain.push(layer);
        // A cycle in a damaged file must not hang us.
        if chain.len() > layers.list.len() {
            break;
        }
        next = layer.parent().and_then(|id| layers.get(id));
    }
    chain
}

/// From the removed image's layers, those that no image, container or other layer needs; top first.
fn unneeded_layers(
    layers: &Snapshot<Layer>,
    images: &Snapshot<Image>,
    removed: &Image,
    is_container: impl Fn(&str) -> bool,
) -> Vec<String> {
    let tops = removed.mapped_layers.iter().map(String::as_str).chain(removed.top_layer());
    let mut unneeded: Vec<String> = Vec::new();
    for top in tops {
        for layer in chain(layers, Some(top)) {
            let used = is_container(&layer.id)
                || images.list.iter().any(|i| i.top_layer == layer.id || i.mapped_layers.contains(&layer.id))
                || layers.list.iter().any(|child| child.parent == layer.id && !unneeded.contains(&child.id));
            if used {
                break;
            }
            if !unneeded.contains(&layer.id) {
                unneeded.push(layer.id.clone());
            }
        }
    }
    unneeded
}
