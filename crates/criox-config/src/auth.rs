//! Credentials for registries: containers-auth.json(5) and docker's `config.json`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use thiserror::Error;

use crate::document::read;
use crate::problem::{Origin, Problems};

/// Padding is optional: hand-written files lack it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Credentials for one registry; empty fields are absent. `Debug` doesn't show secrets.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Credentials {
    /// User for basic authentication.
    pub username: String,
    /// Password for basic authentication.
    pub password: String,
    /// OAuth2 refresh token.
    pub identity_token: String,
    /// Bearer token that is sent as it is.
    pub registry_token: String,
}

impl Credentials {
    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.username.is_empty() && self.identity_token.is_empty() && self.registry_token.is_empty()
    }

    /// Credentials as a CRI `AuthConfig` gives them: `auth` is base64 of `user:password` and goes before both. They may
    /// come out empty, which means that the request brings none.
    ///
    /// # Errors
    /// `auth` is not that.
    pub fn from_cri(
        username: &str,
        password: &str,
        auth: &str,
        identity_token: &str,
        registry_token: &str,
    ) -> Result<Self, AuthError> {
        let (username, password) = match auth {
            "" => (username.to_owned(), password.to_owned()),
            _ => decode(auth).ok_or(AuthError::Encoding { place: "the request".to_owned() })?,
        };
        Ok(Self {
            username,
            password,
            identity_token: identity_token.to_owned(),
            registry_token: registry_token.to_owned(),
        })
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hide = |secret: &str| if secret.is_empty() { "none" } else { "hidden" };
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .field("password", &format_args!("{}", hide(&self.password)))
            .field("identity_token", &format_args!("{}", hide(&self.identity_token)))
            .field("registry_token", &format_args!("{}", hide(&self.registry_token)))
            .finish()
    }
}

/// Why there are no credentials although some are configured.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AuthError {
    /// They are in a helper program.
    #[error(
        "credentials of {registry} are in the helper {helper}, and helpers are not supported: put them into \"auths\""
    )]
    Helper {
        /// The registry's host.
        registry: String,
        /// Name of the helper.
        helper: String,
    },
    /// They are not base64 of `user:password`.
    #[error("\"auth\" of {place} is not base64 of user:password")]
    Encoding {
        /// The key in `auths`, or what the caller gave.
        place: String,
    },
}

#[derive(Deserialize, Default)]
struct Entry {
    #[serde(default)]
    auth: Option<String>,
    #[serde(default)]
    identitytoken: Option<String>,
}

#[derive(Deserialize, Default)]
struct Raw {
    #[serde(default)]
    auths: Option<BTreeMap<String, Entry>>,
    #[serde(default, rename = "credHelpers")]
    cred_helpers: Option<BTreeMap<String, String>>,
}

/// One file of credentials.
#[derive(Default)]
pub struct AuthFile {
    auths: BTreeMap<String, Entry>,
    cred_helpers: BTreeMap<String, String>,
    legacy: bool,
}

impl fmt::Debug for AuthFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthFile")
            .field("auths", &self.auths.keys())
            .field("cred_helpers", &self.cred_helpers)
            .finish()
    }
}

impl AuthFile {
    /// Reads a file; one that doesn't exist has no credentials.
    ///
    /// # Errors
    /// It can't be read, or is not in the format. The message never quotes the file.
    pub fn load(path: &Path) -> Result<Self, Problems> {
        match read(path)? {
            Some(bytes) => Self::parse(path, &bytes),
            None => Ok(Self::default()),
        }
    }

    /// Reads bytes; a `path` that ends in `.dockercfg` is in docker's oldest format.
    ///
    /// # Errors
    /// Not in the format.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, Problems> {
        let bad = |e: serde_json::Error| {
            // serde's text may quote a secret that stands where it doesn't belong.
            let origin = Origin::File { path: path.to_owned(), line: e.line() };
            Problems::one(origin, "", format!("is not a file of credentials (column {})", e.column()))
        };
        if path.file_name().is_some_and(|name| name == ".dockercfg") {
            let auths = serde_json::from_slice(bytes).map_err(bad)?;
            return Ok(Self { auths, legacy: true, ..Self::default() });
        }
        let raw: Raw = serde_json::from_slice(bytes).map_err(bad)?;
        Ok(Self {
            auths: raw.auths.unwrap_or_default(),
            cred_helpers: raw.cred_helpers.unwrap_or_default(),
            legacy: false,
        })
    }

    /// The files that are searched where none is configured, in order.
    pub fn system_paths(env: impl Fn(&str) -> Option<String>, uid: u32) -> Vec<PathBuf> {
        let env = |name: &str| env(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let home = env("HOME");
        let at_home = |sub: &str| home.as_ref().map(|home| home.join(sub));
        let runtime = env("XDG_RUNTIME_DIR")
            .map_or_else(|| format!("/run/containers/{uid}").into(), |dir| dir.join("containers"));
        let config = env("XDG_CONFIG_HOME").or_else(|| at_home(".config"));
        let docker = env("DOCKER_CONFIG").or_else(|| at_home(".docker"));
        [
            Some(runtime.join("auth.json")),
            config.map(|dir| dir.join("containers/auth.json")),
            docker.map(|dir| dir.join("config.json")),
            at_home(".dockercfg"),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// Credentials for `host/repository`: the longest path in `auths` counts. `host` is where the request goes (after
    /// rewriting), with Docker Hub as `docker.io`.
    ///
    /// # Errors
    /// They are there but can't be had.
    pub fn lookup(&self, host: &str, repository: &str) -> Result<Option<Credentials>, AuthError> {
        if let Some(helper) = self.cred_helpers.get(host) {
            return Err(AuthError::Helper { registry: host.to_owned(), helper: helper.clone() });
        }
        let found = self.exact(host, repository).or_else(|| {
            let host = normal_host(host);
            self.auths.iter().find(|(key, _)| normal_host(self.key_host(key)) == host)
        });
        found.map_or(Ok(None), |(key, entry)| entry.credentials(key))
    }

    fn exact(&self, host: &str, repository: &str) -> Option<(&String, &Entry)> {
        if self.legacy {
            return self.auths.get_key_value(host);
        }
        let full = format!("{host}/{repository}");
        let mut key = full.trim_end_matches('/');
        loop {
            if let Some(found) = self.auths.get_key_value(key) {
                return Some(found);
            }
            key = key.rsplit_once('/')?.0;
        }
    }

    /// Early `docker login` wrote URLs as keys: their host counts. Other keys count as they are.
    fn key_host<'k>(&self, key: &'k str) -> &'k str {
        let bare = key.strip_prefix("http://").or_else(|| key.strip_prefix("https://"));
        match bare {
            Some(bare) => bare.split('/').next().unwrap_or(bare),
            None if self.legacy => key.split('/').next().unwrap_or(key),
            None => key,
        }
    }
}

fn normal_host(host: &str) -> &str {
    if matches!(host, "docker.io" | "registry-1.docker.io") { "index.docker.io" } else { host }
}

impl Entry {
    fn credentials(&self, key: &str) -> Result<Option<Credentials>, AuthError> {
        let Some(auth) = self.auth.as_deref().filter(|auth| !auth.is_empty()) else { return Ok(None) };
        let bytes =
            BASE64.decode(auth.trim()).map_err(|_| AuthError::Encoding { place: format!("\"{key}\"") })?;
        let Some((username, password)) = split(&bytes) else { return Ok(None) };
        let credentials = Credentials {
            username,
            password,
            identity_token: self.identitytoken.clone().unwrap_or_default(),
            registry_token: String::new(),
        };
        Ok(Some(credentials).filter(|c| !c.is_empty()))
    }
}

fn decode(auth: &str) -> Option<(String, String)> {
    split(&BASE64.decode(auth.trim()).ok()?)
}

/// `user:password`; some tools pad the password with NULs.
fn split(bytes: &[u8]) -> Option<(String, String)> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.trim_matches('\0').to_owned()))
}

#[cfg(test)]
mod tests;
