//! What is refused, and the field that the refusal names.

use criox_cri::v1;
use criox_spec::{ErrorKind, NamespaceSource, ResolvedDevice, SelinuxLabels};

use crate::support::{Fixture, strings};

fn check(field: &str, change: impl FnOnce(&mut Fixture)) {
    check_kind(field, ErrorKind::Invalid, change);
}

fn check_kind(field: &str, kind: ErrorKind, change: impl FnOnce(&mut Fixture)) {
    let mut fixture = Fixture::default();
    fixture.build().expect("the unchanged fixture is right");
    change(&mut fixture);
    let error = fixture.build().expect_err(field);
    assert_eq!((error.field.as_str(), error.kind), (field, kind), "{error}");
    assert!(!error.reason.is_empty() && !error.reason.ends_with('.'), "{error}");
}

fn id(value: i64) -> Option<v1::Int64Value> {
    Some(v1::Int64Value { value })
}

#[test]
fn users_that_cannot_be() {
    check("linux.security_context.run_as_user", |f| f.security().run_as_user = id(-1));
    check("linux.security_context.run_as_user", |f| f.security().run_as_user = id(4_294_967_295));
    check("linux.security_context.run_as_user", |f| f.security().run_as_user = id(i64::MAX));
    check("linux.security_context.run_as_group", |f| f.security().run_as_group = id(5));
    check("linux.security_context.run_as_group", |f| {
        f.security().run_as_user = id(5);
        f.security().run_as_group = id(-5);
    });
    check("linux.security_context.run_as_username", |f| {
        f.security().run_as_user = id(5);
        f.security().run_as_username = "app".to_owned();
    });
    check("linux.security_context.run_as_username", |f| {
        f.security().run_as_username = "99999999999".to_owned()
    });
    check("linux.security_context.run_as_username", |f| f.security().run_as_username = "-1".to_owned());
    check("linux.security_context.supplemental_groups[1]", |f| {
        f.security().supplemental_groups = vec![1, -1]
    });
    check("linux.security_context.supplemental_groups_policy", |f| {
        f.security().supplemental_groups_policy = 9;
    });
}

#[test]
fn users_that_the_image_does_not_have() {
    check_kind("linux.security_context.run_as_username", ErrorKind::Image, |f| {
        f.security().run_as_username = "nobody".to_owned();
    });
    check_kind("image.user", ErrorKind::Image, |f| f.image.user = "nobody".to_owned());
    check_kind("image.user", ErrorKind::Image, |f| f.image.user = "app:nogroup".to_owned());
    check_kind("image.user", ErrorKind::Image, |f| {
        f.image.user = "app".to_owned();
        f.passwd = None;
    });
}

#[test]
fn image_users_that_are_neither_number_nor_name() {
    for user in
        ["4294967295", "99999999999", "100000000000000000000", "-1", "+0", " 0", "1:2:3", "app:-1", "a b"]
    {
        check("image.user", |f| f.image.user = user.to_owned());
    }
}

#[test]
fn commands_and_environments_that_cannot_be() {
    check("command", |f| {
        f.container.command.clear();
        f.container.args.clear();
        f.image.cmd.clear();
    });
    check("command", |f| f.container.command = strings(&[""]));
    check("command", |f| f.container.args = strings(&["a\0b"]));
    check("working_dir", |f| f.container.working_dir = "relative".to_owned());
    check("working_dir", |f| f.container.working_dir = "/proc/self/fd/7".to_owned());
    check("working_dir", |f| f.container.working_dir = "/a/../../b".to_owned());
    check("image.working_dir", |f| f.image.working_dir = "relative".to_owned());
    let pair = |key: &str, value: &[u8]| v1::KeyValue { key: key.to_owned(), value: value.into() };
    check("envs[0].key", |f| f.container.envs = vec![pair("", b"x")]);
    check("envs[0].key", |f| f.container.envs = vec![pair("A=B", b"x")]);
    check("envs[1].value", |f| f.container.envs = vec![pair("A", b"x"), pair("B", b"a\0b")]);
    check("envs[0].value", |f| f.container.envs = vec![pair("A", b"\xff")]);
    check("envs[0].value", |f| f.container.envs = vec![pair("HOME", b"/\nroot::0:0")]);
    check_kind("image.env", ErrorKind::Image, |f| f.image.env = strings(&["A=\0"]));
    check_kind("image.env", ErrorKind::Image, |f| f.image.env = strings(&["HOME=/\nroot::0:0"]));
}

#[test]
fn mounts_that_cannot_be() {
    for path in ["relative", "/", "/a/../b", "/proc/self/attr", "/proc/1/root", "/proc/thread-self"] {
        check("mounts[0].container_path", |f| f.mount(path, |_, _| {}));
    }
    check("mounts[1].container_path", |f| {
        f.mount("/ok", |_, _| {});
        f.mount("", |_, _| {});
    });
    check("mounts[0].host_path", |f| f.mount("/data", |mount, _| mount.host_path.clear()));
    check("mounts[0].host_path", |f| {
        f.mount("/data", |mount, _| mount.image = Some(v1::ImageSpec::default()))
    });
    check("mounts[0].image_sub_path", |f| f.mount("/data", |mount, _| mount.image_sub_path = "x".to_owned()));
    check("mounts[0].mount_options[0]", |f| {
        f.mount("/data", |mount, _| mount.mount_options = strings(&["bind,x"]))
    });
    check("mounts", |f| {
        f.mount("/data", |_, _| {});
        f.mounts.clear();
    });
}

#[test]
fn propagation_that_the_source_does_not_have() {
    let bidirectional = v1::MountPropagation::PropagationBidirectional as i32;
    let from_host = v1::MountPropagation::PropagationHostToContainer as i32;
    check("mounts[0].propagation", |f| {
        f.mount("/data", |mount, facts| {
            mount.propagation = bidirectional;
            facts.shared = false;
            facts.slave = true;
        });
    });
    check("mounts[0].propagation", |f| {
        f.mount("/data", |mount, facts| {
            mount.propagation = from_host;
            facts.shared = false;
        });
    });
    check("mounts[0].propagation", |f| f.mount("/data", |mount, _| mount.propagation = 7));
}

#[test]
fn recursive_read_only_without_its_conditions() {
    let able = |f: &mut Fixture| f.handler.recursive_read_only = true;
    check("mounts[0].recursive_read_only", |f| {
        able(f);
        f.mount("/data", |mount, _| mount.recursive_read_only = true);
    });
    check("mounts[0].recursive_read_only", |f| {
        able(f);
        f.mount("/data", |mount, _| {
            mount.recursive_read_only = true;
            mount.readonly = true;
            mount.propagation = v1::MountPropagation::PropagationHostToContainer as i32;
        });
    });
    check_kind("mounts[0].recursive_read_only", ErrorKind::Unsupported, |f| {
        f.mount("/data", |mount, _| {
            mount.recursive_read_only = true;
            mount.readonly = true;
        });
    });
}

#[test]
fn idmapped_mounts_that_somebody_cannot_do() {
    let map = || vec![v1::IdMapping { host_id: 100_000, container_id: 0, length: 65536 }];
    let with_maps = |f: &mut Fixture, idmappable| {
        f.mount("/data", |mount, facts| {
            mount.uid_mappings = map();
            mount.gid_mappings = map();
            facts.idmappable = idmappable;
        });
    };
    check_kind("mounts[0].uidMappings", ErrorKind::Unsupported, |f| with_maps(f, true));
    check_kind("mounts[0].uidMappings", ErrorKind::Unsupported, |f| {
        f.handler.idmapped_mounts = true;
        with_maps(f, false);
    });
    check("mounts[0].uidMappings", |f| f.mount("/data", |mount, _| mount.uid_mappings = map()));
    check("mounts[0].gidMappings", |f| {
        f.handler.idmapped_mounts = true;
        f.mount("/data", |mount, facts| {
            mount.uid_mappings = map();
            mount.gid_mappings = [map(), map()].concat();
            facts.idmappable = true;
        });
    });
}

fn image_volume(f: &mut Fixture, change: impl Fn(&mut v1::Mount)) {
    f.mount("/data", |mount, _| {
        mount.host_path = String::new();
        mount.image = Some(v1::ImageSpec::default());
        mount.readonly = true;
        change(mount);
    });
}

#[test]
fn image_volumes_that_cannot_be() {
    let map = || vec![v1::IdMapping { host_id: 100_000, container_id: 0, length: 65536 }];
    check("mounts[0].readonly", |f| image_volume(f, |mount| mount.readonly = false));
    check("mounts[0].host_path", |f| image_volume(f, |mount| mount.host_path = "/data".to_owned()));
    check("mounts[0].uidMappings", |f| {
        image_volume(f, |mount| {
            mount.uid_mappings = map();
            mount.gid_mappings = map();
        });
    });
}

#[test]
fn users_that_the_user_namespace_does_not_have() {
    let in_namespace = |f: &mut Fixture| {
        let map = criox_spec::oci::IdMapping { container_id: 0, host_id: 100_000, size: 1000 };
        f.namespaces.user = NamespaceSource::Path("/run/userns/x".to_owned());
        f.namespaces.uid_mappings = vec![map];
        f.namespaces.gid_mappings = vec![map];
    };
    check("linux.security_context.run_as_user", |f| {
        in_namespace(f);
        f.security().run_as_user = Some(v1::Int64Value { value: 1000 });
    });
    check("linux.security_context.run_as_group", |f| {
        in_namespace(f);
        f.security().run_as_user = Some(v1::Int64Value { value: 999 });
        f.security().run_as_group = Some(v1::Int64Value { value: 1000 });
    });
    check("linux.security_context.supplemental_groups", |f| {
        in_namespace(f);
        f.security().supplemental_groups = vec![1, 5000];
    });
}

#[test]
fn resources_out_of_range() {
    check("linux.resources.cpu_shares", |f| f.resources().cpu_shares = -1);
    check("linux.resources.cpu_quota", |f| f.resources().cpu_quota = -2);
    check("linux.resources.cpu_period", |f| f.resources().cpu_period = -1);
    check("linux.resources.cpuset_cpus", |f| f.resources().cpuset_cpus = "0-3\n".to_owned());
    check("linux.resources.memory_limit_in_bytes", |f| f.resources().memory_limit_in_bytes = -2);
    check("linux.resources.memory_limit_in_bytes", |f| {
        f.handler.container_min_memory = 512_000;
        f.resources().memory_limit_in_bytes = 1;
    });
    check("linux.resources.memory_swap_limit_in_bytes", |f| {
        f.resources().memory_limit_in_bytes = 2;
        f.resources().memory_swap_limit_in_bytes = 1;
    });
    check("linux.resources.oom_score_adj", |f| f.resources().oom_score_adj = 1001);
    for size in ["", "2", "MB", "2M", "2MB/..", "../x"] {
        check("linux.resources.hugepage_limits[0].page_size", |f| {
            f.resources().hugepage_limits = vec![v1::HugepageLimit { page_size: size.to_owned(), limit: 1 }];
        });
    }
    for file in ["cgroup.procs", "../memory.max", "memory.", "memory", "memory.a/b", "evil.max"] {
        check("linux.resources.unified", |f| {
            f.resources().unified = [(file.to_owned(), "1".to_owned())].into_iter().collect();
        });
    }
}

#[test]
fn devices_that_cannot_be() {
    let device = |path: &str| ResolvedDevice { path: path.to_owned(), ..Default::default() };
    check("devices[0].container_path", |f| f.devices = vec![device("dev/x")]);
    check("devices[0].container_path", |f| f.devices = vec![device("/dev/../etc")]);
    check("devices[0].permissions", |f| {
        f.container.devices = vec![v1::Device {
            host_path: "/dev/x".to_owned(),
            permissions: "rwx".to_owned(),
            ..Default::default()
        }];
    });
    check("devices[0].host_path", |f| f.container.devices = vec![v1::Device::default()]);
    check("devices", |f| {
        f.identity.sandbox_privileged = true;
        f.security().privileged = true;
        f.devices = vec![ResolvedDevice { major: 1, ..device("/dev/fuse") }];
    });
}

#[test]
fn security_that_cannot_be() {
    check("linux.security_context.privileged", |f| f.security().privileged = true);
    check("linux.security_context.capabilities.add_capabilities", |f| {
        f.security().capabilities =
            Some(v1::Capability { add_capabilities: strings(&["FLY"]), ..Default::default() });
    });
    check("windows", |f| f.container.windows = Some(v1::WindowsContainerConfig::default()));
    check("stop_signal", |f| f.container.stop_signal = 999);
    check("linux.security_context.selinux_options.type", |f| {
        let options = v1::SeLinuxOption { r#type: "t,dev=1".to_owned(), ..Default::default() };
        f.security().selinux_options = Some(options);
    });
    check("linux.security_context.masked_paths[0]", |f| f.security().masked_paths = strings(&["proc/kcore"]));
    check("linux.security_context.readonly_paths[0]", |f| f.security().readonly_paths = strings(&["/a/.."]));
    let localhost = |name: &str| {
        Some(v1::SecurityProfile {
            profile_type: v1::security_profile::ProfileType::Localhost as i32,
            localhost_ref: name.to_owned(),
        })
    };
    check("linux.security_context.apparmor.localhost_ref", |f| f.security().apparmor = localhost(""));
    check_kind("linux.security_context.apparmor", ErrorKind::Unsupported, |f| {
        f.security().apparmor = localhost("mine");
    });
    let default = Some(v1::SecurityProfile::default());
    check_kind("linux.security_context.apparmor", ErrorKind::Unsupported, |f| {
        f.node.apparmor = true;
        f.defaults.apparmor_missing = "\"crio-default\" is not loaded".to_owned();
        f.security().apparmor.clone_from(&default);
    });
    check_kind("linux.security_context.apparmor", ErrorKind::Unsupported, |f| {
        f.node.apparmor = true;
        f.handler.apparmor = Some(false);
    });
    check_kind("linux.security_context.selinux_options", ErrorKind::Unsupported, |f| {
        f.selinux = Some(SelinuxLabels { process: "u:r:t:s0".to_owned(), mount: String::new() });
        f.handler.selinux = Some(false);
    });
    check_kind("linux.security_context.seccomp", ErrorKind::Unsupported, |f| {
        f.default_seccomp = true;
        f.handler.seccomp = Some(false);
    });
    check("linux.security_context.namespace_options", |f| {
        f.namespaces.pid = NamespaceSource::Path("proc/1/ns/pid".to_owned());
    });
    check("linux.security_context.namespace_options.userns_options", |f| {
        f.namespaces.user = NamespaceSource::Private;
    });
    check("annotations[umask.crio.io]", |f| {
        f.handler.allowed_annotations = strings(&["umask.crio.io"]);
        f.sandbox.annotations.insert("umask.crio.io".to_owned(), "9".to_owned());
    });
}
