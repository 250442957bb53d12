//! Records that go to systemd's journal, too: a real monitor and containers, with a stand-in for journald.

mod harness;

use std::time::{Duration, Instant};

use criox_monitor_api::proto::{self, reply, request::Verb};
use harness::journald::{Entry, Journald};
use harness::{CRUN, Pod, memory, ready};

const LIMIT: Duration = Duration::from_secs(20);

fn socket(pod: &Pod) -> std::path::PathBuf {
    pod.path("journal.sock")
}

/// A container whose log goes to the journal of this pod.
fn bundle(pod: &Pod, id: &str, script: &str) -> proto::Create {
    let journal =
        proto::Journal { socket: socket(pod).display().to_string(), name: format!("k8s_{id}_p_n_u_0") };
    proto::Create { journal: Some(journal), ..pod.bundle(id, script, |_| {}) }
}

fn run(pod: &mut Pod, id: &str, script: &str) {
    let create = bundle(pod, id, script);
    pod.create_with(create);
    pod.start(id);
}

fn dropped(pod: &mut Pod) -> u64 {
    let reply::Result::List(list) = pod.client.call(Verb::List(proto::List {})) else { panic!("no list") };
    list.journal_lines_dropped
}

/// Entries until one is wanted.
#[track_caller]
fn read_until(journald: &Journald, last: impl Fn(&Entry) -> bool) -> Vec<Entry> {
    let until = Instant::now() + LIMIT;
    let mut entries = Vec::new();
    while entries.last().is_none_or(|entry| !last(entry)) {
        match journald.next() {
            Some(entry) => entries.push(entry),
            None => {
                assert!(
                    Instant::now() < until,
                    "the last of {} entries: {:?}",
                    entries.len(),
                    entries.last()
                );
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
    entries
}

#[test]
fn both_streams_go_to_the_journal_as_they_go_to_the_file() {
    if !ready(CRUN) {
        return;
    }
    let mut pod = Pod::new(CRUN);
    let journald = Journald::listen(&socket(&pod));
    let script = "echo one; echo; printf 'a\\000b\\377\\tc\\n'; head -c 40000 /proc/self/../../dev/zero | tr '\\0' x; echo; \
                  printf wait; sleep 1; echo ed; echo oops >&2; sleep 0.1; echo end";
    run(&mut pod, "c1", script);
    pod.client.exit_of("c1");
    let entries = read_until(&journald, |entry| entry.message() == "end");
    let as_records = |entry: &Entry| {
        let stream = if entry.text("PRIORITY") == "3" { "stderr" } else { "stdout" };
        let partial = entry.fields.get("CONTAINER_PARTIAL_MESSAGE");
        assert!(partial.is_none_or(|value| value == b"true"));
        let tag = if partial.is_some() { "P" } else { "F" };
        [stream.as_bytes(), b" ", tag.as_bytes(), b" ", &entry.fields["MESSAGE"]].concat()
    };
    let log = std::fs::read(pod.path("c1.clog")).unwrap();
    let records: Vec<Vec<u8>> = log
        .strip_suffix(b"\n")
        .unwrap()
        .split(|byte| *byte == b'\n')
        .map(|line| line[31..].to_vec())
        .collect();
    assert_eq!(entries.iter().map(as_records).collect::<Vec<_>>(), records);
    assert!(
        records.contains(&b"stdout F a\0b\xff\tc".to_vec()) && records.contains(&b"stderr F oops".to_vec())
    );
    assert!(records.iter().filter(|record| record.starts_with(b"stdout P")).count() >= 3);
    for entry in &entries {
        assert_eq!((entry.text("CONTAINER_ID"), entry.text("CONTAINER_ID_FULL")), ("c1".into(), "c1".into()));
        assert_eq!(entry.text("CONTAINER_NAME"), "k8s_c1_p_n_u_0");
        assert_eq!(entry.text("SYSLOG_IDENTIFIER"), "k8s_c1_p_n_u_0");
    }
    assert_eq!(dropped(&mut pod), 0);
    pod.delete("c1");
}

#[test]
fn a_container_without_the_option_sends_nothing() {
    if !ready(CRUN) {
        return;
    }
    let mut pod = Pod::new(CRUN);
    let journald = Journald::listen(&socket(&pod));
    pod.run("plain", "echo quiet");
    pod.client.exit_of("plain");
    run(&mut pod, "asked", "echo loud");
    pod.client.exit_of("asked");
    let entries = read_until(&journald, |entry| entry.message() == "loud");
    assert_eq!(entries.len(), 1);
    pod.delete("plain");
    pod.delete("asked");
}

/// The journal's socket is there, and nobody reads it.
#[test]
fn a_wedged_journal_slows_nothing_and_costs_little() {
    const LINES: usize = 400_000;
    if !ready(CRUN) {
        return;
    }
    let mut pod = Pod::new(CRUN);
    let journald = Journald::listen(&socket(&pod));
    let script =
        format!("yes 'a line of some fifty bytes, as programs write them' | head -n {LINES}; echo end");
    let monitor = pod.monitor.id();
    let took = |pod: &mut Pod, id: &str, create: proto::Create| {
        pod.create_with(create);
        let begun = Instant::now();
        pod.start(id);
        let mut answered = Duration::ZERO;
        while pod.log_size(id) < LINES * 91 {
            let asked = Instant::now();
            pod.client.done_list();
            answered = answered.max(asked.elapsed());
            assert!(begun.elapsed() < LIMIT * 3, "{} bytes", pod.log_size(id));
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(pod.client.exit_of(id).exit_code, 0);
        // A writer that is kept waiting in the middle of a line makes a partial record more.
        let records = pod.lines(id);
        assert_eq!(records.iter().filter(|record| record.starts_with("stdout F")).count(), LINES + 1);
        (begun.elapsed(), answered, records.len() as u64)
    };
    let plain = pod.bundle("plain", &script, |_| {});
    let (without, ..) = took(&mut pod, "plain", plain);
    let before = memory(monitor, "VmHWM:");
    let create = bundle(&pod, "c1", &script);
    let (with, answered, records) = took(&mut pod, "c1", create);
    let after = memory(monitor, "VmHWM:");
    harness::tell(&format!(
        "{LINES} lines: {without:?} without, {with:?} beside a wedged journal, answers within {answered:?}, peak {before} then {after} kB"
    ));
    assert!(with < without * 3 + Duration::from_secs(2), "{with:?} against {without:?}");
    assert!(answered < Duration::from_secs(5), "{answered:?}");
    assert!(after < before + 2048, "{before} kB, then {after}");
    let missing = dropped(&mut pod);
    assert!(missing > LINES as u64 / 2, "{missing}");
    // Said once in the monitor's own log.
    let told = std::fs::read_to_string(pod.path("monitor.log")).unwrap();
    assert_eq!(told.lines().filter(|line| line.contains("does not take")).count(), 1, "{told}");
    // It reads again: everything is there, or told to be missing.
    let mut count = 0;
    read_until(&journald, |entry| entry.missing().is_some_and(|lines| lines == missing))
        .iter()
        .for_each(|entry| count += u64::from(entry.missing().is_none()));
    assert_eq!(count + missing, records);
    pod.delete("plain");
    pod.delete("c1");
}

#[test]
fn a_journal_that_is_absent_or_started_anew_gets_what_came_meanwhile() {
    if !ready(CRUN) {
        return;
    }
    let mut pod = Pod::new(CRUN);
    let script = "i=0; while [ $i -lt 40 ]; do echo line $i; i=$((i+1)); sleep 0.1; done";
    run(&mut pod, "c1", script);
    let path = socket(&pod);
    let wait = |pod: &Pod, lines: usize| {
        let until = Instant::now() + LIMIT;
        while pod.lines("c1").len() < lines {
            assert!(Instant::now() < until);
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    wait(&pod, 3);
    let first = Journald::listen(&path);
    let mut entries = read_until(&first, |entry| entry.message() == "line 10");
    // Stopped: no socket at all for a while, and then another one.
    std::fs::remove_file(&path).unwrap();
    entries.extend(first.stop());
    wait(&pod, pod.lines("c1").len() + 3);
    let second = Journald::listen(&path);
    entries.extend(read_until(&second, |entry| entry.message() == "line 39"));
    let messages: Vec<String> = entries.iter().map(Entry::message).collect();
    assert_eq!(messages, (0..40).map(|n| format!("line {n}")).collect::<Vec<_>>());
    assert_eq!(dropped(&mut pod), 0);
    assert_eq!(pod.client.exit_of("c1").exit_code, 0);
    assert_eq!(pod.lines("c1").len(), 40);
    pod.delete("c1");
}
