//! The store as a whole: where it lies, how it is opened, and what it holds in sum.

use std::collections::HashMap;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use criox_sys::durable::PathError;
use criox_sys::lock::LockFile;

use crate::error::Error;
use crate::mounts::Mounts;
use crate::overlay::Overlay;
use crate::record::{Container, Image, Layer};
use crate::sweep;
use crate::table::Table;

/// Where a store lies and how it mounts (`storage.conf`, `crio.conf`).
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Kept over reboots; `/var/lib/containers/storage` as a rule.
    pub graph_root: PathBuf,
    /// Gone after a reboot; `/run/containers/storage` as a rule.
    pub run_root: PathBuf,
    /// Words of `mountopt`, such as `nodev` and `metacopy=on`.
    pub mount_options: Vec<String>,
    /// Mount volatile containers with syncing all the same.
    pub disable_volatile: bool,
    /// Don't bind the driver's home onto itself (`skip_mount_home`).
    pub skip_mount_home: bool,
    /// How long a call waits for a lock that another process holds.
    pub lock_patience: Duration,
}

impl StoreOptions {
    /// The defaults for these two roots: `nodev`, one minute of patience.
    pub fn new(graph_root: impl Into<PathBuf>, run_root: impl Into<PathBuf>) -> Self {
        Self {
            graph_root: graph_root.into(),
            run_root: run_root.into(),
            mount_options: vec!["nodev".into()],
            disable_volatile: false,
            skip_mount_home: false,
            lock_patience: Duration::from_secs(60),
        }
    }
}

/// What opening found and did.
#[derive(Debug, Clone, Default)]
pub struct OpenReport {
    /// IDs of layers whose making or removal was cut short; they are gone now.
    pub incomplete_layers: Vec<String>,
    /// Directories without a record that lay in the driver's home; they are gone now.
    pub orphan_directories: Vec<String>,
    /// Staging areas whose owner died; they are gone now.
    pub stale_staging: usize,
    /// Container records whose layer is gone; removed.
    pub lost_containers: Vec<String>,
    /// Files that didn't parse, moved aside under the given name.
    pub torn_files: Vec<PathBuf>,
    /// What couldn't be put right.
    pub problems: Vec<String>,
}

/// Space taken by images.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of layer contents and of image data, from the records.
    pub bytes: u64,
    /// Files and directories of the layers whose count is known; [`Store::count_inodes`] completes it.
    pub inodes: u64,
}

/// A containers/storage store. Clones share everything; all calls may be made from any thread.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) shared: Arc<Shared>,
}

/// What the clones share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: StoreOptions,
    pub(crate) overlay: Overlay,
    pub(crate) layers: Table<Layer>,
    pub(crate) images: Table<Image>,
    pub(crate) containers: Table<Container>,
    pub(crate) mounts: Mounts,
    /// The peers' graph driver lock.
    pub(crate) graph_lock: LockFile,
    /// Entries of layers by layer ID, as far as known.
    pub(crate) inodes: Mutex<HashMap<String, u64>>,
}

impl Store {
    /// Opens the store, makes what is missing, and sweeps what a crash or a power cut left behind.
    ///
    /// # Errors
    /// A root that can't be made, a lock that isn't free in time, a synced file that doesn't parse ([`Error::Json`]).
    pub fn open(options: StoreOptions) -> Result<(Self, OpenReport), Error> {
        let graph = options.graph_root.clone();
        let run = options.run_root.clone();
        for root in [&graph, &run] {
            if !root.is_absolute() {
                return Err(Error::Invalid { what: "absolute path", value: root.display().to_string() });
            }
            make_dir(root)?;
        }
        let layers_dir = graph.join("overlay-layers");
        let images_dir = graph.join("overlay-images");
        let containers_dir = graph.join("overlay-containers");
        let mounts_dir = run.join("overlay-layers");
        for dir in [&layers_dir, &images_dir, &containers_dir, &mounts_dir, &run.join("overlay-containers")] {
            make_dir(dir)?;
        }
        let overlay = Overlay::new(graph.join("overlay"));
        overlay.make_home()?;
        let patience = options.lock_patience;
        let store = Self {
            shared: Arc::new(Shared {
                layers: Table::new(&layers_dir, "layers", true, patience),
                images: Table::new(&images_dir, "images", false, patience),
                containers: Table::new(&containers_dir, "containers", true, patience),
                mounts: Mounts::new(&mounts_dir, patience),
                graph_lock: LockFile::new(graph.join("storage.lock")),
                inodes: Mutex::default(),
                overlay,
                options,
            }),
        };
        let report = sweep::at_open(&store)?;
        Ok((store, report))
    }

    /// What the store was opened with.
    pub fn options(&self) -> &StoreOptions {
        &self.shared.options
    }

    /// The graph root.
    pub fn graph_root(&self) -> &Path {
        &self.shared.options.graph_root
    }

    /// Space taken by images, from the records; waits for nobody.
    ///
    /// # Errors
    /// What loading records answered, when none are in memory yet.
    pub fn usage(&self) -> Result<Usage, Error> {
        let containers = self.containers()?;
        let own: std::collections::HashSet<&str> = containers.iter().map(|c| c.layer.as_str()).collect();
        let layers = self.shared.layers.glance()?;
        let known = self.shared.inodes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut usage = Usage::default();
        for layer in layers.list.iter().filter(|layer| !own.contains(layer.id.as_str())) {
            usage.bytes += layer.size();
            usage.inodes += known.get(&layer.id).copied().unwrap_or(0);
        }
        drop(known);
        for image in self.images()?.iter() {
            usage.bytes +=
                image.big_data_sizes.values().map(|size| u64::try_from(*size).unwrap_or(0)).sum::<u64>();
            usage.inodes += image.big_data_sizes.len() as u64;
        }
        Ok(usage)
    }

    /// Counts the entries of layers that were not counted yet, by walking them: to be run in the background.
    ///
    /// # Errors
    /// What loading records answered; a layer that can't be walked is left out.
    pub fn count_inodes(&self) -> Result<(), Error> {
        let containers = self.containers()?;
        let own: std::collections::HashSet<&str> = containers.iter().map(|c| c.layer.as_str()).collect();
        for layer in self.shared.layers.glance()?.list.iter().filter(|layer| !own.contains(layer.id.as_str()))
        {
            let unknown =
                !self.shared.inodes.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&layer.id);
            if unknown && let Some(count) = count_entries(&self.shared.overlay.diff_dir(&layer.id)) {
                self.remember_inodes(&layer.id, count);
            }
        }
        Ok(())
    }

    pub(crate) fn remember_inodes(&self, layer: &str, count: u64) {
        self.shared.inodes.lock().unwrap_or_else(PoisonError::into_inner).insert(layer.to_owned(), count);
    }

    pub(crate) fn forget_inodes(&self, layer: &str) {
        self.shared.inodes.lock().unwrap_or_else(PoisonError::into_inner).remove(layer);
    }

    pub(crate) fn layers_dir(&self) -> PathBuf {
        self.shared.options.graph_root.join("overlay-layers")
    }
}

/// Entries below `dir`, itself included.
fn count_entries(dir: &Path) -> Option<u64> {
    let mut count = 1;
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(dir).ok()?.flatten() {
            count += 1;
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                pending.push(entry.path());
            }
        }
    }
    Some(count)
}

/// Makes a directory with its parents, for its owner alone; one that exists stays as it is.
pub(crate) fn make_dir(path: &Path) -> Result<(), Error> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|e| PathError::new("make directory", path, e).into())
}

/// IDs become file names: lower-case hex digits only, which also keeps them apart from the driver's own names.
pub(crate) fn check_id(what: &'static str, id: &str) -> Result<(), Error> {
    let valid = (1..=128).contains(&id.len()) && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if valid { Ok(()) } else { Err(Error::Invalid { what, value: id.chars().take(160).collect() }) }
}

/// A fresh random ID, as the peers make them: not all decimal digits at its start, for tools take that for a number.
pub(crate) fn random_id() -> String {
    loop {
        let id = crate::digest::hex(&criox_sys::durable::random_bytes::<32>());
        if !id[..12].bytes().all(|b| b.is_ascii_digit()) {
            return id;
        }
    }
}
