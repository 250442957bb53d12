//! Single rules, seen from outside.

use criox_cri::v1;
use criox_spec::{
    Built, CapabilitySet, NamespaceSource, SeccompRequest, SelinuxLabels, Ulimit, WarningTopic,
    seccomp_request,
};

use crate::support::{Fixture, strings};

fn built(change: impl FnOnce(&mut Fixture)) -> Built {
    let mut fixture = Fixture::default();
    change(&mut fixture);
    fixture.build().expect("the changed fixture is right")
}

fn id(value: i64) -> Option<v1::Int64Value> {
    Some(v1::Int64Value { value })
}

fn destinations(built: &Built) -> Vec<&str> {
    built.spec.mounts.iter().map(|mount| mount.destination.as_str()).collect()
}

#[test]
fn the_command_replaces_entrypoint_and_cmd_and_args_replace_only_cmd() {
    let check = |command: &[&str], args: &[&str], expected: &[&str]| {
        let built = built(|f| {
            f.image.entrypoint = strings(&["/entry"]);
            f.image.cmd = strings(&["default"]);
            f.container.command = strings(command);
            f.container.args = strings(args);
        });
        assert_eq!(built.spec.process.args, strings(expected), "{command:?} {args:?}");
    };
    check(&[], &[], &["/entry", "default"]);
    check(&[], &["x"], &["/entry", "x"]);
    check(&["/c"], &[], &["/c"]);
    check(&["/c"], &["x"], &["/c", "x"]);
}

#[test]
fn the_user_comes_from_the_request_then_from_the_image() {
    let check = |change: &dyn Fn(&mut Fixture), uid: u32, gid: u32, groups: &[u32]| {
        let built = built(change);
        assert_eq!(
            (built.user.uid, built.user.gid, built.user.supplemental_groups.as_slice()),
            (uid, gid, groups)
        );
        assert_eq!(built.spec.process.user.additional_gids, groups);
    };
    check(&|_| {}, 0, 0, &[0, 10]);
    check(&|f| f.image.user = "app".to_owned(), 1000, 1001, &[1001, 10, 44]);
    check(&|f| f.image.user = "1000".to_owned(), 1000, 1001, &[1001, 10, 44]);
    check(&|f| f.image.user = "app:".to_owned(), 1000, 1001, &[1001, 10, 44]);
    check(&|f| f.image.user = ":video".to_owned(), 0, 44, &[44, 10]);
    check(&|f| f.image.user = "1:2".to_owned(), 1, 2, &[2]);
    check(&|f| f.image.user = "00:00".to_owned(), 0, 0, &[0, 10]);
    check(&|f| f.image.user = "12345".to_owned(), 12345, 0, &[0]);
    check(&|f| f.image.user = "app:video".to_owned(), 1000, 44, &[44, 10]);
    check(&|f| f.image.user = "4294967294".to_owned(), 4_294_967_294, 0, &[0]);
    let by_request = |f: &mut Fixture| {
        f.image.user = "nobody:nogroup".to_owned();
        f.security().run_as_user = id(1000);
    };
    check(&by_request, 1000, 1001, &[1001, 10, 44]);
    check(
        &|f| {
            by_request(f);
            f.security().run_as_group = id(7);
            f.security().supplemental_groups = vec![44, 50, 50];
        },
        1000,
        7,
        &[7, 10, 44, 50],
    );
    check(
        &|f| {
            by_request(f);
            f.security().supplemental_groups = vec![50];
            f.security().supplemental_groups_policy = v1::SupplementalGroupsPolicy::Strict as i32;
        },
        1000,
        1001,
        &[1001, 50],
    );
    check(&|f| f.security().run_as_username = "app".to_owned(), 1000, 1001, &[1001, 10, 44]);
}

#[test]
fn a_user_without_an_entry_gets_one_where_the_caller_can_mount_it() {
    let ask = |f: &mut Fixture| {
        f.provided.passwd = Some("/run/c/passwd".to_owned());
        f.provided.group = Some("/run/c/group".to_owned());
        f.security().run_as_user = id(12345);
        f.security().run_as_group = id(54321);
        f.container.working_dir = "/srv".to_owned();
    };
    let made = built(ask);
    let passwd = String::from_utf8(made.passwd.clone().unwrap()).unwrap();
    assert!(passwd.ends_with("default:x:12345:54321:default user:/srv:/sbin/nologin\n"), "{passwd}");
    assert!(String::from_utf8(made.group.clone().unwrap()).unwrap().ends_with("54321:x:54321:\n"));
    assert!(destinations(&made).contains(&"/etc/passwd") && destinations(&made).contains(&"/etc/group"));

    let known = built(|f| {
        ask(f);
        f.security().run_as_user = id(1000);
    });
    assert_eq!(known.passwd, None);
    assert!(!destinations(&known).contains(&"/etc/passwd"));
    let colon = built(|f| {
        ask(f);
        f.image.env = strings(&["HOME=/x:0:0"]);
    });
    assert_eq!(colon.passwd, None, "a home that would break the line makes no line");
}

#[test]
fn a_later_source_of_a_variable_replaces_an_earlier_one() {
    let built = built(|f| {
        f.defaults.env = strings(&["FROM_IMAGE=default", "D=1"]);
        f.image.env = strings(&["PATH=/bin", "FROM_IMAGE=1", "nonsense", "=x"]);
        f.container.envs = vec![
            v1::KeyValue { key: "FROM_IMAGE".to_owned(), value: b"request".to_vec() },
            v1::KeyValue { key: "A".to_owned(), value: b"x=y".to_vec() },
        ];
    });
    let expected = ["PATH=/bin", "TERM=xterm", "HOSTNAME=pod", "FROM_IMAGE=request", "D=1", "A=x=y"];
    assert_eq!(built.spec.process.env, strings(&expected));
    assert_eq!(built.warnings.len(), 1, "one of a topic is told: {:?}", built.warnings);
}

#[test]
fn mounts_come_after_their_parents_and_replace_our_own_of_the_same_place() {
    let built = built(|f| {
        f.mount("/data/deep/er", |_, _| {});
        f.mount("/data//deep/", |_, _| {});
        f.mount("/data", |_, _| {});
        f.mount("/etc/hostname", |_, _| {});
    });
    let list = destinations(&built);
    let at = |path: &str| list.iter().position(|other| *other == path).unwrap();
    assert!(at("/data") < at("/data/deep") && at("/data/deep") < at("/data/deep/er"), "{list:?}");
    assert_eq!(list.iter().filter(|path| **path == "/etc/hostname").count(), 1);
    assert_eq!(built.spec.mounts[at("/etc/hostname")].source, "/host/data");
}

#[test]
fn a_mount_of_dev_or_sys_takes_what_lies_below_with_it() {
    let list = built(|f| f.mount("/dev", |_, _| {}));
    assert!(!destinations(&list).iter().any(|path| path.starts_with("/dev/")));
    assert!(destinations(&list).contains(&"/sys/fs/cgroup"));
    let list = built(|f| f.mount("/sys", |_, _| {}));
    assert!(!destinations(&list).iter().any(|path| path.starts_with("/sys/")));
    let list = built(|f| f.mount("/devices", |_, _| {}));
    assert!(destinations(&list).contains(&"/dev/shm"));
}

#[test]
fn what_a_user_namespace_does_not_own_is_bound_from_the_node() {
    let map = criox_spec::oci::IdMapping { container_id: 0, host_id: 100_000, size: 65_536 };
    let check = |shared: bool, mqueue: bool, destination: &str, kind: Option<&str>| {
        let list = built(|f| {
            f.namespaces.user = NamespaceSource::Path("/run/userns/x".to_owned());
            f.namespaces.uid_mappings = vec![map];
            f.namespaces.gid_mappings = vec![map];
            if shared {
                f.namespaces.pid = NamespaceSource::Host;
                f.namespaces.ipc = NamespaceSource::Host;
                f.namespaces.network = NamespaceSource::Host;
            }
            f.provided.mqueue = mqueue.then(|| "/dev/mqueue".to_owned());
        });
        let found = list.spec.mounts.iter().find(|mount| mount.destination == destination);
        assert_eq!(found.map(|mount| mount.kind.as_str()), kind, "{destination}");
    };
    for (destination, own) in [("/proc", "proc"), ("/sys", "sysfs"), ("/dev/mqueue", "mqueue")] {
        check(false, false, destination, Some(own));
        check(true, true, destination, Some("bind"));
    }
    check(true, false, "/dev/mqueue", None);
}

#[test]
fn options_of_a_mount_follow_the_request() {
    let check =
        |change: &dyn Fn(&mut v1::Mount, &mut criox_spec::ResolvedMount), options: &[&str], root: &str| {
            let built = built(|f| {
                f.handler.recursive_read_only = true;
                f.mount("/data", |mount, facts| change(mount, facts));
            });
            let mount = built.spec.mounts.iter().find(|mount| mount.destination == "/data").unwrap();
            assert_eq!(mount.options, strings(options));
            assert_eq!(built.spec.linux.rootfs_propagation, root);
        };
    check(&|_, _| {}, &["rbind", "rprivate", "rw"], "");
    check(&|mount, _| mount.readonly = true, &["rbind", "rprivate", "ro"], "");
    check(
        &|mount, _| {
            mount.readonly = true;
            mount.recursive_read_only = true;
        },
        &["rbind", "rprivate", "rro"],
        "",
    );
    check(&|mount, _| mount.propagation = 1, &["rbind", "rslave", "rw"], "rslave");
    check(&|mount, _| mount.propagation = 2, &["rbind", "rshared", "rw"], "rshared");
    check(&|_, facts| facts.contains_graph_root = true, &["rbind", "rslave", "rw"], "rslave");
    check(
        &|mount, _| mount.mount_options = strings(&["noexec", "nodev"]),
        &["rbind", "rprivate", "rw", "noexec", "nodev"],
        "",
    );
    check(
        &|mount, _| {
            mount.host_path.clear();
            mount.image = Some(v1::ImageSpec::default());
            mount.readonly = true;
        },
        &["rbind", "rprivate", "ro", "nosuid", "nodev"],
        "",
    );
}

#[test]
fn what_the_daemon_may_not_is_clamped_and_told() {
    let without = CapabilitySet::ALL.without(CapabilitySet::named("SYS_RESOURCE").unwrap());
    let clamped = built(|f| {
        f.node.capabilities = without;
        f.node.hard_rlimits = [("RLIMIT_NOFILE".to_owned(), 4096)].into_iter().collect();
        f.defaults.ulimits = vec![Ulimit { name: "nofile".to_owned(), soft: 8192, hard: 16384 }];
        f.resources().oom_score_adj = -997;
    });
    assert_eq!(clamped.spec.process.oom_score_adj, Some(0));
    assert_eq!((clamped.spec.process.rlimits[0].soft, clamped.spec.process.rlimits[0].hard), (4096, 4096));
    let topics: Vec<_> = clamped.warnings.iter().map(|warning| warning.topic).collect();
    assert_eq!(topics, [WarningTopic::Rlimits, WarningTopic::OomScoreAdj]);

    let free = built(|f| f.resources().oom_score_adj = -997);
    assert_eq!(free.spec.process.oom_score_adj, Some(-997));
    assert!(free.warnings.is_empty());
    let unsaid = built(|f| f.container.linux = None);
    assert_eq!(unsaid.spec.process.oom_score_adj, Some(0), "the daemon's own score is not inherited");
}

#[test]
fn memory_without_a_swap_value_means_no_swap() {
    let check = |limit, swap, accounting, expected| {
        let built = built(|f| {
            f.node.swap_accounting = accounting;
            f.resources().memory_limit_in_bytes = limit;
            f.resources().memory_swap_limit_in_bytes = swap;
        });
        let memory = built.spec.linux.resources.unwrap().memory;
        assert_eq!(memory.map(|memory| (memory.limit, memory.swap)), expected);
    };
    check(0, 0, true, None);
    check(100, 0, true, Some((Some(100), Some(100))));
    check(100, 150, true, Some((Some(100), Some(150))));
    check(100, -1, true, Some((Some(100), Some(-1))));
    check(100, 150, false, Some((Some(100), None)));
}

#[test]
fn without_a_security_context_the_default_paths_are_masked_and_empty_lists_unmask() {
    let absent = built(|f| f.container.linux = None);
    assert!(absent.spec.linux.masked_paths.contains(&"/proc/kcore".to_owned()));
    assert!(absent.spec.linux.readonly_paths.contains(&"/proc/sys".to_owned()));
    let unmasked = built(|_| {});
    assert!(unmasked.spec.linux.masked_paths.is_empty() && unmasked.spec.linux.readonly_paths.is_empty());
    let some = built(|f| {
        f.node.extra_masked_paths = strings(&["/sys/x"]);
        f.security().masked_paths = strings(&["/proc/mine", "/proc/kcore/"]);
    });
    for path in ["/proc/mine", "/proc/interrupts", "/sys/x"] {
        assert!(some.spec.linux.masked_paths.contains(&path.to_owned()), "{path}");
    }
    assert_eq!(some.spec.linux.masked_paths.iter().filter(|path| *path == "/proc/kcore").count(), 1);
}

#[test]
fn namespaces_follow_the_pod_and_the_cgroup_namespace_follows_the_node() {
    let kinds = |built: &Built| {
        built.spec.linux.namespaces.iter().map(|namespace| namespace.kind.clone()).collect::<Vec<_>>()
    };
    assert_eq!(kinds(&built(|_| {})), ["network", "ipc", "uts", "pid", "mount", "cgroup"]);
    assert_eq!(
        kinds(&built(|f| {
            f.node.cgroup_v2 = false;
            f.namespaces.network = NamespaceSource::Host;
            f.namespaces.pid = NamespaceSource::Host;
        })),
        ["ipc", "uts", "mount"]
    );
    let hostname = built(|f| f.namespaces.uts = NamespaceSource::Private).spec.hostname;
    assert_eq!(hostname.as_deref(), Some("pod"));
    assert_eq!(built(|_| {}).spec.hostname, None, "a joined namespace has its name already");
}

#[test]
fn selinux_labels_are_given_up_where_the_node_is_shared() {
    let check = |change: &dyn Fn(&mut Fixture), process: Option<&str>, mount: &str| {
        let built = built(|f| {
            f.selinux = Some(SelinuxLabels { process: "p:s0:c1".to_owned(), mount: "m:s0:c1".to_owned() });
            f.defaults.hostnetwork_disable_selinux = true;
            change(f);
        });
        assert_eq!(built.spec.process.selinux_label.as_deref(), process);
        assert_eq!(built.spec.linux.mount_label, mount);
    };
    check(&|_| {}, Some("p:s0:c1"), "m:s0:c1");
    check(&|f| f.namespaces.network = NamespaceSource::Host, None, "m:s0:c1");
    check(&|f| f.namespaces.pid = NamespaceSource::Host, None, "");
}

#[test]
fn apparmor_is_the_configured_profile_unless_the_request_says_otherwise() {
    let check = |change: &dyn Fn(&mut Fixture), expected: Option<&str>| {
        let built = built(|f| {
            f.node.apparmor = true;
            change(f);
        });
        assert_eq!(built.spec.process.apparmor_profile.as_deref(), expected);
    };
    let profile = |kind: v1::security_profile::ProfileType, name: &str| {
        Some(v1::SecurityProfile { profile_type: kind as i32, localhost_ref: name.to_owned() })
    };
    use v1::security_profile::ProfileType::{Localhost, Unconfined};
    check(&|_| {}, Some("crio-default"));
    check(&|f| f.security().apparmor = profile(Unconfined, ""), None);
    check(&|f| f.security().apparmor = profile(Localhost, "mine"), Some("mine"));
    check(&|f| f.security().apparmor = profile(Localhost, "localhost/mine"), Some("mine"));
    check(&|f| f.defaults.apparmor_profile = "unconfined".to_owned(), None);
    // Nothing said, and the default can't be had: as on a kernel without AppArmor, with a warning.
    let missing = |f: &mut Fixture| f.defaults.apparmor_missing = "\"crio-default\" is not loaded".to_owned();
    check(&missing, None);
    let warnings = built(|f| {
        f.node.apparmor = true;
        missing(f);
    })
    .warnings;
    assert!(warnings.iter().any(|warning| warning.topic == WarningTopic::AppArmor), "{warnings:?}");
    // A profile of its own does not depend on the default; nor does one need AppArmor for nothing.
    check(&|f| (missing(f), f.security().apparmor = profile(Localhost, "mine")).1, Some("mine"));
    check(&|f| (f.handler.apparmor = Some(false), f.security().apparmor = profile(Unconfined, "")).1, None);
}

#[test]
fn the_filter_that_is_asked_for_comes_from_the_field_or_the_older_string() {
    let check = |change: &dyn Fn(&mut v1::LinuxContainerSecurityContext), expected: SeccompRequest| {
        let mut fixture = Fixture::default();
        change(fixture.security());
        assert_eq!(seccomp_request(&fixture.container).unwrap(), expected);
    };
    let profile = |kind: v1::security_profile::ProfileType, name: &str| {
        Some(v1::SecurityProfile { profile_type: kind as i32, localhost_ref: name.to_owned() })
    };
    use v1::security_profile::ProfileType::{Localhost, RuntimeDefault};
    check(&|_| {}, SeccompRequest::Unconfined);
    check(&|s| s.seccomp = profile(RuntimeDefault, ""), SeccompRequest::RuntimeDefault);
    check(
        &|s| s.seccomp = profile(Localhost, "/p/x.json"),
        SeccompRequest::Localhost("/p/x.json".to_owned()),
    );
    check(
        &|s| {
            s.privileged = true;
            s.seccomp = profile(RuntimeDefault, "");
        },
        SeccompRequest::Privileged,
    );
    let mut relative = Fixture::default();
    relative.security().seccomp = profile(Localhost, "x.json");
    let error = seccomp_request(&relative.container).unwrap_err();
    assert_eq!(error.field, "linux.security_context.seccomp.localhost_ref");
}

#[test]
fn a_pod_cannot_steer_the_runtime_or_forge_our_annotations() {
    let built = built(|f| {
        for key in ["run.oci.handler", "org.systemd.property.ExecStop", "io.container.manager", "note"] {
            f.sandbox.annotations.insert(key.to_owned(), "mine".to_owned());
        }
        f.container.labels.insert("run.oci.handler".to_owned(), "mine".to_owned());
        f.container.annotations.insert("io.kubernetes.cri-o.SandboxID".to_owned(), "mine".to_owned());
    });
    let annotations = &built.spec.annotations;
    assert!(!annotations.contains_key("run.oci.handler"));
    assert!(!annotations.keys().any(|key| key.starts_with("org.systemd.property.")));
    assert_eq!(annotations["io.container.manager"], "cri-o");
    assert_eq!(annotations["io.kubernetes.cri-o.SandboxID"], "5".repeat(64));
    assert_eq!(annotations["note"], "mine");
}

#[test]
fn the_version_is_what_the_handler_knows() {
    for (known, written) in
        [("", "1.0.2"), ("1.0.2-dev", "1.0.2"), ("1.1.0", "1.1.0"), ("1.2.1", "1.2.0"), ("2.0.0", "1.2.0")]
    {
        assert_eq!(
            built(|f| f.handler.oci_version_max = known.to_owned()).spec.oci_version,
            written,
            "{known}"
        );
    }
}

#[test]
fn volumes_of_the_image_are_made_unless_mounted_over_or_nonsense() {
    let built = built(|f| {
        f.image.volumes =
            strings(&["/data/", "/mounted", "/../../x", "relative", "/", "/proc/self", "/dev/x", "/data"]);
        f.mount("/mounted", |_, _| {});
    });
    assert_eq!(built.image_volumes, ["/data"]);
    assert_eq!(built.warnings.len(), 1, "one of a topic is told: {:?}", built.warnings);
}

#[test]
fn an_image_full_of_mistakes_costs_one_short_warning() {
    let built = built(|f| {
        f.image.volumes = vec!["relative/".repeat(1000); 50];
        f.image.env = vec!["no value".repeat(1000); 50];
    });
    let [warning] = &built.warnings[..] else { panic!("{} warnings", built.warnings.len()) };
    assert!(warning.message.len() <= 300, "{}", warning.message.len());
}
