//! Reading and merging: defaults, storage.conf, the main file, drop-ins, environment, flags.

mod files;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::Value;
use toml::de::{DeTable, DeValue};

use crate::config::{
    Api, CheckpointRestore, Config, Image, Metrics, Network, Nri, NriValidator, Root, Runtime, Stats, Tracing,
};
use crate::document::{Document, read};
use crate::flags::{Overrides, ProcessOptions};
use crate::handler::{RuntimeHandler, Workload, WorkloadResources};
use crate::problem::{KeyRef, Origin, Problem, Problems};
use crate::storage::{StorageConf, StoragePaths};
use crate::table::{Effect, Key, Section, Sink, apply, subtable};

/// The main configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigFile {
    /// None is read (`--config ""`).
    None,
    /// Read if it exists.
    Optional(PathBuf),
    /// Must exist (given by flag or environment).
    Required(PathBuf),
}

/// What to read.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// The main file.
    pub config_path: ConfigFile,
    /// Directory of drop-ins, read recursively; it need not exist.
    pub drop_in_dir: Option<PathBuf>,
    /// Where `storage.conf` is.
    pub storage: StoragePaths,
    /// Environment and flags.
    pub overrides: Overrides,
}

impl LoadOptions {
    /// CRI-O's default places, unless `--config`, `--config-dir` or their variables say otherwise.
    pub fn system(overrides: Overrides) -> Self {
        let path = |text: &str| Some(PathBuf::from(text)).filter(|path| !path.as_os_str().is_empty());
        Self {
            config_path: match overrides.config() {
                None => ConfigFile::Optional("/etc/crio/crio.conf".into()),
                Some("") => ConfigFile::None,
                Some(path) => ConfigFile::Required(path.into()),
            },
            drop_in_dir: overrides.config_dir().map_or(Some("/etc/crio/crio.conf.d".into()), path),
            storage: StoragePaths::system(|name| std::env::var(name).ok()),
            overrides,
        }
    }

    /// No files, variables or flags at all: the built-in defaults.
    pub fn defaults() -> Self {
        Self {
            config_path: ConfigFile::None,
            drop_in_dir: None,
            storage: StoragePaths::default(),
            overrides: Overrides::default(),
        }
    }
}

/// A configuration, and what to tell about it.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The effective configuration.
    pub config: Config,
    /// What only flags say.
    pub process: ProcessOptions,
    /// Keys that differ from their defaults and whose part isn't there yet.
    pub not_yet_in_effect: Vec<KeyRef>,
    /// Keys that differ from their defaults and name what only CRI-O has.
    pub without_meaning: Vec<KeyRef>,
    /// Keys that CRI-O doesn't know. It ignores them in silence; most are typing errors.
    pub unknown: Vec<KeyRef>,
    /// What works but deserves attention, among it handlers that are left out.
    pub warnings: Vec<Problem>,
    pub(crate) origins: BTreeMap<String, Origin>,
}

impl Loaded {
    /// Where a key, as `crio.runtime.cgroup_manager`, got its value.
    pub fn origin(&self, key: &str) -> Origin {
        self.origins.get(key).cloned().unwrap_or(Origin::Default)
    }
}

impl Config {
    /// Reads, merges and validates.
    ///
    /// # Errors
    /// Every mistake in every file, variable and flag.
    pub fn load(options: &LoadOptions) -> Result<Loaded, Problems> {
        let mut sink = Sink::default();
        let mut config = Self::default();
        match StorageConf::load(&options.storage, |name| std::env::var(name).ok()) {
            Ok(storage) => config.apply_storage(&storage, &mut sink),
            Err(problems) => sink.problems.0.extend(problems.0),
        }
        for (path, required) in files::list(options, &mut sink) {
            match read(&path) {
                Ok(Some(bytes)) => config.apply_file(&path, &bytes, &mut sink),
                Ok(None) if required => sink.problems.0.extend(crate::registries::missing(&path).0),
                Ok(None) => {}
                Err(problems) => sink.problems.0.extend(problems.0),
            }
        }
        sink.problems.0.extend(options.overrides.problems().0.iter().cloned());
        config.apply_overrides(&options.overrides, &mut sink);
        let process = options.overrides.process().unwrap_or_else(|problems| {
            sink.problems.0.extend(problems.0);
            ProcessOptions::default()
        });
        let warnings = crate::check::settle(&mut config, &mut sink);
        let Sink { problems, origins, unknown, .. } = sink;
        problems.or(())?;
        let set = |effect| config.differing(effect, &origins);
        Ok(Loaded {
            not_yet_in_effect: set(Effect::NotYet),
            without_meaning: set(Effect::WithoutMeaning),
            config,
            process,
            unknown,
            warnings,
            origins,
        })
    }

    /// Reads one file's bytes over the defaults and validates; `path` is for messages.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Loaded, Problems> {
        let mut sink = Sink::default();
        let mut config = Self::default();
        config.apply_file(path, bytes, &mut sink);
        let warnings = crate::check::settle(&mut config, &mut sink);
        let Sink { problems, origins, unknown, .. } = sink;
        problems.or(())?;
        Ok(Loaded {
            not_yet_in_effect: config.differing(Effect::NotYet, &origins),
            without_meaning: config.differing(Effect::WithoutMeaning, &origins),
            config,
            process: ProcessOptions::default(),
            unknown,
            warnings,
            origins,
        })
    }

    fn apply_storage(&mut self, storage: &StorageConf, sink: &mut Sink) {
        self.root.root.clone_from(&storage.storage.graphroot);
        self.root.runroot.clone_from(&storage.storage.runroot);
        self.root.imagestore = storage.imagestore().cloned();
        self.root.storage_driver.clone_from(&storage.storage.driver);
        self.root.storage_option = storage.driver_options();
        for key in ["root", "runroot", "imagestore", "storage_driver", "storage_option"] {
            sink.origins.insert(format!("crio.{key}"), Origin::StorageConf);
        }
    }

    fn apply_file(&mut self, path: &Path, bytes: &[u8], sink: &mut Sink) {
        let doc = match Document::new(path, bytes) {
            Ok(doc) => doc,
            Err(problems) => return sink.problems.0.extend(problems.0),
        };
        let (table, syntax) = doc.parse_partly();
        sink.partial |= !syntax.is_empty();
        let before = sink.problems.0.len();
        self.apply_table(&doc, &table, sink);
        // On a line that couldn't be read, what the reader made of it is no further mistake.
        let found = sink.problems.0.split_off(before);
        let further = found.into_iter().filter(|p| syntax.iter().all(|other| other.origin != p.origin));
        sink.problems.0.extend(further.collect::<Vec<_>>());
        sink.problems.0.extend(syntax.0);
    }

    fn apply_table(&mut self, doc: &Document<'_>, table: &DeTable<'_>, sink: &mut Sink) {
        for name in table.keys().filter(|name| !name.get_ref().eq_ignore_ascii_case("crio")) {
            sink.unknown.push(KeyRef { key: name.get_ref().to_string(), origin: doc.origin(name) });
        }
        let Some(crio) = subtable(doc, table, "", "crio", sink) else { return };
        self.apply_root(doc, crio, sink);
        let mut section = |name: &str| subtable(doc, crio, "crio", name, sink);
        let tables = TABLES.map(&mut section);
        let [api, runtime, checkpoint, image, network, metrics, tracing, stats, nri] = tables;
        each(api, |t| apply(&mut self.api, Api::TABLE, doc, t, &[], sink));
        each(runtime, |t| self.apply_runtime(doc, t, sink));
        each(checkpoint, |t| {
            apply(&mut self.checkpoint_restore, CheckpointRestore::TABLE, doc, t, &[], sink);
        });
        each(image, |t| apply(&mut self.image, Image::TABLE, doc, t, &[], sink));
        each(network, |t| apply(&mut self.network, Network::TABLE, doc, t, &[], sink));
        each(metrics, |t| apply(&mut self.metrics, Metrics::TABLE, doc, t, &[], sink));
        each(tracing, |t| apply(&mut self.tracing, Tracing::TABLE, doc, t, &[], sink));
        each(stats, |t| apply(&mut self.stats, Stats::TABLE, doc, t, &[], sink));
        each(nri, |t| {
            apply(&mut self.nri, Nri::TABLE, doc, t, &["default_validator"], sink);
            if let Some(t) = subtable(doc, t, Nri::TABLE, "default_validator", sink) {
                apply(&mut self.nri.default_validator, NriValidator::TABLE, doc, t, &[], sink);
            }
        });
    }

    /// `[crio]` has two rules of its own: empty places keep what was there before, and storage options add up.
    fn apply_root(&mut self, doc: &Document<'_>, table: &DeTable<'_>, sink: &mut Sink) {
        let before = self.root.clone();
        apply(&mut self.root, Root::TABLE, doc, table, &TABLES, sink);
        let Root { root, runroot, storage_driver, storage_option, .. } = &mut self.root;
        if root.as_os_str().is_empty() {
            *root = before.root;
        }
        if runroot.as_os_str().is_empty() {
            *runroot = before.runroot;
        }
        if storage_driver.is_empty() {
            *storage_driver = before.storage_driver;
        }
        // Only what a file adds may come twice: a file without the key must not double the list.
        if crate::document::find(table, "storage_option").is_some() {
            let added = std::mem::replace(storage_option, before.storage_option);
            storage_option.retain(|old| !added.contains(old));
            for (i, option) in added.iter().enumerate() {
                if !added[i + 1..].contains(option) {
                    storage_option.push(option.clone());
                }
            }
        }
    }

    fn apply_runtime(&mut self, doc: &Document<'_>, table: &DeTable<'_>, sink: &mut Sink) {
        apply(&mut self.runtime, Runtime::TABLE, doc, table, &["runtimes", "workloads"], sink);
        let at = format!("{}.runtimes", Runtime::TABLE);
        for (name, table) in entries(doc, table, "runtimes", sink) {
            let at = format!("{at}.{}", quoted(&name));
            forget(sink, &at);
            let mut handler = RuntimeHandler::default();
            apply(&mut handler, &at, doc, table, &[], sink);
            self.runtime.runtimes.insert(name, handler);
        }
        let at = format!("{}.workloads", Runtime::TABLE);
        for (name, table) in entries(doc, table, "workloads", sink) {
            let at = format!("{at}.{}", quoted(&name));
            forget(sink, &at);
            let mut workload = Workload::default();
            apply(&mut workload, &at, doc, table, &["resources"], sink);
            if let Some(table) = subtable(doc, table, &at, "resources", sink) {
                let at = format!("{at}.resources");
                apply::<WorkloadResources>(&mut workload.resources, &at, doc, table, &[], sink);
            }
            self.runtime.workloads.insert(name, workload);
        }
    }

    fn apply_overrides(&mut self, overrides: &Overrides, sink: &mut Sink) {
        for (flag, value, origin) in overrides.iter() {
            if flag.key.is_empty() {
                continue;
            }
            if flag.name == "runtimes" {
                self.apply_runtime_flags(value, origin, sink);
                continue;
            }
            // An empty place means "as storage.conf says", wherever it stands.
            let place = matches!(flag.key, "crio.root" | "crio.runroot" | "crio.storage_driver");
            if place && value.as_str() == Some("") {
                continue;
            }
            if let Err(message) = self.set(flag.key, value) {
                sink.problems.add(origin.clone(), flag.key, message);
            }
            sink.origins.insert(flag.key.to_owned(), origin.clone());
        }
    }

    fn apply_runtime_flags(&mut self, value: &Value, origin: &Origin, sink: &mut Sink) {
        let key = format!("{}.runtimes", Runtime::TABLE);
        for text in value.as_array().into_iter().flatten().filter_map(Value::as_str) {
            match runtime_flag(text) {
                Ok((name, handler)) => {
                    let at = format!("{key}.{}", quoted(&name));
                    forget(sink, &at);
                    sink.origins.insert(at, origin.clone());
                    self.runtime.runtimes.insert(name, handler);
                }
                Err(message) => sink.problems.add(origin.clone(), &key, message),
            }
        }
    }

    /// Sets a scalar or list key by its full name.
    fn set(&mut self, path: &str, value: &Value) -> Result<(), String> {
        let (table, name) = path.rsplit_once('.').unwrap_or(("", path));
        match table {
            Root::TABLE => self.root.set(name, value),
            Api::TABLE => self.api.set(name, value),
            Runtime::TABLE => self.runtime.set(name, value),
            CheckpointRestore::TABLE => self.checkpoint_restore.set(name, value),
            Image::TABLE => self.image.set(name, value),
            Network::TABLE => self.network.set(name, value),
            Metrics::TABLE => self.metrics.set(name, value),
            Tracing::TABLE => self.tracing.set(name, value),
            Stats::TABLE => self.stats.set(name, value),
            Nri::TABLE => self.nri.set(name, value),
            NriValidator::TABLE => self.nri.default_validator.set(name, value),
            _ => Err("no such key".to_owned()),
        }
    }

    /// Every table with keys, in the order of the file: its name, its keys and a reader of values.
    pub(crate) fn sections(&self) -> Vec<Table<'_>> {
        let mut tables = vec![
            Table::of(Root::TABLE.to_owned(), &self.root),
            Table::of(Api::TABLE.to_owned(), &self.api),
            Table::of(Runtime::TABLE.to_owned(), &self.runtime),
        ];
        for (name, handler) in &self.runtime.runtimes {
            tables.push(Table::of(format!("crio.runtime.runtimes.{}", quoted(name)), handler));
        }
        for (name, workload) in &self.runtime.workloads {
            let at = format!("crio.runtime.workloads.{}", quoted(name));
            tables.push(Table::of(at.clone(), workload));
            tables.push(Table::of(format!("{at}.resources"), &workload.resources));
        }
        tables.extend([
            Table::of(CheckpointRestore::TABLE.to_owned(), &self.checkpoint_restore),
            Table::of(Image::TABLE.to_owned(), &self.image),
            Table::of(Network::TABLE.to_owned(), &self.network),
            Table::of(Metrics::TABLE.to_owned(), &self.metrics),
            Table::of(Tracing::TABLE.to_owned(), &self.tracing),
            Table::of(Stats::TABLE.to_owned(), &self.stats),
            Table::of(Nri::TABLE.to_owned(), &self.nri),
            Table::of(NriValidator::TABLE.to_owned(), &self.nri.default_validator),
        ]);
        tables
    }

    /// Keys with this effect that were set to something else than the default.
    fn differing(&self, effect: Effect, origins: &BTreeMap<String, Origin>) -> Vec<KeyRef> {
        let mut found = Vec::new();
        for table in self.sections() {
            for key in table.keys.iter().filter(|key| key.effect == effect) {
                let name = format!("{}.{}", table.at, key.name);
                if let Some(origin) = origins.get(&name)
                    && (table.get)(key.name) != (table.default)(key.name)
                {
                    found.push(KeyRef { key: name, origin: origin.clone() });
                }
            }
        }
        found
    }
}

/// Gives the value of a key by its name.
type Values<'a> = Box<dyn Fn(&str) -> Option<Value> + 'a>;

/// One table of a configuration, for walks over all keys.
pub(crate) struct Table<'a> {
    pub(crate) at: String,
    pub(crate) keys: &'static [Key],
    pub(crate) get: Values<'a>,
    pub(crate) default: Values<'static>,
}

impl<'a> Table<'a> {
    fn of<S: Section + Default + 'static>(at: String, section: &'a S) -> Self {
        let default = S::default();
        Self {
            at,
            keys: S::KEYS,
            get: Box::new(|name| section.get(name)),
            default: Box::new(move |name| default.get(name)),
        }
    }
}

/// A name as a TOML key.
pub(crate) fn quoted(name: &str) -> String {
    let bare = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    if bare { name.to_owned() } else { Value::String(name.to_owned()).to_string() }
}

/// Every key of `crio.conf`; those of tables by name have `*` in their table.
pub(crate) fn keys() -> impl Iterator<Item = &'static Key> {
    [
        Root::KEYS,
        Api::KEYS,
        Runtime::KEYS,
        RuntimeHandler::KEYS,
        Workload::KEYS,
        WorkloadResources::KEYS,
        CheckpointRestore::KEYS,
        Image::KEYS,
        Network::KEYS,
        Metrics::KEYS,
        Tracing::KEYS,
        Stats::KEYS,
        Nri::KEYS,
        NriValidator::KEYS,
    ]
    .into_iter()
    .flatten()
}

/// The key of that full name.
pub(crate) fn key(path: &str) -> Option<&'static Key> {
    keys().find(|key| key.path() == path)
}

/// The tables in `[crio]`.
const TABLES: [&str; 9] =
    ["api", "runtime", "checkpoint_restore", "image", "network", "metrics", "tracing", "stats", "nri"];

fn each<'t, 'i>(table: Option<&'t DeTable<'i>>, then: impl FnOnce(&'t DeTable<'i>)) {
    if let Some(table) = table {
        then(table);
    }
}

/// A table that is replaced takes the origins of its old keys along.
fn forget(sink: &mut Sink, at: &str) {
    let inside = format!("{at}.");
    sink.origins.retain(|key, _| key != at && !key.starts_with(&inside));
}

/// The tables in the table of that name.
fn entries<'t, 'i>(
    doc: &Document<'_>,
    table: &'t DeTable<'i>,
    name: &str,
    sink: &mut Sink,
) -> Vec<(String, &'t DeTable<'i>)> {
    let Some(table) = subtable(doc, table, Runtime::TABLE, name, sink) else { return Vec::new() };
    let mut found = Vec::new();
    for (key, value) in table {
        let at = format!("{}.{name}.{}", Runtime::TABLE, quoted(key.get_ref()));
        match value.get_ref() {
            DeValue::Table(table) => {
                sink.origins.insert(at, doc.origin(key));
                found.push((key.get_ref().to_string(), table));
            }
            other => {
                sink.problems.add(doc.origin(key), at, format!("must be a table, not {}", other.type_str()));
            }
        }
    }
    found
}

/// `name:path:root[:type[:privileged_without_host_devices[:config_path[:container_min_memory]]]]`.
fn runtime_flag(text: &str) -> Result<(String, RuntimeHandler), String> {
    let fields: Vec<&str> = text.split(':').collect();
    if !(3..=7).contains(&fields.len()) || fields[0].is_empty() {
        return Err(format!(
            "\"{text}\" is not of the form name:path:root[:type[:privileged_without_host_devices[:config_path[:container_min_memory]]]]"
        ));
    }
    let field = |i: usize| fields.get(i).copied().filter(|field| !field.is_empty());
    let mut handler = RuntimeHandler {
        runtime_path: field(1).map(PathBuf::from),
        runtime_root: field(2).map(PathBuf::from),
        runtime_type: field(3).unwrap_or_default().to_owned(),
        privileged_without_host_devices: field(4) == Some("true"),
        runtime_config_path: field(5).map(PathBuf::from),
        ..RuntimeHandler::default()
    };
    if let Some(memory) = field(6) {
        memory.clone_into(&mut handler.container_min_memory);
    }
    Ok((fields[0].to_owned(), handler))
}

#[cfg(test)]
mod tests;
