//! HTTP with the manners of a registry client: deadlines, bounded redirects that never carry credentials to
//! another host, bounded retries, bounded bodies.

use std::error::Error as StdError;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{AUTHORIZATION, CONTENT_LENGTH, LOCATION, PROXY_AUTHORIZATION, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Incoming};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::{sleep, timeout};

use super::error::{RegistryError, shown};
use super::proxy::{Connector, NEEDS_USER, Proxies, ProxyError};

const REDIRECTS_MAX: usize = 10;
const HEADERS_MAX: usize = 128;
/// Also the bound of the header block; a body comes in pieces of at most this.
const BUFFER: usize = 256 << 10;
const ATTEMPTS_RATE_LIMITED: u32 = 5;
const ATTEMPTS_SERVER_ERROR: u32 = 3;
const ATTEMPTS_TRANSPORT: u32 = 3;
const WAIT_MAX: Duration = Duration::from_secs(60);
const ERROR_BODY_MAX: u64 = 1 << 20;
const ERROR_TEXT_MAX: usize = 1000;

/// How long a registry may take, each in its own way.
#[derive(Debug, Clone)]
pub struct Timeouts {
    /// To open a TCP connection.
    pub connect: Duration,
    /// From the request to the headers of the answer, TLS included.
    pub headers: Duration,
    /// Without a single byte of a body, or without the unpacking taking one.
    pub no_progress: Duration,
    /// The first wait before a retry; it doubles.
    pub retry: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(30),
            headers: Duration::from_secs(60),
            no_progress: Duration::from_secs(60),
            retry: Duration::from_secs(1),
        }
    }
}

/// One request, to be sent as often as needed.
pub(crate) struct Ask {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) authorization: Option<HeaderValue>,
    pub(crate) body: Bytes,
}

impl Ask {
    pub(crate) fn get(uri: Uri) -> Self {
        Self { method: Method::GET, uri, headers: Vec::new(), authorization: None, body: Bytes::new() }
    }
}

/// An answer whose body is still to come.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Incoming,
    /// The address that answered, fit to be shown.
    pub(crate) url: String,
}

pub(crate) struct Http {
    client: Client<HttpsConnector<Connector>, Full<Bytes>>,
    proxies: Proxies,
    user_agent: HeaderValue,
    timeouts: Timeouts,
}

impl Http {
    pub(crate) fn new(
        tls: rustls::ClientConfig,
        user_agent: &str,
        timeouts: &Timeouts,
        proxies: &Proxies,
    ) -> Self {
        let tcp = Connector::new(proxies.clone(), timeouts.connect);
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            // HTTP/1.1 only: a connection a layer, and no flow-control window between a layer and the wire.
            .enable_http1()
            .wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(20))
            .pool_max_idle_per_host(8)
            .http1_max_buf_size(BUFFER)
            .http1_max_headers(HEADERS_MAX)
            .build(connector);
        let user_agent = HeaderValue::from_str(user_agent).unwrap_or(HeaderValue::from_static("criox"));
        Self { client, proxies: proxies.clone(), user_agent, timeouts: timeouts.clone() }
    }

    pub(crate) fn timeouts(&self) -> &Timeouts {
        &self.timeouts
    }

    /// Sends, follows redirects, and repeats what a registry asks to be repeated.
    pub(crate) async fn send(&self, ask: &Ask) -> Result<Answer, RegistryError> {
        let mut attempt = 1;
        loop {
            let result = self.follow(ask).await;
            let attempts = match &result {
                Ok(answer) => attempts_for(answer.status),
                Err(RegistryError::Unreachable { source, .. }) if is_broken_connection(&**source) => {
                    ATTEMPTS_TRANSPORT
                }
                Err(_) => 1,
            };
            if attempt >= attempts {
                return result;
            }
            let asked = result.as_ref().ok().and_then(|answer| retry_after(&answer.headers));
            let wait = asked.unwrap_or(self.timeouts.retry.saturating_mul(1 << (attempt - 1))).min(WAIT_MAX);
            tracing::debug!(url = shown(&ask.uri), attempt, ?wait, "registry asks for a retry");
            drop(result);
            sleep(wait + jitter(wait)).await;
            attempt += 1;
        }
    }

    async fn follow(&self, ask: &Ask) -> Result<Answer, RegistryError> {
        let mut uri = ask.uri.clone();
        let mut authorization = ask.authorization.clone();
        for _ in 0..=REDIRECTS_MAX {
            let response = self.exchange(ask, &uri, authorization.as_ref()).await?;
            let (parts, body) = response.into_parts();
            let redirect = matches!(parts.status.as_u16(), 301 | 302 | 303 | 307 | 308);
            if !redirect || ask.method != Method::GET {
                let url = self.shown(&uri);
                return Ok(Answer { status: parts.status, headers: parts.headers, body, url });
            }
            let next = redirect_target(&uri, parts.headers.get(LOCATION))?;
            if !same_origin(&uri, &next) {
                // For good: a later hop back must not get them either.
                authorization = None;
            }
            uri = next;
        }
        let why = "more than 10 redirects";
        Err(RegistryError::Redirect { url: shown(&ask.uri), to: shown(&uri), why })
    }

    async fn exchange(
        &self,
        ask: &Ask,
        uri: &Uri,
        authorization: Option<&HeaderValue>,
    ) -> Result<http::Response<Incoming>, RegistryError> {
        let mut request = Request::new(Full::new(ask.body.clone()));
        *request.method_mut() = ask.method.clone();
        *request.uri_mut() = uri.clone();
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, self.user_agent.clone());
        for (name, value) in &ask.headers {
            headers.append(name, value.clone());
        }
        if let Some(value) = authorization {
            headers.insert(AUTHORIZATION, value.clone());
        }
        let in_place = self.proxies.asked_in_place_of(uri);
        if let Some(value) = in_place.and_then(|proxy| proxy.authorization()) {
            headers.insert(PROXY_AUTHORIZATION, value.clone());
        }
        match timeout(self.timeouts.headers, self.client.request(request)).await {
            Ok(Ok(response)) => match in_place {
                Some(proxy) if response.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
                    let (proxy, why) = (proxy.to_string(), NEEDS_USER.to_owned());
                    Err(RegistryError::Proxy { url: shown(uri), proxy, why })
                }
                _ => Ok(response),
            },
            Ok(Err(e)) => Err(self.unreachable(uri, e)),
            Err(_) => {
                let url = self.shown(uri);
                Err(RegistryError::Stalled { url, what: "answer", after: self.timeouts.headers })
            }
        }
    }

    fn unreachable(&self, uri: &Uri, error: hyper_util::client::legacy::Error) -> RegistryError {
        let mut cause: Option<&(dyn StdError + 'static)> = Some(&error);
        while let Some(one) = cause {
            if let Some(ProxyError { proxy, why }) = one.downcast_ref() {
                return RegistryError::Proxy { url: shown(uri), proxy: proxy.clone(), why: why.clone() };
            }
            cause = one.source();
        }
        RegistryError::Unreachable { url: self.shown(uri), source: Box::new(error) }
    }

    /// An address as it may stand in logs, with the proxy that leads there: it, too, may be what fails.
    fn shown(&self, uri: &Uri) -> String {
        match self.proxies.of(uri) {
            Some(proxy) => format!("{} (through the proxy {proxy})", shown(uri)),
            None => shown(uri),
        }
    }

    /// The whole body, if it is no longer than `limit`.
    pub(crate) async fn read(&self, answer: Answer, limit: u64) -> Result<Bytes, RegistryError> {
        let Answer { headers, mut body, url, .. } = answer;
        if let Some(length) = content_length(&headers).filter(|l| *l > limit) {
            return Err(RegistryError::TooLarge { url, expected: limit, got: length });
        }
        let mut out = BytesMut::new();
        while !body.is_end_stream() {
            match timeout(self.timeouts.no_progress, body.frame()).await {
                Ok(None) => break,
                Ok(Some(Ok(frame))) => {
                    let Ok(data) = frame.into_data() else { continue };
                    let got = (out.len() + data.len()) as u64;
                    if got > limit {
                        return Err(RegistryError::TooLarge { url, expected: limit, got });
                    }
                    out.extend_from_slice(&data);
                }
                Ok(Some(Err(e))) => return Err(RegistryError::Unreachable { url, source: Box::new(e) }),
                Err(_) => {
                    return Err(RegistryError::Stalled {
                        url,
                        what: "data",
                        after: self.timeouts.no_progress,
                    });
                }
            }
        }
        Ok(out.freeze())
    }

    /// The error that an answer other than success is.
    pub(crate) async fn refusal(&self, answer: Answer, hint: &str) -> RegistryError {
        let (status, url) = (answer.status, answer.url.clone());
        let body = self.read(answer, ERROR_BODY_MAX).await.unwrap_or_default();
        let message = registry_message(&body);
        match status.as_u16() {
            401 | 403 => RegistryError::Unauthorized { url, status, message, hint: hint.to_owned() },
            404 => RegistryError::NotFound { url, status, message },
            429 | 500..=599 => RegistryError::Unavailable { url, status, message },
            _ => RegistryError::Status { url, status, message },
        }
    }
}

pub(crate) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn attempts_for(status: StatusCode) -> u32 {
    match status.as_u16() {
        429 => ATTEMPTS_RATE_LIMITED,
        500 | 502 | 503 | 504 => ATTEMPTS_SERVER_ERROR,
        _ => 1,
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// Up to a tenth, so that the nodes of a cluster don't come back in step.
fn jitter(wait: Duration) -> Duration {
    let nanos = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.subsec_nanos());
    wait.mul_f64(f64::from(nanos % 1000) / 10_000.0)
}

/// Whether a connection that stood broke, which the next may not; a refused one fails at once, for the kubelet
/// comes again by itself.
fn is_broken_connection(error: &(dyn StdError + 'static)) -> bool {
    error.downcast_ref::<hyper_util::client::legacy::Error>().is_some_and(|e| !e.is_connect())
}

/// Code and message of the registry's error document, made fit for one line.
fn registry_message(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<Entry>,
    }
    #[derive(serde::Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let text = match serde_json::from_slice::<Errors>(body) {
        Ok(document) => document
            .errors
            .iter()
            .take(3)
            .map(|e| format!("{} {}", e.code, e.message))
            .collect::<Vec<_>>()
            .join(", "),
        Err(_) => return String::new(),
    };
    let clean: String = text.trim().chars().filter(|c| !c.is_control()).take(ERROR_TEXT_MAX).collect();
    if clean.is_empty() { clean } else { format!(": {clean}") }
}

pub(crate) fn same_origin(a: &Uri, b: &Uri) -> bool {
    let port = |u: &Uri| u.port_u16().or(if u.scheme_str() == Some("https") { Some(443) } else { Some(80) });
    let host = |u: &Uri| u.host().map(str::to_ascii_lowercase);
    a.scheme() == b.scheme() && host(a) == host(b) && port(a) == port(b)
}

/// Where a redirect leads, if it may be followed.
fn redirect_target(from: &Uri, location: Option<&HeaderValue>) -> Result<Uri, RegistryError> {
    let protocol = |why: &str| RegistryError::Protocol { url: shown(from), why: why.to_owned() };
    let location = location
        .and_then(|value| value.to_str().ok())
        .ok_or_else(|| protocol("a redirect without a readable Location"))?;
    let scheme = from.scheme_str().unwrap_or("https");
    let authority = from.authority().map_or("", |a| a.as_str());
    let lower = location.get(..8).unwrap_or(location).to_ascii_lowercase();
    let absolute = if lower.starts_with("http://") || lower.starts_with("https://") {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else if location.split(['/', '?', '#']).next().is_some_and(|first| first.contains(':')) {
        let to = location.split(':').next().unwrap_or_default().to_owned();
        return Err(RegistryError::Redirect { url: shown(from), to, why: "neither http nor https" });
    } else {
        let directory = from.path().rsplit_once('/').map_or("", |(directory, _)| directory);
        format!("{scheme}://{authority}{directory}/{location}")
    };
    let to: Uri = absolute.parse().map_err(|_| protocol("a redirect with a malformed Location"))?;
    let refuse = |why| Err(RegistryError::Redirect { url: shown(from), to: shown(&to), why });
    if to.authority().is_none_or(|a| a.as_str().contains('@')) {
        return refuse("it has no host, or a user in it");
    }
    if from.scheme_str() == Some("https") && to.scheme_str() != Some("https") {
        return refuse("it leads from https to plain http");
    }
    if from.host() != to.host() && to.host().is_some_and(is_link_local_literal) {
        return refuse("it leads to a link-local address, where cloud metadata lives");
    }
    Ok(to)
}

pub(crate) fn is_link_local_literal(host: &str) -> bool {
    host.trim_start_matches('[').trim_end_matches(']').parse().is_ok_and(is_link_local)
}

/// Addresses of the link and of cloud metadata services.
fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => {
            v6.is_unicast_link_local()
                || v6.to_ipv4_mapped().is_some_and(|v4| v4.is_link_local())
                || v6.segments() == [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254]
        }
    }
}

/// The system's resolver without link-local answers: a name in a redirect or a token address must not lead to the
/// metadata service of the cloud. An address that the configuration names literally is never resolved.
#[derive(Clone)]
pub(super) struct PublicResolver(GaiResolver);

impl Default for PublicResolver {
    fn default() -> Self {
        Self(GaiResolver::new())
    }
}

impl tower::Service<Name> for PublicResolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let lookup = self.0.call(name);
        Box::pin(async move {
            let addresses: Vec<SocketAddr> = lookup.await?.filter(|a| !is_link_local(a.ip())).collect();
            if addresses.is_empty() {
                return Err(std::io::Error::other("the name has no address that is not link-local"));
            }
            Ok(addresses.into_iter())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(from: &str, location: &str) -> Result<String, RegistryError> {
        let value = HeaderValue::from_bytes(location.as_bytes()).unwrap();
        redirect_target(&from.parse().unwrap(), Some(&value)).map(|uri| uri.to_string())
    }

    #[test]
    fn redirects_are_resolved_against_the_address_that_sent_them() {
        for (location, expect) in [
            ("https://cdn.example/x?sig=1", "https://cdn.example/x?sig=1"),
            ("//cdn.example/x", "https://cdn.example/x"),
            ("/v2/y", "https://r.example:5000/v2/y"),
            ("z?q=http://other", "https://r.example:5000/v2/a/z?q=http://other"),
        ] {
            assert_eq!(target("https://r.example:5000/v2/a/b", location).unwrap(), expect, "{location}");
        }
    }

    #[test]
    fn dangerous_redirects_are_refused() {
        for location in [
            "http://r.example/x",
            "file:///etc/passwd",
            "gopher://x/",
            "https://u:p@r.example/",
            "javascript:1",
            "https://169.254.169.254/latest",
            "https://[fe80::1]/",
            "https://[::ffff:169.254.169.254]/",
            "https://",
        ] {
            assert!(target("https://r.example/v2/", location).is_err(), "{location}");
        }
        assert!(redirect_target(&"https://r/".parse().unwrap(), None).is_err());
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        for (a, b, same) in [
            ("https://a/x", "https://A:443/y", true),
            ("http://a/", "http://a:80/", true),
            ("https://a/", "https://a:444/", false),
            ("https://a/", "http://a:443/", false),
            ("https://a/", "https://b/", false),
        ] {
            assert_eq!(same_origin(&a.parse().unwrap(), &b.parse().unwrap()), same, "{a} {b}");
        }
    }

    #[test]
    fn the_registry_s_words_become_one_clean_line() {
        let body = br#"{"errors":[{"code":"DENIED","message":"no\r\nway\u001b[31m"}]}"#;
        assert_eq!(registry_message(body), ": DENIED noway[31m");
        assert_eq!(registry_message(b"<html>"), "");
    }
}
