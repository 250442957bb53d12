//! Containers with user namespaces: the image's files belong to others, and nothing of that is on disk.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test that can't go on fails, or says why it is skipped"
)]

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use criox_store::{ContainerDraft, Error, ImageDraft, LayerDraft, Store, StoreOptions, UnpackLimits};
use criox_sys::idmap::{self, IdRange};
use criox_sys::mount;

mod archive;
use archive::Archive;

const RANGES: [IdRange; 2] = [
    IdRange { inside: 0, host: 100_000, length: 1000 },
    IdRange { inside: 1000, host: 200_000, length: 1000 },
];

struct Place {
    store: Store,
    base: tempfile::TempDir,
    owners: OwnedFd,
    image: String,
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = mount::unmount(&self.base.path().join("graph/overlay"), true);
    }
}

fn id(n: u8) -> String {
    format!("{n:064x}")
}

fn place() -> Option<Place> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return None;
    }
    let base = tempfile::tempdir().unwrap();
    let options = StoreOptions::new(base.path().join("graph"), base.path().join("run"));
    let (store, _) = Store::open(options).unwrap();
    let owners = idmap::user_namespace(&RANGES, &RANGES).unwrap();
    let place = Place { store, base, owners, image: id(1) };
    if let Err(error) = place.store.probe_idmap() {
        eprintln!("skipped: {error}");
        return None;
    }
    let mut top = None;
    for stream in [
        Archive::default().dir("d/").file("d/one", b"1").end(),
        Archive::default().dir("d/").file("d/two", b"2").end(),
    ] {
        let mut stage = place.store.stage_layer().unwrap();
        stage.unpack(stream.as_slice(), &UnpackLimits::default()).unwrap();
        let draft = LayerDraft { parent: top.clone(), ..LayerDraft::default() };
        top = Some(place.store.commit_layer(stage, draft).unwrap().id.clone());
    }
    let draft = ImageDraft {
        id: place.image.clone(),
        names: vec!["localhost/a:1".into()],
        top_layer: top,
        ..ImageDraft::default()
    };
    place.store.put_image(draft).unwrap();
    Some(place)
}

impl Place {
    fn container(&self, id: &str, mapped: bool) -> String {
        let ranges = if mapped { RANGES.to_vec() } else { Vec::new() };
        let draft = ContainerDraft {
            id: id.into(),
            names: vec![format!("name-{id}")],
            image_id: Some(self.image.clone()),
            users: ranges.clone(),
            groups: ranges,
            volatile: true,
            ..ContainerDraft::default()
        };
        self.store.create_container(draft).unwrap().layer.clone()
    }

    fn layer_dir(&self, layer: &str) -> PathBuf {
        self.base.path().join("graph/overlay").join(layer)
    }
}

fn owner(path: &Path) -> (u32, u32) {
    let meta = std::fs::symlink_metadata(path).unwrap();
    (meta.uid(), meta.gid())
}

#[test]
fn the_images_files_belong_to_the_mapped_users() {
    let Some(place) = place() else { return };
    let layer = place.container(&id(2), true);
    let plain = place.container(&id(3), false);
    let root = place.store.mount_mapped(&id(2), place.owners.as_fd()).unwrap();
    let other = place.store.mount(&id(3)).unwrap();
    let seen: Vec<_> = ["", "d", "d/one", "d/two"].iter().map(|name| owner(&root.join(name))).collect();
    criox_sys::durable::write_atomic(&root.join("d/one"), b"changed", 0o600).unwrap();
    std::os::unix::fs::chown(root.join("d/two"), Some(200_005), Some(100_007)).unwrap();
    let kept =
        (owner(&place.layer_dir(&layer).join("diff/d")), owner(&place.layer_dir(&layer).join("diff/d/two")));
    let unmapped = owner(&other.join("d/two"));
    let left = place.layer_dir(&layer).join("mapped").exists();
    // Mounted again by those who know nothing of it, as for one more user.
    assert_eq!(place.store.mount(&id(2)).unwrap(), root);
    for container in [id(2), id(3)] {
        assert!(place.store.delete_container(&container).unwrap());
    }
    assert_eq!(seen, [(100_000, 100_000); 4]);
    assert_eq!(kept, ((100_000, 100_000), (200_005, 100_007)), "copied up with the mapped owners");
    assert_eq!(unmapped, (0, 0));
    assert!(!left, "the mapped home is needed only for the moment of mounting");
    assert!(!place.layer_dir(&layer).exists() && !place.layer_dir(&plain).exists());
}

#[test]
fn the_record_has_the_mappings_as_the_peers_write_them() {
    let Some(place) = place() else { return };
    place.container(&id(2), true);
    let text =
        std::fs::read(place.base.path().join("graph/overlay-containers/volatile-containers.json")).unwrap();
    let records: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let ranges = serde_json::json!([
        { "container_id": 0, "host_id": 100_000, "size": 1000 },
        { "container_id": 1000, "host_id": 200_000, "size": 1000 },
    ]);
    assert_eq!((&records[0]["uidmap"], &records[0]["gidmap"]), (&ranges, &ranges));
    let refused = place.store.mount(&id(2)).unwrap_err();
    assert!(matches!(refused, Error::MappingsNeeded(_)), "{refused}");
    place.store.delete_container(&id(2)).unwrap();
}

/// What a process leaves that dies between the two halves of a mount.
fn leave_mapped_home(place: &Place, layer: &str) -> PathBuf {
    let home = place.base.path().join("graph/overlay");
    let left = home.join(layer).join("mapped/0");
    std::fs::create_dir_all(&left).unwrap();
    let clone = idmap::clone_mapped(&home, place.owners.as_fd(), false, true).unwrap();
    mount::attach(clone.as_fd(), &left).unwrap();
    assert!(left.join("l").is_dir());
    left
}

#[test]
fn a_mapped_home_that_a_crash_left_is_unmounted_when_the_store_is_opened() {
    let Some(place) = place() else { return };
    let layer = place.container(&id(2), true);
    let left = leave_mapped_home(&place, &layer);
    let (_, report) = Store::open(place.store.options().clone()).unwrap();
    let mounted = mount::is_mount_point(&left).unwrap();
    mount::unmount(&left, true).unwrap();
    assert!(!mounted, "{report:?}");
    assert!(report.problems.is_empty(), "{report:?}");
    place.store.delete_container(&id(2)).unwrap();
}

#[test]
fn a_trial_of_idmapped_mounts_that_was_cut_short_is_swept() {
    let Some(place) = place() else { return };
    place.store.probe_idmap().unwrap();
    let area = place.store.graph_root().join("overlay/staging/00112233aabbccdd");
    for name in ["lower", "mapped", "merged"] {
        std::fs::create_dir_all(area.join(name)).unwrap();
    }
    let ranges = [IdRange { inside: 0, host: 65_536, length: 65_536 }];
    let owners = idmap::user_namespace(&ranges, &ranges).unwrap();
    for name in ["mapped", "merged"] {
        let clone = idmap::clone_mapped(&area.join("lower"), owners.as_fd(), false, true).unwrap();
        mount::attach(clone.as_fd(), &area.join(name)).unwrap();
    }
    let (_, report) = Store::open(place.store.options().clone()).unwrap();
    assert!(report.problems.is_empty(), "{report:?}");
    assert!(!area.exists());
}

#[test]
fn a_container_is_removed_from_under_a_mapped_home_and_the_store_stays() {
    let Some(place) = place() else { return };
    let layer = place.container(&id(2), true);
    leave_mapped_home(&place, &layer);
    assert!(place.store.delete_container(&id(2)).unwrap());
    assert!(!place.layer_dir(&layer).exists());
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains(&layer), "a mount is left");
    // The image is whole.
    place.container(&id(3), false);
    let root = place.store.mount(&id(3)).unwrap();
    let content = std::fs::read(root.join("d/two"));
    place.store.delete_container(&id(3)).unwrap();
    assert_eq!(content.unwrap(), b"2");
    assert!(place.store.check().unwrap().is_empty());
}
