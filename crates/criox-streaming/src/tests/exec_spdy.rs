//! Exec and attach over SPDY.

use serde_json::{Value, json};

use super::client::Spdy;
use super::{Running, pattern};
use crate::spdy::frame;

#[tokio::test]
async fn output_and_exit_code_come_on_their_own_streams() {
    let running = Running::start().await;
    let url = running.exec("stdout stderr", "echo out; echo err >&2; exit 7");
    let mut client = Spdy::connect(&url, "v5.channel.k8s.io, v4.channel.k8s.io").await;
    let streams = client.open_all("error stdout stderr").await;
    let client = client.finish().await;
    assert_eq!(client.text(streams["stdout"]), "out\n");
    assert_eq!(client.text(streams["stderr"]), "err\n");
    let status: Value = serde_json::from_slice(client.bytes(streams["error"])).unwrap();
    assert_eq!(status["reason"], "NonZeroExitCode");
    assert_eq!(status["details"]["causes"], json!([{"reason": "ExitCode", "message": "7"}]));
    for stream in streams.values() {
        assert!(client.streams[stream].1, "stream {stream} has no end");
    }
    running.stop().await;
}

#[tokio::test]
async fn the_end_of_stdin_is_passed_on_and_nothing_is_lost() {
    let running = Running::start().await;
    let mut client = Spdy::connect(&running.exec("stdin stdout", "cat"), "v4.channel.k8s.io").await;
    let streams = client.open_all("error stdin stdout").await;
    let sent = pattern(5_000_000);
    let mut write = sent.chunks(70_000);
    // As much as the process gives back before more is written: both directions are full at times.
    while let Some(piece) = write.next() {
        client.send(streams["stdin"], piece, write.len() == 0).await;
        while client.bytes(streams["stdout"]).len() + 200_000 < sent.len() - write.len() * 70_000 {
            assert!(client.step().await);
        }
    }
    let client = client.finish().await;
    let read = client.bytes(streams["stdout"]);
    assert!(read == sent, "{} of {} bytes", read.len(), sent.len());
    assert_eq!(client.text(streams["error"]), r#"{"status":"Success"}"#);
    running.stop().await;
}

#[tokio::test]
async fn old_clients_read_a_text_and_nothing_for_success() {
    let running = Running::start().await;
    for (protocol, command, want) in [
        ("v3.channel.k8s.io", "exit 3", "command terminated with non-zero exit code: exit code 3"),
        ("v2.channel.k8s.io", "exit 0", ""),
        ("channel.k8s.io", "kill -9 $$", "command terminated with non-zero exit code: exit code 137"),
    ] {
        let mut client = Spdy::connect(&running.exec("stdout", command), protocol).await;
        let streams = client.open_all("error stdout").await;
        let client = client.finish().await;
        assert_eq!(client.text(streams["error"]), want, "{protocol}");
        assert!(client.streams[&streams["error"]].1);
    }
    running.stop().await;
}

#[tokio::test]
async fn a_terminal_takes_the_clients_sizes() {
    let running = Running::start().await;
    let url = running.exec("tty stdin stdout", "while read x; do stty size; done");
    let mut client = Spdy::connect(&url, "v4.channel.k8s.io").await;
    let streams = client.open_all("error stdin stdout resize").await;
    for (width, height) in [(80, 24), (132, 50)] {
        let size = format!("{{\"Width\":{width},\"Height\":{height}}}\n");
        client.send(streams["resize"], size.as_bytes(), false).await;
        let want = format!("{height} {width}\r\n");
        // The size and the line race for the process.
        while !client.text(streams["stdout"]).contains(&want) {
            client.send(streams["stdin"], b"\n", false).await;
            assert!(client.step().await);
        }
    }
    client.send(streams["stdin"], &[4], true).await;
    let client = client.finish().await;
    assert_eq!(client.text(streams["error"]), r#"{"status":"Success"}"#);
    running.stop().await;
}

#[tokio::test]
async fn a_process_that_cannot_be_started_is_a_status() {
    let running = Running::start().await;
    let mut client = Spdy::connect(&running.exec_in("missing", "stdout", "true"), "v4.channel.k8s.io").await;
    let streams = client.open_all("error stdout").await;
    let client = client.finish().await;
    let status: Value = serde_json::from_slice(client.bytes(streams["error"])).unwrap();
    let text = "Internal error occurred: error executing command in container: no such container: missing";
    assert_eq!((status["code"].as_u64(), status["message"].as_str()), (Some(500), Some(text)));

    let mut client = Spdy::connect(&running.attach("stdout", "missing"), "v4.channel.k8s.io").await;
    let streams = client.open_all("error stdout").await;
    let client = client.finish().await;
    assert!(client.text(streams["error"]).contains("error attaching to container: no such container"));
    running.stop().await;
}

#[tokio::test]
async fn an_attached_client_hears_nothing_of_the_exit_code() {
    let running = Running::start().await;
    let mut client =
        Spdy::connect(&running.attach("stdin stdout", "read x; echo $x; exit 9"), "v4.channel.k8s.io").await;
    let streams = client.open_all("error stdin stdout").await;
    client.send(streams["stdin"], b"hello\n", false).await;
    let client = client.finish().await;
    assert_eq!(client.text(streams["stdout"]), "hello\n");
    assert_eq!(client.text(streams["error"]), r#"{"status":"Success"}"#);
    running.stop().await;
}

#[tokio::test]
async fn pings_are_answered_and_what_has_no_meaning_is_ignored() {
    let running = Running::start().await;
    let mut client = Spdy::connect(&running.exec("stdin stdout", "cat"), "v4.channel.k8s.io").await;
    client.raw(&frame::ping(1)).await;
    client.raw(&[0x80, 3, 0, 4, 0, 0, 0, 12, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0xff, 0xff]).await;
    client.raw(&[0x80, 3, 0, 9, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 3, 0xe8]).await;
    client.raw(&[0x80, 3, 0, 77, 0, 0, 0, 1, 0]).await;
    let streams = client.open_all("error mystery stdin stdout").await;
    client.send(streams["mystery"], b"what?", true).await;
    client.raw(&frame::ping(3)).await;
    client.raw(&frame::ping(2)).await;
    client.raw(&frame::goaway(0, 0)).await;
    client.send(streams["stdin"], b"still here", true).await;
    let client = client.finish().await;
    assert_eq!(client.pings, [1, 3], "an even number answers a ping of ours, and there was none");
    assert_eq!(client.text(streams["stdout"]), "still here");
    running.stop().await;
}

#[tokio::test]
async fn bad_and_further_streams_are_refused_and_the_session_goes_on() {
    let running = Running::start().await;
    let mut client = Spdy::connect(&running.exec("stdin stdout", "cat"), "v4.channel.k8s.io").await;
    let error = client.open(&[("streamtype", "error")]).await;
    let twice = client.open(&[("streamtype", "error")]).await;
    let stdin = client.open(&[("streamtype", "stdin")]).await;
    let stdout = client.open(&[("streamtype", "stdout")]).await;
    let late = client.open(&[("streamtype", "stderr")]).await;
    assert_eq!(client.resets, [twice, late]);
    client.send(stdin, b"on", true).await;
    client.send(stdin, b"after the end", false).await;
    client.send(999, b"on no stream", false).await;
    let client = client.finish().await;
    assert_eq!((client.text(stdout), client.text(error)), ("on".into(), r#"{"status":"Success"}"#.into()));
    running.stop().await;
}

#[tokio::test]
async fn what_comes_before_all_streams_are_open_is_kept() {
    let running = Running::start().await;
    let mut client = Spdy::connect(&running.exec("stdin stdout", "cat"), "v4.channel.k8s.io").await;
    let stdin = client.open(&[("streamtype", "stdin")]).await;
    client.send(stdin, b"early ", false).await;
    let error = client.open(&[("streamtype", "error")]).await;
    client.send(stdin, b"bird", true).await;
    let stdout = client.open(&[("streamtype", "stdout")]).await;
    let client = client.finish().await;
    assert_eq!(client.text(stdout), "early bird");
    assert!(client.streams[&error].1);
    running.stop().await;
}
