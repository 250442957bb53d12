//! A quick look at whether records and files agree.

use std::collections::HashSet;

use crate::bigdata;
use crate::error::Error;
use crate::images::chain;
use crate::store::Store;

/// Something in the store that isn't as its records say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `image`, `layer` or `container`.
    pub kind: &'static str,
    /// Its ID.
    pub id: String,
    /// What is wrong.
    pub text: String,
}

impl Store {
    /// Looks for images that lack layers or data, layers that lack parents or directories, and containers that lack
    /// their layer. Contents aren't read.
    ///
    /// # Errors
    /// What loading records answered.
    pub fn check(&self) -> Result<Vec<Problem>, Error> {
        let mut problems = Vec::new();
        let mut found =
            |kind, id: &str, text: String| problems.push(Problem { kind, id: id.to_owned(), text });
        let (_layers_guard, layers) = self.shared.layers.read()?;
        let (_images_guard, images) = self.shared.images.read()?;
        let (_containers_guard, containers) = self.shared.containers.read()?;
        let own: HashSet<&str> = containers.list.iter().map(|c| c.layer.as_str()).collect();
        for layer in layers.list.iter() {
            if layer.is_incomplete() {
                found("layer", &layer.id, "it is incomplete".into());
            }
            if layer.parent().is_some_and(|parent| layers.get(parent).is_none()) {
                found("layer", &layer.id, format!("its parent {} is missing", layer.parent));
            }
            if !self.shared.overlay.diff_dir(&layer.id).is_dir() {
                found("layer", &layer.id, "its directory is missing".into());
            }
            let split = self.tar_split_path(&layer.id);
            if !own.contains(layer.id.as_str()) && layer.diff_id.is_some() && !split.is_file() {
                found("layer", &layer.id, "its tar-split is missing".into());
            }
        }
        for image in images.list.iter() {
            if image.top_layer().is_some_and(|top| chain(&layers, Some(top)).is_empty()) {
                found("image", &image.id, format!("its layer {} is missing", image.top_layer));
            }
            for (key, size) in &image.big_data_sizes {
                let path = bigdata::path(&self.image_dir(&image.id), key)?;
                let stored = std::fs::metadata(path).ok().map(|meta| meta.len());
                if stored != u64::try_from(*size).ok() {
                    found("image", &image.id, format!("its data {key:?} is missing or has another size"));
                }
            }
        }
        for container in containers.list.iter().filter(|c| layers.get(&c.layer).is_none()) {
            found("container", &container.id, format!("its layer {} is missing", container.layer));
        }
        Ok(problems)
    }
}
