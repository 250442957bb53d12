//! TLS for the streaming server, with files that are read again when they change.

pub(crate) mod validity;

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustls::crypto::CryptoProvider;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{CipherSuite, RootCertStore, ServerConfig};
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::options::Tls;

/// How often the files are looked at, at most.
const LOOK: Duration = Duration::from_secs(1);

/// Why TLS can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read.
    #[error("{0} has no PEM that can be read")]
    Pem(PathBuf, #[source] pem::Error),
    /// A file holds no certificate.
    #[error("{0} has no certificate")]
    Empty(PathBuf),
    /// The certificate is not valid now.
    #[error("the certificate in {0} is not valid now: {1}")]
    Validity(PathBuf, &'static str),
    /// None of the suites is known.
    #[error("none of the suites in tls_cipher_suites is offered for TLS 1.2")]
    Suites,
    /// Key and certificate don't belong together, or something in them is refused.
    #[error("the certificate or key of the streaming server is refused")]
    Refused(#[source] rustls::Error),
    /// The authorities of clients are refused.
    #[error("{0} is refused as authority of clients: {1}")]
    Authority(PathBuf, String),
}

/// The set-up in force.
#[derive(Debug)]
pub(crate) struct Reloading {
    files: Tls,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    config: Arc<ServerConfig>,
    stamps: Vec<Option<Stamp>>,
    looked: Instant,
}

/// By which a change of a file is seen.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp(u64, u64, u64, i64, i64, i64);

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        std::fs::metadata(path)
            .ok()
            .map(|m: Metadata| Self(m.dev(), m.ino(), m.len(), m.mtime(), m.mtime_nsec(), m.ctime_nsec()))
    }
}

impl Reloading {
    pub(crate) fn new(files: Tls) -> Result<Self, TlsError> {
        let (stamps, config) = (stamps(&files), load(&files)?);
        let state = Mutex::new(State { config, stamps, looked: Instant::now() });
        Ok(Self { files, state })
    }

    /// The set-up for a new connection. Files that have changed are read first; if they are no good, what was in force
    /// stays so.
    pub(crate) async fn current(self: &Arc<Self>) -> Arc<ServerConfig> {
        let due = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let due = state.looked.elapsed() >= LOOK;
            if due {
                state.looked = Instant::now();
            }
            due
        };
        if due {
            let this = Arc::clone(self);
            // A failure is a panic of it, and the set-up stays.
            let _ = tokio::task::spawn_blocking(move || this.look()).await;
        }
        Arc::clone(&self.state.lock().unwrap_or_else(PoisonError::into_inner).config)
    }

    fn look(&self) {
        let stamps = stamps(&self.files);
        if self.state.lock().unwrap_or_else(PoisonError::into_inner).stamps == stamps {
            return;
        }
        let loaded = load(&self.files);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.stamps = stamps;
        match loaded {
            Ok(config) => {
                state.config = config;
                tracing::info!("the certificate of the streaming server was read again");
            }
            Err(error) => {
                tracing::warn!("the streaming server keeps its certificate: {}", chain(&error));
            }
        }
    }
}

fn chain(error: &TlsError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn stamps(files: &Tls) -> Vec<Option<Stamp>> {
    [Some(&files.certificate), Some(&files.key), files.client_authority.as_ref()]
        .into_iter()
        .flatten()
        .map(|path| Stamp::of(path))
        .collect()
}

fn load(files: &Tls) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(provider(files)?);
    let certificates = certificates(&files.certificate)?;
    let key =
        PrivateKeyDer::from_pem_file(&files.key).map_err(|error| TlsError::Pem(files.key.clone(), error))?;
    let first = certificates.first().ok_or_else(|| TlsError::Empty(files.certificate.clone()))?;
    validity::check(first, SystemTime::now())
        .map_err(|why| TlsError::Validity(files.certificate.clone(), why))?;
    let versions: &[&rustls::SupportedProtocolVersion] =
        if files.only_tls13 { &[&rustls::version::TLS13] } else { rustls::ALL_VERSIONS };
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .map_err(TlsError::Refused)?;
    let builder = match &files.client_authority {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let refused = |error: String| TlsError::Authority(path.clone(), error);
            let mut roots = RootCertStore::empty();
            for certificate in self::certificates(path)? {
                roots.add(certificate).map_err(|error| refused(error.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| refused(error.to_string()))?)
        }
    };
    let mut config = builder.with_single_cert(certificates, key).map_err(TlsError::Refused)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // A session that is resumed is one that an authority taken away since still lets in.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |error| TlsError::Pem(path.to_owned(), error);
    let all: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(failed)?.collect();
    let all = all.map_err(failed)?;
    if all.is_empty() { Err(TlsError::Empty(path.to_owned())) } else { Ok(all) }
}

/// The suites of TLS 1.3 are all safe and not to be chosen, as in Go. For 1.2 a configuration may name ones that are
/// not offered here; these are skipped as long as one is left.
fn provider(files: &Tls) -> Result<CryptoProvider, TlsError> {
    let mut provider = rustls::crypto::ring::default_provider();
    if files.cipher_suites.is_empty() || files.only_tls13 {
        return Ok(provider);
    }
    let wanted = |suite: CipherSuite| {
        let name = suite.as_str().unwrap_or_default();
        // Go has the suites of ChaCha20 under a shorter name, too.
        files.cipher_suites.iter().any(|wanted| *wanted == name || format!("{wanted}_SHA256") == name)
    };
    provider.cipher_suites.retain(|suite| suite.tls13().is_some() || wanted(suite.suite()));
    if !provider.cipher_suites.iter().any(|suite| suite.tls13().is_none()) {
        return Err(TlsError::Suites);
    }
    Ok(provider)
}
