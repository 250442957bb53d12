//! Containers that go on from a checkpoint: with a stand-in for the OCI runtime, and with CRIU where it can run.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and names the runtime"
)]

mod harness;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use criox_monitor_api::proto::{self, container_state, failure, reply, request::Verb};
use criox_sys::cgroup::Cgroups;
use criox_sys::socket;
use harness::{CRUN, Client, Pod, failed, fake, gone, peers, ready};

const LIMIT: Duration = Duration::from_secs(20);

/// Makes a `run` of a `restore`: the stand-in's container begins anew.
const RUNS: &str = "for arg; do shift; case \"$skip$arg\" in
    skip*) skip= ; continue ;;
    restore) arg=run ;;
    --file-locks) continue ;;
    --image-path|--work-path) skip=skip; continue ;;
esac; set -- \"$@\" \"$arg\"; done";

/// A container that is to be restored by a stand-in that does `before` first.
fn waiting(pod: &Pod, script: &str, before: &str) -> proto::Create {
    let work = pod.path("work");
    std::fs::create_dir_all(&work).unwrap();
    let create = pod.bundle("c1", script, |config| config["process"]["oomScoreAdj"] = 321.into());
    let text = format!(
        "work={}\ncase \"$*\" in *' restore '*) {before}\n{RUNS} ;; esac\nexec $real \"$@\"",
        work.display()
    );
    let from = proto::Restore {
        image_path: pod.path("images").display().to_string(),
        work_path: work.display().to_string(),
        cgroup: format!("{}/crio-c1", pod.group),
        ..Default::default()
    };
    proto::Create { runtime: Some(fake(pod, &text)), restore: Some(from), ..create }
}

fn start() -> Verb {
    Verb::Start(proto::Start { container_id: "c1".into(), timeout_ms: 20_000 })
}

fn restored(pod: &mut Pod) -> proto::CreateReply {
    match pod.client.call(start()) {
        reply::Result::Create(created) => created,
        other => panic!("{other:?}"),
    }
}

fn phase(pod: &mut Pod) -> (container_state::Phase, i32) {
    let reply::Result::List(list) = pod.client.call(Verb::List(proto::List {})) else { panic!() };
    (list.containers[0].phase(), list.containers[0].pid)
}

fn signal(pod: &mut Pod, signal: i32) {
    pod.client.done(Verb::Signal(proto::Signal { container_id: "c1".into(), signal, all: false }));
}

fn has_lines(pod: &Pod, id: &str, count: usize) {
    let until = Instant::now() + LIMIT;
    while pod.lines(id).len() < count {
        assert!(Instant::now() < until, "{:?}", pod.lines(id));
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_container_is_restored_when_it_is_started_and_not_before() {
    if !ready(CRUN) {
        return;
    }
    let mut pod = Pod::new(CRUN);
    let create =
        waiting(&pod, "echo out; echo err >&2; read line; echo $line; exit 7", "echo \"$@\" > $work/args");
    let work = create.restore.clone().unwrap();
    let created = pod.create_with(proto::Create { stdin: true, stdin_once: true, ..create });
    assert_eq!(created, proto::CreateReply::default());
    assert_eq!(phase(&mut pod), (container_state::Phase::Created, 0));
    pod.client.done(Verb::ReopenLog(proto::ReopenLog { container_id: "c1".into() }));
    assert!(!pod.path("work/args").exists() && pod.log("c1").is_empty());
    let created = restored(&mut pod);
    assert!(created.pid > 1 && created.start_time > 0 && created.cgroup.ends_with("/crio-c1"), "{created:?}");
    let score = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", created.pid)).unwrap();
    assert_eq!(score.trim(), "321");
    // Asked again by a daemon that was killed.
    assert_eq!(restored(&mut pod), created);
    assert_eq!(phase(&mut pod), (container_state::Phase::Running, created.pid));
    let args = std::fs::read_to_string(pod.path("work/args")).unwrap();
    for part in [
        format!(" --image-path {} --work-path {} c1\n", work.image_path, work.work_path),
        " restore --detach --file-locks --bundle ".to_owned(),
    ] {
        assert!(args.contains(&part), "{args}");
    }
    has_lines(&pod, "c1", 2);
    pod.client.done(Verb::CloseStdin(proto::CloseStdin { container_id: "c1".into() }));
    let exit = pod.client.exit_of("c1");
    assert_eq!(exit.exit_code, 7);
    assert_eq!(failed(pod.client.call(start())).kind(), failure::Kind::WrongState);
    pod.delete("c1");
}

#[test]
fn a_restore_that_fails_leaves_nothing_and_may_be_tried_again() {
    if !ready(CRUN) {
        return;
    }
    let mut pod = Pod::new(CRUN);
    // The first time it fails with a container that is there already.
    let before = "if [ ! -e $work/tried ]; then touch $work/tried; echo '(0) Error (criu/a.c:1): why' > $work/restore.log
        (RUNS; exec $real \"$@\"); echo no >&2; exit 1; fi";
    let create = waiting(&pod, "echo on; sleep 60", &before.replace("RUNS", RUNS));
    pod.create_with(create);
    let failed = failed(pod.client.call(start()));
    assert_eq!((failed.kind(), failed.message.as_str()), (failure::Kind::Runtime, "no (CRIU: why)"));
    assert!(!Cgroups::detect().unwrap().exists(&format!("{}/crio-c1", pod.group)));
    assert_eq!(phase(&mut pod), (container_state::Phase::Created, 0));
    let created = restored(&mut pod);
    assert!(created.pid > 1);
    // Nothing of what the runtime said, or of the first attempt.
    has_lines(&pod, "c1", 1);
    assert_eq!(pod.lines("c1"), ["stdout F on"]);
    signal(&mut pod, 9);
    assert_eq!(pod.client.exit_of("c1").exit_code, 137);
    pod.delete("c1");
}

#[test]
fn one_that_waits_ends_at_a_signal_or_is_deleted() {
    if !ready(CRUN) {
        return;
    }
    let mut pod = Pod::new(CRUN);
    let create = waiting(&pod, "sleep 60", "touch $work/ran");
    pod.create_with(create.clone());
    signal(&mut pod, 15);
    let exit = pod.client.exit_of("c1");
    assert_eq!((exit.exit_code, exit.signal), (143, 15));
    assert_eq!(failed(pod.client.call(start())).kind(), failure::Kind::WrongState);
    pod.delete("c1");
    pod.create_with(create);
    pod.delete("c1");
    pod.client.done(Verb::Shutdown(proto::Shutdown {}));
    assert!(!pod.path("work/ran").exists());
}

#[test]
fn a_restore_that_hangs_ends_at_its_deadline_a_signal_or_a_deletion() {
    if !ready(CRUN) {
        return;
    }
    let mut pod = Pod::new(CRUN);
    let mark = format!("4{}", std::process::id());
    let create = waiting(&pod, "sleep 60", &format!("sleep {mark}"));
    pod.create_with(create.clone());
    let short = Verb::Start(proto::Start { container_id: "c1".into(), timeout_ms: 300 });
    assert_eq!(failed(pod.client.call(short)).kind(), failure::Kind::RuntimeTimeout);
    gone(&format!("sleep {mark}"));
    let request = pod.client.send(start(), Vec::new());
    let again = pod.client.send(start(), Vec::new());
    signal(&mut pod, 9);
    for request in [request, again] {
        assert_eq!(failed(pod.client.reply(request)).kind(), failure::Kind::Runtime);
    }
    assert_eq!(pod.client.exit_of("c1").exit_code, 137);
    pod.delete("c1");
    pod.create_with(create);
    let request = pod.client.send(start(), Vec::new());
    let delete = proto::Delete { container_id: "c1".into(), timeout_ms: 10_000 };
    let deleted = pod.client.send(Verb::Delete(delete), Vec::new());
    assert_eq!(failed(pod.client.reply(request)).kind(), failure::Kind::Runtime);
    assert!(matches!(pod.client.reply(deleted), reply::Result::Done(_)));
    gone(&format!("sleep {mark}"));
}

/// Attaches to the terminal: the lease and the stream.
fn attach(pod: &mut Pod) -> (OwnedFd, OwnedFd) {
    let ((lease, their_lease), (stream, theirs)) = (socket::pair().unwrap(), socket::pair().unwrap());
    let attach =
        proto::Attach { container_id: "c1".into(), stdin: true, stdout: true, stderr: false, terminal: true };
    let request = pod.client.send(Verb::Attach(attach), vec![their_lease, theirs]);
    let answer = pod.client.reply(request);
    assert!(matches!(answer, reply::Result::Done(_)), "{answer:?}");
    (lease, stream)
}

fn reads(stream: &OwnedFd, wanted: &str) {
    let (mut text, until) = (String::new(), Instant::now() + LIMIT);
    while !text.contains(wanted) {
        let left = until.saturating_duration_since(Instant::now());
        let left = rustix::event::Timespec::try_from(left).unwrap();
        let mut polled = [rustix::event::PollFd::new(stream, rustix::event::PollFlags::IN)];
        assert!(rustix::event::poll(&mut polled, Some(&left)).unwrap() > 0, "in time: {text:?}");
        let mut bytes = vec![0; 4096];
        let count = rustix::io::read(stream, &mut bytes[..]).unwrap();
        assert_ne!(count, 0, "{text:?}");
        text.push_str(&String::from_utf8_lossy(&bytes[..count]));
    }
}

#[test]
fn what_is_typed_before_the_restore_reaches_its_terminal() {
    if !ready(CRUN) {
        return;
    }
    let mut pod = Pod::new(CRUN);
    let create = waiting(&pod, "read line; echo got $line; sleep 60", "");
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(pod.path("bundle-c1/config.json")).unwrap()).unwrap();
    config["process"]["terminal"] = true.into();
    #[expect(clippy::disallowed_methods, reason = "a test's own file")]
    std::fs::write(pod.path("bundle-c1/config.json"), config.to_string()).unwrap();
    pod.create_with(proto::Create { terminal: true, stdin: true, ..create });
    let (_lease, stream) = attach(&mut pod);
    rustix::io::write(&stream, b"early\n").unwrap();
    restored(&mut pod);
    reads(&stream, "got early");
    pod.delete("c1");
}

/// Each runtime that CRIU works for here, with the runtime's root directory.
fn each_with_criu(test: impl Fn(Pod, proto::Runtime)) {
    if criox_sys::cgroup::both_versions().unwrap_or(true) {
        eprintln!("skipped: cgroup v1 and v2 are mounted at once, and CRIU would copy all of v2's groups");
        return;
    }
    let bin = peers().join("bin");
    let path = format!("PATH={}:/usr/sbin:/usr/bin:/sbin:/bin", bin.display());
    let check = Command::new("criu").arg("check").env("PATH", &path["PATH=".len()..]).output();
    if !check.as_ref().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: CRIU does not work here: {check:?}");
        return;
    }
    for name in ["crun", "runc"] {
        let runtime = bin.join(name).display().to_string();
        if !ready(&runtime) {
            continue;
        }
        eprintln!("with {runtime}");
        let pod = Pod::new(&runtime);
        let mut call = pod.runtime();
        call.env = vec![path.clone()];
        if name == "crun" {
            // Its dump names the default root's empty directory, whatever its root is, and its restore asks for that
            // of its root.
            call.root = "/run/crun".into();
        }
        test(pod, call);
    }
}

/// Checkpoints c1 and ends it; where the images are.
fn checkpointed(pod: &mut Pod, id: &str) -> (PathBuf, PathBuf) {
    let (images, work) = (pod.path("images"), pod.path("dump"));
    for dir in [&images, &work] {
        std::fs::create_dir(dir).unwrap();
    }
    let (lease, theirs) = socket::pair().unwrap();
    let freeze = proto::Freeze { container_ids: vec![id.into()], timeout_ms: 5000 };
    let request = pod.client.send(Verb::Freeze(freeze), vec![theirs]);
    assert!(matches!(pod.client.reply(request), reply::Result::Done(_)));
    // All that it has written is in the log.
    std::thread::sleep(Duration::from_millis(300));
    let before = pod.log_size(id);
    let begun = Instant::now();
    pod.client.done(Verb::Checkpoint(proto::Checkpoint {
        container_id: id.into(),
        image_path: images.display().to_string(),
        work_path: work.display().to_string(),
        timeout_ms: 60_000,
    }));
    eprintln!("checkpoint in {:?}", begun.elapsed());
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(pod.log_size(id), before, "it ran while it was checkpointed");
    drop(lease);
    // It lives on.
    let until = Instant::now() + LIMIT;
    while pod.log_size(id) == before {
        assert!(Instant::now() < until, "it does not run on");
        std::thread::sleep(Duration::from_millis(10));
    }
    pod.client.done(Verb::Signal(proto::Signal { container_id: id.into(), signal: 9, all: true }));
    pod.client.exit_of(id);
    pod.delete(id);
    pod.client.events.clear();
    (images, work)
}

fn numbers(pod: &Pod, id: &str) -> Vec<u32> {
    pod.lines(id).iter().filter_map(|line| line.rsplit(' ').next()?.trim().parse().ok()).collect()
}

/// CRIU gives each process the score of its checkpoint, which may be another's or, from elsewhere, one that no container
/// gets.
#[test]
fn a_restored_container_has_the_oom_score_that_is_asked_for_and_no_process_less() {
    if !ready(CRUN) {
        return;
    }
    let mut pod = Pod::new(CRUN);
    let create = waiting(&pod, "sleep 60 & sleep 61 & sleep 62 & wait", "");
    // As CRIU does it: the first process and its first child as at the checkpoint, one that has chosen a higher score, and
    // one below all.
    let text = format!(
        "case \"$*\" in *' restore '*) {RUNS}
        \"$real\" \"$@\" || exit
        for arg; do case \"$before\" in --pid-file) first=$(cat \"$arg\") ;; esac; before=$arg; done
        until [ $(wc -w < /proc/$first/task/$first/children) = 3 ]
        do sleep 0.01; done
        set -- $(cat /proc/$first/task/$first/children)
        for process in $first:500 $1:500 $2:800 $3:100; do
            echo ${{process#*:}} > /proc/${{process%:*}}/oom_score_adj
        done
        exit 0 ;; esac
        exec $real \"$@\""
    );
    pod.create_with(proto::Create { runtime: Some(fake(&pod, &text)), ..create });
    let first = restored(&mut pod).pid;
    let score = |pid: &str| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
        text.trim().parse::<i32>().unwrap()
    };
    let children = std::fs::read_to_string(format!("/proc/{first}/task/{first}/children")).unwrap();
    let scores: Vec<i32> = children.split_whitespace().map(score).collect();
    assert_eq!((score(&first.to_string()), scores), (321, vec![321, 800, 321]));
    pod.delete("c1");
}

/// Only the first process is where the runtime puts it.
#[test]
fn no_process_of_a_checkpoint_runs_outside_of_the_container_s_group() {
    if !ready(CRUN) {
        return;
    }
    let mut pod = Pod::new(CRUN);
    let create = waiting(&pod, "sleep 4242 & wait", "");
    let cgroups = Cgroups::detect().unwrap();
    let other = format!("{}/other", pod.group);
    cgroups.create(&other, &["memory"]).unwrap();
    let text = format!(
        "case \"$*\" in *' restore '*) {RUNS}
        \"$real\" \"$@\" || exit
        for arg; do case \"$before\" in --pid-file) first=$(cat \"$arg\") ;; esac; before=$arg; done
        until [ $(wc -w < /proc/$first/task/$first/children) = 1 ]; do sleep 0.01; done
        cat /proc/$first/task/$first/children > {}/cgroup.procs
        exit 0 ;; esac
        exec $real \"$@\"",
        cgroups.dir("memory", &other).unwrap().display()
    );
    pod.create_with(proto::Create { runtime: Some(fake(&pod, &text)), ..create });
    let refused = failed(pod.client.call(start()));
    assert!(refused.message.contains("outside of the container's cgroup"), "{refused:?}");
    gone("4242");
    assert_eq!(phase(&mut pod), (container_state::Phase::Created, 0));
    pod.delete("c1");
}

/// What a test changes in a bundle's configuration.
type Change = Box<dyn FnOnce(&mut serde_json::Value)>;

/// Lets a container count, checkpoints and ends it, and lets it count on.
fn counts_on(pod: &mut Pod, runtime: proto::Runtime, terminal: bool, change: Change) {
    let id = "c1";
    let script = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done";
    let create = pod.bundle(id, script, |config| {
        config["process"]["oomScoreAdj"] = 321.into();
        config["process"]["terminal"] = terminal.into();
        config["linux"]["maskedPaths"] = serde_json::json!(["/proc/acpi", "/proc/keys", "/sys/firmware"]);
        change(config);
    });
    let create = proto::Create { runtime: Some(runtime), terminal, ..create };
    pod.create_with(create.clone());
    pod.start(id);
    has_lines(pod, id, 10);
    let (images, work) = checkpointed(pod, id);
    let before = numbers(pod, id);
    // The moment of the checkpoint is that of the freeze: what was counted later is counted again.
    let log_path = pod.path("again.clog").display().to_string();
    let from = proto::Restore {
        image_path: images.display().to_string(),
        work_path: work.display().to_string(),
        cgroup: format!("{}/crio-{id}", pod.group),
        ..Default::default()
    };
    pod.create_with(proto::Create { restore: Some(from), log_path, ..create });
    let begun = Instant::now();
    let started = pod.client.call(Verb::Start(proto::Start { container_id: id.into(), timeout_ms: 60_000 }));
    let reply::Result::Create(created) = started else { panic!("{started:?}") };
    eprintln!("restore in {:?}", begun.elapsed());
    assert!(created.cgroup.ends_with(&format!("/crio-{id}")), "{created:?}");
    has_lines(pod, "again", 10);
    let after = numbers(pod, "again");
    assert!(after[0] > 5 && after[0] <= *before.last().unwrap(), "{before:?} {after:?}");
    assert!(after.windows(2).all(|pair| pair[1] == pair[0] + 1), "{after:?}");
    for pid in pod.procs(id) {
        let score = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj"));
        assert!(score.as_ref().map_or(true, |score| score.trim() == "321"), "{score:?}");
    }
    let (finished, output, _) = pod.exec(id, "echo in it", 0);
    assert_eq!((finished.exit_code, output.as_str()), (0, "in it\n"));
    pod.client.done(Verb::Signal(proto::Signal { container_id: id.into(), signal: 9, all: true }));
    assert_eq!(pod.client.exit_of(id).exit_code, 137);
    pod.delete(id);
}

#[test]
fn a_container_counts_on_after_its_restore() {
    each_with_criu(|mut pod, runtime| counts_on(&mut pod, runtime, false, Box::new(|_| {})));
}

#[test]
fn a_container_with_a_terminal_counts_on_after_its_restore() {
    each_with_criu(|mut pod, runtime| counts_on(&mut pod, runtime, true, Box::new(|_| {})));
}

/// With the pod's namespaces, files and mounts, as the daemon makes them.
#[test]
fn a_container_of_a_pod_counts_on_after_its_restore() {
    each_with_criu(|mut pod, runtime| {
        let dir = pod.dir.path().to_owned();
        let path = move |name: &str| dir.join(name).display().to_string();
        for name in ["net", "uts", "ipc", "hosts"] {
            #[expect(clippy::disallowed_methods, reason = "a test's own file")]
            std::fs::write(path(name), "").unwrap();
        }
        std::fs::create_dir(path("shm")).unwrap();
        std::fs::create_dir(path("volume")).unwrap();
        pod.client.done(Verb::PinNamespaces(proto::PinNamespaces {
            network: path("net"),
            uts: path("uts"),
            ipc: path("ipc"),
            hostname: "my-pod".into(),
            loopback_up: true,
            ..Default::default()
        }));
        let change = move |config: &mut serde_json::Value| {
            config["linux"]["namespaces"] = serde_json::json!([
                {"type": "pid"}, {"type": "mount"}, {"type": "network", "path": path("net")},
                {"type": "uts", "path": path("uts")}, {"type": "ipc", "path": path("ipc")},
            ]);
            let safe = ["nosuid", "noexec", "nodev"];
            let mounts = config["mounts"].as_array_mut().unwrap();
            mounts.extend([
                serde_json::json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]}),
                serde_json::json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": safe}),
                serde_json::json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}),
                serde_json::json!({"destination": "/dev/shm", "type": "bind", "source": path("shm"), "options": ["rw", "bind"]}),
                serde_json::json!({"destination": "/etc/hosts", "type": "bind", "source": path("hosts"), "options": ["rw", "bind"]}),
                serde_json::json!({"destination": "/data", "type": "bind", "source": path("volume"), "options": ["rw", "rbind", "rprivate"]}),
            ]);
        };
        counts_on(&mut pod, runtime, false, Box::new(change));
    });
}

/// What is executed in a container is no part of it that is restored.
#[test]
fn an_exec_that_runs_is_not_in_the_way_of_a_checkpoint() {
    each_with_criu(|mut pod, runtime| {
        let id = "c1";
        let create = pod.bundle(id, "while :; do echo x; sleep 0.05; done", |_| {});
        pod.create_with(proto::Create { runtime: Some(runtime), ..create });
        pod.start(id);
        let mut other = Client::connect(&pod.path("monitor.sock"));
        let devnull = std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap();
        let request = other.send(pod.exec_verb(id, "sleep 60", 0), vec![devnull.into()]);
        assert!(matches!(other.reply(request), reply::Result::ExecStarted(_)));
        checkpointed(&mut pod, id);
        assert!(matches!(other.reply(request), reply::Result::ExecFinished(f) if f.exit_code == 137));
    });
}

/// CRIU has code and traps of its own in the container's processes. Whoever calls a checkpoint off, at whatever moment,
/// they must not stay.
#[test]
fn a_container_survives_a_checkpoint_that_is_called_off() {
    each_with_criu(|mut pod, runtime| {
        let id = "c1";
        let create = pod.bundle(id, "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done", |_| {});
        pod.create_with(proto::Create { runtime: Some(runtime), ..create });
        pod.start(id);
        let mut called_off = 0;
        for step in 0..8 {
            let images = pod.path(&format!("images-{step}"));
            std::fs::create_dir(&images).unwrap();
            let (lease, theirs) = socket::pair().unwrap();
            let freeze = proto::Freeze { container_ids: vec![id.into()], timeout_ms: 5000 };
            let request = pod.client.send(Verb::Freeze(freeze), vec![theirs]);
            assert!(matches!(pod.client.reply(request), reply::Result::Done(_)));
            let checkpoint = proto::Checkpoint {
                container_id: id.into(),
                image_path: images.display().to_string(),
                work_path: images.display().to_string(),
                timeout_ms: 20_000,
            };
            let request = pod.client.send(Verb::Checkpoint(checkpoint), Vec::new());
            std::thread::sleep(Duration::from_millis(20 + 70 * step));
            let begun = Instant::now();
            drop(lease);
            called_off += usize::from(matches!(pod.client.reply(request), reply::Result::Failure(_)));
            let lines = pod.lines(id).len();
            has_lines(&pod, id, lines + 10);
            assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        }
        let counted = numbers(&pod, id);
        assert!(counted.windows(2).all(|pair| pair[1] == pair[0] + 1), "{counted:?}");
        eprintln!("called off {called_off} times");
        assert!(called_off > 2);
        pod.delete(id);
    });
}
