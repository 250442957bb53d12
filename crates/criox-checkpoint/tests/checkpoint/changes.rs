//! Changes of a real root file system, found in an overlay and laid over another.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use criox_checkpoint::{Applied, ApplyChanges, Cancel, Changes, RootChanges, names};
use criox_store::{ContainerDraft, ImageDraft, LayerDraft, Store, StoreOptions, UnpackLimits, owners};
use criox_sys::idmap::{self, IdRange};
use criox_sys::inroot::{self, FileTime, Root};
use criox_sys::{mount, xattr};
use rustix::fs::FileType;

use crate::harness::{is_root, put};
use crate::tar::Archive;

const RANGES: [IdRange; 1] = [IdRange { inside: 0, host: 300_000, length: 65_536 }];

struct Node {
    store: Store,
    base: tempfile::TempDir,
}

impl Drop for Node {
    fn drop(&mut self) {
        for container in self.store.containers().unwrap().iter() {
            let _ = self.store.delete_container(&container.id);
        }
        let _ = mount::unmount(&self.base.path().join("graph/overlay"), true);
    }
}

fn id(n: u8) -> String {
    format!("{n:064x}")
}

impl Node {
    /// A store with an image of two layers.
    fn new() -> Option<Self> {
        if !is_root() {
            return None;
        }
        let base = tempfile::tempdir().unwrap();
        let options = StoreOptions::new(base.path().join("graph"), base.path().join("run"));
        let (store, _) = Store::open(options).unwrap();
        let node = Self { store, base };
        let lower = Archive::default()
            .dir("etc/")
            .file("etc/passwd", b"root")
            .file("etc/gone", b"x")
            .dir("old/")
            .file("old/a", b"a")
            .dir("old/sub/")
            .file("old/sub/deep", b"deep")
            .dir("whole/")
            .file("whole/x", b"x")
            .file("becomes-dir", b"x")
            .dir("becomes-file/")
            .file("becomes-file/y", b"y")
            .symlink("link", "etc")
            .file("linked", b"linked")
            .dir("var/")
            .dir("run/")
            .symlink("var/run", "../run");
        let upper =
            Archive::default().file("old/b", b"b").file("old/.wh.nothing", b"").file("etc/hosts", b"");
        let mut top = None;
        for stream in [lower.end(), upper.end()] {
            let mut stage = node.store.stage_layer().unwrap();
            stage.unpack(&stream[..], &UnpackLimits::default()).unwrap();
            let draft = LayerDraft { parent: top.clone(), ..LayerDraft::default() };
            top = Some(node.store.commit_layer(stage, draft).unwrap().id.clone());
        }
        let draft = ImageDraft {
            id: id(1),
            names: vec!["localhost/a:1".into()],
            top_layer: top,
            ..ImageDraft::default()
        };
        node.store.put_image(draft).unwrap();
        Some(node)
    }

    /// A container of the image, mounted.
    fn container(&self, n: u8, ranges: &[IdRange]) -> PathBuf {
        let draft = ContainerDraft {
            id: id(n),
            names: vec![format!("c{n}")],
            image_id: Some(id(1)),
            users: ranges.to_vec(),
            groups: ranges.to_vec(),
            ..ContainerDraft::default()
        };
        self.store.create_container(draft).unwrap();
        if ranges.is_empty() {
            return self.store.mount(&id(n)).unwrap();
        }
        let owners = idmap::user_namespace(ranges, ranges).unwrap();
        self.store.mount_mapped(&id(n), owners.as_fd()).unwrap()
    }

    fn capture(&self, n: u8, ranges: &[IdRange], skip: &[PathBuf]) -> (tempfile::TempDir, Changes) {
        let dir = tempfile::tempdir().unwrap();
        let roots = self.store.root_dirs(&id(n)).unwrap();
        let changes = RootChanges {
            upper: &roots.upper,
            lowers: &roots.lowers,
            merged: &roots.merged,
            users: ranges,
            groups: ranges,
            skip,
            reserve: 0,
        };
        let changes = changes.write(dir.path(), &Cancel::new()).unwrap();
        (dir, changes)
    }
}

fn apply(dir: &Path, root: &Path, ranges: &[IdRange]) -> Applied {
    ApplyChanges { root, users: ranges, groups: ranges, reserve: 0 }.apply(dir, &Cancel::new()).unwrap()
}

/// Everything about a root that must come back; owners as the container sees them. Files with several names have the
/// number of the first.
fn describe(root: &Path, ranges: &[IdRange]) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut inodes = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        let mut paths: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        for path in paths {
            let meta = std::fs::symlink_metadata(&path).unwrap();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            let content = match meta.file_type() {
                kind if kind.is_dir() => {
                    pending.push(path.clone());
                    String::new()
                }
                kind if kind.is_file() => {
                    let first = inodes.entry(meta.ino()).or_insert_with(|| name.clone());
                    let bytes = std::fs::read(&path).unwrap();
                    format!("{first} {} {:?}", bytes.len(), &bytes[..bytes.len().min(20)])
                }
                kind if kind.is_symlink() => format!("{:?}", std::fs::read_link(&path).unwrap()),
                _ => format!("{:x}", meta.rdev()),
            };
            let node =
                inroot::open_entry(Root::open(&dir).unwrap().as_fd(), path.file_name().unwrap()).unwrap();
            let mut attributes = Vec::new();
            for attribute in xattr::list(node.as_fd()).unwrap() {
                if owners::is_kept(attribute.as_encoded_bytes()) {
                    let value = xattr::get(node.as_fd(), &attribute).unwrap().unwrap();
                    let value = owners::attribute(
                        owners::To::Inside,
                        attribute.as_encoded_bytes(),
                        &value,
                        ranges,
                        ranges,
                    );
                    attributes.push((attribute, value.into_owned()));
                }
            }
            attributes.sort();
            let owner = (owners::inside_of(ranges, meta.uid()), owners::inside_of(ranges, meta.gid()));
            let time = (meta.mtime(), meta.mtime_nsec());
            found.insert(name, format!("{:o} {owner:?} {time:?} {content} {attributes:?}", meta.mode()));
        }
    }
    found
}

fn node_of(root: &Path, name: &str) -> std::os::fd::OwnedFd {
    inroot::open_entry(Root::open(root).unwrap().as_fd(), OsStr::new(name)).unwrap()
}

/// All that a container can do to its root.
fn change(root: &Path, host: impl Fn(u32) -> u32) {
    let remove = |name: &str| std::fs::remove_file(root.join(name)).unwrap();
    remove("etc/gone");
    for dir in ["old", "whole", "becomes-file"] {
        criox_sys::durable::remove_tree(&root.join(dir)).unwrap();
    }
    // Removed and made again: what was in it must not come back.
    std::fs::create_dir_all(root.join("old/sub")).unwrap();
    put(&root.join("old/sub/new"), b"new");
    put(&root.join("old/b"), b"other");
    remove("becomes-dir");
    std::fs::create_dir(root.join("becomes-dir")).unwrap();
    put(&root.join("becomes-dir/z"), b"z");
    put(&root.join("becomes-file"), b"now a file");
    remove("link");
    std::fs::create_dir(root.join("link")).unwrap();
    put(&root.join("link/in"), b"in");
    std::fs::File::options()
        .write(true)
        .open(root.join("etc/passwd"))
        .unwrap()
        .write_all_at(b"changed", 0)
        .unwrap();
    std::fs::hard_link(root.join("linked"), root.join("other-name")).unwrap();
    put(&root.join(".wh.literal"), b"a name like any other");
    symlink("/etc/../passwd", root.join("new-link")).unwrap();
    put(&root.join("n".repeat(200)), b"long");
    let tree = Root::open(root).unwrap();
    tree.mknod(Path::new("fifo"), FileType::Fifo, 0o640, 0, 0).unwrap();
    tree.mknod(Path::new("socket"), FileType::Socket, 0o640, 0, 0).unwrap();
    tree.mknod(Path::new("null"), FileType::CharacterDevice, 0o666, 1, 3).unwrap();
    // Holes, at the start, in the middle and at the end.
    let sparse = std::fs::File::options().write(true).create_new(true).open(root.join("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    sparse.write_all_at(b"data", 8 << 20).unwrap();
    sparse.write_all_at(&[1; 5000], 33 << 20).unwrap();
    // Owner first: it takes set-ID bits and capabilities away.
    put(&root.join("tool"), b"#!");
    let tool = node_of(root, "tool");
    inroot::set_owner(tool.as_fd(), host(1000), host(1001)).unwrap();
    inroot::set_mode(tool.as_fd(), 0o6755).unwrap();
    let mut capability = vec![1, 0, 0, 2, 0, 4, 0, 0];
    capability.resize(20, 0);
    let ranges: &[IdRange] = if host(0) == 0 { &[] } else { &RANGES };
    let capability = owners::attribute(owners::To::Host, b"security.capability", &capability, ranges, ranges);
    xattr::set(tool.as_fd(), OsStr::new("security.capability"), &capability).unwrap();
    if let Err(error) = xattr::set(tool.as_fd(), OsStr::new("user.note"), b"kept") {
        eprintln!("skipped: user attributes: {error}");
    }
    inroot::set_times(
        tool.as_fd(),
        FileTime::default(),
        FileTime { seconds: 1_000_000_000, nanoseconds: 123_456_789 },
    )
    .unwrap();
    let passwd = root.join("etc");
    inroot::set_owner(node_of(&passwd, "passwd").as_fd(), host(5), host(6)).unwrap();
    std::fs::set_permissions(root.join("old"), std::fs::Permissions::from_mode(0o1777)).unwrap();
    // What is bound over by the runtime, by the name and behind a link.
    put(&root.join("run/secrets"), b"mount point");
    put(&root.join("etc/resolv.conf"), b"mount point");
}

fn skip() -> Vec<PathBuf> {
    ["/var/run/secrets", "/etc/resolv.conf", "/etc/hosts", "/proc"].map(PathBuf::from).to_vec()
}

/// The container's view after all changes, without what isn't told.
fn expected(root: &Path, ranges: &[IdRange]) -> BTreeMap<String, String> {
    let mut expected = describe(root, ranges);
    for name in ["socket", "run/secrets", "etc/resolv.conf"] {
        expected.remove(name).unwrap();
    }
    // Their times are those of what isn't told.
    expected
}

#[track_caller]
fn check_same(found: &BTreeMap<String, String>, expected: &BTreeMap<String, String>) {
    for (name, what) in expected {
        assert_eq!(found.get(name), Some(what), "{name}");
    }
    assert_eq!(
        found.len(),
        expected.len(),
        "{:?}",
        found.keys().filter(|name| !expected.contains_key(*name)).collect::<Vec<_>>()
    );
}

#[test]
fn what_changed_in_one_root_is_changed_in_another() {
    let Some(node) = Node::new() else { return };
    let root = node.container(2, &[]);
    change(&root, |id| id);
    let (dir, changes) = node.capture(2, &[], &skip());
    assert!(changes.bytes < 1 << 20, "holes are not written: {changes:?}");
    assert_eq!(changes.bytes, std::fs::metadata(dir.path().join(names::ROOT_DIFF)).unwrap().len());
    let other = node.container(3, &[]);
    let applied = apply(dir.path(), &other, &[]);
    assert_eq!(applied.entries, changes.entries);
    check_same(&describe(&other, &[]), &expected(&root, &[]));
    let blocks = std::fs::metadata(other.join("sparse")).unwrap().blocks();
    assert!(blocks * 512 < 1 << 20, "{blocks} blocks");
    // A root that was restored can be checkpointed again.
    let (again, more) = node.capture(3, &[], &skip());
    assert_eq!(more.entries, changes.entries);
    let third = node.container(4, &[]);
    apply(again.path(), &third, &[]);
    check_same(&describe(&third, &[]), &expected(&root, &[]));
}

#[test]
fn deleted_files_lists_what_is_gone_and_not_what_came_back() {
    let Some(node) = Node::new() else { return };
    change(&node.container(2, &[]), |id| id);
    let (dir, changes) = node.capture(2, &[], &skip());
    let listed: Vec<String> =
        serde_json::from_slice(&std::fs::read(dir.path().join(names::DELETED_FILES)).unwrap()).unwrap();
    let mut sorted = listed.clone();
    sorted.sort();
    assert_eq!(sorted, ["/etc/gone", "/old/a", "/old/sub/deep", "/whole"]);
    assert_eq!(changes.deleted, 4);
}

/// CRI-O removes after it has laid the archive over, and gets the same.
#[test]
fn a_reader_that_removes_last_gets_the_same() {
    let Some(node) = Node::new() else { return };
    let root = node.container(2, &[]);
    change(&root, |id| id);
    let (dir, _) = node.capture(2, &[], &skip());
    let other = node.container(3, &[]);
    let tar = std::fs::File::open(dir.path().join(names::ROOT_DIFF)).unwrap();
    criox_store::lay_over(tar, &other, &[], &[], &UnpackLimits::default()).unwrap();
    std::fs::remove_file(dir.path().join(names::ROOT_DIFF)).unwrap();
    apply(dir.path(), &other, &[]);
    let (mut found, mut expected) = (describe(&other, &[]), expected(&root, &[]));
    // Removing changes the times of directories.
    for tree in [&mut found, &mut expected] {
        tree.retain(|_, what| !what.starts_with('4'));
    }
    check_same(&found, &expected);
}

/// GNU tar, an independent reader, sees the same contents.
#[test]
fn another_reader_unpacks_the_changes() {
    let Some(node) = Node::new() else { return };
    let root = node.container(2, &[]);
    change(&root, |id| id);
    let (dir, _) = node.capture(2, &[], &skip());
    let into = tempfile::tempdir().unwrap();
    let output = std::process::Command::new("tar")
        .args([
            "--extract",
            "--xattrs",
            "--xattrs-include=*",
            "--numeric-owner",
            "--same-permissions",
            "--file",
        ])
        .arg(dir.path().join(names::ROOT_DIFF))
        .arg("--directory")
        .arg(into.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let (found, expected) = (describe(into.path(), &[]), expected(&root, &[]));
    for (name, what) in found {
        if name != "linked" {
            assert_eq!(Some(&what), expected.get(&name), "{name}");
        }
    }
}

#[test]
fn a_root_without_changes_has_no_files() {
    let Some(node) = Node::new() else { return };
    node.container(2, &[]);
    let (dir, changes) = node.capture(2, &[], &[]);
    assert_eq!(changes, Changes::default());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    let other = node.container(3, &[]);
    assert_eq!(apply(dir.path(), &other, &[]), Applied::default());
}

/// A pod with a user namespace: owners are told as it sees them, and become those of the namespace it comes back to.
#[test]
fn owners_are_those_that_the_container_sees() {
    let Some(node) = Node::new() else { return };
    if let Err(error) = node.store.probe_idmap() {
        eprintln!("skipped: {error}");
        return;
    }
    const OTHER: [IdRange; 1] = [IdRange { inside: 0, host: 900_000, length: 65_536 }];
    let root = node.container(2, &RANGES);
    change(&root, |id| owners::host_of(&RANGES, id));
    // What the node's root made here is nobody's in the container; it is not the case that is looked at.
    for (name, _) in describe(&root, &RANGES) {
        let path = root.join(&name);
        let meta = std::fs::symlink_metadata(&path).unwrap();
        if meta.uid() == 0 {
            let node = node_of(path.parent().unwrap(), path.file_name().unwrap().to_str().unwrap());
            inroot::set_owner(node.as_fd(), 300_000, 300_000).unwrap();
        }
    }
    let (dir, _) = node.capture(2, &RANGES, &skip());
    let plain = node.container(3, &[]);
    apply(dir.path(), &plain, &[]);
    assert_eq!(std::fs::metadata(plain.join("tool")).unwrap().uid(), 1000);
    let mapped = node.container(4, &OTHER);
    apply(dir.path(), &mapped, &OTHER);
    assert_eq!(std::fs::metadata(mapped.join("tool")).unwrap().uid(), 901_000);
    check_same(&describe(&mapped, &OTHER), &expected(&root, &RANGES));
    check_same(&describe(&plain, &[]), &expected(&root, &RANGES));
}

/// An overlay that renames directories by reference: the renamed one is told with all that is in it.
#[test]
fn a_directory_renamed_by_reference_is_told_whole() {
    if !is_root() {
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let dir = |name: &str| {
        let path = base.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path
    };
    let (lower, upper, work, merged) = (dir("lower"), dir("upper"), dir("work"), dir("merged"));
    std::fs::create_dir_all(lower.join("from/sub")).unwrap();
    put(&lower.join("from/sub/f"), b"f");
    std::fs::create_dir(lower.join("to")).unwrap();
    put(&lower.join("to/hidden"), b"h");
    put(&lower.join("big"), &[3; 10_000]);
    let options = ["redirect_dir=on".to_owned(), "metacopy=on".to_owned()];
    if let Err(error) =
        mount::overlay(std::slice::from_ref(&lower), Some(&upper), Some(&work), &options, &merged)
    {
        eprintln!("skipped: {error}");
        return;
    }
    let result = std::panic::catch_unwind(|| {
        criox_sys::durable::remove_tree(&merged.join("to")).unwrap();
        std::fs::rename(merged.join("from"), merged.join("to")).unwrap();
        // Only the metadata is copied up.
        std::fs::set_permissions(merged.join("big"), std::fs::Permissions::from_mode(0o600)).unwrap();
        let capture = tempfile::tempdir().unwrap();
        let changes = RootChanges {
            upper: &upper,
            lowers: std::slice::from_ref(&lower),
            merged: &merged,
            users: &[],
            groups: &[],
            skip: &[],
            reserve: 0,
        };
        changes.write(capture.path(), &Cancel::new()).unwrap();
        let plain = tempfile::tempdir().unwrap();
        let copied = std::process::Command::new("cp")
            .arg("-a")
            .arg(lower.join("."))
            .arg(plain.path())
            .status()
            .unwrap();
        assert!(copied.success());
        apply(capture.path(), plain.path(), &[]);
        check_same(&describe(plain.path(), &[]), &describe(&merged, &[]));
    });
    mount::unmount(&merged, true).unwrap();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}
