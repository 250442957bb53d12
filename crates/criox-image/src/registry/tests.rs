//! The client against registries that fail in every way (hardening 2.2, F14).

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::fake::{FakeRegistry, Reply, Seen};
use criox_config::Credentials;
use criox_config::certs::HostCerts;

use super::*;
use crate::manifest::OCI_MANIFEST;

const BODY: &[u8] = b"{\"schemaVersion\":2}";

fn timeouts() -> Timeouts {
    Timeouts {
        connect: Duration::from_secs(1),
        headers: Duration::from_secs(2),
        no_progress: Duration::from_millis(300),
        retry: Duration::from_millis(10),
    }
}

pub(super) fn credentials() -> Credentials {
    Credentials { username: "user".into(), password: "secret".into(), ..Default::default() }
}

async fn connect(
    host: &str,
    credentials: Option<Credentials>,
    insecure: bool,
) -> Result<Arc<Registry>, RegistryError> {
    connect_through(&Proxies::default(), host, credentials, insecure).await
}

pub(super) async fn connect_through(
    proxies: &Proxies,
    host: &str,
    credentials: Option<Credentials>,
    insecure: bool,
) -> Result<Arc<Registry>, RegistryError> {
    let certificates = HostCerts::default();
    let endpoint =
        Endpoint { host: host.to_owned(), repository: "a/b".into(), insecure, certificates, credentials };
    Registry::connect(&endpoint, "criox-test", &timeouts(), &[], proxies).await.map(Arc::new)
}

async fn to(fake: &FakeRegistry) -> Arc<Registry> {
    connect(&fake.host(), None, true).await.unwrap()
}

pub(super) fn manifest() -> Reply {
    Reply::new(200, BODY).header("content-type", format!("{OCI_MANIFEST}; charset=utf-8"))
}

/// A server that pings well and answers everything else with `reply`.
pub(super) async fn serving(reply: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static) -> FakeRegistry {
    FakeRegistry::start(
        move |seen, before| if seen.target == "/v2/" { Reply::new(200, "{}") } else { reply(seen, before) },
    )
    .await
}

pub(super) async fn read_blob(registry: &Arc<Registry>, content: &[u8]) -> Result<Vec<u8>, RegistryError> {
    let mut reader =
        BlobReader::open(registry.clone(), &Digest::sha256(content), content.len() as u64).await?;
    let mut out = Vec::new();
    while let Some(bytes) = reader.next().await? {
        out.extend_from_slice(&bytes);
    }
    Ok(out)
}

pub(super) fn content(length: u32) -> Vec<u8> {
    (0..length).map(|i| (i % 251) as u8).collect()
}

#[tokio::test]
async fn a_manifest_comes_with_its_type_and_is_verified_by_digest() {
    let fake = serving(|_, _| manifest()).await;
    let registry = to(&fake).await;
    let fetched = registry.manifest("latest").await.unwrap();
    assert_eq!((fetched.content_type.as_str(), &fetched.bytes[..]), (OCI_MANIFEST, BODY));
    registry.manifest(Digest::sha256(BODY).as_str()).await.unwrap();
    let error = registry.manifest(Digest::sha256(b"other").as_str()).await.err().unwrap();
    assert!(matches!(error, RegistryError::Digest { .. }), "{error}");
    assert_eq!(fake.seen()[0].header("user-agent"), "criox-test");
}

#[tokio::test]
async fn a_plain_registry_that_is_not_insecure_is_never_asked_over_http() {
    let fake = serving(|_, _| manifest()).await;
    let error = connect(&fake.host(), Some(credentials()), false).await.err().unwrap();
    assert!(matches!(error, RegistryError::Unreachable { .. }), "{error}");
    assert!(fake.seen().is_empty());
}

#[tokio::test]
async fn nobody_listening_fails_at_once() {
    let start = Instant::now();
    let error = connect("127.0.0.1:1", None, true).await.err().unwrap();
    assert!(matches!(error, RegistryError::Unreachable { .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn basic_credentials_are_sent_when_asked_for_and_refusal_ends_it() {
    let fake = FakeRegistry::start(|seen, _| match seen.header("authorization") {
        "Basic dXNlcjpzZWNyZXQ=" if seen.target != "/v2/" => manifest(),
        _ => Reply::new(401, r#"{"errors":[{"code":"UNAUTHORIZED","message":"who?"}]}"#)
            .header("www-authenticate", "Basic realm=\"r\""),
    })
    .await;
    connect(&fake.host(), Some(credentials()), true).await.unwrap().manifest("latest").await.unwrap();
    assert_eq!(fake.seen().len(), 1);
    for wrong in [None, Some(Credentials { password: "wrong".into(), ..credentials() })] {
        let registry = connect(&fake.host(), wrong, true).await.unwrap();
        let error = registry.manifest("latest").await.err().unwrap();
        assert!(matches!(error, RegistryError::Unauthorized { .. }), "{error}");
        assert!(error.to_string().contains("UNAUTHORIZED who?"), "{error}");
    }
    assert_eq!(fake.seen().len(), 3, "one request each, no loop");
}

/// A registry with its token server under the same address; tokens are numbered, and `valid` says which are good.
async fn with_tokens(valid: fn(&str) -> bool) -> FakeRegistry {
    FakeRegistry::start(move |seen, before| {
        let host = seen.header("host").to_owned();
        if seen.target.starts_with("/token") {
            return Reply::new(200, format!(r#"{{"access_token":"t{before}","expires_in":300}}"#));
        }
        if seen.target != "/v2/" && seen.header("authorization").strip_prefix("Bearer ").is_some_and(valid) {
            return manifest();
        }
        let challenge = format!(r#"Bearer realm="http://{host}/token",service="s""#);
        Reply::new(401, "").header("www-authenticate", challenge)
    })
    .await
}

#[tokio::test]
async fn a_token_is_fetched_once_and_used_again() {
    let fake = with_tokens(|t| t == "t0").await;
    let registry = connect(&fake.host(), Some(credentials()), true).await.unwrap();
    registry.manifest("latest").await.unwrap();
    registry.manifest("latest").await.unwrap();
    let tokens: Vec<Seen> = fake.seen().into_iter().filter(|s| s.target.starts_with("/token")).collect();
    assert_eq!(tokens.len(), 1);
    assert_eq!(tokens[0].target, "/token?account=user&service=s&scope=repository:a/b:pull");
    assert_eq!(tokens[0].header("authorization"), "Basic dXNlcjpzZWNyZXQ=");
}

#[tokio::test]
async fn an_expired_token_is_fetched_anew_once() {
    let fake = with_tokens(|t| t == "t1").await;
    to(&fake).await.manifest("latest").await.unwrap();
    let fake = with_tokens(|_| false).await;
    let error = to(&fake).await.manifest("latest").await.err().unwrap();
    assert!(matches!(error, RegistryError::Unauthorized { .. }), "{error}");
    assert_eq!(fake.seen().len(), 4, "two tokens, two requests");
}

#[tokio::test]
async fn an_identity_token_is_exchanged_by_post() {
    let fake = with_tokens(|t| t == "t0").await;
    let refresh = Credentials { identity_token: "refresh".into(), ..Default::default() };
    connect(&fake.host(), Some(refresh), true).await.unwrap().manifest("latest").await.unwrap();
    let seen = &fake.seen()[0];
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("POST", "/token"));
    assert!(seen.body.contains("grant_type=refresh_token&refresh_token=refresh"), "{}", seen.body);
}

#[tokio::test]
async fn credentials_go_to_no_foreign_token_server() {
    let thief = FakeRegistry::start(|_, _| Reply::new(200, r#"{"token":"anonymous"}"#)).await;
    let realm = format!("http://localhost:{}/token", thief.address.port());
    let fake = FakeRegistry::start(move |seen, _| match seen.header("authorization") {
        "Bearer anonymous" => manifest(),
        _ => Reply::new(401, "").header("www-authenticate", format!("Bearer realm=\"{realm}\"")),
    })
    .await;
    let registry = connect(&fake.host(), Some(credentials()), true).await.unwrap();
    registry.manifest("latest").await.unwrap();
    let seen = &thief.seen()[0];
    assert_eq!(seen.header("authorization"), "");
    assert!(!seen.target.contains("user"), "{}", seen.target);
}

#[tokio::test]
async fn a_redirect_to_another_host_carries_no_credentials() {
    let data = content(5000);
    let served = data.clone();
    let cdn = FakeRegistry::start(move |_, _| Reply::new(200, served.clone())).await;
    let location = format!("http://localhost:{}/blob?signature=x", cdn.address.port());
    let fake = FakeRegistry::start(move |seen, _| match seen.header("authorization") {
        "" => Reply::new(401, "").header("www-authenticate", "Basic"),
        _ => Reply::new(307, "").header("location", location.clone()),
    })
    .await;
    let registry = connect(&fake.host(), Some(credentials()), true).await.unwrap();
    assert_eq!(read_blob(&registry, &data).await.unwrap(), data);
    assert_eq!(cdn.seen()[0].header("authorization"), "");
    assert_eq!(fake.seen()[0].header("authorization"), "Basic dXNlcjpzZWNyZXQ=");
}

#[tokio::test]
async fn redirects_end() {
    let fake = serving(|seen, _| Reply::new(302, "").header("location", seen.target.clone())).await;
    let error = to(&fake).await.manifest("latest").await.err().unwrap();
    assert!(matches!(error, RegistryError::Redirect { .. }), "{error}");
    assert_eq!(fake.seen().len(), 11);
}

#[tokio::test]
async fn a_busy_registry_is_asked_again_and_a_dead_one_is_not_asked_for_ever() {
    let fake = serving(|_, before| if before < 2 { Reply::new(503, "") } else { manifest() }).await;
    to(&fake).await.manifest("latest").await.unwrap();
    let fake = serving(
        |_, before| {
            if before < 1 { Reply::new(429, "").header("retry-after", "0") } else { manifest() }
        },
    )
    .await;
    to(&fake).await.manifest("latest").await.unwrap();
    let fake = serving(|_, _| Reply::new(503, "")).await;
    let error = to(&fake).await.manifest("latest").await.err().unwrap();
    assert!(matches!(error, RegistryError::Unavailable { .. }), "{error}");
    assert_eq!(fake.seen().len(), 3);
}

#[tokio::test]
async fn what_is_not_there_is_asked_for_once() {
    let fake = serving(|_, _| Reply::new(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN"}]}"#)).await;
    let error = to(&fake).await.manifest("latest").await.err().unwrap();
    assert!(
        matches!(error, RegistryError::NotFound { .. }) && error.to_string().contains("MANIFEST_UNKNOWN"),
        "{error}"
    );
    assert_eq!(fake.seen().len(), 1);
}

#[tokio::test]
async fn a_broken_blob_is_resumed_where_it_broke_off() {
    let data = content(300_000);
    let served = data.clone();
    let fake = serving(move |seen, _| match seen.range() {
        None => Reply::new(200, served.clone()).cut(100_000),
        Some(from) => Reply::new(206, &served[from..])
            .header("content-range", format!("bytes {from}-{}/{}", served.len() - 1, served.len())),
    })
    .await;
    let registry = to(&fake).await;
    assert!(read_blob(&registry, &data).await.unwrap() == data);
    let ranges: Vec<Option<usize>> = fake.seen().iter().map(Seen::range).collect();
    assert_eq!(ranges, [None, Some(100_000)]);
}

#[tokio::test]
async fn a_server_without_ranges_repeats_and_the_repetition_is_skipped() {
    let data = content(300_000);
    let served = data.clone();
    let fake = serving(move |_, before| {
        let whole = Reply::new(200, served.clone());
        if before == 0 { whole.cut(100_000) } else { whole }
    })
    .await;
    assert!(read_blob(&to(&fake).await, &data).await.unwrap() == data);
}

#[tokio::test]
async fn a_blob_that_always_breaks_at_the_same_place_is_given_up() {
    let data = content(300_000);
    let served = data.clone();
    let fake = serving(move |_, _| Reply::new(200, served.clone()).cut(1000)).await;
    let error = read_blob(&to(&fake).await, &data).await.unwrap_err();
    assert!(matches!(error, RegistryError::Unreachable { .. }), "{error}");
    assert_eq!(fake.seen().len(), 2);
}

#[tokio::test]
async fn a_range_from_elsewhere_is_refused() {
    let data = content(300_000);
    let served = data.clone();
    let fake = serving(move |seen, _| match seen.range() {
        None => Reply::new(200, served.clone()).cut(1000),
        Some(_) => Reply::new(206, &served[5..]).header("content-range", "bytes 5-299999/300000"),
    })
    .await;
    let error = read_blob(&to(&fake).await, &data).await.unwrap_err();
    assert!(matches!(error, RegistryError::Protocol { .. }), "{error}");
}

#[tokio::test]
async fn a_blob_of_another_length_is_refused_before_it_is_read() {
    for (length, long) in [(5001, true), (4999, false)] {
        let fake = serving(move |_, _| Reply::new(200, content(length))).await;
        let error = read_blob(&to(&fake).await, &content(5000)).await.unwrap_err();
        assert_eq!(matches!(error, RegistryError::TooLarge { .. }), long, "{error}");
        assert_eq!(matches!(error, RegistryError::TooShort { .. }), !long, "{error}");
    }
}

#[tokio::test]
async fn a_silent_registry_is_given_up_in_time() {
    let fake = serving(|_, _| Reply::new(200, content(5000)).cut(10).hang()).await;
    let start = Instant::now();
    let error = read_blob(&to(&fake).await, &content(5000)).await.unwrap_err();
    assert!(matches!(error, RegistryError::Stalled { .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn endless_bodies_and_headers_are_cut_off() {
    let big = vec![b' '; usize::try_from(MANIFEST_MAX).unwrap() + 1];
    let fake = serving(move |_, _| Reply::new(200, big.clone())).await;
    let error = to(&fake).await.manifest("latest").await.err().unwrap();
    assert!(matches!(error, RegistryError::TooLarge { .. }), "{error}");
    let fake =
        serving(|_, _| (0..2000).fold(manifest(), |r, i| r.header(&format!("x-{i}"), "y".repeat(8000))))
            .await;
    let error = to(&fake).await.manifest("latest").await.err().unwrap();
    assert!(matches!(error, RegistryError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn errors_never_show_secrets() {
    let fake = serving(|_, _| {
        Reply::new(302, "").header("location", "http://u:secret@169.254.169.254/x?token=secret")
    })
    .await;
    let registry = connect(&fake.host(), Some(credentials()), true).await.unwrap();
    let error = registry.manifest("latest").await.err().unwrap();
    let text = format!("{error} {error:?}");
    assert!(!text.contains("secret"), "{text}");
}
