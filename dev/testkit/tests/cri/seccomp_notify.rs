//! Notifiers: calls that a container's filter refuses are answered, counted, told, and end the container where its pod
//! asks for it; also while the daemon is not there.

use std::io::Write as _;
use std::time::{Duration, Instant};

use criox_cri::v1::security_profile::ProfileType;
use criox_cri::v1::{ContainerConfig, ContainerState, ContainerStatus, PodSandboxConfig, SecurityProfile};
use testkit::daemon::peer;
use testkit::harness::{Test, skip};
use testkit::{Cri, Daemon, Registry, Result, busybox_image, wait_for};
use tonic::Code;

use crate::pod::{LIMIT, refused, security};

pub(crate) const TESTS: &[Test] = &[
    ("a call that the filter refuses fails with ENOSYS, is told and counted (newer crun)", || {
        counted("crun")
    }),
    ("a call that the filter refuses fails with ENOSYS, is told and counted (newer runc)", || {
        counted("runc")
    }),
    ("a container is stopped for its calls, with reason and message", || with("crun", stopped)),
    ("a program that never ceases to call is stopped as well", || with("runc", never_ceases)),
    ("a container is stopped for calls that were made before a kill of the daemon", || with("crun", killed)),
    ("a container is stopped for calls that were made while the daemon was dead", || {
        with("runc", made_meanwhile)
    }),
    ("the notifier is there where handler and request allow it, and refused where it can't be", || {
        with("crun", refusals)
    }),
];

const NEW: &str = "seccomp-notifier-action.crio.io";
const OLD: &str = "io.kubernetes.cri-o.seccompNotifierAction";
/// From the last call to the stop.
const QUIET: Duration = Duration::from_secs(5);
/// Says what becomes of a call that the default filter refuses, then lives on.
const CALLS: &str = "busybox hostname x 2>&1; busybox hostname y 2>&1; echo called; sleep 1000";

/// A daemon of its own, for it is killed.
struct Place {
    daemon: Daemon,
    registry: Registry,
    image: String,
}

impl Place {
    fn new(runtime: &str) -> Result<Self> {
        let program = peer(runtime).map_err(|error| skip(error.to_string()))?;
        let registry = Registry::start()?;
        let image = busybox_image()?.build()?.push(&registry, "tests/busybox", "1")?;
        let builder = Daemon::builder().registry(&registry).runtime("main", &program);
        let mut daemon = builder.runtime("strict", &program).runtime("machine", "crun").prepare()?;
        let mut text = String::new();
        for (name, program) in [("main", program.as_path()), ("machine", "/usr/bin/crun".as_ref())] {
            text.push_str(&format!(
                "[crio.runtime.runtimes.{name}]\nruntime_path = \"{}\"\nruntime_root = \"{}/run/{name}\"\nallowed_annotations = [\"{NEW}\"]\n",
                program.display(),
                daemon.dir().display()
            ));
        }
        let mut file = std::fs::File::create_new(daemon.config_dir().join("50-notifier.conf"))?;
        file.write_all(text.as_bytes())?;
        daemon.start()?;
        daemon.cri()?.pull(&image)?;
        Ok(Self { daemon, registry, image })
    }

    fn finish(self) -> Result {
        self.daemon.finish()?;
        drop(self.registry);
        Ok(())
    }

    /// Waits until a container has made its calls.
    fn called(&self, id: &str) -> Result<Instant> {
        let cri = self.daemon.cri()?;
        wait_for("the container's calls", LIMIT, || Ok(cri.log(id)?.contains(" called").then_some(())))?;
        Ok(Instant::now())
    }

    fn ended(&self, id: &str) -> Result<ContainerStatus> {
        self.daemon.cri()?.wait_state(id, ContainerState::ContainerExited, Duration::from_secs(60))
    }
}

fn with(runtime: &str, test: fn(&mut Place) -> Result) -> Result {
    if !std::fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail")
        .is_ok_and(|all| all.contains("user_notif"))
    {
        return Err(skip("the kernel has no seccomp notifications"));
    }
    let mut place = Place::new(runtime)?;
    test(&mut place).map_err(|error| format!("{error}; the log: {}", place.daemon.log()))?;
    place.finish()
}

fn pod(cri: &Cri, name: &str, annotation: &str, value: &str) -> PodSandboxConfig {
    let mut config = cri.host_network_pod(name);
    config.annotations.insert(annotation.to_owned(), value.to_owned());
    config
}

fn container(place: &Place, cri: &Cri, name: &str, script: &str) -> ContainerConfig {
    let mut config = cri.container(name, &place.image, &["sh", "-c", script]);
    let kind = ProfileType::RuntimeDefault.into();
    security(&mut config).seccomp =
        Some(SecurityProfile { profile_type: kind, localhost_ref: String::new() });
    config
}

/// Starts a container in a pod of its own.
fn start(place: &Place, annotation: &str, value: &str, handler: &str, script: &str) -> Result<String> {
    let cri = place.daemon.cri()?;
    let name = format!("{handler}-{}", value.replace(' ', "-"));
    let config = pod(&cri, &name, annotation, value);
    let sandbox = cri.run_pod_as(&config, handler)?;
    let id = cri.create(&sandbox, &container(place, &cri, "c", script), &config)?;
    cri.start(&id)?;
    Ok(id)
}

fn counted(runtime: &str) -> Result {
    with(runtime, |place| {
        let id = start(place, NEW, "log", "main", CALLS)?;
        place.called(&id)?;
        let cri = place.daemon.cri()?;
        let log = cri.log(&id)?;
        assert_eq!(log.matches("not implemented").count(), 2, "{log}");
        let told = |text: &str| {
            wait_for(&format!("{text:?} in the daemon's log"), LIMIT, || {
                Ok(place.daemon.log().contains(text).then_some(()))
            })
        };
        told("Used forbidden syscalls: sethostname (2x)")?;
        let output = cri.exec(&id, &["busybox", "hostname", "z"], 10)?;
        assert!(String::from_utf8_lossy(&output.stderr).contains("not implemented"), "{output:?}");
        told("Used forbidden syscalls: sethostname (3x)")?;
        std::thread::sleep(QUIET + Duration::from_secs(1));
        assert_eq!(cri.status(&id)?.state(), ContainerState::ContainerRunning);
        Ok(())
    })
}

fn killed_for(status: &ContainerStatus, message: &str) {
    assert_eq!((status.reason.as_str(), status.message.as_str()), ("seccomp killed", message), "{status:?}");
    assert_eq!(status.exit_code, 137, "{status:?}");
}

fn stopped(place: &mut Place) -> Result {
    let id = start(
        place,
        NEW,
        "stop",
        "main",
        &format!("{CALLS} & sleep 2; busybox mount -t tmpfs x /tmp; wait"),
    )?;
    let called = place.called(&id)?;
    let status = place.ended(&id)?;
    killed_for(&status, "Used forbidden syscalls: mount (1x), sethostname (2x)");
    let took = called.elapsed();
    assert!(took >= QUIET + Duration::from_secs(1) && took < Duration::from_secs(20), "{took:?}");
    // The reason is written.
    place.daemon.kill()?;
    place.daemon.start()?;
    killed_for(&place.daemon.cri()?.status(&id)?, &status.message);
    Ok(())
}

fn never_ceases(place: &mut Place) -> Result {
    let id = start(
        place,
        NEW,
        "stop",
        "main",
        &format!("{CALLS} & while :; do busybox hostname x; sleep 1; done 2>&1"),
    )?;
    let called = place.called(&id)?;
    let status = place.ended(&id)?;
    assert_eq!(status.reason, "seccomp killed", "{status:?}");
    let took = called.elapsed();
    assert!((25..50).contains(&took.as_secs()), "{took:?}");
    Ok(())
}

fn killed(place: &mut Place) -> Result {
    let id = start(place, NEW, "stop", "main", CALLS)?;
    let called = place.called(&id)?;
    place.daemon.kill()?;
    std::thread::sleep(Duration::from_secs(1));
    place.daemon.start()?;
    assert_eq!(place.daemon.cri()?.status(&id)?.state(), ContainerState::ContainerRunning);
    killed_for(&place.ended(&id)?, "Used forbidden syscalls: sethostname (2x)");
    let took = called.elapsed();
    assert!(took < Duration::from_secs(20), "{took:?}");
    Ok(())
}

fn made_meanwhile(place: &mut Place) -> Result {
    let id = start(place, NEW, "stop", "main", &format!("sleep 3; {CALLS}"))?;
    let log = place.daemon.cri()?.status(&id)?.log_path;
    place.daemon.kill()?;
    wait_for("the container's calls", LIMIT, || {
        Ok(std::fs::read_to_string(&log)?.contains(" called").then_some(()))
    })?;
    // Answered at once, and by nobody but the monitor.
    assert_eq!(std::fs::read_to_string(&log)?.matches("not implemented").count(), 2);
    std::thread::sleep(QUIET + Duration::from_secs(1));
    let started = Instant::now();
    place.daemon.start()?;
    killed_for(&place.ended(&id)?, "Used forbidden syscalls: sethostname (2x)");
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    Ok(())
}

fn refusals(place: &mut Place) -> Result {
    // A handler that does not allow the annotation, and a name that is not allowed: the filter is as it was.
    for (annotation, handler) in [(NEW, "strict"), (OLD, "main")] {
        let id = start(place, annotation, "stop", handler, CALLS)?;
        place.called(&id)?;
        let log = place.daemon.cri()?.log(&id)?;
        assert_eq!(log.matches("not permitted").count(), 2, "{log}");
    }
    let cri = place.daemon.cri()?;
    // An older runtime, which does not say what it can.
    let config = pod(&cri, "machine", NEW, "stop");
    let sandbox = cri.run_pod_as(&config, "machine")?;
    if !std::process::Command::new("/usr/bin/crun").arg("features").output()?.status.success() {
        let wanted = container(place, &cri, "c", "true");
        let message = refused(cri.create(&sandbox, &wanted, &config), Code::FailedPrecondition)?;
        assert!(message.contains(NEW) && message.contains("SCMP_ACT_NOTIFY"), "{message}");
    }
    // Without a filter there is nothing to ask about.
    let config = pod(&cri, "unconfined", NEW, "stop");
    let sandbox = cri.run_pod_as(&config, "main")?;
    let mut open = container(place, &cri, "open", "busybox hostname x 2>&1; echo called; sleep 1000");
    security(&mut open).seccomp = None;
    let id = cri.create(&sandbox, &open, &config)?;
    cri.start(&id)?;
    place.called(&id)?;
    assert!(cri.log(&id)?.contains("not permitted"));
    // A profile with a listener of its own.
    let path = place.daemon.dir().join("own.json");
    let text = br#"{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/run/agent","syscalls":[{"name":"mkdir","action":"SCMP_ACT_NOTIFY"}]}"#;
    std::fs::File::create_new(&path)?.write_all(text)?;
    let mut own = container(place, &cri, "own", "true");
    let kind = ProfileType::Localhost.into();
    security(&mut own).seccomp =
        Some(SecurityProfile { profile_type: kind, localhost_ref: path.display().to_string() });
    let message = refused(cri.create(&sandbox, &own, &config), Code::InvalidArgument)?;
    assert!(message.contains("/run/agent"), "{message}");
    assert_eq!(cri.list(Some(&sandbox))?.len(), 1);
    Ok(())
}
