//! CRIU's images: a real dump (CRIU 4.2, crun 1.28; a shell with a child, both of root with two capabilities,
//! `no_new_privs` and a filter), and what somebody could make of it.

use std::path::Path;

use criox_checkpoint::criu::{Mount, Processes, Seccomp, mounts};

use crate::harness::{put, real_images};

const CAP_KILL: u64 = 1 << 5;
const CAP_NET_BIND_SERVICE: u64 = 1 << 10;

fn copy_of_real() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(real_images()).unwrap() {
        let entry = entry.unwrap();
        put(&dir.path().join(entry.file_name()), &std::fs::read(entry.path()).unwrap());
    }
    dir
}

#[track_caller]
fn check_refused(dir: &Path, why: &str) {
    let error = Processes::read(dir).unwrap_err();
    assert!(error.is_refusal() && error.to_string().contains(why), "{error}");
}

fn replace(dir: &Path, name: &str, bytes: &[u8]) {
    let _ = std::fs::remove_file(dir.join(name));
    put(&dir.join(name), bytes);
}

/// An image with these entries.
fn image(magic: u32, entries: &[&[u8]]) -> Vec<u8> {
    let mut bytes = [0x5456_4319u32.to_le_bytes(), magic.to_le_bytes()].concat();
    for entry in entries {
        bytes.extend_from_slice(&u32::try_from(entry.len()).unwrap().to_le_bytes());
        bytes.extend_from_slice(entry);
    }
    bytes
}

#[test]
fn credentials_of_a_real_dump_are_those_that_its_container_had() {
    let processes = Processes::read(&real_images()).unwrap();
    let first = processes.first();
    assert_eq!((first.pid, first.first, first.threads.len()), (1, true, 1));
    assert!(processes.processes.len() >= 3, "the shells and their sleeping children");
    for thread in processes.threads() {
        let found = &thread.credentials;
        assert_eq!((found.users(), found.primary_groups()), ([0; 4], [0; 4]));
        assert_eq!(found.groups, [7, 8]);
        assert_eq!(found.bounding, CAP_KILL | CAP_NET_BIND_SERVICE);
        assert_eq!(found.capabilities(), CAP_KILL);
        assert_eq!((found.ambient, found.no_new_privs), (Some(CAP_KILL), Some(true)));
        let Seccomp::Filter(filters) = &found.seccomp else { panic!("{:?}", found.seccomp) };
        assert_eq!(filters.programs().len(), 1);
        // The profile refused `swapon` (167) and `reboot` (169), and no other architecture was named.
        let (x86_64, i386) = (0xc000_003e, 0x4000_0003);
        let refused: Vec<u32> = (0..500).filter(|call| !filters.may_allow(x86_64, *call)).collect();
        assert_eq!(refused, [167, 169]);
        assert!((0..500).all(|call| !filters.may_allow(i386, call)));
    }
}

/// A filter of hundreds of rules: podman's default profile, as libseccomp makes it.
#[test]
fn a_default_profile_is_followed_to_its_end() {
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/images/criu-4.2-podman");
    let processes = Processes::read(&images).unwrap();
    let credentials = &processes.first().threads[0].credentials;
    assert_eq!((credentials.no_new_privs, credentials.ambient), (None, Some(0)));
    let Seccomp::Filter(filters) = &credentials.seccomp else { panic!("{:?}", credentials.seccomp) };
    let begun = std::time::Instant::now();
    let allows = |call| filters.may_allow(0xc000_003e, call);
    // read, write, openat, clone (by its arguments), personality (by its arguments)
    for call in [0, 1, 257, 56, 135] {
        assert!(allows(call), "{call}");
    }
    // What only capabilities open: swapon, reboot, init_module, kexec_load, bpf; and what there is not.
    for call in [167, 175, 246, 321, 9999] {
        assert!(!allows(call), "{call}");
    }
    // The same on x32, and i386's swapon and read.
    let i386 = |call| filters.may_allow(0x4000_0003, call);
    assert!(!allows(0x4000_0000 | 167) && !i386(87) && i386(3));
    let refused = (0..600).filter(|call| !allows(*call)).count();
    assert!((50..400).contains(&refused), "{refused}");
    eprintln!("{} instructions, 616 calls in {:?}", filters.programs()[0].len() / 8, begun.elapsed());
}

#[test]
fn a_process_whose_credentials_are_not_stated_is_refused() {
    let dir = copy_of_real();
    std::fs::remove_file(dir.path().join("core-2.img")).unwrap();
    check_refused(dir.path(), "core-2.img: missing");
    // A message without credentials; then with credentials that lack a user, which would be read as root.
    replace(dir.path(), "core-2.img", &image(0x5505_3847, &[&[8, 1]]));
    check_refused(dir.path(), "doesn't state the credentials");
    let creds: &[u8] = &[0x10, 0, 0x18, 0, 0x20, 0, 0x28, 0, 0x30, 0, 0x38, 0, 0x40, 0, 0x68, 0];
    let thread = [&[0x52, u8::try_from(creds.len()).unwrap()][..], creds].concat();
    let core = [&[0x2a, u8::try_from(thread.len()).unwrap()][..], &thread].concat();
    replace(dir.path(), "core-2.img", &image(0x5505_3847, &[&core]));
    check_refused(dir.path(), "doesn't state the user");
    let good = std::fs::read(real_images().join("core-2.img")).unwrap();
    for (bytes, why) in [
        (image(0x5027_3030, &[&good[12..]]), "not an image of its kind"),
        (image(0x5505_3847, &[&good[12..], &good[12..]]), "one entry"),
        (image(0x5505_3847, &[]), "one entry"),
        (good[..good.len() - 1].to_vec(), "cut off"),
        (good[..6].to_vec(), "not an image"),
        ([&good[..], &[0xff; 3]].concat(), "cut off"),
        (image(0x5505_3847, &[&[0xff; 40]]), "malformed"),
    ] {
        replace(dir.path(), "core-2.img", &bytes);
        check_refused(dir.path(), why);
    }
}

#[test]
fn what_the_tree_does_not_tell_is_refused() {
    let dir = copy_of_real();
    let core = std::fs::read(real_images().join("core-2.img")).unwrap();
    put(&dir.path().join("core-99.img"), &core);
    check_refused(dir.path(), "core-99.img: it belongs to no process");
    std::fs::remove_file(dir.path().join("core-99.img")).unwrap();
    let tree = |entries: &[&[u8]]| image(0x5027_3030, entries);
    for (bytes, why) in [
        (tree(&[]), "no process"),
        (tree(&[&[8, 1, 16, 1]]), "no parent"),
        (tree(&[&[8, 1, 16, 0], &[8, 2, 16, 0]]), "no parent"),
        (tree(&[&[8, 1, 16, 0], &[8, 1, 16, 1]]), "twice"),
        (tree(&[&[8, 1, 16, 0, 40, 2, 40, 2]]), "twice"),
        (tree(&[&[16, 0]]), "without a number"),
    ] {
        replace(dir.path(), "pstree.img", &bytes);
        check_refused(dir.path(), why);
    }
}

#[test]
fn a_filter_that_is_missing_or_has_no_end_is_refused() {
    let dir = copy_of_real();
    std::fs::remove_file(dir.path().join("seccomp.img")).unwrap();
    check_refused(dir.path(), "seccomp.img: missing");
    replace(dir.path(), "seccomp.img", &image(0x6441_3049, &[&[]]));
    check_refused(dir.path(), "a filter is missing");
    // One that comes before itself.
    replace(dir.path(), "seccomp.img", &image(0x6441_3049, &[&[0x0a, 5, 0x0a, 1, 6, 0x10, 0]]));
    check_refused(dir.path(), "more than 16 filters");
}

/// CRIU would run firewall and routing tools with their content.
#[test]
fn images_of_a_network_are_refused() {
    for name in ["iptables-10.img", "nftables-10.img", "route6-10.img", "netdev-10.img", "netns-ct-10.img"] {
        let dir = copy_of_real();
        put(&dir.path().join(name), b"");
        check_refused(dir.path(), "image of a network");
    }
}

/// A field of a message: a number, or bytes.
fn number(field: u8, value: u32) -> Vec<u8> {
    let mut bytes = vec![field << 3];
    // Fields above 15 take a second byte.
    if field > 15 {
        bytes = vec![(field << 3) | 0x80, field >> 4];
    }
    let mut value = value;
    while value >= 0x80 {
        bytes.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
        value >>= 7;
    }
    bytes.push(u8::try_from(value).unwrap());
    bytes
}

fn text(field: u8, value: &[u8]) -> Vec<u8> {
    let head = if field > 15 { vec![(field << 3) | 0x82, field >> 4] } else { vec![(field << 3) | 2] };
    [head, vec![u8::try_from(value.len()).unwrap()], value.to_vec()].concat()
}

fn mount(kind: u32, id: u32, parent: u32, point: &str) -> Vec<u8> {
    part(kind, id, parent, point, "/")
}

fn part(kind: u32, id: u32, parent: u32, point: &str, root: &str) -> Vec<u8> {
    let numbers = [number(1, kind), number(2, id), number(4, parent), number(5, 0)].concat();
    [numbers, text(6, root.as_bytes()), text(7, point.as_bytes())].concat()
}

#[test]
fn mounts_of_a_real_dump_are_the_containers_own_or_handed_in() {
    let mounts = mounts(&real_images()).unwrap();
    let at = |point: &str| mounts.iter().find(|mount| mount.point == point).unwrap();
    let expected = Mount {
        namespace: "mountpoints-13.img".into(),
        id: 94,
        parent: 93,
        point: "/proc".into(),
        external: None,
        of_kernel: true,
        read_only: false,
    };
    assert_eq!(*at("/proc"), expected);
    let expected = Mount { id: 117, parent: 94, point: "/proc/sys".into(), read_only: true, ..expected };
    assert_eq!(*at("/proc/sys"), expected);
    assert!(!at("/dev/shm").of_kernel && !at("/proc/keys").of_kernel);
    assert_eq!(at("/proc/keys").external.as_deref(), Some("/proc/keys"));
    assert_eq!(at("/sys/fs/cgroup/memory").external.as_deref(), Some("/sys/fs/cgroup/memory"));
    assert_eq!(mounts.iter().filter(|mount| mount.point == "/").count(), 1);
}

/// CRIU mounts before the container's root is in place: what it would mount is the node's.
#[test]
fn a_mount_that_is_not_a_containers_is_refused() {
    let root = mount(0, 1, 99, "/");
    let image_of = |more: &[Vec<u8>]| {
        let entries: Vec<&[u8]> = std::iter::once(&root).chain(more).map(Vec::as_slice).collect();
        image(0x5556_3928, &entries)
    };
    let check = |more: &[Vec<u8>], why: Option<&str>| {
        let dir = copy_of_real();
        replace(dir.path(), "mountpoints-13.img", &image_of(more));
        match why {
            None => drop(Processes::read(dir.path()).unwrap()),
            Some(why) => check_refused(dir.path(), why),
        }
    };
    check(&[], None);
    for (kind, point) in [(1, "/proc"), (2, "/sys"), (5, "/x"), (6, "/x"), (14, "/x"), (23, "/sys/fs/cgroup")]
    {
        check(&[mount(kind, 2, 1, point)], None);
    }
    // Unsupported, devtmpfs, binfmt_misc, securityfs, debugfs, cgroup, aufs, fuse, any, overlay, autofs, tracefs, later ones.
    for kind in [0, 3, 4, 7, 8, 9, 10, 11, 12, 13, 15, 16, 17, 18, 19, 24, 1000] {
        check(&[mount(kind, 2, 1, "/x")], Some("not a container's own"));
        // Handed in by the runtime, under a name that it has to know.
        check(&[[mount(kind, 2, 1, "/x"), text(18, b"key")].concat()], None);
        check(&[[mount(kind, 2, 1, "/x"), text(18, b"")].concat()], Some("not a container's own"));
    }
    for (kind, point, root) in [
        (1, "/proc/sys", "/sys"),
        (1, "/proc/sysrq-trigger", "/sysrq-trigger"),
        (2, "/sys/firmware", "/firmware"),
        (6, "/x", "/0"),
        (23, "/sys/fs/cgroup/x", "/a/b"),
    ] {
        check(&[part(kind, 2, 1, point, root)], None);
    }
    // Masks are told by their paths: all of proc or sysfs at another place would have none.
    for (kind, point, root) in [
        (1, "/dev/mqueue", "/"),
        (1, "/sys", "/"),
        (1, "/proc/fs", "/sys"),
        (1, "/proc", "/sys"),
        (1, "/sys/fs/cgroup/x", "/"),
        (2, "/dev/shm", "/"),
        (2, "/sys/firmware", "/"),
        (23, "/dev/mqueue", "/"),
        (23, "/sys/fs/cgroups", "/"),
    ] {
        check(&[part(kind, 2, 1, point, root)], Some("where nobody looks for it"));
    }
    for (kind, root) in [
        (1, "/self/root/etc"),
        (1, "/1/root"),
        (1, "//thread-self/root"),
        (1, "/net"),
        (1, "/sys/../self/root"),
        (5, "/link/to/the/node"),
        (5, ""),
        (2, "/../.."),
        (6, "/../etc"),
        (6, "/0/x"),
        (14, "/x"),
        (23, "/.."),
    ] {
        check(&[part(kind, 2, 1, "/x", root)], Some("not a container's own"));
    }
    check(&[[mount(5, 2, 1, "/x"), number(12, 1)].concat()], Some("none of a container's"));
    check(&[mount(5, 2, 1, "/x/../../y")], Some("none of a container's"));
    for point in ["x", "", "/x/", "//x", "/./x", "/x/."] {
        check(&[mount(5, 2, 1, point)], Some("none of a container's"));
    }
    check(&[mount(5, 2, 77, "/x")], Some("one root"));
    check(&[mount(0, 2, 1, "/")], Some("one root"));
    check(&[mount(0, 2, 77, "/")], Some("one root"));
    check(&[mount(5, 1, 1, "/x")], Some("twice"));
    check(&[number(1, 5)], Some("without number"));
    let second = copy_of_real();
    put(&second.path().join("mountpoints-14.img"), &image(0x5556_3928, &[&mount(11, 1, 99, "/x")]));
    check_refused(second.path(), "mountpoints-14.img");
}

#[test]
fn names_of_cgroups_stay_below_the_containers() {
    let check = |entry: &[u8], good: bool| {
        let dir = copy_of_real();
        replace(dir.path(), "cgroup.img", &image(0x5938_3330, &[entry]));
        if good {
            Processes::read(dir.path()).unwrap();
        } else {
            check_refused(dir.path(), "leads out of a cgroup");
        }
    };
    let member = |name: &[u8], path: &[u8]| {
        text(1, &[number(1, 1), text(2, &[text(1, name), text(2, path)].concat())].concat())
    };
    check(&member(b"name=systemd", b"/a/b"), true);
    check(&member(b"memory", b"/a/../../b"), false);
    check(&member(b"../memory", b"/a"), false);
    let controller = |name: &[u8], dir: &[u8], property: &[u8]| {
        let property = text(3, &[text(1, property), text(2, b"1")].concat());
        let inner = text(2, &[text(1, dir), property].concat());
        text(2, &[text(1, name), text(2, &[text(1, b"top"), inner].concat())].concat())
    };
    check(&controller(b"memory", b"inner", b"memory.max"), true);
    check(&controller(b"a/b", b"inner", b"memory.max"), false);
    check(&controller(b"memory", b"..", b"memory.max"), false);
    check(&controller(b"memory", b"inner", b"../../../etc/x"), false);
}

/// The file `files.img` of real dumps (CRIU 4.2.1, a process without any capability): with sockets of TCP and UDP, and one
/// that it had opened before it lost them.
fn files_of(kind: &str) -> Vec<u8> {
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/images/criu-4.2-sockets");
    std::fs::read(images.join(format!("{kind}.img"))).unwrap()
}

#[test]
fn a_socket_for_packets_as_they_are_is_only_for_who_may_open_one() {
    let dir = copy_of_real();
    replace(dir.path(), "files.img", &files_of("plain"));
    Processes::read(dir.path()).unwrap();
    for (kind, why) in [("packet", "a packet socket"), ("raw", "a raw socket")] {
        replace(dir.path(), "files.img", &files_of(kind));
        check_refused(dir.path(), why);
    }
    let file = |kind: u32, more: &[u8]| image(0x5630_3138, &[&[&number(1, kind)[..], more].concat()]);
    for (bytes, why) in [
        (file(15, &text(11, b"")), "a tunnel"),
        (file(10, b""), "a packet socket"),
        (file(4, &text(4, &[])), "a raw socket"),
        (file(1, &text(6, b"")), "a packet socket"),
        (image(0x5630_3139, &[]), "not an image of its kind"),
        (file(1, b"")[..9].to_vec(), "cut off"),
    ] {
        replace(dir.path(), "files.img", &bytes);
        check_refused(dir.path(), why);
    }
    std::fs::remove_file(dir.path().join("files.img")).unwrap();
    put(&dir.path().join("packetsk.img"), b"");
    check_refused(dir.path(), "packetsk.img");
    // Whoever could open one may have one.
    with_first_core(dir.path(), &number(12, 1 << 13), &[]);
    Processes::read(dir.path()).unwrap();
}

#[test]
fn a_place_before_others_on_the_processors_is_only_for_who_may_take_it() {
    let check = |scheduling: &[u8], bounding: u32, good: bool| {
        let dir = copy_of_real();
        with_first_core(dir.path(), &number(12, bounding), scheduling);
        if good {
            Processes::read(dir.path()).unwrap();
        } else {
            check_refused(dir.path(), "core-1.img: its thread would run before others");
        }
    };
    const CAP_SYS_NICE: u32 = 1 << 23;
    // A nice value is written as zigzag: -1 is 1, 5 is 10.
    for (scheduling, good) in [
        (vec![], true),
        ([number(3, 10), number(4, 0)].concat(), true),
        (number(4, 3), true),
        (number(4, 5), true),
        (number(3, 1), false),
        (number(4, 1), false),
        (number(4, 2), false),
        (number(4, 6), false),
    ] {
        check(&scheduling, 0, good);
        check(&scheduling, CAP_SYS_NICE, true);
    }
    // Nor may it be allowed to ask for it.
    let limits = |nice: u32, realtime: u32| -> Vec<u8> {
        let one = |at: u32| match at {
            13 => nice,
            14 => realtime,
            _ => 1024,
        };
        let all = (0..16).flat_map(|at| text(1, &[number(1, 0), number(2, one(at))].concat()));
        text(8, &all.collect::<Vec<u8>>())
    };
    for ((nice, realtime), good) in [((0, 0), true), ((20, 0), false), ((0, 1), false)] {
        let dir = copy_of_real();
        with_first_task(dir.path(), &number(12, 0), &[], &limits(nice, realtime));
        if good {
            Processes::read(dir.path()).unwrap();
        } else {
            check_refused(dir.path(), "core-1.img: its thread would run before others");
        }
        with_first_task(dir.path(), &number(12, CAP_SYS_NICE), &[], &limits(nice, realtime));
        Processes::read(dir.path()).unwrap();
    }
}

/// A real CRIU does not make a namespace again that has the number of its own: with the mount namespace's, the process
/// goes on with the node's root file system as its root.
#[test]
fn a_process_in_a_namespace_of_the_node_is_told_or_refused() {
    const OWN: [(u8, u32); 8] = [(5, 1), (6, 2), (7, 3), (8, 4), (9, 6), (10, 7), (11, 8), (12, 5)];
    const APART: [(u8, u32); 8] = [(5, 9), (6, 10), (7, 11), (8, 12), (9, 13), (10, 7), (11, 8), (12, 5)];
    let ids = |numbers: &[(u8, u32)]| numbers.iter().flat_map(|(f, id)| number(*f, *id)).collect::<Vec<u8>>();
    let read = |pid: u32, numbers: &[(u8, u32)]| {
        let dir = copy_of_real();
        replace(dir.path(), &format!("ids-{pid}.img"), &image(0x5443_2030, &[&ids(numbers)]));
        (Processes::read(dir.path()).and_then(|processes| processes.shared_namespaces(dir.path())), dir)
    };
    let kinds = |numbers: &[(u8, u32)]| read(1, numbers).0.unwrap().into_iter().collect::<Vec<_>>();
    assert_eq!(kinds(&APART), ["cgroup", "time", "user"]);
    for (at, kind) in [(0, "pid"), (1, "network"), (2, "ipc"), (3, "uts")] {
        let (mut same, mut unstated) = (APART, APART.to_vec());
        same[at] = OWN[at];
        unstated.remove(at);
        assert!(kinds(&same).contains(&kind) && kinds(&unstated).contains(&kind), "{kind}");
    }
    for (id, pid) in [(6, 1), (6, 44), (14, 1)] {
        let mut numbers = APART;
        numbers[4] = (9, id);
        let (result, dir) = read(pid, &numbers);
        assert!(result.is_err());
        check_refused(
            dir.path(),
            &format!("ids-{pid}.img: its process would be in the node's mount namespace"),
        );
    }
    let dir = copy_of_real();
    std::fs::remove_file(dir.path().join("ids-2.img")).unwrap();
    check_refused(dir.path(), "ids-2.img: missing");
    let dir = copy_of_real();
    replace(
        dir.path(),
        "inventory.img",
        &[&0x5831_3116u32.to_le_bytes()[..], &2u32.to_le_bytes(), &[8, 2]].concat(),
    );
    check_refused(dir.path(), "whose namespaces");
    replace(dir.path(), "inventory.img", &image(0x5831_3116, &[&[8, 2]]));
    check_refused(dir.path(), "not an image of its kind");
}

#[test]
fn a_runtime_hands_in_its_three_streams_and_no_other_descriptor_of_its_own() {
    let dir = copy_of_real();
    let check = |json: &str, good: bool| {
        replace(dir.path(), "descriptors.json", json.as_bytes());
        if good {
            Processes::read(dir.path()).unwrap();
        } else {
            check_refused(dir.path(), "descriptors.json");
        }
    };
    check(r#"["/dev/null", "pipe:[1]", "pipe:[2]"]"#, true);
    check("[]", true);
    check(r#"["/dev/null", "pipe:[1]", "pipe:[2]", "pipe:[3]"]"#, false);
    check(r#"["/dev/null", ["pipe:[1]"]]"#, false);
    check(r#"{"0": "/dev/null"}"#, false);
    check(&format!("[{:?}]", "x".repeat(20_000)), false);
}

/// Gives the first process's thread a bounding set, and more fields.
fn with_first_core(dir: &Path, bounding: &[u8], scheduling: &[u8]) {
    with_first_task(dir, bounding, scheduling, &[]);
}

fn with_first_task(dir: &Path, bounding: &[u8], scheduling: &[u8], task: &[u8]) {
    let ids = (1..=8).flat_map(|field| number(field, 0));
    let sets = (9..=11).flat_map(|field| number(field, 0));
    let creds: Vec<u8> = ids.chain(sets).chain(bounding.iter().copied()).chain(number(13, 0)).collect();
    let thread = [scheduling, &text(10, &creds)].concat();
    replace(dir, "core-1.img", &image(0x5505_3847, &[&[text(3, task), text(5, &thread)].concat()]));
}

/// They are the whole node's, or say which of the node's users are the container's.
#[test]
fn images_of_the_node_and_of_user_namespaces_are_refused() {
    for name in ["binfmt-misc-1.img", "autofs-3.img", "userns-9.img", "rlimit-1.img"] {
        let dir = copy_of_real();
        put(&dir.path().join(name), b"");
        check_refused(dir.path(), name);
    }
}
