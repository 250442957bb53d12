//! Without a kernel that has SELinux: labels as they would be, and labelling with an attribute that every kernel has.

use std::ffi::OsStr;
use std::os::fd::AsFd as _;

use criox_sys::xattr;
use rustix::fs::{CWD, Mode, OFlags};

use super::relabel::{is_system, relabel_as};
use super::*;

/// Any user's attribute, in place of the kernel's.
const STAND_IN: &str = "user.criox-test";
const LABEL: &str = "system_u:object_r:container_file_t:s0:c1,c2";

fn enabled(levels: bool) -> Selinux {
    let defaults =
        SelinuxLabels { process: "u:r:container_t:s0".into(), mount: "u:o:container_file_t:s0".into() };
    Selinux { policy: Some(Policy { defaults, levels }), ..Selinux::default() }
}

fn id(letter: char) -> SandboxId {
    letter.to_string().repeat(64).parse().expect("an ID")
}

fn new_pod(selinux: &Selinux, letter: char, known: &[Labels]) -> Labels {
    let config = v1::PodSandboxConfig::default();
    let labels = selinux.pod(&config, known.to_vec(), |_| true).expect("labels").expect("enabled");
    selinux.allot(id(letter), &labels);
    labels
}

#[test]
fn no_two_pods_share_a_level() {
    let selinux = enabled(true);
    let mut seen = HashSet::new();
    let mut known = Vec::new();
    for letter in "0123456789abcdef".chars() {
        let labels = new_pod(&selinux, letter, &known);
        assert!(labels.level().starts_with("s0:c"), "{labels:?}");
        assert!(labels.process.ends_with(labels.level()));
        assert!(seen.insert(labels.level().to_owned()), "{labels:?}");
        // Some have a record by now, some don't.
        if known.len() < 8 {
            known.push(labels);
        }
    }
    // All but one are taken: the one that is left is found.
    let all = || (0..MCS_LEVELS).map(criox_spec::mcs_level);
    let but_one: HashSet<String> = all().filter(|level| level != "s0:c5,c77").collect();
    assert_eq!(free_level(&but_one).as_deref(), Some("s0:c5,c77"));
    assert_eq!(free_level(&all().collect()), None);
}

#[test]
fn a_level_is_free_again_when_its_pod_has_gone() {
    let selinux = enabled(true);
    let gone = new_pod(&selinux, 'a', &[]);
    assert_eq!(selinux.allotted.lock().expect("free").len(), 1);
    let config = v1::PodSandboxConfig::default();
    selinux.pod(&config, [], |other| *other != id('a')).expect("labels");
    assert!(selinux.allotted.lock().expect("free").is_empty(), "{gone:?}");
}

#[test]
fn without_selinux_or_levels_there_are_none() {
    let config = v1::PodSandboxConfig::default();
    assert_eq!(Selinux::default().pod(&config, [], |_| true).expect("none"), None);
    assert_eq!(new_pod(&enabled(false), 'a', &[]).process, "u:r:container_t");
    assert!(!Selinux::new(false).is_enabled());
}

#[test]
fn a_pod_that_shares_the_nodes_processes_or_queues_has_no_labels() {
    let selinux = enabled(true);
    let pod = new_pod(&selinux, 'a', &[]);
    let sandbox = |options: v1::NamespaceOption| v1::PodSandboxConfig {
        linux: Some(v1::LinuxPodSandboxConfig {
            security_context: Some(v1::LinuxSandboxSecurityContext {
                namespace_options: Some(options),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let ask = |options| {
        let container = v1::ContainerConfig::default();
        selinux.container(Some(&pod), &sandbox(options), &container).expect("labels").is_some()
    };
    let node = v1::NamespaceMode::Node.into();
    assert!(ask(v1::NamespaceOption::default()));
    assert!(ask(v1::NamespaceOption { network: node, ..Default::default() }));
    assert!(!ask(v1::NamespaceOption { pid: node, ..Default::default() }));
    assert!(!ask(v1::NamespaceOption { ipc: node, ..Default::default() }));
    // A pod of a daemon that had SELinux off.
    assert!(
        selinux
            .container(None, &sandbox(v1::NamespaceOption::default()), &v1::ContainerConfig::default())
            .expect("none")
            .is_none()
    );
}

fn label_of(path: &Path) -> Option<String> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(CWD, path, flags, Mode::empty()).expect("a file");
    let value = xattr::get(file.as_fd(), OsStr::new(STAND_IN)).expect("an attribute");
    value.map(|value| String::from_utf8(value).expect("text"))
}

fn file(path: &Path) {
    fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
    durable::write_atomic(path, b"", 0o644).expect("a file");
}

/// A volume with a file below two directories, or why there can't be one.
fn volume() -> Option<tempfile::TempDir> {
    let volume = tempfile::tempdir().expect("a directory");
    file(&volume.path().join("a/b/file"));
    let top = fs::File::open(volume.path()).expect("open");
    match xattr::set(top.as_fd(), OsStr::new(STAND_IN), b"x") {
        Ok(()) => Some(volume),
        Err(error) => {
            eprintln!("skipped: the temporary directory's file system has no attributes: {error}");
            None
        }
    }
}

#[test]
fn a_volume_is_labelled_with_all_that_is_in_it() {
    let Some(volume) = volume() else { return };
    relabel_as(volume.path(), STAND_IN, LABEL, false, "f").expect("labelled");
    for place in ["", "a", "a/b", "a/b/file"] {
        assert_eq!(label_of(&volume.path().join(place)).as_deref(), Some(LABEL), "{place}");
    }
    // A single file, too.
    let single = volume.path().join("a/single");
    file(&single);
    relabel_as(&single, STAND_IN, LABEL, false, "f").expect("labelled");
    assert_eq!(label_of(&single).as_deref(), Some(LABEL));
}

#[test]
fn a_link_in_a_volume_leads_nowhere() {
    let Some(volume) = volume() else { return };
    let outside = tempfile::tempdir().expect("a directory");
    file(&outside.path().join("secret"));
    std::os::unix::fs::symlink(outside.path(), volume.path().join("directory")).expect("a link");
    std::os::unix::fs::symlink(outside.path().join("secret"), volume.path().join("file")).expect("a link");
    // Such an attribute can't be set on a link, as the kernel's own can: what counts is that the target stays as it is.
    drop(relabel_as(volume.path(), STAND_IN, LABEL, false, "f"));
    assert_eq!(label_of(outside.path()), None);
    assert_eq!(label_of(&outside.path().join("secret")), None);
}

#[test]
fn below_a_directory_that_has_the_label_nothing_is_looked_at_if_so_asked() {
    let Some(volume) = volume() else { return };
    relabel_as(volume.path(), STAND_IN, LABEL, true, "f").expect("labelled");
    let new = volume.path().join("a/new");
    file(&new);
    relabel_as(volume.path(), STAND_IN, LABEL, true, "f").expect("trusted");
    assert_eq!(label_of(&new), None);
    relabel_as(volume.path(), STAND_IN, LABEL, false, "f").expect("labelled");
    assert_eq!(label_of(&new).as_deref(), Some(LABEL));
}

#[test]
fn directories_of_the_system_are_never_labelled() {
    for path in ["/", "/etc", "/usr", "/var/lib", "/dev", "/dev/shm", "/proc/self", "/sys/fs/cgroup", "/root"]
    {
        let error = relabel_as(Path::new(path), STAND_IN, LABEL, false, "config.mounts[3].selinux_relabel");
        let error = error.expect_err(path);
        assert!(matches!(error, Error::Invalid { .. }), "{error:?}");
        assert!(error.to_string().contains("config.mounts[3].selinux_relabel"), "{error}");
        assert!(error.to_string().contains(path), "{error}");
    }
    for path in ["/var/lib/kubelet/pods/x/volumes/y", "/srv/data", "/etc/kubernetes/pki", "/devices"] {
        assert!(!is_system(Path::new(path)), "{path}");
    }
}
