//! Whole documents, compared with `tests/golden/<name>.json`. `CRIOX_GOLDEN=write` makes them anew.

use criox_cri::v1;
use criox_spec::oci::IdMapping;
use criox_spec::{CapabilitySet, DeviceKind, NamespaceSource, ResolvedDevice, Ulimit, exec_process};

use crate::support::{Fixture, strings};

fn check(name: &str, change: impl FnOnce(&mut Fixture)) {
    let mut fixture = Fixture::default();
    change(&mut fixture);
    let built = fixture.build().expect(name);
    let mut text = serde_json::to_string_pretty(&built.spec).expect("a spec is JSON");
    text.push('\n');
    let path = format!("{}/tests/golden/{name}.json", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("CRIOX_GOLDEN").is_some_and(|value| value == "write") {
        #[expect(clippy::disallowed_methods, reason = "a fixture in the source tree")]
        std::fs::write(&path, &text).expect("the golden file can be written");
    }
    let golden = std::fs::read_to_string(&path).expect("CRIOX_GOLDEN=write makes the golden files");
    assert!(text == golden, "{path} differs; the specification now is:\n{text}");
    let bytes = built.spec.to_json().expect("a spec is JSON");
    assert_eq!(criox_spec::oci::Spec::from_json(&bytes).expect("it reads what it writes"), built.spec);
}

#[test]
fn a_plain_container_of_an_ordinary_pod() {
    check("plain", |_| {});
}

#[test]
fn what_a_kubelet_sends_on_cgroup_v2() {
    check("kubelet-v2", |f| {
        f.node.systemd_cgroup = true;
        f.cgroups_path = "kubepods-podx.slice:crio:c".to_owned();
        f.default_seccomp = true;
        let resources = f.resources();
        resources.cpu_shares = 102;
        resources.cpu_period = 100_000;
        resources.cpu_quota = 20_000;
        resources.memory_limit_in_bytes = 64 << 20;
        resources.oom_score_adj = 999;
        resources.hugepage_limits = vec![v1::HugepageLimit { page_size: "2MB".to_owned(), limit: 0 }];
        resources.unified = [("memory.oom.group", "1"), ("memory.swap.max", "0")]
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let security = f.security();
        security.run_as_user = Some(v1::Int64Value { value: 1000 });
        security.supplemental_groups = vec![2000];
        security.no_new_privs = true;
        security.readonly_rootfs = true;
        security.masked_paths = strings(&["/proc/kcore", "/proc/keys"]);
        security.readonly_paths = strings(&["/proc/sys"]);
        f.container.annotations =
            [("io.kubernetes.pod.terminationGracePeriod".to_owned(), "30".to_owned())].into_iter().collect();
        f.mount("/var/run/secrets/kubernetes.io/serviceaccount", |mount, _| mount.readonly = true);
        f.mount("/etc/hosts", |_, facts| facts.is_dir = false);
        f.mount("/dev/termination-log", |_, facts| facts.is_dir = false);
    });
}

#[test]
fn a_privileged_container_whose_daemon_lacks_a_capability() {
    check("privileged", |f| {
        f.node.cgroup_v2 = false;
        f.node.capabilities =
            CapabilitySet::ALL.without(CapabilitySet::named("SYS_RESOURCE").expect("a known name"));
        f.identity.sandbox_privileged = true;
        f.security().privileged = true;
        f.security().masked_paths = strings(&["/proc/kcore"]);
        f.resources().oom_score_adj = -997;
        f.namespaces.network = NamespaceSource::Host;
        f.namespaces.pid = NamespaceSource::Host;
        f.mount("/host", |mount, _| {
            mount.propagation = v1::MountPropagation::PropagationBidirectional as i32;
        });
    });
}

#[test]
fn devices_limits_and_a_terminal() {
    check("devices", |f| {
        f.container.tty = true;
        f.container.stdin = true;
        f.defaults.ulimits = vec![Ulimit { name: "nofile".to_owned(), soft: 1024, hard: 4096 }];
        f.devices = vec![ResolvedDevice {
            path: "/dev/xvda".to_owned(),
            kind: DeviceKind::Block,
            major: 8,
            minor: 16,
            mode: 0o60660,
            gid: 6,
            permissions: "mr".to_owned(),
            ..Default::default()
        }];
    });
}

#[test]
fn a_container_in_a_user_namespace() {
    check("userns", |f| {
        let map = IdMapping { container_id: 0, host_id: 100_000, size: 65536 };
        f.node.capabilities = CapabilitySet::EMPTY;
        f.namespaces.user = NamespaceSource::Path("/run/userns/x".to_owned());
        f.namespaces.uid_mappings = vec![map];
        f.namespaces.gid_mappings = vec![map];
        f.handler.idmapped_mounts = true;
        f.handler.oci_version_max = "1.2.1".to_owned();
        f.mount("/data", |mount, facts| {
            let map = v1::IdMapping { host_id: 100_000, container_id: 0, length: 65536 };
            mount.uid_mappings = vec![map];
            mount.gid_mappings = vec![map];
            facts.idmappable = true;
        });
    });
}

#[test]
fn systemd_as_the_payload() {
    check("systemd-payload", |f| f.container.command = strings(&["/sbin/init"]));
}

#[test]
fn an_exec_keeps_everything_but_command_and_terminal() {
    let built = Fixture::default().build().expect("the fixture is right");
    let process = exec_process(&built.spec.process, &strings(&["id"]), true).expect("a command is given");
    assert_eq!(process.args, ["id"]);
    assert!(process.terminal);
    assert_eq!(
        (process.env, process.user),
        (built.spec.process.env.clone(), built.spec.process.user.clone())
    );
    assert_eq!(exec_process(&built.spec.process, &[], false).expect_err("no command").field, "cmd");
}
