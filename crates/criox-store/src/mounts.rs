//! Mounted layers and their counts, which all users of a store share through a file in the run root.

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use criox_sys::lock::{LockFile, LockGuard, LockKind};
use criox_sys::mount;

use crate::error::Error;
use crate::jsonfile;
use crate::overlay::Overlay;
use crate::record::{Container, Mount};
use crate::store::Store;

/// `mountpoints.json` and its lock.
#[derive(Debug)]
pub(crate) struct Mounts {
    lock: LockFile,
    path: PathBuf,
    patience: Duration,
}

impl Mounts {
    pub(crate) fn new(dir: &Path, patience: Duration) -> Self {
        Self {
            lock: LockFile::new(dir.join("mountpoints.lock")),
            path: dir.join("mountpoints.json"),
            patience,
        }
    }

    fn lock(&self) -> Result<(LockGuard<'_>, Vec<Mount>), Error> {
        let guard = self.lock.lock(LockKind::Exclusive, self.patience)?;
        // It lives on a tmpfs and only counts: a torn one is as good as none.
        let list = match jsonfile::load(&self.path) {
            Err(Error::Json { .. }) => Vec::new(),
            result => result?,
        };
        Ok((guard, list))
    }

    fn save(&self, guard: &LockGuard<'_>, mut list: Vec<Mount>) -> Result<(), Error> {
        list.retain(|mount| mount.count > 0 && !mount.path.is_empty());
        guard.record_write()?;
        jsonfile::save(&self.path, &list, false)
    }

    /// Unmounts what mounts of layers with other owners that were cut short have left: nobody mounts meanwhile.
    pub(crate) fn unmount_mapped(&self, overlay: &Overlay, layer: &str) -> Result<(), Error> {
        let _guard = self.lock()?;
        overlay.unmount_mapped(layer)
    }

    /// Unmounts `layer` and drops its entry, whatever the count.
    pub(crate) fn forget(&self, layer: &str, merged: &Path) -> Result<(), Error> {
        let (guard, mut list) = self.lock()?;
        unmount_wholly(merged)?;
        if list.iter().any(|mount| mount.id == layer) {
            list.retain(|mount| mount.id != layer);
            self.save(&guard, list)?;
        }
        Ok(())
    }
}

/// Unmounts until nothing is mounted there any more; bounded, for something else might mount again and again.
fn unmount_wholly(merged: &Path) -> Result<(), Error> {
    for _ in 0..16 {
        if !mount::is_mount_point(merged)? {
            return Ok(());
        }
        mount::unmount(merged, true)?;
    }
    Err(Error::Corrupt {
        what: merged.display().to_string(),
        why: "it stays mounted after 16 unmounts".into(),
    })
}

/// Something is mounted below.
const EBUSY: i32 = 16;

impl Store {
    pub(crate) fn mount_layer(
        &self,
        container: &Container,
        owners: Option<BorrowedFd<'_>>,
    ) -> Result<PathBuf, Error> {
        let shared = &*self.shared;
        let _graph = self.hold_home()?;
        let (_layers_guard, layers) = shared.layers.read()?;
        let layer = layers.get(&container.layer).filter(|layer| !layer.is_incomplete());
        let layer = layer.ok_or_else(|| Error::LayerUnknown(container.layer.clone()))?;
        let merged = shared.overlay.merged_dir(&layer.id);
        let (guard, mut list) = shared.mounts.lock()?;
        if !mount::is_mount_point(&merged)? {
            if owners.is_none() && container.is_mapped() {
                return Err(Error::MappingsNeeded(container.id.clone()));
            }
            let label = container.mount_label();
            let options = self.mount_words(container, label);
            shared.overlay.mount(&layer.id, &options, owners)?;
        }
        let path = merged.display().to_string();
        match list.iter_mut().find(|mount| mount.id == layer.id) {
            Some(mount) => {
                mount.count = mount.count.max(0) + 1;
                mount.path = path;
            }
            None => list.push(Mount { id: layer.id.clone(), path, count: 1 }),
        }
        shared.mounts.save(&guard, list)?;
        Ok(merged)
    }

    pub(crate) fn unmount_layer(&self, layer: &str, force: bool) -> Result<bool, Error> {
        let shared = &*self.shared;
        let (_layers_guard, _layers) = shared.layers.read()?;
        let (guard, mut list) = shared.mounts.lock()?;
        if let Some(mount) = list.iter_mut().find(|mount| mount.id == layer)
            && mount.count > 1
            && !force
        {
            mount.count -= 1;
            shared.mounts.save(&guard, list)?;
            return Ok(false);
        }
        shared.overlay.unmount_mapped(layer)?;
        unmount_wholly(&shared.overlay.merged_dir(layer))?;
        if list.iter().any(|mount| mount.id == layer) {
            list.retain(|mount| mount.id != layer);
            shared.mounts.save(&guard, list)?;
        }
        Ok(true)
    }

    /// The option words of a container's mount.
    fn mount_words(&self, container: &Container, label: &str) -> Vec<String> {
        let options = &self.shared.options;
        let mut words = container.mount_options();
        if words.is_empty() {
            words.clone_from(&options.mount_options);
        } else if let Some(metacopy) = options.mount_options.iter().find(|word| *word == "metacopy=on")
            && !words.contains(metacopy)
        {
            words.push(metacopy.clone());
        }
        let volatile = "volatile".to_owned();
        if container.is_volatile() && !options.disable_volatile && !words.contains(&volatile) {
            words.push(volatile);
        }
        if !label.is_empty() {
            words.push(format!("context=\"{label}\""));
        }
        words
    }

    /// Gives back the bind of the driver's home, for a daemon that ends in order. While containers are mounted below
    /// it, it stays, as with the peers.
    ///
    /// # Errors
    /// The lock is held for too long, or unmounting failed for another reason than use.
    pub fn close(&self) -> Result<(), Error> {
        let shared = &*self.shared;
        if shared.options.skip_mount_home {
            return Ok(());
        }
        let _alone = shared.graph_lock.lock(LockKind::Exclusive, shared.options.lock_patience)?;
        if !mount::is_mount_point(shared.overlay.home())? {
            return Ok(());
        }
        match mount::unmount(shared.overlay.home(), false) {
            Err(error) if error.errno() != Some(EBUSY) => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Holds the peers' driver lock, shared, with the driver's home bound onto itself: a peer that shuts down unmounts
    /// the home, and one that starts would bind it over our mounts and so hide them.
    pub(crate) fn hold_home(&self) -> Result<LockGuard<'_>, Error> {
        let shared = &*self.shared;
        for _ in 0..8 {
            let guard = shared.graph_lock.lock(LockKind::Shared, shared.options.lock_patience)?;
            if shared.options.skip_mount_home || mount::is_mount_point(shared.overlay.home())? {
                return Ok(guard);
            }
            drop(guard);
            let _alone = shared.graph_lock.lock(LockKind::Exclusive, shared.options.lock_patience)?;
            shared.overlay.bind_home()?;
        }
        let home = shared.overlay.home().display().to_string();
        Err(Error::Corrupt { what: home, why: "something keeps unmounting it".into() })
    }
}
