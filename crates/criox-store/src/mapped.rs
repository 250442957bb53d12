//! Layers whose files belong to others than they say: idmapped mounts below an overlay (Linux 5.19), as the peers have
//! them. Nothing is copied or changed on disk.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use criox_sys::durable::{self, PathError};
use criox_sys::idmap::{self, IdRange};
use criox_sys::mount;

use crate::error::Error;
use crate::overlay::{Overlay, make};
use crate::stage::{StagingDir, TRIAL_MOUNTS};
use crate::store::Store;

/// The driver's home a second time, with other owners, at `<layer>/mapped/0` for as long as an overlay is being mounted
/// over it. The peers have it there, too, and so they clean up after us, and we after them.
///
/// It is read-only: whoever would take it for a part of the layer's directory could not remove the store through it.
#[derive(Debug)]
pub(crate) struct MappedHome<'a> {
    home: &'a Path,
    dir: PathBuf,
}

impl<'a> MappedHome<'a> {
    pub(crate) fn new(overlay: &'a Overlay, layer: &str, owners: BorrowedFd<'_>) -> Result<Self, Error> {
        overlay.unmount_mapped(layer)?;
        let parent = overlay.mapped_dir(layer);
        let dir = parent.join("0");
        make(&parent, 0o700)?;
        make(&dir, 0o700)?;
        let clone = idmap::clone_mapped(overlay.home(), owners, false, true)?;
        mount::attach(clone.as_fd(), &dir)?;
        Ok(Self { home: overlay.home(), dir })
    }

    /// Where a path of the home is found with the other owners.
    pub(crate) fn path_of(&self, path: &Path) -> PathBuf {
        path.strip_prefix(self.home).map_or_else(|_| path.to_owned(), |below| self.dir.join(below))
    }
}

impl Drop for MappedHome<'_> {
    fn drop(&mut self) {
        // What stays is unmounted with the layer, or when the store is opened.
        if mount::unmount(&self.dir, true).is_ok() && std::fs::remove_dir(&self.dir).is_ok() {
            let _ = self.dir.parent().map(std::fs::remove_dir);
        }
    }
}

impl Store {
    /// Whether containers with a user namespace can have their root here, by trying: a user namespace is made, and an
    /// overlay is mounted over an idmapped directory of the graph root.
    ///
    /// # Errors
    /// The step that the kernel or the graph root's file system refuses.
    pub fn probe_idmap(&self) -> Result<(), Error> {
        const HOST: u32 = 65_536;
        let ranges = [IdRange { inside: 0, host: HOST, length: HOST }];
        let owners = idmap::user_namespace(&ranges, &ranges).map_err(Error::UserNamespace)?;
        let stage = StagingDir::new(&self.shared.overlay)?;
        let [lower, upper, work] = ["lower", "upper", "work"].map(|name| stage.path().join(name));
        // By these names they are unmounted if this is cut short.
        let [merged, mapped] = TRIAL_MOUNTS.map(|name| stage.path().join(name));
        for dir in [&lower, &upper, &work, &merged] {
            make(dir, 0o700)?;
        }
        let file = Path::new("file");
        durable::replace(&lower.join(file), 0o600, false, |_| Ok(()))?;
        make(&mapped, 0o700)?;
        let clone = idmap::clone_mapped(&lower, owners.as_fd(), false, true)?;
        mount::attach(clone.as_fd(), &mapped)?;
        let mounted = mount::overlay(std::slice::from_ref(&mapped), Some(&upper), Some(&work), &[], &merged);
        mount::unmount(&mapped, true)?;
        mounted?;
        let owner =
            std::fs::metadata(merged.join(file)).map(|file| std::os::unix::fs::MetadataExt::uid(&file));
        mount::unmount(&merged, true)?;
        match owner.map_err(|e| PathError::new("look at", merged.join(file), e))? {
            HOST => Ok(()),
            other => Err(Error::Corrupt {
                what: "an idmapped layer".into(),
                why: format!("its files belong to user {other}, not {HOST}"),
            }),
        }
    }
}
