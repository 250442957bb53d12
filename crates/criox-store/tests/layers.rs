//! Layers in, layers out, on a real filesystem as root.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test that can't go on fails, or says why it is skipped"
)]

use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use criox_store::{
    ContainerDraft, Digest, Error, ImageDraft, LayerDraft, Store, StoreOptions, UnpackLimits, layer_id,
};

mod archive;
use archive::{Archive, Header};

/// A store in a private directory, with a canary beside it.
struct Place {
    store: Store,
    base: tempfile::TempDir,
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = criox_sys::mount::unmount(&self.base.path().join("graph/overlay"), true);
    }
}

fn options(base: &Path) -> StoreOptions {
    StoreOptions::new(base.join("graph"), base.join("run"))
}

fn place() -> Option<Place> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return None;
    }
    let base = tempfile::tempdir().unwrap();
    let canary = base.path().join("canary");
    std::fs::create_dir(&canary).unwrap();
    criox_sys::durable::write_atomic(&canary.join("secret"), b"secret", 0o600).unwrap();
    let (store, _) = Store::open(options(base.path())).unwrap();
    Some(Place { store, base })
}

impl Place {
    fn add(&self, parent: Option<&str>, stream: &[u8]) -> String {
        let mut stage = self.store.stage_layer().unwrap();
        stage.unpack(stream, &UnpackLimits::default()).unwrap();
        let draft = LayerDraft { parent: parent.map(str::to_owned), ..LayerDraft::default() };
        self.store.commit_layer(stage, draft).unwrap().id.clone()
    }

    fn diff(&self, layer: &str) -> PathBuf {
        self.base.path().join("graph/overlay").join(layer).join("diff")
    }

    fn image(&self, id: &str, name: &str, top: &str) {
        let draft = ImageDraft {
            id: id.into(),
            names: vec![name.into()],
            top_layer: Some(top.into()),
            ..ImageDraft::default()
        };
        self.store.put_image(draft).unwrap();
    }

    fn container(&self, id: &str, image: &str) {
        let draft = ContainerDraft {
            id: id.into(),
            names: vec![format!("name-{id}")],
            image_id: Some(image.into()),
            volatile: true,
            ..ContainerDraft::default()
        };
        self.store.create_container(draft).unwrap();
    }

    fn check_canary(&self) {
        let canary = self.base.path().join("canary");
        let secret = canary.join("secret");
        assert_eq!(std::fs::read(&secret).unwrap(), b"secret");
        assert_eq!(std::fs::metadata(&secret).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(std::fs::metadata(&secret).unwrap().nlink(), 1);
        assert_eq!(std::fs::metadata(&canary).unwrap().mode() & 0o7777, 0o755);
        assert_eq!(std::fs::read_dir(&canary).unwrap().count(), 1);
    }
}

fn id(n: u8) -> String {
    format!("{n:02x}").repeat(32)
}

#[test]
fn a_layer_comes_out_as_it_went_in() {
    let Some(place) = place() else { return };
    let stream = Archive::default()
        .dir("./")
        .dir("./etc/")
        .file("./etc/passwd", b"root:x:0:0::/:/bin/sh\n")
        .entry(Header { name: b"bin/su", mode: 0o4755, uid: 5, gid: 6, ..Header::default() }, b"su")
        .entry(
            Header {
                name: b"bin/su2",
                kind: b'1',
                link: b"bin/su",
                mode: 0o4755,
                uid: 5,
                gid: 6,
                ..Header::default()
            },
            b"",
        )
        .symlink("etc/link", "/etc/passwd")
        .entry(Header { name: b"fifo", kind: b'6', mode: 0o622, ..Header::default() }, b"")
        .entry(Header { name: b"null", kind: b'3', mode: 0o666, device: (1, 3), ..Header::default() }, b"")
        .pax(&[
            ("mtime", b"1234567890.123456789"),
            ("SCHILY.xattr.user.note", b"hi"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/"),
        ])
        .file("times", b"t")
        .pax(&[("GNU.sparse.map", b"4096,5"), ("GNU.sparse.size", b"1048576")])
        .file("sparse", b"abcde")
        .file("empty", b"")
        .file("big", &vec![7u8; 700_000])
        .end();
    let layer = place.add(None, &stream);
    assert_eq!(layer, Digest::sha256(&stream).hex());
    let root = place.diff(&layer);
    let meta = |name: &str| std::fs::symlink_metadata(root.join(name)).unwrap();
    assert_eq!((meta("").mode() & 0o7777, meta("").uid()), (0o555, 0));
    assert_eq!((meta("bin/su").mode() & 0o7777, meta("bin/su").uid(), meta("bin/su").gid()), (0o4755, 5, 6));
    assert_eq!(meta("bin/su").ino(), meta("bin/su2").ino());
    assert_eq!(std::fs::read_link(root.join("etc/link")).unwrap(), Path::new("/etc/passwd"));
    assert!(meta("fifo").file_type().is_fifo());
    assert_eq!((meta("null").rdev(), meta("null").mode() & 0o7777), (rustix::fs::makedev(1, 3), 0o666));
    assert_eq!((meta("times").mtime(), meta("times").mtime_nsec()), (1_234_567_890, 123_456_789));
    assert_eq!(meta("etc").mtime(), 1_600_000_000);
    assert_eq!(meta("sparse").size(), 1_048_576);
    assert!(meta("sparse").blocks() < 100, "holes stay holes");
    assert_eq!(&std::fs::read(root.join("sparse")).unwrap()[4096..4101], b"abcde");
    let times = std::fs::File::open(root.join("times")).unwrap();
    let names = criox_sys::xattr::list(std::os::fd::AsFd::as_fd(&times)).unwrap();
    assert_eq!(names, ["user.note"]);
    let mut again = Vec::new();
    place.store.layer_diff(&layer).unwrap().read_to_end(&mut again).unwrap();
    assert!(again == stream, "the stream differs");
    let record = place.store.layer(&layer).unwrap();
    assert_eq!((record.uids.as_slice(), record.gids.as_slice()), (&[0, 5][..], &[0, 6][..]));
    assert_eq!(record.size(), stream.len() as u64);
    assert!(place.store.check().unwrap().is_empty());
}

#[test]
fn a_container_sees_its_layers_merged() {
    let Some(place) = place() else { return };
    let base = Archive::default()
        .dir("d/")
        .file("d/old", b"1")
        .file("gone", b"2")
        .dir("opaque/")
        .file("opaque/hidden", b"3")
        .dir("redone/")
        .file("redone/hidden", b"4")
        .end();
    let top = Archive::default()
        .file(".wh.gone", b"")
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/new", b"5")
        .file(".wh.redone", b"")
        .dir("redone/")
        .file("d/new", b"6")
        .end();
    let base = place.add(None, &base);
    let top_id = place.add(Some(&base), &top);
    assert_eq!(top_id, layer_id(Some(&base), &Digest::sha256(&top)));
    place.image(&id(1), "localhost/a:1", &top_id);
    place.container(&id(2), "localhost/a:1");
    let root = place.store.mount(&id(2)).unwrap();
    assert_eq!(place.store.mount(&id(2)).unwrap(), root);
    let names = |dir: &str| {
        let mut names: Vec<_> = std::fs::read_dir(root.join(dir))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let seen = (names(""), names("d"), names("opaque"), names("redone"));
    criox_sys::durable::write_atomic(&root.join("d/written"), b"x", 0o600).unwrap();
    assert!(!place.store.unmount(&id(2)).unwrap());
    assert!(place.store.unmount(&id(2)).unwrap());
    let again = place.store.mount(&id(2)).unwrap();
    let kept = again.join("d/written").exists();
    assert!(place.store.delete_container(&id(2)).unwrap());
    assert!(!place.store.delete_container(&id(2)).unwrap());
    assert_eq!(seen.0, ["d", "opaque", "redone"]);
    assert_eq!(seen.1, ["new", "old"]);
    assert_eq!(seen.2, ["new"]);
    assert!(seen.3.is_empty());
    assert!(kept, "a volatile mount can be made again");
    assert!(!criox_sys::mount::is_mount_point(&root).unwrap());
    assert!(matches!(place.store.delete_image("unknown"), Err(Error::ImageUnknown(_))));
    assert_eq!(place.store.delete_image(&id(1)).unwrap(), [top_id.clone(), base.clone()]);
    assert!(place.store.layers().unwrap().is_empty());
    let left: Vec<_> = std::fs::read_dir(place.base.path().join("graph/overlay"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(left.len(), 2, "{left:?}");
    assert_eq!(std::fs::read_dir(place.base.path().join("graph/overlay/l")).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(place.base.path().join("graph/overlay/staging")).unwrap().count(), 0);
}

#[test]
fn hostile_layers_do_no_harm() {
    let Some(place) = place() else { return };
    let canary = place.base.path().join("canary");
    let canary = canary.to_str().unwrap();
    // The digits of `..` that would lead from a layer's directory to the canary.
    let up = "../../../../../canary";
    let long = "x".repeat(300);
    let deep = "d/".repeat(3000);
    let refused = [
        Archive::default().file("../../x", b"x"),
        Archive::default().file("a/../../x", b"x"),
        Archive::default().symlink("link", canary).file("link/new", b"x"),
        Archive::default().symlink("link", up).file("link/new", b"x"),
        Archive::default().symlink("loop", "loop").file("loop/new", b"x"),
        Archive::default().symlink("link", canary).file("link/.wh.secret", b""),
        Archive::default().symlink("link", canary).file("link/.wh..wh..opq", b""),
        Archive::default().hardlink("h", &format!("{canary}/secret")),
        Archive::default().hardlink("h", "../../../../canary/secret"),
        Archive::default().symlink("link", canary).hardlink("h", "link/secret"),
        Archive::default().file(".wh...", b""),
        Archive::default().file(".wh..", b""),
        Archive::default().file(".wh.", b""),
        Archive::default().pax(&[("path", long.as_bytes())]).file("x", b""),
        Archive::default().pax(&[("path", deep.as_bytes())]).file("x", b""),
        Archive::default().file("twice", b"1").file("./twice", b"2"),
        Archive::default().pax(&[("SCHILY.xattr.user.x", &vec![b'x'; 70_000])]).file("x", b""),
        Archive::default()
            .pax(&[("GNU.sparse.map", b"0,0"), ("GNU.sparse.size", b"9223372036854775807")])
            .file("bomb", b""),
        Archive::default().pax(&[("uid", b"4294967296")]).file("x", b""),
        Archive::default().file(".", b"not a directory"),
    ];
    for (n, stream) in refused.into_iter().enumerate() {
        let mut stage = place.store.stage_layer().unwrap();
        let result = stage.unpack(&stream.end()[..], &UnpackLimits::default());
        assert!(matches!(result, Err(Error::Content(_))), "{n}: {result:?}");
        place.check_canary();
    }
    let harmless = [
        Archive::default().file("/../../abs", b"x"),
        Archive::default()
            .symlink("d", canary)
            .entry(Header { name: b"e", mode: 0o777, ..Header::default() }, b""),
        Archive::default().symlink("s", &format!("{canary}/secret")).hardlink("h", "s"),
        Archive::default().symlink("etc", "/").file("etc/x", b"inside"),
        Archive::default()
            .entry(Header { name: b"sda", kind: b'4', device: (8, 0), ..Header::default() }, b""),
    ];
    for stream in harmless {
        let mut stage = place.store.stage_layer().unwrap();
        stage.unpack(&stream.end()[..], &UnpackLimits::default()).unwrap();
        place.check_canary();
    }
    // A path is replaced through itself: first a link to the canary, then something else of the same name.
    let replaced = |kind: u8| {
        Archive::default()
            .symlink("x", canary)
            .entry(Header { name: b"y/../x", kind, mode: 0o777, ..Header::default() }, b"")
            .end()
    };
    for kind in *b"05" {
        let result = place.store.stage_layer().unwrap().unpack(&replaced(kind)[..], &UnpackLimits::default());
        assert!(result.is_err());
        place.check_canary();
    }
    assert_eq!(std::fs::read_dir(place.base.path().join("graph/overlay/staging")).unwrap().count(), 0);
    // A whole store is closed to others.
    assert_eq!(std::fs::metadata(place.base.path().join("graph")).unwrap().mode() & 0o777, 0o700);
}

#[test]
fn limits_and_broken_input_end_the_unpacking() {
    let Some(place) = place() else { return };
    let stream = Archive::default().file("a", &[1; 5000]).file("b", &[2; 5000]).end();
    let unpack = |limits: &UnpackLimits| place.store.stage_layer().unwrap().unpack(&stream[..], limits);
    let limits = UnpackLimits::default();
    assert!(matches!(unpack(&UnpackLimits { max_bytes: 8000, ..limits.clone() }), Err(Error::Content(_))));
    assert!(matches!(unpack(&UnpackLimits { max_entries: 1, ..limits.clone() }), Err(Error::Content(_))));
    let directories = Archive::default().dir("one/").dir("two/").end();
    let unpack_directories = |max_directory_paths| {
        let limits = UnpackLimits { max_directory_paths, ..limits.clone() };
        place.store.stage_layer().unwrap().unpack(&directories[..], &limits)
    };
    assert!(matches!(unpack_directories(5), Err(Error::Content(_))));
    assert!(unpack_directories(6).is_ok());
    let full = unpack(&UnpackLimits { reserve_bytes: u64::MAX, ..limits.clone() }).unwrap_err();
    assert!(full.is_out_of_space(), "{full:?}");
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::ConnectionReset.into())
        }
    }
    let broken = place.store.stage_layer().unwrap().unpack((&stream[..700]).chain(Broken), &limits);
    assert!(matches!(broken, Err(Error::Input(_))), "{broken:?}");
    let mut stage = place.store.stage_layer().unwrap();
    stage.unpack(&stream[..], &limits).unwrap();
    let draft = LayerDraft { diff_id: Some(Digest::sha256(b"other")), ..LayerDraft::default() };
    assert!(matches!(place.store.commit_layer(stage, draft), Err(Error::DiffIdMismatch { .. })));
    assert!(place.store.layers().unwrap().is_empty());
}

#[test]
fn opening_sweeps_what_a_crash_left() {
    let Some(place) = place() else { return };
    let keep = place.add(None, &Archive::default().file("a", b"1").end());
    let cut = place.add(Some(&keep), &Archive::default().file("b", b"2").end());
    let lost = place.add(Some(&keep), &Archive::default().file("c", b"3").end());
    place.image(&id(1), "localhost/a:1", &keep);
    place.image(&id(4), "localhost/b:1", &lost);
    place.container(&id(2), &id(4));
    let graph = place.base.path().join("graph");
    let json = graph.join("overlay-layers/layers.json");
    let mut layers: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    for layer in layers.as_array_mut().unwrap() {
        if layer["id"] == cut.as_str() {
            layer["flags"] = serde_json::json!({"incomplete": true});
        }
    }
    criox_sys::durable::write_atomic(&json, layers.to_string().as_bytes(), 0o600).unwrap();
    criox_sys::durable::write_atomic(&graph.join("overlay-layers/volatile-layers.json"), b"", 0o600).unwrap();
    std::fs::create_dir_all(graph.join("overlay").join(id(7)).join("diff/x")).unwrap();
    std::fs::create_dir_all(graph.join("overlay/staging/dead/dir/x")).unwrap();
    std::fs::create_dir_all(graph.join("overlay-images").join(id(8))).unwrap();
    let alive = place.store.stage_layer().unwrap();
    let (store, report) = Store::open(options(place.base.path())).unwrap();
    assert_eq!(report.incomplete_layers, std::slice::from_ref(&cut));
    assert_eq!(report.stale_staging, 1);
    assert_eq!(report.lost_containers, [id(2)]);
    assert!(
        report.orphan_directories.contains(&id(7)) && report.orphan_directories.contains(&id(8)),
        "{report:?}"
    );
    assert!(report.problems.is_empty(), "{report:?}");
    assert_eq!(std::fs::read_dir(graph.join("overlay/staging")).unwrap().count(), 1, "a live stage stays");
    drop(alive);
    assert!(store.layer(&keep).is_ok() && store.layer(&cut).is_err());
    assert!(!graph.join("overlay").join(&cut).exists());
    assert!(!graph.join("overlay-layers").join(format!("{cut}.tar-split.gz")).exists());
    assert!(store.containers().unwrap().is_empty());
    assert_eq!(store.check().unwrap(), []);
    let (_, again) = Store::open(options(place.base.path())).unwrap();
    assert!(again.incomplete_layers.is_empty() && again.orphan_directories.is_empty());
}

#[test]
fn the_layer_of_a_container_without_a_record_is_swept() {
    let Some(place) = place() else { return };
    let base = place.add(None, &Archive::default().file("a", b"1").end());
    place.image(&id(1), "localhost/a:1", &base);
    place.container(&id(2), &id(1));
    place.container(&id(3), &id(1));
    let layer_of = |store: &Store, container: u8| store.container(&id(container)).unwrap().layer.clone();
    let (lost, kept) = (layer_of(&place.store, 2), layer_of(&place.store, 3));
    let json = place.base.path().join("graph/overlay-containers/volatile-containers.json");
    let mut containers: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    containers.as_array_mut().unwrap().retain(|container| container["id"] != id(2).as_str());
    criox_sys::durable::write_atomic(&json, containers.to_string().as_bytes(), 0o600).unwrap();
    let (store, report) = Store::open(options(place.base.path())).unwrap();
    assert_eq!(report.incomplete_layers, std::slice::from_ref(&lost));
    assert!(store.layer(&lost).is_err() && store.layer(&kept).is_ok() && store.layer(&base).is_ok());
    // Its name is free again.
    place.container(&id(2), &id(1));
    assert_eq!(store.check().unwrap(), []);
}

#[test]
fn a_layer_that_somebody_left_half_made_is_made_anew() {
    let Some(place) = place() else { return };
    let stream = Archive::default().file("a", b"1").end();
    let layer = place.add(None, &stream);
    let json = place.base.path().join("graph/overlay-layers/layers.json");
    let mut layers: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    layers[0]["flags"] = serde_json::json!({"incomplete": true});
    criox_sys::durable::write_atomic(&json, layers.to_string().as_bytes(), 0o600).unwrap();
    std::fs::remove_file(place.diff(&layer).join("a")).unwrap();
    assert!(place.store.layer(&layer).is_err());
    assert_eq!(place.add(None, &stream), layer);
    assert_eq!(std::fs::read(place.diff(&layer).join("a")).unwrap(), b"1");
    assert_eq!(place.store.check().unwrap(), []);
}

#[test]
fn the_header_of_a_hard_link_speaks_of_the_file() {
    let Some(place) = place() else { return };
    let link = |name: &'static [u8], target: &'static [u8], mode, uid| Header {
        name,
        kind: b'1',
        link: target,
        mode,
        uid,
        ..Header::default()
    };
    // CAP_NET_RAW: struct vfs_cap_data of version 2.
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let stream = Archive::default()
        .file("changed", b"1")
        .entry(link(b"changed2", b"changed", 0o4750, 7), b"")
        .pax(&[("SCHILY.xattr.security.capability", &capability)])
        .entry(Header { name: b"ping", mode: 0o755, ..Header::default() }, b"2")
        .entry(link(b"ping2", b"ping", 0o755, 0), b"")
        .symlink("s", "changed")
        .entry(link(b"s2", b"s", 0o600, 9), b"")
        .end();
    let root = place.diff(&place.add(None, &stream));
    let meta = |name: &str| std::fs::symlink_metadata(root.join(name)).unwrap();
    assert_eq!((meta("changed").mode() & 0o7777, meta("changed").uid()), (0o4750, 7));
    assert!(meta("s2").file_type().is_symlink() && meta("s2").ino() == meta("s").ino());
    let ping = std::fs::File::open(root.join("ping2")).unwrap();
    assert_eq!(criox_sys::xattr::list(std::os::fd::AsFd::as_fd(&ping)).unwrap(), ["security.capability"]);
}

#[test]
fn names_move_between_images_and_prefixes_find_them() {
    let Some(place) = place() else { return };
    let layer = place.add(None, &Archive::default().file("a", b"1").end());
    place.image(&id(0x11), "localhost/a:1", &layer);
    place.image(&id(0x12), "localhost/a:1", &layer);
    assert_eq!(place.store.image("localhost/a:1").unwrap().id, id(0x12));
    let first = place.store.image("111").unwrap();
    assert!(first.names.is_empty());
    assert_eq!(first.names_history, ["localhost/a:1"]);
    assert!(matches!(place.store.image("1"), Err(Error::ImageAmbiguous(_))));
    assert!(matches!(place.store.image(""), Err(Error::ImageUnknown(_))));
    place.store.add_names(&id(0x11), &["localhost/b:1".into()]).unwrap();
    place.store.set_names(&id(0x12), &["localhost/b:1".into()]).unwrap();
    assert!(place.store.image(&id(0x11)).unwrap().names.is_empty());
    place.store.remove_names(&id(0x12), &["localhost/b:1".into()]).unwrap();
    assert!(place.store.image(&id(0x12)).unwrap().names.is_empty());
    place.container(&id(3), &id(0x12));
    assert!(matches!(place.store.delete_image(&id(0x12)), Err(Error::ImageInUse { .. })));
    assert_eq!(
        place.store.delete_image(&id(0x11)).unwrap(),
        Vec::<String>::new(),
        "the layer is still needed"
    );
    assert!(place.store.usage().unwrap().bytes > 0);
    place.store.count_inodes().unwrap();
    assert!(place.store.usage().unwrap().inodes > 0);
}

#[test]
fn a_layer_that_is_there_is_reused_and_a_mount_is_not_lost_under_a_link() {
    let Some(place) = place() else { return };
    let stream = Archive::default().file("a", b"1").end();
    let one = place.add(None, &stream);
    assert_eq!(place.add(None, &stream), one);
    assert_eq!(place.store.layers().unwrap().len(), 1);
    assert_eq!(place.store.layers_by_uncompressed_digest(&Digest::sha256(&stream)).unwrap().len(), 1);
    // The short links are made anew when they are gone.
    let links = place.base.path().join("graph/overlay/l");
    criox_sys::durable::remove_tree(&links).unwrap();
    std::fs::create_dir(&links).unwrap();
    symlink("nowhere", links.join("X")).unwrap();
    place.image(&id(1), "localhost/a:1", &one);
    place.container(&id(2), &id(1));
    let root = place.store.mount(&id(2)).unwrap();
    let seen = root.join("a").exists();
    place.store.delete_container(&id(2)).unwrap();
    assert!(seen);
}

#[test]
fn parallel_commits_and_readers_agree() {
    let Some(place) = place() else { return };
    let place = &place;
    std::thread::scope(|scope| {
        for worker in 0..4u8 {
            scope.spawn(move || {
                for round in 0..5u8 {
                    let layer = place.add(None, &Archive::default().file("a", &[worker, round]).end());
                    place.image(&id(worker * 16 + round), &format!("localhost/{worker}:{round}"), &layer);
                    assert!(place.store.image(&format!("localhost/{worker}:{round}")).is_ok());
                    if round % 2 == 0 {
                        place.store.delete_image(&id(worker * 16 + round)).unwrap();
                    }
                }
            });
        }
    });
    assert_eq!(place.store.images().unwrap().len(), 8);
    assert_eq!(place.store.layers().unwrap().len(), 8);
    assert_eq!(place.store.check().unwrap(), []);
}

#[test]
fn only_old_layers_that_nothing_needs_are_removed() {
    let Some(place) = place() else { return };
    let base = place.add(None, &Archive::default().file("a", b"1").end());
    let used = place.add(Some(&base), &Archive::default().file("b", b"2").end());
    let unused = place.add(Some(&base), &Archive::default().file("c", b"3").end());
    place.image(&id(1), "localhost/a:1", &used);
    let day = std::time::Duration::from_secs(86_400);
    assert!(place.store.remove_unreferenced_layers(day).unwrap().is_empty());
    assert_eq!(place.store.remove_unreferenced_layers(std::time::Duration::ZERO).unwrap(), [unused]);
    assert_eq!(place.store.check().unwrap(), []);
    assert_eq!(place.store.layers().unwrap().len(), 2);
}
