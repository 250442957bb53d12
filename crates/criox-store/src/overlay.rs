//! The overlay driver's directories: one per layer, with the short links by which lower layers are named.

use std::ffi::OsStr;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use criox_sys::durable::{self, PathError};
use criox_sys::idmap::{IdRange, to_host};
use criox_sys::inroot::{self, Root};
use criox_sys::mount;

use crate::error::Error;
use crate::mapped::MappedHome;
use crate::stage::StagingDir;

/// Most layers below a container, as with the peers.
const MAX_DEPTH: usize = 500;

/// The driver's home, `<graph root>/overlay`.
#[derive(Debug)]
pub(crate) struct Overlay {
    home: PathBuf,
}

impl Overlay {
    pub(crate) fn new(home: PathBuf) -> Self {
        Self { home }
    }

    pub(crate) fn home(&self) -> &Path {
        &self.home
    }

    pub(crate) fn staging(&self) -> PathBuf {
        self.home.join("staging")
    }

    pub(crate) fn layer_dir(&self, id: &str) -> PathBuf {
        self.home.join(id)
    }

    pub(crate) fn diff_dir(&self, id: &str) -> PathBuf {
        self.home.join(id).join("diff")
    }

    pub(crate) fn merged_dir(&self, id: &str) -> PathBuf {
        self.home.join(id).join("merged")
    }

    pub(crate) fn make_home(&self) -> Result<(), Error> {
        crate::store::make_dir(&self.home)?;
        make(&self.home.join("l"), 0o755)?;
        make(&self.staging(), 0o700)
    }

    /// Binds the home onto itself, private.
    pub(crate) fn bind_home(&self) -> Result<(), Error> {
        if !mount::is_mount_point(&self.home)? {
            mount::bind(&self.home, &self.home, false, false)?;
        }
        mount::make_private(&self.home, false)?;
        Ok(())
    }

    /// Makes a layer's directories. `staged` is content to become `diff`; its root keeps its own mode and owner if
    /// `Staged::keep_root`, else it gets those of the parent's root.
    pub(crate) fn create(
        &self,
        id: &str,
        parent: Option<&str>,
        staged: Option<Staged<'_>>,
    ) -> Result<(), Error> {
        let dir = self.layer_dir(id);
        // Without a record until now, so what lies there belongs to nobody.
        durable::remove_tree(&dir)?;
        make(&dir, 0o700)?;
        let diff = dir.join("diff");
        let keep_root = staged.as_ref().is_some_and(|staged| staged.keep_root);
        match &staged {
            Some(staged) => rename(staged.dir, &diff)?,
            None => make(&diff, 0o755)?,
        }
        if !keep_root {
            self.copy_root(parent, &diff)?;
        }
        let link = short_name();
        let synced = staged.is_some();
        // The file first: whoever removes a half-made layer finds the link by it.
        write_text(&dir.join("link"), &link, synced)?;
        symlink(&format!("../{id}/diff"), &self.home.join("l").join(&link))?;
        match parent {
            Some(parent) => {
                let lower = self.lower_of_child(parent)?;
                write_text(&dir.join("lower"), &lower, synced)?;
            }
            None => make(&dir.join("empty"), 0o700)?,
        }
        make(&dir.join("work"), 0o700)?;
        make(&dir.join("merged"), 0o700)?;
        if synced {
            // Not the whole filesystem: this runs under the layers' lock, and others unpack meanwhile.
            for changed in [&diff, &dir, &self.home.join("l"), &self.home] {
                durable::sync_dir(changed)?;
            }
        }
        Ok(())
    }

    /// Gives a new layer's root the mode and owner of its parent's; a base layer's is 0555 and root's.
    fn copy_root(&self, parent: Option<&str>, diff: &Path) -> Result<(), Error> {
        let (mode, uid, gid) = match parent {
            Some(parent) => {
                let path = self.diff_dir(parent);
                let meta =
                    std::fs::symlink_metadata(&path).map_err(|e| PathError::new("look at", path, e))?;
                (meta.mode() & 0o7777, meta.uid(), meta.gid())
            }
            None => (0o555, 0, 0),
        };
        let root = Root::open(diff)?;
        inroot::set_owner(root.as_fd(), uid, gid).map_err(|e| PathError::new("set owner of", diff, e))?;
        inroot::set_mode(root.as_fd(), mode).map_err(|e| PathError::new("set mode of", diff, e))?;
        Ok(())
    }

    /// The `lower` text of a child of `parent`: the parent's own link, then what is below it.
    fn lower_of_child(&self, parent: &str) -> Result<String, Error> {
        let dir = self.layer_dir(parent);
        let link = read_text(&dir.join("link"))?.ok_or_else(|| Error::Corrupt {
            what: format!("layer {parent}"),
            why: "its directory has no link file".into(),
        })?;
        Ok(match read_text(&dir.join("lower"))? {
            Some(below) if !below.is_empty() => format!("l/{link}:{below}"),
            _ => format!("l/{link}"),
        })
    }

    /// The lower directories of a layer's mount, top first.
    pub(crate) fn lowers(&self, id: &str) -> Result<Vec<PathBuf>, Error> {
        let dir = self.layer_dir(id);
        let mut lowers = rotated(&dir);
        let text = read_text(&dir.join("lower"))?.unwrap_or_default();
        let mut repaired = false;
        for name in text.split(':').filter(|name| !name.is_empty()) {
            let path = self.lower_path(name).ok_or_else(|| Error::Corrupt {
                what: format!("layer {id}"),
                why: "its lower file has a name that is no link".into(),
            })?;
            if !path.exists() && !repaired {
                self.repair_links()?;
                repaired = true;
            }
            let below = path.join("..");
            lowers.push(path);
            lowers.extend(rotated(&below));
        }
        if lowers.is_empty() {
            let empty = dir.join("empty");
            make(&empty, 0o700)?;
            lowers.push(empty);
        }
        if lowers.len() > MAX_DEPTH {
            let why = format!("{} layers, more than {MAX_DEPTH}", lowers.len());
            return Err(Error::Corrupt { what: format!("layer {id}"), why });
        }
        Ok(lowers)
    }

    fn lower_path(&self, name: &str) -> Option<PathBuf> {
        let link = name.strip_prefix("l/")?;
        let valid = !link.is_empty() && link.bytes().all(|b| b.is_ascii_alphanumeric());
        valid.then(|| self.home.join("l").join(link))
    }

    /// Mounts a layer on its `merged` directory, writable. With `owners` the files of the layers below belong to whom
    /// that user namespace maps them to; the layer's own `diff` holds the mapped owners as they are.
    pub(crate) fn mount(
        &self,
        id: &str,
        options: &[String],
        owners: Option<BorrowedFd<'_>>,
    ) -> Result<(), Error> {
        let dir = self.layer_dir(id);
        let mut lowers = self.lowers(id)?;
        let (merged, work) = (self.merged_dir(id), dir.join("work"));
        make(&merged, 0o700)?;
        make(&work, 0o700)?;
        // The kernel's mark of a volatile mount that was not unmounted; it refuses the next one while it stands.
        durable::remove_tree(&work.join("work/incompat/volatile"))?;
        let mapped = owners.map(|owners| MappedHome::new(self, id, owners)).transpose()?;
        if let Some(mapped) = &mapped {
            lowers = lowers.iter().map(|lower| mapped.path_of(lower)).collect();
        }
        let mounted = mount::overlay(&lowers, Some(&dir.join("diff")), Some(&work), options, &merged);
        // The overlay has its own copies of the mounts that its layers lie on.
        drop(mapped);
        Ok(mounted?)
    }

    /// Gives the root of a container's layer to whom the mappings give the owner that it has from its image; root, if
    /// they leave that one out.
    pub(crate) fn map_root(&self, id: &str, users: &[IdRange], groups: &[IdRange]) -> Result<(), Error> {
        let diff = self.diff_dir(id);
        let meta = std::fs::symlink_metadata(&diff).map_err(|e| PathError::new("look at", &diff, e))?;
        let mapped =
            |ranges: &[IdRange], id| to_host(ranges, id).or_else(|| to_host(ranges, 0)).unwrap_or(id);
        let root = Root::open(&diff)?;
        inroot::set_owner(root.as_fd(), mapped(users, meta.uid()), mapped(groups, meta.gid()))
            .map_err(|e| PathError::new("set owner of", &diff, e))?;
        Ok(inroot::set_mode(root.as_fd(), meta.mode() & 0o7777)
            .map_err(|e| PathError::new("set mode of", &diff, e))?)
    }

    /// Unmounts what a mount that was cut short, ours or a peer's, left in the layer's `mapped` directory.
    pub(crate) fn unmount_mapped(&self, id: &str) -> Result<(), Error> {
        let mapped = self.mapped_dir(id);
        let entries = match std::fs::read_dir(&mapped) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(PathError::new("list", mapped, e).into()),
        };
        for entry in entries.flatten() {
            if mount::is_mount_point(&entry.path())? {
                mount::unmount(&entry.path(), true)?;
            }
        }
        Ok(())
    }

    pub(crate) fn mapped_dir(&self, id: &str) -> PathBuf {
        self.home.join(id).join("mapped")
    }

    /// Moves a layer's directory out of the home, into `bin`, and drops its link.
    pub(crate) fn discard(&self, id: &str, bin: &mut StagingDir) -> Result<(), Error> {
        let dir = self.layer_dir(id);
        self.unmount_mapped(id)?;
        if let Ok(Some(link)) = read_text(&dir.join("link"))
            && let Some(path) = self.lower_path(&format!("l/{link}"))
        {
            durable::remove_tree(&path)?;
        }
        match std::fs::rename(&dir, bin.path().join(id)) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(PathError::new("move away", dir, e).into()),
        }
    }

    /// Makes the short links anew where a layer's `link` file names one that is missing.
    pub(crate) fn repair_links(&self) -> Result<usize, Error> {
        let mut made = 0;
        let entries = std::fs::read_dir(&self.home).map_err(|e| PathError::new("list", &self.home, e))?;
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(id) = name.to_str().filter(|name| crate::layers::looks_like_layer(name, &entry.path()))
            else {
                continue;
            };
            if let Ok(Some(link)) = read_text(&entry.path().join("link"))
                && let Some(path) = self.lower_path(&format!("l/{link}"))
                && std::fs::symlink_metadata(&path).is_err()
            {
                symlink(&format!("../{id}/diff"), &path)?;
                made += 1;
            }
        }
        Ok(made)
    }
}

/// Content that becomes a layer.
#[derive(Debug)]
pub(crate) struct Staged<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) keep_root: bool,
}

/// `diff1`, `diff2`, …: contents that a change of owners left beside `diff`.
fn rotated(dir: &Path) -> Vec<PathBuf> {
    (1..).map(|n| dir.join(format!("diff{n}"))).take_while(|path| path.is_dir()).collect()
}

/// 26 characters of base32, so that many layers fit into a mount's option string.
fn short_name() -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let bytes = durable::random_bytes::<26>();
    bytes.iter().map(|byte| char::from(ALPHABET[usize::from(byte & 31)])).collect()
}

fn read_text(path: &Path) -> Result<Option<String>, Error> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim_end_matches('\n').to_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(PathError::new("read", path, e).into()),
    }
}

fn write_text(path: &Path, text: &str, synced: bool) -> Result<(), Error> {
    Ok(durable::replace(path, 0o644, synced, |file| io::Write::write_all(file, text.as_bytes()))?)
}

/// Makes one directory with exactly this mode; one that exists stays as it is.
pub(crate) fn make(path: &Path, mode: u32) -> Result<(), Error> {
    let failed = |e| PathError::new("make directory", path, e);
    match std::fs::DirBuilder::new().mode(mode).create(path) {
        Ok(()) => {
            let root = Root::open(path)?;
            Ok(inroot::set_mode(root.as_fd(), mode).map_err(failed)?)
        }
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(failed(e).into()),
    }
}

fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    std::fs::rename(from, to).map_err(|e| PathError::new("rename into place", to, e).into())
}

fn symlink(target: &str, path: &Path) -> Result<(), Error> {
    std::os::unix::fs::symlink(OsStr::new(target), path)
        .map_err(|e| PathError::new("make symbolic link", path, e).into())
}
