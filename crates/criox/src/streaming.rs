//! The streaming server as the configuration wants it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use criox_config::Config;
use criox_config::value::TlsMinVersion;
use criox_lifecycle::Lifecycle;
use criox_streaming::{BindError, Options, Server, Tls};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// How long sessions may take to close when the daemon ends.
const END: Duration = Duration::from_secs(1);
/// The system's table of services.
const SERVICES: &str = "/etc/services";

/// Why the streaming server does not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// `stream_port` is neither a number nor a service.
    #[error("crio.api.stream_port: {0:?} is no port, and no service over TCP in {SERVICES}")]
    Port(String),
    /// The address is taken, or not this node's.
    #[error(transparent)]
    Bind(#[from] BindError),
}

/// A server that serves.
pub(crate) struct Serving {
    end: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Serving {
    /// Ends all sessions; the containers' processes go on, those of execs are told by their streams.
    pub(crate) async fn end(self) {
        drop(self.end);
        if timeout(END, self.task).await.is_err() {
            tracing::debug!("sessions of exec, attach or port-forward did not close in time");
        }
    }
}

/// Listens.
///
/// # Errors
/// The port or the address can't be had.
pub(crate) async fn bind(config: &Config, lifecycle: &Lifecycle) -> Result<Arc<Server>, StartError> {
    let options = options(config, &std::fs::read_to_string(SERVICES).unwrap_or_default())?;
    if config.api.stream_address.parse::<IpAddr>().is_err() {
        tracing::warn!(
            stream_address = config.api.stream_address,
            "crio.api.stream_address is no IP address: streams are served at all of this node's"
        );
    }
    tracing::debug!(
        stream_idle_timeout = config.api.stream_idle_timeout,
        seconds = options.idle_timeout.as_secs(),
        tls = options.tls.is_some(),
        "the streaming server's options"
    );
    Ok(Arc::new(Server::bind(options, Arc::new(lifecycle.clone())).await?))
}

/// Serves until [`Serving::end`].
pub(crate) fn serve(server: Arc<Server>) -> Serving {
    let (end, ended) = oneshot::channel();
    let task = tokio::spawn(server.run(async move {
        // Dropped, never sent.
        drop(ended.await);
    }));
    Serving { end, task }
}

fn options(config: &Config, services: &str) -> Result<Options, StartError> {
    let api = &config.api;
    let address = api.stream_address.parse().unwrap_or_else(|_| everywhere());
    let port = match api.stream_port.parse() {
        Ok(port) => port,
        Err(_) if api.stream_port.is_empty() => 0,
        Err(_) => {
            port_of(&api.stream_port, services).ok_or_else(|| StartError::Port(api.stream_port.clone()))?
        }
    };
    let files = api.stream_tls_cert.clone().zip(api.stream_tls_key.clone());
    let tls = files.filter(|_| api.stream_enable_tls).map(|(certificate, key)| Tls {
        certificate,
        key,
        client_authority: api.stream_tls_ca.clone(),
        only_tls13: api.tls_min_version == TlsMinVersion::Tls13,
        cipher_suites: api.tls_cipher_suites.clone(),
    });
    Ok(Options { address, port, tls, idle_timeout: api.idle_timeout() })
}

/// All addresses: of both families where the kernel has IPv6.
fn everywhere() -> IpAddr {
    // There and empty: IPv6 is switched off.
    match std::fs::read("/proc/net/if_inet6") {
        Ok(addresses) if !addresses.is_empty() => Ipv6Addr::UNSPECIFIED.into(),
        _ => Ipv4Addr::UNSPECIFIED.into(),
    }
}

/// A service's TCP port, as services(5) writes it: `name port/protocol aliases…`.
fn port_of(name: &str, services: &str) -> Option<u16> {
    services.lines().find_map(|line| {
        let mut fields = line.split('#').next()?.split_whitespace();
        let (service, port) = (fields.next()?, fields.next()?.strip_suffix("/tcp")?);
        (service == name || fields.any(|alias| alias == name)).then(|| port.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_may_be_a_services_name() {
        let services = "# comment\nhttp 80/udp\nhttp 80/tcp www # web\nbad x/tcp\n";
        assert_eq!(port_of("http", services), Some(80));
        assert_eq!(port_of("www", services), Some(80));
        assert_eq!([port_of("bad", services), port_of("absent", services)], [None, None]);
    }

    #[test]
    fn options_are_those_of_the_configuration() {
        let mut config = Config::default();
        let plain = options(&config, "").expect("the defaults");
        assert_eq!((plain.address, plain.port), (Ipv4Addr::LOCALHOST.into(), 0));
        assert!(plain.tls.is_none() && plain.idle_timeout == Duration::from_secs(4 * 3600));
        config.api.stream_address = "host.example".into();
        assert!(options(&config, "").is_ok_and(|options| options.address.is_unspecified()));
        config.api.stream_tls_cert = Some("/c".into());
        config.api.stream_tls_key = Some("/k".into());
        assert!(options(&config, "").is_ok_and(|options| options.tls.is_none()), "only if enabled");
        config.api.stream_enable_tls = true;
        config.api.tls_min_version = TlsMinVersion::Tls13;
        assert!(options(&config, "").is_ok_and(|options| options.tls.is_some_and(|tls| tls.only_tls13)));
        config.api.stream_port = "no-such".into();
        assert!(matches!(options(&config, ""), Err(StartError::Port(_))));
    }
}
