//! The JSON files as CRI-O writes them and as we do.

use criox_checkpoint::{BindMount, ConfigDump, FileType, Metadata, SpecDump, names};
use criox_store::Timestamp;

use crate::harness::{SPEC, bind_mounts, config};

/// In the form of checkpointctl's library, with all of its keys, and times of a zone as Go writes them.
const FROM_CRIO: &str = r#"{
  "id": "a0",
  "name": "k8s_counter_pod_default_uid_0",
  "rootfsImage": "quay.io/x/counter:latest",
  "rootfsImageRef": "ab",
  "rootfsImageName": "quay.io/x/counter:latest",
  "runtime": "runc",
  "createdTime": "2024-05-06T09:08:07.123456789+02:00",
  "checkpointedTime": "2024-05-06T09:10:07.5+02:00",
  "restoredTime": "0001-01-01T00:00:00Z",
  "restored": false,
  "aLaterKey": {}
}"#;

#[test]
fn config_dump_of_crio_is_read() {
    let config = ConfigDump::parse(FROM_CRIO.as_bytes()).unwrap();
    assert_eq!((config.id.as_str(), config.runtime.as_str(), config.restored), ("a0", "runc", false));
    assert_eq!(config.rootfs_image_name, "quay.io/x/counter:latest");
    assert_eq!(config.created.to_string(), "2024-05-06T07:08:07.123456789Z");
    assert_eq!(config.restored_at, Timestamp::ZERO);
    // podman leaves keys out.
    let short = ConfigDump::parse(br#"{"id":"a","name":"b","createdTime":"2024-05-06T07:08:07Z"}"#).unwrap();
    assert_eq!((short.rootfs_image_ref.as_str(), short.checkpointed), ("", Timestamp::ZERO));
}

/// Released bytes: they are read by checkpointctl, CRI-O and podman.
#[test]
fn what_is_written_has_the_keys_that_peers_read() {
    let dir = tempfile::tempdir().unwrap();
    Metadata::write(dir.path(), &config(), SPEC.as_bytes(), &bind_mounts()).unwrap();
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    let (id, image) = ("c1".repeat(32), "ab".repeat(32));
    let expected = format!(
        r#"{{
  "id": "{id}",
  "name": "k8s_c_p_ns_uid_0",
  "rootfsImage": "docker.io/library/busybox:1",
  "rootfsImageRef": "{image}",
  "rootfsImageName": "docker.io/library/busybox:1",
  "runtime": "crun",
  "createdTime": "2026-01-02T03:04:05.6Z",
  "checkpointedTime": "2026-01-02T03:05:05Z",
  "restoredTime": "0001-01-01T00:00:00Z",
  "restored": false
}}
"#
    );
    assert_eq!(read(names::CONFIG_DUMP), expected);
    let expected = r#"[
  {
    "source": "/host/data",
    "destination": "/data",
    "file_type": "directory",
    "permissions": 493
  }
]
"#;
    assert_eq!(read(names::BIND_MOUNTS), expected);
    assert_eq!(read(names::SPEC_DUMP), SPEC);
    let without = tempfile::tempdir().unwrap();
    Metadata::write(without.path(), &config(), SPEC.as_bytes(), &[]).unwrap();
    assert!(!without.path().join(names::BIND_MOUNTS).exists());
}

#[test]
fn the_specification_tells_what_to_expect() {
    let spec = SpecDump::parse(SPEC.as_bytes()).unwrap();
    assert_eq!((spec.uid, spec.gid, spec.additional_gids.as_slice()), (1000, 1001, &[7][..]));
    assert_eq!((spec.args.len(), spec.env[0].as_str(), spec.cwd.as_str()), (3, "A=b", "/w"));
    assert!(spec.no_new_privileges && spec.readonly_root && !spec.terminal);
    assert_eq!(spec.namespaces, ["pid", "network"]);
    assert_eq!(spec.mounts.iter().map(|mount| mount.is_bind()).collect::<Vec<_>>(), [false, true]);
    // What Go writes for empty lists.
    let empty =
        SpecDump::parse(br#"{"process":{"args":null,"env":null},"mounts":null,"linux":{"namespaces":null}}"#);
    assert_eq!(empty.unwrap(), SpecDump::default());
}

#[test]
fn a_bind_mount_tells_what_its_source_is() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f");
    crate::harness::put(&file, b"");
    let of = |path: &std::path::Path| BindMount::of(path, "/x").unwrap().file_type;
    assert_eq!((of(dir.path()), of(&file)), (FileType::Directory, FileType::File));
    BindMount::of(&dir.path().join("none"), "/x").unwrap_err();
}
