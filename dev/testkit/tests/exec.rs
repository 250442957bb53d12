//! ExecSync: what it says, when it ends, and what it leaves.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use criox_cri::v1::{ContainerState, ExecSyncRequest, ExecSyncResponse};
use testkit::{Cri, Daemon, Node, Result, Shared, wait_for};
use tonic::Code;

fn main() -> ExitCode {
    testkit::harness::run_then(
        &[
            ("both streams and the code of a command come back", || NODE.test(output)),
            ("a command that a signal ends has 128 and the signal's number", || NODE.test(signals)),
            ("a command has the container's root, user, environment and limits", || {
                NODE.test(like_the_container)
            }),
            ("standard input of a command is at its end", || NODE.test(no_input)),
            ("a command that takes too long is killed, and the answer is DeadlineExceeded", || {
                NODE.test(timeout)
            }),
            ("at the timeout sessions of their own are dead before the answer", || NODE.test(setsid)),
            ("at the timeout double forks are dead before the answer", || NODE.test(double_fork)),
            ("at the timeout a fork loop is dead before the answer", || NODE.test(fork_loop)),
            ("twenty megabytes of output are cut, and the command ends well", || NODE.test(too_much_output)),
            ("both streams together stay below what the kubelet takes", || NODE.test(both_streams)),
            ("a background child does not delay the answer", || NODE.test(background)),
            ("a client that goes away takes its command with it", || NODE.test(abandoned)),
            ("in a container that doesn't run no command is executed", || NODE.test(not_running)),
            ("a program that isn't there is a clear error", || NODE.test(missing_program)),
            ("a command without words and a negative timeout are refused", || NODE.test(refusals)),
            ("thirty commands at once all answer", || NODE.test(thirty)),
            ("a command ends when its container is stopped", || NODE.test(stopped_meanwhile)),
            ("a hundred commands leave no cgroup, descriptor or process", || NODE.test(leaves_nothing)),
            ("runc executes with the same outcomes", || NODE.test(runc)),
        ],
        || NODE.finish(),
    )
}

static NODE: Shared = Shared::new(|| {
    Node::start(|registry| {
        Daemon::builder().registry(registry).runtime("crun", "").runtime("runc", "").start()
    })
});

const LIMIT: Duration = Duration::from_secs(20);

/// A pod with one container in it that does nothing until it is stopped; the container.
fn container(node: &Node, name: &str) -> Result<String> {
    container_as(node, name, "")
}

fn container_as(node: &Node, name: &str, handler: &str) -> Result<String> {
    let config = node.cri.host_network_pod(name);
    let pod = node.cri.run_pod_as(&config, handler)?;
    let script = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
    let id = node.cri.create(&pod, &node.cri.container("c", &node.image, &["sh", "-c", script]), &config)?;
    node.cri.start(&id)?;
    Ok(id)
}

fn sh(cri: &Cri, id: &str, script: &str, timeout: i64) -> Result<ExecSyncResponse, tonic::Status> {
    cri.exec(id, &["sh", "-c", script], timeout)
}

fn said(cri: &Cri, id: &str, script: &str) -> Result<String> {
    Ok(String::from_utf8(sh(cri, id, script, 20)?.stdout)?.trim_end().to_owned())
}

/// A call that must run into its timeout of one second, and soon after it.
fn times_out(cri: &Cri, id: &str, script: &str) -> Result {
    let begun = Instant::now();
    let status = sh(cri, id, script, 1).err().ok_or("it did not time out")?;
    let took = begun.elapsed();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    assert!(status.message().contains(id), "{status}");
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(8), "{took:?}");
    Ok(())
}

/// How many processes of the container have this word in their command line.
fn count(cri: &Cri, id: &str, word: &str) -> Result<usize> {
    // Brackets, so that the looking command does not see itself.
    let (first, rest) = word.split_at(1);
    let script =
        format!("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -o '[{first}]{rest}' | wc -l");
    Ok(said(cri, id, &script)?.parse()?)
}

fn output(node: &Node) -> Result {
    let id = container(node, "output")?;
    let answer = sh(&node.cri, &id, r"printf 'out\377\n'; printf err >&2; exit 3", 10)?;
    assert_eq!(
        (answer.stdout.as_slice(), answer.stderr.as_slice(), answer.exit_code),
        (&b"out\xff\n"[..], &b"err"[..], 3)
    );
    let answer = node.cri.exec(&id, &["true"], 0)?;
    assert_eq!((answer.stdout.len(), answer.stderr.len(), answer.exit_code), (0, 0, 0));
    assert_eq!(node.cri.exec(&id, &["sh", "-c", "exit 255"], 10)?.exit_code, 255);
    // Words are words: no shell comes between.
    let answer = node.cri.exec(&id, &["echo", "a  b", "$HOME", ""], 10)?;
    assert_eq!(answer.stdout, b"a  b $HOME \n");
    Ok(())
}

fn signals(node: &Node) -> Result {
    let id = container(node, "signals")?;
    for (name, number) in [("TERM", 15), ("KILL", 9), ("ABRT", 6)] {
        assert_eq!(sh(&node.cri, &id, &format!("kill -{name} $$"), 10)?.exit_code, 128 + number, "{name}");
    }
    Ok(())
}

fn like_the_container(node: &Node) -> Result {
    let config = node.cri.host_network_pod("like");
    let pod = node.cri.run_pod(&config)?;
    let script = "id -u; id -G; pwd; echo $GIVEN; grep -E '^(Cap(Eff|Bnd)|NoNewPrivs|Seccomp):' /proc/self/status; ulimit -n; readlink /proc/self/ns/mnt; readlink /proc/self/ns/pid";
    let service = format!("{script}; echo up; trap 'exit 0' TERM; while :; do sleep 0.1; done");
    let mut container = node.cri.container("c", &node.image, &["sh", "-c", &service]);
    container.working_dir = "/tmp".to_owned();
    container.envs = vec![criox_cri::v1::KeyValue { key: "GIVEN".to_owned(), value: "value".into() }];
    let security = container.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.run_as_user = Some(criox_cri::v1::Int64Value { value: 1000 });
    security.no_new_privs = true;
    let id = node.cri.create(&pod, &container, &config)?;
    node.cri.start(&id)?;
    let log = wait_for("the container to be up", LIMIT, || {
        let log = node.cri.log(&id)?;
        Ok(log.contains(" stdout F up\n").then_some(log))
    })?;
    let lines = log.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap_or_default());
    let own: Vec<&str> = lines.take_while(|line| *line != "up").collect();
    assert_eq!(own[..4], ["1000", "1000 50000", "/tmp", "value"]);
    let executed = said(&node.cri, &id, script)?;
    assert_eq!(executed.lines().collect::<Vec<_>>(), own);
    Ok(())
}

fn no_input(node: &Node) -> Result {
    let id = container(node, "no-input")?;
    let answer = node.cri.exec(&id, &["cat"], 10)?;
    assert_eq!((answer.stdout.len(), answer.exit_code), (0, 0));
    Ok(())
}

fn timeout(node: &Node) -> Result {
    let id = container(node, "timeout")?;
    times_out(&node.cri, &id, "sleep 4321")?;
    times_out(&node.cri, &id, "trap '' TERM INT HUP; while :; do sleep 4321; done")?;
    assert_eq!(count(&node.cri, &id, "sleep 4321")?, 0);
    // The container itself is none of the command's business.
    assert_eq!(node.cri.status(&id)?.state(), ContainerState::ContainerRunning);
    Ok(())
}

fn setsid(node: &Node) -> Result {
    let id = container(node, "setsid")?;
    times_out(
        &node.cri,
        &id,
        "for i in 1 2 3; do setsid sleep 4322 & done; setsid sh -c 'setsid sleep 4322 & sleep 4322'; sleep 4322",
    )?;
    assert_eq!(count(&node.cri, &id, "sleep 4322")?, 0);
    Ok(())
}

fn double_fork(node: &Node) -> Result {
    let id = container(node, "double-fork")?;
    times_out(
        &node.cri,
        &id,
        "((sleep 4323 > /dev/null 2>&1 < /dev/null &) &); ((setsid sleep 4323 &) &) ; sleep 4323",
    )?;
    assert_eq!(count(&node.cri, &id, "sleep 4323")?, 0);
    Ok(())
}

fn fork_loop(node: &Node) -> Result {
    let id = container(node, "fork-loop")?;
    // Each generation leaves its parent; never many at once, but never the same ones.
    let script = "f() { : spinning-loop; (f &) ; }; exec 2>/dev/null; sh -c 'while :; do (setsid sh -c \": spinning-loop; sleep 0.05\" &) ; done'";
    times_out(&node.cri, &id, script)?;
    assert_eq!(count(&node.cri, &id, "spinning-loop")?, 0);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(count(&node.cri, &id, "spinning-loop")?, 0);
    Ok(())
}

fn too_much_output(node: &Node) -> Result {
    let id = container(node, "too-much")?;
    let answer = sh(&node.cri, &id, "head -c 20000000 /dev/zero && echo end >&2 && exit 5", 60)?;
    assert!(answer.stdout.len() > 15 << 20 && answer.stdout.len() < 16 << 20, "{}", answer.stdout.len());
    assert_eq!(answer.exit_code, 5, "the command was not disturbed");
    Ok(())
}

fn both_streams(node: &Node) -> Result {
    let id = container(node, "both")?;
    let script = "head -c 12000000 /dev/zero & head -c 12000000 /dev/zero >&2; wait";
    let answer = sh(&node.cri, &id, script, 60)?;
    let sum = answer.stdout.len() + answer.stderr.len();
    assert!(sum > 15 << 20 && sum < 16 << 20, "{sum}");
    assert_eq!(answer.exit_code, 0);
    Ok(())
}

fn background(node: &Node) -> Result {
    let id = container(node, "background")?;
    let begun = Instant::now();
    // It holds both pipes.
    let answer = sh(&node.cri, &id, "sleep 4324 & echo started", 60)?;
    assert_eq!((answer.stdout.as_slice(), answer.exit_code), (&b"started\n"[..], 0));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    Ok(())
}

fn abandoned(node: &Node) -> Result {
    let id = container(node, "abandoned")?;
    let cmd = ["sh", "-c", "setsid sleep 4325 & sleep 4325"].map(str::to_owned).to_vec();
    let request = ExecSyncRequest { container_id: id.clone(), cmd, timeout: 0 };
    let mut runtime = node.cri.runtime();
    let answer = node.cri.call(async {
        let patience = Duration::from_millis(700);
        let call = tokio::time::timeout(patience, runtime.exec_sync(request)).await;
        call.unwrap_or_else(|_| Err(tonic::Status::cancelled("")))
    });
    assert!(answer.is_err());
    wait_for("the command to be ended", LIMIT, || {
        Ok((count(&node.cri, &id, "sleep 4325")? == 0).then_some(()))
    })
}

fn not_running(node: &Node) -> Result {
    let config = node.cri.host_network_pod("not-running");
    let pod = node.cri.run_pod(&config)?;
    let id = node.cri.create(&pod, &node.cri.container("c", &node.image, &["true"]), &config)?;
    let mut messages = vec![node.cri.exec(&id, &["true"], 5).err().ok_or("it was only created")?];
    node.cri.start(&id)?;
    node.cri.wait_state(&id, ContainerState::ContainerExited, LIMIT)?;
    messages.push(node.cri.exec(&id, &["true"], 5).err().ok_or("it has exited")?);
    for status in messages {
        assert!(status.message().contains(&id) && status.message().contains("run"), "{status}");
    }
    Ok(())
}

fn missing_program(node: &Node) -> Result {
    let id = container(node, "missing")?;
    for program in ["/no/such/program", "no-such-program", "/etc/hello"] {
        let status = node.cri.exec(&id, &[program], 10).err().ok_or("a program that isn't there ran")?;
        assert!(status.message().contains(program), "{status}");
        assert!(!status.message().contains('\n'), "{status}");
    }
    Ok(())
}

fn refusals(node: &Node) -> Result {
    let id = container(node, "refusals")?;
    for (cmd, timeout, field) in [(&[][..], 5, "cmd"), (&["true"][..], -1, "timeout")] {
        let status = node.cri.exec(&id, cmd, timeout).err().ok_or("it was taken")?;
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(field), "{status}");
    }
    Ok(())
}

fn thirty(node: &Node) -> Result {
    let id = container(node, "thirty")?;
    std::thread::scope(|scope| -> Result {
        let calls: Vec<_> = (0..30)
            .map(|n| {
                let (cri, id) = (&node.cri, &id);
                (n, scope.spawn(move || sh(cri, id, &format!("sleep 0.2; echo {n}; exit {n}"), 60)))
            })
            .collect();
        for (n, call) in calls {
            let answer = call.join().expect("no panic")?;
            assert_eq!((String::from_utf8(answer.stdout)?, answer.exit_code), (format!("{n}\n"), n));
        }
        Ok(())
    })
}

fn stopped_meanwhile(node: &Node) -> Result {
    let id = container(node, "stopped-meanwhile")?;
    std::thread::scope(|scope| -> Result {
        let command = scope.spawn(|| sh(&node.cri, &id, "sleep 4326", 60));
        wait_for("the command to run", LIMIT, || {
            Ok((count(&node.cri, &id, "sleep 4326")? > 0).then_some(()))
        })?;
        let begun = Instant::now();
        node.cri.stop(&id, 10)?;
        // Killed with its container: a code or an error, but no wait for the timeout.
        let outcome = command.join().expect("no panic");
        assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
        match outcome {
            Ok(answer) => assert_eq!(answer.exit_code, 137),
            Err(status) => assert!(status.message().contains(&id), "{status}"),
        }
        Ok(())
    })
}

/// Open descriptors of a process.
fn descriptors(pid: u32) -> Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// The monitor of a sandbox, by its command line.
fn monitor(node: &Node, sandbox: &str) -> Result<u32> {
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command);
        let first = command.split('\0').next().unwrap_or_default();
        if first.contains("criox-monitor") && command.contains(sandbox) && Some(pid) != node.daemon.pid() {
            return Ok(pid);
        }
    }
    Err(format!("no monitor of {sandbox}").into())
}

/// All cgroups below the pods' parent, in all hierarchies.
fn cgroups(node: &Node) -> Result<Vec<PathBuf>> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        let Ok(entries) = std::fs::read_dir(dir) else { return };
        for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
            walk(&entry.path(), found);
            found.push(entry.path());
        }
    }
    let mut found = Vec::new();
    let parent = node.daemon.cgroup_parent().trim_start_matches('/');
    for hierarchy in testkit::cgroups::hierarchies() {
        walk(&hierarchy.join(parent), &mut found);
    }
    found.sort();
    // The container's own at least, else the look is at nothing.
    if found.is_empty() { Err(format!("there is no cgroup below {parent}").into()) } else { Ok(found) }
}

/// The groups of executed commands, which go a moment after the answer.
fn exec_groups(node: &Node) -> Result<Vec<PathBuf>> {
    let mut found = cgroups(node)?;
    found.retain(|path| path.to_string_lossy().ends_with(".mount"));
    Ok(found)
}

fn leaves_nothing(node: &Node) -> Result {
    let id = container(node, "leaves-nothing")?;
    let pod = node.cri.status(&id).and(node.cri.list(None))?.pop().ok_or("the container")?.pod_sandbox_id;
    let (daemon, monitor) = (node.daemon.pid().ok_or("the daemon runs")?, monitor(node, &pod)?);
    // The first ones may open what stays for all.
    let round = || -> Result {
        sh(&node.cri, &id, "echo x; echo y >&2", 10)?;
        drop(node.cri.exec(&id, &["/no/such/program"], 10));
        sh(&node.cri, &id, "sleep 0.01 & true", 10)?;
        Ok(())
    };
    round()?;
    times_out(&node.cri, &id, "sleep 4327")?;
    wait_for("the first commands' cgroups to go", LIMIT, || Ok(exec_groups(node)?.is_empty().then_some(())))?;
    let look = || -> Result<(usize, usize, Vec<PathBuf>)> {
        Ok((descriptors(daemon)?, descriptors(monitor)?, cgroups(node)?))
    };
    let before = look()?;
    for _ in 0..33 {
        round()?;
    }
    times_out(&node.cri, &id, "sleep 4327")?;
    wait_for("descriptors and cgroups to be as before", LIMIT, || {
        let after = look()?;
        // The daemon's own may be fewer: connections of earlier tests end.
        Ok((after.0 <= before.0 && after.1 <= before.1 && after.2 == before.2).then_some(()))
    })
    .map_err(|error| {
        let after = look();
        format!("{error}: before {before:?}, after {after:?}")
    })?;
    assert_eq!(count(&node.cri, &id, "sleep 0.01")?, 0);
    Ok(())
}

fn runc(node: &Node) -> Result {
    let id = container_as(node, "runc", "runc")?;
    let answer = sh(&node.cri, &id, "echo out; echo err >&2; exit 3", 10)?;
    assert_eq!(
        (answer.stdout.as_slice(), answer.stderr.as_slice(), answer.exit_code),
        (&b"out\n"[..], &b"err\n"[..], 3)
    );
    times_out(&node.cri, &id, "setsid sleep 4328 & ((sleep 4328 &) &) ; sleep 4328")?;
    assert_eq!(count(&node.cri, &id, "sleep 4328")?, 0);
    for program in ["/no/such/program", "no-such-program"] {
        let status = node.cri.exec(&id, &[program], 10).err().ok_or("a program that isn't there ran")?;
        assert!(status.message().contains(program), "{status}");
    }
    let answer = sh(&node.cri, &id, "head -c 20000000 /dev/zero && exit 5", 60)?;
    assert_eq!(answer.exit_code, 5);
    Ok(())
}
