//! Kubernetes' own client library against the example server, over SPDY and WebSocket, in the clear and by TLS.

#![expect(clippy::print_stderr, reason = "that is where a test says that it is skipped")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The directory of this test's profile, where the example is, too.
fn profile() -> PathBuf {
    let this = std::env::current_exe().expect("a test has a path");
    this.ancestors().nth(2).expect("target, profile, deps, test").to_owned()
}

/// The client, or why it can't be run.
fn client() -> Result<PathBuf, String> {
    let peers = std::env::var_os("CRIOX_PEERS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/peers"), PathBuf::from);
    let client = peers.join("bin/streaming-client");
    if !client.exists() {
        return Err(format!("{} is not there: run scripts/peers clients", client.display()));
    }
    Ok(client)
}

fn check(arguments: &str) {
    let server = profile().join("examples/server");
    assert!(server.exists(), "cargo test builds {}", server.display());
    let client = match client() {
        Ok(client) => client,
        Err(reason) => return eprintln!("skipped: client-go: {reason}"),
    };
    let Output { status, stdout, .. } = Command::new(client)
        .arg("check")
        .arg(server)
        .env("SERVER_ARGUMENTS", arguments)
        .output()
        .expect("the client starts");
    let text = String::from_utf8_lossy(&stdout);
    let failed: Vec<_> = text.lines().filter(|line| !line.starts_with("ok ")).collect();
    assert!(status.success(), "{failed:#?}");
    assert!(text.contains(" passed, 0 failed"), "{text}");
}

#[test]
fn kubernetes_client_is_served() {
    check("");
}

#[test]
fn kubernetes_client_is_served_over_tls() {
    let dir = tempfile::tempdir().unwrap();
    let made = Command::new("openssl")
        .args(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=server"
                .split(' '),
        )
        .args("-addext subjectAltName=IP:127.0.0.1 -keyout server.key -out server.crt".split(' '))
        .current_dir(dir.path())
        .output();
    if !made.is_ok_and(|made| made.status.success()) {
        return eprintln!("skipped: client-go over TLS: openssl is not installed");
    }
    let path = |name: &str| dir.path().join(name).display().to_string();
    check(&format!("{} {}", path("server.crt"), path("server.key")));
}
