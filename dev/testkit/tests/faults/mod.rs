//! What the tests of crashes share: a daemon with one image, faults, and a look at what a daemon has on the machine.
#![allow(dead_code, reason = "each test program uses its part")]
#![allow(clippy::disallowed_methods, reason = "a fault removes trees without care")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use criox_cri::v1::{ContainerState, ImageSpec, Mount, PodSandboxState};
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use testkit::leftovers::{cgroups, mounts, processes};
use testkit::{Cri, Daemon, Entry, ImageBuilder, Registry, Result, busybox_image, wait_for};

/// For everything that is put right beside the calls.
const SETTLE: Duration = Duration::from_secs(20);
/// As many monitors as a daemon has ready before they are wanted.
const SPARES: usize = 2;
/// Runs until it is killed.
const IDLE: &[&str] = &["sleep", "100000"];

/// A process: its number, and the time of its start, which tells it from a later one of that number.
pub(crate) type Process = (u32, u64);

/// A registry with two images, and a daemon that has pulled the first.
pub(crate) struct Place {
    pub(crate) daemon: Daemon,
    /// The image that is there.
    pub(crate) image: String,
    /// One that shares no layer with it and is not.
    pub(crate) other: String,
    _registry: Registry,
}

impl Place {
    pub(crate) fn new() -> Result<Self> {
        Self::with(|builder| builder)
    }

    pub(crate) fn with(
        options: impl FnOnce(testkit::daemon::Builder) -> testkit::daemon::Builder,
    ) -> Result<Self> {
        let registry = Registry::start()?;
        let image = busybox_image()?.build()?.push(&registry, "faults/busybox", "1")?;
        let other = other_image()?.push(&registry, "faults/other", "1")?;
        let daemon = options(Daemon::builder()).registry(&registry).start()?;
        let place = Self { daemon, image, other, _registry: registry };
        place.cri()?.pull(&place.image)?;
        Ok(place)
    }

    pub(crate) fn cri(&self) -> Result<Cri> {
        self.daemon.cri()
    }

    /// Ends all, the containers without grace, and fails if anything is left.
    pub(crate) fn finish(self) -> Result {
        let cri = self.cri()?;
        for container in cri.list(None)? {
            cri.stop(&container.id, 0)?;
        }
        self.daemon.finish()
    }

    /// The processes of a container, the eldest first.
    pub(crate) fn processes(&self, container: &str) -> Result<Vec<Process>> {
        let group = format!("crio-{container}");
        processes_that(|dir| {
            std::fs::read_to_string(dir.join("cgroup")).is_ok_and(|groups| groups.contains(&group))
        })
    }

    /// A record of a pod: of its `sandbox`, its `container` or its `network`.
    pub(crate) fn record(&self, pod: &str, kind: &str, container: &str) -> PathBuf {
        let name = match kind {
            "container" => format!("container-{container}.json"),
            kind => format!("{kind}.json"),
        };
        self.daemon.root().join("criox/pods").join(pod).join(name)
    }

    /// Addresses that are leased.
    pub(crate) fn leases(&self) -> usize {
        self.daemon.leftovers().iter().filter(|line| line.starts_with("lease of ")).count()
    }

    /// What is left on the machine of these IDs.
    pub(crate) fn left_of(&self, ids: &[&str]) -> Result<Vec<String>> {
        let lines = self.everything()?;
        Ok(lines.into_iter().filter(|line| ids.iter().any(|id| line.contains(id))).collect())
    }

    /// All that this daemon has on the machine, one line each: processes, mounts, cgroups, leases, records, directories.
    pub(crate) fn everything(&self) -> Result<BTreeSet<String>> {
        self.note_ids();
        let mut lines: BTreeSet<String> = self.daemon.leftovers().into_iter().collect();
        for dir in self.places_of_ids().into_iter().chain(self.places_of_the_store()) {
            let names = std::fs::read_dir(&dir).into_iter().flatten().flatten();
            lines.extend(names.map(|entry| entry.path().display().to_string()));
        }
        // The daemon keeps a few monitors for pods to come; more than these would be orphans.
        let spares = self.spares();
        if spares.len() <= SPARES {
            lines.retain(|line| !spares.iter().any(|spare| line.contains(spare)));
        }
        Ok(lines)
    }

    /// Run directories of pods that don't exist.
    fn spares(&self) -> Vec<String> {
        let runs = std::fs::read_dir(self.daemon.run_root().join("criox")).into_iter().flatten().flatten();
        let names = runs.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names
            .filter(|name| name.len() == 64 && !self.daemon.root().join("criox/pods").join(name).exists())
            .collect()
    }

    /// Fails with the differences when they don't go away by themselves.
    pub(crate) fn is_as(&self, before: &BTreeSet<String>) -> Result {
        let mut now = BTreeSet::new();
        let same = wait_for("everything to be as before", SETTLE, || {
            now = self.everything()?;
            Ok((&now == before).then_some(()))
        });
        same.map_err(|error| {
            let gained: Vec<&String> = now.difference(before).collect();
            let lost: Vec<&String> = before.difference(&now).collect();
            format!("{error}: left behind {gained:#?}, lost {lost:#?}").into()
        })
    }

    fn places_of_ids(&self) -> Vec<PathBuf> {
        let (root, run) = (self.daemon.root(), self.daemon.run_root());
        let mut places = vec![root.join("criox/pods"), root.join("criox/network-debts"), run.join("criox")];
        places.extend(["netns", "utsns", "ipcns", "pidns", "userns"].map(|kind| run.join("ns").join(kind)));
        places.push(run.join("crun"));
        places
    }

    fn places_of_the_store(&self) -> Vec<PathBuf> {
        let root = self.daemon.root();
        let subs = ["overlay", "overlay/l", "overlay/staging", "overlay-layers", "overlay-images"];
        let mut places: Vec<PathBuf> = subs.iter().map(|sub| root.join(sub)).collect();
        places.push(root.join("overlay-containers"));
        places.push(self.daemon.run_root().join("overlay-containers"));
        places
    }

    /// Remembers the IDs of objects that no call was told of.
    pub(crate) fn note_ids(&self) {
        let known = self.daemon.traces().ids;
        let mut found = BTreeSet::new();
        let mut places = self.places_of_ids();
        let pods = std::fs::read_dir(self.daemon.root().join("criox/pods")).into_iter().flatten().flatten();
        places.extend(pods.map(|entry| entry.path()));
        for dir in places {
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                let id = name.trim_start_matches("container-").trim_end_matches(".json");
                if id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit()) {
                    found.insert(id.to_owned());
                }
            }
        }
        for id in found.iter().filter(|id| !known.contains(id)) {
            self.daemon.note(id);
        }
    }

    /// SIGKILL for the daemon; what it was making is remembered.
    pub(crate) fn kill(&mut self) -> Result {
        self.daemon.kill()?;
        self.note_ids();
        Ok(())
    }

    /// The end of the daemon's log.
    pub(crate) fn log_tail(&self, lines: usize) -> String {
        let log = self.daemon.log();
        let all: Vec<&str> = log.lines().filter(|line| !line.contains(" h2::")).collect();
        format!("\n{}", all[all.len().saturating_sub(lines)..].join("\n"))
    }
}

/// Busybox and many small files, in layers of its own.
fn other_image() -> Result<testkit::Image> {
    let busybox = std::fs::read("/bin/busybox")?;
    let mut base: Vec<Entry> =
        ["bin", "dev", "etc", "proc", "sys", "tmp"].into_iter().map(Entry::dir).collect();
    base.push(Entry::file("etc/other", "another image\n"));
    base.push(Entry::program("bin/busybox", busybox));
    base.extend(
        ["sh", "sleep", "echo", "true"].map(|name| Entry::symlink(&format!("bin/{name}"), "busybox")),
    );
    let files: Vec<Entry> =
        (0..60).map(|n| Entry::file(&format!("etc/file{n}"), vec![b'x'; 100 * n])).collect();
    ImageBuilder::new().layer(&base).layer(&files).layer(&[Entry::file("etc/top", "top")]).build()
}

/// The steps of a whole life, each of which can be asked for again when its first answer was lost.
#[derive(Debug, Clone, Default)]
pub(crate) struct Script {
    name: String,
    image: String,
    /// Answers that were given to a call: a later one must not differ.
    pod: Option<String>,
    container: Option<String>,
}

/// The names of the steps, in order.
pub(crate) const STEPS: &[&str] = &[
    "pull",
    "run",
    "create",
    "start",
    "exec",
    "stop",
    "remove container",
    "stop pod",
    "remove pod",
    "remove image",
];

/// The image as a volume of a container.
pub(crate) fn image_volume(image: &str) -> Mount {
    Mount {
        container_path: "/volume".to_owned(),
        readonly: true,
        image: Some(ImageSpec { image: image.to_owned(), ..ImageSpec::default() }),
        ..Mount::default()
    }
}

impl Script {
    pub(crate) fn new(name: &str, image: &str) -> Self {
        Self { name: name.into(), image: image.into(), pod: None, container: None }
    }

    /// One step. Its error is what the call said, or that the call's effect is not there.
    pub(crate) fn step(&mut self, cri: &Cri, step: &str) -> Result {
        let config = cri.pod(&self.name);
        match step {
            "pull" => {
                cri.pull(&self.image)?;
                cri.image(&self.image)?.ok_or("the image that was pulled is not there")?;
            }
            "run" => {
                let pod = cri.run_pod(&config)?;
                keep(&mut self.pod, pod.clone())?;
                expect(
                    cri.pod_status(&pod)?.state() == PodSandboxState::SandboxReady,
                    "the sandbox is not ready",
                )?;
            }
            "create" => {
                let mut wanted = cri.container("c", &self.image, IDLE);
                wanted.mounts = vec![image_volume(&self.image)];
                let container = cri.create(self.pod()?, &wanted, &config)?;
                keep(&mut self.container, container.clone())?;
                let state = cri.status(&container)?.state();
                expect(state == ContainerState::ContainerCreated, "the container is not created")?;
            }
            "start" => {
                let container = self.container()?;
                // A start whose answer was lost has happened.
                if cri.status(container)?.state() != ContainerState::ContainerRunning {
                    cri.start(container)?;
                }
                let state = cri.status(container)?.state();
                expect(state == ContainerState::ContainerRunning, "the container does not run")?;
            }
            "exec" => {
                let answer = cri.exec(self.container()?, &["sh", "-c", "echo here; exit 3"], 20)?;
                expect(answer.stdout == b"here\n" && answer.exit_code == 3, "the exec has another answer")?;
            }
            "stop" => {
                let container = self.container()?;
                cri.stop(container, 0)?;
                let status = cri.status(container)?;
                expect(status.state() == ContainerState::ContainerExited, "the container has not ended")?;
                expect(status.exit_code == 137, &format!("the exit code is {}", status.exit_code))?;
            }
            "remove container" => {
                let container = self.container()?;
                cri.remove(container)?;
                expect(cri.status(container).is_err(), "the container is still there")?;
            }
            "stop pod" => cri.stop_pod(self.pod()?)?,
            "remove pod" => {
                let pod = self.pod()?;
                cri.remove_pod(pod)?;
                expect(cri.pod_status(pod).is_err(), "the sandbox is still there")?;
            }
            "remove image" => {
                // Layers of an image whose removal was cut short are found again by its next pull.
                if cri.image(&self.image)?.is_none() {
                    cri.pull(&self.image)?;
                }
                cri.remove_image(&self.image)?;
                expect(cri.image(&self.image)?.is_none(), "the image is still there")?;
            }
            other => return Err(format!("there is no step {other:?}").into()),
        }
        Ok(())
    }

    /// Removes the container, so that the step that creates one makes another.
    pub(crate) fn another_container(&mut self, cri: &Cri) -> Result {
        if let Some(container) = self.container.take() {
            cri.remove(&container)?;
        }
        Ok(())
    }

    fn pod(&self) -> Result<&str> {
        Ok(self.pod.as_deref().ok_or("no sandbox was run")?)
    }

    fn container(&self) -> Result<&str> {
        Ok(self.container.as_deref().ok_or("no container was created")?)
    }

    /// Nothing is listed that can't be used: what lists show has a status, a sandbox that is ready can be executed in.
    pub(crate) fn nothing_useless(cri: &Cri) -> Result {
        let pods = cri.list_pods()?;
        for pod in &pods {
            cri.pod_status(&pod.id)?;
        }
        for container in cri.list(None)? {
            cri.status(&container.id)?;
            let owner = pods.iter().any(|pod| pod.id == container.pod_sandbox_id);
            expect(owner, &format!("container {} is listed without its sandbox", container.id))?;
            if container.state() == ContainerState::ContainerRunning {
                cri.exec(&container.id, &["true"], 20)?;
            }
        }
        for image in cri.list_images()? {
            expect(cri.image(&image.id)?.is_some(), &format!("image {} is listed and not there", image.id))?;
        }
        Ok(())
    }
}

fn keep(known: &mut Option<String>, answer: String) -> Result {
    match known {
        Some(before) if *before != answer => Err(format!("{answer} now, {before} before").into()),
        _ => {
            *known = Some(answer);
            Ok(())
        }
    }
}

fn expect(holds: bool, otherwise: &str) -> Result {
    if holds { Ok(()) } else { Err(otherwise.into()) }
}

/// Replaces a file's bytes as a fault would.
pub(crate) fn put(path: &Path, bytes: &[u8]) -> Result {
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    Ok(std::io::Write::write_all(&mut file, bytes)?)
}

/// Sends a signal by name.
pub(crate) fn signal(pid: u32, signal: &str) -> Result {
    let number = match signal {
        "KILL" => Signal::KILL,
        "STOP" => Signal::STOP,
        "CONT" => Signal::CONT,
        other => return Err(format!("no signal {other}").into()),
    };
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or("not a process number")?;
    Ok(kill_process(pid, number)?)
}

/// Sends a signal to processes that may be gone.
pub(crate) fn signal_all(pids: &[u32], name: &str) -> Result {
    for pid in pids {
        if Path::new(&format!("/proc/{pid}")).exists() {
            drop(signal(*pid, name));
        }
    }
    Ok(())
}

fn processes_that(ours: impl Fn(&Path) -> bool) -> Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // After the name in parentheses: the state, and as the twentieth from there the time of the start.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let start = fields.get(19).and_then(|field| field.parse().ok());
        if let Some(start) = start
            && fields[0] != "Z"
            && ours(&entry.path())
        {
            found.push((pid, start));
        }
    }
    found.sort_by_key(|(pid, start)| (*start, *pid));
    Ok(found)
}

/// The monitor of a pod.
pub(crate) fn monitor(pod: &str) -> Result<u32> {
    let found = processes_that(|dir| {
        let command = std::fs::read(dir.join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command);
        command.contains("criox-monitor") && command.contains(pod)
    })?;
    found.first().map(|(pid, _)| *pid).ok_or_else(|| format!("pod {pod} has no monitor").into())
}

/// The cgroups that a monitor was put into.
pub(crate) fn monitor_groups(pod: &str) -> Result<Vec<String>> {
    let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", monitor(pod)?))?;
    let named: Vec<String> =
        groups.lines().filter(|line| line.contains(":name=systemd:")).map(str::to_owned).collect();
    Ok(if named.is_empty() { groups.lines().map(str::to_owned).collect() } else { named })
}

/// The machine after a power cut: nothing runs, nothing is mounted, the run directory is empty, the boot has another ID.
/// Dropping it gives the kernel's boot ID back.
pub(crate) struct Reboot {
    _file: TempDir,
}

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

impl Reboot {
    pub(crate) fn of(daemon: &mut Daemon) -> Result<Self> {
        daemon.kill()?;
        let mut traces = daemon.traces();
        // Spare monitors have IDs that no call was given, and a reboot ends their cgroups, too.
        let runs = std::fs::read_dir(daemon.run_root().join("criox"))?.flatten();
        traces.ids.extend(
            runs.map(|run| run.file_name().to_string_lossy().into_owned()).filter(|name| name.len() == 64),
        );
        wait_for("the pods' processes to die", SETTLE, || {
            let alive: Vec<u32> = processes(&traces).into_iter().map(|(pid, _)| pid).collect();
            signal_all(&alive, "KILL")?;
            Ok(alive.is_empty().then_some(()))
        })?;
        for point in mounts(&traces) {
            unmount(&point, UnmountFlags::DETACH)?;
        }
        for group in cgroups(&traces) {
            std::fs::remove_dir(&group).map_err(|error| format!("{}: {error}", group.display()))?;
        }
        std::fs::remove_dir_all(daemon.run_root())?;
        // This network namespace plays the host's, and has no rules but those of pods.
        for (program, args) in [
            ("nft", &["flush", "ruleset"][..]),
            ("iptables", &["-t", "nat", "-F"]),
            ("iptables", &["-t", "nat", "-X"]),
        ] {
            // Without the program there are no such rules.
            drop(Command::new(program).args(args).stderr(std::process::Stdio::null()).status());
        }
        let file = tempfile::Builder::new().prefix("criox-boot-").tempdir()?;
        let id = file.path().join("boot_id");
        put(&id, b"01234567-89ab-4cde-8f01-23456789abcd\n")?;
        mount_bind(&id, BOOT_ID)?;
        Ok(Self { _file: file })
    }
}

impl Drop for Reboot {
    fn drop(&mut self) {
        // In this namespace only; the worst is a wrong ID for the next test, which would fail loudly.
        let _still = unmount(BOOT_ID, UnmountFlags::DETACH);
    }
}

/// A cgroup as systemd gives one to a service: of the hierarchy in which it tells services apart.
pub(crate) struct ServiceGroup(PathBuf);

impl ServiceGroup {
    pub(crate) fn new(name: &str) -> Result<Self> {
        let systemd = Path::new("/sys/fs/cgroup/systemd");
        let hierarchy = if systemd.exists() { systemd } else { Path::new("/sys/fs/cgroup") };
        let dir = hierarchy.join(format!("{}-service", name.trim_start_matches('/')));
        std::fs::create_dir_all(&dir)?;
        Ok(Self(dir))
    }

    /// The same command, started inside.
    pub(crate) fn command(&self, inner: &Command) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ > \"$0\"/cgroup.procs; exec \"$@\""]).arg(&self.0);
        wrapped(command, inner)
    }

    pub(crate) fn processes(&self) -> Result<Vec<u32>> {
        let text = std::fs::read_to_string(self.0.join("cgroup.procs"))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }
}

impl Drop for ServiceGroup {
    fn drop(&mut self) {
        drop(signal_all(&self.processes().unwrap_or_default(), "KILL"));
        let gone =
            wait_for("the service's group to be empty", SETTLE, || Ok(std::fs::remove_dir(&self.0).ok()));
        drop(gone);
    }
}

/// A command line behind another one, with its environment.
pub(crate) fn wrapped(mut outer: Command, inner: &Command) -> Command {
    outer.arg(inner.get_program()).args(inner.get_args());
    for (key, value) in inner.get_envs() {
        match value {
            Some(value) => outer.env(key, value),
            None => outer.env_remove(key),
        };
    }
    outer.current_dir("/").stdin(std::process::Stdio::null());
    outer
}
