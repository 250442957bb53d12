//! Port-forward over SPDY, over WebSocket's channels, and over SPDY in a WebSocket.

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::client::{Spdy, WebSocket, closed, echo, port};
use super::{Running, descriptors, is_alone, pattern, until};
use crate::spdy::frame::{self, Decoder, Frame};
use crate::spdy::headers::Deflater;

/// Opens a pair as Kubernetes' client does: error first, half-closed, and then data.
async fn open_pair(client: &mut Spdy, port: u16, request: &str) -> (u32, u32) {
    let port = port.to_string();
    let headers = |kind| [("streamtype", kind), ("port", port.as_str()), ("requestid", request)];
    let error = client.open(&headers("error")).await;
    client.send(error, b"", true).await;
    (client.open(&headers("data")).await, error)
}

#[tokio::test]
async fn both_directions_end_on_their_own() {
    let running = Running::start().await;
    // Answers only after the client's end.
    let port = port(|mut stream| async move {
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all).await;
        let _ = stream.write_all(format!("{} bytes", all.len()).as_bytes()).await;
    })
    .await;
    let mut client = Spdy::connect(&running.forward(&[]), "portforward.k8s.io").await;
    let (data, error) = open_pair(&mut client, port, "0").await;
    client.send(data, &pattern(300_000), false).await;
    client.send(data, b"", true).await;
    client.ended(data).await;
    client.ended(error).await;
    assert_eq!((client.text(data), client.text(error)), ("300000 bytes".into(), String::new()));
    running.stop().await;
}

#[tokio::test]
async fn many_connections_share_a_client_and_none_mixes_with_another() {
    let running = Running::start().await;
    let port = echo().await;
    let mut client = Spdy::connect(&running.forward(&[]), "portforward.k8s.io").await;
    let mut pairs = Vec::new();
    for n in 0..50 {
        pairs.push(open_pair(&mut client, port, &n.to_string()).await);
    }
    for (data, _) in &pairs {
        client.send(*data, format!("this is {data}").as_bytes(), true).await;
    }
    for (data, error) in pairs {
        client.ended(data).await;
        client.ended(error).await;
        assert_eq!(client.text(data), format!("this is {data}"));
    }
    assert!(client.resets.is_empty());
    running.stop().await;
}

#[tokio::test]
async fn a_port_that_nobody_listens_at_is_an_error_of_its_pair() {
    let running = Running::start().await;
    let (closed, echo) = (closed().await, echo().await);
    let mut client = Spdy::connect(&running.forward(&[]), "portforward.k8s.io").await;
    let (data, error) = open_pair(&mut client, closed, "1").await;
    while client.resets.len() < 2 {
        assert!(client.step().await);
    }
    assert_eq!(client.resets, [error, data]);
    let start = format!("error forwarding port {closed} to pod pod, uid : connecting: ");
    assert!(client.text(error).starts_with(&start), "{}", client.text(error));
    let (data, _) = open_pair(&mut client, echo, "2").await;
    client.send(data, b"still here", true).await;
    client.ended(data).await;
    assert_eq!(client.text(data), "still here");
    running.stop().await;
}

#[tokio::test]
async fn streams_that_make_no_pair_are_reset() {
    let running = Running::start().await;
    let mut client = Spdy::connect(&running.forward(&[]), "portforward.k8s.io").await;
    let (longest, too_long) = ("x".repeat(256), "x".repeat(257));
    let named = |name| [("streamtype", "error"), ("port", "80"), ("requestid", name)];
    let taken = client.open(&named(&longest)).await;
    assert_ne!(client.resets.last(), Some(&taken));
    for headers in [
        &named(&too_long)[..],
        &[("streamtype", "data"), ("requestid", "1")],
        &[("streamtype", "data"), ("port", "0"), ("requestid", "1")],
        &[("streamtype", "data"), ("port", "65536"), ("requestid", "1")],
        &[("streamtype", "data"), ("port", "http"), ("requestid", "1")],
        &[("streamtype", "other"), ("port", "80"), ("requestid", "1")],
        &[("port", "80"), ("requestid", "1")],
    ] {
        let stream = client.open(headers).await;
        assert_eq!(client.resets.last(), Some(&stream), "{headers:?}");
    }
    let headers = [("streamtype", "error"), ("port", "80"), ("requestid", "2")];
    let first = client.open(&headers).await;
    assert_ne!(client.resets.last(), Some(&first));
    let second = client.open(&headers).await;
    assert_eq!(client.resets.last(), Some(&second), "a second one of the same kind");
    // The first one waits for its other half, for a second in tests.
    client.ended_or_reset(first).await;
    assert!(client.text(first).starts_with("timed out"), "{}", client.text(first));
    running.stop().await;
}

#[tokio::test]
async fn old_clients_pair_by_the_number_of_the_stream() {
    let running = Running::start().await;
    let port = echo().await.to_string();
    let mut client = Spdy::connect(&running.forward(&[]), "portforward.k8s.io").await;
    client.open(&[("streamtype", "error"), ("port", &port)]).await;
    let data = client.open(&[("streamtype", "data"), ("port", &port)]).await;
    client.send(data, b"old", true).await;
    client.ended(data).await;
    assert_eq!(client.text(data), "old");
    running.stop().await;
}

#[tokio::test]
async fn data_may_come_before_the_pair_is_complete() {
    let running = Running::start().await;
    let port = echo().await.to_string();
    let mut client = Spdy::connect(&running.forward(&[]), "portforward.k8s.io").await;
    let headers = |kind| [("streamtype", kind), ("port", port.as_str()), ("requestid", "9")];
    let data = client.push(&headers("data"), false).await;
    client.send(data, b"early", true).await;
    client.push(&headers("error"), true).await;
    client.ended(data).await;
    assert_eq!(client.text(data), "early");
    running.stop().await;
}

#[tokio::test]
async fn a_reset_ends_the_connection_to_the_port_and_no_other() {
    let running = Running::start().await;
    let (gone, seen) = tokio::sync::watch::channel(0);
    let port = port(move |mut stream| {
        let gone = gone.clone();
        async move {
            let mut all = Vec::new();
            let _ = stream.read_to_end(&mut all).await;
            gone.send_modify(|n| *n += 1);
        }
    })
    .await;
    let mut client = Spdy::connect(&running.forward(&[]), "portforward.k8s.io").await;
    let (first, _) = open_pair(&mut client, port, "1").await;
    let (second, _) = open_pair(&mut client, port, "2").await;
    client.send(first, b"x", false).await;
    client.raw(&frame::reset(first, frame::Reason::Cancel)).await;
    until("the first connection to end", || *seen.borrow() == 1).await;
    client.send(second, b"y", true).await;
    until("the second connection to end", || *seen.borrow() == 2).await;
    client.ended(second).await;
    running.stop().await;
}

#[tokio::test]
async fn channels_carry_two_ports_and_begin_with_their_numbers() {
    let running = Running::start().await;
    let (echo, closed) = (echo().await, closed().await);
    let mut client = WebSocket::connect(&running.forward(&[echo, closed]), "v4.channel.k8s.io").await;
    let mut begun = Vec::new();
    for _ in 0..2 {
        let (_, payload) = client.next().await.unwrap();
        begun.push(payload);
    }
    let [low, high] = echo.to_le_bytes();
    assert_eq!(begun, [[0, low, high], [1, low, high]]);
    client.channel(0, b"hello").await;
    let (mut echoed, mut error) = (Vec::new(), Vec::new());
    while echoed.len() < 5 || error.len() < 20 {
        let (_, payload) = client.next().await.unwrap();
        match payload[0] {
            0 => echoed.extend_from_slice(&payload[1..]),
            3 => error.extend_from_slice(&payload[1..]),
            _ => (),
        }
    }
    assert_eq!(echoed, b"hello");
    assert!(error.starts_with(&closed.to_le_bytes()));
    assert!(error[2..].starts_with(b"error forwarding port"));
    running.stop().await;
}

#[tokio::test]
async fn the_end_of_all_ports_ends_a_client_of_channels() {
    let running = Running::start().await;
    let port = port(|mut stream| async move {
        let _ = stream.write_all(b"bye").await;
    })
    .await;
    let client = WebSocket::connect(&running.forward(&[port]), "v4.base64.channel.k8s.io").await;
    let (channels, code) = client.finish().await;
    assert_eq!((&channels[&b'0'][4..], code), (&b"Ynll"[..], Some(1000)));
    running.stop().await;
}

#[tokio::test]
async fn spdy_may_come_in_the_messages_of_a_websocket() {
    let running = Running::start().await;
    let port = echo().await.to_string();
    let mut client = WebSocket::connect(&running.forward(&[]), "SPDY/3.1+portforward.k8s.io").await;
    let mut deflater = Deflater::new().unwrap();
    let mut sent = Vec::new();
    for (stream, kind) in [(1, "error"), (3, "data")] {
        let block = deflater.block(&[("streamtype", kind), ("port", &port), ("requestid", "0")]).unwrap();
        sent.extend(frame::open(stream, &block, kind == "error"));
    }
    sent.extend(frame::data_header(3, 9, true));
    sent.extend(b"tunnelled");
    sent.extend(frame::ping(5));
    // Messages may end anywhere.
    for piece in sent.chunks(7) {
        client.send(2, piece).await;
    }
    client.send(9, b"ping").await;
    let (mut decoder, mut buffer, mut echoed) = (Decoder::default(), BytesMut::new(), Vec::new());
    let (mut pinged, mut ponged, mut fin) = (false, false, false);
    while !(pinged && ponged && fin) {
        let (opcode, payload) = client.next().await.unwrap();
        if opcode == 10 {
            ponged = true;
            continue;
        }
        assert_eq!(opcode, 2);
        buffer.extend_from_slice(&payload);
        while let Some(frame) = decoder.decode(&mut buffer).unwrap() {
            match frame {
                Frame::Data { stream: 3, bytes, fin: end } => {
                    echoed.extend_from_slice(&bytes);
                    fin |= end;
                }
                Frame::Ping(5) => pinged = true,
                _ => (),
            }
        }
    }
    assert_eq!(echoed, b"tunnelled");
    running.stop().await;
}

/// It counts what its process has open, so it runs itself in one of its own.
#[tokio::test]
async fn a_thousand_connections_leave_nothing_behind() {
    if !is_alone("tests::forward::a_thousand_connections_leave_nothing_behind").await {
        return;
    }
    let running = Running::start().await;
    let port = echo().await;
    let mut client = Spdy::connect(&running.forward(&[]), "portforward.k8s.io").await;
    let (data, _) = open_pair(&mut client, port, "first").await;
    client.send(data, b"x", true).await;
    client.ended(data).await;
    until("the first connection's end", || descriptors() < 32).await;
    let before = descriptors();
    // Twice as many streams, and more than may be open at once: those that have ended are forgotten.
    for n in 0..2200 {
        let (data, error) = open_pair(&mut client, port, &n.to_string()).await;
        client.send(data, b"hello", true).await;
        client.ended(data).await;
        client.ended(error).await;
        assert_eq!(client.bytes(data), b"hello");
        client.streams.clear();
    }
    until("all connections to be closed", || descriptors() <= before).await;
    // As many at once, and the client leaves in the middle.
    for n in 0..200 {
        let (data, _) = open_pair(&mut client, port, &format!("at once {n}")).await;
        client.send(data, b"x", false).await;
    }
    drop(client);
    until("the client's connections to be closed", || descriptors() < before).await;
    for _ in 0..100 {
        let client = Spdy::connect(&running.forward(&[]), "portforward.k8s.io").await;
        drop(client);
        drop(WebSocket::connect(&running.forward(&[port]), "v4.channel.k8s.io").await);
    }
    until("all clients to be gone", || descriptors() < before).await;
    running.stop().await;
}
