//! The registry client: OCI distribution specification, pull side, with the habits of containers/image.

mod auth;
mod blob;
pub(crate) mod challenge;
mod credentials;
mod error;
#[cfg(test)]
pub(crate) mod fake;
mod http;
pub(crate) mod proxy;
#[cfg(test)]
mod tests;
mod tls;

use ::http::header::{ACCEPT, CONTENT_TYPE, WWW_AUTHENTICATE};
use ::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use bytes::Bytes;
use criox_config::Credentials;
use criox_config::certs::HostCerts;
use tokio::sync::Mutex;

pub(crate) use blob::BlobReader;
pub use error::RegistryError;
pub use http::Timeouts;
pub use proxy::Proxies;

use crate::manifest::{ACCEPTED, MANIFEST_MAX};
use auth::Authenticator;
use challenge::Challenge;
use criox_store::{Digest, Hasher};
use error::shown;
use http::{Answer, Ask, Http};

/// The host that serves what is called docker.io.
const DOCKER_HUB: &str = "registry-1.docker.io";

/// Where a repository is to be had, and how.
#[derive(Debug, Clone)]
pub(crate) struct Endpoint {
    /// `host[:port]` as configured; also the name of its `certs.d` directory and its credentials.
    pub(crate) host: String,
    pub(crate) repository: String,
    pub(crate) insecure: bool,
    pub(crate) certificates: HostCerts,
    pub(crate) credentials: Option<Credentials>,
}

/// One repository at one endpoint.
pub(crate) struct Registry {
    http: Http,
    /// `https://host[:port]`.
    base: String,
    auth: Authenticator,
}

/// A manifest as it came.
pub(crate) struct FetchedManifest {
    /// Without parameters, in lower case; empty if the registry named none.
    pub(crate) content_type: String,
    pub(crate) bytes: Bytes,
    pub(crate) digest: Digest,
}

impl Registry {
    /// Finds out over which scheme the registry answers and what it asks for.
    pub(crate) async fn connect(
        endpoint: &Endpoint,
        user_agent: &str,
        timeouts: &Timeouts,
        token_hosts: &[String],
        proxies: &Proxies,
    ) -> Result<Self, RegistryError> {
        let (host, certificates, insecure) =
            (endpoint.host.clone(), endpoint.certificates.clone(), endpoint.insecure);
        let tls = tokio::task::spawn_blocking(move || tls::client_config(&host, &certificates, insecure))
            .await
            .map_err(|e| RegistryError::Tls { host: endpoint.host.clone(), why: e.to_string() })??;
        let http = Http::new(tls, user_agent, timeouts, proxies);
        let physical = if endpoint.host == "docker.io" { DOCKER_HUB } else { &endpoint.host };
        let mut failed = None;
        for scheme in ["https", "http"] {
            if scheme == "http" && !endpoint.insecure {
                continue;
            }
            let base = format!("{scheme}://{physical}");
            let origin = uri(&format!("{base}/v2/"))?;
            match http.send(&Ask::get(origin.clone())).await {
                Ok(answer) if answer.status.is_success() || answer.status == StatusCode::UNAUTHORIZED => {
                    let state = Mutex::default();
                    let auth = Authenticator {
                        origin,
                        repository: endpoint.repository.clone(),
                        credentials: endpoint.credentials.clone(),
                        token_hosts: token_hosts.to_vec(),
                        insecure: endpoint.insecure,
                        state,
                    };
                    auth.challenged(challenges(&answer.headers), None).await;
                    return Ok(Self { http, base, auth });
                }
                Ok(answer) => {
                    failed.get_or_insert(
                        http.refusal(answer, "check that the address is that of a registry").await,
                    );
                }
                Err(e) if failed.is_none() || !matches!(e, RegistryError::Unreachable { .. }) => {
                    failed = Some(e)
                }
                // Both failed: what https said stands, unless http failed in a more telling way.
                Err(_) => {}
            }
        }
        Err(failed
            .unwrap_or_else(|| RegistryError::Protocol { url: physical.to_owned(), why: "no scheme".into() }))
    }

    pub(crate) fn timeouts(&self) -> &Timeouts {
        self.http.timeouts()
    }

    /// Fetches a manifest by tag or digest. A digest is verified here.
    pub(crate) async fn manifest(&self, reference: &str) -> Result<FetchedManifest, RegistryError> {
        let accept = ACCEPTED.iter().map(|t| (ACCEPT, HeaderValue::from_static(t))).collect();
        let answer = self.get(&format!("manifests/{reference}"), accept).await?;
        let content_type = answer.headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
        let content_type = content_type.split(';').next().unwrap_or("").trim().to_ascii_lowercase();
        let url = answer.url.clone();
        let bytes = self.http.read(answer, MANIFEST_MAX).await?;
        let digest = match reference.parse::<Digest>() {
            Ok(expected) => {
                let got = digest_like(&expected, &bytes);
                if got != expected {
                    return Err(RegistryError::Digest { url, expected, got });
                }
                got
            }
            Err(_) => Digest::sha256(&bytes),
        };
        Ok(FetchedManifest { content_type, bytes, digest })
    }

    /// Fetches a small blob whole, and verifies it.
    pub(crate) async fn small_blob(&self, digest: &Digest, size: u64) -> Result<Bytes, RegistryError> {
        let answer = self.blob_from(digest, None).await?;
        let url = answer.url.clone();
        let bytes = self.http.read(answer, size.min(MANIFEST_MAX)).await?;
        if (bytes.len() as u64) < size {
            return Err(RegistryError::TooShort { url, expected: size, got: bytes.len() as u64 });
        }
        let got = digest_like(digest, &bytes);
        if got != *digest {
            return Err(RegistryError::Digest { url, expected: digest.clone(), got });
        }
        Ok(bytes)
    }

    /// The answer to a request for a blob, from an offset on.
    async fn blob_from(&self, digest: &Digest, offset: Option<u64>) -> Result<Answer, RegistryError> {
        let range = offset.and_then(blob::range_from).into_iter().collect();
        self.get(&format!("blobs/{digest}"), range).await
    }

    async fn get(
        &self,
        what: &str,
        headers: Vec<(HeaderName, HeaderValue)>,
    ) -> Result<Answer, RegistryError> {
        let mut ask = Ask::get(uri(&format!("{}/v2/{}/{what}", self.base, self.auth.repository))?);
        ask.headers = headers;
        // A second round only after a 401: the token expired, or its scope was too small.
        for last in [false, true] {
            ask.authorization = self.auth.header(&self.http).await?;
            let answer = self.http.send(&ask).await?;
            if answer.status.is_success() {
                return Ok(answer);
            }
            let challenges = challenges(&answer.headers);
            let again =
                answer.status == StatusCode::UNAUTHORIZED && !last && self.can_answer(&challenges, &ask);
            if !again {
                return Err(self.http.refusal(answer, self.hint()).await);
            }
            self.auth.challenged(challenges, ask.authorization.as_ref()).await;
        }
        Err(RegistryError::Protocol { url: shown(&ask.uri), why: "authentication doesn't end".into() })
    }

    /// Whether another round can end otherwise: not if there is nothing new to show.
    fn can_answer(&self, challenges: &[Challenge], ask: &Ask) -> bool {
        let credentials = self.auth.credentials.as_ref();
        let offers = |scheme: &str| challenges.iter().any(|c| c.scheme == scheme);
        offers("bearer") && credentials.is_none_or(|c| c.registry_token.is_empty())
            || offers("basic")
                && ask.authorization.is_none()
                && credentials.and_then(credentials::basic).is_some()
    }

    fn hint(&self) -> &'static str {
        if self.auth.credentials.is_some() {
            "check the credentials and that they may pull this repository"
        } else {
            "no credentials were given for it: the repository is private (imagePullSecrets, auth file) or doesn't exist"
        }
    }
}

/// The digest of `bytes` in the algorithm of `expected`.
fn digest_like(expected: &Digest, bytes: &[u8]) -> Digest {
    let mut hasher = Hasher::like(expected);
    hasher.update(bytes);
    hasher.finish()
}

fn uri(text: &str) -> Result<Uri, RegistryError> {
    text.parse().map_err(|_| RegistryError::Protocol { url: text.to_owned(), why: "not an address".into() })
}

fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let values = headers.get_all(WWW_AUTHENTICATE).iter();
    values.filter_map(|v| v.to_str().ok()).flat_map(challenge::parse).collect()
}
