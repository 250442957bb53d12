//! After `kill -9` of the daemon, of a monitor, of everything: a restart brings records and reality together.
#![expect(clippy::disallowed_methods, reason = "a fault removes trees without care")]

mod faults;

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use criox_cri::v1::{ContainerState, PodSandboxState, PortMapping};
use faults::{Place, Reboot, STEPS, Script, ServiceGroup, monitor, monitor_groups, signal, signal_all};
use testkit::daemon::plugins_dir;
use testkit::standin::Behaviour;
use testkit::{Cri, Daemon, Result, StandIn, wait_for};

fn main() -> ExitCode {
    testkit::harness::run(&[
        ("a running container keeps its process and loses no line of its log", untouched),
        ("an exit while the daemon was dead has its code and its time", exit_meanwhile),
        ("a kill during any operation is mended by the same request", kill_during_operations),
        ("twenty pods are back in a moment", twenty_pods),
        ("a damaged record costs its own pod at most, and a newer one is left alone", damaged_records),
        ("a reboot ends pods and gives their addresses back", reboot),
        ("a host port whose rules a removed pod still owes stays taken", owed_port),
        ("a pod whose monitor is killed is lost within two seconds", monitor_killed),
        ("a monitor killed while the daemon was dead is noticed at the start", monitor_killed_meanwhile),
        ("a silent monitor holds up nobody, and its pod can be stopped and removed", monitor_silent),
        ("a monitor that is silent at a start holds up neither it nor a stop", silent_at_start),
        ("a monitor that was silent at a start is taken up when it speaks again", speaks_again),
        ("run directories and storage without a record are swept", orphans),
        ("a service that is ended with its control group keeps its pods", control_group),
        ("a second daemon on the socket is refused and harms nothing", second_daemon),
    ])
}

const LIMIT: Duration = Duration::from_secs(15);
/// Runs until it is killed, and handles no signal.
const IDLE: &[&str] = &["sleep", "100000"];
/// A line with its number, fifty times a second.
const COUNTER: &[&str] = &["sh", "-c", "i=0; while :; do echo line $i; i=$((i+1)); sleep 0.02; done"];

fn untouched() -> Result {
    let mut place = Place::new()?;
    let (_, container) = place.cri()?.run("counts", &place.image, COUNTER)?;
    let before = place.processes(&container)?;
    let log = place.cri()?.status(&container)?.log_path;
    std::thread::sleep(Duration::from_millis(300));
    place.daemon.kill()?;
    std::thread::sleep(Duration::from_millis(1000));
    let killed = counted(&std::fs::read_to_string(&log)?)?;
    place.daemon.start()?;
    let cri = place.cri()?;
    assert_eq!(place.processes(&container)?[0], before[0]);
    assert_eq!(cri.status(&container)?.state(), ContainerState::ContainerRunning);
    let answer = cri.exec(&container, &["echo", "here"], 10)?;
    assert_eq!(answer.stdout, b"here\n");
    std::thread::sleep(Duration::from_millis(300));
    let after = counted(&cri.log(&container)?)?;
    // Half of what an idle machine would write.
    assert!(killed > 20 && after > killed, "{killed} lines while the daemon was dead, {after} later");
    place.finish()
}

fn owed_port() -> Result {
    let portmap = StandIn::plugin("portmap", &plugins_dir())?;
    let mut place = Place::with(|builder| builder.plugins(portmap.dir()))?;
    let wanting = |cri: &Cri, name: &str| {
        let mut config = cri.pod(name);
        let port = PortMapping { container_port: 8080, host_port: 18_099, ..PortMapping::default() };
        config.port_mappings = vec![port];
        config
    };
    let cri = place.cri()?;
    let gone = cri.run_pod(&wanting(&cri, "gone"))?;
    portmap.set("DEL", Behaviour::Fail)?;
    cri.remove_pod(&gone)?;
    place.daemon.kill()?;
    place.daemon.start()?;
    let cri = place.cri()?;
    let refused = cri.run_pod(&wanting(&cri, "early")).err().ok_or("two pods have one port")?.to_string();
    assert!(refused.contains(&format!("18099/tcp is already mapped to sandbox {gone}")), "{refused}");
    portmap.set("DEL", Behaviour::Real)?;
    // Debts are paid at a start, and each minute.
    place.daemon.kill()?;
    place.daemon.start()?;
    let cri = place.cri()?;
    let next = wanting(&cri, "next");
    wait_for("the port to be free", LIMIT, || Ok(cri.run_pod(&next).ok()))?;
    place.finish()
}

/// How many lines a counter's log has; an error if one is missing or out of order.
fn counted(log: &str) -> Result<usize> {
    for (n, line) in log.lines().enumerate() {
        // A last line that is just being written counts when it is whole.
        if !line.ends_with(&format!(" stdout F line {n}")) && n + 1 < log.lines().count() {
            return Err(format!("line {n} of the log is {line:?}").into());
        }
    }
    Ok(log.lines().count())
}

fn exit_meanwhile() -> Result {
    let mut place = Place::new()?;
    let cri = place.cri()?;
    let (pod, ends) = cri.run("ends", &place.image, &["sh", "-c", "sleep 1.5; exit 5"])?;
    let config = cri.pod("ends");
    let killed = cri.create(&pod, &cri.container("killed", &place.image, IDLE), &config)?;
    cri.start(&killed)?;
    let begun = now();
    place.daemon.kill()?;
    signal(place.processes(&killed)?[0].0, "KILL")?;
    std::thread::sleep(Duration::from_millis(2500));
    let ended = now();
    place.daemon.start()?;
    let cri = place.cri()?;
    for (container, code, reason) in [(&ends, 5, "Error"), (&killed, 137, "Error")] {
        let status = cri.status(container)?;
        assert_eq!(status.state(), ContainerState::ContainerExited);
        assert_eq!((status.exit_code, status.reason.as_str()), (code, reason));
        assert!(
            (begun..ended).contains(&status.finished_at),
            "{} is not from {begun} to {ended}",
            status.finished_at
        );
    }
    assert_eq!(cri.pod_status(&pod)?.state(), PodSandboxState::SandboxReady);
    place.finish()
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is after 1970");
    i64::try_from(since.as_nanos()).expect("the clock is before 2262")
}

/// Each operation is begun, the daemon killed a little later and started again, and the operation asked for once more.
fn kill_during_operations() -> Result {
    let mut place = Place::new()?;
    let (_, keeper) = place.cri()?.run("keeper", &place.image, IDLE)?;
    let kept = place.processes(&keeper)?;
    let before = place.everything()?;
    for after in [3, 15, 40, 90, 180].map(Duration::from_millis) {
        let mut script = Script::new(&format!("p{}", after.as_millis()), &place.other);
        for step in STEPS {
            interrupted(&mut place, &mut script, step, after).map_err(|error| {
                format!("{step}, killed after {after:?}: {error}; the log ends: {}", place.log_tail(30))
            })?;
        }
        assert_eq!(place.processes(&keeper)?, kept);
        place.is_as(&before).map_err(|error| format!("killed after {after:?}: {error}"))?;
    }
    place.finish()
}

fn interrupted(place: &mut Place, script: &mut Script, step: &'static str, after: Duration) -> Result {
    let cri = place.cri()?;
    let mut first = script.clone();
    let call = std::thread::spawn(move || {
        // Its answer, or that the connection has ended: both are right.
        let answered = first.step(&cri, step).is_ok();
        (first, answered)
    });
    std::thread::sleep(after);
    place.kill()?;
    let (first, answered) = call.join().map_err(|_| "the call panicked")?;
    if answered {
        *script = first;
    }
    place.daemon.start()?;
    let cri = place.cri()?;
    Script::nothing_useless(&cri)?;
    script.step(&cri, step)
}

fn twenty_pods() -> Result {
    let mut place = Place::new()?;
    let cri = place.cri()?;
    let mut pods = Vec::new();
    for n in 0..20 {
        let (pod, container) = cri.run(&format!("many{n}"), &place.image, IDLE)?;
        pods.push((pod, container.clone(), place.processes(&container)?));
    }
    place.daemon.kill()?;
    let begun = Instant::now();
    place.daemon.start()?;
    let took = begun.elapsed();
    let cri = place.cri()?;
    for (pod, container, processes) in &pods {
        assert_eq!(cri.pod_status(pod)?.state(), PodSandboxState::SandboxReady);
        assert_eq!(cri.status(container)?.state(), ContainerState::ContainerRunning);
        assert_eq!(&place.processes(container)?, processes);
    }
    // Far above what it takes, for debug builds on busy machines: a wait for any of them would be two seconds.
    assert!(took < Duration::from_secs(2), "the start took {took:?}");
    place.finish()
}

fn damaged_records() -> Result {
    let mut place = Place::new()?;
    let cri = place.cri()?;
    let mut pods = Vec::new();
    let damages = ["truncated", "empty", "garbage", "other version's", "newer"];
    for kind in ["sandbox", "container", "network"] {
        for damage in damages {
            let name = format!("{kind}-{}", damage.replace(|c: char| !c.is_ascii_alphabetic(), "-"));
            let (pod, container) = cri.run(&name, &place.image, IDLE)?;
            pods.push((kind, damage, pod, container));
        }
    }
    let (good_pod, good) = cri.run("good", &place.image, IDLE)?;
    let before = place.processes(&good)?;
    place.daemon.kill()?;
    let mut newer = Vec::new();
    for (kind, damage, pod, container) in &pods {
        let path = place.record(pod, kind, container);
        let bytes = std::fs::read(&path)?;
        let damaged = match *damage {
            "truncated" => bytes[..bytes.len() / 2].to_vec(),
            "empty" => Vec::new(),
            "garbage" => vec![0xa5; bytes.len()],
            "other version's" => br#"{"version":1}"#.to_vec(),
            _ => {
                let mut record: serde_json::Value = serde_json::from_slice(&bytes)?;
                record["version"] = 1000.into();
                let text = record.to_string().into_bytes();
                if *kind == "network" {
                    let result = path.with_extension("result.json");
                    newer.push((
                        result.clone(),
                        std::fs::read(&result)?,
                        text.clone(),
                        container.clone(),
                        place.processes(container)?,
                    ));
                    faults::put(&result, &text)?;
                }
                newer.push((
                    path.clone(),
                    bytes,
                    text.clone(),
                    container.clone(),
                    place.processes(container)?,
                ));
                text
            }
        };
        faults::put(&path, &damaged)?;
    }
    place.daemon.start()?;
    let cri = place.cri()?;
    assert_eq!(place.processes(&good)?, before);
    assert_eq!(cri.pod_status(&good_pod)?.state(), PodSandboxState::SandboxReady);
    for (path, _, text, container, processes) in &newer {
        assert_eq!(&std::fs::read(path)?, text, "{} was changed", path.display());
        assert_eq!(&place.processes(container)?, processes, "{} is not left alone", path.display());
        let name = path.display().to_string().replace("network.json", "network.result.json");
        assert!(
            place
                .daemon
                .log()
                .lines()
                .any(|line| line.contains("newer than this criox reads") && line.contains(&name)),
            "{name} is not reported"
        );
    }
    for (kind, damage, pod, container) in &pods {
        after_damage(&place, &cri, (kind, damage), pod, container).map_err(|error| {
            format!("{damage} {kind} record: {error}; the log ends: {}", place.log_tail(30))
        })?;
    }
    // The newer criox comes back.
    place.daemon.kill()?;
    for (path, bytes, ..) in &newer {
        faults::put(path, bytes)?;
    }
    place.daemon.start()?;
    place.finish()
}

fn after_damage(place: &Place, cri: &Cri, what: (&str, &str), pod: &str, container: &str) -> Result {
    let listed = cri.list_pods()?.iter().any(|other| other.id == pod);
    match what {
        ("sandbox", "newer") => assert!(!listed),
        // Nothing but the ID is known of it: it is undone.
        ("sandbox", _) => {
            assert!(!listed);
            wait_for("the pod to be undone", LIMIT, || {
                Ok(place.left_of(&[pod, container])?.is_empty().then_some(()))
            })
            .map_err(|error| format!("{error}: {:?}", place.left_of(&[pod, container])))?;
        }
        ("container", damage) => {
            assert_eq!(cri.pod_status(pod)?.state(), PodSandboxState::SandboxReady);
            assert!(cri.list(Some(pod))?.is_empty());
            if damage == "newer" {
                // Its record would go with the pod's directory.
                let status = cri.remove_pod(pod).err().ok_or("a newer record was removed with its pod")?;
                assert_eq!(status.code(), tonic::Code::FailedPrecondition, "{status}");
                for part in [container, "newer than this criox reads"] {
                    assert!(status.message().contains(part), "{status}");
                }
                assert_eq!(cri.pod_status(pod)?.state(), PodSandboxState::SandboxReady);
            } else {
                wait_for("the container to be undone", LIMIT, || {
                    Ok(place.left_of(&[container])?.is_empty().then_some(()))
                })?;
            }
        }
        _ => {
            assert_eq!(cri.pod_status(pod)?.state(), PodSandboxState::SandboxReady);
            assert_eq!(cri.exec(container, &["echo", "here"], 10)?.stdout, b"here\n");
        }
    }
    Ok(())
}

fn reboot() -> Result {
    let mut place = Place::new()?;
    let cri = place.cri()?;
    let (running_pod, running) = cri.run("running", &place.image, IDLE)?;
    let (ended_pod, ended) = cri.run("ended", &place.image, &["sh", "-c", "exit 3"])?;
    cri.wait_state(&ended, ContainerState::ContainerExited, LIMIT)?;
    let config = cri.pod("created");
    let created_pod = cri.run_pod(&config)?;
    let created = cri.create(&created_pod, &cri.container("c", &place.image, IDLE), &config)?;
    let empty_pod = cri.run_pod(&cri.pod("empty"))?;
    assert_eq!(place.leases(), 4);

    let _other_boot = Reboot::of(&mut place.daemon)?;
    place.daemon.start()?;
    let cri = place.cri()?;
    for pod in [&running_pod, &ended_pod, &created_pod, &empty_pod] {
        assert_eq!(cri.pod_status(pod)?.state(), PodSandboxState::SandboxNotready);
    }
    for (container, code, reason) in [
        (&running, 255, "ContainerStatusUnknown"),
        (&created, 255, "ContainerStatusUnknown"),
        (&ended, 3, "Error"),
    ] {
        let status = cri.status(container)?;
        assert_eq!(status.state(), ContainerState::ContainerExited);
        assert_eq!((status.exit_code, status.reason.as_str()), (code, reason));
    }
    // DEL was asked for without anybody's call.
    wait_for("the addresses to be given back", LIMIT, || Ok((place.leases() == 0).then_some(())))?;
    assert!(cri.image(&place.image)?.is_some(), "a reboot costs no image");
    for pod in [&running_pod, &ended_pod, &created_pod, &empty_pod] {
        cri.stop_pod(pod)?;
        cri.remove_pod(pod)?;
    }
    let ids = [&running_pod, &ended_pod, &created_pod, &empty_pod, &running, &ended, &created];
    assert_eq!(place.left_of(&ids.map(String::as_str))?, Vec::<String>::new());
    // The node goes on.
    cri.run("running", &place.image, IDLE)?;
    place.finish()
}

fn lost(place: &Place, pod: &str, container: &str, limit: Duration) -> Result {
    let cri = place.cri()?;
    let status = cri.wait_state(container, ContainerState::ContainerExited, limit)?;
    assert_eq!((status.exit_code, status.reason.as_str()), (255, "MonitorLost"));
    assert_eq!(cri.pod_status(pod)?.state(), PodSandboxState::SandboxNotready);
    wait_for("the processes to die", limit, || Ok(place.processes(container)?.is_empty().then_some(())))
}

fn monitor_killed() -> Result {
    let place = Place::new()?;
    let cri = place.cri()?;
    let (pod, container) = cri.run("victim", &place.image, COUNTER)?;
    let (_, other) = cri.run("other", &place.image, IDLE)?;
    let before = place.processes(&other)?;
    signal(monitor(&pod)?, "KILL")?;
    lost(&place, &pod, &container, Duration::from_secs(2))?;
    assert!(counted(&cri.log(&container)?)? > 0);
    assert_eq!(place.processes(&other)?, before);
    cri.stop_pod(&pod)?;
    cri.remove_pod(&pod)?;
    place.finish()
}

fn monitor_killed_meanwhile() -> Result {
    let mut place = Place::new()?;
    let cri = place.cri()?;
    let (pod, container) = cri.run("victim", &place.image, IDLE)?;
    place.daemon.kill()?;
    signal(monitor(&pod)?, "KILL")?;
    place.daemon.start()?;
    lost(&place, &pod, &container, Duration::from_secs(2))?;
    place.finish()
}

fn monitor_silent() -> Result {
    let place = Place::new()?;
    let cri = place.cri()?;
    let (pod, container) = cri.run("silent", &place.image, IDLE)?;
    let (_, other) = cri.run("other", &place.image, IDLE)?;
    signal(monitor(&pod)?, "STOP")?;
    let begun = Instant::now();
    assert_eq!(cri.exec(&other, &["echo", "here"], 10)?.stdout, b"here\n");
    cri.run("meanwhile", &place.image, IDLE)?;
    assert_eq!(cri.status(&container)?.state(), ContainerState::ContainerRunning);
    assert!(begun.elapsed() < Duration::from_secs(5), "others waited {:?}", begun.elapsed());
    let begun = Instant::now();
    cri.stop(&container, 1)?;
    assert!(begun.elapsed() < Duration::from_secs(8), "the stop took {:?}", begun.elapsed());
    assert!(place.processes(&container)?.is_empty());
    let status = cri.status(&container)?;
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 137));
    let begun = Instant::now();
    cri.stop_pod(&pod)?;
    cri.remove_pod(&pod)?;
    assert!(begun.elapsed() < Duration::from_secs(15), "stop and removal took {:?}", begun.elapsed());
    place.finish()
}

fn silent_at_start() -> Result {
    let mut place = Place::new()?;
    let cri = place.cri()?;
    let (pod, container) = cri.run("silent", &place.image, IDLE)?;
    let (removed, _) = cri.run("removed", &place.image, IDLE)?;
    let (_, other) = cri.run("other", &place.image, IDLE)?;
    place.daemon.kill()?;
    signal(monitor(&pod)?, "STOP")?;
    signal(monitor(&removed)?, "STOP")?;
    let begun = Instant::now();
    place.daemon.start()?;
    assert!(begun.elapsed() < Duration::from_secs(4), "the start took {:?}", begun.elapsed());
    let cri = place.cri()?;
    assert_eq!(cri.status(&container)?.state(), ContainerState::ContainerRunning);
    assert_eq!(cri.exec(&other, &["echo", "here"], 10)?.stdout, b"here\n");
    let begun = Instant::now();
    cri.stop(&container, 1)?;
    cri.stop_pod(&pod)?;
    assert!(place.processes(&container)?.is_empty());
    cri.remove_pod(&removed)?;
    assert!(begun.elapsed() < Duration::from_secs(30), "stopping and removing took {:?}", begun.elapsed());
    place.finish()
}

fn speaks_again() -> Result {
    let mut place = Place::new()?;
    let cri = place.cri()?;
    let (pod, container) = cri.run("silent", &place.image, &["sh", "-c", "sleep 4; exit 9"])?;
    let (_, lives) = cri.run("lives", &place.image, IDLE)?;
    let living = cri.list(None)?.into_iter().find(|c| c.id == lives).ok_or("it is not listed")?;
    place.daemon.kill()?;
    signal(monitor(&pod)?, "STOP")?;
    signal(monitor(&living.pod_sandbox_id)?, "STOP")?;
    place.daemon.start()?;
    std::thread::sleep(Duration::from_secs(7));
    signal(monitor(&pod)?, "CONT")?;
    signal(monitor(&living.pod_sandbox_id)?, "CONT")?;
    let cri = place.cri()?;
    let status = cri.wait_state(&container, ContainerState::ContainerExited, LIMIT)?;
    assert_eq!(status.exit_code, 9);
    assert_eq!(cri.pod_status(&pod)?.state(), PodSandboxState::SandboxReady);
    let executed = wait_for("the monitor to be taken up", LIMIT, || {
        Ok(cri.exec(&lives, &["echo", "here"], 10).ok().map(|answer| answer.stdout))
    })?;
    assert_eq!(executed, b"here\n");
    place.finish()
}

fn orphans() -> Result {
    let mut place = Place::new()?;
    let cri = place.cri()?;
    // With the node's network: an address without a record would belong to nobody.
    let run = |name: &str| -> Result<(String, String)> {
        let config = cri.host_network_pod(name);
        let pod = cri.run_pod(&config)?;
        let container = cri.create(&pod, &cri.container("c", &place.image, IDLE), &config)?;
        cri.start(&container)?;
        Ok((pod, container))
    };
    let (alive, alive_container) = run("alive")?;
    let (dead, dead_container) = run("dead")?;
    place.daemon.kill()?;
    signal_all(&place.processes(&dead_container)?.iter().map(|(pid, _)| *pid).collect::<Vec<_>>(), "KILL")?;
    signal(monitor(&dead)?, "KILL")?;
    for pod in [&alive, &dead] {
        std::fs::remove_dir_all(place.record(pod, "sandbox", "").parent().ok_or("no parent")?)?;
    }
    // Nobody knows where the groups were in which nothing runs.
    for group in testkit::leftovers::cgroups(&place.daemon.traces()) {
        if [&dead, &dead_container].iter().any(|id| group.to_string_lossy().contains(id.as_str())) {
            // Busy until those that were just killed are gone.
            wait_for("the group to be empty", LIMIT, || match std::fs::remove_dir(&group) {
                Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => Ok(None),
                removed => Ok(Some(removed?)),
            })?;
        }
    }
    place.daemon.start()?;
    wait_for("the orphans to be swept", LIMIT, || {
        let ids = [&alive, &alive_container, &dead, &dead_container];
        Ok(place.left_of(&ids.map(String::as_str))?.is_empty().then_some(()))
    })
    .map_err(|error| {
        let ids = [&alive, &alive_container, &dead, &dead_container];
        format!("{error}: {:?}", place.left_of(&ids.map(String::as_str)))
    })?;
    assert!(place.cri()?.list_pods()?.is_empty());
    place.finish()
}

fn control_group() -> Result {
    let mut place = Place::new()?;
    place.daemon.kill()?;
    let group = ServiceGroup::new(place.daemon.cgroup_parent())?;
    let start = |daemon: &mut Daemon| -> Result { daemon.start_with(group.command(&daemon.command())) };
    start(&mut place.daemon)?;
    let cri = place.cri()?;
    let (pod, container) = cri.run("kept", &place.image, COUNTER)?;
    let before = place.processes(&container)?;
    let watched = monitor(&pod)?;
    cri.exec(&container, &["true"], 10)?;
    signal_all(&group.processes()?, "KILL")?;
    place.daemon.kill()?;
    assert!(group.processes()?.is_empty(), "something of the daemon outlived its group");
    assert_eq!(place.processes(&container)?[0], before[0]);
    start(&mut place.daemon)?;
    let cri = place.cri()?;
    assert_eq!(monitor(&pod)?, watched);
    assert_eq!(cri.status(&container)?.state(), ContainerState::ContainerRunning);
    assert!(monitor_groups(&pod)?.iter().all(|path| path.contains("/crio-conmon-")));
    place.finish()
}

fn second_daemon() -> Result {
    let place = Place::new()?;
    let cri = place.cri()?;
    let (pod, container) = cri.run("first", &place.image, IDLE)?;
    let before = place.processes(&container)?;
    let mut command: Command = place.daemon.command();
    let output = command.output()?;
    assert!(!output.status.success());
    let words = String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
    let dir = place.daemon.dir().display().to_string();
    assert!(words.contains("another") && words.contains(&dir), "{words}");
    assert_eq!(place.processes(&container)?, before);
    assert_eq!(cri.pod_status(&pod)?.state(), PodSandboxState::SandboxReady);
    assert_eq!(cri.exec(&container, &["echo", "here"], 10)?.stdout, b"here\n");
    place.finish()
}
