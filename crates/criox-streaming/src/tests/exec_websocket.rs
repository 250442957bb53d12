//! Exec and attach over WebSocket.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::client::WebSocket;
use super::{Running, pattern};
use crate::websocket::frame::client_frame;

#[tokio::test]
async fn output_and_exit_code_come_on_their_channels() {
    let running = Running::start().await;
    let url = running.exec("stdout stderr", "echo out; echo err >&2; exit 7");
    let client = WebSocket::connect(&url, "v4.channel.k8s.io").await;
    let (channels, code) = client.finish().await;
    assert_eq!((&channels[&1][..], &channels[&2][..]), (&b"out\n"[..], &b"err\n"[..]));
    let status: Value = serde_json::from_slice(&channels[&3]).unwrap();
    assert_eq!(status["details"]["causes"][0]["message"], "7");
    assert_eq!(code, Some(1000));
    running.stop().await;
}

#[tokio::test]
async fn the_first_message_is_empty_and_says_that_the_server_is_there() {
    let running = Running::start().await;
    for (streams, want) in [("stdin stdout stderr", 1), ("stdin stderr", 2), ("stdin", 3)] {
        let mut client = WebSocket::connect(&running.exec(streams, "cat"), "v4.channel.k8s.io").await;
        assert_eq!(client.next().await, Some((2, vec![want])), "{streams}");
    }
    running.stop().await;
}

#[tokio::test]
async fn version_5_closes_stdin_by_a_message() {
    let running = Running::start().await;
    let mut client = WebSocket::connect(&running.exec("stdin stdout", "cat"), "v5.channel.k8s.io").await;
    let sent = pattern(1_000_000);
    let mut got = Vec::new();
    for piece in sent.chunks(100_000) {
        client.channel(0, piece).await;
        while got.len() + 150_000 < sent.len() && got.len() < 100_000 {
            let (_, payload) = client.next().await.unwrap();
            got.extend_from_slice(&payload[1..]);
        }
    }
    client.send(2, &[255, 0]).await;
    let (channels, code) = client.finish().await;
    got.extend_from_slice(&channels[&1]);
    assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
    assert_eq!((&channels[&3][..], code), (&br#"{"status":"Success"}"#[..], Some(1000)));
    running.stop().await;
}

#[tokio::test]
async fn base64_is_spoken_to_those_who_ask_for_it() {
    let running = Running::start().await;
    let url = running.exec("stdin stdout", "read x; echo \"<$x>\"");
    let mut client = WebSocket::connect(&url, "v4.base64.channel.k8s.io").await;
    assert_eq!(client.next().await, Some((1, b"1".to_vec())));
    client.send(1, format!("0{}", STANDARD.encode("hello\n")).as_bytes()).await;
    let (mut out, mut status) = (Vec::new(), Vec::new());
    while let Some((1, payload)) = client.next().await {
        let bytes = STANDARD.decode(&payload[1..]).unwrap();
        if payload[0] == b'1' { out.extend(bytes) } else { status.extend(bytes) }
    }
    assert_eq!((&out[..], &status[..]), (&b"<hello>\n"[..], &br#"{"status":"Success"}"#[..]));
    running.stop().await;
}

#[tokio::test]
async fn clients_without_a_subprotocol_read_a_text() {
    let running = Running::start().await;
    let client = WebSocket::connect(&running.exec("stdout", "exit 1"), "").await;
    let (channels, _) = client.finish().await;
    assert_eq!(channels[&3], b"command terminated with non-zero exit code: exit code 1");
    running.stop().await;
}

#[tokio::test]
async fn messages_may_be_fragmented_with_pings_between() {
    let running = Running::start().await;
    let mut client =
        WebSocket::connect(&running.exec("stdin stdout", "head -c 6"), "v4.channel.k8s.io").await;
    assert_eq!(client.next().await, Some((2, vec![1])));
    client.raw(&client_frame(false, 2, b"\0ab")).await;
    client.send(9, b"are you there").await;
    client.raw(&client_frame(false, 0, b"cd")).await;
    client.raw(&client_frame(true, 0, b"ef")).await;
    assert_eq!(client.next().await, Some((10, b"are you there".to_vec())));
    let (channels, code) = client.finish().await;
    assert_eq!((&channels[&1][..], code), (&b"abcdef"[..], Some(1000)));
    running.stop().await;
}

#[tokio::test]
async fn a_terminal_takes_sizes_by_channel_4() {
    let running = Running::start().await;
    let url = running.exec("tty stdin stdout", "while read x; do stty size; done");
    let mut client = WebSocket::connect(&url, "v4.channel.k8s.io").await;
    client.channel(4, br#"{"Width":100,"Height":40}"#).await;
    client.channel(4, b"nonsense").await;
    client.channel(9, b"no channel").await;
    let mut seen = String::new();
    while !seen.contains("40 100\r\n") {
        client.channel(0, b"\n").await;
        let (_, payload) = client.next().await.unwrap();
        seen += std::str::from_utf8(&payload[1..]).unwrap();
    }
    running.stop().await;
}

#[tokio::test]
async fn attach_is_spoken_as_exec() {
    let running = Running::start().await;
    let mut client =
        WebSocket::connect(&running.attach("stdin stdout", "read x; echo $x; exit 4"), "v5.channel.k8s.io")
            .await;
    client.channel(0, b"joined\n").await;
    let (channels, _) = client.finish().await;
    assert_eq!((&channels[&1][..], &channels[&3][..]), (&b"joined\n"[..], &br#"{"status":"Success"}"#[..]));
    running.stop().await;
}

#[tokio::test]
async fn a_client_that_breaks_the_rules_is_told_so_and_its_process_ended() {
    let running = Running::start().await;
    let wrong: [(&str, Vec<u8>); 4] = [
        ("no mask", vec![0x82, 2, 0, b'x']),
        ("a reserved bit", vec![0xc2, 0x80, 0, 0, 0, 0]),
        ("a long ping", client_frame(true, 9, &[0; 200])),
        ("not base64", client_frame(true, 1, b"0!!!!")),
    ];
    for (n, (what, bytes)) in wrong.iter().enumerate() {
        let url = running.exec("stdin stdout", "cat");
        let mut client = WebSocket::connect(&url, "v4.base64.channel.k8s.io").await;
        client.raw(bytes).await;
        let (_, code) = client.finish().await;
        assert_eq!(code, Some(1002), "{what}");
        super::reaches(what, &running.counts.abandoned, n + 1).await;
    }
    super::reaches("processes to end", &running.counts.ended, wrong.len()).await;
    running.stop().await;
}
