//! A guest: its command line, started, resumed from the template, ended.

use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde_json::{Value, json};

use crate::agent::Agent;
use crate::qmp::Qmp;
use crate::{Result, template};

/// Ports that the guest's agent listens on, each for one command at a time.
pub const PORTS: u8 = 4;
/// The guest's memory. What it never touches costs nothing.
const MEMORY: &str = "2G";
/// From the start of QEMU to an answer of the guest, resumed, on a loaded machine.
const RESUME: Duration = Duration::from_secs(60);
/// QEMU ends within a moment when asked to.
const QUIT: Duration = Duration::from_secs(10);
/// What serves the shared directory ends when QEMU has.
const DISCONNECT: Duration = Duration::from_secs(2);
/// Where the daemon for shared directories lies, that comes with Debian's QEMU.
const VIRTIOFSD: [&str; 2] = ["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"];

/// A Linux that boots fast in an emulator. AppArmor is on; the BPF LSM is off, for systemd's use of it costs seconds.
const KERNEL: &str = "rw quiet loglevel=3 console=ttyS0 panic=-1 lsm=landlock,yama,apparmor apparmor=1 \
    systemd.unified_cgroup_hierarchy=1 psi=1 mitigations=off nokaslr random.trust_cpu=1 tsc=reliable no_timer_check \
    net.ifnames=0 audit=0 init_on_alloc=0 hardened_usercopy=off rcupdate.rcu_expedited=1 nowatchdog nmi_watchdog=0 \
    workqueue.watchdog_thresh=0 rcupdate.rcu_cpu_stall_suppress=1 systemd.show_status=0 systemd.firstboot=off";

/// What a machine is started with.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Directories of the host that the guest sees at the same paths, read-only.
    pub share: Option<PathBuf>,
    /// Whether QEMU ends with the thread that started it.
    pub bound: bool,
}

/// A guest that runs.
#[derive(Debug)]
pub struct Machine {
    run: PathBuf,
}

impl Machine {
    /// Resumes a machine from the template in `home`; what it keeps lies in `run`. Returns when its agent answers.
    pub fn up(home: &Path, run: &Path, options: &Options) -> Result<Self> {
        let template = template::directory(home);
        let state = template.join("state");
        if !state.exists() {
            return Err(format!("{} is not there: scripts/node build", state.display()).into());
        }
        fs::create_dir_all(run)?;
        let machine = Self { run: fs::canonicalize(run)? };
        if machine.pid().is_some() {
            return Err(format!("a machine runs in {} already: scripts/node down", run.display()).into());
        }
        match machine.start(home, &template, options) {
            Ok(()) => Ok(machine),
            // Half a machine is none: nobody would find what is left of it.
            Err(error) => match machine.end() {
                Ok(()) => Err(error),
                Err(left) => Err(format!("{error}; and what was started could not be ended: {left}").into()),
            },
        }
    }

    fn start(&self, home: &Path, template: &Path, options: &Options) -> Result {
        // Writes go to private memory and to a file that is gone at once, so the template stays as it was saved.
        let (memory, sharing) = match &options.share {
            None => (template.join("memory"), "off"),
            // Another process reads the guest's memory then, which private pages don't allow.
            Some(directory) => {
                self.serve(directory, options.bound)?;
                (self.copy(&template.join("memory"))?, "on")
            }
        };
        let memory = format!(
            "memory-backend-file,id=memory,size={MEMORY},mem-path={},share={sharing}",
            memory.display()
        );
        let mut qemu = self.command(home, &template.join("root.img"), &memory, options.bound);
        qemu.args(["-snapshot", "-incoming", "defer"]);
        let mut process = self.spawn(&mut qemu)?;
        self.resume(&template.join("state"), &mut process)?;
        if options.share.is_some() {
            self.plug()?;
        }
        self.greet(options.share.as_deref())
    }

    /// A machine that was started by somebody else.
    pub fn at(run: &Path) -> Result<Self> {
        let machine =
            Self { run: fs::canonicalize(run).map_err(|_| format!("no machine in {}", run.display()))? };
        match machine.pid() {
            Some(_) => Ok(machine),
            None => Err(format!("no machine runs in {}", run.display()).into()),
        }
    }

    /// The agent's port.
    pub fn agent(&self, port: u8) -> Result<Agent> {
        Agent::connect(&self.run.join(format!("agent{port}")))
    }

    /// Ends what runs in a directory, without any word to the guest; also if QEMU has ended by itself.
    pub fn down(run: &Path) -> Result {
        let run = fs::canonicalize(run).map_err(|_| format!("no machine in {}", run.display()))?;
        Self { run }.end()
    }

    fn end(&self) -> Result {
        if let Some(pid) = self.pid() {
            let process = pidfd_open(pid, PidfdFlags::empty())?;
            // Dropped at once, for QEMU talks to its one client until that goes.
            let asked = self.qmp().and_then(|mut qmp| qmp.command("quit", json!({})).map(drop)).is_ok();
            if !asked || !has_ended(&process, QUIT)? {
                kill(&process)?;
            }
        }
        // The daemon ends with its connection, but there may never have been one. Its children are the ones that work.
        if let Some(pid) = self.process("virtiofsd.pid") {
            let process = pidfd_open(pid, PidfdFlags::empty())?;
            let children = children(pid);
            if !has_ended(&process, DISCONNECT)? {
                for child in children {
                    kill(&child)?;
                }
                kill(&process)?;
            }
        }
        for file in ["memory", "qemu.pid", "virtiofsd.pid"] {
            drop(fs::remove_file(self.run.join(file)));
        }
        Ok(())
    }

    /// QEMU's process, if it lives and is no zombie.
    fn pid(&self) -> Option<Pid> {
        self.process("qemu.pid")
    }

    /// The process that a file names, if it is still one of this machine's.
    fn process(&self, file: &str) -> Option<Pid> {
        let text = fs::read_to_string(self.run.join(file)).ok()?;
        let pid = text.trim().parse().ok().and_then(Pid::from_raw)?;
        let command = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).ok()?;
        let own = self.run.as_os_str().as_encoded_bytes();
        command.windows(own.len()).any(|window| window == own).then_some(pid)
    }

    /// The control socket.
    pub(crate) fn qmp(&self) -> Result<Qmp> {
        Qmp::connect(&self.run.join("qmp"))
    }

    /// A machine whose directory is there and in which nothing runs yet.
    pub(crate) fn new(run: &Path) -> Self {
        Self { run: run.to_owned() }
    }

    /// The command line. A saved state belongs to the QEMU and the arguments that made it, so there is only one.
    pub(crate) fn command(&self, home: &Path, disk: &Path, memory: &str, bound: bool) -> Command {
        let path = |name: &str| self.run.join(name).display().to_string();
        let mut qemu = if bound {
            let mut bound = Command::new("setpriv");
            bound.args(["--pdeathsig", "KILL", QEMU]);
            bound
        } else {
            Command::new(QEMU)
        };
        qemu.args(["-M", "q35,memory-backend=memory,hpet=off,vmport=off,smm=off"])
            .args(["-accel", "tcg,thread=multi,tb-size=256", "-cpu", "Nehalem-v1", "-smp", "2", "-m", MEMORY])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-object", memory, "-kernel"])
            .arg(home.join("vmlinux"))
            .arg("-initrd")
            .arg(home.join("initrd"))
            .args(["-append", KERNEL])
            .args([
                "-drive",
                &format!(
                    "if=none,id=root,file={},format=raw,cache=unsafe,discard=unmap,file.locking=off",
                    disk.display()
                ),
            ])
            .args(["-device", "virtio-blk-pci,drive=root,addr=3"])
            .args(["-device", "virtio-rng-pci,addr=4"])
            .args(["-device", "virtio-serial-pci,addr=5,max_ports=8"])
            .args(["-serial", &format!("file:{}", path("console.log"))])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", path("qmp"))]);
        for port in 0..PORTS {
            let socket = path(&format!("agent{port}"));
            qemu.args(["-chardev", &format!("socket,id=agent{port},path={socket},server=on,wait=off")]).args(
                ["-device", &format!("virtserialport,chardev=agent{port},name=agent{port},nr={}", port + 1)],
            );
        }
        // A free place for the shared directory, which can't be there when the state is saved.
        qemu.args(["-device", "pcie-root-port,id=spare,addr=6,chassis=1"]);
        qemu
    }

    /// Starts QEMU; its number is noted for who comes later.
    pub(crate) fn spawn(&self, qemu: &mut Command) -> Result<Child> {
        for name in std::iter::once("qmp".to_owned()).chain((0..PORTS).map(|port| format!("agent{port}"))) {
            drop(fs::remove_file(self.run.join(name)));
        }
        let log = log_file(&self.run.join("qemu.log"))?;
        let process = qemu
            .env("TMPDIR", &self.run)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|error| format!("cannot start {QEMU}: {error}; scripts/node build installs it"))?;
        put(&self.run.join("qemu.pid"), &process.id().to_string())?;
        Ok(process)
    }

    /// Waits for the control socket of a QEMU that was just started.
    pub(crate) fn qmp_of(&self, process: &mut Child) -> Result<Qmp> {
        let until = Instant::now() + RESUME;
        loop {
            match self.qmp() {
                Ok(qmp) => return Ok(qmp),
                Err(error) => {
                    if let Some(status) = process.try_wait()? {
                        let log = fs::read_to_string(self.run.join("qemu.log")).unwrap_or_default();
                        return Err(format!("QEMU ended with {status}: {log}").into());
                    }
                    if Instant::now() > until {
                        return Err(format!("QEMU's control socket: {error}").into());
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
        }
    }

    fn resume(&self, state: &Path, process: &mut Child) -> Result {
        let mut qmp = self.qmp_of(process)?;
        qmp.command("migrate-set-capabilities", ignore_shared())?;
        qmp.command("migrate-incoming", json!({ "uri": format!("exec:cat '{}'", state.display()) }))?;
        let until = Instant::now() + RESUME;
        loop {
            let status = qmp.command("query-status", json!({}))?;
            match status["status"].as_str() {
                Some("running") => return Ok(()),
                // As it was when it was saved.
                Some("paused") => drop(qmp.command("cont", json!({}))?),
                _ if Instant::now() > until => {
                    return Err(format!("the machine did not resume: {status}").into());
                }
                _ => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    fn copy(&self, from: &Path) -> Result<PathBuf> {
        let to = self.run.join("memory");
        let status = Command::new("cp").arg("--sparse=always").args([from, &to]).status()?;
        if status.success() { Ok(to) } else { Err(format!("cp of {}: {status}", from.display()).into()) }
    }

    /// Starts the daemon that gives the guest a directory; it ends with its one connection.
    fn serve(&self, directory: &Path, bound: bool) -> Result {
        let program = VIRTIOFSD.iter().find(|path| Path::new(path).exists());
        let program = program.ok_or("virtiofsd is missing: scripts/node build installs it")?;
        let log = log_file(&self.run.join("virtiofsd.log"))?;
        let mut daemon = Command::new(if bound { "setpriv" } else { program });
        if bound {
            daemon.args(["--pdeathsig", "KILL", program]);
        }
        daemon
            .arg(format!("--socket-path={}", self.run.join("virtiofs").display()))
            .args([
                "-o",
                &format!("source={}", directory.display()),
                "-o",
                "cache=auto",
                "--thread-pool-size=2",
            ])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let process = daemon.spawn().map_err(|error| format!("cannot start {program}: {error}"))?;
        put(&self.run.join("virtiofsd.pid"), &process.id().to_string())
    }

    fn plug(&self) -> Result {
        let mut qmp = self.qmp()?;
        let path = self.run.join("virtiofs");
        let address = json!({ "type": "unix", "data": { "path": path.display().to_string() } });
        let backend = json!({ "type": "socket", "data": { "addr": address, "server": false } });
        qmp.command("chardev-add", json!({ "id": "share", "backend": backend }))?;
        qmp.command(
            "device_add",
            json!({ "driver": "vhost-user-fs-pci", "id": "share-device", "chardev": "share", "tag": "share", "bus": "spare" }),
        )?;
        Ok(())
    }

    /// The first command: sets the clock, which stood still, and mounts the shared directory.
    fn greet(&self, share: Option<&Path>) -> Result {
        let mut agent = self.agent(0)?;
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed()?.as_secs_f64();
        let mut script = format!("date --utc --set=@{now:.3} > /dev/null\n");
        if let Some(share) = share {
            let share = share.display();
            script.push_str(&format!(
                "mkdir -p '{share}'\nfor try in $(seq 200); do mount -t virtiofs -o ro share '{share}' 2> /dev/null && exit; sleep 0.05; done\n\
                 echo 'the shared directory did not appear'; exit 1"
            ));
        }
        agent.text(&script, RESUME)?;
        Ok(())
    }
}

/// The emulator.
const QEMU: &str = "qemu-system-x86_64";

/// Memory is not part of the saved state, for it is a file already.
pub(crate) fn ignore_shared() -> Value {
    json!({ "capabilities": [{ "capability": "x-ignore-shared", "state": true }] })
}

/// The memory of a machine that will be saved.
pub(crate) fn saved_memory(path: &Path) -> String {
    format!("memory-backend-file,id=memory,size={MEMORY},mem-path={},share=on", path.display())
}

/// Whether a process has ended within the limit. A zombie has, whoever its parent may be.
fn has_ended(process: &OwnedFd, limit: Duration) -> Result<bool> {
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    Ok(poll(&mut fds, Some(&limit.try_into()?))? == 1)
}

fn kill(process: &OwnedFd) -> Result {
    match pidfd_send_signal(process, Signal::KILL) {
        Ok(()) => {}
        Err(Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    if has_ended(process, QUIT)? { Ok(()) } else { Err("a killed process has not ended".into()) }
}

/// The children of a process; one that ends meanwhile is none.
fn children(of: Pid) -> Vec<OwnedFd> {
    let of = of.as_raw_nonzero();
    let listed = fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap_or_default();
    let pids = listed.split_whitespace().filter_map(|pid| pid.parse().ok().and_then(Pid::from_raw));
    pids.filter_map(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()).collect()
}

fn log_file(path: &Path) -> Result<fs::File> {
    Ok(fs::OpenOptions::new().write(true).create(true).truncate(true).open(path)?)
}

fn put(path: &Path, text: &str) -> Result {
    log_file(path)?.write_all(text.as_bytes())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of one's own, if there is what a machine takes.
    fn place(name: &str) -> Option<PathBuf> {
        let found = |path: &&str| Path::new(path).exists();
        if !VIRTIOFSD.iter().any(found) || !found(&"/usr/bin/qemu-system-x86_64") {
            eprintln!(
                "skipped: {name}: neither QEMU nor virtiofsd is here; scripts/node build installs them"
            );
            return None;
        }
        let place = std::env::temp_dir().join(format!("criox-machine-{name}-{}", std::process::id()));
        fs::create_dir_all(place.join("run")).unwrap();
        Some(place)
    }

    /// Command lines that name the directory.
    fn running(place: &Path) -> Vec<String> {
        let own = place.to_str().unwrap();
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let commands = entries.filter_map(|entry| fs::read_to_string(entry.path().join("cmdline")).ok());
        commands.filter(|command| command.contains(own)).map(|command| command.replace('\0', " ")).collect()
    }

    #[test]
    fn of_a_machine_whose_qemu_fails_nothing_stays() {
        let Some(place) = place("fails") else { return };
        let template = template::directory(&place);
        fs::create_dir_all(&template).unwrap();
        for file in ["memory", "state", "root.img"] {
            put(&template.join(file), "").unwrap();
        }
        // There is no kernel in this home.
        let options = Options { share: Some(place.clone()), bound: false };
        let error = Machine::up(&place, &place.join("run"), &options).unwrap_err();
        assert!(error.to_string().contains("QEMU ended"), "{error}");
        assert_eq!(running(&place), [""; 0]);
        assert!(!place.join("run/virtiofsd.pid").exists());
        template::clear(&place).unwrap();
    }

    #[test]
    fn what_shares_a_directory_ends_though_qemu_never_came_or_was_killed() {
        let Some(place) = place("killed") else { return };
        let machine = Machine { run: fs::canonicalize(place.join("run")).unwrap() };
        machine.serve(&place, false).unwrap();
        let until = Instant::now() + QUIT;
        while !machine.run.join("virtiofs").exists() {
            assert!(
                Instant::now() < until,
                "virtiofsd: {}",
                fs::read_to_string(machine.run.join("virtiofsd.log")).unwrap()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(!running(&place).is_empty());
        Machine::down(&machine.run).unwrap();
        assert_eq!(running(&place), [""; 0]);
        // There is nothing more to end, which is no error.
        Machine::down(&machine.run).unwrap();
        template::clear(&place).unwrap();
    }
}
