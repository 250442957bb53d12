//! What only this node has: AppArmor, user namespaces over overlay, pressure figures.

use criox_cri::v1::{
    ContainerStatsRequest, IdMapping, NamespaceMode, SecurityProfile, UserNamespace, security_profile,
};
use testkit::Result;
use testkit::harness::Test;

use crate::guest::{self, Guest, Ids, SERVICE, put, sh};

pub(crate) const TESTS: &[Test] = &[
    ("the default profile of AppArmor is in force", || guest::test(default_profile)),
    ("a profile that is loaded is enforced, one that is not is refused", || guest::test(own_profile)),
    ("a pod with a user namespace owns its files by idmapped mounts", || guest::test(user_namespace)),
    ("stats tell the pressure that the kernel measures", || guest::test(pressure)),
];

fn exec(guest: &Guest, ids: &Ids, script: &str) -> Result<String> {
    let answer = guest.cri.exec(&ids.container, &["sh", "-c", script], 30)?;
    Ok(String::from_utf8_lossy(&answer.stdout).trim_end().to_owned())
}

fn default_profile(guest: &Guest) -> Result {
    for handler in ["crun", "runc"] {
        let container = guest.cri.container("main", &guest.image, SERVICE);
        let ids = guest.run(&guest.pod(&format!("apparmor-{handler}")), handler, &container)?;
        assert_eq!(exec(guest, &ids, "cat /proc/1/attr/current")?, "crio-default (enforce)", "{handler}");
        assert_eq!(exec(guest, &ids, "cat /proc/self/attr/current")?, "crio-default (enforce)", "{handler}");
    }
    Ok(())
}

fn own_profile(guest: &Guest) -> Result {
    put(
        "/tmp/node-deny",
        "abi <abi/4.0>,\nprofile node-deny flags=(attach_disconnected) {\n file, capability, network, signal, umount,\n deny /denied w,\n}\n",
    )?;
    sh("apparmor_parser --replace --skip-cache /tmp/node-deny")?;
    let profile = |name: &str| SecurityProfile {
        profile_type: security_profile::ProfileType::Localhost.into(),
        localhost_ref: name.into(),
    };
    let mut container = guest.cri.container("main", &guest.image, SERVICE);
    let context = container.linux.get_or_insert_default().security_context.get_or_insert_default();
    context.apparmor = Some(profile("node-deny"));
    let options = context.namespace_options.get_or_insert_default();
    (options.network, options.pid) = (NamespaceMode::Node.into(), NamespaceMode::Container.into());
    let pod = guest.pod("denied");
    let ids = guest.run(&pod, "", &container)?;
    assert_eq!(exec(guest, &ids, "touch /allowed && touch /denied || echo refused")?, "refused");
    let context = container.linux.get_or_insert_default().security_context.get_or_insert_default();
    context.apparmor = Some(profile("node-unknown"));
    container.metadata.get_or_insert_default().name = "unknown".into();
    let error = guest.cri.create(&ids.sandbox, &container, &pod).err().ok_or("an unknown profile")?;
    assert!(error.message().contains("node-unknown"), "{error}");
    Ok(())
}

fn user_namespace(guest: &Guest) -> Result {
    let map = || vec![IdMapping { host_id: 100_000, container_id: 0, length: 65_536 }];
    let users = || Some(UserNamespace { mode: NamespaceMode::Pod.into(), uids: map(), gids: map() });
    // runc before 1.2 knows no idmapped mounts.
    for handler in ["crun", guest::NEWER[0], guest::NEWER[1]] {
        let mut pod = guest.cri.pod(&format!("users-{handler}"));
        let context = pod.linux.get_or_insert_default().security_context.get_or_insert_default();
        context.namespace_options.get_or_insert_default().userns_options = users();
        let mut container = guest.cri.container("main", &guest.image, SERVICE);
        let context = container.linux.get_or_insert_default().security_context.get_or_insert_default();
        let options = context.namespace_options.get_or_insert_default();
        (options.userns_options, options.pid) = (users(), NamespaceMode::Container.into());
        let ids = guest.run(&pod, handler, &container)?;
        assert_eq!(exec(guest, &ids, "stat -c %u:%g /bin/busybox; id -u")?, "0:0\n0", "{handler}");
        assert_eq!(exec(guest, &ids, "cat /proc/self/uid_map | xargs")?, "0 100000 65536", "{handler}");
        let owner = sh("ps -o uid= -p $(pgrep --oldest --full 'sh -c trap')")?;
        assert_eq!(owner.trim(), "100000", "{handler}");
        guest.cri.stop_pod(&ids.sandbox)?;
        guest.cri.remove_pod(&ids.sandbox)?;
    }
    Ok(())
}

fn pressure(guest: &Guest) -> Result {
    let ids = guest.service("pressure")?;
    let request = ContainerStatsRequest { container_id: ids.container.clone() };
    let stats = guest.cri.call(guest.cri.runtime().container_stats(request))?.stats.ok_or("stats")?;
    let cpu = stats.cpu.ok_or("figures of the CPU")?;
    assert!(cpu.psi.is_some(), "{cpu:?}");
    assert!(stats.memory.ok_or("figures of memory")?.psi.is_some());
    assert!(stats.io.ok_or("figures of I/O")?.psi.is_some());
    Ok(())
}
