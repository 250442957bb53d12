//! Which proxy is chosen, and the client behind real little proxies on loopback. Their registries have names that only
//! a proxy can resolve, so that nothing gets there in another way.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::connect::*;
use super::*;
use crate::manifest::OCI_MANIFEST;
use crate::registry::RegistryError;
use crate::registry::fake::{FakeRegistry, Reply};
use crate::registry::tests::{connect_through, content, credentials, manifest, read_blob, serving};

fn proxies(variables: &[(&str, &str)]) -> Proxies {
    Proxies::from_variables(|name| {
        variables.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned())
    })
}

#[track_caller]
fn chosen(variables: &[(&str, &str)], uri: &str) -> String {
    proxies(variables).of(&uri.parse().unwrap()).map_or("direct".to_owned(), |proxy| proxy.to_string())
}

#[test]
fn each_scheme_has_its_variable_and_capitals_come_first() {
    let both = [("HTTP_PROXY", "http://plain:1"), ("HTTPS_PROXY", "http://secure:2")];
    assert_eq!(chosen(&both, "http://r.example/"), "http://plain:1");
    assert_eq!(chosen(&both, "https://r.example/"), "http://secure:2");
    assert_eq!(chosen(&both[..1], "https://r.example/"), "direct");
    assert_eq!(chosen(&[], "http://r.example/"), "direct");
    assert_eq!(
        chosen(&[("ALL_PROXY", "http://a:1")], "http://r.example/"),
        "direct",
        "Go has no such variable"
    );
    let small = [("https_proxy", "http://small:3"), ("HTTPS_PROXY", ""), ("no_proxy", "b.example")];
    assert_eq!(chosen(&small, "https://r.example/"), "http://small:3");
    assert_eq!(chosen(&small, "https://b.example/"), "direct");
    let two = [("https_proxy", "http://small:3"), ("HTTPS_PROXY", "http://large:4")];
    assert_eq!(chosen(&two, "https://r.example/"), "http://large:4");
}

#[test]
fn no_proxy_is_asked_with_the_port_of_the_address() {
    let variables = |no| [("HTTPS_PROXY", "p"), ("HTTP_PROXY", "p"), ("NO_PROXY", no)];
    for (no, uri, direct) in [
        ("r.example", "https://r.example/v2/", true),
        ("r.example:443", "https://r.example/v2/", true),
        ("r.example:443", "http://r.example/v2/", false),
        ("r.example:80", "http://r.example/v2/", true),
        ("r.example:5000", "https://r.example:5000/v2/", true),
        ("10.0.0.0/8", "http://10.1.2.3:5000/", true),
        ("10.0.0.0/8", "http://11.1.2.3:5000/", false),
        ("[fd00::1]:5000", "https://[fd00::1]:5000/", true),
        ("", "https://[fd00::1]:5000/", false),
        ("", "https://localhost:5000/", true),
        ("", "http://127.0.0.1:5000/", true),
        ("", "https://[::1]/", true),
    ] {
        assert_eq!(chosen(&variables(no), uri) == "direct", direct, "{no} {uri}");
    }
}

#[test]
fn an_address_of_a_proxy_may_be_short() {
    for (text, shown) in [
        ("proxy", "http://proxy:80"),
        ("proxy:3128", "http://proxy:3128"),
        (" http://proxy:3128/ ", "http://proxy:3128"),
        ("https://proxy", "https://proxy:443"),
        ("HTTP://proxy:1", "http://proxy:1"),
        ("u:p@10.0.0.1:8080", "http://10.0.0.1:8080"),
        ("http://[fd00::1]:3128", "http://[fd00::1]:3128"),
        ("socks5://proxy", "socks5://proxy:1080"),
        ("http://", "direct"),
        ("http://proxy:99999", "direct"),
        ("http://proxy:", "http://proxy:80"),
        ("a b", "direct"),
        ("http://u:%zz@proxy", "direct"),
        ("", "direct"),
    ] {
        assert_eq!(chosen(&[("HTTP_PROXY", text)], "http://r.example/"), shown, "{text}");
    }
}

#[test]
fn user_and_password_are_decoded_and_never_shown() {
    for (user, header) in [
        ("user:secret", "Basic dXNlcjpzZWNyZXQ="),
        ("us%65r:sec%72et", "Basic dXNlcjpzZWNyZXQ="),
        ("user", "Basic dXNlcjo="),
        ("u:a:b%40%3a", "Basic dTphOmJAOg=="),
    ] {
        let proxy = Proxy::parse(&format!("http://{user}@proxy:1")).unwrap();
        assert_eq!(proxy.authorization().unwrap(), header, "{user}");
        let text = format!("{proxy} {proxy:?} {:?}", proxies(&[("HTTP_PROXY", &format!("{user}@p"))]));
        assert!(!text.contains("sec") && !text.contains(header), "{text}");
    }
    assert!(Proxy::parse("http://proxy:1").unwrap().authorization().is_none());
}

/// What a little proxy does with CONNECT.
#[derive(Clone)]
enum Does {
    /// Connects to this address, wherever it was asked to, for who shows `user:secret`.
    Serve(SocketAddr),
    /// Says these bytes, and nothing more.
    Say(&'static [u8]),
    /// Closes the connection.
    Close,
}

struct LittleProxy {
    address: SocketAddr,
    /// Heads of the requests that came.
    seen: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Drop for LittleProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl LittleProxy {
    async fn start(does: Does) -> Self {
        Self::with(does, None).await
    }

    async fn with(does: Does, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = seen.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (does, tls, log) = (does.clone(), tls.clone(), log.clone());
                tokio::spawn(async move {
                    match tls {
                        None => answer(stream, does, log).await,
                        Some(tls) => match tls.accept(stream).await {
                            Ok(stream) => answer(stream, does, log).await,
                            Err(_) => None,
                        },
                    }
                });
            }
        });
        Self { address, seen, task }
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn https(&self, user: &str) -> Proxies {
        proxies(&[("HTTPS_PROXY", &format!("http://{user}@{}", self.address))])
    }
}

async fn answer<S>(mut stream: S, does: Does, log: Arc<Mutex<Vec<String>>>) -> Option<()>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).ok()?;
    log.lock().unwrap_or_else(PoisonError::into_inner).push(head.clone());
    match does {
        Does::Close => {}
        Does::Say(bytes) => {
            stream.write_all(bytes).await.ok()?;
            stream.flush().await.ok()?;
            tokio::time::sleep(std::time::Duration::from_secs(30)).await;
        }
        Does::Serve(_) if !head.contains("Proxy-Authorization: Basic dXNlcjpzZWNyZXQ=\r\n") => {
            let refusal = b"HTTP/1.1 407 Who?\r\nProxy-Authenticate: Basic\r\nContent-Length: 3\r\n\r\nno\n";
            stream.write_all(refusal).await.ok()?;
            stream.flush().await.ok()?;
        }
        Does::Serve(to) => {
            let mut to = TcpStream::connect(to).await.ok()?;
            stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.ok()?;
            stream.flush().await.ok()?;
            copy_bidirectional(&mut stream, &mut to).await.ok()?;
        }
    }
    Some(())
}

/// A certificate that signs itself, for `name`; none without openssl.
fn certificate(dir: &Path, name: &str) -> Option<(CertificateDer<'static>, TlsAcceptor)> {
    let arguments = format!(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -keyout k.pem -out c.pem \
         -subj /CN=test -addext subjectAltName={name} -addext basicConstraints=critical,CA:FALSE"
    );
    let made = Command::new("openssl").args(arguments.split_whitespace()).current_dir(dir).output();
    if !made.is_ok_and(|made| made.status.success()) {
        eprintln!("not tested: TLS behind a proxy, for openssl is not installed");
        return None;
    }
    let certificate = CertificateDer::from_pem_file(dir.join("c.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(dir.join("k.pem")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    Some((certificate, TlsAcceptor::from(Arc::new(config))))
}

/// Puts TLS before a plain registry.
async fn behind_tls(plain: SocketAddr, tls: TlsAcceptor) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let tls = tls.clone();
            tokio::spawn(async move {
                let mut stream = tls.accept(stream).await.ok()?;
                let mut to = TcpStream::connect(plain).await.ok()?;
                copy_bidirectional(&mut stream, &mut to).await.ok()
            });
        }
    });
    (address, task)
}

#[tokio::test]
async fn an_https_registry_is_reached_through_a_tunnel() {
    let dir = tempfile::tempdir().unwrap();
    let Some((_, tls)) = certificate(dir.path(), "DNS:r.example") else { return };
    let data = content(300_000);
    let served = data.clone();
    let fake = serving(move |seen, before| match seen.target.contains("/blobs/") {
        false => manifest(),
        // Breaks off once, so that the tunnel is opened anew.
        true if before == 0 => Reply::new(200, served.clone()).cut(100_000),
        true => Reply::new(206, &served[seen.range().unwrap()..])
            .header("content-range", format!("bytes 100000-{}/{}", served.len() - 1, served.len())),
    })
    .await;
    let (address, _serving) = behind_tls(fake.address, tls).await;
    let proxy = LittleProxy::start(Does::Serve(address)).await;
    // Insecure is only its certificate; its plain port is never asked.
    let through = proxy.https("user:secret");
    let registry = connect_through(&through, "r.example:5000", Some(credentials()), true).await.unwrap();
    let fetched = registry.manifest("latest").await.unwrap();
    assert_eq!(fetched.content_type, OCI_MANIFEST);
    assert!(read_blob(&registry, &data).await.unwrap() == data);
    let heads = proxy.seen();
    assert!(heads.len() >= 3, "{heads:?}");
    for head in heads {
        assert_eq!(
            head,
            "CONNECT r.example:5000 HTTP/1.1\r\nHost: r.example:5000\r\n\
             Proxy-Authorization: Basic dXNlcjpzZWNyZXQ=\r\n\r\n"
        );
    }
    for seen in fake.seen() {
        assert!(seen.target.starts_with("/v2/a/b/"), "the registry gets a path: {}", seen.target);
        assert_eq!(seen.header("proxy-authorization"), "", "the registry doesn't learn of the proxy's user");
        assert_eq!(seen.header("host"), "r.example:5000");
    }
}

#[tokio::test]
async fn a_plain_registry_is_asked_for_in_the_proxys_own_request() {
    let fake = FakeRegistry::start(|seen, _| match (seen.method.as_str(), seen.target.as_str()) {
        // The plain port is what is left then.
        ("CONNECT", _) => Reply::new(403, ""),
        (_, "http://r.example:5000/v2/") => Reply::new(401, "").header("www-authenticate", "Basic"),
        _ => manifest(),
    })
    .await;
    let address = format!("http://user:secret@{}", fake.address);
    let through = proxies(&[("HTTP_PROXY", &address), ("HTTPS_PROXY", &address)]);
    let registry = connect_through(&through, "r.example:5000", Some(credentials()), true).await.unwrap();
    registry.manifest("latest").await.unwrap();
    let seen = fake.seen();
    let asked = seen.last().unwrap();
    assert_eq!(asked.target, "http://r.example:5000/v2/a/b/manifests/latest");
    assert_eq!(asked.header("host"), "r.example:5000");
    assert_eq!(asked.header("proxy-authorization"), "Basic dXNlcjpzZWNyZXQ=");
    assert_eq!(asked.header("authorization"), "Basic dXNlcjpzZWNyZXQ=");
}

#[tokio::test]
async fn loopback_and_no_proxy_go_past_the_proxy() {
    let fake = serving(|_, _| manifest()).await;
    let unused = FakeRegistry::start(|_, _| Reply::new(500, "")).await;
    let address = format!("http://user:secret@{}", unused.address);
    let through = proxies(&[("HTTP_PROXY", &address), ("HTTPS_PROXY", &address)]);
    connect_through(&through, &fake.host(), None, true).await.unwrap().manifest("latest").await.unwrap();
    assert!(unused.seen().is_empty());
    assert_eq!(fake.seen()[0].target, "/v2/a/b/manifests/latest");
    assert_eq!(fake.seen()[0].header("proxy-authorization"), "");
}

/// The error of a pull through a proxy that behaves so.
async fn failure(does: Does) -> String {
    let proxy = LittleProxy::start(does).await;
    let begun = Instant::now();
    let error = connect_through(&proxy.https("user:wrong"), "r.example", Some(credentials()), false).await;
    let error = error.err().unwrap();
    assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
    assert!(matches!(error, RegistryError::Proxy { .. }), "{error:?}");
    let text = format!("{error} {error:?}");
    assert!(!text.contains("wrong") && !text.contains("user:") && !text.contains("Basic"), "{text}");
    let text = error.to_string();
    let named =
        format!("https://r.example/v2/ can't be reached through the proxy http://{}: ", proxy.address);
    text.strip_prefix(&named).unwrap_or_else(|| panic!("{text}")).to_owned()
}

#[tokio::test]
async fn what_a_proxy_does_wrong_is_told() {
    let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
    for (does, told) in [
        (Does::Serve(nowhere), "407 Proxy Authentication Required; check user and password"),
        (
            Does::Say(b"HTTP/1.1 403 Forbidden\r\n\r\n"),
            "403 Forbidden; check that it may connect to r.example:443",
        ),
        (Does::Say(b"HTTP/1.0 599 \r\nX: y\r\n\r\nbody"), "answered CONNECT with 599"),
        (Does::Say(b"SSH-2.0-OpenSSH\r\n"), "is not HTTP/1"),
        (Does::Say(b"HTTP/1.1 yes\r\n\r\n"), "has no status"),
        (Does::Say(b"HTTP/1.1 200 OK\r\n\r\n\x16\x03\x03"), "sent more than its answer"),
        (Does::Say(b""), "did not answer CONNECT in 1 s"),
        (Does::Say(b"HTTP/1.1 200 OK\r\n"), "did not answer CONNECT in 1 s"),
        (Does::Close, "closed the connection instead of answering CONNECT"),
    ] {
        let text = failure(does).await;
        assert!(text.contains(told), "{text}");
    }
}

#[tokio::test]
async fn a_proxy_that_is_not_there_or_not_spoken_is_named() {
    for (proxy, told) in [
        ("http://u:secret@127.0.0.1:1", "no connection to it (tcp connect error"),
        ("socks5://u:secret@127.0.0.1:1", "socks5 is not spoken here"),
        ("ftp://127.0.0.1:1", "ftp is not spoken here"),
    ] {
        let through = proxies(&[("HTTPS_PROXY", proxy), ("HTTP_PROXY", proxy)]);
        let error = connect_through(&through, "r.example", None, true).await.err().unwrap();
        let text = format!("{error} {error:?}");
        assert!(matches!(error, RegistryError::Proxy { .. }) && text.contains(told), "{text}");
        assert!(!text.contains("secret"), "{text}");
    }
}

#[tokio::test]
async fn a_plain_request_that_the_proxy_refuses_or_swallows_names_the_proxy() {
    for (reply, told) in [
        (Reply::new(407, ""), "through the proxy http://127.0.0.1:PORT: it answered 407"),
        (Reply::new(502, ""), "(through the proxy http://127.0.0.1:PORT) answered 502"),
    ] {
        let fake = FakeRegistry::start(move |_, _| reply.clone()).await;
        let address = format!("http://user:secret@{}", fake.address);
        let through = proxies(&[("HTTP_PROXY", &address), ("HTTPS_PROXY", &address)]);
        let uri: Uri = "http://r.example/v2/".parse().unwrap();
        let tls = crate::registry::tls::client_config("r.example", &Default::default(), true).unwrap();
        let timeouts = crate::registry::Timeouts::default();
        let http = crate::registry::http::Http::new(tls, "criox-test", &timeouts, &through);
        let text = match http.send(&crate::registry::http::Ask::get(uri)).await {
            Ok(answer) => http.refusal(answer, "").await.to_string(),
            Err(error) => error.to_string(),
        };
        assert!(text.contains(&told.replace("PORT", &fake.address.port().to_string())), "{text}");
        assert!(!text.contains("secret"), "{text}");
    }
}

#[tokio::test]
async fn a_proxy_behind_tls_is_verified_by_itself() {
    use rustls::{ClientConfig, RootCertStore};
    use tower::Service as _;
    let dir = tempfile::tempdir().unwrap();
    let Some((certificate, tls)) = certificate(dir.path(), "IP:127.0.0.1") else { return };
    let fake = serving(|_, _| manifest()).await;
    let proxy = LittleProxy::with(Does::Serve(fake.address), Some(tls)).await;
    let through = proxies(&[("HTTPS_PROXY", &format!("https://user:secret@{}", proxy.address))]);
    let mut roots = RootCertStore::empty();
    roots.add(certificate).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let patience = std::time::Duration::from_secs(2);
    let mut connector = Connector::new(through.clone(), patience);
    connector.proxy_tls.set(Arc::new(config)).unwrap();
    connector.call("https://r.example/".parse().unwrap()).await.map(drop).unwrap();
    assert_eq!(proxy.seen().len(), 1);
    // Nobody vouches for it on this node, and that the registry is insecure changes nothing.
    let error = connect_through(&through, "r.example", None, true).await.err().unwrap();
    assert!(error.to_string().contains("TLS with it failed"), "{error}");
    assert_eq!(proxy.seen().len(), 1, "its user and password are not sent to whoever answers");
}
