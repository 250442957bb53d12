//! What systemd knows of criox: scopes and slices, while its bus and itself come and go.

use std::path::Path;
use std::time::Instant;

use criox_cri::v1::NamespaceMode;
use testkit::harness::Test;
use testkit::{Result, wait_for};

use crate::guest::{self, Guest, LIMIT, SERVICE, SLICE, group, property, read, sh};

pub(crate) const TESTS: &[Test] = &[
    ("groups are scopes with the names that cAdvisor reads, in their slices", || guest::test(names)),
    ("a monitor is born outside of the service and of the pod, and is a unit", || guest::test(monitors)),
    ("a pod with its own network runs with crun and with runc", || guest::test(whole_lives)),
    ("process 1 of a shared PID namespace is a scope", || guest::test(shared_pid)),
    ("units are made after systemd and the bus have been started anew", || guest::test(reexec)),
    ("a bus that hangs costs no pod that runs, and no new sandbox", || guest::test(hung_bus)),
    ("a slice that nobody has made is started", || guest::test(new_slice)),
];

/// Waits until systemd knows the unit: the daemon tells it beside its other work.
fn active(unit: &str) -> Result {
    let what = format!("{unit} to be active");
    wait_for(&what, LIMIT, || Ok((property(unit, "ActiveState")? == "active").then_some(())))
}

fn names(guest: &Guest) -> Result {
    let ids = guest.service("names")?;
    let scope = format!("crio-{}.scope", ids.container);
    active(&scope)?;
    assert_eq!(property(&scope, "Slice")?, "kubepods-besteffort.slice");
    assert_eq!(property(&scope, "Delegate")?, "yes");
    let parent = Path::new("/sys/fs/cgroup").join(SLICE.trim_start_matches('/'));
    assert_eq!(group(&scope)?, parent.join(&scope));
    // By this one, which is empty, cAdvisor finds the pod's network.
    let sandbox = group(&format!("crio-{}.scope", ids.sandbox))?;
    assert_eq!(sandbox.parent(), Some(parent.as_path()));
    assert_eq!(read(&sandbox, "cgroup.procs")?, "");
    // The kubelet kills what has "pod" in its name and no pod.
    let below = sh(&format!("ls -d {}/*/", parent.display()))?;
    assert_eq!(below.lines().count(), 2, "{below}");
    Ok(())
}

fn monitors(guest: &Guest) -> Result {
    let ids = guest.service("monitors")?;
    let scope = format!("crio-conmon-{}.scope", ids.sandbox);
    active(&scope)?;
    assert_eq!(property(&scope, "Slice")?, "system.slice");
    assert_eq!(property(&scope, "Delegate")?, "yes");
    assert_eq!(property(&scope, "After")?.split(' ').filter(|unit| *unit == "criox.service").count(), 1);
    let processes = sh(&format!("pgrep --full -- '--sandbox-id {}'", ids.sandbox))?;
    assert_eq!(read(&group(&scope)?, "cgroup.procs")?, processes);
    let service = sh("systemctl show --value --property ControlGroup criox")?;
    let in_service =
        sh(&format!("cat /sys/fs/cgroup{service}/cgroup.procs | xargs -I{{}} readlink /proc/{{}}/exe"))?;
    assert!(!in_service.contains("monitor"), "{in_service}");
    // Spare ones are units, too.
    wait_for("two spare monitors to be units", LIMIT, || {
        let scopes = sh("systemctl list-units --plain --no-legend --state active 'crio-conmon-*'")?;
        Ok((scopes.lines().count() == 3).then_some(()))
    })
}

fn whole_lives(guest: &Guest) -> Result {
    for handler in ["crun", "runc"] {
        let pod = guest.cri.pod(handler);
        let container =
            guest.cri.container("main", &guest.image, &["sh", "-c", "cat /etc/hello; exec sleep 1000"]);
        let ids = guest.run(&pod, handler, &container)?;
        let address = guest.cri.pod_status(&ids.sandbox)?.network.ok_or("a network")?.ip;
        sh(&format!("ping -c 1 -W 10 {address}"))?;
        wait_for("the log", LIMIT, || {
            Ok(guest.cri.log(&ids.container)?.contains(" stdout F hello from the image\n").then_some(()))
        })?;
        let answer = guest.cri.exec(&ids.container, &["sh", "-c", "echo out; exit 3"], 30)?;
        assert_eq!((answer.stdout.as_slice(), answer.exit_code), (b"out\n".as_slice(), 3), "{handler}");
        guest.cri.stop(&ids.container, 0)?;
        assert_eq!(guest.cri.status(&ids.container)?.exit_code, 137);
        guest.cri.stop_pod(&ids.sandbox)?;
        guest.cri.remove_pod(&ids.sandbox)?;
        let failed = sh("systemctl --failed --plain --no-legend")?;
        assert_eq!(failed, "", "{handler}");
    }
    Ok(())
}

fn shared_pid(guest: &Guest) -> Result {
    let mut pod = guest.pod("shared");
    if let Some(options) = pod
        .linux
        .as_mut()
        .and_then(|linux| linux.security_context.as_mut())
        .and_then(|context| context.namespace_options.as_mut())
    {
        options.pid = NamespaceMode::Pod.into();
    }
    let mut container = guest.cri.container("main", &guest.image, SERVICE);
    let linux = container.linux.get_or_insert_default();
    let options = linux.security_context.get_or_insert_default().namespace_options.get_or_insert_default();
    (options.network, options.pid) = (NamespaceMode::Node.into(), NamespaceMode::Pod.into());
    let ids = guest.run(&pod, "", &container)?;
    let scope = format!("crio-{}.scope", ids.sandbox);
    active(&scope)?;
    assert_ne!(read(&group(&scope)?, "cgroup.procs")?, "");
    Ok(())
}

fn reexec(guest: &Guest) -> Result {
    for (name, command) in [("reexec", "systemctl daemon-reexec"), ("bus", "systemctl restart dbus")] {
        let before = guest.service(&format!("before-{name}"))?;
        sh(command)?;
        let ids = guest.service(&format!("after-{name}"))?;
        active(&format!("crio-conmon-{}.scope", ids.sandbox))?;
        active(&format!("crio-{}.scope", ids.container))?;
        assert!(guest.is_running(&before.container)?);
    }
    Ok(())
}

fn hung_bus(guest: &Guest) -> Result {
    let ids = guest.service("hung")?;
    active(&format!("crio-conmon-{}.scope", ids.sandbox))?;
    sh("kill -STOP $(systemctl show --value --property MainPID dbus)")?;
    let start = Instant::now();
    let seen = (|| {
        let new = guest.cri.run_pod(&guest.pod("hung-new"))?;
        let took = start.elapsed();
        assert!(took < LIMIT / 3, "a sandbox without a bus took {took:?}");
        assert_eq!(guest.cri.exec(&ids.container, &["true"], 30)?.exit_code, 0);
        guest.cri.stop(&ids.container, 0)?;
        assert_eq!(guest.cri.status(&ids.container)?.exit_code, 137);
        Ok(new)
    })();
    sh("kill -CONT $(systemctl show --value --property MainPID dbus)")?;
    let new: String = seen.map_err(|error: testkit::Error| format!("while the bus hung: {error}"))?;
    active(&format!("crio-conmon-{new}.scope"))
}

fn new_slice(guest: &Guest) -> Result {
    let mut pod = guest.pod("slice");
    if let Some(linux) = pod.linux.as_mut() {
        // By its name alone, which says where it lies.
        linux.cgroup_parent = "kubepods-burstable-podabc.slice".into();
    }
    let sandbox = guest.cri.run_pod(&pod)?;
    active("kubepods-burstable-podabc.slice")?;
    let expected = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podabc.slice";
    assert_eq!(property("kubepods-burstable-podabc.slice", "ControlGroup")?, expected);
    let group = group(&format!("crio-{sandbox}.scope"))?;
    assert_eq!(group.parent(), Some(Path::new(&format!("/sys/fs/cgroup{expected}"))));
    guest.cri.stop_pod(&sandbox)?;
    guest.cri.remove_pod(&sandbox)?;
    sh("systemctl stop kubepods-burstable-podabc.slice")?;
    Ok(())
}
