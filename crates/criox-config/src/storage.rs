//! `storage.conf` (containers-storage.conf(5)): where the store is and how its driver works.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::document::{Document, read};
use crate::problem::{Problem, Problems};
use crate::table::{Sink, apply, section, subtable};

section! {
    /// `[storage]`.
    Storage = "storage" {
        /// Name of the driver.
        Now driver: String = "overlay".to_owned();
        /// Where the store keeps what doesn't outlive a boot.
        Now runroot: PathBuf = "/run/containers/storage".into();
        /// Where images and containers are kept.
        Now graphroot: PathBuf = "/var/lib/containers/storage".into();
        /// A separate place for images.
        Now imagestore: Option<PathBuf> = None;
        /// Keep records of containers in the run root.
        Now transient_store: bool = false;
    }
}

section! {
    /// `[storage.options]`. The options that the overlay table has, too, are used where that one is silent.
    Options = "storage.options" {
        /// Read-only stores that are searched, too.
        Now additionalimagestores: Vec<PathBuf> = Vec::new();
        /// Read-only stores of single layers.
        Now additionallayerstores: Vec<PathBuf> = Vec::new();
        /// A separate place for images.
        Now imagestore: Option<PathBuf> = None;
        /// See the overlay table.
        Now size: String = String::new();
        /// See the overlay table.
        Now ignore_chown_errors: String = String::new();
        /// See the overlay table.
        Now use_composefs: String = String::new();
        /// See the overlay table.
        Now force_mask: String = String::new();
        /// See the overlay table.
        Now skip_mount_home: String = String::new();
        /// See the overlay table.
        Now mount_program: String = String::new();
        /// See the overlay table.
        Now mountopt: String = String::new();
        /// Never mount with the volatile option.
        Now disable_volatile: bool = false;
    }
}

section! {
    /// `[storage.options.overlay]`: all texts, also the booleans.
    Overlay = "storage.options.overlay" {
        /// Layers keep the owner that they can.
        Now ignore_chown_errors: String = String::new();
        /// Mount options, separated by commas.
        Now mountopt: String = String::new();
        /// FUSE program that mounts instead of the kernel.
        Now mount_program: String = String::new();
        /// Quota of a container's bytes.
        Now size: String = String::new();
        /// Quota of a container's inodes.
        Now inodes: String = String::new();
        /// Leave the driver's home as the mount it is.
        Now skip_mount_home: String = String::new();
        /// Store layers in the form of composefs.
        Now use_composefs: String = String::new();
        /// Mode that all files get.
        Now force_mask: String = String::new();
        /// How a layer reaches the disk: "none" or "filesystem".
        Now sync: String = String::new();
    }
}

/// Which files to read.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StoragePaths {
    /// Main files, the first that exists is read.
    pub main: Vec<PathBuf>,
    /// If set, this one only and it must exist, and there are no drop-ins.
    pub only: Option<PathBuf>,
    /// Drop-in directories; of files with one name the one in the later directory counts, all sorted by name.
    pub drop_in_dirs: Vec<PathBuf>,
    /// Read last.
    pub last: Option<PathBuf>,
    /// Overrides the driver.
    pub driver: Option<String>,
    /// Overrides the driver's options, separated by commas.
    pub options: Option<String>,
}

impl StoragePaths {
    /// The places for root, and the environment variables of containers/storage.
    pub fn system(env: impl Fn(&str) -> Option<String>) -> Self {
        let env = |name: &str| env(name).filter(|value| !value.is_empty());
        let dirs = ["/usr/share/containers", "/etc/containers"];
        let drop_ins = |sub: &'static str| dirs.map(|dir| Path::new(dir).join(sub));
        Self {
            main: vec!["/etc/containers/storage.conf".into(), "/usr/share/containers/storage.conf".into()],
            only: env("CONTAINERS_STORAGE_CONF").map(PathBuf::from),
            drop_in_dirs: [drop_ins("storage.conf.d"), drop_ins("storage.rootful.conf.d")].concat(),
            last: env("CONTAINERS_STORAGE_CONF_OVERRIDE").map(PathBuf::from),
            driver: env("STORAGE_DRIVER"),
            options: env("STORAGE_OPTS"),
        }
    }
}

/// The merged `storage.conf`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StorageConf {
    /// `[storage]`.
    pub storage: Storage,
    /// `[storage.options]`.
    pub options: Options,
    /// `[storage.options.overlay]`.
    pub overlay: Overlay,
    /// `[storage.options.pull_options]`.
    pub pull_options: BTreeMap<String, String>,
    driver_options: Option<Vec<String>>,
}

impl StorageConf {
    /// Reads and merges the files that exist. `env` expands `$NAME` in paths.
    ///
    /// # Errors
    /// Every mistake in every file.
    pub fn load(paths: &StoragePaths, env: impl Fn(&str) -> Option<String>) -> Result<Self, Problems> {
        let mut conf = Self::default();
        let mut sink = Sink::default();
        for (path, required) in paths.files(&mut sink) {
            match read(&path) {
                Ok(Some(bytes)) => conf.apply(&path, &bytes, &mut sink),
                Ok(None) if required => {
                    sink.problems.0.extend(crate::registries::missing(&path).0);
                }
                Ok(None) => {}
                Err(problems) => sink.problems.0.extend(problems.0),
            }
        }
        conf.expand(&env);
        if let Some(driver) = &paths.driver {
            conf.storage.driver.clone_from(driver);
        }
        if let Some(options) = &paths.options {
            conf.driver_options = Some(options.split(',').map(|o| o.trim().to_owned()).collect());
        }
        sink.problems.or(conf)
    }

    /// Reads one file's bytes over the defaults; `path` is for messages.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, Problems> {
        let mut conf = Self::default();
        let mut sink = Sink::default();
        conf.apply(path, bytes, &mut sink);
        sink.problems.or(conf)
    }

    fn apply(&mut self, path: &Path, bytes: &[u8], sink: &mut Sink) {
        let doc = match Document::new(path, bytes) {
            Ok(doc) => doc,
            Err(problems) => return sink.problems.0.extend(problems.0),
        };
        let table = match doc.parse() {
            Ok(table) => table,
            Err(problems) => return sink.problems.0.extend(problems.0),
        };
        let Some(storage) = subtable(&doc, &table, "", "storage", sink) else { return };
        apply(&mut self.storage, "storage", &doc, storage, &["options"], sink);
        let Some(options) = subtable(&doc, storage, "storage", "options", sink) else { return };
        let tables = &["overlay", "pull_options", "vfs", "btrfs", "zfs"];
        apply(&mut self.options, "storage.options", &doc, options, tables, sink);
        if let Some(overlay) = subtable(&doc, options, "storage.options", "overlay", sink) {
            apply(&mut self.overlay, "storage.options.overlay", &doc, overlay, &[], sink);
        }
        if let Some(pull) = subtable(&doc, options, "storage.options", "pull_options", sink) {
            for (name, value) in pull {
                match value.get_ref().as_str() {
                    Some(text) => {
                        self.pull_options.insert(name.get_ref().to_string(), text.to_owned());
                    }
                    None => {
                        let key = format!("storage.options.pull_options.{}", name.get_ref());
                        sink.problems.add(doc.origin(name), key, "must be text in quotes");
                    }
                }
            }
        }
    }

    fn expand(&mut self, env: &dyn Fn(&str) -> Option<String>) {
        let paths = [&mut self.storage.runroot, &mut self.storage.graphroot];
        let optional = [&mut self.storage.imagestore, &mut self.options.imagestore];
        let stores =
            self.options.additionalimagestores.iter_mut().chain(&mut self.options.additionallayerstores);
        for path in paths.into_iter().chain(optional.into_iter().flatten()).chain(stores) {
            if let Some(expanded) = path.to_str().map(|text| expand(text, env)) {
                *path = expanded.into();
            }
        }
    }

    /// The separate place for images.
    pub fn imagestore(&self) -> Option<&PathBuf> {
        self.storage.imagestore.as_ref().or(self.options.imagestore.as_ref())
    }

    /// The driver's options in the form of `storage_option`: `overlay.mountopt=nodev`.
    pub fn driver_options(&self) -> Vec<String> {
        if let Some(options) = &self.driver_options {
            return options.clone();
        }
        let (o, top) = (&self.overlay, &self.options);
        let mut out: Vec<String> = Vec::new();
        for store in &top.additionalimagestores {
            out.push(format!("overlay.imagestore={}", store.display()));
        }
        for store in &top.additionallayerstores {
            out.push(format!("overlay.additionallayerstore={}", store.display()));
        }
        let none = String::new();
        for (name, own, general) in [
            ("ignore_chown_errors", &o.ignore_chown_errors, &top.ignore_chown_errors),
            ("mountopt", &o.mountopt, &top.mountopt),
            ("mount_program", &o.mount_program, &top.mount_program),
            ("size", &o.size, &top.size),
            ("inodes", &o.inodes, &none),
            ("skip_mount_home", &o.skip_mount_home, &top.skip_mount_home),
            ("force_mask", &o.force_mask, &top.force_mask),
            ("use_composefs", &o.use_composefs, &top.use_composefs),
            ("sync", &o.sync, &none),
        ] {
            let value = if own.is_empty() { general } else { own };
            if !value.is_empty() {
                out.push(format!("overlay.{name}={value}"));
            }
        }
        out
    }
}

impl StoragePaths {
    /// The files to read in order, and whether each must exist.
    fn files(&self, sink: &mut Sink) -> Vec<(PathBuf, bool)> {
        let mut files = Vec::new();
        if let Some(only) = &self.only {
            files.push((only.clone(), true));
        } else {
            files.extend(self.main.iter().find(|path| path.exists()).map(|path| (path.clone(), false)));
            let mut drop_ins = BTreeMap::new();
            for dir in &self.drop_in_dirs {
                match crate::registries::conf_files(dir) {
                    Ok(found) => drop_ins.extend(
                        found.into_iter().map(|path| (path.file_name().map(ToOwned::to_owned), path)),
                    ),
                    Err(problems) => sink.problems.0.extend(problems.0),
                }
            }
            files.extend(drop_ins.into_values().map(|path| (path, false)));
        }
        files.extend(self.last.iter().map(|path| (path.clone(), true)));
        files
    }
}

fn expand(text: &str, env: &dyn Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        let (name, tail) = match after.strip_prefix('{').and_then(|after| after.split_once('}')) {
            Some(braced) => braced,
            None => {
                let end = after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len());
                after.split_at(end)
            }
        };
        out.push_str(&env(name).unwrap_or_default());
        rest = tail;
    }
    out + rest
}

/// The driver's options, parsed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StoreOptions {
    /// Mount options of overlay mounts, as `nodev`.
    pub mount_options: Vec<String>,
    /// Read-only stores that are searched for images, too.
    pub additional_image_stores: Vec<PathBuf>,
    /// Quota of a container's bytes, as written. No part enforces it yet.
    pub size: Option<String>,
    /// Quota of a container's inodes, as written. No part enforces it yet.
    pub inodes: Option<String>,
    /// Leave the driver's home as the mount it is.
    pub skip_mount_home: bool,
    /// Layers keep the owner that they can.
    pub ignore_chown_errors: bool,
    /// Bring a layer to the disk (syncfs) before it counts as complete.
    pub sync_filesystem: bool,
}

impl StoreOptions {
    /// Parses options of the overlay driver, `[overlay.]key=value`, later ones over earlier ones.
    ///
    /// # Errors
    /// Every option that doesn't exist or that criox can't honour.
    pub fn parse(options: &[String]) -> Result<Self, Vec<String>> {
        let mut out = Self::default();
        let mut errors = Vec::new();
        for option in options {
            if let Err(e) = out.option(option) {
                errors.push(e);
            }
        }
        if errors.is_empty() { Ok(out) } else { Err(errors) }
    }

    fn option(&mut self, option: &str) -> Result<(), String> {
        let (key, value) =
            option.split_once('=').ok_or_else(|| format!("\"{option}\" is not of the form key=value"))?;
        let name = ["overlay.", "overlay2.", "."].iter().find_map(|p| key.strip_prefix(p)).unwrap_or(key);
        let switch = || match value {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
            "" | "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
            _ => Err(format!("\"{option}\" is neither true nor false")),
        };
        let text = || Some(value.to_owned()).filter(|value| !value.is_empty());
        match name.to_ascii_lowercase().as_str() {
            "mountopt" => {
                self.mount_options = value.split(',').filter(|o| !o.is_empty()).map(str::to_owned).collect();
            }
            "imagestore" | "additionalimagestore" | "additionalimagestores" => {
                for store in value.split(',').filter(|s| !s.is_empty()) {
                    if !store.starts_with('/') {
                        return Err(format!("\"{option}\": the store's path is not absolute"));
                    }
                    let store = PathBuf::from(store);
                    if !self.additional_image_stores.contains(&store) {
                        self.additional_image_stores.push(store);
                    }
                }
            }
            "size" => self.size = text(),
            "inodes" => self.inodes = text(),
            "skip_mount_home" => self.skip_mount_home = switch()?,
            "ignore_chown_errors" => self.ignore_chown_errors = switch()?,
            "sync" => match value {
                "" | "none" => self.sync_filesystem = false,
                "filesystem" => self.sync_filesystem = true,
                _ => return Err(format!("\"{option}\" is neither \"none\" nor \"filesystem\"")),
            },
            "override_kernel_check" => {}
            "use_composefs" if !switch()? => {}
            "mount_program" | "additionallayerstore" | "force_mask" if value.is_empty() => {}
            "mount_program" => {
                return Err(format!(
                    "\"{option}\": criox mounts overlays with the kernel only, remove mount_program"
                ));
            }
            "use_composefs" | "force_mask" | "additionallayerstore" => {
                return Err(format!("\"{option}\": criox doesn't support this option, remove it"));
            }
            _ => return Err(format!("\"{option}\": the overlay driver has no such option")),
        }
        Ok(())
    }
}

/// A problem for callers that have options but no file to name.
pub(crate) fn option_problems(origin: &crate::problem::Origin, errors: Vec<String>) -> Vec<Problem> {
    errors.into_iter().map(|e| Problem::new(origin.clone(), "crio.storage_option", e)).collect()
}

#[cfg(test)]
mod tests;
