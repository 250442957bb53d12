//! libcni's result cache: one file for each attachment, in the format that libcni 0.8 and newer read and write, so
//! that CRI-O finds the pods' results when a node goes back to it.
//!
//! It is no record of ours: a file that is torn, missing or foreign costs at most a `prevResult`.

use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::NetworkError;
use crate::conf::is_identifier;
use crate::record::AttachIntent;

const KIND: &str = "cniCacheV1";
/// The name of the CNI argument that marks an attachment as a Kubernetes pod's.
const POD_ARG: &str = "K8S_POD_INFRA_CONTAINER_ID";
const MAX_FILE: u64 = 4 << 20;

/// A file of the cache, with libcni's field names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CachedAttachment {
    kind: String,
    pub(crate) container_id: String,
    config: String,
    pub(crate) if_name: String,
    pub(crate) network_name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    netns: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cni_args: Option<Vec<(String, String)>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    capability_args: Option<Map<String, Value>>,
    #[serde(default)]
    pub(crate) result: Value,
}

impl CachedAttachment {
    pub(crate) fn new(intent: &AttachIntent, result: &Value) -> Self {
        Self {
            kind: KIND.into(),
            container_id: intent.sandbox_id.clone(),
            config: BASE64.encode(&intent.config),
            if_name: intent.ifname.clone(),
            network_name: intent.network.clone(),
            netns: intent.netns.path.to_string_lossy().into_owned(),
            cni_args: Some(intent.args.clone()),
            capability_args: (!intent.capability_args.is_empty()).then(|| intent.capability_args.clone()),
            result: result.clone(),
        }
    }

    /// The configuration list, if it is text.
    pub(crate) fn config(&self) -> Option<String> {
        String::from_utf8(BASE64.decode(&self.config).ok()?).ok()
    }

    pub(crate) fn args(&self) -> Vec<(String, String)> {
        self.cni_args.clone().unwrap_or_default()
    }

    pub(crate) fn capability_args(&self) -> Map<String, Value> {
        self.capability_args.clone().unwrap_or_default()
    }

    /// Whether a Kubernetes runtime made it. The directory is shared with others, such as podman.
    pub(crate) fn is_pod(&self) -> bool {
        self.cni_args.iter().flatten().any(|(name, value)| name == POD_ARG && *value == self.container_id)
    }
}

/// The directory of the files.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// The cache below libcni's directory, normally `/var/lib/cni`.
    pub(crate) fn new(cache_dir: &Path) -> Self {
        Self { dir: cache_dir.join("results") }
    }

    fn path(&self, network: &str, id: &str, ifname: &str) -> Option<PathBuf> {
        // An intent is made from checked names, but a record comes from a disk.
        (is_identifier(network) && is_identifier(id) && is_identifier(ifname))
            .then(|| self.dir.join(format!("{network}-{id}-{ifname}")))
    }

    /// Writes an attachment's file: whole or not at all, but not synced.
    pub(crate) fn store(&self, intent: &AttachIntent, result: &Value) -> Result<(), NetworkError> {
        let Some(path) = self.path(&intent.network, &intent.sandbox_id, &intent.ifname) else {
            return Ok(());
        };
        let text = serde_json::to_vec(&CachedAttachment::new(intent, result)).unwrap_or_default();
        std::fs::create_dir_all(&self.dir).map_err(|source| {
            let path = self.dir.clone();
            NetworkError::Io { stage: "make the CNI cache directory", path, source }
        })?;
        Ok(criox_sys::durable::write_atomic(&path, &text, 0o600)?)
    }

    /// The result of an attachment, if there is one.
    pub(crate) fn result(&self, intent: &AttachIntent) -> Option<Value> {
        let path = self.path(&intent.network, &intent.sandbox_id, &intent.ifname)?;
        let cached = read(&path)?;
        (cached.container_id == intent.sandbox_id && cached.result.is_object()).then_some(cached.result)
    }

    /// Removes an attachment's file; it is no error when there is none.
    pub(crate) fn remove(&self, network: &str, id: &str, ifname: &str) -> Result<(), NetworkError> {
        let Some(path) = self.path(network, id, ifname) else { return Ok(()) };
        self.remove_unfinished(&path);
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(NetworkError::Io { stage: "remove the CNI cache file", path, source })
            }
            _ => Ok(()),
        }
    }

    /// Removes what writing the file left when it was cut short. What can't be removed costs a name in a directory.
    fn remove_unfinished(&self, path: &Path) {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return };
        let unfinished = format!(".tmp-{name}");
        for entry in std::fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&unfinished) {
                drop(std::fs::remove_file(entry.path()));
            }
        }
    }

    /// Everything cached for a network.
    pub(crate) fn list(&self, network: &str) -> Vec<CachedAttachment> {
        let Ok(entries) = std::fs::read_dir(&self.dir) else { return Vec::new() };
        entries
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(network))
            .filter_map(|entry| read(&entry.path()))
            .filter(|cached| cached.network_name == network)
            .collect()
    }
}

fn read(path: &Path) -> Option<CachedAttachment> {
    let metadata = std::fs::symlink_metadata(path).ok()?;
    if !metadata.is_file() || metadata.len() > MAX_FILE {
        return None;
    }
    parse(&std::fs::read(path).ok()?)
}

fn parse(bytes: &[u8]) -> Option<CachedAttachment> {
    let cached: CachedAttachment = serde_json::from_slice(bytes).ok()?;
    (cached.kind == KIND).then_some(cached)
}

/// For [`crate::fuzz`]: what is read is written so that it is read again.
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz(bytes: &[u8]) {
    let Some(cached) = parse(bytes) else { return };
    drop((cached.config(), cached.args(), cached.capability_args(), cached.is_pod()));
    let again = serde_json::to_vec(&cached).ok().and_then(|bytes| parse(&bytes));
    assert_eq!(again.as_ref(), Some(&cached));
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;
    use crate::record::NetnsRef;

    pub(crate) fn intent(id: &str) -> AttachIntent {
        AttachIntent {
            version: 1,
            sandbox_id: id.into(),
            network: "pods".into(),
            ifname: "eth0".into(),
            netns: NetnsRef { path: "/run/netns/x".into(), dev: 4, ino: 5, cookie: None },
            config: r#"{"name":"pods"}"#.into(),
            args: vec![("IgnoreUnknown".into(), "1".into()), (POD_ARG.into(), id.into())],
            capability_args: Map::new(),
            host_ports: vec![],
        }
    }

    #[test]
    fn a_file_has_the_name_and_the_fields_of_libcni() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path());
        let mut one = intent("abc");
        one.capability_args.insert("mac".into(), "02:00:00:00:00:01".into());
        cache.store(&one, &json!({"cniVersion":"1.0.0","dns":{}})).unwrap();
        let text = std::fs::read_to_string(dir.path().join("results/pods-abc-eth0")).unwrap();
        let want = json!({"kind":"cniCacheV1","containerId":"abc","config":"eyJuYW1lIjoicG9kcyJ9","ifName":"eth0",
            "networkName":"pods","netns":"/run/netns/x","cniArgs":[["IgnoreUnknown","1"],[POD_ARG,"abc"]],
            "capabilityArgs":{"mac":"02:00:00:00:00:01"},"result":{"cniVersion":"1.0.0","dns":{}}});
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), want);
        assert_eq!(cache.result(&one).unwrap()["cniVersion"], "1.0.0");
        let listed = cache.list("pods");
        assert_eq!(listed.len(), 1);
        assert!(listed[0].is_pod());
        assert_eq!(listed[0].config().unwrap(), one.config);
        cache.remove("pods", "abc", "eth0").unwrap();
        cache.remove("pods", "abc", "eth0").unwrap();
        assert!(cache.result(&one).is_none());
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a fixture")]
    fn torn_and_foreign_files_are_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path());
        assert!(cache.list("pods").is_empty());
        let results = dir.path().join("results");
        std::fs::create_dir(&results).unwrap();
        std::fs::write(results.join("pods-abc-eth0"), "").unwrap();
        std::fs::write(results.join("pods-x-eth0"), r#"{"kind":"other"}"#).unwrap();
        let podman =
            json!({"kind":"cniCacheV1","containerId":"p","config":"","ifName":"eth0","networkName":"pods"});
        std::fs::write(results.join("pods-p-eth0"), podman.to_string()).unwrap();
        let listed = cache.list("pods");
        assert_eq!(listed.iter().map(|c| c.container_id.as_str()).collect::<Vec<_>>(), ["p"]);
        assert!(!listed[0].is_pod());
        assert!(cache.result(&intent("abc")).is_none());
    }

    #[test]
    fn no_name_leads_out_of_the_directory() {
        let cache = Cache::new(Path::new("/nonexistent"));
        assert_eq!(cache.path("pods", "../../etc/passwd", "eth0"), None);
        assert_eq!(cache.path("a/b", "id", "eth0"), None);
    }
}
