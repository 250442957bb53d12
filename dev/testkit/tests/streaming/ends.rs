//! What is left when clients, daemons and sessions end.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use criox_cri::v1::{
    AttachRequest, ContainerState, ExecRequest, LinuxContainerResources, UpdateContainerResourcesRequest,
};
use testkit::harness::Test;
use testkit::{Cri, Daemon, Node, Result, wait_for};

use crate::socket::Socket;
use crate::{LIMIT, NODE, V4, V5, attach_url, exec_request, exec_url, idle, run};

pub(crate) const TESTS: &[Test] = &[
    ("a client that goes away takes its command and its descendants with it", || NODE.test(client_gone)),
    ("clients that go away at every moment leave nothing", || NODE.test(abrupt)),
    ("a thousand short execs leave no descriptor, process or cgroup", || NODE.test(thousand)),
    ("an attached client that reads nothing holds up neither log nor stop", || NODE.test(stuck)),
    (
        "sessions end with a killed daemon, containers don't; the next serves new ones and knows the limits",
        || daemon_killed(),
    ),
];

/// Processes of a container, seen from the node.
fn processes(node: &Node, id: &str) -> Result<usize> {
    Ok(inside(&node.cri, id, "ls -d /proc/[0-9]* | wc -l")?.parse()?)
}

fn inside(cri: &Cri, id: &str, script: &str) -> Result<String> {
    Ok(String::from_utf8(cri.exec(id, &["sh", "-c", script], 20)?.stdout)?.trim_end().to_owned())
}

fn settles(node: &Node, id: &str, before: usize) -> Result {
    wait_for("the command's processes to end", LIMIT, || {
        Ok((processes(node, id)? <= before + 1).then_some(()))
    })
}

fn client_gone(node: &Node) -> Result {
    let id = idle(node, "ends-client")?;
    let before = processes(node, &id)?;
    for (tty, script) in [
        (false, "setsid sleep 600 & sleep 600 & echo on; wait"),
        (true, "trap '' HUP TERM; setsid sleep 600 & echo on; while :; do sleep 1; done"),
        (false, "echo on; yes"),
        (false, "echo on; cat"),
    ] {
        let request = ExecRequest { tty, stdin: true, stderr: !tty, ..exec_request(&id, script) };
        let mut client = Socket::open(&exec_url(&node.cri, request)?, V4)?;
        client.until("on")?;
        drop(client);
        settles(node, &id, before)?;
    }
    Ok(())
}

fn abrupt(node: &Node) -> Result {
    let id = idle(node, "ends-abrupt")?;
    let (before, open) = (processes(node, &id)?, descriptors(node)?);
    for pause in (0..60).map(|step| Duration::from_millis(step / 2)) {
        let request = ExecRequest { stdin: true, ..exec_request(&id, "echo on; cat; sleep 600") };
        let client = Socket::open(&exec_url(&node.cri, request)?, V5)?;
        std::thread::sleep(pause);
        drop(client);
    }
    settles(node, &id, before)?;
    closes(node, open)
}

/// Open files of the daemon and of all monitors.
fn descriptors(node: &Node) -> Result<usize> {
    let count = |pid: u32| std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
    let daemon = node.daemon.pid().ok_or("the daemon runs")?;
    Ok(count(daemon) + monitors(node)?.into_iter().map(count).sum::<usize>())
}

fn monitors(node: &Node) -> Result<Vec<u32>> {
    let run_root = node.daemon.run_root().display().to_string();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        if line.contains("criox-monitor") && line.contains(&run_root) {
            found.push(pid);
        }
    }
    Ok(found)
}

fn closes(node: &Node, before: usize) -> Result {
    // A connection or two of the client's own comes and goes.
    wait_for("descriptors to be closed", LIMIT, || Ok((descriptors(node)? <= before + 2).then_some(())))
}

fn groups(node: &Node, id: &str) -> Result<usize> {
    let mut left = 0;
    let mut looked = vec![PathBuf::from("/sys/fs/cgroup")];
    let name = format!("crio-{id}");
    let parent = node.daemon.cgroup_parent().trim_start_matches('/');
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup")?.flatten() {
        looked.push(hierarchy.path());
    }
    for hierarchy in looked {
        let group = hierarchy.join(parent).join(&name);
        left += std::fs::read_dir(group)
            .map_or(0, |entries| entries.flatten().filter(|entry| entry.path().is_dir()).count());
    }
    Ok(left)
}

fn thousand(node: &Node) -> Result {
    let id = idle(node, "ends-thousand")?;
    let session = |tty: bool| -> Result {
        let request = ExecRequest { tty, stderr: !tty, ..exec_request(&id, "echo $((6*7))") };
        let said = Socket::open(&exec_url(&node.cri, request)?, V4)?.rest()?;
        assert!(said.stdout.trim_end() == "42" && said.code()? == 0, "{said:?}");
        Ok(())
    };
    session(false)?;
    session(true)?;
    let (before, open) = (processes(node, &id)?, descriptors(node)?);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|worker| scope.spawn(move || (0..250).try_for_each(|_| session(worker == 0))))
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| "a worker panicked")?)
    })?;
    settles(node, &id, before)?;
    closes(node, open)?;
    wait_for("the execs' cgroups to go", LIMIT, || Ok((groups(node, &id)? == 0).then_some(())))
}

fn stuck(node: &Node) -> Result {
    let script = "read a; i=0; while [ $i -lt 200000 ]; do echo 'a line that fills what is between'; i=$((i+1)); done; echo last; while :; do sleep 1; done";
    let id = run(&node.cri, &node.image, "ends-stuck", script, |config| config.stdin = true)?;
    let request = AttachRequest {
        container_id: id.clone(),
        stdin: true,
        stdout: true,
        stderr: true,
        ..Default::default()
    };
    let mut client = Socket::open(&attach_url(&node.cri, request)?, V4)?;
    client.send(0, b"go\n")?;
    // As long as the shell takes: a line that waits for the client never comes.
    wait_for("the last line to be in the log", LIMIT * 6, || {
        Ok(node.cri.log(&id)?.ends_with("stdout F last\n").then_some(()))
    })?;
    let begun = Instant::now();
    node.cri.stop(&id, 0)?;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(node.cri.log(&id)?.lines().count(), 200_001);
    drop(client);
    Ok(())
}

fn daemon_killed() -> Result {
    let Node { registry: _registry, mut daemon, cri, image } =
        Node::start(|registry| Daemon::builder().registry(registry).start())?;
    let script = "while read line; do echo got $line; done; echo over";
    let id = run(&cri, &image, "ends-daemon", script, |config| {
        (config.stdin, config.stdin_once) = (true, true);
        config.linux.get_or_insert_default().resources =
            Some(LinuxContainerResources { cpu_shares: 300, ..Default::default() });
    })?;
    update(&cri, &id, 400)?;
    let attach = AttachRequest { container_id: id.clone(), stdin: true, stdout: true, ..Default::default() };
    let mut attached = Socket::open(&attach_url(&cri, attach.clone())?, V5)?;
    attached.send(0, b"one\n")?;
    attached.until("got one\n")?;
    let shell = ExecRequest { tty: true, stdin: true, stderr: false, ..exec_request(&id, "echo on; cat") };
    let mut exec = Socket::open(&exec_url(&cri, shell)?, V5)?;
    exec.until("on")?;
    let processes =
        |cri: &Cri| -> Result<usize> { Ok(inside(cri, &id, "ls -d /proc/[0-9]* | wc -l")?.parse()?) };
    let with_shell = processes(&cri)?;
    daemon.kill()?;
    assert!(attached.rest().is_ok_and(|said| said.status.is_empty()));
    assert!(exec.rest().is_ok_and(|said| said.status.is_empty()));
    daemon.start()?;
    let cri = daemon.cri()?;
    assert_eq!(cri.status(&id)?.state(), ContainerState::ContainerRunning);
    let limits = cri.status(&id)?.resources.and_then(|resources| resources.linux);
    assert_eq!(limits.map(|limits| limits.cpu_shares), Some(400));
    // Its terminal has hung up.
    wait_for("the shell to end", LIMIT, || Ok((processes(&cri)? < with_shell).then_some(())))?;
    let mut attached = Socket::open(&attach_url(&cri, attach)?, V5)?;
    attached.send(0, b"two\n")?;
    attached.until("got two\n")?;
    attached.close(0)?;
    assert_eq!(attached.rest()?.stdout, "over\n");
    cri.wait_state(&id, ContainerState::ContainerExited, LIMIT)?;
    cri.remove_all_pods()?;
    daemon.finish()
}

fn update(cri: &Cri, id: &str, shares: i64) -> Result {
    let request = UpdateContainerResourcesRequest {
        container_id: id.to_owned(),
        linux: Some(LinuxContainerResources { cpu_shares: shares, ..Default::default() }),
        ..Default::default()
    };
    let mut runtime = cri.runtime();
    cri.call(async move { runtime.update_container_resources(request).await })?;
    Ok(())
}
