//! Limits as the cgroup files have them, and what the kernel does at them.

use std::path::{Path, PathBuf};

use criox_cri::v1::{ContainerState, LinuxContainerResources, UpdateContainerResourcesRequest};
use testkit::harness::Test;
use testkit::{Result, wait_for};

use crate::guest::{self, Guest, Ids, LIMIT, SERVICE, group, put, read, sh};

pub(crate) const TESTS: &[Test] = &[
    ("limits of a container are in its files, also after daemon-reload, with crun and with runc", || {
        guest::test(containers)
    }),
    ("limits of the pod's slice stay the kubelet's", || guest::test(pods)),
    ("an update is in the files, also after daemon-reload", || guest::test(updates)),
    ("a container that the kernel kills for memory says OOMKilled", || guest::test(out_of_memory)),
    ("at its deadline the whole tree of an exec is dead", || guest::test(exec_deadline)),
];

const MEMORY: i64 = 64 << 20;

fn resources() -> LinuxContainerResources {
    LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 512,
        memory_limit_in_bytes: MEMORY,
        memory_swap_limit_in_bytes: MEMORY,
        cpuset_cpus: "0".into(),
        unified: [("memory.high".to_owned(), "50331648".to_owned())].into(),
        ..LinuxContainerResources::default()
    }
}

fn limited(guest: &Guest, name: &str, handler: &str, command: &[&str]) -> Result<(Ids, PathBuf)> {
    let mut container = guest.cri.container("main", &guest.image, command);
    container.linux.get_or_insert_default().resources = Some(resources());
    let ids = guest.run(&guest.pod(name), handler, &container)?;
    let scope = group(&format!("crio-{}.scope", ids.container))?;
    Ok((ids, scope))
}

#[track_caller]
fn check(group: &Path, file: &str, expected: &[&str]) -> Result {
    let value = read(group, file)?;
    assert!(expected.contains(&value.as_str()), "{}/{file} is {value:?}, not {expected:?}", group.display());
    Ok(())
}

/// Files of the group in which the container's processes are, as they see them.
fn inside(guest: &Guest, ids: &Ids, files: &[&str]) -> Result<String> {
    let script = format!("cd /sys/fs/cgroup && cat {} | xargs", files.join(" "));
    let answer = guest.cri.exec(&ids.container, &["sh", "-c", &script], 30)?;
    Ok(String::from_utf8_lossy(&answer.stdout).trim_end().to_owned())
}

fn containers(guest: &Guest) -> Result {
    for handler in ["crun", "runc"] {
        let (ids, scope) = limited(guest, &format!("limits-{handler}"), handler, SERVICE)?;
        for when in ["at first", "after daemon-reload"] {
            check(&scope, "cpu.max", &["50000 100000"])?;
            check(&scope, "memory.max", &["67108864"])?;
            check(&scope, "cpuset.cpus", &["0"])?;
            // The kernel's scale from 1 to 10000, by the older and the newer conversion of shares.
            check(&scope, "cpu.weight", &["20", "59"])?;
            // crun puts the processes one level below the scope, so this is where the kernel looks first.
            let inside = inside(guest, &ids, &["memory.max", "memory.swap.max", "memory.high"])?;
            assert_eq!(inside, "67108864 0 50331648", "{handler} {when}");
            sh("systemctl daemon-reload")?;
        }
    }
    Ok(())
}

fn pods(guest: &Guest) -> Result {
    const NAME: &str = "kubepods-podlimited.slice";
    put(
        &format!("/run/systemd/system/{NAME}"),
        "[Unit]\nDefaultDependencies=no\n[Slice]\nCPUQuota=30%\nCPUWeight=77\nMemoryMax=134217728\nTasksMax=123\n",
    )?;
    sh(&format!("systemctl daemon-reload && systemctl start {NAME}"))?;
    let mut pod = guest.pod("podlimits");
    if let Some(linux) = pod.linux.as_mut() {
        linux.cgroup_parent = format!("/kubepods.slice/{NAME}");
    }
    let ids = guest.run(&pod, "", &guest.cri.container("main", &guest.image, SERVICE))?;
    let slice = group(NAME)?;
    for _ in 0..2 {
        check(&slice, "cpu.max", &["30000 100000"])?;
        check(&slice, "cpu.weight", &["77"])?;
        check(&slice, "memory.max", &["134217728"])?;
        check(&slice, "pids.max", &["123"])?;
        assert_eq!(group(&format!("crio-{}.scope", ids.container))?.parent(), Some(slice.as_path()));
        sh("systemctl daemon-reload")?;
    }
    guest.cri.stop_pod(&ids.sandbox)?;
    guest.cri.remove_pod(&ids.sandbox)?;
    // Nothing of ours holds it.
    sh(&format!("systemctl stop {NAME} && rm /run/systemd/system/{NAME} && systemctl daemon-reload"))?;
    assert!(!slice.exists());
    Ok(())
}

fn updates(guest: &Guest) -> Result {
    for handler in ["crun", "runc"] {
        let (ids, scope) = limited(guest, &format!("update-{handler}"), handler, SERVICE)?;
        let more = LinuxContainerResources {
            cpu_quota: 80_000,
            memory_limit_in_bytes: 2 * MEMORY,
            memory_swap_limit_in_bytes: 2 * MEMORY,
            unified: [("memory.high".to_owned(), "100000000".to_owned())].into(),
            ..resources()
        };
        guest.cri.call(guest.cri.runtime().update_container_resources(UpdateContainerResourcesRequest {
            container_id: ids.container.clone(),
            linux: Some(more),
            ..UpdateContainerResourcesRequest::default()
        }))?;
        for _ in 0..2 {
            check(&scope, "cpu.max", &["80000 100000"])?;
            check(&scope, "memory.max", &["134217728"])?;
            assert_eq!(inside(guest, &ids, &["memory.max"])?, "134217728", "{handler}");
            sh("systemctl daemon-reload")?;
        }
    }
    Ok(())
}

fn out_of_memory(guest: &Guest) -> Result {
    for handler in ["crun", "runc"] {
        let mut container = guest.cri.container("main", &guest.image, &["sh", "-c", "tail /dev/zero"]);
        let limits = LinuxContainerResources {
            memory_limit_in_bytes: MEMORY / 2,
            memory_swap_limit_in_bytes: MEMORY / 2,
            ..LinuxContainerResources::default()
        };
        container.linux.get_or_insert_default().resources = Some(limits);
        let ids = guest.run(&guest.pod(&format!("oom-{handler}")), handler, &container)?;
        let status = guest.cri.wait_state(&ids.container, ContainerState::ContainerExited, LIMIT)?;
        assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"), "{handler}");
    }
    Ok(())
}

fn exec_deadline(guest: &Guest) -> Result {
    for handler in ["crun", "runc"] {
        let container = guest.cri.container("main", &guest.image, SERVICE);
        let ids = guest.run(&guest.pod(&format!("deadline-{handler}")), handler, &container)?;
        let tree = "setsid sh -c 'sleep 4711 & sleep 4711' & sleep 4711";
        let status =
            guest.cri.exec(&ids.container, &["sh", "-c", tree], 3).err().ok_or("it must time out")?;
        assert_eq!(status.code() as i32, 4, "{handler}: {status}");
        assert_eq!(sh("pgrep --full '[s]leep 4711' || true")?, "", "{handler}");
        let scope = group(&format!("crio-{}.scope", ids.container))?;
        wait_for("the exec's group to be gone", LIMIT, || {
            let found = sh(&format!("find {} -name '*.mount'", scope.display()))?;
            Ok(found.is_empty().then_some(()))
        })?;
        assert!(guest.is_running(&ids.container)?);
    }
    Ok(())
}
