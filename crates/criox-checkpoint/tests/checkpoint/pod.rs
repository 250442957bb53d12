//! A pod's checkpoint counts when its manifest is there, and says what is there.

use std::os::unix::fs::symlink;
use std::path::Path;

use criox_checkpoint::pod::{self, PodCheckpoint, PodContainer, PodManifest};
use criox_checkpoint::{Cancel, Error, Limits, Metadata, copy, names};

use crate::harness::{SPEC, config, put, tree};

fn manifest(names: &[&str]) -> PodManifest {
    let container = |name: &&str| PodContainer { name: (*name).into(), id: "c0".repeat(32), attempt: 2 };
    PodManifest {
        version: pod::VERSION,
        created: "2026-01-02T03:04:05Z".parse().unwrap(),
        handler: "crun".into(),
        arch: "amd64".into(),
        containers: names.iter().map(container).collect(),
    }
}

fn make(output: &Path, names: &[&str]) {
    pod::check_output(output).unwrap();
    pod::prepare(output, names.iter().copied()).unwrap();
    for name in names {
        let dir = pod::container_dir(output, name).unwrap();
        put(&dir.join(names::IMAGES).join("pages-1.img"), name.as_bytes());
        Metadata::write(&dir, &config(), SPEC.as_bytes(), &[]).unwrap();
    }
    pod::finish(output, &manifest(names)).unwrap();
}

#[test]
fn a_pod_is_written_and_read() {
    let base = tempfile::tempdir().unwrap();
    make(base.path(), &["app", "side-car"]);
    let before = tree(base.path());
    let checkpoint = PodCheckpoint::open(base.path()).unwrap();
    assert_eq!(checkpoint.manifest, manifest(&["app", "side-car"]));
    let into = tempfile::tempdir().unwrap();
    copy(&checkpoint.container("app").unwrap(), into.path(), &Limits::default(), &Cancel::new()).unwrap();
    assert_eq!(std::fs::read(into.path().join("checkpoint/pages-1.img")).unwrap(), b"app");
    checkpoint.container("other").unwrap_err();
    assert_eq!(tree(base.path()), before);
    assert!(matches!(pod::check_output(base.path()), Err(Error::Location { .. })));
}

/// The bytes of version 1, for ever.
#[test]
fn a_manifest_of_version_one_is_read_for_ever() {
    let base = tempfile::tempdir().unwrap();
    make(base.path(), &["app"]);
    let text = std::fs::read_to_string(base.path().join(pod::MANIFEST)).unwrap();
    let id = "c0".repeat(32);
    let expected = format!(
        r#"{{
  "version": 1,
  "created": "2026-01-02T03:04:05Z",
  "handler": "crun",
  "arch": "amd64",
  "containers": [
    {{
      "name": "app",
      "id": "{id}",
      "attempt": 2
    }}
  ]
}}
"#
    );
    assert_eq!(text, expected);
}

#[test]
fn only_an_absolute_empty_directory_is_an_output() {
    let base = tempfile::tempdir().unwrap();
    let file = base.path().join("file");
    pod::check_output(base.path()).unwrap();
    put(&file, b"");
    symlink(".", base.path().join("link")).unwrap();
    for bad in [
        Path::new("relative"),
        Path::new("/tmp/../tmp"),
        base.path(),
        &file,
        &base.path().join("none"),
        &base.path().join("link"),
    ] {
        assert!(matches!(pod::check_output(bad), Err(Error::Location { .. })), "{}", bad.display());
    }
}

#[test]
fn what_is_not_finished_is_no_checkpoint_and_goes_without_a_trace() {
    let base = tempfile::tempdir().unwrap();
    pod::prepare(base.path(), ["app"]).unwrap();
    let dir = pod::container_dir(base.path(), "app").unwrap();
    // A dump without its metadata can't be finished.
    pod::finish(base.path(), &manifest(&["app"])).unwrap_err();
    put(&dir.join("checkpoint/pages-1.img"), b"x");
    put(&base.path().join(".tmp-checkpoint.json0123456789abcdef"), b"{");
    put(&base.path().join("not-ours"), b"x");
    assert!(matches!(PodCheckpoint::open(base.path()), Err(Error::NoArchive { .. })));
    pod::remove_partial(base.path()).unwrap();
    assert_eq!(tree(base.path()).into_keys().collect::<Vec<_>>(), ["not-ours"]);
    pod::remove_partial(base.path()).unwrap();
    pod::remove_partial(&base.path().join("none")).unwrap();
}

#[test]
fn a_removal_follows_nothing() {
    let base = tempfile::tempdir().unwrap();
    let canary = tempfile::tempdir().unwrap();
    put(&canary.path().join("file"), b"alive");
    symlink(canary.path(), base.path().join(pod::CONTAINERS)).unwrap();
    pod::remove_partial(base.path()).unwrap();
    assert_eq!(tree(canary.path()).len(), 1);
    assert_eq!(tree(base.path()).len(), 0);
}

#[test]
fn a_manifest_that_does_not_fit_is_refused() {
    let check = |change: &dyn Fn(&Path), why: &str| {
        let base = tempfile::tempdir().unwrap();
        make(base.path(), &["app"]);
        change(base.path());
        let error = PodCheckpoint::open(base.path()).unwrap_err();
        assert!(error.is_refusal() && error.to_string().contains(why), "{error}");
    };
    let rewrite = |base: &Path, from: &str, to: &str| {
        let path = base.join(pod::MANIFEST);
        let text = std::fs::read_to_string(&path).unwrap().replace(from, to);
        std::fs::remove_file(&path).unwrap();
        put(&path, text.as_bytes());
    };
    check(&|base| std::fs::create_dir(base.join("containers/extra")).unwrap(), "other containers");
    check(&|base| criox_sys::durable::remove_tree(&base.join("containers/app")).unwrap(), "other containers");
    check(&|base| rewrite(base, "\"version\": 1", "\"version\": 2"), "version 2");
    check(&|base| rewrite(base, "\"app\"", "\"../app\""), "letters");
    check(&|base| rewrite(base, "\"crun\"", "7"), "wrong type");
    check(&|base| std::fs::remove_file(base.join(pod::MANIFEST)).unwrap(), "cut short");
    check(
        &|base| {
            std::fs::remove_file(base.join(pod::MANIFEST)).unwrap();
            symlink("/etc/shadow", base.join(pod::MANIFEST)).unwrap();
        },
        "no ",
    );
    for name in ["", ".", "..", ".hidden", "a/b", "a b", &"x".repeat(300)] {
        pod::container_dir(Path::new("/x"), name).unwrap_err();
    }
}
