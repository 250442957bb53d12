//! Calls that a container's filter asks about, with real containers under each runtime.

#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and names the runtime"
)]

mod harness;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use criox_monitor_api::proto::{self, event, failure, reply, request::Verb};
use harness::{Client, Pod, ready, runtimes};

fn each(test: impl Fn(Pod)) {
    if criox_sys::seccomp_notify::check_support().is_err() {
        eprintln!("skipped: the kernel has no seccomp notifications");
        return;
    }
    for runtime in runtimes() {
        if ready(&runtime) {
            eprintln!("with {runtime}");
            test(Pod::new(&runtime));
        }
    }
}

fn listen(pod: &mut Pod, id: &str) -> String {
    match pod.client.call(Verb::ListenSeccomp(proto::ListenSeccomp { container_id: id.into() })) {
        reply::Result::SeccompListening(listening) => listening.path,
        other => panic!("{other:?}"),
    }
}

/// Runs `sh -c script` in a container in which two calls are forbidden.
fn run(pod: &mut Pod, id: &str, script: &str, no_new_privileges: bool) {
    let path = listen(pod, id);
    let create = pod.bundle(id, script, |config| {
        config["process"]["noNewPrivileges"] = no_new_privileges.into();
        config["linux"]["seccomp"] = serde_json::json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
            "listenerPath": path,
            // The last two are tried by runc itself, before the program.
            "syscalls": [{"names": ["sethostname", "umask", "open_tree", "fsopen"], "action": "SCMP_ACT_NOTIFY"}],
        });
    });
    pod.create_with(create);
    pod.start(id);
}

fn listed(pod: &mut Pod, id: &str) -> Vec<proto::ForbiddenCall> {
    let reply::Result::List(list) = pod.client.call(Verb::List(proto::List {})) else { panic!("no list") };
    let state = list.containers.into_iter().find(|state| state.container_id == id).unwrap();
    state.forbidden.map(|forbidden| forbidden.calls).unwrap_or_default()
}

fn count(calls: &[proto::ForbiddenCall], number: i64) -> u64 {
    calls.iter().filter(|call| i64::from(call.number) == number).map(|call| call.count).sum()
}

/// What the last event of a container says, once it says as much.
fn told(pod: &mut Pod, id: &str, enough: impl Fn(&proto::ForbiddenCalls) -> bool) -> proto::ForbiddenCalls {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        pod.client.done_list();
        let of = |event: &proto::Event| match &event.kind {
            Some(event::Kind::SeccompNotified(told)) if told.container_id == id => told.forbidden.clone(),
            _ => None,
        };
        if let Some(forbidden) = pod.client.events.iter().rev().find_map(of).filter(&enough) {
            return forbidden;
        }
        assert!(Instant::now() < until, "nothing was told: {:?}", pod.client.events);
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn sockets(pod: &Pod) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(pod.dir.path()).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("seccomp-")).collect()
}

#[test]
fn a_call_that_is_asked_about_fails_with_enosys_and_is_counted_also_in_execs() {
    each(|mut pod| {
        for (id, no_new_privileges) in [("c1", false), ("c2", true)] {
            let script = "busybox hostname x 2>&1; sleep 60";
            run(&mut pod, id, script, no_new_privileges);
            let until = Instant::now() + Duration::from_secs(20);
            while !pod.log(id).contains("not implemented") {
                assert!(Instant::now() < until, "{id}: {:?}", pod.log(id));
                std::thread::sleep(Duration::from_millis(20));
            }
            let once = told(&mut pod, id, |calls| count(&calls.calls, libc_sethostname()) == 1);
            assert!(once.first_at > 0 && once.first_at <= once.last_at);
            for _ in 0..2 {
                let (finished, output, _) = pod.exec(id, "busybox hostname y 2>&1", 10_000);
                assert!(finished.exit_code != 0 && output.contains("not implemented"), "{output}");
            }
            let again = told(&mut pod, id, |calls| count(&calls.calls, libc_sethostname()) == 3);
            assert_eq!(again.first_at, once.first_at);
            let listed = listed(&mut pod, id);
            assert_eq!(count(&listed, libc_sethostname()), 3, "{listed:?}");
            // open_tree and fsopen (one number everywhere) are runc's; crun may set a umask of its own.
            assert_eq!(count(&listed, 428) + count(&listed, 430), 0, "{listed:?}");
        }
        // A daemon that was killed and comes back is told again.
        let mut after = Client::connect(&pod.path("monitor.sock"));
        after.done(Verb::Subscribe(proto::Subscribe { after: 0 }));
        std::mem::swap(&mut pod.client, &mut after);
        told(&mut pod, "c1", |calls| count(&calls.calls, libc_sethostname()) == 3);
        assert_eq!(sockets(&pod).len(), 2);
        for id in ["c1", "c2"] {
            pod.delete(id);
        }
        assert_eq!(sockets(&pod), Vec::<PathBuf>::new());
    });
}

/// Its number for x86_64 and arm64 (asm/unistd.h).
fn libc_sethostname() -> i64 {
    if cfg!(target_arch = "x86_64") { 170 } else { 161 }
}

#[test]
fn who_floods_waits_and_costs_the_pod_nothing() {
    each(|mut pod| {
        let flood = "for i in 1 2 3 4 5 6; do while :; do umask; done >/dev/null & done; sleep 60";
        run(&mut pod, "flood", flood, true);
        pod.run("other", "sleep 60");
        std::thread::sleep(Duration::from_millis(500));
        let (before, cpu, begun) = (total(&mut pod), cpu(&pod), Instant::now());
        let mut slowest = Duration::ZERO;
        while begun.elapsed() < Duration::from_secs(3) {
            let asked = Instant::now();
            pod.client.done_list();
            slowest = slowest.max(asked.elapsed());
            std::thread::sleep(Duration::from_millis(20));
        }
        let (took, ticks) = (begun.elapsed().as_secs_f64(), crate::cpu(&pod) - cpu);
        let rate = (total(&mut pod) - before) as f64 / took;
        let share = ticks as f64 / 100.0 / took;
        eprintln!(
            "{rate:.0} answers a second, {:.0} % of a processor, slowest answer {slowest:?}",
            share * 100.0
        );
        assert!((100.0..10_000.0).contains(&rate), "{rate}");
        assert!(share < 0.5, "{share}");
        let events = pod.client.events.iter();
        let tellings =
            events.filter(|event| matches!(event.kind, Some(event::Kind::SeccompNotified(_)))).count();
        assert!((2..=6).contains(&tellings), "{tellings} events in four seconds");
        let (finished, output, _) = pod.exec("other", "echo well", 10_000);
        assert_eq!((finished.exit_code, output.as_str()), (0, "well\n"));
        // Whoever waits for its answer can be killed.
        pod.delete("flood");
        pod.delete("other");
    });
}

fn total(pod: &mut Pod) -> u64 {
    listed(pod, "flood").iter().map(|call| call.count).sum()
}

/// Clock ticks that the monitor has used.
fn cpu(pod: &Pod) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pod.monitor.id())).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    [11, 12].iter().map(|index| fields[*index].parse::<u64>().unwrap()).sum()
}

#[test]
fn a_listener_without_a_container_goes_with_its_deletion_or_its_failed_creation() {
    each(|mut pod| {
        listen(&mut pod, "c1");
        let again = listen(&mut pod, "c1");
        assert_eq!(sockets(&pod).len(), 1);
        assert!(again.len() < 100, "{again}");
        pod.delete("c1");
        assert_eq!(sockets(&pod).len(), 0);
        listen(&mut pod, "c2");
        let create = pod.bundle("c2", "true", |config| config["root"]["path"] = "nowhere".into());
        let failed = pod.client.call(Verb::Create(create));
        assert!(matches!(failed, reply::Result::Failure(_)), "{failed:?}");
        assert_eq!(sockets(&pod).len(), 0);
        pod.run("c3", "sleep 60");
        let late = pod.client.call(Verb::ListenSeccomp(proto::ListenSeccomp { container_id: "c3".into() }));
        let reply::Result::Failure(late) = late else { panic!("{late:?}") };
        assert_eq!(late.kind(), failure::Kind::WrongState, "{late:?}");
        pod.delete("c3");
    });
}

#[test]
fn what_is_no_filter_is_refused_and_whoever_says_too_much_is_cut_off() {
    each(|mut pod| {
        let path = PathBuf::from(listen(&mut pod, "c1"));
        let speak = |bytes: &[u8], with: &[std::os::fd::BorrowedFd<'_>]| {
            let socket = criox_sys::socket::connect(&path).unwrap();
            let slices = [std::io::IoSlice::new(bytes)];
            criox_sys::socket::send_with_fds(&socket, &slices, with).unwrap();
            socket
        };
        let (read, _write) = rustix::pipe::pipe().unwrap();
        let kept = speak(b"{}", &[std::os::fd::AsFd::as_fd(&read)]);
        let loud = speak(b"x", &[]);
        let chunk = vec![b' '; 1 << 16];
        let cut = (0..1 << 12)
            .any(|_| criox_sys::socket::send_with_fds(&loud, &[std::io::IoSlice::new(&chunk)], &[]).is_err());
        assert!(cut, "256 MiB were read");
        // It still serves.
        pod.client.done_list();
        let log = std::fs::read_to_string(pod.path("monitor.log")).unwrap();
        assert!(log.contains("filter"), "{log}");
        drop(kept);
        pod.delete("c1");
    });
}
