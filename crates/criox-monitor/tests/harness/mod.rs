//! A monitor of its own for a test, and the daemon's side of the protocol.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking and tells why it can't run"
)]
#![allow(dead_code, reason = "each test program uses a part of it")]

pub(crate) mod journald;

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use criox_monitor_api::frame::{FrameReader, FrameWriter};
use criox_monitor_api::proto::{self, Message, Request, event, message, reply, request::Verb};
use criox_sys::cgroup::Cgroups;
use criox_sys::socket;

/// The one for tests that need any.
pub(crate) const CRUN: &str = "/usr/bin/crun";

/// Where `scripts/peers` puts what it fetches.
pub(crate) fn peers() -> PathBuf {
    std::env::var_os("CRIOX_PEERS")
        .map_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("peers"), PathBuf::from)
}

/// The installed runtimes, and the newest ones where `scripts/peers` has fetched them.
pub(crate) fn runtimes() -> Vec<String> {
    let newest = ["crun", "runc"].map(|name| peers().join("bin").join(name).display().to_string());
    [CRUN.to_owned(), "/usr/sbin/runc".to_owned()].into_iter().chain(newest).collect()
}

static NEXT: AtomicU32 = AtomicU32::new(0);

/// crun refuses a hybrid layout, so the monitor sees none. Its default root, which a restore needs, is the test's own.
const WITHOUT_UNIFIED: &str = "mount --make-rprivate / && { umount /sys/fs/cgroup/unified 2>/dev/null; mount -t tmpfs -o size=1m hidden /sys/fs/cgroup/unified 2>/dev/null; mkdir -p /run/crun; mount -t tmpfs -o size=4m crun /run/crun; exec \"$0\" \"$@\"; }";

/// `CRIOX_MONITOR` names another build to be tested.
pub(crate) struct Pod {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) monitor: Child,
    pub(crate) client: Client,
    pub(crate) runtime: String,
    pub(crate) group: String,
}

pub(crate) struct Client {
    socket: OwnedFd,
    reader: FrameReader,
    next: u64,
    pub(crate) events: Vec<proto::Event>,
}

/// A figure that was measured, for who reads the test's output.
pub(crate) fn tell(text: &str) {
    eprintln!("{text}");
}

/// A line of a process's status, in kilobytes.
pub(crate) fn memory(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Tells whether containers can run here.
pub(crate) fn ready(runtime: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    let found = Path::new(runtime).exists() && Path::new("/bin/busybox").exists();
    if !(root && found) {
        eprintln!("skipped: needs root, {runtime} and /bin/busybox (busybox-static)");
        let needed = std::env::var_os("CRIOX_TESTS_NEED_ROOT").is_some();
        assert!(!needed || runtime.contains("/peers/"), "the gate needs this test");
    }
    root && found
}

/// A runtime of our own: `script` sees its arguments, and `$real` is crun.
pub(crate) fn fake(pod: &Pod, script: &str) -> proto::Runtime {
    let path = pod.path("fake-runtime");
    let text = format!("#!/bin/sh\nreal={CRUN}\n{script}\n");
    #[expect(clippy::disallowed_methods, reason = "a test's own file")]
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let flavor = proto::runtime::Flavor::Other.into();
    proto::Runtime { path: path.display().to_string(), flavor, ..pod.runtime() }
}

pub(crate) fn failed(result: reply::Result) -> proto::Failure {
    match result {
        reply::Result::Failure(failure) => failure,
        other => panic!("{other:?}"),
    }
}

/// Waits until no process has `text` among its arguments.
pub(crate) fn gone(text: &str) {
    let until = Instant::now() + Duration::from_secs(5);
    let found = || {
        std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
            std::fs::read(entry.path().join("cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).replace('\0', " ").contains(text))
        })
    };
    while found() {
        assert!(Instant::now() < until, "{text} lives");
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Client {
    pub(crate) fn connect(path: &Path) -> Self {
        let socket = socket::connect(path).unwrap();
        let mut client = Self { socket, reader: FrameReader::new(), next: 0, events: Vec::new() };
        let hello = client.call(Verb::Hello(proto::Hello { versions: vec![1] }));
        assert!(matches!(hello, reply::Result::Hello(_)), "{hello:?}");
        client
    }

    pub(crate) fn send(&mut self, verb: Verb, fds: Vec<OwnedFd>) -> u64 {
        self.next += 1;
        let mut writer = FrameWriter::new();
        writer.push(&Request { id: self.next, verb: Some(verb) }, fds).unwrap();
        assert!(writer.write_to(&self.socket).unwrap());
        self.next
    }

    fn message(&mut self, until: Instant) -> Option<message::Kind> {
        loop {
            if let Some(message) = self.reader.next::<Message>().unwrap() {
                return message.kind;
            }
            let left = until.saturating_duration_since(Instant::now());
            let left = rustix::event::Timespec::try_from(left).unwrap();
            let socket = self.socket.as_fd();
            let mut polled = [rustix::event::PollFd::new(&socket, rustix::event::PollFlags::IN)];
            if rustix::event::poll(&mut polled, Some(&left)).unwrap() == 0 {
                return None;
            }
            assert_ne!(self.reader.read_from(&self.socket).unwrap(), 0, "the monitor hung up");
        }
    }

    pub(crate) fn reply(&mut self, id: u64) -> reply::Result {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            match self.message(until).expect("a reply in time") {
                message::Kind::Reply(reply) if reply.request_id == id => return reply.result.unwrap(),
                message::Kind::Event(event) => self.events.push(event),
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    /// The descriptor that came with the last reply.
    pub(crate) fn take_fd(&mut self) -> OwnedFd {
        self.reader.take_fds(1).unwrap().remove(0)
    }

    pub(crate) fn call(&mut self, verb: Verb) -> reply::Result {
        let id = self.send(verb, Vec::new());
        self.reply(id)
    }

    pub(crate) fn done(&mut self, verb: Verb) {
        let text = format!("{verb:?}");
        let result = self.call(verb);
        assert!(matches!(result, reply::Result::Done(_)), "{text}: {result:?}");
    }

    pub(crate) fn done_list(&mut self) {
        assert!(matches!(self.call(Verb::List(proto::List {})), reply::Result::List(_)));
    }

    pub(crate) fn exit_of(&mut self, id: &str) -> proto::ExitFacts {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            let exited = self.events.iter().find_map(|event| match &event.kind {
                Some(event::Kind::Exited(exited)) if exited.container_id == id => exited.exit,
                _ => None,
            });
            if let Some(exit) = exited {
                return exit;
            }
            match self.message(until).expect("an exit in time") {
                message::Kind::Event(event) => self.events.push(event),
                other => panic!("unexpected {other:?}"),
            }
        }
    }
}

impl Pod {
    pub(crate) fn new(runtime: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket_path = dir.path().join("monitor.sock");
        let listener = socket::bind_listen(&socket_path, 8).unwrap();
        let log = std::fs::OpenOptions::new().append(true).create(true).open(dir.path().join("monitor.log"));
        let monitor = Command::new("unshare")
            .args(["-m", "sh", "-c", WITHOUT_UNIFIED])
            .arg(std::env::var_os("CRIOX_MONITOR").unwrap_or(env!("CARGO_BIN_EXE_criox-monitor").into()))
            .args(["--sandbox-id", "pod", "--run-dir"])
            .arg(dir.path())
            .arg("--exit-dir")
            .arg(dir.path())
            .stdin(Stdio::from(listener))
            .stderr(log.unwrap())
            .process_group(0)
            .spawn()
            .unwrap();
        let group = format!("/criox-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let mut client = Client::connect(&socket_path);
        client.done(Verb::Subscribe(proto::Subscribe { after: 0 }));
        Self { dir, monitor, client, runtime: runtime.to_owned(), group }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn log(&self, id: &str) -> String {
        std::fs::read_to_string(self.path(&format!("{id}.clog"))).unwrap_or_default()
    }

    pub(crate) fn log_size(&self, id: &str) -> usize {
        let size = std::fs::metadata(self.path(&format!("{id}.clog"))).map_or(0, |meta| meta.len());
        usize::try_from(size).unwrap()
    }

    /// The text of the records, without times.
    pub(crate) fn lines(&self, id: &str) -> Vec<String> {
        self.log(id).split_terminator('\n').map(|line| line[31..].to_owned()).collect()
    }

    pub(crate) fn runtime(&self) -> proto::Runtime {
        proto::Runtime {
            path: self.runtime.clone(),
            root: self.path("state").display().to_string(),
            systemd_cgroup: false,
            env: vec!["PATH=/usr/sbin:/usr/bin:/sbin:/bin".into()],
            exec_cgroup_flag: true,
            no_pivot: false,
            flavor: flavor(&self.runtime).into(),
        }
    }

    /// A bundle whose process is `sh -c script`.
    pub(crate) fn bundle(
        &self,
        id: &str,
        script: &str,
        change: impl FnOnce(&mut serde_json::Value),
    ) -> proto::Create {
        let bundle = self.path(&format!("bundle-{id}"));
        let bin = bundle.join("rootfs/bin");
        std::fs::create_dir_all(&bin).unwrap();
        for name in ["proc", "dev", "sys", "tmp"] {
            std::fs::create_dir(bundle.join("rootfs").join(name)).unwrap();
        }
        std::fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
        for name in ["sh", "sleep", "echo", "cat", "setsid", "yes", "head", "tail", "dd", "stty", "tr", "ls"]
        {
            std::os::unix::fs::symlink("busybox", bin.join(name)).unwrap();
        }
        let namespaces =
            ["pid", "mount", "ipc", "uts", "network"].map(|kind| serde_json::json!({"type": kind}));
        let mut config = serde_json::json!({
            "ociVersion": "1.0.2",
            "process": {"cwd": "/", "args": ["sh", "-c", script], "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}},
            "root": {"path": "rootfs"},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"]},
            ],
            "linux": {"cgroupsPath": format!("{}/crio-{id}", self.group), "namespaces": namespaces, "resources": {}},
        });
        change(&mut config);
        let path = bundle.join("config.json");
        #[expect(clippy::disallowed_methods, reason = "a test's own file")]
        std::fs::write(path, config.to_string()).unwrap();
        proto::Create {
            container_id: id.into(),
            bundle: bundle.display().to_string(),
            runtime: Some(self.runtime()),
            log_path: self.path(&format!("{id}.clog")).display().to_string(),
            log_size_max: -1,
            timeout_ms: 20_000,
            ..Default::default()
        }
    }

    pub(crate) fn create(&mut self, id: &str, script: &str) -> proto::CreateReply {
        let create = self.bundle(id, script, |_| {});
        self.create_with(create)
    }

    pub(crate) fn create_with(&mut self, create: proto::Create) -> proto::CreateReply {
        match self.client.call(Verb::Create(create)) {
            reply::Result::Create(created) => created,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn start(&mut self, id: &str) {
        self.client.done(Verb::Start(proto::Start { container_id: id.into(), timeout_ms: 10_000 }));
    }

    pub(crate) fn run(&mut self, id: &str, script: &str) -> proto::CreateReply {
        let created = self.create(id, script);
        self.start(id);
        created
    }

    pub(crate) fn delete(&mut self, id: &str) {
        self.client.done(Verb::Delete(proto::Delete { container_id: id.into(), timeout_ms: 10_000 }));
    }

    /// Begins `sh -c script`; the number of the request and its output.
    pub(crate) fn begin_exec(&mut self, verb: Verb) -> (u64, OwnedFd) {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let request = self.client.send(verb, vec![write]);
        let started = self.client.reply(request);
        assert!(matches!(started, reply::Result::ExecStarted(_)), "{started:?}");
        (request, read)
    }

    /// Runs `sh -c script` to its end; the answer, its output and how long it took.
    pub(crate) fn exec(
        &mut self,
        id: &str,
        script: &str,
        timeout_ms: u64,
    ) -> (proto::ExecFinished, String, Duration) {
        let begun = Instant::now();
        let verb = self.exec_verb(id, script, timeout_ms);
        let (request, read) = self.begin_exec(verb);
        let reply::Result::ExecFinished(finished) = self.client.reply(request) else { panic!("no finish") };
        let took = begun.elapsed();
        let mut output = String::new();
        std::fs::File::from(read).read_to_string(&mut output).unwrap();
        (finished, output, took)
    }

    pub(crate) fn exec_verb(&self, id: &str, script: &str, timeout_ms: u64) -> Verb {
        let process = serde_json::json!({"cwd": "/", "args": ["sh", "-c", script], "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}});
        Verb::Exec(proto::Exec {
            container_id: id.into(),
            exec_id: format!("e{}", NEXT.fetch_add(1, Ordering::Relaxed)),
            process: process.to_string().into_bytes(),
            stdout: true,
            timeout_ms,
            start_timeout_ms: 10_000,
            ..Default::default()
        })
    }

    pub(crate) fn procs(&self, id: &str) -> Vec<i32> {
        Cgroups::detect().unwrap().procs(&format!("{}/crio-{id}", self.group)).unwrap()
    }
}

/// As the daemon probes it.
fn flavor(runtime: &str) -> proto::runtime::Flavor {
    let version = Command::new(runtime).arg("--version").output().unwrap().stdout;
    match version.get(..4) {
        Some(b"crun") => proto::runtime::Flavor::Crun,
        Some(b"runc") => proto::runtime::Flavor::Runc,
        _ => proto::runtime::Flavor::Other,
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let cgroups = Cgroups::detect().unwrap();
        drop(cgroups.kill_all(&self.group, Duration::from_secs(5)));
        drop(self.monitor.kill());
        drop(self.monitor.wait());
        let removed = cgroups.remove(&self.group, Duration::from_secs(5));
        if std::thread::panicking() {
            eprintln!("{}", std::fs::read_to_string(self.path("monitor.log")).unwrap_or_default());
        } else {
            removed.unwrap();
        }
    }
}
