//! How the server is set up.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Set-up of a [`Server`](crate::Server); the daemon makes it of `[crio.api]`.
#[derive(Debug, Clone)]
pub struct Options {
    /// Address to listen at (`stream_address`). URLs name it, or loopback if it means all addresses.
    pub address: IpAddr,
    /// Port (`stream_port`); 0 is any free one.
    pub port: u16,
    /// Serve HTTPS (`stream_enable_tls`).
    pub tls: Option<Tls>,
    /// Time without any byte in either direction after which a session is closed (`stream_idle_timeout`).
    pub idle_timeout: Duration,
}

impl Options {
    /// CRI-O's defaults: any port of loopback, no TLS, four hours.
    pub fn new() -> Self {
        Self {
            address: IpAddr::from([127, 0, 0, 1]),
            port: 0,
            tls: None,
            idle_timeout: Duration::from_secs(4 * 3600),
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self::new()
    }
}

/// Files and limits of TLS. The files are read again when they change.
#[derive(Debug, Clone)]
pub struct Tls {
    /// PEM with the certificate and those between it and the root (`stream_tls_cert`).
    pub certificate: PathBuf,
    /// PEM with its private key (`stream_tls_key`).
    pub key: PathBuf,
    /// PEM with the authorities of clients (`stream_tls_ca`); if given, a client without a certificate is refused.
    pub client_authority: Option<PathBuf>,
    /// Refuse TLS 1.2 (`tls_min_version`).
    pub only_tls13: bool,
    /// Go's names of the suites allowed for TLS 1.2 (`tls_cipher_suites`); empty allows all safe ones.
    pub cipher_suites: Vec<String>,
}
