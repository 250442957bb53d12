//! Layers: lookup, and the steps by which their directories come and go under the layers' lock.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use criox_sys::durable;

use crate::digest::Digest;
use crate::error::Error;
use crate::record::{INCOMPLETE, Layer, Place};
use crate::stage::StagingDir;
use crate::store::Store;
use crate::table::Writer;

/// Directories that lost their record: out of the driver's home already, to be removed once the locks are free.
#[derive(Debug, Default)]
pub(crate) struct Trash(Vec<StagingDir>);

impl Trash {
    /// Removes everything. What can't be removed now is swept at the next open.
    pub(crate) fn empty(self) {
        drop(self);
    }
}

impl Store {
    /// All layers, as of now or of a moment ago, incomplete ones left out; waits for nobody.
    ///
    /// # Errors
    /// What loading records answered, when none are in memory yet.
    pub fn layers(&self) -> Result<Vec<Arc<Layer>>, Error> {
        let snapshot = self.shared.layers.glance()?;
        Ok(snapshot.list.iter().filter(|layer| !layer.is_incomplete()).cloned().collect())
    }

    /// The layer with this ID; waits for nobody.
    ///
    /// # Errors
    /// [`Error::LayerUnknown`], also for an incomplete one.
    pub fn layer(&self, id: &str) -> Result<Arc<Layer>, Error> {
        let found = self.shared.layers.glance()?.get(id).filter(|layer| !layer.is_incomplete()).cloned();
        found.ok_or_else(|| Error::LayerUnknown(id.into()))
    }

    /// The layers that came as a blob with this digest; waits for nobody.
    ///
    /// # Errors
    /// As [`Store::layers`].
    pub fn layers_by_compressed_digest(&self, digest: &Digest) -> Result<Vec<Arc<Layer>>, Error> {
        let mut layers = self.layers()?;
        layers.retain(|layer| layer.compressed_digest.as_ref() == Some(digest));
        Ok(layers)
    }

    /// The layers whose uncompressed stream has this digest; waits for nobody.
    ///
    /// # Errors
    /// As [`Store::layers`].
    pub fn layers_by_uncompressed_digest(&self, digest: &Digest) -> Result<Vec<Arc<Layer>>, Error> {
        let mut layers = self.layers()?;
        layers.retain(|layer| layer.diff_id.as_ref() == Some(digest));
        Ok(layers)
    }

    pub(crate) fn tar_split_path(&self, layer: &str) -> PathBuf {
        self.layers_dir().join(format!("{layer}.tar-split.gz"))
    }

    /// Makes an empty layer: the record first and marked incomplete, then the directories, then the mark goes.
    pub(crate) fn make_layer(
        &self,
        layers: &mut Writer<'_, Layer>,
        layer: Layer,
    ) -> Result<Arc<Layer>, Error> {
        self.begin_layer(layers, &layer)?;
        let parent = layer.parent().map(str::to_owned);
        match self.shared.overlay.create(&layer.id, parent.as_deref(), None) {
            Ok(()) => layers.put(layer),
            Err(e) => {
                self.abandon_layer(layers, &layer.id);
                Err(e)
            }
        }
    }

    /// Checks parent and names, and writes the record with its incomplete mark.
    pub(crate) fn begin_layer(&self, layers: &mut Writer<'_, Layer>, layer: &Layer) -> Result<(), Error> {
        if let Some(parent) = layer.parent()
            && layers.snapshot.get(parent).is_none_or(|parent| parent.is_incomplete())
        {
            return Err(Error::LayerUnknown(parent.into()));
        }
        for name in &layer.names {
            if let Some(owner) = layers.snapshot.by_name(name) {
                return Err(Error::NameInUse { name: name.clone(), owner: owner.id.clone() });
            }
        }
        let mut begun = layer.clone();
        begun.flags.insert(INCOMPLETE.into(), true.into());
        layers.put(begun).map(|_| ())
    }

    /// Removes a layer that somebody who died was making or removing: whoever is alive has the lock meanwhile.
    pub(crate) fn remove_half_made(
        &self,
        layers: &mut Writer<'_, Layer>,
        id: &str,
        trash: &mut Trash,
    ) -> Result<(), Error> {
        match layers.snapshot.get(id) {
            Some(layer) if layer.is_incomplete() => self.remove_layers(layers, &[id.to_owned()], trash),
            _ => Ok(()),
        }
    }

    /// Undoes a layer that was begun; what fails here is swept at the next open.
    pub(crate) fn abandon_layer(&self, layers: &mut Writer<'_, Layer>, id: &str) {
        let mut trash = Trash::default();
        if let Err(error) = self.remove_layers(layers, &[id.to_owned()], &mut trash) {
            tracing::warn!(
                layer = id,
                error = &error as &dyn std::error::Error,
                "half-made layer stays until the store is opened again"
            );
        }
    }

    /// Removes layers, children before parents: all are marked incomplete, unmounted and moved out of the driver's
    /// home, then their records go. A crash in between leaves incomplete layers, which every opener removes.
    pub(crate) fn remove_layers(
        &self,
        layers: &mut Writer<'_, Layer>,
        ids: &[String],
        trash: &mut Trash,
    ) -> Result<(), Error> {
        let mut records = layers.records();
        let mut places = Vec::new();
        for record in records.iter_mut().filter(|record| ids.contains(&record.id)) {
            places.push(record.place);
            if !record.is_incomplete() {
                let mut marked = Layer::clone(record);
                marked.flags.insert(INCOMPLETE.into(), true.into());
                *record = Arc::new(marked);
            }
        }
        if places.is_empty() {
            return Ok(());
        }
        places.sort_by_key(|place| *place == Place::Volatile);
        places.dedup();
        layers.save(records, &places)?;
        let mut bin = StagingDir::new(&self.shared.overlay)?;
        for id in ids {
            self.shared.mounts.forget(id, &self.shared.overlay.merged_dir(id))?;
            self.shared.overlay.discard(id, &mut bin)?;
            durable::remove_tree(&self.tar_split_path(id))?;
            durable::remove_tree(&self.layers_dir().join(id))?;
            self.forget_inodes(id);
        }
        trash.0.push(bin);
        let mut records = layers.records();
        records.retain(|record| !ids.contains(&record.id));
        layers.save(records, &places)
    }
}

/// Whether a directory's name could be that of a layer.
pub(crate) fn looks_like_layer(name: &str, path: &Path) -> bool {
    name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit()) && path.is_dir()
}
