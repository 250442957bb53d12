//! Archives are written whole or not at all, and read back as they were.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use criox_checkpoint::{Cancel, Error, Limits, archive, copy, copy_log, names, peek, unpack};
use criox_sys::mount;
use proptest::prelude::*;

use crate::harness::{bind_mounts, capture, config, is_root, put, tree};

#[test]
fn a_capture_goes_through_an_archive_and_comes_back() {
    let base = tempfile::tempdir().unwrap();
    let (dir, location, into) =
        (base.path().join("capture"), base.path().join("a.tar"), base.path().join("into"));
    capture(&dir);
    std::fs::create_dir(&into).unwrap();
    archive::check_location(&location).unwrap();
    let length = archive::write(&dir, &location, 0, &Cancel::new()).unwrap();
    let meta = std::fs::metadata(&location).unwrap();
    assert_eq!((meta.len(), meta.permissions().mode() & 0o7777, meta.nlink()), (length, 0o600, 1));
    let file = archive::open(&location).unwrap();
    let (peeked, spec) = peek(&file, &Cancel::new()).unwrap();
    assert_eq!(peeked, config());
    let intake = unpack(&file, &into, &Limits::default(), &Cancel::new()).unwrap();
    assert_eq!(tree(&into), tree(&dir));
    assert_eq!((&intake.metadata.config, &intake.metadata.spec), (&peeked, &spec));
    assert_eq!(intake.metadata.bind_mounts, bind_mounts());
    // The same by way of a directory.
    let copied = base.path().join("copied");
    std::fs::create_dir(&copied).unwrap();
    copy(&dir, &copied, &Limits::default(), &Cancel::new()).unwrap();
    assert_eq!(tree(&copied), tree(&dir));
    // Only an empty directory is filled.
    unpack(&file, &into, &Limits::default(), &Cancel::new()).unwrap_err();
}

/// Names and order as CRI-O's archives have them, by another reader of tar.
#[test]
fn another_reader_sees_the_members_that_crio_writes() {
    let base = tempfile::tempdir().unwrap();
    let (dir, location) = (base.path().join("capture"), base.path().join("a.tar"));
    capture(&dir);
    archive::write(&dir, &location, 0, &Cancel::new()).unwrap();
    let output = Command::new("tar").arg("-tvf").arg(&location).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let listed: Vec<&str> = text.lines().filter_map(|line| line.split_whitespace().last()).collect();
    let mut wanted: Vec<String> = tree(&dir).into_keys().chain(["checkpoint/".to_owned()]).collect();
    wanted.sort();
    let mut sorted = listed.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, wanted);
    assert_eq!(listed[..3], [names::CONFIG_DUMP, names::SPEC_DUMP, names::BIND_MOUNTS]);
    assert!(
        text.lines().all(|line| line.starts_with("-rw------- 0/0") || line.starts_with("drwx------ 0/0")),
        "{text}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn whatever_images_there_are_come_back(
        images in prop::collection::btree_map("[a-z][a-zA-Z0-9._-]{0,120}", prop::collection::vec(any::<u8>(), 0..3000), 0..12),
        log in prop::collection::vec(any::<u8>(), 0..2000),
    ) {
        let base = tempfile::tempdir().unwrap();
        let (dir, location, into) = (base.path().join("capture"), base.path().join("a.tar"), base.path().join("into"));
        capture(&dir);
        std::fs::create_dir(&into).unwrap();
        std::fs::remove_file(dir.join(names::LOG)).unwrap();
        put(&dir.join(names::LOG), &log);
        for (name, content) in &images {
            let path = dir.join(names::IMAGES).join(name);
            if !path.exists() {
                put(&path, content);
            }
        }
        archive::write(&dir, &location, 0, &Cancel::new()).unwrap();
        let file = archive::open(&location).unwrap();
        unpack(&file, &into, &Limits::default(), &Cancel::new()).unwrap();
        prop_assert_eq!(tree(&into), tree(&dir));
    }
}

#[test]
fn a_file_in_the_way_is_replaced_and_nothing_else_is() {
    let base = tempfile::tempdir().unwrap();
    let (dir, location) = (base.path().join("capture"), base.path().join("a.tar"));
    capture(&dir);
    put(&location, b"old");
    put(&base.path().join("canary"), b"alive");
    archive::write(&dir, &location, 0, &Cancel::new()).unwrap();
    assert!(std::fs::metadata(&location).unwrap().len() > 3);
    assert_eq!(std::fs::read_dir(base.path()).unwrap().count(), 3);
    for (name, why) in [("link", "no regular file"), ("directory", "no regular file")] {
        let location = base.path().join(name);
        if name == "link" {
            symlink("canary", &location).unwrap();
        } else {
            std::fs::create_dir(&location).unwrap();
        }
        for result in [
            archive::check_location(&location),
            archive::write(&dir, &location, 0, &Cancel::new()).map(|_| ()),
        ] {
            let error = result.unwrap_err();
            assert!(matches!(error, Error::Location { .. }) && error.to_string().contains(why), "{error}");
        }
    }
    assert_eq!(std::fs::read(base.path().join("canary")).unwrap(), b"alive");
    for bad in ["relative.tar", "/", "/tmp/../tmp/a.tar", "/tmp/./a.tar", "/criox-nonexistent/a.tar", "/tmp/"]
    {
        assert!(matches!(archive::check_location(Path::new(bad)), Err(Error::Location { .. })), "{bad}");
    }
}

/// An image's name is what a pod's author likes: only a regular file is opened, and without waiting.
#[test]
fn only_a_regular_file_is_opened_as_an_archive() {
    let base = tempfile::tempdir().unwrap();
    put(&base.path().join("file"), b"x");
    symlink("file", base.path().join("link")).unwrap();
    let root = criox_sys::inroot::Root::open(base.path()).unwrap();
    root.mknod(Path::new("fifo"), rustix::fs::FileType::Fifo, 0o600, 0, 0).unwrap();
    archive::open(&base.path().join("file")).unwrap();
    for name in ["link", "fifo", "none", "file/x", "", "../x", "./file"] {
        let error = archive::open(&base.path().join(name)).unwrap_err();
        assert!(matches!(error, Error::NoArchive { .. }), "{name}: {error}");
    }
    for path in ["/dev/null", "/dev/zero", "/", "relative"] {
        archive::open(Path::new(path)).unwrap_err();
    }
}

#[test]
fn work_that_is_called_off_leaves_nothing() {
    let base = tempfile::tempdir().unwrap();
    let (dir, location, into) =
        (base.path().join("capture"), base.path().join("a.tar"), base.path().join("into"));
    capture(&dir);
    std::fs::create_dir(&into).unwrap();
    let cancel = Cancel::new();
    cancel.cancel();
    assert!(matches!(archive::write(&dir, &location, 0, &cancel), Err(Error::Cancelled { .. })));
    assert_eq!(std::fs::read_dir(base.path()).unwrap().count(), 2);
    archive::write(&dir, &location, 0, &Cancel::new()).unwrap();
    let file = archive::open(&location).unwrap();
    assert!(matches!(peek(&file, &cancel), Err(Error::Cancelled { .. })));
    assert!(matches!(unpack(&file, &into, &Limits::default(), &cancel), Err(Error::Cancelled { .. })));
    let late = Cancel::new().with_deadline(Instant::now());
    assert!(matches!(copy(&dir, &into, &Limits::default(), &late), Err(Error::Cancelled { .. })));
}

#[test]
fn a_log_is_copied_as_it_is_and_nothing_is_followed() {
    let base = tempfile::tempdir().unwrap();
    put(&base.path().join("log"), b"2026 stdout F x\n");
    symlink("log", base.path().join("link")).unwrap();
    let capture = base.path().join("capture");
    std::fs::create_dir(&capture).unwrap();
    assert_eq!(copy_log(&base.path().join("none"), &capture, &Cancel::new()).unwrap(), None);
    copy_log(&base.path().join("link"), &capture, &Cancel::new()).unwrap_err();
    assert_eq!(copy_log(&base.path().join("log"), &capture, &Cancel::new()).unwrap(), Some(16));
    assert_eq!(std::fs::read(capture.join(names::LOG)).unwrap(), b"2026 stdout F x\n");
    assert_eq!(copy_log(&capture, &capture, &Cancel::new()).unwrap(), None);
}

/// A file system of `size`, unmounted at the end.
struct Small(tempfile::TempDir);

impl Small {
    fn new(size: u64) -> Option<Self> {
        if !is_root() {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        if let Err(error) = mount::tmpfs(dir.path(), size, 0o700, None, "") {
            eprintln!("skipped: {error}");
            return None;
        }
        Some(Self(dir))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = mount::unmount(self.0.path(), true);
    }
}

/// K8.
#[test]
fn a_full_disk_is_told_and_keeps_its_old_archive() {
    let Some(small) = Small::new(1 << 20) else { return };
    let base = tempfile::tempdir().unwrap();
    let dir = base.path().join("capture");
    capture(&dir);
    let location = small.0.path().join("a.tar");
    archive::write(&dir, &location, 0, &Cancel::new()).unwrap();
    let old = std::fs::read(&location).unwrap();
    put(&dir.join("checkpoint/pages-2.img"), &vec![1; 2 << 20]);
    let error = archive::write(&dir, &location, 0, &Cancel::new()).unwrap_err();
    assert!(matches!(&error, Error::NoSpace { path, .. } if *path == location), "{error}");
    // The reserve counts.
    std::fs::remove_file(dir.join("checkpoint/pages-2.img")).unwrap();
    let error = archive::write(&dir, &location, 1 << 20, &Cancel::new()).unwrap_err();
    assert!(error.is_out_of_space(), "{error}");
    assert_eq!(std::fs::read(&location).unwrap(), old);
    assert_eq!(std::fs::read_dir(small.0.path()).unwrap().count(), 1);
    // A disk that fills up while something is taken in.
    let into = small.0.path().join("into");
    std::fs::create_dir(&into).unwrap();
    let filler = 1 << 20;
    let _ = std::io::copy(
        &mut std::io::Read::take(std::io::repeat(0), filler),
        &mut std::fs::File::options()
            .write(true)
            .create_new(true)
            .open(small.0.path().join("filler"))
            .unwrap(),
    );
    let limits = Limits { reserve_bytes: 0, ..Limits::default() };
    let error = copy(&dir, &into, &limits, &Cancel::new()).unwrap_err();
    assert!(error.is_out_of_space(), "{error}");
}

/// Names what the process that is to be killed writes to.
const WORKER: &str = "CRIOX_CHECKPOINT_WORKER";

#[test]
fn the_worker_of_the_kill_test_does_nothing_by_itself() {
    if let Some(base) = std::env::var_os(WORKER) {
        let base = PathBuf::from(base);
        loop {
            archive::write(&base.join("capture"), &base.join("out/a.tar"), 0, &Cancel::new()).unwrap();
        }
    }
}

/// Killed at random moments, it leaves the old archive or the new one, and nothing beside it but what is known by name.
#[test]
fn a_kill_in_the_middle_leaves_no_part() {
    let base = tempfile::tempdir().unwrap();
    let (dir, out) = (base.path().join("capture"), base.path().join("out"));
    capture(&dir);
    std::fs::create_dir(&out).unwrap();
    let location = out.join("a.tar");
    let length = archive::write(&dir, &location, 0, &Cancel::new()).unwrap();
    for round in 0..12u64 {
        if round % 2 == 0 {
            std::fs::remove_file(&location).unwrap();
        }
        let mut worker = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "archive::the_worker_of_the_kill_test_does_nothing_by_itself"])
            .env(WORKER, base.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let begun = Instant::now();
        while !location.exists() && begun.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(700 * round * round));
        worker.kill().unwrap();
        assert_eq!(worker.wait().unwrap().signal(), Some(9));
        archive::remove_partial(&location).unwrap();
        let left: Vec<_> = std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["a.tar"], "round {round}");
        assert_eq!(std::fs::metadata(&location).unwrap().len(), length);
        peek(&archive::open(&location).unwrap(), &Cancel::new()).unwrap();
    }
}
