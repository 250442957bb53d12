//! Archives and directories made by somebody who means harm, one test for each row of hardening 2.7 that is about them.

use std::os::unix::fs::symlink;
use std::path::Path;

use criox_checkpoint::{ApplyChanges, Cancel, Error, Intake, Limits, copy, names};
use criox_sys::inroot::Root;
use rustix::fs::FileType;

use crate::harness::{Place, SPEC, capture, is_root, put, real_images};
use crate::tar::{Archive, Header};

/// The start of an archive that would be good.
fn good() -> Archive {
    let mut archive = Archive::default()
        .file("config.dump", br#"{"id":"x","name":"n","createdTime":"2026-01-02T03:04:05Z"}"#)
        .file("spec.dump", SPEC.as_bytes())
        .dir("checkpoint/");
    for entry in std::fs::read_dir(real_images()).unwrap() {
        let entry = entry.unwrap();
        let name = format!("checkpoint/{}", entry.file_name().to_str().unwrap());
        archive = archive.file(&name, &std::fs::read(entry.path()).unwrap());
    }
    archive
}

#[track_caller]
fn check_refused(archive: Archive, why: &str) {
    check_bytes_refused(&archive.end(), why);
}

#[track_caller]
fn check_bytes_refused(archive: &[u8], why: &str) {
    let place = Place::new();
    let error = place.unpack(archive, &Limits::default()).unwrap_err();
    assert!(error.is_refusal(), "{error}");
    assert!(error.to_string().contains(why), "{error}");
    place.check_unharmed();
}

#[test]
fn the_archive_that_the_others_are_made_from_is_good() {
    let place = Place::new();
    let intake = place.unpack(&good().end(), &Limits::default()).unwrap();
    assert_eq!(intake.metadata.config.id, "x");
    assert!(intake.processes().is_ok());
    place.check_unharmed();
}

/// K2, K6: annotations, hooks, capabilities and profiles of the archive have no way into what is read.
#[test]
fn nothing_of_the_archived_specification_is_policy() {
    let place = Place::new();
    let intake = place.unpack(&good().end(), &Limits::default()).unwrap();
    let read = format!("{:?}", intake.metadata);
    for policy in ["Seccomp", "cdi.k8s.io", "evil", "CAP_SYS_ADMIN", "unconfined"] {
        assert!(!read.contains(policy), "{policy} is in {read}");
    }
}

/// K4: every file that a peer once followed, as everything but a regular file.
#[test]
fn only_regular_files_and_directories_are_taken() {
    let names = [
        "io.kubernetes.cri-o.LogPath",
        "dump.log",
        "status",
        "stats-dump",
        "rootfs-diff.tar",
        "checkpoint/pages-9.img",
    ];
    for name in names.into_iter().chain(["checkpoint", "config.dump", "volumes/x", "restore.log"]) {
        check_refused(good().symlink(name, "/etc/shadow"), "symbolic link");
        check_refused(good().symlink(name, "../canary/file"), "symbolic link");
        check_refused(good().hardlink(name, "../canary/file"), "hard link");
        check_refused(good().hardlink(name, "checkpoint/pstree.img"), "hard link");
        for (kind, why) in [(b'3', "device"), (b'4', "device"), (b'6', "FIFO")] {
            let header = Header { name: name.as_bytes(), kind, device: (1, 5), ..Header::default() };
            check_refused(good().entry(header, b""), why);
        }
    }
    check_refused(good().dir("dump.log/"), "must be a regular file");
    check_refused(Archive::default().file("checkpoint", b"x"), "must be a directory");
}

/// K5, U1: names that lead out, and names that no checkpoint has.
#[test]
fn names_that_lead_out_are_refused() {
    for name in [
        "../canary/file",
        "checkpoint/../../canary/new",
        "/etc/criox-canary",
        "..",
        "./../x",
        "checkpoint/..",
    ] {
        check_refused(good().file(name, b"x"), "leads out");
    }
    check_refused(good().pax(&[("path", b"../canary/file")]).file("dump.log", b"x"), "leads out");
    for name in [
        "passwd",
        "checkpoint/a/b.img",
        "checkpoint/.hidden",
        "checkpoint/a b",
        "config.dump/x",
        ".wh.config.dump",
    ] {
        check_refused(good().file(name, b"x"), "no file of this name");
    }
    check_refused(
        good()
            .file(&format!("checkpoint/{}", "x".repeat(90)), b"")
            .pax(&[("path", &[b'y'; 5000])])
            .file("z", b""),
        "leads out",
    );
}

#[test]
fn a_file_that_is_there_twice_is_refused() {
    check_refused(good().file("config.dump", b"{}"), "twice");
    check_refused(good().file("./checkpoint//pstree.img", b""), "twice");
    let place = Place::new();
    place.unpack(&good().dir("checkpoint/").dir("./").end(), &Limits::default()).unwrap();
}

/// K5, U7, U8, U13: counts, sizes and holes that are too big, before anything is written.
#[test]
fn bombs_are_refused_before_they_take_space() {
    let place = Place::new();
    let limits = Limits { max_entries: 20, ..Limits::default() };
    let many = (0..30).fold(good(), |archive, n| archive.file(&format!("checkpoint/x-{n}.img"), b""));
    assert!(place.unpack(&many.end(), &limits).unwrap_err().to_string().contains("more than 20 entries"));
    place.check_unharmed();
    // What is passed over counts, too.
    let place = Place::new();
    let many = (0..30).fold(good(), |archive, n| archive.dir(&format!("volumes/{n}/")));
    assert!(place.unpack(&many.end(), &limits).unwrap_err().to_string().contains("more than 20 entries"));

    let huge = |size: &[u8]| good().pax(&[("size", size)]).file("checkpoint/pages-1.img", b"x");
    check_refused(huge(b"9000000000000000000"), "bytes");
    check_refused(huge(b"18446744073709551615"), "bytes");
    let place = Place::new();
    let limits = Limits { max_bytes: 1 << 62, ..Limits::default() };
    let error = place.unpack(&huge(b"4000000000000000000").end(), &limits).unwrap_err();
    assert!(matches!(error, Error::NoSpace { .. }) && error.is_out_of_space(), "{error}");
    place.check_unharmed();

    let sparse = |records: &[(&str, &[u8])]| good().pax(records).file("checkpoint/pages-1.img", b"");
    check_refused(
        sparse(&[("GNU.sparse.map", b"0,0"), ("GNU.sparse.size", b"9223372036854775807")]),
        "sparse",
    );
    check_refused(sparse(&[("GNU.sparse.map", b"5,1,0,1"), ("GNU.sparse.size", b"9")]), "sparse");
}

/// U6: one size counts, for what is read and for where the next header is.
#[test]
fn an_archive_inside_a_file_is_content() {
    let inner = Archive::default().file("config.dump", br#"{"id":"smuggled"}"#).0;
    let size = inner.len().to_string();
    let lying = Header { name: b"checkpoint/pages-1.img", size: 0, ..Header::default() };
    let mut archive = good().pax(&[("size", size.as_bytes())]);
    archive.0.extend_from_slice(&lying.block());
    archive.0.extend_from_slice(&inner);
    let place = Place::new();
    let intake = place.unpack(&archive.end(), &Limits::default()).unwrap();
    assert_eq!(intake.metadata.config.id, "x");
    assert_eq!(std::fs::read(intake.images().join("pages-1.img")).unwrap(), inner);
}

#[test]
fn malformed_archives_are_refused_wherever_they_break() {
    let whole = good().file("checkpoint/pages-1.img", &[1; 3000]).end();
    let place = Place::new();
    for length in (0..whole.len() - 1024).step_by(97) {
        criox_sys::durable::remove_tree(&place.intake()).unwrap();
        std::fs::create_dir(place.intake()).unwrap();
        match place.unpack(&whole[..length], &Limits::default()) {
            // Cut between two members behind all that is needed.
            Ok(intake) => assert_eq!(intake.metadata.config.id, "x"),
            Err(error) => assert!(error.is_refusal(), "at {length}: {error}"),
        }
        place.check_unharmed();
    }
    check_refused(good().pax(&[("mtime", b"soon")]).file("dump.log", b""), "malformed decimal number");
    check_refused(good().pax(&[("SCHILY.xattr.", b"x")]).file("dump.log", b""), "attribute");
    let header = Header { name: b"x", kind: b'x', size: 4 << 30, ..Header::default() };
    check_refused(good().entry(header, b""), "too long");
    check_refused(
        good().entry(Header { name: b"v", kind: b'V', ..Header::default() }, b""),
        "unsupported type",
    );
    check_bytes_refused(&[0x1f, 0x8b, 8, 0, 0, 0], "compressed with gzip");
    check_bytes_refused(b"not a tar at all", "header");
    check_bytes_refused(b"", "missing");
}

#[test]
fn json_files_that_are_too_big_or_of_wrong_types_are_refused() {
    let with = |name: &str, json: &[u8]| {
        let config: &[u8] = if name == names::CONFIG_DUMP { json } else { b"{}" };
        let spec: &[u8] = if name == names::SPEC_DUMP { json } else { b"{}" };
        let archive =
            Archive::default().file("config.dump", config).file("spec.dump", spec).dir("checkpoint/");
        if name == names::BIND_MOUNTS { archive.file(name, json) } else { archive }
    };
    let place = Place::new();
    place.unpack(&with("none", b"").end(), &Limits::default()).unwrap();
    let giant = format!("{{\"id\":\"{}\"}}", "x".repeat(2 << 20));
    let long = format!("{{\"name\":\"{}\"}}", "x".repeat(5000));
    let deep = "[".repeat(100_000);
    let configs = [
        "",
        "{",
        "null",
        "[]",
        "7",
        "{\"id\":7}",
        "{\"id\":null}",
        "{\"id\":\"a\",\"id\":\"b\"}",
        "{\"createdTime\":\"soon\"}",
        "{\"restored\":\"yes\"}",
        "{\"id\":\"a\\u0000b\"}",
        "{\"rootfsImageName\":\"a\\nb\"}",
        giant.as_str(),
        long.as_str(),
        deep.as_str(),
    ];
    for json in configs {
        check_refused(with(names::CONFIG_DUMP, json.as_bytes()), names::CONFIG_DUMP);
    }
    let many = format!("{{\"process\":{{\"args\":[{}\"\"]}}}}", "\"\",".repeat(200_000));
    let specs = [
        "[]",
        "{\"mounts\":7}",
        "{\"mounts\":[{\"destination\":\"../x\"}]}",
        "{\"mounts\":[{\"destination\":\"/a/../b\"}]}",
        "{\"process\":{\"user\":{\"uid\":-1}}}",
        "{\"process\":{\"user\":{\"uid\":4294967296}}}",
        "{\"process\":[]}",
        many.as_str(),
        deep.as_str(),
    ];
    for json in specs {
        check_refused(with(names::SPEC_DUMP, json.as_bytes()), names::SPEC_DUMP);
    }
    let mounts = [
        "{}",
        "[7]",
        "[{\"source\":\"/a\"}]",
        "[{\"source\":\"a\",\"destination\":\"/b\",\"file_type\":\"file\",\"permissions\":1}]",
        "[{\"source\":\"/a\",\"destination\":\"/b\",\"file_type\":\"device\",\"permissions\":1}]",
        "[{\"source\":\"/a\",\"destination\":\"/b\",\"file_type\":\"file\",\"permissions\":99999}]",
        "[{\"source\":\"/a\",\"destination\":\"/b/../../c\",\"file_type\":\"file\",\"permissions\":1}]",
    ];
    for json in mounts {
        check_refused(with(names::BIND_MOUNTS, json.as_bytes()), names::BIND_MOUNTS);
    }
    // What the parser stopped at is not told: the "archive" may be any file of the node.
    let place = Place::new();
    let error = place
        .unpack(&with(names::CONFIG_DUMP, b"{\"id\":\"hunter2\" oops").end(), &Limits::default())
        .unwrap_err();
    assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
}

#[test]
fn what_is_missing_is_named() {
    check_refused(Archive::default().file("spec.dump", b"{}").dir("checkpoint/"), "config.dump: missing");
    check_refused(Archive::default().file("config.dump", b"{}").dir("checkpoint/"), "spec.dump: missing");
    check_refused(
        Archive::default().file("config.dump", b"{}").file("spec.dump", b"{}"),
        "checkpoint: missing",
    );
}

/// K4 for directories: a checkpoint image's root, or a container of a pod's checkpoint.
#[test]
fn a_directory_with_links_or_nodes_is_refused() {
    type Spoil = fn(&Path, &Root);
    let make_bad: [(&str, Spoil); 5] = [
        ("symbolic link", |dir, _| symlink("/etc/shadow", dir.join("restore.log")).unwrap()),
        ("symbolic link", |dir, _| symlink("../../canary/file", dir.join("checkpoint/pages-2.img")).unwrap()),
        ("FIFO", |_, root| root.mknod(Path::new("status"), FileType::Fifo, 0o600, 0, 0).unwrap()),
        ("no file of this name", |dir, _| put(&dir.join("etc"), b"")),
        ("must be a regular file", |dir, _| std::fs::create_dir(dir.join("checkpoint/deeper")).unwrap()),
    ];
    for (why, make) in make_bad {
        let place = Place::new();
        let source = place.base.path().join("source");
        capture(&source);
        make(&source, &Root::open(&source).unwrap());
        let error = copy(&source, &place.intake(), &Limits::default(), &Cancel::new()).unwrap_err();
        assert!(error.is_refusal() && error.to_string().contains(why), "{error}");
        place.check_unharmed();
    }
    let place = Place::new();
    let source = place.base.path().join("source");
    std::fs::create_dir(&source).unwrap();
    capture(&place.base.path().join("canary/capture"));
    for (name, target) in
        [("checkpoint", "../canary/capture/checkpoint"), ("config.dump", "../canary/capture/config.dump")]
    {
        symlink(target, source.join(name)).unwrap();
        let error = copy(&source, &place.intake(), &Limits::default(), &Cancel::new()).unwrap_err();
        assert!(error.to_string().contains("symbolic link"), "{error}");
    }
    symlink("canary/capture", place.base.path().join("root")).unwrap();
    copy(&place.base.path().join("root"), &place.intake(), &Limits::default(), &Cancel::new()).unwrap_err();
}

#[test]
fn a_device_in_a_directory_is_refused_and_never_opened() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    let source = place.base.path().join("source");
    capture(&source);
    let root = Root::open(&source).unwrap();
    if let Err(error) = root.mknod(Path::new("checkpoint/tty-1.img"), FileType::CharacterDevice, 0o600, 1, 5)
    {
        eprintln!("skipped: no device nodes here: {error}");
        return;
    }
    let error = copy(&source, &place.intake(), &Limits::default(), &Cancel::new()).unwrap_err();
    assert!(error.to_string().contains("device"), "{error}");
}

/// An intake that somebody tampers with later is refused when it is looked at again.
#[test]
fn an_intake_is_looked_at_again() {
    let place = Place::new();
    place.unpack(&good().end(), &Limits::default()).unwrap();
    Intake::open(&place.intake()).unwrap();
    let log = place.intake().join("checkpoint/extra.img");
    symlink("/etc/shadow", &log).unwrap();
    assert!(Intake::open(&place.intake()).unwrap_err().to_string().contains("symbolic link"));
}

/// K5 for the changes of the root file system: nothing leaves the root, whatever the files say.
#[test]
fn changes_of_a_root_stay_inside_it() {
    let diffs = [
        Archive::default().file("../canary/file", b"x"),
        Archive::default().symlink("out", "../canary").file("out/file", b"x"),
        Archive::default().symlink("out", "../canary").file("out/new", b"x"),
        Archive::default().symlink("abs", "/").file("abs/../../canary/new", b"x"),
        Archive::default().hardlink("stolen", "../canary/file"),
        Archive::default().symlink("l", "../canary/file").hardlink("stolen", "l").file("stolen", b"x"),
        Archive::default().dir("d").symlink("d", "../canary").dir("d"),
        Archive::default().file("a/b", b"x").file("a/b", b"y"),
    ];
    for diff in diffs {
        let place = Place::new();
        let root = place.base.path().join("root");
        std::fs::create_dir(&root).unwrap();
        put(&place.intake().join(names::ROOT_DIFF), &diff.end());
        let changes = ApplyChanges { root: &root, users: &[], groups: &[], reserve: 0 };
        let result = changes.apply(&place.intake(), &Cancel::new());
        assert!(result.as_ref().err().is_none_or(Error::is_refusal), "{result:?}");
        place.check_unharmed();
    }
    let lists: [&[u8]; 8] = [
        b"[\"../canary/file\"]",
        b"[\"/../canary\"]",
        b"[\"/\"]",
        b"[\"\"]",
        b"[7]",
        b"{}",
        b"[\"a\\u0000b\"]",
        b"[\"a/../..\"]",
    ];
    for list in lists {
        let place = Place::new();
        let root = place.base.path().join("root");
        std::fs::create_dir(&root).unwrap();
        put(&place.intake().join(names::DELETED_FILES), list);
        let changes = ApplyChanges { root: &root, users: &[], groups: &[], reserve: 0 };
        let error = changes.apply(&place.intake(), &Cancel::new()).unwrap_err();
        assert!(error.is_refusal(), "{error}");
        assert!(root.exists());
        place.check_unharmed();
    }
    let place = Place::new();
    let root = place.base.path().join("root");
    std::fs::create_dir(&root).unwrap();
    symlink("../canary", root.join("out")).unwrap();
    put(&place.intake().join(names::DELETED_FILES), b"[\"/out/file\", \"/out\", \"/none/x\"]");
    let changes = ApplyChanges { root: &root, users: &[], groups: &[], reserve: 0 };
    let applied = changes.apply(&place.intake(), &Cancel::new()).unwrap();
    assert_eq!((applied.deleted, root.join("out").exists()), (1, false));
    place.check_unharmed();
}
