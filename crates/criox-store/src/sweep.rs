//! What a crash or a power cut left in the store, found and removed when it is opened.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use criox_sys::durable::{self, PathError};
use criox_sys::lock::HeldLock;
use criox_sys::mount;
use serde::Deserialize;

use crate::error::Error;
use crate::images::chain;
use crate::jsonfile;
use crate::layers::{Trash, looks_like_layer};
use crate::record::{Layer, Place};
use crate::stage::{StagingDir, stage_of};
use crate::store::{OpenReport, Store};
use crate::table::Snapshot;
use crate::time::Timestamp;

/// Everything that opening does beside loading.
pub(crate) fn at_open(store: &Store) -> Result<OpenReport, Error> {
    let mut report = OpenReport::default();
    let shared = &*store.shared;
    report.torn_files.extend(shared.layers.quarantine_torn_volatile()?);
    report.torn_files.extend(shared.containers.quarantine_torn_volatile()?);
    if !shared.options.skip_mount_home {
        drop(store.hold_home()?);
    }
    report.stale_staging = sweep_staging(&shared.overlay.staging(), &mut report.problems)?;
    sweep_layers(store, &mut report)?;
    sweep_containers(store, &mut report)?;
    Ok(report)
}

/// Removes staging areas whose lock is free.
fn sweep_staging(staging: &Path, problems: &mut Vec<String>) -> Result<usize, Error> {
    let mut swept = 0;
    for entry in list(staging)? {
        let path = staging.join(&entry);
        match HeldLock::try_new(&path.join("staging.lock")) {
            Ok(Some(_lock)) => match crate::stage::remove_area(&path) {
                Ok(()) => swept += 1,
                Err(error) => problems.push(told(&error)),
            },
            Ok(None) => {}
            Err(error) => problems.push(told(&error)),
        }
    }
    Ok(swept)
}

/// Removes incomplete layers and those of containers without a record, then directories and tar-splits without a record.
fn sweep_layers(store: &Store, report: &mut OpenReport) -> Result<(), Error> {
    let shared = &*store.shared;
    let mut trash = Trash::default();
    {
        let mut layers = shared.layers.write()?;
        let mut incomplete: Vec<String> =
            layers.snapshot.list.iter().filter(|l| l.is_incomplete()).map(|l| l.id.clone()).collect();
        incomplete.extend(ownerless(store, &layers.snapshot)?);
        if !incomplete.is_empty() {
            store.remove_layers(&mut layers, &incomplete, &mut trash)?;
            report.incomplete_layers = incomplete;
        }
        // A peer in transient mode has these records in the run root.
        let transient = ids(&shared.options.run_root.join("overlay-layers/volatile-layers.json"))?;
        let mut bin = None;
        for name in list(shared.overlay.home())? {
            let path = shared.overlay.home().join(&name);
            if path.join("mapped").is_dir()
                && let Err(error) = shared.mounts.unmount_mapped(&shared.overlay, &name)
            {
                report.problems.push(told(&error));
            }
            if !looks_like_layer(&name, &path)
                || layers.snapshot.get(&name).is_some()
                || transient.contains(&name)
            {
                continue;
            }
            // Something runs there: removing its files would be worse than a directory too many.
            if mount::is_mount_point(&path.join("merged"))? {
                report.problems.push(format!("directory {} has no record, but is mounted", path.display()));
                continue;
            }
            let bin = match &mut bin {
                Some(bin) => bin,
                none => none.insert(StagingDir::new(&shared.overlay)?),
            };
            shared.overlay.discard(&name, bin)?;
            report.orphan_directories.push(name);
        }
        let links = shared.overlay.home().join("l");
        for name in list(&links)? {
            let path = links.join(&name);
            if std::fs::metadata(&path).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound) {
                durable::remove_tree(&path)?;
            }
        }
        sweep_temporaries(&store.layers_dir())?;
        for name in list(&store.layers_dir())? {
            if let Some(stage) = stage_of(&name) {
                if !shared.overlay.staging().join(stage).exists() {
                    durable::remove_tree(&store.layers_dir().join(&name))?;
                }
                continue;
            }
            let id = name.strip_suffix(".tar-split.gz").unwrap_or(&name);
            let ours = id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit());
            if ours && layers.snapshot.get(id).is_none() && !transient.contains(id) {
                durable::remove_tree(&store.layers_dir().join(&name))?;
            }
        }
        drop(layers);
        drop(bin);
    }
    trash.empty();
    Ok(())
}

/// Layers of containers that have no record (yet, or any more): both are written under the layers' lock, which the caller
/// holds. Their names would be in the way of the next container that is called so.
fn ownerless(store: &Store, layers: &Snapshot<Layer>) -> Result<Vec<String>, Error> {
    let (_images_guard, images) = store.shared.images.read()?;
    let (_containers_guard, containers) = store.shared.containers.read()?;
    let mut needed: HashSet<&str> =
        containers.list.iter().map(|container| container.layer.as_str()).collect();
    needed.extend(
        images.list.iter().flat_map(|i| i.mapped_layers.iter().chain([&i.top_layer])).map(String::as_str),
    );
    needed.extend(layers.list.iter().map(|layer| layer.parent.as_str()));
    // Only containers have layers in the volatile file.
    let volatile = layers.list.iter().filter(|l| l.place == Place::Volatile && !l.is_incomplete());
    Ok(volatile.filter(|l| !needed.contains(l.id.as_str())).map(|l| l.id.clone()).collect())
}

/// Removes container records whose layer is gone, and directories of images and containers without a record.
fn sweep_containers(store: &Store, report: &mut OpenReport) -> Result<(), Error> {
    let shared = &*store.shared;
    let (_layers_guard, layers) = shared.layers.read()?;
    {
        let images = shared.images.write()?;
        let dir = shared.options.graph_root.join("overlay-images");
        sweep_temporaries(&dir)?;
        for name in list(&dir)? {
            sweep_temporaries(&dir.join(&name))?;
            if looks_like_layer(&name, &dir.join(&name)) && images.snapshot.get(&name).is_none() {
                durable::remove_tree(&dir.join(&name))?;
                report.orphan_directories.push(name);
            }
        }
    }
    let mut containers = shared.containers.write()?;
    let lost: Vec<String> = containers
        .snapshot
        .list
        .iter()
        .filter(|container| layers.get(&container.layer).is_none())
        .map(|container| container.id.clone())
        .collect();
    for id in &lost {
        store.remove_container_dirs(id)?;
        containers.drop_record(id)?;
    }
    report.lost_containers = lost;
    let transient = ids(&shared.options.run_root.join("overlay-containers/volatile-containers.json"))?;
    for root in [&shared.options.graph_root, &shared.options.run_root] {
        let dir = root.join("overlay-containers");
        sweep_temporaries(&dir)?;
        for name in list(&dir)? {
            sweep_temporaries(&dir.join(&name))?;
            let known = containers.snapshot.get(&name).is_some() || transient.contains(&name);
            if looks_like_layer(&name, &dir.join(&name)) && !known {
                durable::remove_tree(&dir.join(&name))?;
                report.orphan_directories.push(name);
            }
        }
    }
    Ok(())
}

/// Removes what atomic writes, ours and the peers', leave when they are cut short. Whoever calls it holds the lock under
/// which files in `dir` are written.
fn sweep_temporaries(dir: &Path) -> Result<(), Error> {
    if !dir.is_dir() {
        return Ok(());
    }
    for name in list(dir)?.into_iter().filter(|name| name.starts_with(".tmp-")) {
        durable::remove_tree(&dir.join(name))?;
    }
    Ok(())
}

/// The IDs in a list of records.
fn ids(path: &Path) -> Result<HashSet<String>, Error> {
    #[derive(Deserialize)]
    struct Id {
        id: String,
    }
    Ok(jsonfile::load::<Id>(path)?.into_iter().map(|record| record.id).collect())
}

impl Store {
    /// Removes layers that no image, container or other layer needs and that are older than `age`, as pulls that never
    /// ended leave them (a peer's pull may be under way: be generous); the IDs of the removed layers.
    ///
    /// # Errors
    /// What writing answered.
    pub fn remove_unreferenced_layers(&self, age: Duration) -> Result<Vec<String>, Error> {
        let shared = &*self.shared;
        let mut trash = Trash::default();
        let removed = {
            let mut layers = shared.layers.write()?;
            let (_images_guard, images) = shared.images.read()?;
            let (_containers_guard, containers) = shared.containers.read()?;
            let limit = Timestamp::now().seconds.saturating_sub_unsigned(age.as_secs());
            let is_young =
                |layer: &Layer| layer.created.parse::<Timestamp>().is_ok_and(|made| made.seconds > limit);
            let tops =
                images.list.iter().flat_map(|image| image.mapped_layers.iter().chain([&image.top_layer]));
            let own = containers.list.iter().map(|container| &container.layer);
            let young = layers.snapshot.list.iter().filter(|layer| is_young(layer)).map(|layer| &layer.id);
            let needed: HashSet<String> = tops
                .chain(own)
                .chain(young)
                .flat_map(|top| chain(&layers.snapshot, Some(top)))
                .map(|layer| layer.id.clone())
                .collect();
            let unneeded: Vec<String> = layers
                .snapshot
                .list
                .iter()
                .map(|layer| layer.id.clone())
                .filter(|id| !needed.contains(id))
                .collect();
            self.remove_layers(&mut layers, &unneeded, &mut trash)?;
            unneeded
        };
        trash.empty();
        Ok(removed)
    }
}

/// Names in a directory; a missing one has none.
fn list(dir: &Path) -> Result<Vec<String>, Error> {
    match std::fs::read_dir(dir) {
        Ok(entries) => {
            Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(PathError::new("list", dir, e).into()),
    }
}

/// An error with its sources, for the report.
fn told(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}
