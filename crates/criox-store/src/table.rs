//! A kind of record (layers, images, containers): its lock file, its JSON files, and the snapshot of them in memory.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use criox_sys::lock::{LockFile, LockGuard, LockKind, Token};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Error;
use crate::jsonfile;
use crate::record::{Container, Image, Layer, Place};

/// How long a snapshot read waits for a writer elsewhere before it answers with what it has.
const GLANCE: Duration = Duration::from_millis(50);

/// What the tables need to know about a record.
pub(crate) trait Record: Serialize + DeserializeOwned + Clone {
    fn id(&self) -> &str;
    fn names(&self) -> &[String];
    fn place(&self) -> Place;
    fn set_place(&mut self, place: Place);
}

macro_rules! record {
    ($type:ty, $self:ident, $place:expr, $set:expr) => {
        impl Record for $type {
            fn id(&self) -> &str {
                &self.id
            }
            fn names(&self) -> &[String] {
                &self.names
            }
            fn place(&$self) -> Place {
                $place
            }
            fn set_place(&mut self, place: Place) {
                let set: fn(&mut Self, Place) = $set;
                set(self, place);
            }
        }
    };
}

record!(Layer, self, self.place, |record, place| record.place = place);
record!(Container, self, self.place, |record, place| record.place = place);
record!(Image, self, Place::Durable, |_, _| {});

/// All records of a kind at one moment.
#[derive(Debug)]
pub(crate) struct Snapshot<R> {
    pub(crate) list: Arc<[Arc<R>]>,
    by_id: HashMap<String, usize>,
    by_name: HashMap<String, usize>,
}

impl<R: Record> Snapshot<R> {
    fn new(records: Vec<Arc<R>>) -> Self {
        let mut by_id = HashMap::with_capacity(records.len());
        let mut by_name = HashMap::new();
        for (n, record) in records.iter().enumerate() {
            by_id.insert(record.id().to_owned(), n);
            // A name held twice belongs to the later record.
            by_name.extend(record.names().iter().map(|name| (name.clone(), n)));
        }
        Self { list: records.into(), by_id, by_name }
    }

    pub(crate) fn get(&self, id: &str) -> Option<&Arc<R>> {
        self.by_id.get(id).map(|&n| &self.list[n])
    }

    pub(crate) fn by_name(&self, name: &str) -> Option<&Arc<R>> {
        self.by_name.get(name).map(|&n| &self.list[n])
    }
}

/// What tells one state of the files from another: the lock's token, and inode, time and size of each file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Version {
    token: Token,
    files: Vec<Option<(u64, i64, i64, u64)>>,
}

/// A kind of record on disk.
#[derive(Debug)]
pub(crate) struct Table<R> {
    lock: LockFile,
    durable: PathBuf,
    volatile: Option<PathBuf>,
    patience: Duration,
    cache: RwLock<Option<(Version, Arc<Snapshot<R>>)>>,
}

impl<R: Record> Table<R> {
    /// The table whose files are `<kind>.json`, `<kind>.lock` and, if wanted, `volatile-<kind>.json` in `dir`.
    pub(crate) fn new(dir: &Path, kind: &str, volatile: bool, patience: Duration) -> Self {
        Self {
            lock: LockFile::new(dir.join(format!("{kind}.lock"))),
            durable: dir.join(format!("{kind}.json")),
            volatile: volatile.then(|| dir.join(format!("volatile-{kind}.json"))),
            patience,
            cache: RwLock::new(None),
        }
    }

    /// The newest snapshot that can be had without waiting for a writer.
    pub(crate) fn glance(&self) -> Result<Arc<Snapshot<R>>, Error> {
        let cached = self.cached();
        if let Some((version, snapshot)) = &cached
            && *version == self.version(self.lock.peek()?)
        {
            return Ok(snapshot.clone());
        }
        let patience = if cached.is_some() { GLANCE } else { self.patience };
        match (self.lock.lock(LockKind::Shared, patience), cached) {
            (Ok(guard), _) => self.load(&guard),
            (Err(criox_sys::lock::LockError::Timeout { .. }), Some((_, snapshot))) => Ok(snapshot),
            (Err(e), _) => Err(e.into()),
        }
    }

    /// Locks for reading: nothing changes while the guard lives.
    pub(crate) fn read(&self) -> Result<(LockGuard<'_>, Arc<Snapshot<R>>), Error> {
        let guard = self.lock.lock(LockKind::Shared, self.patience)?;
        let snapshot = self.load(&guard)?;
        Ok((guard, snapshot))
    }

    /// Locks for writing.
    pub(crate) fn write(&self) -> Result<Writer<'_, R>, Error> {
        let guard = self.lock.lock(LockKind::Exclusive, self.patience)?;
        let snapshot = self.load(&guard)?;
        Ok(Writer { table: self, guard, snapshot })
    }

    fn cached(&self) -> Option<(Version, Arc<Snapshot<R>>)> {
        self.cache.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn version(&self, token: Token) -> Version {
        let files = [Some(&self.durable), self.volatile.as_ref()];
        let stat = |path: &PathBuf| {
            std::fs::metadata(path).ok().map(|m| (m.ino(), m.mtime(), m.mtime_nsec(), m.size()))
        };
        Version { token, files: files.into_iter().flatten().map(stat).collect() }
    }

    fn load(&self, guard: &LockGuard<'_>) -> Result<Arc<Snapshot<R>>, Error> {
        let version = self.version(guard.token()?);
        if let Some((known, snapshot)) = self.cached()
            && known == version
        {
            return Ok(snapshot);
        }
        let mut records: Vec<Arc<R>> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        for (path, place) in
            [(Some(&self.durable), Place::Durable), (self.volatile.as_ref(), Place::Volatile)]
        {
            let Some(path) = path else { continue };
            for mut record in jsonfile::load::<R>(path)? {
                // The first record of an ID counts: the synced file before the volatile one.
                if seen.insert(record.id().to_owned()) {
                    record.set_place(place);
                    records.push(Arc::new(record));
                }
            }
        }
        let snapshot = Arc::new(Snapshot::new(records));
        self.install(version, snapshot.clone());
        Ok(snapshot)
    }

    fn install(&self, version: Version, snapshot: Arc<Snapshot<R>>) {
        *self.cache.write().unwrap_or_else(PoisonError::into_inner) = Some((version, snapshot));
    }

    /// The volatile file, if it is there but doesn't parse (a power cut tore it): moved aside, so that the store opens.
    pub(crate) fn quarantine_torn_volatile(&self) -> Result<Option<PathBuf>, Error> {
        let Some(path) = &self.volatile else { return Ok(None) };
        let guard = self.lock.lock(LockKind::Exclusive, self.patience)?;
        if !matches!(jsonfile::load::<R>(path), Err(Error::Json { .. })) {
            return Ok(None);
        }
        guard.record_write()?;
        let aside = path.with_extension("json.torn");
        std::fs::rename(path, &aside)
            .map_err(|e| criox_sys::durable::PathError::new("move aside", path.clone(), e))?;
        Ok(Some(aside))
    }
}

/// A table locked for writing.
#[derive(Debug)]
pub(crate) struct Writer<'a, R> {
    table: &'a Table<R>,
    guard: LockGuard<'a>,
    pub(crate) snapshot: Arc<Snapshot<R>>,
}

impl<R: Record> Writer<'_, R> {
    /// The records, to be changed and given to [`Writer::save`].
    pub(crate) fn records(&self) -> Vec<Arc<R>> {
        self.snapshot.list.to_vec()
    }

    /// Writes the files of the places that changed (the token first), and installs the new snapshot.
    pub(crate) fn save(&mut self, records: Vec<Arc<R>>, changed: &[Place]) -> Result<(), Error> {
        let token = self.guard.record_write()?;
        let of = |place| records.iter().filter(|r| r.place() == place).map(Arc::as_ref).collect::<Vec<_>>();
        if changed.contains(&Place::Durable) {
            jsonfile::save(&self.table.durable, &of(Place::Durable), true)?;
        }
        if changed.contains(&Place::Volatile)
            && let Some(path) = &self.table.volatile
        {
            jsonfile::save(path, &of(Place::Volatile), false)?;
        }
        self.snapshot = Arc::new(Snapshot::new(records));
        self.table.install(self.table.version(token), self.snapshot.clone());
        Ok(())
    }

    /// Replaces one record, or adds it.
    pub(crate) fn put(&mut self, record: R) -> Result<Arc<R>, Error> {
        let record = Arc::new(record);
        let place = record.place();
        let mut records = self.records();
        match records.iter().position(|r| r.id() == record.id()) {
            Some(at) => records[at] = record.clone(),
            None => records.push(record.clone()),
        }
        self.save(records, &[place])?;
        Ok(record)
    }

    /// Drops one record.
    pub(crate) fn drop_record(&mut self, id: &str) -> Result<(), Error> {
        let mut records = self.records();
        if let Some(at) = records.iter().position(|r| r.id() == id) {
            let place = records.remove(at).place();
            self.save(records, &[place])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(dir: &Path) -> Table<Layer> {
        Table::new(dir, "layers", true, Duration::from_secs(5))
    }

    fn layer(id: &str, place: Place) -> Layer {
        let mut layer: Layer = serde_json::from_str(&format!(r#"{{"id":"{id}"}}"#)).unwrap();
        layer.place = place;
        layer
    }

    #[test]
    fn writes_of_one_are_seen_by_another_and_land_in_their_file() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (table(dir.path()), table(dir.path()));
        assert!(other.glance().unwrap().list.is_empty());
        one.write().unwrap().put(layer("a", Place::Durable)).unwrap();
        one.write().unwrap().put(layer("b", Place::Volatile)).unwrap();
        let seen = other.glance().unwrap();
        assert_eq!(seen.list.iter().map(|l| l.id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(seen.get("b").unwrap().place, Place::Volatile);
        assert!(Arc::ptr_eq(&seen, &other.glance().unwrap()));
        one.write().unwrap().drop_record("a").unwrap();
        assert!(other.glance().unwrap().get("a").is_none());
        assert_eq!(std::fs::read(dir.path().join("layers.json")).unwrap(), b"[]");
    }

    #[test]
    fn a_file_changed_by_hand_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let table = table(dir.path());
        assert!(table.glance().unwrap().list.is_empty());
        criox_sys::durable::write_atomic(&dir.path().join("layers.json"), br#"[{"id":"x"}]"#, 0o600).unwrap();
        assert!(table.glance().unwrap().get("x").is_some());
    }

    #[test]
    fn a_reader_does_not_wait_for_a_writer() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (table(dir.path()), table(dir.path()));
        other.glance().unwrap();
        let writer = one.write().unwrap();
        writer.guard.record_write().unwrap();
        let start = std::time::Instant::now();
        other.glance().unwrap();
        assert!(start.elapsed() < Duration::from_secs(2));
    }

    #[test]
    fn a_torn_volatile_file_is_moved_aside_and_a_torn_durable_one_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let table = table(dir.path());
        criox_sys::durable::write_atomic(&dir.path().join("volatile-layers.json"), b"[{\"id", 0o600).unwrap();
        assert!(table.glance().is_err());
        assert!(table.quarantine_torn_volatile().unwrap().is_some());
        assert!(table.quarantine_torn_volatile().unwrap().is_none());
        assert!(table.glance().unwrap().list.is_empty());
        criox_sys::durable::write_atomic(&dir.path().join("layers.json"), b"[{\"id", 0o600).unwrap();
        assert!(matches!(table.glance(), Err(Error::Json { .. })));
    }
}
