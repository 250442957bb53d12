//! Properties that hold for any request.

use criox_cri::v1;
use criox_spec::{ResolvedMount, StopSignal, filter_annotations, parse_profile};
use proptest::prelude::*;

use crate::support::Fixture;

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z0-9/.:-]{0,12}",
        "(/[a-z.]{0,3}){0,5}",
        any::<String>(),
        Just("root".to_owned()),
        Just("app:video".to_owned()),
        Just("ALL".to_owned()),
    ]
}

fn mount() -> impl Strategy<Value = (v1::Mount, ResolvedMount)> {
    (text(), "/[a-z/]{0,8}", any::<[bool; 6]>(), -1..4, prop::collection::vec(text(), 0..2)).prop_map(
        |(container_path, source, flags, propagation, mount_options)| {
            let mount = v1::Mount {
                container_path,
                host_path: if flags[0] { source.clone() } else { String::new() },
                readonly: flags[1],
                recursive_read_only: flags[2],
                propagation,
                image: flags[3].then(v1::ImageSpec::default),
                mount_options,
                ..Default::default()
            };
            (mount, ResolvedMount { source, shared: flags[4], slave: flags[5], ..Default::default() })
        },
    )
}

fn security() -> impl Strategy<Value = v1::LinuxContainerSecurityContext> {
    let number = || prop::option::of(prop_oneof![-2..5i64, any::<i64>()]);
    (
        any::<[bool; 3]>(),
        number(),
        number(),
        text(),
        prop::collection::vec(-1..6i64, 0..4),
        prop::collection::vec(text(), 0..3),
        -1..3,
    )
        .prop_map(|(flags, user, group, run_as_username, groups, list, kind)| {
            v1::LinuxContainerSecurityContext {
                privileged: flags[0],
                readonly_rootfs: flags[1],
                no_new_privs: flags[2],
                run_as_user: user.map(|value| v1::Int64Value { value }),
                run_as_group: group.map(|value| v1::Int64Value { value }),
                run_as_username,
                supplemental_groups: groups,
                supplemental_groups_policy: kind,
                capabilities: Some(v1::Capability {
                    add_capabilities: list.clone(),
                    drop_capabilities: list.clone(),
                    add_ambient_capabilities: Vec::new(),
                }),
                masked_paths: list.clone(),
                readonly_paths: list,
                apparmor: Some(v1::SecurityProfile { profile_type: kind, localhost_ref: "x".to_owned() }),
                ..Default::default()
            }
        })
}

fn resources() -> impl Strategy<Value = v1::LinuxContainerResources> {
    let number = || prop_oneof![Just(0), -2..2000i64, any::<i64>()];
    ([number(), number(), number(), number(), number(), number()], text(), text(), any::<u64>()).prop_map(
        |(n, cpus, key, limit)| v1::LinuxContainerResources {
            cpu_period: n[0],
            cpu_quota: n[1],
            cpu_shares: n[2],
            memory_limit_in_bytes: n[3],
            oom_score_adj: n[4],
            memory_swap_limit_in_bytes: n[5],
            cpuset_cpus: cpus,
            hugepage_limits: vec![v1::HugepageLimit { page_size: key.clone(), limit }],
            unified: [(key, String::new())].into_iter().collect(),
            ..Default::default()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_request_is_built_or_refused_with_a_field_and_mounts_are_in_order(
        security in prop::option::of(security()),
        resources in prop::option::of(resources()),
        mounts in prop::collection::vec(mount(), 0..5),
        command in prop::collection::vec(text(), 0..3),
        image_user in text(),
        working_dir in text(),
        env in prop::collection::vec((text(), prop::collection::vec(any::<u8>(), 0..6)), 0..3),
        signal in -1..70,
        sandbox_privileged: bool,
    ) {
        let mut f = Fixture::default();
        f.container.linux = Some(v1::LinuxContainerConfig { resources, security_context: security });
        (f.container.mounts, f.mounts) = mounts.into_iter().unzip();
        f.container.command = command;
        f.container.working_dir = working_dir;
        f.container.envs = env.into_iter().map(|(key, value)| v1::KeyValue { key, value }).collect();
        f.container.stop_signal = signal;
        f.image.user = image_user;
        f.identity.sandbox_privileged = sandbox_privileged;
        f.default_seccomp = true;
        match f.build() {
            Ok(built) => {
                let depth = |path: &str| path.matches('/').count();
                let mounts = &built.spec.mounts;
                prop_assert!(mounts.windows(2).all(|pair| depth(&pair[0].destination) <= depth(&pair[1].destination)));
                prop_assert!(mounts.iter().all(|mount| mount.destination.starts_with('/') && !mount.destination.contains("/../")));
                prop_assert_eq!(built.user.supplemental_groups.first(), Some(&built.user.gid));
                prop_assert!(built.spec.process.cwd.starts_with('/'));
                prop_assert_eq!(built.spec.to_json().unwrap(), f.build().unwrap().spec.to_json().unwrap());
            }
            Err(error) => prop_assert!(!error.field.is_empty() && !error.reason.is_empty()),
        }
    }

    #[test]
    fn the_files_of_an_image_never_make_a_digit_string_a_name(
        lines in prop::collection::vec("([a-z0-9]{0,4}:){0,7}[a-z0-9,]{0,6}", 0..6),
        junk in prop::collection::vec(any::<u8>(), 0..40),
        uid in 0..2000u32,
    ) {
        let mut f = Fixture::default();
        let mut text = lines.join("\n");
        text.push_str(&String::from_utf8_lossy(&junk));
        let text: &'static str = Box::leak(text.into_boxed_str());
        (f.passwd, f.group) = (Some(text), Some(text));
        f.image.user = uid.to_string();
        let built = f.build().unwrap();
        prop_assert_eq!(built.user.uid, uid);
        let mut groups = built.user.supplemental_groups.clone();
        groups.sort_unstable();
        groups.dedup();
        prop_assert_eq!(groups.len(), built.user.supplemental_groups.len());
    }

    #[test]
    fn parsers_of_foreign_text_never_panic(text in any::<String>(), allowed in prop::collection::vec(any::<String>(), 0..2)) {
        let _ = parse_profile(text.as_bytes());
        if let Some(signal) = StopSignal::parse(&text) {
            prop_assert_eq!(StopSignal::parse(&signal.name()), Some(signal));
        }
        let one = [(text, String::new())].into_iter().collect();
        prop_assert!(filter_annotations(&one, &allowed).len() <= 1);
    }
}
