//! Disks that are full, or don't answer, under the logs of real containers.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use criox_monitor_api::proto::{self, reply, request::Verb};
use harness::{CRUN, Pod, ready};

const LIMIT: Duration = Duration::from_secs(30);

#[track_caller]
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Lets a container go on that waits with `until [ -e /go ]`.
fn go(pod: &Pod, id: &str) {
    std::fs::create_dir(pod.path(&format!("bundle-{id}")).join("rootfs/go")).unwrap();
}

fn inside(pod: &Pod, path: &Path) -> PathBuf {
    format!("/proc/{}/root{}", pod.monitor.id(), path.display()).into()
}

/// In the monitor's own mount namespace, which is a copy of that of the test.
fn nsenter(pod: &Pod, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command.args(["-t", &pod.monitor.id().to_string(), "-m", program]);
    command
}

#[test]
fn a_full_disk_loses_lines_but_blocks_nobody() {
    for runtime in harness::runtimes() {
        if ready(&runtime) {
            full_disk(Pod::new(&runtime));
        }
    }
}

fn full_disk(mut pod: Pod) {
    let small = pod.path("small");
    std::fs::create_dir(&small).unwrap();
    let mounted =
        nsenter(&pod, "mount").args(["-t", "tmpfs", "-o", "size=256k", "small"]).arg(&small).status();
    assert!(mounted.unwrap().success());
    let script = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; \
                  until [ -e /go ]; do sleep 0.05; done; echo after";
    let create = proto::Create {
        log_path: small.join("c1.clog").display().to_string(),
        ..pod.bundle("c1", script, |_| {})
    };
    pod.create_with(create);
    pod.start("c1");
    let file = inside(&pod, &small.join("c1.clog"));
    // What is written and what is lost are all there is: it has blocked nobody.
    let mut lost = 0;
    wait_until("every line is written or lost", || {
        let reply::Result::List(list) = pod.client.call(Verb::List(proto::List {})) else { panic!() };
        lost = list.log_lines_dropped;
        let written = std::fs::read_to_string(&file).unwrap();
        let written = written.lines().filter(|line| line.contains(" F line ")).count() as u64;
        assert!(written + lost <= 20_000, "{written} and {lost}");
        written + lost == 20_000
    });
    assert!(lost > 1000, "{lost}");
    let full = std::fs::read_to_string(&file).unwrap();
    let whole = |line: &str| line.contains(" F line ") || line.contains(" F criox: ");
    assert!(full.ends_with('\n') && full.lines().all(whole), "half a record would spoil the next");
    std::fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(0).unwrap();
    go(&pod, "c1");
    assert_eq!(pod.client.exit_of("c1").exit_code, 0);
    let log = std::fs::read_to_string(&file).unwrap();
    // The note may have fitted into what was left of the full disk, and the last lines behind it.
    let told = [&full, &log].iter().any(|text| text.contains("log lines were lost here"));
    assert!(told && log.ends_with("stdout F after\n"), "{log}");
    pod.delete("c1");
}

/// A file system whose writers hang. It is thawed when this is dropped, or the test dies.
struct Frozen(Child);

impl Frozen {
    fn freeze(pod: &Pod, disk: &Path) -> Self {
        let script = "fsfreeze -f \"$0\" && echo frozen; cat > /dev/null; fsfreeze -u \"$0\"";
        let mut child = nsenter(pod, "sh")
            .args(["-c", script])
            .arg(disk)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "frozen\n");
        Self(child)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        drop(self.0.wait());
    }
}

/// A disk of its own for the logs, in the monitor's mount namespace.
fn disk(pod: &Pod) -> Option<PathBuf> {
    let (image, disk) = (pod.path("disk.img"), pod.path("disk"));
    std::fs::create_dir(&disk).unwrap();
    let made = std::fs::OpenOptions::new().write(true).create_new(true).open(&image).unwrap();
    made.set_len(64 << 20).unwrap();
    let formatted = Command::new("mkfs.ext4").arg("-q").arg(&image).status();
    let mounted = formatted.is_ok_and(|status| status.success())
        && nsenter(pod, "mount").args(["-o", "loop"]).args([&image, &disk]).status().unwrap().success();
    if !mounted {
        harness::tell("skipped: needs mkfs.ext4 and a loop device");
    }
    mounted.then_some(disk)
}

#[test]
fn a_disk_that_hangs_holds_up_who_writes_to_it_and_nothing_else_and_no_line_is_lost() {
    const LINES: usize = 200_000;
    if !ready(CRUN) {
        return;
    }
    let mut pod = Pod::new(CRUN);
    let Some(disk) = disk(&pod) else { return };
    let script =
        format!("until [ -e /go ]; do sleep 0.05; done; yes 'some line' | head -n {LINES}; echo end");
    for id in ["c1", "c2"] {
        let create = proto::Create {
            log_path: disk.join(format!("{id}.clog")).display().to_string(),
            ..pod.bundle(id, &script, |_| {})
        };
        pod.create_with(create);
        pod.start(id);
    }
    let monitor = pod.monitor.id();
    let before = harness::memory(monitor, "VmRSS:");
    let frozen = Frozen::freeze(&pod, &disk);
    for id in ["c1", "c2"] {
        go(&pod, id);
    }
    // Both are held up by their full pipes: the first process waits in its last line but for the sleep's.
    let mut last = 0;
    wait_until("memory grows no more", || {
        std::thread::sleep(Duration::from_millis(300));
        let now = harness::memory(monitor, "VmRSS:");
        now > before + 256 && std::mem::replace(&mut last, now) == now
    });
    assert!(last < before + 4096, "{before} kB, then {last} kB");
    let begun = Instant::now();
    pod.client.done_list();
    assert_eq!(pod.exec("c1", "echo here; exit 3", 0).0.exit_code, 3);
    // A container that is killed has ended, whatever becomes of its log.
    pod.client.done(Verb::Signal(proto::Signal { container_id: "c2".into(), signal: 9, all: true }));
    assert_eq!(pod.client.exit_of("c2").signal, 9);
    assert!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
    assert!(pod.client.events.iter().all(|event| !format!("{event:?}").contains("\"c1\"")), "c1 waits");
    drop(frozen);
    assert_eq!(pod.client.exit_of("c1").exit_code, 0);
    let log = std::fs::read_to_string(inside(&pod, &disk.join("c1.clog"))).unwrap();
    // A writer that is kept waiting in the middle of a line makes a partial record more.
    let pieces: String = log
        .lines()
        .map(|line| format!("{}{}", &line[40..], if &line[38..39] == "F" { "\n" } else { "" }))
        .collect();
    assert!(pieces == "some line\n".repeat(LINES) + "end\n", "{} bytes", pieces.len());
    pod.delete("c1");
    pod.delete("c2");
}
