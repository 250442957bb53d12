//! What is known of a sandbox and its containers after the daemon has died: one versioned JSON file each,
//! under the graph root. A record that is absent, torn or of a later version never stops the others.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use criox_confine::Labels;
use criox_cri::ids::{ContainerId, SandboxId};
use criox_cri::v1;
use criox_sys::durable;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::notifier::Notifier;

/// The version that this build writes, and the newest that it reads.
pub const VERSION: u32 = 1;

/// A CRI message inside a record: base64 of its protobuf encoding, so that fields of a later interface survive.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded<T>(pub Arc<T>);

impl<T: prost::Message> Serialize for Encoded<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64.encode(self.0.encode_to_vec()))
    }
}

impl<'de, T: prost::Message + Default> Deserialize<'de> for Encoded<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        let text = String::deserialize(deserializer)?;
        let bytes = BASE64.decode(text).map_err(D::Error::custom)?;
        Ok(Self(Arc::new(T::decode(bytes.as_slice()).map_err(D::Error::custom)?)))
    }
}

/// How far a sandbox has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SandboxPhase {
    /// RunPodSandbox is at work; after a crash it is undone.
    Creating,
    /// Containers can be made in it.
    Ready,
    /// Stopped, or lost its monitor; waits for its removal.
    NotReady,
}

/// A pod sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// [`VERSION`] of the build that wrote it.
    pub version: u32,
    /// The sandbox.
    pub id: SandboxId,
    /// `/proc/sys/kernel/random/boot_id` of the boot in which it ran.
    pub boot_id: String,
    /// Nanoseconds since the epoch; rises from sandbox to sandbox.
    pub created_at: i64,
    /// How far it has come.
    pub phase: SandboxPhase,
    /// Whether a live call was given its ID.
    pub claimed: bool,
    /// Whether everything that StopPodSandbox gives back has been given back.
    pub torn_down: bool,
    /// The name of the runtime handler as requested; empty for the default.
    pub runtime_handler: String,
    /// The request's parent, or the default: the cgroupfs notation.
    pub cgroup_parent: String,
    /// The request.
    pub config: Encoded<v1::PodSandboxConfig>,
    /// IP addresses, the primary one first.
    #[serde(default)]
    pub ips: Vec<String>,
    /// The monitor's process: number and start time.
    #[serde(default)]
    pub monitor: Option<ProcessIdentity>,
    /// Process 1 of the pod's shared PID namespace.
    #[serde(default)]
    pub init: Option<ProcessIdentity>,
    /// What the last UpdatePodSandboxResources said, in place of the request's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated: Option<UpdatedSandbox>,
    /// SELinux labels of its own, with the level that no other pod has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selinux: Option<Labels>,
    /// RestorePod is at work on it: after a crash it is undone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub restoring: bool,
}

/// What UpdatePodSandboxResources said.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UpdatedSandbox {
    /// The sums of the pod's containers.
    pub resources: Option<Encoded<v1::LinuxContainerResources>>,
    /// What the pod itself needs.
    pub overhead: Option<Encoded<v1::LinuxContainerResources>>,
}

impl SandboxRecord {
    /// A record for what only an ID is known of: enough to remove by ID what may be left of it.
    pub fn without_request(id: SandboxId, boot_id: &str, cgroup_parent: &str) -> Self {
        Self {
            version: VERSION,
            id,
            boot_id: boot_id.to_owned(),
            created_at: 0,
            phase: SandboxPhase::Creating,
            claimed: false,
            torn_down: false,
            runtime_handler: String::new(),
            cgroup_parent: cgroup_parent.to_owned(),
            config: Encoded(Arc::default()),
            ips: Vec::new(),
            monitor: None,
            init: None,
            updated: None,
            selinux: None,
            restoring: false,
        }
    }

    /// The sums of the pod's containers that hold now.
    pub fn resources(&self) -> Option<&v1::LinuxContainerResources> {
        match &self.updated {
            Some(updated) => updated.resources.as_ref().map(|resources| &*resources.0),
            None => self.config.0.linux.as_ref()?.resources.as_ref(),
        }
    }

    /// What the pod itself needs now.
    pub fn overhead(&self) -> Option<&v1::LinuxContainerResources> {
        match &self.updated {
            Some(updated) => updated.overhead.as_ref().map(|overhead| &*overhead.0),
            None => self.config.0.linux.as_ref()?.overhead.as_ref(),
        }
    }
}

/// A process, told from a later one of the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// Its number.
    pub pid: i32,
    /// Clock ticks since boot (`/proc/<pid>/stat`, field 22).
    pub start_time: u64,
}

/// How far a container has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContainerPhase {
    /// CreateContainer is at work; after a crash it is undone.
    Creating,
    /// Its process waits for StartContainer.
    Created,
    /// StartContainer has succeeded.
    Running,
    /// Its process has ended.
    Exited,
}

/// The end of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// As a shell reports it: 128 plus the number of a signal.
    pub code: i32,
    /// Nanoseconds since the epoch.
    pub finished_at: i64,
    /// One of the words of [`criox_cri::reasons`].
    pub reason: String,
    /// For people; mostly empty.
    pub message: String,
}

/// The image of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageOfContainer {
    /// The image's ID, as ListImages gives it.
    pub id: String,
    /// The digested reference, else the ID.
    pub digested: String,
    /// One of the names that the image has.
    pub name: String,
}

/// An image that is mounted in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageVolume {
    /// Its place among the mounts of the request, from 0.
    pub mount: usize,
    /// The image's ID, as ListImages gives it.
    pub image: String,
}

/// A container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// [`VERSION`] of the build that wrote it.
    pub version: u32,
    /// The container.
    pub id: ContainerId,
    /// Its sandbox.
    pub sandbox_id: SandboxId,
    /// Nanoseconds since the epoch; rises from container to container.
    pub created_at: i64,
    /// Nanoseconds since the epoch; 0: not yet.
    pub started_at: i64,
    /// How far it has come.
    pub phase: ContainerPhase,
    /// Whether a live call was given its ID: until then it is in no list.
    pub claimed: bool,
    /// The request.
    pub config: Encoded<v1::ContainerConfig>,
    /// The image that its root file system is made of.
    pub image: ImageOfContainer,
    /// Absolute; empty without a log.
    pub log_path: PathBuf,
    /// The signal that asks its process to end, by number.
    pub stop_signal: i32,
    /// Who the first process is.
    #[serde(default)]
    pub user: Option<Encoded<v1::ContainerUser>>,
    /// Where its root file system is mounted while it is needed.
    pub root: PathBuf,
    /// Its cgroup as `/proc/<pid>/cgroup` names it.
    pub cgroup: String,
    /// The first process.
    #[serde(default)]
    pub process: Option<ProcessIdentity>,
    /// How it ended.
    #[serde(default)]
    pub exit: Option<Exit>,
    /// The images among its mounts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub image_volumes: Vec<ImageVolume>,
    /// The limits in force since the last UpdateContainerResources, in place of the request's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated: Option<Encoded<v1::LinuxContainerResources>>,
    /// Calls that its filter refuses are counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notifier: Option<Notifier>,
    /// When it was last checkpointed, in nanoseconds since the epoch; 0: never.
    #[serde(default, skip_serializing_if = "never")]
    pub checkpointed_at: i64,
    /// It goes on from a checkpoint: it has no process before its start, which brings that back to life.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub restored: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
fn never(time: &i64) -> bool {
    *time == 0
}

impl ContainerRecord {
    /// The limits that hold now.
    pub fn resources(&self) -> Option<&v1::LinuxContainerResources> {
        match &self.updated {
            Some(updated) => Some(&updated.0),
            None => self.config.0.linux.as_ref()?.resources.as_ref(),
        }
    }
}

/// Why a record could not be had.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file could not be read or written.
    #[error("record {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is torn, empty or damaged.
    #[error("record {path} is damaged")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// A later criox wrote it; it is left alone.
    #[error(
        "record {path} has version {version}, newer than this criox reads; start the newer criox, or remove the pod with it"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
}

#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// Reads a record.
///
/// # Errors
/// Absent or unreadable, damaged, or of a later version.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T, RecordError> {
    let bytes = std::fs::read(path).map_err(|source| RecordError::Io { path: path.into(), source })?;
    let damaged = |source| RecordError::Damaged { path: path.into(), source };
    let Versioned { version } = serde_json::from_slice(&bytes).map_err(damaged)?;
    if version > VERSION {
        return Err(RecordError::Newer { path: path.into(), version });
    }
    serde_json::from_slice(&bytes).map_err(damaged)
}

/// Writes a record by renaming, without waiting for the disk: a power cut ends pods anyway.
///
/// # Errors
/// The directory is absent, or the disk is full.
pub fn write<T: Serialize>(path: &Path, record: &T) -> Result<(), RecordError> {
    let bytes =
        serde_json::to_vec(record).map_err(|source| RecordError::Damaged { path: path.into(), source })?;
    durable::write_atomic(path, &bytes, 0o600)
        .map_err(|error| RecordError::Io { path: path.into(), source: std::io::Error::other(error) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that version 1 wrote; every later build must read them.
    const SANDBOX_1: &str = r#"{"version":1,"id":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "boot_id":"b","created_at":7,"phase":"ready","claimed":true,"torn_down":false,"runtime_handler":"",
        "cgroup_parent":"/kubepods/pod1","config":"CgsKA3BvZBIBdRoBbg==","ips":["10.0.0.2"],
        "monitor":{"pid":12,"start_time":34}}"#;
    const CONTAINER_1: &str = r#"{"version":1,"id":"cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc",
        "sandbox_id":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","created_at":8,"started_at":9,
        "phase":"exited","claimed":true,"config":"CgUKA3dlYg==","image":{"id":"i","digested":"d","name":"n"},
        "log_path":"/l","stop_signal":15,"root":"/r","cgroup":"/c",
        "exit":{"code":1,"finished_at":10,"reason":"Error","message":""}}"#;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::io::Write::write_all(&mut file.as_file(), text.as_bytes()).expect("it takes bytes");
        file
    }

    #[test]
    fn records_of_version_one_are_read_for_ever() {
        let sandbox: SandboxRecord = read(file(SANDBOX_1).path()).expect("a golden sandbox");
        assert_eq!((sandbox.phase, sandbox.created_at), (SandboxPhase::Ready, 7));
        let metadata = sandbox.config.0.metadata.clone().expect("the request is in it");
        assert_eq!(
            (metadata.name.as_str(), metadata.uid.as_str(), metadata.namespace.as_str()),
            ("pod", "u", "n")
        );
        let container: ContainerRecord = read(file(CONTAINER_1).path()).expect("a golden container");
        assert_eq!(container.exit.map(|exit| exit.code), Some(1));
        assert_eq!(container.config.0.metadata.clone().expect("the request is in it").name, "web");
    }

    #[test]
    fn what_is_written_is_read_again() {
        let sandbox: SandboxRecord = read(file(SANDBOX_1).path()).expect("a golden sandbox");
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("sandbox.json");
        write(&path, &sandbox).expect("the directory is there");
        let again: SandboxRecord = read(&path).expect("just written");
        assert_eq!(
            serde_json::to_value(&again).expect("JSON"),
            serde_json::to_value(&sandbox).expect("JSON")
        );
    }

    #[test]
    fn torn_and_later_records_are_told_apart() {
        for torn in ["", "{", &SANDBOX_1[..80], r#"{"version":1}"#] {
            let error = read::<SandboxRecord>(file(torn).path()).expect_err("torn");
            assert!(matches!(error, RecordError::Damaged { .. }), "{torn:?}: {error}");
        }
        let newer = SANDBOX_1.replace(r#""version":1"#, r#""version":2"#);
        let error = read::<SandboxRecord>(file(&newer).path()).expect_err("newer");
        assert!(matches!(error, RecordError::Newer { version: 2, .. }), "{error}");
    }
}
