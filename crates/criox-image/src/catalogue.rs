//! The list of images, parsed once: rebuilt when the store's records change, and then only for what is new.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use criox_store::{Digest, Image, Store};

use crate::images::ImageOptions;
use crate::info::{Documents, ImageInfo};

#[derive(Default)]
pub(crate) struct Catalogue(Mutex<State>);

#[derive(Default)]
struct State {
    /// The records that `list` was made from; the store gives the same allocation while nothing changed.
    records: Option<Arc<[Arc<Image>]>>,
    list: Option<Arc<[Arc<ImageInfo>]>>,
    /// By ID and manifest.
    documents: HashMap<(String, Option<Digest>), Documents>,
}

impl Catalogue {
    /// Makes the next list from scratch, but for the documents, which don't depend on the configuration.
    pub(crate) fn forget(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).list = None;
    }

    pub(crate) fn list(
        &self,
        store: &Store,
        options: &ImageOptions,
    ) -> Result<Arc<[Arc<ImageInfo>]>, criox_store::Error> {
        let records = store.images()?;
        let known = {
            let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if let (Some(list), Some(of)) = (&state.list, &state.records)
                && Arc::ptr_eq(of, &records)
            {
                return Ok(list.clone());
            }
            state.documents.clone()
        };
        // Reading happens outside the lock. Two callers may do it at once, with the same result.
        let mut documents = HashMap::with_capacity(records.len());
        let mut list = Vec::with_capacity(records.len());
        for image in records.iter() {
            let key = (image.id.clone(), image.digest.clone());
            let Some(found) = known.get(&key).cloned().or_else(|| Documents::read(store, image)) else {
                continue;
            };
            let size = store.image_size(&image.id).unwrap_or(0);
            list.push(Arc::new(ImageInfo::new(image, &found, size, options)));
            documents.insert(key, found);
        }
        let list: Arc<[Arc<ImageInfo>]> = list.into();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) =
            State { records: Some(records), list: Some(list.clone()), documents };
        Ok(list)
    }
}
