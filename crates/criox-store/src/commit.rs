//! A staged layer becomes a layer of the store.
//!
//! Order, for a crash or power cut at any point: the contents are synced while they are still staged; the record is
//! written with its incomplete mark, synced; the directories are renamed into place and synced; the record loses its
//! mark, synced. Whoever opens the store meanwhile removes a layer that has the mark.

use std::sync::Arc;

use criox_sys::durable::{self, PathError};
use criox_sys::failpoint;
use serde_json::Map;
use sha2::Digest as _;

use crate::digest::Digest;
use crate::error::Error;
use crate::layers::Trash;
use crate::overlay::Staged;
use crate::record::{Compression, Layer, Place};
use crate::stage::{LayerStage, Unpacked};
use crate::store::{Store, check_id};
use crate::time::Timestamp;

/// What a new layer's record says beside what unpacking found.
#[derive(Debug, Clone, Default)]
pub struct LayerDraft {
    /// The ID; [`layer_id`] of parent and diff ID if none, as pulled images have it.
    pub id: Option<String>,
    /// The layer below.
    pub parent: Option<String>,
    /// Digest of the blob as it came.
    pub compressed_digest: Option<Digest>,
    /// Its size in bytes.
    pub compressed_size: Option<u64>,
    /// How it was compressed.
    pub compression: Compression,
    /// Refuse the layer if its content has another diff ID.
    pub diff_id: Option<Digest>,
}

/// The ID that image tools give a layer by its place: of a base layer the hex of its diff ID, else the SHA-256 of the
/// parent's ID, a plus sign and that hex. Not the OCI chain ID.
pub fn layer_id(parent: Option<&str>, diff_id: &Digest) -> String {
    match parent {
        None => diff_id.hex().to_owned(),
        Some(parent) => crate::digest::hex(&sha2::Sha256::digest(format!("{parent}+{}", diff_id.hex()))),
    }
}

impl Store {
    /// Makes a layer of what was unpacked, durably; or gives the layer that has the ID already.
    ///
    /// # Errors
    /// [`Error::DiffIdMismatch`]; [`Error::LayerUnknown`] when the parent is missing; [`Error::IdInUse`] when the ID
    /// belongs to other content; what syncing and writing answered (nothing is left then).
    pub fn commit_layer(&self, stage: LayerStage, draft: LayerDraft) -> Result<Arc<Layer>, Error> {
        let unpacked = stage
            .unpacked
            .clone()
            .ok_or(Error::Invalid { what: "stage", value: "nothing unpacked".into() })?;
        if let Some(expected) = draft.diff_id.as_ref().filter(|expected| **expected != unpacked.diff_id) {
            return Err(Error::DiffIdMismatch {
                expected: expected.to_string(),
                found: unpacked.diff_id.to_string(),
            });
        }
        let id = draft.id.clone().unwrap_or_else(|| layer_id(draft.parent.as_deref(), &unpacked.diff_id));
        check_id("layer ID", &id)?;
        if let Some(known) = self.known_layer(&id, &draft, &unpacked)? {
            return Ok(known);
        }
        durable::sync_filesystem(stage.tar_split())?;
        // Before the writer, so that it is emptied after the lock is free.
        let mut trash = Trash::default();
        let mut layers = self.shared.layers.write()?;
        self.remove_half_made(&mut layers, &id, &mut trash)?;
        if layers.snapshot.get(&id).is_some() {
            drop(layers);
            if let Some(known) = self.known_layer(&id, &draft, &unpacked)? {
                return Ok(known);
            }
            return Err(Error::LayerUnknown(id));
        }
        let record = record(&id, &draft, &unpacked);
        self.begin_layer(&mut layers, &record)?;
        failpoint::hit("layer.begun")?;
        match self.place_content(&stage, &record, unpacked.keep_root).and_then(|()| layers.put(record)) {
            Ok(layer) => {
                self.remember_inodes(&id, unpacked.entries);
                Ok(layer)
            }
            Err(e) => {
                self.abandon_layer(&mut layers, &id);
                Err(e)
            }
        }
    }

    fn known_layer(
        &self,
        id: &str,
        draft: &LayerDraft,
        unpacked: &Unpacked,
    ) -> Result<Option<Arc<Layer>>, Error> {
        let known = match self.layer(id) {
            Ok(known) => known,
            Err(Error::LayerUnknown(_)) => return Ok(None),
            Err(e) => return Err(e),
        };
        let same =
            known.diff_id.as_ref() == Some(&unpacked.diff_id) && known.parent() == draft.parent.as_deref();
        if same {
            Ok(Some(known))
        } else {
            Err(Error::IdInUse { id: id.into(), why: "a layer with other content has it" })
        }
    }

    fn place_content(&self, stage: &LayerStage, record: &Layer, keep_root: bool) -> Result<(), Error> {
        let tar_split = self.tar_split_path(&record.id);
        std::fs::rename(stage.tar_split(), &tar_split)
            .map_err(|e| PathError::new("rename into place", &tar_split, e))?;
        let content = stage.content();
        let staged = Staged { dir: &content, keep_root };
        failpoint::hit("layer.split-placed")?;
        self.shared.overlay.create(&record.id, record.parent(), Some(staged))?;
        failpoint::hit("layer.placed")?;
        durable::sync_dir(&self.layers_dir())?;
        Ok(())
    }
}

fn record(id: &str, draft: &LayerDraft, unpacked: &Unpacked) -> Layer {
    let bytes = |size: u64| i64::try_from(size).unwrap_or(i64::MAX);
    Layer {
        id: id.into(),
        names: Vec::new(),
        parent: draft.parent.clone().unwrap_or_default(),
        created: Timestamp::now().to_string(),
        compressed_digest: draft.compressed_digest.clone().or_else(|| Some(unpacked.diff_id.clone())),
        compressed_size: bytes(draft.compressed_size.unwrap_or(unpacked.size)),
        diff_id: Some(unpacked.diff_id.clone()),
        diff_size: bytes(unpacked.size),
        compression: draft.compression.number(),
        uids: unpacked.uids.clone(),
        gids: unpacked.gids.clone(),
        flags: Map::new(),
        big_data_names: Vec::new(),
        extra: Map::new(),
        place: Place::Durable,
    }
}
