//! Processes and clients that go too far, and memory that does not.

use std::fs;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, sleep, timeout};

use super::client::{QUIET, Spdy, WebSocket};
use super::{Running, reaches};
use crate::options::Options;
use crate::spdy::frame;

/// Bytes that the process has written.
fn written(pid: usize) -> u64 {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    let line = io.lines().find_map(|line| line.strip_prefix("wchar: ")).unwrap();
    line.parse().unwrap()
}

/// What all buffers between a process and its client may hold: the kernel's for two sockets, a pipe, and ours.
const MOST_BUFFERED: u64 = 16 << 20;

#[tokio::test]
async fn a_client_that_never_reads_holds_its_process_up() {
    let running = Running::start().await;
    let client = WebSocket::connect(&running.exec("stdout", "exec yes"), "v4.channel.k8s.io").await;
    reaches("a process", &running.counts.started, 1).await;
    let pid = running.counts.pid.load(Ordering::SeqCst);
    let (mut before, mut now) = (0, written(pid));
    while now != before || now == 0 {
        sleep(QUIET).await;
        (before, now) = (now, written(pid));
        assert!(now < MOST_BUFFERED, "{now} bytes");
    }
    drop(client);
    running.stop().await;
}

#[tokio::test]
async fn a_process_that_never_reads_holds_its_client_up() {
    let running = Running::start().await;
    let mut client = Spdy::connect(&running.exec("stdin stdout", "sleep 1000"), "v4.channel.k8s.io").await;
    let streams = client.open_all("error stdin stdout").await;
    let piece = [&frame::data_header(streams["stdin"], 1 << 20, false)[..], &vec![b'x'; 1 << 20]].concat();
    let mut sent = 0;
    while timeout(Duration::from_secs(1), client.write.write_all(&piece)).await.is_ok() {
        sent += piece.len() as u64;
        assert!(sent < MOST_BUFFERED, "{sent} bytes");
    }
    running.stop().await;
}

#[tokio::test]
async fn what_a_process_leaves_in_its_pipe_is_read_though_a_child_holds_it() {
    let running = Running::start().await;
    let url = running.exec("stdout", "sleep 1000 & yes | head -c 200000; exit 5");
    let mut client = Spdy::connect(&url, "v4.channel.k8s.io").await;
    let streams = client.open_all("error stdout").await;
    // Output is awaited for a second in tests.
    let start = Instant::now();
    let client = client.finish().await;
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    assert_eq!(client.bytes(streams["stdout"]).len(), 200_000);
    assert!(client.text(streams["error"]).contains("\"5\""));
    kill_group(&running);
    running.stop().await;
}

#[tokio::test]
async fn a_child_that_writes_for_ever_does_not_hold_the_end_up() {
    let running = Running::start().await;
    let client = WebSocket::connect(&running.exec("stdout", "yes & exit 6"), "v4.channel.k8s.io").await;
    let (channels, _) = client.finish().await;
    assert!(String::from_utf8_lossy(&channels[&3]).contains("\"6\""));
    kill_group(&running);
    running.stop().await;
}

/// What the test left on purpose.
fn kill_group(running: &Running) {
    let pid = i32::try_from(running.counts.pid.load(Ordering::SeqCst)).unwrap();
    let group = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process_group(group, rustix::process::Signal::KILL).unwrap();
}

#[tokio::test]
async fn a_process_that_closes_its_input_does_not_hold_its_client_up() {
    let running = Running::start().await;
    let url = running.exec("stdin stdout", "exec <&-; echo closed; sleep 1; echo end");
    let mut client = Spdy::connect(&url, "v4.channel.k8s.io").await;
    let streams = client.open_all("error stdin stdout").await;
    for _ in 0..50 {
        client.send(streams["stdin"], &vec![b'x'; 1 << 20], false).await;
    }
    let client = client.finish().await;
    assert_eq!(client.text(streams["stdout"]), "closed\nend\n");
    running.stop().await;
}

#[tokio::test]
async fn a_session_in_which_nothing_passes_ends() {
    let options = Options { idle_timeout: Duration::from_millis(700), ..Options::new() };
    let running = Running::with(options).await;
    let start = Instant::now();
    let mut client = Spdy::connect(&running.exec("stdin stdout", "cat"), "v4.channel.k8s.io").await;
    let streams = client.open_all("error stdin stdout").await;
    for _ in 0..4 {
        sleep(Duration::from_millis(300)).await;
        client.send(streams["stdin"], b"x", false).await;
    }
    client.finish().await;
    assert!(start.elapsed() > Duration::from_millis(1800), "{:?}", start.elapsed());
    reaches("its end", &running.counts.ended, 1).await;

    let client = WebSocket::connect(&running.exec("stdin stdout", "cat"), "v5.channel.k8s.io").await;
    assert_eq!(client.finish().await.1, Some(1000));
    let client = Spdy::connect(&running.forward(&[]), "portforward.k8s.io").await;
    client.finish().await;
    running.stop().await;
}

#[tokio::test]
async fn malformed_frames_end_the_session_and_nothing_else() {
    let running = Running::start().await;
    let mut bomb = flate2::Compress::new(flate2::Compression::best(), true);
    let mut block = Vec::with_capacity(1 << 20);
    bomb.compress_vec(&vec![0; 20 << 20], &mut block, flate2::FlushCompress::Sync).unwrap();
    let wrong: [(&str, Vec<u8>); 5] = [
        ("another version", vec![0x80, 2, 0, 1, 0, 0, 0, 0]),
        ("a control frame that is too long", vec![0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff]),
        ("settings with a count that is none", vec![0x80, 3, 0, 4, 0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff]),
        ("no header block", frame::open(21, b"rubbish", false)),
        ("a header block that blows up", frame::open(21, &block, false)),
    ];
    let number = wrong.len();
    for (what, bytes) in wrong {
        let mut client = Spdy::connect(&running.exec("stdin stdout", "cat"), "v4.channel.k8s.io").await;
        client.open_all("error stdin stdout").await;
        client.raw(&bytes).await;
        let started = Instant::now();
        client.finish().await;
        assert!(started.elapsed() < Duration::from_secs(5), "{what}: {:?}", started.elapsed());
    }
    reaches("all to end", &running.counts.ended, number).await;
    let client = WebSocket::connect(&running.exec("stdout", "echo on"), "v4.channel.k8s.io").await;
    assert_eq!(client.finish().await.0[&1], b"on\n");
    running.stop().await;
}

#[tokio::test]
async fn streams_of_a_client_are_bounded() {
    let running = Running::start().await;
    let mut client = Spdy::connect(&running.exec("stdin stdout", "cat"), "v4.channel.k8s.io").await;
    for _ in 0..100 {
        client.push(&[("streamtype", "mystery")], false).await;
    }
    while client.resets.len() < 84 {
        assert!(client.step().await);
    }
    assert_eq!(client.resets[0], 33, "sixteen are taken");
    running.stop().await;
}
