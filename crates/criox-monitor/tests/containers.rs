//! Real containers under both runtimes.

#![expect(clippy::print_stderr, reason = "names the runtime of a failed test")]

mod harness;

use std::time::{Duration, Instant};

use criox_monitor_api::proto::{self, event, failure, reply, request::Verb};
use criox_sys::cgroup::Cgroups;
use harness::{CRUN, Client, Pod, ready, runtimes};

fn each(test: impl Fn(Pod)) {
    for runtime in runtimes() {
        if ready(&runtime) {
            eprintln!("with {runtime}");
            test(Pod::new(&runtime));
        }
    }
}

#[test]
fn a_container_runs_logs_and_tells_its_exit() {
    each(|mut pod| {
        let created = pod.create("c1", "echo out; echo err >&2; printf end; exit 7");
        assert!(created.cgroup.ends_with("/crio-c1"), "{}", created.cgroup);
        pod.start("c1");
        let exit = pod.client.exit_of("c1");
        assert_eq!((exit.exit_code, exit.signal, exit.oom_killed), (7, 0, false));
        let mut lines = pod.lines("c1");
        lines.sort();
        assert_eq!(lines, ["stderr F err", "stdout F out", "stdout P end"]);
        assert_eq!(std::fs::read_to_string(pod.path("c1")).unwrap(), "7");
        let record = std::fs::read(pod.path("exits/c1")).unwrap();
        let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
        assert_eq!((&record["version"], &record["exit_code"]), (&1.into(), &7.into()));
        pod.delete("c1");
        pod.delete("c1");
        pod.client.done(Verb::Shutdown(proto::Shutdown {}));
        assert!(pod.monitor.wait().unwrap().success());
    });
}

#[test]
fn a_signal_ends_a_container_and_is_told() {
    each(|mut pod| {
        pod.run("c1", "sleep 60 & wait");
        pod.client.done(Verb::Signal(proto::Signal { container_id: "c1".into(), signal: 9, all: false }));
        let exit = pod.client.exit_of("c1");
        assert_eq!((exit.exit_code, exit.signal), (137, 9));
        let reply::Result::List(list) = pod.client.call(Verb::List(proto::List {})) else { panic!() };
        assert_eq!(list.containers[0].exit.unwrap().exit_code, 137);
        pod.delete("c1");
    });
}

#[test]
fn an_exec_gives_its_output_and_code() {
    each(|mut pod| {
        pod.run("c1", "sleep 60");
        for _ in 0..3 {
            let (finished, output, _) = pod.exec("c1", "echo hello; exit 3", 0);
            assert_eq!((finished.exit_code, finished.timed_out, output.as_str()), (3, false, "hello\n"));
        }
        let (_, groups, _) = pod.exec("c1", "cat /proc/self/cgroup", 0);
        let path = |controller: &str| {
            let name =
                |line: &&str| line.split(':').nth(1).unwrap().split(',').any(|name| name == controller);
            groups.lines().find(name).and_then(|line| line.split(':').nth(2)).unwrap_or_default().to_owned()
        };
        if !Cgroups::detect().unwrap().is_v2() {
            for controller in ["memory", "pids", "cpu", "devices"] {
                assert!(path(controller).ends_with("/crio-c1"), "{controller}: {groups}");
            }
        }
        assert!(
            groups.lines().any(|line| line.contains("/crio-c1/e") && line.ends_with(".mount")),
            "{groups}"
        );
        pod.delete("c1");
    });
}

#[test]
fn at_its_deadline_the_whole_tree_of_an_exec_is_dead() {
    each(|mut pod| {
        pod.run("c1", "sleep 60");
        let before = pod.procs("c1").len();
        for script in [
            "sleep 60",
            "setsid sleep 61 & sleep 60",
            "(setsid sh -c 'sleep 62 & exit' &) ; sleep 60",
            "trap '' TERM INT HUP; while :; do sleep 1; done",
            "f() { sleep 0.01; f & f; }; for i in 1 2 3 4; do (while :; do (setsid sh -c 'sleep 3 & sleep 3' &); done) & done; wait",
        ] {
            let (finished, _, took) = pod.exec("c1", script, 300);
            assert!(finished.timed_out, "{script}");
            assert_eq!(pod.procs("c1").len(), before, "{script}");
            assert!(took < Duration::from_secs(5), "{script}: {took:?}");
        }
        pod.delete("c1");
    });
}

#[test]
fn many_execs_run_at_once() {
    each(|mut pod| {
        pod.run("c1", "sleep 60");
        let devnull = || std::fs::OpenOptions::new().write(true).open("/dev/null").unwrap().into();
        let mut clients: Vec<Client> = (0..8).map(|_| Client::connect(&pod.path("monitor.sock"))).collect();
        let begun = Instant::now();
        let requests: Vec<u64> = clients
            .iter_mut()
            .map(|client| client.send(pod.exec_verb("c1", "sleep 0.5", 0), vec![devnull()]))
            .collect();
        pod.client.done_list();
        for (client, request) in clients.iter_mut().zip(requests) {
            assert!(matches!(client.reply(request), reply::Result::ExecStarted(_)));
            assert!(matches!(client.reply(request), reply::Result::ExecFinished(f) if f.exit_code == 0));
        }
        assert!(begun.elapsed() < Duration::from_secs(4));
        pod.delete("c1");
    });
}

#[test]
fn an_oom_kill_is_told() {
    each(|mut pod| {
        let create = pod.bundle("c1", "x=a; while :; do x=$x$x; done", |config| {
            config["linux"]["resources"]["memory"] = serde_json::json!({"limit": 32 << 20, "swap": 32 << 20});
        });
        pod.create_with(create);
        pod.start("c1");
        let exit = pod.client.exit_of("c1");
        assert!(exit.oom_killed && exit.exit_code == 137, "{exit:?}");
        let told = |e: &proto::Event| matches!(e.kind, Some(event::Kind::OomKilled(_)));
        assert!(pod.client.events.iter().any(told));
        pod.delete("c1");
    });
}

#[test]
fn a_log_is_reopened_without_losing_lines() {
    each(|mut pod| {
        pod.run("c1", "i=0; while [ ! -e /go ] && [ $i -lt 1000000 ]; do echo line $i; i=$((i+1)); done");
        let log = pod.path("c1.clog");
        let mut parts = Vec::new();
        for part in 0..20 {
            let rotated = pod.path(&format!("rotated-{part}"));
            let until = Instant::now() + Duration::from_secs(20);
            while pod.log_size("c1") == 0 {
                assert!(Instant::now() < until);
                std::thread::sleep(Duration::from_millis(5));
            }
            std::fs::rename(&log, &rotated).unwrap();
            pod.client.done(Verb::ReopenLog(proto::ReopenLog { container_id: "c1".into() }));
            assert!(log.exists());
            parts.push(rotated);
        }
        std::fs::create_dir(pod.path("bundle-c1").join("rootfs/go")).unwrap();
        pod.client.exit_of("c1");
        parts.push(log);
        let text: String = parts.iter().map(|part| std::fs::read_to_string(part).unwrap()).collect();
        let lines: Vec<&str> = text.lines().map(|line| &line[40..]).collect();
        assert!(lines.iter().enumerate().all(|(i, line)| **line == format!("line {i}")), "a line is lost");
        pod.delete("c1");
    });
}

#[test]
fn a_line_of_a_megabyte_is_logged_whole_in_partial_records() {
    each(|mut pod| {
        pod.run("c1", "head -c 1000000 /proc/self/../../dev/zero | tr '\\0' x; echo; echo done");
        pod.client.exit_of("c1");
        let lines = pod.lines("c1");
        let long: usize = lines
            .iter()
            .filter(|line| line.starts_with("stdout P") || line.contains('x'))
            .map(|line| line.len() - 9)
            .sum();
        assert!(lines.iter().all(|line| line.len() <= 9 + 16 * 1024));
        assert_eq!(long, 1_000_000);
        assert_eq!(lines.last().unwrap(), "stdout F done");
        pod.delete("c1");
    });
}

#[test]
fn a_runtimes_error_is_told_and_no_log_file_left() {
    each(|mut pod| {
        let create =
            pod.bundle("c1", "true", |config| config["process"]["args"] = serde_json::json!(["/absent"]));
        let log = create.log_path.clone();
        match pod.client.call(Verb::Create(create.clone())) {
            reply::Result::Failure(failure) => {
                assert_eq!(failure.kind(), failure::Kind::Runtime);
                assert!(failure.message.contains("/absent"), "{}", failure.message);
            }
            other => {
                // crun 1.8.1 finds this out at the start only.
                assert!(matches!(other, reply::Result::Create(_)), "{other:?}");
                let start = proto::Start { container_id: "c1".into(), timeout_ms: 10_000 };
                let reply::Result::Failure(failure) = pod.client.call(Verb::Start(start)) else { panic!() };
                assert!(failure.message.contains("/absent"), "{}", failure.message);
                pod.delete("c1");
                return;
            }
        }
        // The log's own thread removes it.
        let until = Instant::now() + Duration::from_secs(10);
        while std::path::Path::new(&log).exists() {
            assert!(Instant::now() < until, "the log stays");
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut missing = create;
        missing.runtime = Some(proto::Runtime { path: "/no/runtime".into(), ..Default::default() });
        let reply::Result::Failure(failure) = pod.client.call(Verb::Create(missing)) else { panic!() };
        assert_eq!(failure.kind(), failure::Kind::RuntimeMissing);
    });
}

#[test]
fn a_lost_client_changes_nothing() {
    each(|mut pod| {
        pod.run("c1", "sleep 1; echo alive; exit 4");
        let mut other = Client::connect(&pod.path("monitor.sock"));
        other.send(Verb::Subscribe(proto::Subscribe { after: 0 }), Vec::new());
        drop(other);
        pod.client = Client::connect(&pod.path("monitor.sock"));
        pod.client.done(Verb::Subscribe(proto::Subscribe { after: 0 }));
        assert_eq!(pod.client.exit_of("c1").exit_code, 4);
        assert_eq!(pod.lines("c1"), ["stdout F alive"]);
        pod.delete("c1");
    });
}

#[test]
fn a_terminal_is_logged_and_resized() {
    each(|mut pod| {
        let mut create =
            pod.bundle("c1", "sleep 0.3; stty size", |config| config["process"]["terminal"] = true.into());
        create.terminal = true;
        pod.create_with(create);
        pod.client.done(Verb::Resize(proto::Resize {
            container_id: "c1".into(),
            exec_id: String::new(),
            width: 80,
            height: 25,
        }));
        pod.start("c1");
        assert_eq!(pod.client.exit_of("c1").exit_code, 0);
        assert_eq!(pod.lines("c1"), ["stdout F 25 80\r"]);
        pod.delete("c1");
    });
}

#[test]
fn namespaces_are_pinned_with_their_settings() {
    if !ready(CRUN) {
        return;
    }
    let mut pod = Pod::new(CRUN);
    for name in ["net", "uts", "ipc"] {
        #[expect(clippy::disallowed_methods, reason = "a test's own file")]
        std::fs::write(pod.path(name), "").unwrap();
    }
    let dir = pod.dir.path().to_owned();
    let path = |name: &str| dir.join(name).display().to_string();
    let pin = proto::PinNamespaces {
        network: path("net"),
        uts: path("uts"),
        ipc: path("ipc"),
        hostname: "my-pod".into(),
        sysctls: [("net/ipv4/ip_forward".to_owned(), "1".to_owned())].into(),
        loopback_up: true,
        ..Default::default()
    };
    pod.client.done(Verb::PinNamespaces(pin.clone()));
    let inside = std::process::Command::new("nsenter")
        .args(["-t", &pod.monitor.id().to_string(), "-m", "sh", "-c"])
        .arg(format!("nsenter --net={} --uts={} --ipc={} sh -c 'hostname; cat /proc/sys/net/ipv4/ip_forward; ip -o addr show lo'", path("net"), path("uts"), path("ipc")))
        .output()
        .unwrap();
    let text = String::from_utf8(inside.stdout).unwrap();
    assert!(text.starts_with("my-pod\n1\n") && text.contains("127.0.0.1/8"), "{text}");
    let wrong = proto::PinNamespaces { sysctls: [("net/no/such".to_owned(), "1".to_owned())].into(), ..pin };
    let reply::Result::Failure(failure) = pod.client.call(Verb::PinNamespaces(wrong)) else { panic!() };
    assert!(failure.message.contains("sysctl net/no/such"), "{}", failure.message);
}

#[test]
fn a_sandbox_init_has_an_empty_root_and_ends_on_sigterm() {
    if !ready(CRUN) {
        return;
    }
    let mut pod = Pod::new(CRUN);
    let pin = pod.path("pid");
    #[expect(clippy::disallowed_methods, reason = "a test's own file")]
    std::fs::write(&pin, "").unwrap();
    let start = proto::StartSandboxProcess {
        kind: 1,
        pid_namespace: pin.display().to_string(),
        ..Default::default()
    };
    let reply::Result::SandboxProcess(init) = pod.client.call(Verb::StartSandboxProcess(start)) else {
        panic!()
    };
    let proc = std::path::PathBuf::from(format!("/proc/{}", init.pid));
    let status = std::fs::read_to_string(proc.join("status")).unwrap();
    assert!(status.contains("CapPrm:\t0000000000000000") && status.contains("NSpid:"), "{status}");
    assert_eq!(std::fs::read_dir(proc.join("root")).unwrap().count(), 0);
    assert!(std::fs::OpenOptions::new().write(true).open(proc.join("exe")).is_err());
    let mut create = pod.bundle("c1", "sleep 60 & exit 0", |config| {
        config["linux"]["namespaces"][0]["path"] = pin.display().to_string().into();
    });
    create.log_path.clear();
    pod.create_with(create);
    pod.start("c1");
    assert_eq!(pod.client.exit_of("c1").exit_code, 0);
    pod.delete("c1");
    assert!(pod.procs("c1").is_empty());
    criox_sys::process::Pidfd::open(init.pid).unwrap().send_signal(15).unwrap();
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        let reply::Result::List(list) = pod.client.call(Verb::List(proto::List {})) else { panic!() };
        if list.sandbox_process_pid == 0 {
            break;
        }
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn steady_output_is_not_cut_into_partial_records() {
    each(|mut pod| {
        // Each line begins with the container's own time: on a busy machine it may really stop for as long as a line
        // is held, in the middle of it, and is cut then with good reason.
        let line = "read up idle < /proc/uptime; printf \"$up \"; sleep 0.01; echo b; i=$((i+1))";
        pod.run("c1", &format!("i=0; while [ $i -lt 200 ]; do {line}; done"));
        pod.client.exit_of("c1");
        let (mut line, mut begun, mut cut) = (String::new(), Vec::new(), Vec::new());
        for record in pod.lines("c1") {
            let (tag, piece) = record.split_at("stdout F ".len());
            line.push_str(piece);
            if tag == "stdout F " {
                let (time, rest) = line.split_once(' ').unwrap();
                assert_eq!(rest, "b");
                begun.push(time.parse::<f64>().unwrap());
                line.clear();
            } else {
                cut.push(begun.len());
            }
        }
        assert_eq!((begun.len(), line.as_str()), (200, ""));
        for number in cut {
            // The next line began after this one's end; the last line has no witness.
            let paused = begun.get(number + 1).map_or(f64::MAX, |next| next - begun[number]);
            assert!(paused > 0.23, "line {number} was cut {paused} s after its beginning");
        }
        pod.delete("c1");
    });
}
