//! Captures, intakes, and canaries beside them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use criox_checkpoint::{BindMount, Cancel, ConfigDump, FileType, Intake, Limits, Metadata, names};

/// A `config.json` as a runtime gets it, with much that no restore may take from it.
pub(crate) const SPEC: &str = r#"{
  "ociVersion": "1.2.0",
  "process": {
    "terminal": false,
    "user": {"uid": 1000, "gid": 1001, "additionalGids": [7]},
    "args": ["sh", "-c", "x"], "env": ["A=b"], "cwd": "/w", "noNewPrivileges": true,
    "capabilities": {"bounding": ["CAP_SYS_ADMIN"]}
  },
  "root": {"path": "/r", "readonly": true},
  "hostname": "h",
  "mounts": [
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {"destination": "/data", "type": "bind", "source": "/host/data", "options": ["rbind", "ro"]}
  ],
  "annotations": {"io.kubernetes.cri-o.Seccomp": "unconfined", "cdi.k8s.io/x": "vendor.com/gpu=all"},
  "hooks": {"createRuntime": [{"path": "/bin/evil"}]},
  "linux": {"namespaces": [{"type": "pid"}, {"type": "network", "path": "/x"}], "seccomp": null}
}"#;

pub(crate) fn config() -> ConfigDump {
    ConfigDump {
        id: "c1".repeat(32),
        name: "k8s_c_p_ns_uid_0".into(),
        rootfs_image: "docker.io/library/busybox:1".into(),
        rootfs_image_ref: "ab".repeat(32),
        rootfs_image_name: "docker.io/library/busybox:1".into(),
        runtime: "crun".into(),
        created: "2026-01-02T03:04:05.6Z".parse().unwrap(),
        checkpointed: "2026-01-02T03:05:05Z".parse().unwrap(),
        ..ConfigDump::default()
    }
}

pub(crate) fn bind_mounts() -> Vec<BindMount> {
    vec![BindMount {
        source: "/host/data".into(),
        destination: "/data".into(),
        file_type: FileType::Directory,
        permissions: 0o755,
    }]
}

pub(crate) fn put(path: &Path, bytes: &[u8]) {
    File::options().write(true).create_new(true).open(path).unwrap().write_all(bytes).unwrap();
}

/// Images of a real dump.
pub(crate) fn real_images() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/images/criu-4.2")
}

/// A capture with images of a real dump and all other files.
pub(crate) fn capture(dir: &Path) {
    let images = dir.join(names::IMAGES);
    std::fs::create_dir_all(&images).unwrap();
    for entry in std::fs::read_dir(real_images()).unwrap() {
        let entry = entry.unwrap();
        put(&images.join(entry.file_name()), &std::fs::read(entry.path()).unwrap());
    }
    put(&images.join("pages-1.img"), &[7; 100_000]);
    for name in [names::STATS_DUMP, names::DUMP_LOG, names::LOG, names::ROOT_DIFF] {
        put(&dir.join(name), name.as_bytes());
    }
    put(&dir.join(names::DELETED_FILES), b"[\"/gone\"]\n");
    Metadata::write(dir, &config(), SPEC.as_bytes(), &bind_mounts()).unwrap();
}

/// All files below a directory with their content; links and the like by their kind.
pub(crate) fn tree(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(at) = pending.pop() {
        for entry in std::fs::read_dir(&at).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
            let kind = std::fs::symlink_metadata(&path).unwrap().file_type();
            if kind.is_dir() {
                pending.push(path);
            } else if kind.is_file() {
                found.insert(name, std::fs::read(path).unwrap());
            } else {
                found.insert(name, format!("{kind:?}").into_bytes());
            }
        }
    }
    found
}

/// A place with a directory to take checkpoints in, and files beside it that nothing may touch.
pub(crate) struct Place {
    pub(crate) base: tempfile::TempDir,
    before: BTreeMap<String, Vec<u8>>,
}

impl Place {
    pub(crate) fn new() -> Self {
        let base = tempfile::tempdir().unwrap();
        std::fs::create_dir(base.path().join("canary")).unwrap();
        put(&base.path().join("canary/file"), b"alive");
        std::fs::create_dir(base.path().join("into")).unwrap();
        let before = tree(&base.path().join("canary"));
        Self { base, before }
    }

    pub(crate) fn intake(&self) -> PathBuf {
        self.base.path().join("into")
    }

    /// Unpacks an archive of these bytes.
    pub(crate) fn unpack(&self, archive: &[u8], limits: &Limits) -> criox_checkpoint::Result<Intake> {
        let path = self.base.path().join("archive.tar");
        let _ = std::fs::remove_file(&path);
        put(&path, archive);
        let file = criox_checkpoint::archive::open(&path)?;
        criox_checkpoint::unpack(&file, &self.intake(), limits, &Cancel::new())
    }

    /// Nothing beside the intake has changed, and the intake holds nothing but regular files.
    #[track_caller]
    pub(crate) fn check_unharmed(&self) {
        assert_eq!(tree(&self.base.path().join("canary")), self.before);
        for (name, content) in tree(&self.intake()) {
            assert!(!content.starts_with(b"FileType"), "{name} is {}", String::from_utf8_lossy(&content));
        }
        for entry in std::fs::read_dir(self.base.path()).unwrap() {
            let name = entry.unwrap().file_name();
            assert!(
                ["canary", "into", "archive.tar", "source", "root"].iter().any(|known| name == *known),
                "{name:?}"
            );
        }
    }
}

pub(crate) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}
