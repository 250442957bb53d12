//! Clients that disappear, at each phase of a session.

use tokio::io::AsyncWriteExt;
use tokio::time::{sleep, timeout};

use super::client::{QUIET, Spdy, WebSocket, request};
use super::{LIMIT, Running, descriptors, is_alone, reaches, until};
use crate::spdy::frame;
use crate::websocket::frame::client_frame;

#[tokio::test]
async fn one_that_leaves_before_its_streams_are_open_starts_nothing() {
    let running = Running::start().await;
    let mut client = Spdy::connect(&running.exec("stdin stdout", "cat"), "v4.channel.k8s.io").await;
    client.open_all("error stdin").await;
    drop(client);
    let headers = [("Connection", "Upgrade")];
    let (answer, _) = request(&running.exec("stdout", "true"), "GET", &headers).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    sleep(QUIET).await;
    reaches("nothing", &running.counts.asked, 0).await;
    running.stop().await;
}

#[tokio::test]
async fn one_that_does_not_open_its_streams_is_left() {
    let running = Running::start().await;
    let mut client = Spdy::connect(&running.exec("stdin stdout", "cat"), "v4.channel.k8s.io").await;
    client.open_all("error stdin").await;
    // A second in tests.
    client.finish().await;
    reaches("nothing", &running.counts.asked, 0).await;
    running.stop().await;
}

#[tokio::test]
async fn one_that_leaves_while_its_process_starts_gives_the_start_up() {
    let running = Running::start().await;
    let mut client = Spdy::connect(&running.exec_in("slow", "stdout", "true"), "v4.channel.k8s.io").await;
    client.open_all("error stdout").await;
    reaches("a call", &running.counts.asked, 1).await;
    drop(client);
    reaches("its end", &running.counts.dropped, 1).await;
    let client = WebSocket::connect(&running.exec_in("slow", "stdout", "true"), "v4.channel.k8s.io").await;
    reaches("a call", &running.counts.asked, 2).await;
    drop(client);
    reaches("its end", &running.counts.dropped, 2).await;
    reaches("no process", &running.counts.started, 0).await;
    running.stop().await;
}

#[tokio::test]
async fn one_that_leaves_ends_its_process() {
    let running = Running::start().await;
    let mut client = Spdy::connect(&running.exec("stdin stdout", "sleep 1000"), "v4.channel.k8s.io").await;
    client.open_all("error stdin stdout").await;
    reaches("a process", &running.counts.started, 1).await;
    drop(client);
    reaches("its end", &running.counts.ended, 1).await;

    let mut client =
        WebSocket::connect(&running.exec("stdin stdout", "sleep 1000"), "v4.channel.k8s.io").await;
    reaches("a process", &running.counts.started, 2).await;
    client.send(8, &1000u16.to_be_bytes()).await;
    assert_eq!(client.finish().await.1, Some(1000), "a close is answered");
    reaches("its end", &running.counts.ended, 2).await;
    reaches("both to be abandoned", &running.counts.abandoned, 2).await;
    running.stop().await;
}

#[tokio::test]
async fn one_that_leaves_in_the_middle_of_a_frame_ends_its_process() {
    let running = Running::start().await;
    let mut client = Spdy::connect(&running.exec("stdin stdout", "cat"), "v4.channel.k8s.io").await;
    let streams = client.open_all("error stdin stdout").await;
    client.raw(&frame::data_header(streams["stdin"], 1000, false)).await;
    client.raw(b"only this").await;
    drop(client);
    reaches("its end", &running.counts.ended, 1).await;

    let mut client = WebSocket::connect(&running.exec("stdin stdout", "cat"), "v4.channel.k8s.io").await;
    client.raw(&client_frame(true, 2, &[0; 1000])[..50]).await;
    drop(client);
    reaches("its end", &running.counts.ended, 2).await;
    running.stop().await;
}

#[tokio::test]
async fn one_that_leaves_while_its_process_takes_no_input_ends_it() {
    let running = Running::start().await;
    let mut client = Spdy::connect(&running.exec("stdin stdout", "sleep 1000"), "v4.channel.k8s.io").await;
    let streams = client.open_all("error stdin stdout").await;
    // More than the pipe and the queue take, and less than the kernel's buffers in addition.
    let piece = vec![b'x'; 64 << 10];
    for _ in 0..20 {
        client.send(streams["stdin"], &piece, false).await;
    }
    reaches("a process", &running.counts.started, 1).await;
    sleep(QUIET).await;
    drop(client);
    reaches("its end", &running.counts.ended, 1).await;
    running.stop().await;
}

#[tokio::test]
async fn one_that_leaves_without_reading_ends_its_process() {
    let running = Running::start().await;
    for (n, protocol) in ["v4.channel.k8s.io", "v5.channel.k8s.io"].into_iter().enumerate() {
        let client = WebSocket::connect(&running.exec("stdout", "exec yes"), protocol).await;
        reaches("a process", &running.counts.started, n + 1).await;
        sleep(QUIET).await;
        drop(client);
        reaches("its end", &running.counts.ended, n + 1).await;
    }
    running.stop().await;
}

#[tokio::test]
async fn the_servers_end_ends_all_sessions() {
    let running = Running::start().await;
    let counts = running.counts.clone();
    let mut client = Spdy::connect(&running.exec("stdin stdout", "sleep 1000"), "v4.channel.k8s.io").await;
    client.open_all("error stdin stdout").await;
    let idle = Spdy::connect(&running.forward(&[]), "portforward.k8s.io").await;
    reaches("a process", &counts.started, 1).await;
    running.stop().await;
    reaches("its end", &counts.ended, 1).await;
    timeout(LIMIT, client.finish()).await.unwrap();
    timeout(LIMIT, idle.finish()).await.unwrap();
}

#[tokio::test]
async fn a_client_that_gives_up_a_stream_keeps_the_others() {
    let running = Running::start().await;
    let url = running.exec("stdout stderr", "yes | head -c 3000000; echo late >&2");
    let mut client = Spdy::connect(&url, "v4.channel.k8s.io").await;
    let streams = client.open_all("error stdout stderr").await;
    client.raw(&frame::reset(streams["stdout"], frame::Reason::Cancel)).await;
    let client = client.finish().await;
    assert_eq!(client.text(streams["stderr"]), "late\n");
    assert_eq!(client.text(streams["error"]), r#"{"status":"Success"}"#);
    running.stop().await;
}

#[tokio::test]
async fn half_a_request_is_not_waited_for_for_ever() {
    let running = Running::start().await;
    let address = running.server.base().strip_prefix("http://").unwrap();
    let mut silent = tokio::net::TcpStream::connect(address).await.unwrap();
    silent.write_all(b"GET /exec/abc HTTP/1.1\r\nHost:").await.unwrap();
    // Others are served meanwhile.
    let client = WebSocket::connect(&running.exec("stdout", "echo on"), "v4.channel.k8s.io").await;
    assert_eq!(client.finish().await.0[&1], b"on\n");
    let mut answer = Vec::new();
    let read = tokio::io::AsyncReadExt::read_to_end(&mut silent, &mut answer);
    timeout(LIMIT, read).await.unwrap().unwrap();
    running.stop().await;
}

#[tokio::test]
async fn sessions_of_every_kind_leave_nothing_behind() {
    if !is_alone("tests::gone::sessions_of_every_kind_leave_nothing_behind").await {
        return;
    }
    let running = Running::start().await;
    let before = descriptors();
    for n in 0..100 {
        let client = WebSocket::connect(&running.exec("stdout", "echo on"), "v5.channel.k8s.io").await;
        assert_eq!(client.finish().await.0[&1], b"on\n", "{n}");
        let mut client = Spdy::connect(&running.exec("stdin stdout", "cat"), "v4.channel.k8s.io").await;
        let streams = client.open_all("error stdin stdout").await;
        client.send(streams["stdin"], b"on", true).await;
        assert_eq!(client.finish().await.text(streams["stdout"]), "on");
        // These leave: before their streams, while it starts, with a terminal, without a word.
        drop(Spdy::connect(&running.exec("stdin stdout", "cat"), "v4.channel.k8s.io").await);
        drop(WebSocket::connect(&running.exec_in("slow", "stdout", "cat"), "v4.channel.k8s.io").await);
        let tty = running.exec("tty stdin stdout", "cat");
        drop(WebSocket::connect(&tty, "v4.channel.k8s.io").await);
        drop(tokio::net::TcpStream::connect(super::client::split(&tty).0).await.unwrap());
    }
    until("all descriptors to be closed", || descriptors() <= before).await;
    let started = running.counts.started.load(std::sync::atomic::Ordering::SeqCst);
    reaches("all processes to end", &running.counts.ended, started).await;
    running.stop().await;
}
