//! The store's user is killed at random moments; whoever opens the store next finds it sound.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test that can't go on fails, or says why it is skipped"
)]

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use criox_store::{BigData, ContainerDraft, ImageDraft, LayerDraft, Store, StoreOptions, UnpackLimits};

mod archive;
use archive::Archive;
mod peers;
use peers::Peers;

/// Names the store's directory to the process that is to be killed.
const WORKER: &str = "CRIOX_STORE_CRASH_WORKER";

fn open(base: &Path) -> (Store, criox_store::OpenReport) {
    Store::open(StoreOptions::new(base.join("graph"), base.join("run"))).unwrap()
}

/// Pulls, runs and removes the same few things over and over; says so when it has begun.
fn work(base: &Path) {
    let (store, _) = open(base);
    for round in 0..u8::MAX {
        let id = format!("{:02x}", round % 4).repeat(32);
        let streams = [[round % 4, 1], [round % 4, 2]]
            .map(|content| Archive::default().dir("d/").file("d/f", &content).end());
        let mut parent: Option<String> = None;
        for stream in streams {
            let mut stage = store.stage_layer().unwrap();
            stage.unpack(&stream[..], &UnpackLimits::default()).unwrap();
            let draft = LayerDraft { parent: parent.take(), ..LayerDraft::default() };
            parent = Some(store.commit_layer(stage, draft).unwrap().id.clone());
        }
        let draft = ImageDraft {
            id: id.clone(),
            names: vec![format!("localhost/crash:{round}")],
            top_layer: parent,
            big_data: vec![BigData { key: "manifest".into(), bytes: vec![round; 100], digest: None }],
            ..ImageDraft::default()
        };
        store.put_image(draft).unwrap();
        let container = format!("{:02x}", 0x80 + round % 8).repeat(32);
        store.delete_container(&container).unwrap();
        let draft = ContainerDraft {
            id: container.clone(),
            names: vec![format!("name-{container}")],
            image_id: Some(id.clone()),
            volatile: true,
            ..ContainerDraft::default()
        };
        store.create_container(draft).unwrap();
        let root = store.mount(&container).unwrap();
        criox_sys::durable::write_atomic(&root.join("written"), b"x", 0o600).unwrap();
        store.unmount(&container).unwrap();
        store.delete_container(&container).unwrap();
        if round % 2 == 1 {
            for container in store.containers().unwrap().iter() {
                store.delete_container(&container.id).unwrap();
            }
            store.delete_image(&id).unwrap();
        }
    }
}

#[test]
fn the_worker_of_the_crash_test_does_nothing_by_itself() {
    if let Some(base) = std::env::var_os(WORKER) {
        work(&PathBuf::from(base));
    }
}

#[test]
fn a_store_is_sound_after_its_user_was_killed() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let _unmounted = Unmounted(base.path().join("graph/overlay"));
    let peers = Peers::find(base.path());
    let mut killed = 0;
    for round in 0..25u64 {
        let mut worker = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_worker_of_the_crash_test_does_nothing_by_itself"])
            .env(WORKER, base.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(30 + round * 37 % 200));
        worker.kill().unwrap();
        killed += u32::from(worker.wait().unwrap().signal() == Some(9));
        // Others find it sound even before we come back.
        if let Some(peers) = peers.as_ref().filter(|_| round % 3 == 0) {
            peers.podman(&["system", "check"]).unwrap();
        }
        let (store, report) = open(base.path());
        assert!(report.problems.is_empty(), "{report:?}");
        assert_eq!(store.check().unwrap(), [], "round {round}");
        check_no_strays(base.path(), &store);
        for image in store.images().unwrap().iter() {
            store.image_big_data(&image.id, "manifest").unwrap();
            let mut layer = image.top_layer().map(str::to_owned);
            while let Some(id) = layer {
                std::io::copy(&mut store.layer_diff(&id).unwrap(), &mut std::io::sink()).unwrap();
                layer = store.layer(&id).unwrap().parent().map(str::to_owned);
            }
        }
    }
    assert!(killed > 15, "most workers must have been at work when they were killed: {killed}");
    let (store, _) = open(base.path());
    for container in store.containers().unwrap().iter() {
        store.delete_container(&container.id).unwrap();
    }
    for image in store.images().unwrap().iter() {
        store.delete_image(&image.id).unwrap();
    }
    store.remove_unreferenced_layers(Duration::ZERO).unwrap();
    assert!(store.layers().unwrap().is_empty());
    check_no_strays(base.path(), &store);
}

/// A mount point that is none any more in the end.
struct Unmounted(PathBuf);

impl Drop for Unmounted {
    fn drop(&mut self) {
        while criox_sys::mount::is_mount_point(&self.0).unwrap_or(false) {
            let _ = criox_sys::mount::unmount(&self.0, true);
        }
    }
}

/// Nothing lies in the driver's home that has no record.
fn check_no_strays(base: &Path, store: &Store) {
    let overlay = base.join("graph/overlay");
    let layers = store.layers().unwrap();
    let names = |dir: &Path| -> Vec<String> {
        std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    };
    for name in names(&overlay).into_iter().filter(|name| name.len() == 64) {
        assert!(layers.iter().any(|layer| layer.id == name), "{name} has no record");
    }
    assert_eq!(names(&overlay.join("staging")), Vec::<String>::new());
    assert_eq!(names(&overlay.join("l")).len(), layers.len());
    let stray = names(&base.join("graph/overlay-layers"));
    assert!(!stray.iter().any(|name| name.starts_with(".staged")), "{stray:?}");
}
