//! TLS: certificates that change, clients that need one, versions and suites. Certificates are made by `openssl`; without
//! it these tests say so.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

use super::client::split;
use super::{LIMIT, Running};
use crate::options::{Options, Tls};
use crate::server::{BindError, Server};
use crate::tests::host::Host;
use crate::tls::TlsError;

const OLD: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS12];

fn openssl(dir: &Path, arguments: &str) -> bool {
    let arguments = arguments.split(' ').filter(|argument| !argument.is_empty());
    Command::new("openssl").args(arguments).current_dir(dir).output().is_ok_and(|out| out.status.success())
}

/// A directory with a certificate that signs itself, as `NAME.crt` and `NAME.key`; `None` without openssl.
fn certificate(dir: &Path, name: &str, days: &str) -> Option<()> {
    let made = openssl(
        dir,
        &format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days {days} -subj /CN={name} \
             -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE -keyout {name}.key -out {name}.crt"
        ),
    );
    if !made {
        eprintln!("skipped: openssl is not installed, or made no certificate");
    }
    made.then_some(())
}

fn files(dir: &Path) -> Tls {
    Tls {
        certificate: dir.join("server.crt"),
        key: dir.join("server.key"),
        client_authority: None,
        only_tls13: false,
        cipher_suites: Vec::new(),
    }
}

/// What a client connects with: whom it trusts, its certificate, and the versions it speaks.
struct Client {
    trusts: PathBuf,
    own: Option<(PathBuf, PathBuf)>,
    versions: &'static [&'static rustls::SupportedProtocolVersion],
}

impl Client {
    fn trusting(trusts: PathBuf) -> Self {
        Self { trusts, own: None, versions: rustls::ALL_VERSIONS }
    }

    fn config(&self) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(&self.trusts).unwrap() {
            roots.add(certificate.unwrap()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(self.versions)
            .unwrap()
            .with_root_certificates(roots);
        match &self.own {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let certificates = CertificateDer::pem_file_iter(certificate).unwrap();
                let certificates = certificates.collect::<Result<_, _>>().unwrap();
                let key = PrivateKeyDer::from_pem_file(key).unwrap();
                builder.with_client_auth_cert(certificates, key).unwrap()
            }
        }
    }

    /// Runs `echo over` through TLS; the server's certificate and what came.
    async fn run(&self, running: &Running) -> Result<(Vec<u8>, String), String> {
        let url = running.exec("stdout", "echo over");
        assert!(url.starts_with("https://127.0.0.1:"), "{url}");
        let (address, path) = split(&url);
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let connector = TlsConnector::from(Arc::new(self.config()));
        let text = |error: std::io::Error| error.to_string();
        let mut stream = timeout(LIMIT, connector.connect(name, stream)).await.unwrap().map_err(text)?;
        let certificate = stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.map_err(text)?;
        let mut all = Vec::new();
        while !all.windows(5).any(|part| part == b"over\n") {
            if timeout(LIMIT, stream.read_buf(&mut all)).await.unwrap().map_err(text)? == 0 {
                return Err("closed".to_owned());
            }
        }
        Ok((certificate, String::from_utf8_lossy(&all).into_owned()))
    }
}

#[tokio::test]
async fn certificates_are_read_again_when_they_change() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let Some(()) = certificate(dir, "server", "30") else { return };
    let running = Running::with(Options { tls: Some(files(dir)), ..Options::new() }).await;
    let (first, answer) = Client::trusting(dir.join("server.crt")).run(&running).await.unwrap();
    assert!(answer.contains("over\n"));
    // Rubbish changes nothing.
    std::fs::rename(dir.join("server.crt"), dir.join("old.crt")).unwrap();
    std::os::unix::fs::symlink("/dev/null", dir.join("server.crt")).unwrap();
    sleep(Duration::from_millis(1100)).await;
    let (same, _) = Client::trusting(dir.join("old.crt")).run(&running).await.unwrap();
    assert_eq!(same, first);
    std::fs::remove_file(dir.join("server.crt")).unwrap();
    let Some(()) = certificate(dir, "server", "30") else { return };
    sleep(Duration::from_millis(1100)).await;
    let (second, _) = Client::trusting(dir.join("server.crt")).run(&running).await.unwrap();
    assert_ne!(second, first);
    running.stop().await;
}

#[tokio::test]
async fn clients_need_a_certificate_of_the_authority() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let Some(()) = certificate(dir, "server", "30") else { return };
    let Some(()) = certificate(dir, "other", "30") else { return };
    let made = openssl(
        dir,
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=ca -keyout ca.key -out ca.crt",
    ) && openssl(
        dir,
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN=client \
         -addext basicConstraints=critical,CA:FALSE -CA ca.crt -CAkey ca.key -keyout client.key -out client.crt",
    );
    assert!(made);
    let tls = Tls { client_authority: Some(dir.join("ca.crt")), ..files(dir) };
    let running = Running::with(Options { tls: Some(tls), ..Options::new() }).await;
    let client = |own: Option<&str>| Client {
        own: own.map(|own| (dir.join(format!("{own}.crt")), dir.join(format!("{own}.key")))),
        ..Client::trusting(dir.join("server.crt"))
    };
    assert!(client(Some("client")).run(&running).await.is_ok());
    assert!(client(None).run(&running).await.is_err());
    assert!(client(Some("other")).run(&running).await.is_err());
    running.stop().await;
}

#[tokio::test]
async fn the_lowest_version_and_the_suites_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let Some(()) = certificate(dir, "server", "30") else { return };
    let old = Client { versions: OLD, ..Client::trusting(dir.join("server.crt")) };
    let start = |tls| Running::with(Options { tls: Some(tls), ..Options::new() });
    let running = start(files(dir)).await;
    assert!(old.run(&running).await.is_ok());
    running.stop().await;
    let running = start(Tls { only_tls13: true, ..files(dir) }).await;
    assert!(old.run(&running).await.is_err());
    assert!(Client::trusting(dir.join("server.crt")).run(&running).await.is_ok());
    running.stop().await;
    // The certificate's key is of an elliptic curve: a suite for RSA leaves nothing to agree on.
    let suites = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let only = suites(&["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "TLS_RSA_WITH_AES_128_CBC_SHA"]);
    let running = start(Tls { cipher_suites: only, ..files(dir) }).await;
    assert!(old.run(&running).await.is_err());
    running.stop().await;
    let only = suites(&["TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305"]);
    let running = start(Tls { cipher_suites: only, ..files(dir) }).await;
    assert!(old.run(&running).await.is_ok());
    running.stop().await;
    let only = suites(&["TLS_RSA_WITH_AES_128_CBC_SHA"]);
    check_bind(Tls { cipher_suites: only, ..files(dir) }, |error| matches!(error, TlsError::Suites)).await;
}

#[tokio::test]
async fn files_that_will_not_do_are_named_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let Some(()) = certificate(dir, "server", "30") else { return };
    let Some(()) = certificate(dir, "other", "30") else { return };
    let missing = dir.join("missing");
    let is_missing = |error: &TlsError| matches!(error, TlsError::Pem(path, _) if path.ends_with("missing"));
    check_bind(Tls { certificate: missing.clone(), ..files(dir) }, is_missing).await;
    check_bind(Tls { key: missing.clone(), ..files(dir) }, is_missing).await;
    check_bind(Tls { client_authority: Some(missing), ..files(dir) }, is_missing).await;
    let key = Tls { key: dir.join("other.key"), ..files(dir) };
    check_bind(key, |error| matches!(error, TlsError::Refused(_))).await;
    let empty = Tls { certificate: PathBuf::from("/dev/null"), ..files(dir) };
    check_bind(empty, |error| matches!(error, TlsError::Empty(_))).await;
    let later = SystemTime::now() + Duration::from_secs(31 * 24 * 3600);
    let certificate = CertificateDer::from_pem_file(dir.join("server.crt")).unwrap();
    let check = |at| crate::tls::validity::check(&certificate, at);
    assert_eq!((check(SystemTime::now()), check(later)), (Ok(()), Err("it has expired")));
}

async fn check_bind(tls: Tls, want: impl Fn(&TlsError) -> bool) {
    let options = Options { tls: Some(tls), ..Options::new() };
    match Server::bind(options, Arc::new(Host::default())).await {
        Err(BindError::Tls(error)) => assert!(want(&error), "{error:?}"),
        other => panic!("{other:?}"),
    }
}
