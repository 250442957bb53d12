//! What has an end: runtimes that hang, commands nobody waits for, logs of a size, clients that don't read.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::io::Write;
use std::time::{Duration, Instant};

use criox_monitor_api::frame::encode;
use criox_monitor_api::proto::{self, Request, failure, reply, request::Verb};
use harness::{CRUN, Client, Pod, failed as failure, fake, gone, ready};

#[test]
fn a_runtime_that_hangs_is_killed_with_its_children_and_told() {
    if !ready(CRUN) {
        return;
    }
    let mut pod = Pod::new(CRUN);
    let mark = format!("6{}", std::process::id());
    let script = format!("case \"$*\" in *' create '*) sleep {mark} ;; esac\nexec $real \"$@\"");
    let mut create = pod.bundle("c1", "true", |_| {});
    (create.runtime, create.timeout_ms) = (Some(fake(&pod, &script)), 300);
    let (begun, log) = (Instant::now(), create.log_path.clone());
    let failed = failure(pod.client.call(Verb::Create(create)));
    assert_eq!(failed.kind(), failure::Kind::RuntimeTimeout, "{failed:?}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    gone(&format!("sleep {mark}"));
    // The log's own thread removes it.
    while std::path::Path::new(&log).exists() {
        assert!(begun.elapsed() < Duration::from_secs(10));
        std::thread::sleep(Duration::from_millis(5));
    }
    pod.client.done_list();
}

#[test]
fn a_delete_ends_a_creation_whose_runtime_hangs() {
    if !ready(CRUN) {
        return;
    }
    let mut pod = Pod::new(CRUN);
    let mark = format!("7{}", std::process::id());
    // Before it has made anything, and after it has made everything.
    for (id, order) in [("before", "sleep"), ("after", "\"$real\" \"$@\" && sleep")] {
        let script = format!("case \"$*\" in *' create '*) {order} {mark} ;; esac\nexec $real \"$@\"");
        let mut create = pod.bundle(id, "true", |_| {});
        create.runtime = Some(fake(&pod, &script));
        let (begun, log) = (Instant::now(), create.log_path.clone());
        let creation = pod.client.send(Verb::Create(create), Vec::new());
        seen(&format!("sleep {mark}"));
        let delete = proto::Delete { container_id: id.into(), timeout_ms: 10_000 };
        let deletions = [(); 2].map(|()| pod.client.send(Verb::Delete(delete.clone()), Vec::new()));
        for deletion in deletions {
            assert!(matches!(pod.client.reply(deletion), reply::Result::Done(_)));
        }
        let failed = failure(pod.client.reply(creation));
        assert_eq!(failed.kind(), failure::Kind::WrongState, "{failed:?}");
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
        gone(&format!("sleep {mark}"));
        while std::path::Path::new(&log).exists() {
            assert!(begun.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(5));
        }
        let group = format!("{}/crio-{id}", pod.group);
        assert!(!criox_sys::cgroup::Cgroups::detect().unwrap().exists(&group), "{group}");
        // Its name is free again.
        pod.create(&format!("{id}-next"), "true");
        pod.delete(&format!("{id}-next"));
    }
}

/// Waits until a process has `text` among its arguments.
fn seen(text: &str) {
    let until = Instant::now() + Duration::from_secs(20);
    let found = || {
        std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
            std::fs::read(entry.path().join("cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).replace('\0', " ").trim_end() == text)
        })
    };
    while !found() {
        assert!(Instant::now() < until, "{text} is not there");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_start_and_an_exec_that_hang_leave_the_container_as_it_was() {
    if !ready(CRUN) {
        return;
    }
    let mut pod = Pod::new(CRUN);
    let hangs = pod.path("hangs");
    let script = format!(
        "case \"$*\" in *' start '*|*' exec '*) test -e {0} && sleep 600 ;; esac\nexec $real \"$@\"",
        hangs.display()
    );
    let mut create = pod.bundle("c1", "sleep 60", |_| {});
    create.runtime = Some(fake(&pod, &script));
    pod.create_with(create);
    let hang = |on: bool| {
        if on {
            #[expect(clippy::disallowed_methods, reason = "a test's own file")]
            std::fs::write(&hangs, "").unwrap();
        } else {
            std::fs::remove_file(&hangs).unwrap();
        }
    };
    hang(true);
    let start = proto::Start { container_id: "c1".into(), timeout_ms: 200 };
    let failed = failure(pod.client.call(Verb::Start(start)));
    assert_eq!(failed.kind(), failure::Kind::RuntimeTimeout, "{failed:?}");
    hang(false);
    pod.start("c1");
    hang(true);
    let Verb::Exec(exec) = pod.exec_verb("c1", "true", 0) else { panic!() };
    let exec = proto::Exec { start_timeout_ms: 200, stdout: false, ..exec };
    let failed = failure(pod.client.call(Verb::Exec(exec)));
    assert_eq!(failed.kind(), failure::Kind::RuntimeTimeout, "{failed:?}");
    hang(false);
    assert_eq!(pod.exec("c1", "exit 3", 0).0.exit_code, 3);
    assert_eq!(pod.procs("c1").len(), 1);
    pod.delete("c1");
}

#[test]
fn a_runtime_that_logs_nothing_is_quoted_from_its_standard_error() {
    if !ready(CRUN) {
        return;
    }
    let mut pod = Pod::new(CRUN);
    let script = "case \"$*\" in *' delete '*) exit 0 ;; esac\necho \"no luck with it\" >&2; exit 1";
    for terminal in [false, true] {
        let mut create = pod.bundle(&format!("c{terminal}"), "true", |_| {});
        (create.runtime, create.terminal) = (Some(fake(&pod, script)), terminal);
        let failed = failure(pod.client.call(Verb::Create(create)));
        assert_eq!((failed.kind(), failed.message.as_str()), (failure::Kind::Runtime, "no luck with it"));
    }
    let script = "case \"$*\" in *' start '*) echo 'not today' >&2; exit 1 ;; esac\nexec $real \"$@\"";
    let mut create = pod.bundle("c1", "true", |_| {});
    create.runtime = Some(fake(&pod, script));
    pod.create_with(create);
    let start = proto::Start { container_id: "c1".into(), timeout_ms: 5000 };
    assert_eq!(failure(pod.client.call(Verb::Start(start))).message, "not today");
    pod.delete("c1");
}

#[test]
fn an_exec_that_its_client_ends_is_dead_with_its_tree() {
    if !ready(CRUN) {
        return;
    }
    let mut pod = Pod::new(CRUN);
    pod.run("c1", "sleep 60");
    let Verb::Exec(exec) = pod.exec_verb("c1", "setsid sleep 61 & sleep 62", 0) else { panic!() };
    let id = exec.exec_id.clone();
    let (request, _output) = pod.begin_exec(Verb::Exec(exec));
    let end = proto::EndExec { container_id: "c1".into(), exec_id: id.clone() };
    pod.client.done(Verb::EndExec(end.clone()));
    let reply::Result::ExecFinished(finished) = pod.client.reply(request) else { panic!() };
    assert_eq!((finished.exit_code, finished.timed_out), (137, false));
    assert_eq!(pod.procs("c1").len(), 1);
    assert_eq!(failure(pod.client.call(Verb::EndExec(end))).kind(), failure::Kind::NotFound);
    pod.delete("c1");
}

#[test]
fn a_log_of_a_size_is_begun_anew() {
    if !ready(CRUN) {
        return;
    }
    let mut pod = Pod::new(CRUN);
    let mut create =
        pod.bundle("c1", "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done", |_| {});
    create.log_size_max = 8192;
    pod.create_with(create);
    pod.start("c1");
    pod.client.exit_of("c1");
    let (log, lines) = (pod.log("c1"), pod.lines("c1"));
    assert!(!log.is_empty() && log.len() <= 8192, "{}", log.len());
    let first: usize = lines[0].strip_prefix("stdout F line ").unwrap().parse().unwrap();
    let expected: Vec<String> = (first..2000).map(|i| format!("stdout F line {i}")).collect();
    assert_eq!(lines, expected);
    assert!(first > 0 && !pod.path("c1.clog.tmp").exists());
    pod.delete("c1");
}

#[test]
fn a_client_that_reads_nothing_is_cut_off_and_others_are_served() {
    if !ready(CRUN) {
        return;
    }
    let mut pod = Pod::new(CRUN);
    pod.run("c1", "sleep 60");
    let socket = criox_sys::socket::connect(&pod.path("monitor.sock")).unwrap();
    let mut slow = std::os::unix::net::UnixStream::from(socket);
    slow.set_write_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut bytes = Vec::new();
    let hello = Verb::Hello(proto::Hello { versions: vec![1] });
    encode(&Request { id: 1, verb: Some(hello) }, &mut bytes).unwrap();
    for id in 2..1000 {
        encode(&Request { id, verb: Some(Verb::List(proto::List {})) }, &mut bytes).unwrap();
    }
    // Four megabytes of answers and what the socket holds are some 60 thousand lists.
    let cut = (0..400).map(|_| slow.write_all(&bytes)).find_map(Result::err).expect("it is cut off");
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
    assert!(matches!(cut.kind(), BrokenPipe | ConnectionReset), "{cut}");
    pod.client.done_list();
    let mut other = Client::connect(&pod.path("monitor.sock"));
    other.done_list();
    pod.delete("c1");
}

#[test]
fn a_kill_of_all_reaches_what_is_not_the_first_process() {
    if !ready(CRUN) {
        return;
    }
    let mut pod = Pod::new(CRUN);
    // In the host's PID namespace nothing dies with the first process.
    let create = pod.bundle("c1", "setsid sleep 61 & setsid sleep 62 & exec sleep 60", |config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "pid");
    });
    pod.create_with(create);
    pod.start("c1");
    let until = Instant::now() + Duration::from_secs(5);
    while pod.procs("c1").len() < 3 {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(5));
    }
    pod.client.done(Verb::Signal(proto::Signal { container_id: "c1".into(), signal: 9, all: true }));
    assert_eq!(pod.client.exit_of("c1").signal, 9);
    // Killed before that was told, and on a busy machine not all dead yet.
    let until = Instant::now() + Duration::from_secs(5);
    while !pod.procs("c1").is_empty() {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(5));
    }
    pod.delete("c1");
}

#[test]
fn a_runtime_is_known_whatever_its_file_is_called() {
    for runtime in harness::runtimes() {
        if !ready(&runtime) {
            continue;
        }
        let dir = tempfile::tempdir().unwrap();
        let renamed = dir.path().join(if runtime.ends_with("crun") { "runc-like" } else { "plain" });
        std::fs::copy(&runtime, &renamed).unwrap();
        let mut pod = Pod::new(&renamed.display().to_string());
        pod.run("c1", "sleep 60");
        let (finished, output, _) = pod.exec("c1", "cat /proc/self/cgroup", 0);
        assert_eq!(finished.exit_code, 0);
        assert!(output.lines().any(|line| line.ends_with(".mount")), "{runtime}: {output}");
        let (finished, ..) = pod.exec("c1", "setsid sleep 61 & sleep 62", 300);
        assert!(finished.timed_out);
        assert_eq!(pod.procs("c1").len(), 1, "{runtime}");
        pod.delete("c1");
    }
}

#[test]
fn namespaces_can_be_pinned_while_containers_log() {
    if !ready(CRUN) {
        return;
    }
    let mut pod = Pod::new(CRUN);
    pod.run("c1", "sleep 60");
    let net = pod.path("net");
    #[expect(clippy::disallowed_methods, reason = "a test's own file")]
    std::fs::write(&net, "").unwrap();
    let pin = proto::PinNamespaces { network: net.display().to_string(), ..Default::default() };
    pod.client.done(Verb::PinNamespaces(pin.clone()));
    let user = proto::PinNamespaces { user: pod.path("absent").display().to_string(), ..pin };
    let failed = failure(pod.client.call(Verb::PinNamespaces(user)));
    assert!(failed.message.contains("pin namespaces"), "{}", failed.message);
    pod.delete("c1");
}

#[test]
fn a_helper_that_hangs_is_killed_its_step_told_and_the_loop_serves_on() {
    if !ready(CRUN) {
        return;
    }
    let mut pod = Pod::new(CRUN);
    // Opening it waits for a writer.
    let fifo = pod.path("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let start = proto::StartSandboxProcess { kind: 1, ipc: fifo.display().to_string(), ..Default::default() };
    let request = pod.client.send(Verb::StartSandboxProcess(start.clone()), Vec::new());
    let begun = Instant::now();
    assert_eq!(
        failure(pod.client.call(Verb::StartSandboxProcess(start.clone()))).kind(),
        failure::Kind::WrongState
    );
    pod.client.done_list();
    assert!(begun.elapsed() < Duration::from_secs(5));
    let failed = failure(pod.client.reply(request));
    assert!(failed.message.contains("entering the IPC namespace took more than"), "{}", failed.message);
    gone(&fifo.display().to_string());
    let working = proto::StartSandboxProcess { ipc: String::new(), ..start };
    assert!(matches!(pod.client.call(Verb::StartSandboxProcess(working)), reply::Result::SandboxProcess(_)));
    pod.client.done(Verb::Shutdown(proto::Shutdown {}));
}
