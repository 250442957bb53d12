//! Attached clients and terminals, with real containers.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use criox_monitor_api::proto::{self, failure, reply, request::Verb};
use criox_sys::socket;
use harness::{CRUN, Client, Pod, ready};

const LIMIT: Duration = Duration::from_secs(10);

/// An attached client: its ends.
struct Attached {
    lease: OwnedFd,
    stdin: Option<OwnedFd>,
    stdout: OwnedFd,
    stderr: Option<OwnedFd>,
}

fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
}

fn attach(pod: &mut Pod, stdin: bool) -> Attached {
    let (lease, theirs) = socket::pair().unwrap();
    let mut fds = vec![theirs];
    let (their_stdin, our_stdin) = pipe();
    if stdin {
        fds.push(their_stdin);
    }
    let ((stdout, their_stdout), (stderr, their_stderr)) = (pipe(), pipe());
    fds.extend([their_stdout, their_stderr]);
    let attach =
        proto::Attach { container_id: "c1".into(), stdin, stdout: true, stderr: true, terminal: false };
    let request = pod.client.send(Verb::Attach(attach), fds);
    let answer = pod.client.reply(request);
    assert!(matches!(answer, reply::Result::Done(_)), "{answer:?}");
    Attached { lease, stdin: stdin.then_some(our_stdin), stdout, stderr: Some(stderr) }
}

fn readable(fd: &OwnedFd, limit: Duration) -> bool {
    let limit = rustix::event::Timespec::try_from(limit).unwrap();
    let mut polled = [rustix::event::PollFd::new(fd, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut polled, Some(&limit)).unwrap() > 0
}

/// A stream until its end, or until it has `wanted`.
fn read(stream: &OwnedFd, wanted: &str) -> String {
    let (mut text, until) = (String::new(), Instant::now() + LIMIT);
    while wanted.is_empty() || !text.contains(wanted) {
        assert!(readable(stream, until.saturating_duration_since(Instant::now())), "in time: {text:?}");
        let mut bytes = vec![0; 40_000];
        let count = rustix::io::read(stream, &mut bytes[..]).unwrap();
        if count == 0 {
            break;
        }
        text.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
    }
    text
}

impl Attached {
    fn read(&self, wanted: &str) -> String {
        read(&self.stdout, wanted)
    }

    fn write(&self, bytes: &[u8]) {
        assert_eq!(rustix::io::write(self.stdin.as_ref().unwrap(), bytes).unwrap(), bytes.len());
    }

    /// As a daemon does whose client has gone.
    fn leave(self) {
        rustix::io::write(&self.lease, b"x").unwrap();
    }

    fn over(&self) -> bool {
        readable(&self.lease, LIMIT)
    }
}

fn with_stdin(pod: &mut Pod, script: &str, once: bool) {
    let create = proto::Create { stdin: true, stdin_once: once, ..pod.bundle("c1", script, |_| {}) };
    pod.create_with(create);
}

#[test]
fn every_attached_client_gets_both_streams_and_their_end() {
    if !ready(CRUN) {
        return;
    }
    let mut pod = Pod::new(CRUN);
    pod.create("c1", "sleep 0.2; echo out; echo err >&2; sleep 0.1; printf end");
    let clients = [attach(&mut pod, false), attach(&mut pod, false), attach(&mut pod, true)];
    drop(attach(&mut pod, true));
    attach(&mut pod, true).leave();
    let mut deaf = attach(&mut pod, false);
    deaf.stderr = None;
    pod.start("c1");
    for client in &clients {
        assert_eq!(client.read(""), "out\nend");
        assert_eq!(read(client.stderr.as_ref().unwrap(), ""), "err\n");
        assert!(client.over());
    }
    assert_eq!(deaf.read(""), "out\nend");
    pod.client.exit_of("c1");
    assert_eq!(pod.lines("c1").len(), 3);
    let late = proto::Attach { container_id: "c1".into(), stdout: true, ..Default::default() };
    let request = pod.client.send(Verb::Attach(late), vec![pipe().1, pipe().1]);
    let reply::Result::Failure(late) = pod.client.reply(request) else { panic!() };
    assert_eq!(late.kind(), failure::Kind::WrongState);
    pod.delete("c1");
}

#[test]
fn a_stdin_that_is_open_once_ends_with_its_client_but_not_with_the_daemon() {
    if !ready(CRUN) {
        return;
    }
    for leaves in [false, true] {
        let mut pod = Pod::new(CRUN);
        with_stdin(&mut pod, "cat; echo over", true);
        pod.start("c1");
        let (mut one, two) = (attach(&mut pod, true), attach(&mut pod, true));
        one.write(b"from one\n");
        two.read("from one\n");
        two.write(b"from two\n");
        one.read("from two\n");
        // Whoever closes all without a word has died.
        drop(two);
        std::thread::sleep(Duration::from_millis(100));
        one.write(b"last\n");
        assert!(!one.read("last\n").contains("over"));
        if leaves {
            let watcher = attach(&mut pod, false);
            one.leave();
            one = watcher;
        } else {
            one.stdin = None;
        }
        assert_eq!(one.read(""), "over\n");
        assert_eq!(pod.client.exit_of("c1").exit_code, 0);
        pod.delete("c1");
    }
}

#[test]
fn a_stdin_that_stays_open_is_closed_by_no_client() {
    if !ready(CRUN) {
        return;
    }
    let mut pod = Pod::new(CRUN);
    with_stdin(&mut pod, "read a; read b; echo got $a $b", false);
    pod.start("c1");
    let mut one = attach(&mut pod, true);
    one.write(b"1\n");
    one.stdin = None;
    std::thread::sleep(Duration::from_millis(100));
    one.leave();
    let two = attach(&mut pod, true);
    two.write(b"2\n");
    assert_eq!(two.read(""), "got 1 2\n");
    pod.delete("c1");
}

#[test]
fn what_a_client_sent_before_it_went_reaches_the_container() {
    if !ready(CRUN) {
        return;
    }
    let mut pod = Pod::new(CRUN);
    with_stdin(&mut pod, "sleep 1; tr -d -c x | tail -c 110000 | dd bs=1 2>&1 >/dev/null | head -n 1", true);
    pod.start("c1");
    let client = attach(&mut pod, true);
    // More than one pipe holds; the rest waits in the client's.
    let data = [b'x'; 55_000];
    client.write(&data);
    let until = Instant::now() + LIMIT;
    while rustix::io::ioctl_fionread(client.stdin.as_ref().unwrap()).unwrap() > 0 {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(5));
    }
    client.write(&data);
    client.leave();
    assert_eq!(pod.client.exit_of("c1").exit_code, 0);
    assert_eq!(pod.lines("c1"), ["stdout F 110000+0 records in"]);
    pod.delete("c1");
}

#[test]
fn a_client_that_reads_nothing_is_cut_off_and_the_log_goes_on() {
    if !ready(CRUN) {
        return;
    }
    let mut pod = Pod::new(CRUN);
    let script = "i=0; while [ $i -lt 30000 ]; do echo line $i; i=$((i+1)); done; sleep 0.5; echo last";
    pod.create("c1", script);
    let (stuck, reader) = (attach(&mut pod, false), attach(&mut pod, false));
    pod.start("c1");
    let begun = Instant::now();
    let seen = reader.read("last\n");
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert_eq!(seen.lines().count(), 30_001);
    assert_eq!(pod.client.exit_of("c1").exit_code, 0);
    assert_eq!(pod.lines("c1").len(), 30_001, "nothing is lost to the log");
    // What it was sent before is still there, and then the end.
    assert!(stuck.over() && stuck.read("").lines().count() < 30_000);
    pod.delete("c1");
}

#[test]
fn a_terminal_is_attached_to() {
    if !ready(CRUN) {
        return;
    }
    let mut pod = Pod::new(CRUN);
    let mut create = pod.bundle("c1", "stty -echo; echo ready; read a; echo got $a; read b", |config| {
        config["process"]["terminal"] = true.into();
    });
    create.terminal = true;
    create.stdin = true;
    create.stdin_once = true;
    pod.create_with(create);
    let wrong = proto::Attach { container_id: "c1".into(), stdout: true, ..Default::default() };
    let request = pod.client.send(Verb::Attach(wrong), vec![pipe().1, pipe().1]);
    assert!(matches!(pod.client.reply(request), reply::Result::Failure(_)));
    let mut join = || {
        let ((lease, their_lease), (ours, theirs)) = (socket::pair().unwrap(), socket::pair().unwrap());
        let attach = proto::Attach {
            container_id: "c1".into(),
            stdin: true,
            stdout: true,
            stderr: false,
            terminal: true,
        };
        let request = pod.client.send(Verb::Attach(attach), vec![their_lease, theirs]);
        assert!(matches!(pod.client.reply(request), reply::Result::Done(_)));
        (lease, ours)
    };
    let (gone, (lease, client)) = (join(), join());
    drop(gone);
    pod.start("c1");
    read(&client, "ready\r\n");
    rustix::io::write(&client, b"typed\n").unwrap();
    read(&client, "got typed\r\n");
    // A terminal has no end of its input.
    rustix::net::shutdown(&client, rustix::net::Shutdown::Write).unwrap();
    assert!(!readable(&lease, Duration::from_millis(200)));
    pod.client.done(Verb::Signal(proto::Signal { container_id: "c1".into(), signal: 9, all: true }));
    assert_eq!(read(&client, ""), "");
    assert!(readable(&lease, LIMIT));
    pod.delete("c1");
}

fn exec_with_terminal(pod: &Pod, script: &str) -> Verb {
    let Verb::Exec(mut exec) = pod.exec_verb("c1", script, 0) else { panic!() };
    let process = serde_json::json!({"cwd": "/", "terminal": true, "args": ["sh", "-c", script], "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}});
    (exec.terminal, exec.stdout, exec.process) = (true, false, process.to_string().into_bytes());
    Verb::Exec(exec)
}

#[test]
fn the_terminal_of_an_exec_hangs_up_when_the_daemon_dies() {
    for runtime in harness::runtimes() {
        if !ready(&runtime) {
            continue;
        }
        let mut pod = Pod::new(&runtime);
        pod.run("c1", "sleep 60");
        let before = pod.procs("c1").len();
        let mut daemon = Client::connect(&pod.path("monitor.sock"));
        let request = daemon.send(exec_with_terminal(&pod, "read a; stty size; cat"), Vec::new());
        assert!(matches!(daemon.reply(request), reply::Result::ExecStarted(_)));
        let master = daemon.take_fd();
        criox_sys::pty::set_size(&master, 91, 33).unwrap();
        rustix::io::write(&master, b"x\n").unwrap();
        let (mut said, until) = (String::new(), Instant::now() + LIMIT);
        while !said.contains("33 91") {
            assert!(readable(&master, until.saturating_duration_since(Instant::now())), "{said}");
            let mut bytes = [0; 1000];
            let count = rustix::io::read(&master, &mut bytes[..]).unwrap();
            said.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
        }
        assert!(pod.procs("c1").len() > before);
        drop((daemon, master));
        while pod.procs("c1").len() > before {
            assert!(Instant::now() < until, "{:?}", pod.procs("c1"));
            std::thread::sleep(Duration::from_millis(5));
        }
        pod.delete("c1");
    }
}
