//! The service ended in every way, at any moment, and no pod lost.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use criox_cri::v1::{ContainerState, PodSandboxState};
use testkit::harness::Test;
use testkit::{Result, wait_for};

use crate::guest::{self, Guest, LIMIT, SERVICE, property, sh};

pub(crate) const TESTS: &[Test] = &[
    ("a restart of the service with its whole cgroup killed ends no container", || guest::test(restart)),
    ("kill -9 of the daemon under systemd ends no container, and exits meanwhile are known", || {
        guest::test(kill_nine)
    }),
    ("twelve pods are started while the service is restarted at random moments", || {
        guest::test(|guest| storm(guest, 12))
    }),
];

pub(crate) const LONG: &[Test] =
    &[("fifty pods are started while the service is restarted at random moments", || {
        guest::test(|guest| storm(guest, 50))
    })];

/// The start time of a container's first process tells it from any other.
fn identity(guest: &Guest, container: &str) -> Result<String> {
    let answer = guest.cri.exec(container, &["sh", "-c", "cut -d' ' -f22 /proc/1/stat"], 30)?;
    Ok(String::from_utf8_lossy(&answer.stdout).into_owned())
}

fn restart(guest: &Guest) -> Result {
    assert_eq!(property("criox", "KillMode")?, "control-group");
    let pod = guest.service("restarted")?;
    let before = identity(guest, &pod.container)?;
    for _ in 0..3 {
        sh("systemctl restart criox")?;
        assert_eq!(identity(guest, &pod.container)?, before);
        assert_eq!(guest.cri.pod_status(&pod.sandbox)?.state(), PodSandboxState::SandboxReady);
    }
    // Stopped hard, with everything that systemd counts as the service.
    sh("systemctl kill --kill-whom all --signal KILL criox")?;
    guest.answers()?;
    assert_eq!(identity(guest, &pod.container)?, before);
    Ok(())
}

fn kill_nine(guest: &Guest) -> Result {
    let lives = guest.service("lives")?;
    let before = identity(guest, &lives.container)?;
    let ends = guest.cri.container("main", &guest.image, &["sh", "-c", "sleep 4; exit 5"]);
    let ends = guest.run(&guest.pod("ends"), "", &ends)?;
    // Its number is taken before: afterwards there may be none, and 0 is one's own group.
    let pid = property("criox", "MainPID")?;
    sh(&format!("systemctl stop --no-block criox; kill -9 {pid} || true; sleep 6"))?;
    sh("systemctl start criox")?;
    guest.answers()?;
    assert_eq!(identity(guest, &lives.container)?, before);
    let status = guest.cri.wait_state(&ends.container, ContainerState::ContainerExited, LIMIT)?;
    assert_eq!(status.exit_code, 5);
    Ok(())
}

/// How often the service is ended at least: once in every way.
const ENDS: usize = 3;

/// Starts pods as the kubelet does, which asks again until it is done, and ends the service meanwhile. There are more
/// pods than asked for where they start before the service was ended in every way.
fn storm(guest: &Guest, pods: usize) -> Result {
    // Random moments, but far enough apart for anything to be done on a machine as slow as this one is now.
    let start = Instant::now();
    guest.service("storm-measured")?;
    sh("systemctl restart criox")?;
    guest.answers()?;
    let longest = start.elapsed() * 2;
    let (over, ends) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let ended = scope.spawn(|| -> Result {
            while !over.load(Ordering::Relaxed) {
                std::thread::sleep(longest.mul_f64(f64::from(random()?) / 255.0));
                match ends.load(Ordering::Relaxed) % ENDS {
                    0 => sh("systemctl restart criox")?,
                    1 => sh("systemctl kill --kill-whom main --signal KILL criox || true")?,
                    _ => sh("systemctl kill --kill-whom all --signal KILL criox || true")?,
                };
                ends.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
        let enough = |started: usize| {
            let all = started >= pods && ends.load(Ordering::Relaxed) >= ENDS;
            // The thread ends early only with an error, which is reported below.
            all || started >= pods * 5 || ended.is_finished()
        };
        let mut count = 0;
        let mut started = Ok(());
        while started.is_ok() && !enough(count) {
            started = one_of_many(guest, &format!("storm-{count}"));
            count += 1;
        }
        over.store(true, Ordering::Relaxed);
        ended.join().map_err(|_| "the thread that ends the service panicked")??;
        started?;
        guest.answers()?;
        let running: Vec<_> = guest
            .cri
            .list(None)?
            .into_iter()
            .filter(|container| container.state() == ContainerState::ContainerRunning)
            .collect();
        // And the one that was measured.
        let ends = ends.load(Ordering::Relaxed);
        assert_eq!(running.len(), count + 1, "after {ends} ends of the service");
        for container in &running {
            let answer = guest.cri.exec(&container.id, &["true"], 60)?;
            assert_eq!(answer.exit_code, 0);
        }
        assert!(ends >= ENDS, "the service was ended {ends} times only while {count} pods were started");
        Ok(())
    })
}

/// Like the kubelet: looks what there is, and asks for what is missing.
fn one_of_many(guest: &Guest, name: &str) -> Result {
    let mut pod = guest.pod(name);
    let until = Instant::now() + LIMIT * 5;
    loop {
        match attempt(guest, &mut pod, name) {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(error) if Instant::now() > until => return Err(format!("{name}: {error}").into()),
            Err(_) => {}
        }
        wait_for("the service to answer", LIMIT, || Ok(guest.cri.version().ok().map(drop)))?;
    }
}

fn attempt(guest: &Guest, pod: &mut criox_cri::v1::PodSandboxConfig, name: &str) -> Result<bool> {
    let own: Vec<_> = guest
        .cri
        .list_pods()?
        .into_iter()
        .filter(|pod| pod.metadata.as_ref().is_some_and(|metadata| metadata.name == name))
        .collect();
    let metadata = |number: u32, metadata: Option<&criox_cri::v1::PodSandboxMetadata>| {
        number.max(metadata.map_or(0, |metadata| metadata.attempt + 1))
    };
    let ready = own.iter().find(|pod| pod.state() == PodSandboxState::SandboxReady);
    let sandbox = match ready {
        Some(ready) => ready.id.clone(),
        None => {
            let attempt = own.iter().fold(0, |number, pod| metadata(number, pod.metadata.as_ref()));
            pod.metadata.get_or_insert_default().attempt = attempt;
            guest.cri.run_pod(pod)?
        }
    };
    let containers = guest.cri.list(Some(&sandbox))?;
    if containers.iter().any(|container| container.state() == ContainerState::ContainerRunning) {
        return Ok(true);
    }
    let mut container = guest.cri.container("main", &guest.image, SERVICE);
    let attempts = containers.iter().filter_map(|container| container.metadata.as_ref());
    container.metadata.get_or_insert_default().attempt =
        attempts.map(|metadata| metadata.attempt + 1).max().unwrap_or(0);
    let container = guest.cri.create(&sandbox, &container, pod)?;
    guest.cri.start(&container)?;
    Ok(true)
}

/// A byte from the kernel.
fn random() -> Result<u8> {
    use std::io::Read as _;
    let mut byte = [0];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut byte)?;
    Ok(byte[0])
}
