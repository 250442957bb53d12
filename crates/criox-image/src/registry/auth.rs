//! Basic and bearer authentication: from the challenge to the `Authorization` header.

use std::time::{Duration, Instant};

use criox_config::Credentials;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Uri};
use serde::Deserialize;
use tokio::sync::Mutex;

use super::challenge::Challenge;
use super::credentials::{basic, secret_header};
use super::error::{RegistryError, shown};
use super::http::{Ask, Http, is_link_local_literal};

const TOKEN_MAX: u64 = 1 << 20;
const LIFETIME_MIN: Duration = Duration::from_secs(60);
/// Believed no longer than this, so that the arithmetic below can't overflow.
const LIFETIME_MAX: u64 = 24 * 3600;
/// What a refresh token is issued to.
const CLIENT_ID: &str = "criox";

/// How to authenticate at one repository of one registry.
pub(crate) struct Authenticator {
    /// The registry's own address.
    pub(crate) origin: Uri,
    pub(crate) repository: String,
    pub(crate) credentials: Option<Credentials>,
    /// Further hosts that may see the credentials in a token request.
    pub(crate) token_hosts: Vec<String>,
    /// Whether plain http is allowed for the token server too.
    pub(crate) insecure: bool,
    pub(crate) state: Mutex<State>,
}

#[derive(Default)]
pub(crate) struct State {
    challenges: Vec<Challenge>,
    token: Option<Token>,
}

struct Token {
    header: HeaderValue,
    scope: String,
    expires: Instant,
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    #[serde(default)]
    expires_in: Option<u64>,
}

impl Authenticator {
    /// Notes what the registry asks for. A token that it no longer takes is forgotten.
    pub(crate) async fn challenged(&self, challenges: Vec<Challenge>, rejected: Option<&HeaderValue>) {
        let mut state = self.state.lock().await;
        if !challenges.is_empty() {
            state.challenges = challenges;
        }
        if state.token.as_ref().is_some_and(|t| rejected == Some(&t.header)) {
            state.token = None;
        }
    }

    /// The header for the next request, from the cache or from the token server. Several layers that ask at once
    /// cause one token request.
    pub(crate) async fn header(&self, http: &Http) -> Result<Option<HeaderValue>, RegistryError> {
        let credentials = self.credentials.as_ref();
        if let Some(token) = credentials.map(|c| &c.registry_token).filter(|t| !t.is_empty()) {
            return Ok(secret_header(&format!("Bearer {token}")));
        }
        let mut state = self.state.lock().await;
        let supported = state.challenges.iter().find(|c| matches!(c.scheme.as_str(), "basic" | "bearer"));
        let Some(challenge) = supported.cloned() else { return Ok(None) };
        if challenge.scheme == "basic" {
            return Ok(credentials.and_then(basic));
        }
        let scope = match challenge.get("error") {
            // The registry says what the token lacked.
            Some("insufficient_scope") => challenge.get("scope").map(str::to_owned),
            _ => None,
        };
        let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.repository));
        if let Some(token) = state.token.as_ref().filter(|t| t.scope == scope && t.expires > Instant::now()) {
            return Ok(Some(token.header.clone()));
        }
        let token = self.fetch_token(http, &challenge, scope).await?;
        let header = token.header.clone();
        state.token = Some(token);
        Ok(Some(header))
    }

    async fn fetch_token(
        &self,
        http: &Http,
        challenge: &Challenge,
        scope: String,
    ) -> Result<Token, RegistryError> {
        let realm = self.realm(challenge)?;
        let trusted = self.may_see_credentials(&realm);
        let credentials = self.credentials.as_ref().filter(|_| trusted);
        if self.credentials.is_some() && !trusted {
            tracing::warn!(
                registry = shown(&self.origin),
                token_server = shown(&realm),
                "credentials are not sent to a token server of another domain; name it in token_hosts if it is right"
            );
        }
        let ask = token_request(&realm, challenge.get("service"), &scope, credentials)?;
        let answer = http.send(&ask).await?;
        if !answer.status.is_success() {
            let hint = if trusted {
                "check the credentials for this registry"
            } else {
                "the token server belongs to another domain than the registry, so that it was not given credentials"
            };
            return Err(http.refusal(answer, hint).await);
        }
        let url = answer.url.clone();
        let body = http.read(answer, TOKEN_MAX).await?;
        let malformed = |why: &str| RegistryError::Protocol { url: url.clone(), why: why.to_owned() };
        let answer: TokenAnswer = serde_json::from_slice(&body)
            .map_err(|_| malformed("the token server's answer is no token document"))?;
        let text = answer
            .token
            .filter(|t| !t.is_empty())
            .or(answer.access_token)
            .filter(|t| !t.is_empty())
            .ok_or_else(|| malformed("the token server's answer has no token"))?;
        let header = secret_header(&format!("Bearer {text}"))
            .ok_or_else(|| malformed("the token has control characters"))?;
        let lifetime =
            Duration::from_secs(answer.expires_in.unwrap_or(0).min(LIFETIME_MAX)).max(LIFETIME_MIN);
        // A little less, so that it doesn't expire on the way.
        Ok(Token { header, scope, expires: Instant::now() + lifetime - Duration::from_secs(5) })
    }

    /// The token server's address, if it may be asked at all.
    fn realm(&self, challenge: &Challenge) -> Result<Uri, RegistryError> {
        let refuse = |why: &str| RegistryError::Protocol { url: shown(&self.origin), why: why.to_owned() };
        let realm: Uri = challenge
            .get("realm")
            .and_then(|realm| realm.parse().ok())
            .ok_or_else(|| refuse("the challenge has no usable realm"))?;
        let host = realm.host().ok_or_else(|| refuse("the realm has no host"))?;
        match realm.scheme_str() {
            Some("https") => {}
            Some("http") if self.insecure => {}
            Some("http") => {
                return Err(refuse("the token server is plain http, and the registry is not insecure"));
            }
            _ => return Err(refuse("the realm is neither http nor https")),
        }
        if realm.authority().is_some_and(|a| a.as_str().contains('@')) {
            return Err(refuse("the realm has a user in it"));
        }
        if Some(host) != self.origin.host() && is_link_local_literal(host) {
            return Err(refuse("the realm is a link-local address, where cloud metadata lives"));
        }
        Ok(realm)
    }

    /// Credentials go to the registry's own host, to its own domain, and to hosts that the operator named; never
    /// to wherever a registry points (CVE-2020-15157).
    fn may_see_credentials(&self, realm: &Uri) -> bool {
        let (Some(registry), Some(host)) = (self.origin.host(), realm.host()) else { return false };
        let (registry, host) = (registry.to_ascii_lowercase(), host.to_ascii_lowercase());
        registry == host
            || self.token_hosts.iter().any(|named| named.eq_ignore_ascii_case(&host))
            || registrable(&registry).is_some_and(|domain| registrable(&host) == Some(domain))
    }
}

/// The part of a host name that one owner registers, near enough without the public suffix list: the last two
/// labels, or three below suffixes like `co.uk`. `None` for addresses and single labels.
fn registrable(host: &str) -> Option<&str> {
    if host.parse::<std::net::IpAddr>().is_ok() || host.starts_with('[') {
        return None;
    }
    let labels: Vec<&str> = host.trim_end_matches('.').split('.').collect();
    let count = labels.len();
    if count < 2 {
        return None;
    }
    // Below these, each name belongs to another customer.
    const SHARED: [&str; 6] =
        ["amazonaws.com", "azurecr.io", "azurewebsites.net", "github.io", "herokuapp.com", "jfrog.io"];
    let last = |n: usize| labels[count - n..].iter().map(|l| l.len() + 1).sum::<usize>() - 1;
    let tail = |n: usize| &host.trim_end_matches('.')[host.trim_end_matches('.').len() - last(n)..];
    let country = labels[count - 1].len() == 2
        && labels[count - 2].len() <= 3
        && count > 2
        && labels[count - 2] != "io";
    if SHARED.contains(&tail(2)) || country {
        return (count > 2).then(|| tail(3));
    }
    Some(tail(2))
}

fn token_request(
    realm: &Uri,
    service: Option<&str>,
    scope: &str,
    credentials: Option<&Credentials>,
) -> Result<Ask, RegistryError> {
    let mut form = Vec::new();
    if let Some(service) = service {
        form.push(("service", service));
    }
    form.push(("scope", scope));
    if let Some(refresh) = credentials.map(|c| c.identity_token.as_str()).filter(|t| !t.is_empty()) {
        form.extend([("grant_type", "refresh_token"), ("refresh_token", refresh), ("client_id", CLIENT_ID)]);
        let mut ask = Ask::get(realm.clone());
        ask.method = Method::POST;
        ask.headers.push((CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded")));
        ask.body = encode(&form).into();
        return Ok(ask);
    }
    let authorization = credentials.and_then(basic);
    if let Some(credentials) = credentials.filter(|_| authorization.is_some()) {
        form.insert(0, ("account", &credentials.username));
    }
    let separator = if realm.query().is_some() { '&' } else { '?' };
    let uri = format!("{realm}{separator}{}", encode(&form));
    let uri = uri.parse().map_err(|_| RegistryError::Protocol {
        url: shown(realm),
        why: "the realm makes no address".into(),
    })?;
    let mut ask = Ask::get(uri);
    ask.authorization = authorization;
    Ok(ask)
}

/// `application/x-www-form-urlencoded`.
fn encode(form: &[(&str, &str)]) -> String {
    let mut out = String::new();
    for (name, value) in form {
        if !out.is_empty() {
            out.push('&');
        }
        out.push_str(name);
        out.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~:/".contains(&byte) {
                out.push(char::from(byte));
            } else {
                out.push_str(&format!("%{byte:02X}"));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authenticator(origin: &str) -> Authenticator {
        Authenticator {
            origin: origin.parse().unwrap(),
            repository: "a/b".into(),
            credentials: None,
            token_hosts: vec!["sso.elsewhere.example".into()],
            insecure: false,
            state: Mutex::default(),
        }
    }

    #[test]
    fn credentials_stay_in_the_registry_s_own_domain() {
        for (registry, realm, may) in [
            ("https://registry-1.docker.io/", "https://auth.docker.io/token", true),
            ("https://quay.io/", "https://quay.io/v2/auth", true),
            ("https://registry.gitlab.com/", "https://gitlab.com/jwt/auth", true),
            ("https://r.example.co.uk/", "https://auth.example.co.uk/", true),
            ("https://r.example.co.uk/", "https://auth.evil.co.uk/", false),
            ("https://a.azurecr.io/", "https://a.azurecr.io/oauth2/token", true),
            ("https://a.azurecr.io/", "https://b.azurecr.io/oauth2/token", false),
            ("https://quay.io/", "https://evil.example/", false),
            ("https://quay.io/", "https://quay.io.evil.example/", false),
            ("https://quay.io/", "https://evilquay.io/", false),
            ("https://10.0.0.1:5000/", "https://10.0.0.2:5000/", false),
            ("https://10.0.0.1:5000/", "https://10.0.0.1:5001/", true),
            ("https://localhost/", "https://localhost.evil.example/", false),
            ("https://quay.io/", "https://sso.elsewhere.example/t", true),
        ] {
            assert_eq!(
                authenticator(registry).may_see_credentials(&realm.parse().unwrap()),
                may,
                "{registry} {realm}"
            );
        }
    }

    #[test]
    fn a_realm_must_be_https_and_no_metadata_address() {
        let auth = authenticator("https://quay.io/");
        let realm = |r: &str| {
            auth.realm(&Challenge { scheme: "bearer".into(), parameters: vec![("realm".into(), r.into())] })
        };
        assert!(realm("https://quay.io/t").is_ok());
        for bad in
            ["http://quay.io/t", "https://169.254.169.254/t", "ftp://x/", "", "/t", "https://u@quay.io/"]
        {
            assert!(realm(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_token_request_carries_scope_and_account() {
        let credentials = Credentials { username: "u&v".into(), password: "p".into(), ..Default::default() };
        let realm = "https://a.example/token?x=1".parse().unwrap();
        let ask = token_request(&realm, Some("s t"), "repository:a/b:pull", Some(&credentials)).unwrap();
        assert_eq!(
            ask.uri.to_string(),
            "https://a.example/token?x=1&account=u%26v&service=s%20t&scope=repository:a/b:pull"
        );
        assert!(ask.authorization.is_some());
        let refresh = Credentials { identity_token: "r+t".into(), ..Default::default() };
        let ask = token_request(&realm, None, "s", Some(&refresh)).unwrap();
        assert_eq!(ask.method, Method::POST);
        assert_eq!(&ask.body[..], b"scope=s&grant_type=refresh_token&refresh_token=r%2Bt&client_id=criox");
    }
}
