//! What confines a container: profiles, labels, capabilities, paths; and what is refused rather than left out.

use criox_cri::v1::security_profile::ProfileType;
use criox_cri::v1::{
    Capability, ContainerConfig, HugepageLimit, Int64Value, LinuxContainerSecurityContext, PodSandboxConfig,
    SeLinuxOption, SecurityProfile, WindowsContainerConfig, WindowsPodSandboxConfig,
};
use testkit::harness::{Test, skip};
use testkit::{Node, Result};
use tonic::Code;

use crate::NODE;
use crate::pod::{Pod, SERVICE, refused, sandbox_security, security};

pub(crate) const TESTS: &[Test] = &[
    ("no process has inheritable capabilities, whoever starts it", || NODE.test(inheritable)),
    ("a seccomp profile that is no profile is refused, never left out", || NODE.test(seccomp_refusals)),
    ("the older fields of profiles count where the newer ones are absent", || NODE.test(older_fields)),
    ("an AppArmor profile that can't be had is refused by its name", || NODE.test(apparmor_refusals)),
    ("a container is confined by the default AppArmor profile", || NODE.test(apparmor_default)),
    ("masked and read-only paths are those of the request", || NODE.test(paths)),
    ("an exec is confined as its container is", || NODE.test(exec_confined)),
    ("what can't be honoured is refused with its field", || NODE.test(refusals)),
    ("what a pod can't have is refused with its field", || NODE.test(sandbox_refusals)),
];

fn profile(kind: ProfileType, name: &str) -> Option<SecurityProfile> {
    Some(SecurityProfile { profile_type: kind.into(), localhost_ref: name.to_owned() })
}

fn kernel_has_apparmor() -> bool {
    std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.first() == Some(&b'Y'))
}

fn inheritable(node: &Node) -> Result {
    let pod = Pod::without_network(node, "inheritable")?;
    let mask = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        u64::from_str_radix(line.trim_start_matches(':').trim(), 16).unwrap_or(u64::MAX)
    };
    for (name, user) in [("root", 0), ("user", 1000)] {
        let mut config = pod.shell(name, &format!("cat /proc/self/status; {SERVICE}"));
        security(&mut config).run_as_user = Some(Int64Value { value: user });
        security(&mut config).capabilities =
            Some(Capability { add_capabilities: vec!["NET_ADMIN".to_owned()], ..Capability::default() });
        let id = pod.up(&config)?;
        let created = crate::pod::stream(&node.cri.log(&id)?, "stdout");
        let executed = pod.exec(&id, "cat /proc/self/status")?;
        for status in [&created, &executed] {
            assert_eq!((mask(status, "CapInh"), mask(status, "CapAmb")), (0, 0), "{name}: {status}");
            assert_eq!(mask(status, "CapBnd") & 1 << 12, 1 << 12, "{name}: {status}");
        }
        assert_eq!(mask(&created, "CapEff"), mask(&executed, "CapEff"), "{name}");
    }
    Ok(())
}

fn seccomp_refusals(node: &Node) -> Result {
    let pod = Pod::without_network(node, "seccomp-refusals")?;
    let dir = node.daemon.dir();
    let put = |name: &str, text: &[u8]| -> Result<String> {
        let path = dir.join(name);
        std::io::Write::write_all(
            &mut std::fs::OpenOptions::new().create(true).write(true).truncate(true).open(&path)?,
            text,
        )?;
        Ok(path.display().to_string())
    };
    let huge = put("huge.json", &vec![b' '; 5 << 20])?;
    let broken = put("broken.json", b"{")?;
    let action = put("action.json", br#"{"defaultAction":"SCMP_ACT_WHATEVER"}"#)?;
    let empty = put("empty.json", b"")?;
    let directory = dir.display().to_string();
    for wrong in
        ["", "relative.json", "../x.json", &directory, "/no/such/file", &huge, &broken, &action, &empty]
    {
        let mut config = pod.shell("c", "true");
        security(&mut config).seccomp = profile(ProfileType::Localhost, wrong);
        let error = node
            .cri
            .create(&pod.id, &config, &pod.config)
            .err()
            .ok_or_else(|| format!("{wrong:?} was taken"))?;
        assert!(error.message().contains("seccomp"), "{wrong:?}: {error}");
    }
    assert!(node.cri.list(Some(&pod.id))?.is_empty());
    Ok(())
}

#[expect(deprecated, reason = "older kubelets send only these fields")]
fn older(context: &mut LinuxContainerSecurityContext, seccomp: &str, apparmor: &str) {
    context.seccomp_profile_path = seccomp.to_owned();
    context.apparmor_profile = apparmor.to_owned();
}

fn older_fields(node: &Node) -> Result {
    let pod = Pod::without_network(node, "older")?;
    let mode = |name: &str, change: &dyn Fn(&mut ContainerConfig)| -> Result<String> {
        let mut config = pod.shell(name, "grep Seccomp: /proc/self/status | tr -dc 012");
        change(&mut config);
        pod.answer_of(&config)
    };
    assert_eq!(mode("none", &|config| older(security(config), "", ""))?, "0");
    assert_eq!(mode("default", &|config| older(security(config), "runtime/default", ""))?, "2");
    assert_eq!(mode("unconfined", &|config| older(security(config), "unconfined", "unconfined"))?, "0");
    // The newer one wins.
    let both = |config: &mut ContainerConfig| {
        older(security(config), "runtime/default", "");
        security(config).seccomp = profile(ProfileType::Unconfined, "");
    };
    assert_eq!(mode("both", &both)?, "0");
    for wrong in ["localhost/", "localhost/relative", "nonsense"] {
        let mut config = pod.shell("wrong", "true");
        older(security(&mut config), wrong, "");
        let message = refused(node.cri.create(&pod.id, &config, &pod.config), Code::InvalidArgument)?;
        assert!(message.contains("seccomp"), "{wrong}: {message}");
    }
    Ok(())
}

fn apparmor_refusals(node: &Node) -> Result {
    let pod = Pod::without_network(node, "apparmor")?;
    let mut config = pod.shell("c", "true");
    security(&mut config).apparmor = profile(ProfileType::Localhost, "no-such-profile");
    let message = refused(node.cri.create(&pod.id, &config, &pod.config), Code::FailedPrecondition)?;
    assert!(message.contains("no-such-profile"), "{message}");
    security(&mut config).apparmor = None;
    older(security(&mut config), "", "localhost/no-older-profile");
    let message = refused(node.cri.create(&pod.id, &config, &pod.config), Code::FailedPrecondition)?;
    assert!(message.contains("no-older-profile"), "{message}");
    older(security(&mut config), "", "");
    security(&mut config).apparmor = profile(ProfileType::Localhost, "");
    let message = refused(node.cri.create(&pod.id, &config, &pod.config), Code::InvalidArgument)?;
    assert!(message.contains("apparmor.localhost_ref"), "{message}");
    for (name, kind) in [("unconfined", ProfileType::Unconfined), ("default", ProfileType::RuntimeDefault)] {
        let mut config = pod.shell(name, "true");
        security(&mut config).apparmor = profile(kind, "");
        // With AppArmor in the kernel and no parser the default can't be had, which is an error then.
        match pod.answer_of(&config) {
            Err(error) if kind == ProfileType::RuntimeDefault && kernel_has_apparmor() => {
                assert!(error.to_string().contains("crio-default"), "{error}");
            }
            result => drop(result?),
        }
    }
    Ok(())
}

fn apparmor_default(node: &Node) -> Result {
    if !kernel_has_apparmor() {
        return Err(skip("the kernel has no AppArmor; the node of tests/node has".to_owned()));
    }
    let pod = Pod::without_network(node, "apparmor-default")?;
    let mut config =
        pod.shell("c", "cat /proc/self/attr/current; echo b > /proc/sysrq-trigger || echo denied");
    security(&mut config).apparmor = profile(ProfileType::RuntimeDefault, "");
    let said = pod.said(&config)?;
    assert_eq!(said.stdout, "crio-default (enforce)\ndenied\n");
    let mut config = pod.shell("unconfined", "cat /proc/self/attr/current");
    security(&mut config).apparmor = profile(ProfileType::Unconfined, "");
    assert_eq!(pod.answer_of(&config)?, "unconfined");
    Ok(())
}

fn paths(node: &Node) -> Result {
    let pod = Pod::without_network(node, "paths")?;
    let script = "head -c 1 /etc/hello | wc -c; touch /usr/x 2> /dev/null && echo written || echo not written; \
                  grep -c ' /proc/[a-z]' /proc/self/mounts";
    let ask = |name: &str, masked: &[&str], readonly: &[&str]| -> Result<String> {
        let mut config = pod.shell(name, script);
        let owned = |paths: &[&str]| paths.iter().map(|&path| path.to_owned()).collect();
        security(&mut config).masked_paths = owned(masked);
        security(&mut config).readonly_paths = owned(readonly);
        Ok(pod.said(&config)?.stdout)
    };
    // procMount: Unmasked.
    assert_eq!(ask("unmasked", &[], &[])?, "1\nwritten\n0\n");
    let said = ask("masked", &["/etc/hello", "/proc/kcore"], &["/usr", "/proc/sys"])?;
    assert!(said.starts_with("0\nnot written\n"), "{said}");
    let covered: u32 = said.lines().last().unwrap_or_default().parse()?;
    assert!(covered >= 2, "{said}");
    Ok(())
}

fn exec_confined(node: &Node) -> Result {
    let pod = Pod::without_network(node, "exec-confined")?;
    let mut config = pod.shell("c", SERVICE);
    let context = security(&mut config);
    context.seccomp = profile(ProfileType::RuntimeDefault, "");
    context.no_new_privs = true;
    context.run_as_user = Some(Int64Value { value: 1000 });
    context.supplemental_groups = vec![2000];
    let id = pod.up(&config)?;
    let said =
        pod.exec(&id, "grep -E 'Seccomp:|NoNewPrivs' /proc/self/status | tr -d '\\t'; id -u; id -G")?;
    assert!(said.starts_with("NoNewPrivs:1\nSeccomp:2\n1000\n"), "{said}");
    let groups: Vec<&str> = said.lines().last().unwrap_or_default().split(' ').collect();
    assert!(groups.contains(&"2000") && groups.contains(&"1000"), "{said}");
    Ok(())
}

/// One wrong thing in an otherwise good request.
type Wrong<T> = (&'static str, fn(&mut T));

fn refusals(node: &Node) -> Result {
    const WRONG: &[Wrong<ContainerConfig>] = &[
        ("windows", |config| config.windows = Some(WindowsContainerConfig::default())),
        ("supplemental_groups[0]", |config| security(config).supplemental_groups = vec![-1]),
        ("supplemental_groups_policy", |config| security(config).supplemental_groups_policy = 9),
        ("masked_paths[0]", |config| security(config).masked_paths = vec!["proc".to_owned()]),
        ("readonly_paths[0]", |config| security(config).readonly_paths = vec!["/a/../b".to_owned()]),
        ("selinux_options.type", |config| {
            let options = SeLinuxOption { r#type: "t,dev=1".to_owned(), ..SeLinuxOption::default() };
            security(config).selinux_options = Some(options);
        }),
        ("apparmor.profile_type", |config| {
            security(config).apparmor =
                Some(SecurityProfile { profile_type: 9, localhost_ref: String::new() });
        }),
        ("seccomp.profile_type", |config| {
            security(config).seccomp =
                Some(SecurityProfile { profile_type: 9, localhost_ref: String::new() });
        }),
        ("capabilities.add_ambient_capabilities", |config| {
            let wrong = vec!["FLY".to_owned()];
            security(config).capabilities =
                Some(Capability { add_ambient_capabilities: wrong, ..Capability::default() });
        }),
        ("oom_score_adj", |config| resources(config).oom_score_adj = 1001),
        ("cpuset_cpus", |config| resources(config).cpuset_cpus = "0;1".to_owned()),
        ("memory_limit_in_bytes", |config| resources(config).memory_limit_in_bytes = -7),
        ("devices[0]", |config| {
            config.devices =
                vec![criox_cri::v1::Device { host_path: "dev/x".to_owned(), ..Default::default() }];
        }),
        ("stop_signal", |config| config.stop_signal = 999),
    ];
    let pod = Pod::without_network(node, "refusals")?;
    for (field, change) in WRONG {
        let mut config = pod.shell("c", "true");
        change(&mut config);
        let status = node
            .cri
            .create(&pod.id, &config, &pod.config)
            .err()
            .ok_or_else(|| format!("{field} was taken"))?;
        assert!(
            status.code() == Code::InvalidArgument && status.message().contains(field),
            "{field}: {status}"
        );
    }
    let mut config = pod.shell("pages", "true");
    resources(&mut config).hugepage_limits = vec![HugepageLimit { page_size: "3XB".to_owned(), limit: 1 }];
    let created = node.cri.create(&pod.id, &config, &pod.config);
    // A node without the controller has nothing to limit, and says so in Status.
    if testkit::cgroups::has_controller("hugetlb") {
        assert!(refused(created, Code::InvalidArgument)?.contains("hugepage_limits[0]"));
    }
    Ok(())
}

fn resources(config: &mut ContainerConfig) -> &mut criox_cri::v1::LinuxContainerResources {
    config.linux.get_or_insert_default().resources.get_or_insert_default()
}

fn sandbox_refusals(node: &Node) -> Result {
    const WRONG: &[Wrong<PodSandboxConfig>] = &[
        ("windows", |config| config.windows = Some(WindowsPodSandboxConfig::default())),
        ("seccomp.localhost_ref", |config| {
            sandbox_security(config).seccomp = profile(ProfileType::Localhost, "relative");
        }),
        ("seccomp.localhost_ref", |config| {
            sandbox_security(config).seccomp = profile(ProfileType::Localhost, "");
        }),
        ("apparmor.localhost_ref", |config| {
            sandbox_security(config).apparmor = profile(ProfileType::Localhost, "");
        }),
        ("apparmor.profile_type", |config| {
            sandbox_security(config).apparmor =
                Some(SecurityProfile { profile_type: 9, localhost_ref: String::new() });
        }),
        ("selinux_options.level", |config| {
            let options = SeLinuxOption { level: "s0\"".to_owned(), ..SeLinuxOption::default() };
            sandbox_security(config).selinux_options = Some(options);
        }),
        ("run_as_user", |config| {
            sandbox_security(config).run_as_user = Some(Int64Value { value: -1 });
        }),
        ("supplemental_groups[1]", |config| sandbox_security(config).supplemental_groups = vec![1, -1]),
        ("supplemental_groups_policy", |config| sandbox_security(config).supplemental_groups_policy = 7),
    ];
    for (field, change) in WRONG {
        let mut config = node.cri.host_network_pod("sandbox-refusals");
        change(&mut config);
        let message = refused(node.cri.run_pod(&config), Code::InvalidArgument)?;
        assert!(message.contains(field), "{field}: {message}");
    }
    assert!(node.cri.list_pods()?.is_empty());
    Ok(())
}
