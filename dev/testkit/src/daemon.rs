//! The daemon with everything of its own in a temporary directory: store, run directory, configuration, socket, networks.
//!
//! It can be killed and started again on the same directories. At the end [`Daemon::finish`] removes the pods, ends the
//! daemon and fails with a list of what is left; a dropped one is swept by force, so that a failed test leaves nothing.
#![expect(clippy::print_stderr, reason = "a failed test shows the daemon's log")]

use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use tempfile::TempDir;

use crate::cri::Place;
use crate::leftovers::{cgroups, mounts, named_files, processes, remove_cgroup_parents};
use crate::{Cri, Registry, Result, Traces, leftovers, wait_for};

/// A cold start of the daemon on a loaded machine.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long SIGTERM may take before it counts as a fault.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// Monitors that the daemon keeps ready.
const SPARES: usize = 2;

/// What a daemon is started with.
#[derive(Debug, Clone)]
pub struct Builder {
    program: Option<PathBuf>,
    runtimes: Vec<(String, PathBuf)>,
    plugins: PathBuf,
    network: bool,
    insecure: Vec<String>,
    drop_ins: Vec<String>,
    args: Vec<String>,
    env: Vec<(String, String)>,
}

impl Builder {
    /// Another program than the one that `scripts/build --debug` made (or `$CRIOX_BIN` names).
    #[must_use]
    pub fn program(mut self, path: impl Into<PathBuf>) -> Self {
        self.program = Some(path.into());
        self
    }

    /// A runtime handler; the first one is the default. Without any: `crun` from the `PATH`.
    #[must_use]
    pub fn runtime(mut self, name: &str, path: impl Into<PathBuf>) -> Self {
        self.runtimes.push((name.to_owned(), path.into()));
        self
    }

    /// The directory of CNI plugins, when not [`plugins_dir`].
    #[must_use]
    pub fn plugins(mut self, dir: impl Into<PathBuf>) -> Self {
        self.plugins = dir.into();
        self
    }

    /// No network configuration: only pods with the node's network can run.
    #[must_use]
    pub fn without_network(mut self) -> Self {
        self.network = false;
        self
    }

    /// Lets images be pulled from this registry over plain HTTP.
    #[must_use]
    pub fn registry(mut self, registry: &Registry) -> Self {
        self.insecure.push(registry.address().to_owned());
        self
    }

    /// A drop-in of the configuration (TOML), read after the main file, in the order given.
    #[must_use]
    pub fn drop_in(mut self, toml: &str) -> Self {
        self.drop_ins.push(toml.to_owned());
        self
    }

    /// One more argument of the command line.
    #[must_use]
    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    /// One more variable of the environment: a failpoint, a log filter.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.env.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Writes the configuration without starting anything, for tests that start with a broken one.
    pub fn prepare(self) -> Result<Daemon> {
        let dir = tempfile::Builder::new().prefix("criox-test-").tempdir()?;
        let program = match &self.program {
            Some(program) => program.clone(),
            None => default_program()?,
        };
        let unique =
            dir.path().file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let daemon = Daemon {
            cgroup_parent: format!("/{unique}"),
            dir: Some(dir),
            program,
            options: self,
            process: None,
            ids: Arc::default(),
            watched: Vec::new(),
        };
        daemon.write_configuration()?;
        Ok(daemon)
    }

    /// Writes the configuration, starts the daemon and waits until its socket accepts a connection.
    pub fn start(self) -> Result<Daemon> {
        let mut daemon = self.prepare()?;
        daemon.start()?;
        Ok(daemon)
    }
}

/// A daemon and its directory.
#[derive(Debug)]
pub struct Daemon {
    /// `None` only when it had to be left behind, in the drop.
    dir: Option<TempDir>,
    program: PathBuf,
    options: Builder,
    process: Option<Child>,
    cgroup_parent: String,
    ids: Arc<Mutex<Vec<String>>>,
    watched: Vec<PathBuf>,
}

impl Daemon {
    /// The choices of a test that wants nothing special.
    pub fn builder() -> Builder {
        Builder {
            program: None,
            runtimes: Vec::new(),
            plugins: plugins_dir(),
            network: true,
            insecure: Vec::new(),
            drop_ins: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
        }
    }

    /// The directory that holds everything below.
    pub fn dir(&self) -> &Path {
        self.dir.as_ref().map_or(Path::new("/nonexistent"), TempDir::path)
    }

    /// The graph root.
    pub fn root(&self) -> PathBuf {
        self.dir().join("root")
    }

    /// The run root.
    pub fn run_root(&self) -> PathBuf {
        self.dir().join("run")
    }

    /// The CRI socket.
    pub fn socket(&self) -> PathBuf {
        self.dir().join("criox.sock")
    }

    /// The main configuration file.
    pub fn config(&self) -> PathBuf {
        self.dir().join("crio.conf")
    }

    /// The directory of drop-ins.
    pub fn config_dir(&self) -> PathBuf {
        self.dir().join("crio.conf.d")
    }

    /// The directory of network configurations.
    pub fn network_dir(&self) -> PathBuf {
        self.dir().join("net.d")
    }

    /// Where host-local keeps its leases: a file named by each address in use.
    pub fn leases_dir(&self) -> PathBuf {
        self.dir().join("leases").join(self.network_name())
    }

    /// Of this daemon alone: the cache of CNI results is the machine's, and a daemon collects what is stale in its network.
    fn network_name(&self) -> &str {
        self.cgroup_parent.trim_start_matches('/')
    }

    /// Parent of all pods' cgroups.
    pub fn cgroup_parent(&self) -> &str {
        &self.cgroup_parent
    }

    /// The daemon's process.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// Everything that the daemon has said so far, over all its starts.
    pub fn log(&self) -> String {
        std::fs::read(self.dir().join("log"))
            .map(|log| String::from_utf8_lossy(&log).into_owned())
            .unwrap_or_default()
    }

    /// The command line that [`Daemon::start`] uses, to be wrapped or changed by a test.
    pub fn command(&self) -> Command {
        let dir = self.dir();
        let mut command = Command::new(&self.program);
        command
            .arg("--config")
            .arg(self.config())
            .arg("--config-dir")
            .arg(self.config_dir())
            .arg("--registries-conf")
            .arg(dir.join("registries.conf"))
            .arg("--registries-conf-dir")
            .arg(dir.join("registries.d"))
            .args(&self.options.args)
            .env("CONTAINERS_STORAGE_CONF", dir.join("storage.conf"))
            .envs(self.options.env.iter().map(|(key, value)| (key, value)))
            .current_dir("/")
            .stdin(Stdio::null());
        command
    }

    /// Starts the daemon, also again after it was killed, and waits for the socket.
    pub fn start(&mut self) -> Result {
        let command = self.command();
        self.start_with(command)
    }

    /// The same with a command line of the test's own (a tracer in front, other arguments).
    pub fn start_with(&mut self, mut command: Command) -> Result {
        let log = std::fs::OpenOptions::new().append(true).create(true).open(self.dir().join("log"))?;
        let process = command
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", self.program.display()))?;
        self.process = Some(process);
        let socket = self.socket();
        let started = wait_for("the daemon to listen", START_LIMIT, || {
            if let Some(status) = self.process.as_mut().and_then(|process| process.try_wait().transpose()) {
                return Err(format!("the daemon ended with {}", status?).into());
            }
            // Its own: a child of the one before can hold the old socket for a moment.
            let peer = std::os::unix::net::UnixStream::connect(&socket)
                .ok()
                .and_then(|stream| rustix::net::sockopt::socket_peercred(stream).ok());
            let own = self.process.as_ref().map(Pid::from_child);
            Ok(peer.filter(|peer| Some(peer.pid) == own).map(drop))
        });
        if self.process.as_mut().is_some_and(|process| !matches!(process.try_wait(), Ok(None))) {
            self.process = None;
        }
        started.map_err(|error| format!("{error}; its log ends: {}", tail(&self.log())).into())
    }

    /// SIGKILL, and waits until it is dead.
    pub fn kill(&mut self) -> Result {
        if let Some(mut process) = self.process.take() {
            process.kill()?;
            process.wait()?;
        }
        Ok(())
    }

    /// SIGTERM, and fails when it takes too long or ends with anything but success.
    pub fn terminate(&mut self) -> Result {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        kill_process(Pid::from_child(&process), Signal::TERM)?;
        let status = wait_for("the daemon to end after SIGTERM", STOP_LIMIT, || Ok(process.try_wait()?));
        if status.is_err() {
            process.kill()?;
            process.wait()?;
        }
        let status = status?;
        if status.success() { Ok(()) } else { Err(format!("the daemon ended with {status}").into()) }
    }

    /// A client; what it makes is remembered for the leak check.
    pub fn cri(&self) -> Result<Cri> {
        let place = Place { cgroup_parent: self.cgroup_parent.clone(), logs: self.dir().join("logs") };
        Ok(Cri::connect(&self.socket(), place, START_LIMIT)?.noting_in(Arc::clone(&self.ids)))
    }

    /// Remembers an ID that was made in another way, for the leak check.
    pub fn note(&self, id: &str) {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).push(id.to_owned());
    }

    /// Counts what names this directory, too, in the leak check: a stand-in's.
    pub fn watch(&mut self, dir: &Path) {
        self.watched.push(dir.to_owned());
    }

    /// By what things of this daemon are known. A running daemon is no leftover.
    pub fn traces(&self) -> Traces {
        Traces {
            ids: self.ids.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            dirs: std::iter::once(self.dir().to_owned()).chain(self.watched.iter().cloned()).collect(),
            cgroup_parents: vec![self.cgroup_parent.clone()],
            except: self.pid().into_iter().collect(),
        }
    }

    /// What pods have left, while the daemon runs or not: [`leftovers()`], and addresses that are still leased.
    ///
    /// The store's home is no pod's: like all programs on containers/storage the daemon binds it onto itself, for good.
    pub fn leftovers(&self) -> Vec<String> {
        let mut found = leftovers(&self.traces());
        let home = format!("mount {}", self.root().join("overlay").display());
        found.retain(|line| *line != home);
        self.forgive_spares(&mut found);
        if let Ok(entries) = std::fs::read_dir(self.leases_dir()) {
            let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
            found.extend(
                names
                    .filter(|name| name.parse::<std::net::IpAddr>().is_ok())
                    .map(|ip| format!("lease of {ip}")),
            );
        }
        found
    }

    /// A running daemon keeps monitors ready for pods that nobody has asked for yet; one too many is a leftover again.
    fn forgive_spares(&self, found: &mut Vec<String>) {
        if self.process.is_none() {
            return;
        }
        let ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let spare = |line: &String| {
            line.split_once(" --sandbox-id ")
                .is_some_and(|(_, rest)| !ids.iter().any(|id| rest.starts_with(id)))
        };
        if found.iter().filter(|line| spare(line)).count() <= SPARES {
            found.retain(|line| !spare(line));
        }
    }

    /// Removes every pod through the daemon (started again if it is dead), ends it, and fails if anything is left.
    pub fn finish(mut self) -> Result {
        if self.process.is_none() {
            self.start()?;
        }
        self.cri()?.remove_all_pods()?;
        self.terminate()?;
        let found = self.leftovers();
        if found.is_empty() { Ok(()) } else { Err(format!("left behind: {}", found.join("; ")).into()) }
    }

    fn write_configuration(&self) -> Result {
        let dir = self.dir();
        for sub in ["root", "run", "logs", "crio.conf.d", "net.d", "hooks", "registries.d"] {
            std::fs::DirBuilder::new().mode(0o755).create(dir.join(sub))?;
        }
        put(&self.config(), &self.render())?;
        for (n, toml) in self.options.drop_ins.iter().enumerate() {
            put(&self.config_dir().join(format!("{n:02}-test.conf")), toml)?;
        }
        put(&dir.join("policy.json"), r#"{"default": [{"type": "insecureAcceptAnything"}]}"#)?;
        put(&dir.join("storage.conf"), "[storage]\ndriver = \"overlay\"\n")?;
        let mut registries = String::from("unqualified-search-registries = []\n");
        for address in &self.options.insecure {
            registries.push_str(&format!("[[registry]]\nlocation = \"{address}\"\ninsecure = true\n"));
        }
        put(&dir.join("registries.conf"), &registries)?;
        if self.options.network {
            put(&self.network_dir().join("10-test.conflist"), &self.render_network())?;
        }
        Ok(())
    }

    fn render(&self) -> String {
        let dir = self.dir().display();
        let runtimes = if self.options.runtimes.is_empty() {
            vec![("crun".to_owned(), PathBuf::new())]
        } else {
            self.options.runtimes.clone()
        };
        let default = &runtimes[0].0;
        let plugins = self.options.plugins.display();
        let mut text = format!(
            r#"[crio]
root = "{dir}/root"
runroot = "{dir}/run"
storage_driver = "overlay"
log_dir = "{dir}/logs"
version_file = "{dir}/version"
version_file_persist = "{dir}/version-persist"
clean_shutdown_file = "{dir}/clean.shutdown"

[crio.api]
listen = "{dir}/criox.sock"
stream_address = "127.0.0.1"
stream_port = "0"

[crio.runtime]
default_runtime = "{default}"
cgroup_manager = "cgroupfs"
log_level = "debug"
namespaces_dir = "{dir}/run/ns"
container_exits_dir = "{dir}/run/exits"
container_attach_socket_dir = "{dir}/run/attach"
hooks_dir = ["{dir}/hooks"]

[crio.image]
signature_policy = "{dir}/policy.json"

[crio.network]
network_dir = "{dir}/net.d"
plugin_dirs = ["{plugins}"]

[crio.nri]
nri_listen = "{dir}/nri.sock"
nri_plugin_dir = "{dir}/nri-plugins"
nri_plugin_config_dir = "{dir}/nri-config"
"#
        );
        for (name, path) in &runtimes {
            text.push_str(&format!(
                "\n[crio.runtime.runtimes.{name}]\nruntime_path = \"{}\"\nruntime_type = \"oci\"\nruntime_root = \"{dir}/run/{name}\"\nmonitor_path = \"\"\n",
                path.display()
            ));
        }
        text
    }

    fn render_network(&self) -> String {
        serde_json::json!({
            "cniVersion": "1.0.0",
            "name": self.network_name(),
            "plugins": [
                {
                    "type": "bridge", "bridge": "crioxtest0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
                    "ipam": {
                        "type": "host-local", "dataDir": self.dir().join("leases"),
                        "ranges": [[{"subnet": "10.231.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": true}},
            ],
        })
        .to_string()
    }

    /// Ends and removes whatever is ours, without the daemon's help. What can't be done is left to the next step's look.
    fn sweep(&mut self) {
        if self.process.is_some()
            && let Ok(cri) = self.cri()
        {
            drop(cri.remove_all_pods());
        }
        drop(self.kill());
        let mut traces = self.traces();
        // Spare monitors have IDs that no call was given; their cgroups are named from them.
        let runs = std::fs::read_dir(self.dir().join("run/criox")).into_iter().flatten().flatten();
        traces.ids.extend(
            runs.map(|run| run.file_name().to_string_lossy().into_owned()).filter(|name| name.len() == 64),
        );
        let dead = wait_for("our processes to die", Duration::from_secs(10), || {
            let found = processes(&traces);
            for (pid, _) in &found {
                kill_by_pidfd(*pid);
            }
            Ok(found.is_empty().then_some(()))
        });
        if let Err(error) = dead {
            eprintln!("{error}: {:?}", processes(&traces));
        }
        for point in mounts(&traces) {
            let _gone = unmount(&point, UnmountFlags::DETACH);
        }
        for cgroup in cgroups(&traces) {
            drop(std::fs::remove_dir(cgroup));
        }
        remove_cgroup_parents(&traces);
        for path in named_files(&traces) {
            drop(std::fs::remove_file(path));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the daemon's log ends: {}", tail(&self.log()));
        }
        self.sweep();
        // A directory with a mount in it must not be removed: its content may be the machine's.
        if let Some(dir) = self.dir.take()
            && !mounts(&self.traces_of(dir.path())).is_empty()
        {
            eprintln!("a mount stays in {}: the directory is left", dir.keep().display());
        }
    }
}

impl Daemon {
    fn traces_of(&self, dir: &Path) -> Traces {
        Traces { dirs: vec![dir.to_owned()], ..Traces::default() }
    }
}

/// By descriptor, so that a PID that was used again isn't hit between the look and the kill.
fn kill_by_pidfd(pid: u32) {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    if let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) {
        // Fails only for a process that has ended meanwhile.
        let _dead = pidfd_send_signal(process, Signal::KILL);
    }
}

/// The last lines of a log, enough to see why.
fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    format!("\n{}", lines[lines.len().saturating_sub(40)..].join("\n"))
}

fn put(path: &Path, text: &str) -> Result {
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    Ok(file.write_all(text.as_bytes())?)
}

/// Cargo's target directory: this program is in its `debug/deps`.
fn target_dir() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    Ok(program.ancestors().nth(3).ok_or("this program isn't in a target directory")?.to_owned())
}

/// `$CRIOX_BIN`, or the daemon that `scripts/build --debug` made.
fn default_program() -> Result<PathBuf> {
    if let Some(program) = std::env::var_os("CRIOX_BIN") {
        return Ok(program.into());
    }
    let dir = target_dir()?.join("dist-debug");
    for name in ["criox", "criox-monitor"] {
        if !dir.join(name).exists() {
            return Err(format!("{} is missing: run scripts/build --debug", dir.join(name).display()).into());
        }
    }
    Ok(dir.join("criox"))
}

/// The private root of other programs: `$CRIOX_PEERS`, or where `scripts/peers` puts it.
pub fn peers_dir() -> Result<PathBuf> {
    match std::env::var_os("CRIOX_PEERS") {
        Some(dir) => Ok(dir.into()),
        None => Ok(target_dir()?.join("peers")),
    }
}

/// A program from there (`podman`, `skopeo`, `crun`, `runc`, `crictl`, …); the error says how to get it.
pub fn peer(name: &str) -> Result<PathBuf> {
    let path = peers_dir()?.join("bin").join(name);
    if path.exists() {
        Ok(path)
    } else {
        Err(format!("{} is missing: run scripts/peers", path.display()).into())
    }
}

/// CNI plugins 1.9.1 from the private root, else the machine's own.
pub fn plugins_dir() -> PathBuf {
    peers_dir()
        .map(|dir| dir.join("cni"))
        .ok()
        .filter(|dir| dir.exists())
        .unwrap_or_else(|| "/usr/lib/cni".into())
}
