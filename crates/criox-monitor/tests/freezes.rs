//! Containers that are held still, and checkpoints by a stand-in for the OCI runtime.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use criox_monitor_api::proto::{self, failure, reply, request::Verb};
use criox_sys::cgroup::{Cgroups, FreezeState};
use criox_sys::socket;
use harness::{CRUN, Client, Pod, failed, fake, gone, ready};

/// Longer than a counting container is silent.
const WHILE: Duration = Duration::from_millis(200);
const COUNTS: &str = "while :; do echo x; sleep 0.01; done";

fn freeze(ids: &[&str]) -> Verb {
    Verb::Freeze(proto::Freeze {
        container_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        timeout_ms: 5000,
    })
}

/// Asks for a freeze; its lease and the answer.
fn try_freeze(pod: &mut Pod, ids: &[&str]) -> (OwnedFd, reply::Result) {
    let (lease, theirs) = socket::pair().unwrap();
    let request = pod.client.send(freeze(ids), vec![theirs]);
    (lease, pod.client.reply(request))
}

fn frozen(pod: &mut Pod, ids: &[&str]) -> OwnedFd {
    let (lease, answer) = try_freeze(pod, ids);
    assert!(matches!(answer, reply::Result::Done(_)), "{answer:?}");
    for id in ids {
        assert_eq!(state(pod, id), FreezeState::Frozen);
    }
    lease
}

fn thaw(ids: &[&str]) -> Verb {
    Verb::Thaw(proto::Thaw { container_ids: ids.iter().map(|id| (*id).to_owned()).collect() })
}

fn state(pod: &Pod, id: &str) -> FreezeState {
    Cgroups::detect().unwrap().freeze_state(&format!("{}/crio-{id}", pod.group)).unwrap()
}

fn stands(pod: &Pod, id: &str) -> bool {
    // What was in the pipe.
    std::thread::sleep(WHILE / 4);
    let before = pod.log_size(id);
    std::thread::sleep(WHILE);
    pod.log_size(id) == before
}

/// Waits until a container runs on.
fn runs(pod: &Pod, id: &str) {
    let (before, until) = (pod.log_size(id), Instant::now() + Duration::from_secs(5));
    while pod.log_size(id) == before {
        assert!(Instant::now() < until, "{id} does not run: {:?}", state(pod, id));
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(state(pod, id), FreezeState::Thawed);
}

fn over(lease: &OwnedFd) -> bool {
    let limit = rustix::event::Timespec { tv_sec: 5, tv_nsec: 0 };
    let mut polled = [rustix::event::PollFd::new(lease, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut polled, Some(&limit)).unwrap() > 0
}

fn checkpoint(pod: &Pod, id: &str, timeout_ms: u32) -> Verb {
    let path = pod.path("images").display().to_string();
    std::fs::create_dir_all(&path).unwrap();
    let (image_path, work_path) = (path.clone(), path);
    Verb::Checkpoint(proto::Checkpoint { container_id: id.into(), image_path, work_path, timeout_ms })
}

/// A pod with counting containers, whose runtime does `script` for a checkpoint; `$freezer` is the file of c1's state.
fn pod(ids: &[&str], script: &str) -> Option<Pod> {
    if !ready(CRUN) {
        return None;
    }
    let mut pod = Pod::new(CRUN);
    let cgroups = Cgroups::detect().unwrap();
    let (file, thawed) = if cgroups.is_v2() { ("cgroup.freeze", "0") } else { ("freezer.state", "THAWED") };
    let freezer = cgroups.dir("freezer", &format!("{}/crio-c1", pod.group)).unwrap().join(file);
    let script = format!(
        "freezer={}; thawed={thawed}; work={}\ncase \"$*\" in *' checkpoint '*) {script} ;; esac\nexec $real \"$@\"",
        freezer.display(),
        pod.path("images").display()
    );
    for id in ids {
        let create = pod.bundle(id, COUNTS, |_| {});
        let create = proto::Create { runtime: Some(fake(&pod, &script)), ..create };
        pod.create_with(create);
        pod.start(id);
        runs(&pod, id);
    }
    Some(pod)
}

fn kill(pod: &mut Pod, id: &str) {
    pod.client.done(Verb::Signal(proto::Signal { container_id: id.into(), signal: 9, all: true }));
}

#[test]
fn frozen_containers_stand_still_until_they_are_thawed() {
    let Some(mut pod) = pod(&["c1", "c2"], "exit 1") else { return };
    let lease = frozen(&mut pod, &["c1", "c2"]);
    assert!(stands(&pod, "c1") && stands(&pod, "c2"));
    // It belongs to somebody.
    let (_other, answer) = try_freeze(&mut pod, &["c2"]);
    assert_eq!(failed(answer).kind(), failure::Kind::WrongState);
    pod.client.done(thaw(&["c1"]));
    runs(&pod, "c1");
    assert!(stands(&pod, "c2"));
    pod.client.done(thaw(&[]));
    runs(&pod, "c2");
    assert!(over(&lease));
    pod.client.done(thaw(&["c1", "c2", "unknown"]));
    // And again, ended by its holder.
    let lease = frozen(&mut pod, &["c1", "c2"]);
    assert!(stands(&pod, "c2"));
    drop(lease);
    runs(&pod, "c1");
    runs(&pod, "c2");
}

#[test]
fn an_exec_waits_for_the_thaw() {
    let Some(mut pod) = pod(&["c1"], "exit 1") else { return };
    let devnull = || std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap().into();
    let lease = frozen(&mut pod, &["c1"]);
    let verb = pod.exec_verb("c1", "exit 3", 0);
    let waits = pod.client.send(verb, vec![devnull()]);
    let Verb::Exec(exec) = pod.exec_verb("c1", "exit 4", 0) else { panic!() };
    let late = pod.client.send(Verb::Exec(proto::Exec { start_timeout_ms: 100, ..exec }), vec![devnull()]);
    assert_eq!(failed(pod.client.reply(late)).kind(), failure::Kind::RuntimeTimeout);
    let Verb::Exec(exec) = pod.exec_verb("c1", "exit 5", 0) else { panic!() };
    let exec_id = exec.exec_id.clone();
    let ended = pod.client.send(Verb::Exec(exec), vec![devnull()]);
    let end =
        pod.client.send(Verb::EndExec(proto::EndExec { container_id: "c1".into(), exec_id }), Vec::new());
    assert_eq!(failed(pod.client.reply(ended)).kind(), failure::Kind::WrongState);
    assert!(matches!(pod.client.reply(end), reply::Result::Done(_)));
    drop(lease);
    assert!(matches!(pod.client.reply(waits), reply::Result::ExecStarted(_)));
    assert!(matches!(pod.client.reply(waits), reply::Result::ExecFinished(f) if f.exit_code == 3));
    let (finished, ..) = pod.exec("c1", "exit 6", 0);
    assert_eq!(finished.exit_code, 6);
}

#[test]
fn all_are_frozen_or_none() {
    let Some(mut pod) = pod(&["c1"], "exit 1") else { return };
    let (_lease, answer) = try_freeze(&mut pod, &["c1", "unknown"]);
    assert_eq!(failed(answer).kind(), failure::Kind::NotFound);
    runs(&pod, "c1");
    pod.run("c2", "exit 0");
    pod.client.exit_of("c2");
    let (lease, answer) = try_freeze(&mut pod, &["c1", "c2"]);
    assert_eq!(failed(answer).kind(), failure::Kind::WrongState);
    runs(&pod, "c1");
    assert!(over(&lease));
}

#[test]
fn a_frozen_container_dies_when_it_is_signalled_or_deleted() {
    let Some(mut pod) = pod(&["c1", "c2"], "exit 1") else { return };
    let lease = frozen(&mut pod, &["c1", "c2"]);
    kill(&mut pod, "c1");
    assert_eq!(pod.client.exit_of("c1").exit_code, 137);
    assert!(stands(&pod, "c2"));
    pod.delete("c2");
    assert!(over(&lease));
    pod.delete("c1");
}

#[test]
fn a_monitor_that_is_asked_to_end_leaves_nothing_frozen() {
    let Some(mut pod) = pod(&["c1"], "exit 1") else { return };
    let lease = frozen(&mut pod, &["c1"]);
    // It outlives this one; the container is thawed as ever.
    let monitor = rustix::process::Pid::from_raw(i32::try_from(pod.monitor.id()).unwrap()).unwrap();
    rustix::process::kill_process(monitor, rustix::process::Signal::TERM).unwrap();
    pod.client.done_list();
    drop(lease);
    runs(&pod, "c1");
}

#[test]
fn a_checkpoint_is_made_of_frozen_containers_only_and_leaves_them_frozen() {
    let Some(mut pod) = pod(&["c1"], "echo \"$@\" > $work/args; exit 0") else { return };
    let verb = checkpoint(&pod, "c1", 5000);
    assert_eq!(failed(pod.client.call(verb)).kind(), failure::Kind::WrongState);
    let _lease = frozen(&mut pod, &["c1"]);
    for _ in 0..2 {
        let verb = checkpoint(&pod, "c1", 5000);
        pod.client.done(verb);
        assert!(stands(&pod, "c1"));
    }
    let args = std::fs::read_to_string(pod.path("images/args")).unwrap();
    let path = pod.path("images").display().to_string();
    let expected =
        format!("checkpoint --image-path {path} --work-path {path} --leave-running --file-locks c1\n");
    assert!(args.ends_with(&expected), "{args}");
    pod.client.done(thaw(&["c1"]));
    runs(&pod, "c1");
}

#[test]
fn a_checkpoint_that_fails_tells_crius_reason_and_thaws() {
    let line = "(00.1) Error (criu/sk-inet.c:191): inet: Connected TCP socket";
    let Some(mut pod) = pod(&["c1", "c2"], &format!("echo '{line}' > $work/dump.log; echo no >&2; exit 1"))
    else {
        return;
    };
    let _lease = frozen(&mut pod, &["c1", "c2"]);
    let verb = checkpoint(&pod, "c1", 5000);
    let failed = failed(pod.client.call(verb));
    assert_eq!(failed.kind(), failure::Kind::Runtime);
    assert_eq!(failed.message, "no (CRIU: inet: Connected TCP socket)");
    runs(&pod, "c1");
    assert!(stands(&pod, "c2"));
}

#[test]
fn a_checkpoint_after_which_the_container_ran_does_not_count() {
    let Some(mut pod) = pod(&["c1"], "echo $thawed > $freezer; exit 0") else { return };
    let lease = frozen(&mut pod, &["c1"]);
    let verb = checkpoint(&pod, "c1", 5000);
    assert_eq!(failed(pod.client.call(verb)).kind(), failure::Kind::Runtime);
    assert!(over(&lease));
    runs(&pod, "c1");
}

#[test]
fn a_checkpoint_that_hangs_is_killed_at_its_deadline_and_the_container_runs() {
    let mark = format!("8{}", std::process::id());
    // CRIU lets the freezer go meanwhile; one part of it has left the runtime's tree.
    let script =
        format!("(setsid sh -c 'sleep {mark} & sleep {mark}' &); echo $thawed > $freezer; sleep {mark}");
    let Some(mut pod) = pod(&["c1"], &script) else { return };
    let _lease = frozen(&mut pod, &["c1"]);
    let begun = Instant::now();
    let verb = checkpoint(&pod, "c1", 300);
    let request = pod.client.send(verb, Vec::new());
    // Nothing else waits for it.
    pod.client.done_list();
    let failed = failed(pod.client.reply(request));
    assert_eq!(failed.kind(), failure::Kind::RuntimeTimeout);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    runs(&pod, "c1");
    gone(&format!("sleep {mark}"));
}

#[test]
fn the_holder_of_a_lease_is_killed_in_the_middle_of_a_checkpoint_and_the_container_runs() {
    let mark = format!("9{}", std::process::id());
    let Some(mut pod) = pod(&["c1", "c2"], &format!("sleep {mark}")) else { return };
    let (lease, theirs) = socket::pair().unwrap();
    // The lease is this one's alone, as that of a daemon.
    let mut holder = Command::new("sleep").arg("1000").stdin(Stdio::from(lease)).spawn().unwrap();
    let request = pod.client.send(freeze(&["c1", "c2"]), vec![theirs]);
    assert!(matches!(pod.client.reply(request), reply::Result::Done(_)));
    let verb = checkpoint(&pod, "c1", 60_000);
    let request = pod.client.send(verb, Vec::new());
    assert!(stands(&pod, "c1") && stands(&pod, "c2"));
    holder.kill().unwrap();
    holder.wait().unwrap();
    let killed = Instant::now();
    runs(&pod, "c1");
    runs(&pod, "c2");
    assert_eq!(failed(pod.client.reply(request)).kind(), failure::Kind::WrongState);
    assert!(killed.elapsed() < Duration::from_secs(5), "{:?}", killed.elapsed());
    gone(&format!("sleep {mark}"));
    // Nothing of it is in the way of the next one.
    drop(frozen(&mut pod, &["c1", "c2"]));
    runs(&pod, "c1");
}

/// Killed in the middle of its work, CRIU may take the container with it.
#[test]
fn a_checkpoint_that_nobody_wants_any_more_may_end_by_itself() {
    let Some(mut pod) = pod(&["c1"], "sleep 1; touch $work/ended; exit 0") else { return };
    let lease = frozen(&mut pod, &["c1"]);
    let verb = checkpoint(&pod, "c1", 60_000);
    let request = pod.client.send(verb, Vec::new());
    pod.client.done_list();
    drop(lease);
    runs(&pod, "c1");
    assert_eq!(failed(pod.client.reply(request)).kind(), failure::Kind::WrongState);
    assert!(pod.path("images/ended").exists());
}

#[test]
fn a_signal_ends_a_checkpoint_that_is_at_work() {
    let mark = format!("5{}", std::process::id());
    let Some(mut pod) = pod(&["c1"], &format!("sleep {mark}")) else { return };
    let _lease = frozen(&mut pod, &["c1"]);
    let verb = checkpoint(&pod, "c1", 60_000);
    let mut other = Client::connect(&pod.path("monitor.sock"));
    let request = other.send(verb, Vec::new());
    pod.client.done_list();
    kill(&mut pod, "c1");
    assert_eq!(pod.client.exit_of("c1").exit_code, 137);
    assert!(matches!(other.reply(request), reply::Result::Failure(_)));
    gone(&format!("sleep {mark}"));
    pod.delete("c1");
}
