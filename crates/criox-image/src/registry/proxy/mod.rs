//! Which proxy stands between this node and a registry, as Go's `net/http` reads it from the environment (package
//! `golang.org/x/net/http/httpproxy`), for that is what CRI-O's nodes are configured by.

mod answer;
mod connect;
mod exempt;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, Uri};

#[cfg(feature = "fuzzing")]
pub(crate) use answer::status;
pub(super) use connect::{Connector, NEEDS_USER, ProxyError};
use exempt::Exempt;

use super::credentials::secret_header;

/// The proxies of this node, and which hosts are reached without one. `Debug` shows no password.
#[derive(Debug, Clone, Default)]
pub struct Proxies {
    /// For `http` addresses.
    http: Option<Arc<Proxy>>,
    /// For `https` addresses.
    https: Option<Arc<Proxy>>,
    exempt: Arc<Exempt>,
}

impl Proxies {
    /// From `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`, each in lower case too where the upper is absent or empty.
    #[must_use]
    pub fn from_environment() -> Self {
        Self::from_variables(|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Self {
        let value = |name: &str| {
            let given = |name: &str| variable(name).filter(|value| !value.is_empty());
            given(name).or_else(|| given(&name.to_ascii_lowercase())).unwrap_or_default()
        };
        let proxy = |name: &str| {
            let text = value(name);
            let proxy = Proxy::parse(&text).map(Arc::new);
            if proxy.is_none() && !text.trim().is_empty() {
                // Its text may hold a password.
                tracing::warn!(
                    "{name} is no address of a proxy, and is ignored; give it as http://host:port"
                );
            }
            proxy
        };
        Self {
            http: proxy("HTTP_PROXY"),
            https: proxy("HTTPS_PROXY"),
            exempt: Arc::new(Exempt::parse(&value("NO_PROXY"))),
        }
    }

    /// The proxy through which an address is reached; none for the node itself and for what `NO_PROXY` names.
    pub(super) fn of(&self, uri: &Uri) -> Option<&Arc<Proxy>> {
        let (proxy, port) = match uri.scheme_str() {
            Some("https") => (self.https.as_ref(), 443),
            Some("http") => (self.http.as_ref(), 80),
            _ => (None, 0),
        };
        let host = uri.host()?;
        proxy.filter(|_| !self.exempt.holds(host, uri.port_u16().unwrap_or(port)))
    }

    /// The proxy that gets the request itself, not only a tunnel: for plain `http`.
    pub(super) fn asked_in_place_of(&self, uri: &Uri) -> Option<&Arc<Proxy>> {
        self.of(uri).filter(|_| uri.scheme_str() == Some("http"))
    }
}

/// One proxy. Shown as its address, without user and password.
#[derive(Debug)]
pub(super) struct Proxy {
    scheme: Scheme,
    /// Without brackets.
    host: String,
    port: u16,
    /// The value of `Proxy-Authorization`.
    authorization: Option<HeaderValue>,
}

/// How a proxy is spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Scheme {
    Http,
    Https,
    /// What we don't speak; told when it would be used.
    Other(String),
}

impl Scheme {
    fn as_str(&self) -> &str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Other(name) => name,
        }
    }
}

impl Proxy {
    /// From `[scheme://][user[:password]@]host[:port]`; none if it isn't that.
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let uri: Uri = match text.contains("://") {
            true => text.parse().ok()?,
            false => format!("http://{text}").parse().ok()?,
        };
        let (scheme, port) = match uri.scheme_str()? {
            "http" => (Scheme::Http, 80),
            "https" => (Scheme::Https, 443),
            other => (Scheme::Other(other.to_owned()), 1080),
        };
        let authority = uri.authority()?.as_str();
        let (user, place) = match authority.rsplit_once('@') {
            Some((user, place)) => (Some(user), place),
            None => (None, authority),
        };
        let port = match place.strip_prefix(uri.host()?)? {
            "" | ":" => port,
            given => given.strip_prefix(':')?.parse().ok()?,
        };
        let host = uri.host()?.trim_start_matches('[').trim_end_matches(']').to_owned();
        let authorization = user.map(basic).transpose().ok()?;
        (!host.is_empty()).then_some(Self { scheme, host, port, authorization })
    }

    /// The header that a request sent through it carries.
    pub(super) fn authorization(&self) -> Option<&HeaderValue> {
        self.authorization.as_ref()
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "{}://{open}{}{close}:{}", self.scheme.as_str(), self.host, self.port)
    }
}

/// The value of `Proxy-Authorization` (RFC 7617) for the part of an address before its `@`.
fn basic(user: &str) -> Result<HeaderValue, ()> {
    let (user, password) = user.split_once(':').unwrap_or((user, ""));
    let mut plain = unescaped(user).ok_or(())?;
    plain.push(b':');
    plain.extend(unescaped(password).ok_or(())?);
    secret_header(&format!("Basic {}", STANDARD.encode(plain))).ok_or(())
}

/// What percent-encoding (RFC 3986, section 2.1) stands for; none if it is malformed.
fn unescaped(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut plain = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            plain.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        let value = digit()? * 16 + digit()?;
        plain.push(u8::try_from(value).ok()?);
    }
    Some(plain)
}
