//! The node that the tests share: criox installed as a service, a registry, an image.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use criox_cri::v1::{ContainerConfig, ContainerState, PodSandboxConfig};
use testkit::cri::Place;
use testkit::{Cri, Registry, Result, busybox_image, wait_for};

/// Anything that takes longer on the slow guest is a fault.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);
/// CRI-O's own socket, for clients have it built in.
pub(crate) const SOCKET: &str = "/var/run/crio/crio.sock";
/// The slice of the tests' pods.
pub(crate) const SLICE: &str = "/kubepods.slice/kubepods-besteffort.slice";
/// A container that ends when it is told to.
pub(crate) const SERVICE: &[&str] = &["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1; done"];
/// The unit as it is shipped.
const UNIT: &str = include_str!("../../../../packaging/systemd/criox.service");

/// What the tests share.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) cri: Cri,
    pub(crate) image: String,
    _registry: Registry,
}

static GUEST: Mutex<Option<Arc<Guest>>> = Mutex::new(None);

/// Lends the node to a test, and sees that its pods leave nothing.
pub(crate) fn test(test: fn(&Guest) -> Result) -> Result {
    let guest = {
        let mut slot = GUEST.lock().unwrap_or_else(PoisonError::into_inner);
        match &*slot {
            Some(guest) => guest.clone(),
            None => slot.insert(Arc::new(Guest::new()?)).clone(),
        }
    };
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(&guest)));
    if !matches!(result, Ok(Ok(()))) {
        show_log();
    }
    let cleaned = clean(&guest);
    match result {
        Ok(result) => result?,
        Err(panic) => std::panic::resume_unwind(panic),
    }
    cleaned
}

/// Ends the service.
pub(crate) fn finish() -> Result {
    if GUEST.lock().unwrap_or_else(PoisonError::into_inner).take().is_some() {
        sh("systemctl stop criox")?;
    }
    Ok(())
}

#[expect(clippy::print_stderr, reason = "a failed test shows the daemon's log")]
fn show_log() {
    if let Ok(log) = sh("journalctl --no-pager --output cat --unit criox --unit crio --lines 25") {
        eprintln!("{log}");
    }
}

impl Guest {
    fn new() -> Result<Self> {
        let dist = std::env::var("CRIOX_NODE_DIST")?;
        sh(&format!(
            "install -m 755 {dist}/criox {dist}/criox-monitor /usr/bin/ && ln -sf criox /usr/bin/crio"
        ))?;
        put("/etc/systemd/system/criox.service", UNIT)?;
        put("/etc/crio/crio.conf.d/20-newer.conf", &newer())?;
        let registry = Registry::start()?;
        let image = busybox_image()?.build()?.push(&registry, "node/busybox", "1")?;
        put(
            "/etc/containers/registries.conf",
            &format!("[[registry]]\nlocation = \"{}\"\ninsecure = true\n", registry.address()),
        )?;
        sh("systemctl daemon-reload && systemctl start criox")?;
        let place = Place { cgroup_parent: SLICE.into(), logs: "/var/log/pods".into() };
        let cri = Cri::connect(Path::new(SOCKET), place, LIMIT)?;
        cri.pull(&image)?;
        Ok(Self { cri, image, _registry: registry })
    }

    /// A pod with the node's network, which takes the guest a fraction of the time.
    pub(crate) fn pod(&self, name: &str) -> PodSandboxConfig {
        self.cri.host_network_pod(name)
    }

    /// A running pod and its running container.
    pub(crate) fn run(
        &self,
        pod: &PodSandboxConfig,
        handler: &str,
        container: &ContainerConfig,
    ) -> Result<Ids> {
        let sandbox = self.cri.run_pod_as(pod, handler)?;
        let container = self.cri.create(&sandbox, container, pod)?;
        self.cri.start(&container)?;
        Ok(Ids { sandbox, container })
    }

    /// As [`Guest::run`], with nothing special.
    pub(crate) fn service(&self, name: &str) -> Result<Ids> {
        self.run(&self.pod(name), "", &self.cri.container("main", &self.image, SERVICE))
    }

    /// The answer to `ContainerStatus` says running.
    pub(crate) fn is_running(&self, container: &str) -> Result<bool> {
        Ok(self.cri.status(container)?.state() == ContainerState::ContainerRunning)
    }

    /// Waits for the service to answer again.
    pub(crate) fn answers(&self) -> Result {
        wait_for("the service to answer", LIMIT, || Ok(self.cri.version().ok().map(drop)))
    }
}

/// Handlers of runtimes that are newer than the guest's.
pub(crate) const NEWER: [&str; 2] = ["crun-newer", "runc-newer"];

fn newer() -> String {
    let peers = std::env::var("CRIOX_NODE_PEERS").unwrap_or_default();
    let handler = |name: &str| {
        let program = name.trim_end_matches("-newer");
        format!(
            "[crio.runtime.runtimes.{name}]\nruntime_path = \"{peers}/bin/{program}\"\nruntime_root = \"/run/{name}\"\n"
        )
    };
    NEWER.map(handler).concat()
}

/// A sandbox and its container.
#[derive(Debug)]
pub(crate) struct Ids {
    pub(crate) sandbox: String,
    pub(crate) container: String,
}

/// Removes all pods, and fails if groups, units, mounts or monitors of any stay behind.
fn clean(guest: &Guest) -> Result {
    sh("systemctl start criox")?;
    guest.answers()?;
    guest.cri.remove_all_pods()?;
    let ids = guest.cri.ids();
    wait_for("nothing of the pods to be left", LIMIT, || Ok(left(&ids)?.is_empty().then_some(())))
        .map_err(|error| format!("{error}: {}", left(&ids).unwrap_or_default().join("; ")).into())
}

fn left(ids: &[String]) -> Result<Vec<String>> {
    let found = sh("find /sys/fs/cgroup -type d -name 'crio-*' -printf 'cgroup %P\\n'; \
         systemctl list-units --all --plain --no-legend --full 'crio-*' | sed 's/^/unit /'; \
         sed 's/^/mount /' /proc/self/mountinfo; ip netns list | sed 's/^/netns /'; \
         pgrep -a criox-monitor | sed 's/^/process /' || true")?;
    let ours = |line: &&str| ids.iter().any(|id| line.contains(id.as_str()));
    Ok(found.lines().filter(ours).map(str::to_owned).collect())
}

/// Runs a shell's script; its output, or an error with what it said.
pub(crate) fn sh(script: &str) -> Result<String> {
    let output = Command::new("bash").args(["-o", "pipefail", "-c", script]).output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    Err(format!("{script}: {}: {} {}", output.status, text(&output.stdout), text(&output.stderr)).into())
}

/// Writes a file of the node's configuration.
pub(crate) fn put(path: &str, text: &str) -> Result {
    use std::io::Write as _;
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    file.write_all(text.as_bytes())?;
    Ok(())
}

/// A property of a unit.
pub(crate) fn property(unit: &str, name: &str) -> Result<String> {
    sh(&format!("systemctl show --value --property {name} {unit}"))
}

/// The only directory of this name in the cgroup tree.
pub(crate) fn group(name: &str) -> Result<PathBuf> {
    let found = sh(&format!("find /sys/fs/cgroup -type d -name '{name}'"))?;
    let mut paths = found.lines();
    match (paths.next(), paths.next()) {
        (Some(path), None) => Ok(path.into()),
        _ => Err(format!("groups with the name {name}: {found:?}").into()),
    }
}

/// A file of a cgroup.
pub(crate) fn read(group: &Path, file: &str) -> Result<String> {
    let path = group.join(file);
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(text.trim_end().to_owned())
}
