//! The store seen from outside, with nobody's code but the test's: do records and directories agree?

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FlockOperation, fcntl_lock};
use serde_json::Value;
use testkit::Result;

/// A POSIX lock is the process's, and gone with the first descriptor of the file that is closed.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Looks under the peers' locks, in their order, and says what contradicts what; one line each.
pub(crate) fn contradictions(root: &Path) -> Result<Vec<String>> {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let _locks = ["layers", "images", "containers"]
        .into_iter()
        .map(|kind| locked(&root.join(format!("overlay-{kind}/{kind}.lock"))))
        .collect::<Result<Vec<File>>>()?;
    let layers = records(root, "layers")?;
    let images = records(root, "images")?;
    let containers = records(root, "containers")?;
    let mut found = Vec::new();
    look_at_layers(root, &layers, &mut found);
    compare("image", &ids(&images), &names(&root.join("overlay-images")), &mut found);
    compare("container", &ids(&containers), &names(&root.join("overlay-containers")), &mut found);
    let layers = ids(&layers);
    for (kind, record) in
        images.iter().map(|r| ("image", r)).chain(containers.iter().map(|r| ("container", r)))
    {
        if let Some(layer) =
            word(record, "layer").filter(|layer| !layer.is_empty() && !layers.contains(*layer))
        {
            found.push(format!("{kind} {} is on layer {layer}, which isn't there", id(record)));
        }
    }
    for image in &images {
        let sizes = image["big-data-sizes"].as_object().into_iter().flatten();
        let files = std::fs::read_dir(root.join("overlay-images").join(id(image)))?.flatten();
        // One with a dot in front is in the making, or its maker died.
        let files = files.filter(|file| !file.file_name().as_encoded_bytes().starts_with(b".")).count();
        let expected = sizes.count();
        if expected != files {
            found.push(format!("image {} has {files} files, its record says {expected}", id(image)));
        }
    }
    Ok(found)
}

fn look_at_layers(root: &Path, layers: &[Value], found: &mut Vec<String>) {
    let home = root.join("overlay");
    compare("layer", &ids(layers), &names(&home), found);
    let all = ids(layers);
    for layer in layers {
        let id = id(layer);
        if layer["flags"]["incomplete"] == true {
            found.push(format!("layer {id} is incomplete"));
            continue;
        }
        if let Some(parent) = word(layer, "parent").filter(|parent| !all.contains(*parent)) {
            found.push(format!("layer {id} has a parent that isn't there: {parent}"));
        }
        if layer.get("diff-digest").is_some()
            && !root.join(format!("overlay-layers/{id}.tar-split.gz")).is_file()
        {
            found.push(format!("layer {id} has no tar-split"));
        }
        let link = std::fs::read_to_string(home.join(id).join("link")).unwrap_or_default();
        let target = std::fs::read_link(home.join("l").join(&link)).unwrap_or_default();
        if target != Path::new(&format!("../{id}/diff")) {
            found.push(format!("layer {id} is not found by its short link {link:?}"));
        }
        let lower = std::fs::read_to_string(home.join(id).join("lower")).unwrap_or_default();
        for link in lower.split(':').filter(|link| !link.is_empty()) {
            if !home.join(link).is_dir() {
                found.push(format!("layer {id} is stacked on {link}, which leads nowhere"));
            }
        }
    }
}

fn compare(kind: &str, records: &BTreeSet<String>, directories: &BTreeSet<String>, found: &mut Vec<String>) {
    for id in records.difference(directories) {
        // An image without data of its own and a container without files need none.
        if kind == "layer" {
            found.push(format!("{kind} {id} has a record and no directory"));
        }
    }
    for id in directories.difference(records) {
        found.push(format!("{kind} {id} has a directory and no record"));
    }
}

fn locked(path: &Path) -> Result<File> {
    let file = std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    fcntl_lock(&file, FlockOperation::LockShared)?;
    Ok(file)
}

/// The records of a kind, the volatile ones included.
pub(crate) fn records(root: &Path, kind: &str) -> Result<Vec<Value>> {
    let mut all = Vec::new();
    for name in [format!("{kind}.json"), format!("volatile-{kind}.json")] {
        match std::fs::read(root.join(format!("overlay-{kind}")).join(&name)) {
            Ok(bytes) if bytes.is_empty() => {}
            Ok(bytes) => all.extend(serde_json::from_slice::<Vec<Value>>(&bytes)?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(all)
}

fn ids(records: &[Value]) -> BTreeSet<String> {
    records.iter().map(|record| id(record).to_owned()).collect()
}

fn id(record: &Value) -> &str {
    word(record, "id").unwrap_or_default()
}

fn word<'a>(record: &'a Value, key: &str) -> Option<&'a str> {
    record[key].as_str()
}

/// Names in a directory that look like IDs. A peer that is killed while it tries the file system leaves others.
fn names(dir: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit())).collect()
}
