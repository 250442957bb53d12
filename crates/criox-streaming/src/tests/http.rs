//! Requests that lead nowhere.

use tokio::io::AsyncReadExt;
use tokio::time::timeout;

use super::client::{Spdy, request};
use super::{LIMIT, Running};

const SPDY: &[(&str, &str)] =
    &[("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1"), ("X-Stream-Protocol-Version", "v4.channel.k8s.io")];

/// Status and whole answer.
async fn check(url: &str, method: &str, headers: &[(&str, &str)], status: u16, text: &str) {
    let (head, mut stream) = request(url, method, headers).await;
    assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
    let mut body = String::new();
    timeout(LIMIT, stream.read_to_string(&mut body)).await.unwrap().unwrap();
    assert!((head.clone() + &body).contains(text), "{head}{body} has no {text}");
}

#[tokio::test]
async fn a_url_is_good_once_whatever_becomes_of_it() {
    let running = Running::start().await;
    let url = running.exec("stdout", "true");
    drop(Spdy::connect(&url, "v4.channel.k8s.io").await);
    check(&url, "POST", SPDY, 404, "404 page not found").await;
    let url = running.exec("stdout", "true");
    check(&url, "GET", &[], 400, "X-Stream-Protocol-Version").await;
    check(&url, "POST", SPDY, 404, "404 page not found").await;
    running.stop().await;
}

#[tokio::test]
async fn guesses_find_nothing() {
    let running = Running::start().await;
    let base = running.server.base();
    for path in ["/", "/exec/", "/exec/AAAAAAAAAAAAAAAAAAAAAA", "/attach/x", "/portforward/..", "/metrics"] {
        check(&format!("{base}{path}"), "GET", SPDY, 404, "404 page not found").await;
    }
    let url = running.exec("stdout", "true");
    check(&url.replace("/exec/", "/attach/"), "POST", SPDY, 404, "404").await;
    check(&url, "DELETE", SPDY, 405, "405").await;
    // None of these has spent it.
    drop(Spdy::connect(&url, "v4.channel.k8s.io").await);
    running.stop().await;
}

#[tokio::test]
async fn protocols_that_are_not_spoken_are_refused_with_those_that_are() {
    let running = Running::start().await;
    let asks = |protocol| [SPDY[0], SPDY[1], ("X-Stream-Protocol-Version", protocol)];
    let url = running.exec("stdout", "true");
    let accepted = "X-Accepted-Stream-Protocol-Versions: v4.channel.k8s.io\r\n\
                    X-Accepted-Stream-Protocol-Versions: v3.channel.k8s.io\r\n";
    check(&url, "POST", &asks("v5.channel.k8s.io"), 403, accepted).await;
    let url = running.forward(&[]);
    check(&url, "POST", &asks("v4.channel.k8s.io"), 403, "Versions: portforward.k8s.io").await;
    let url = running.exec("stdout", "true");
    check(&url, "POST", &asks(""), 400, "X-Stream-Protocol-Version").await;
    let url = running.exec("stdout", "true");
    check(&url, "POST", &[SPDY[2], ("Connection", "close")], 400, "Upgrade: SPDY/3.1").await;
    running.stop().await;
}

#[tokio::test]
async fn handshakes_of_websocket_that_are_none_are_refused() {
    let running = Running::start().await;
    let shake = |version, key, protocol| {
        [
            ("Connection", "keep-alive, Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", version),
            ("Sec-WebSocket-Key", key),
            ("Sec-WebSocket-Protocol", protocol),
        ]
    };
    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
    let url = || running.exec("stdout", "true");
    check(&url(), "GET", &shake("8", KEY, "v4.channel.k8s.io"), 426, "13").await;
    check(&url(), "GET", &shake("13", "short", "v4.channel.k8s.io"), 400, "Sec-WebSocket-Key").await;
    check(&url(), "GET", &shake("13", KEY, "chat"), 403, "subprotocols").await;
    check(&url(), "POST", &shake("13", KEY, "v4.channel.k8s.io"), 405, "GET").await;
    check(&running.forward(&[]), "GET", &shake("13", KEY, "v4.channel.k8s.io"), 400, "1 to 32 ports").await;
    check(&running.forward(&[1; 33]), "GET", &shake("13", KEY, "v4.channel.k8s.io"), 400, "1 to 32 ports")
        .await;
    running.stop().await;
}
