//! The listener, and the URLs that it gives out.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use crate::backend::{AttachRequest, Backend, ExecRequest, PortForwardRequest};
use crate::connection;
use crate::options::Options;
use crate::tls::{Reloading, TlsError};
use crate::urls::{Request, UrlError, Waiting};

/// Connections that have not come to a URL yet. What is beyond waits in the kernel's queue.
const MOST_UNKNOWN: usize = 512;

/// After a connection that could not be accepted: the reason does not pass at once.
const PAUSE: Duration = Duration::from_millis(200);

/// Why the server can't begin.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address can't be listened at.
    #[error("cannot listen for streams at {0}; see stream_address and stream_port")]
    Listen(SocketAddr, #[source] io::Error),
    /// TLS can't be set up.
    #[error("cannot serve streams over TLS; see stream_tls_cert, stream_tls_key and stream_tls_ca")]
    Tls(#[from] TlsError),
}

/// The streaming server: bound by [`Server::bind`], from then on it gives URLs, and [`Server::run`] serves them.
pub struct Server {
    pub(crate) idle_timeout: Duration,
    pub(crate) backend: Arc<dyn Backend>,
    listener: TcpListener,
    base: String,
    pub(crate) waiting: Waiting,
    pub(crate) tls: Option<Arc<Reloading>>,
    places: Arc<Semaphore>,
}

impl fmt::Debug for Server {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.debug_struct("Server").field("base", &self.base).finish_non_exhaustive()
    }
}

impl Server {
    /// Listens at the configured address.
    pub async fn bind(options: Options, backend: Arc<dyn Backend>) -> Result<Self, BindError> {
        let address = SocketAddr::new(options.address, options.port);
        let failed = |error| BindError::Listen(address, error);
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let tls = options.tls.clone().map(Reloading::new).transpose()?;
        let base = base(options.tls.is_some(), listener.local_addr().map_err(failed)?);
        Ok(Self {
            idle_timeout: options.idle_timeout,
            backend,
            listener,
            base,
            waiting: Waiting::default(),
            tls: tls.map(Arc::new),
            places: Arc::new(Semaphore::new(MOST_UNKNOWN)),
        })
    }

    /// Scheme, address and port of all its URLs, without a slash at the end.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// A URL at which one client can do this exec, once, within a minute.
    pub fn exec_url(&self, request: ExecRequest) -> Result<String, UrlError> {
        self.url(Request::Exec(request))
    }

    /// A URL at which one client can attach, once, within a minute.
    pub fn attach_url(&self, request: AttachRequest) -> Result<String, UrlError> {
        self.url(Request::Attach(request))
    }

    /// A URL at which one client can forward ports, once, within a minute.
    pub fn port_forward_url(&self, request: PortForwardRequest) -> Result<String, UrlError> {
        self.url(Request::PortForward(request))
    }

    fn url(&self, request: Request) -> Result<String, UrlError> {
        Ok(format!("{}{}", self.base, self.waiting.put(request)?))
    }

    /// Serves until `shutdown` is ready; sessions that are open then are ended, and their processes abandoned.
    pub async fn run(self: Arc<Self>, shutdown: impl Future<Output = ()> + Send) {
        let mut shutdown = std::pin::pin!(shutdown);
        let mut clients = JoinSet::new();
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                Some(_) = clients.join_next(), if !clients.is_empty() => (),
                (accepted, place) = self.accept() => match accepted {
                    Ok((stream, _)) => {
                        clients.spawn(connection::serve(Arc::clone(&self), stream, place));
                    }
                    Err(error) => {
                        // Of this process's or the system's limit, or of a client that has gone already.
                        tracing::warn!("a client of the streaming server could not be accepted: {error}");
                        tokio::time::sleep(PAUSE).await;
                    }
                },
            }
        }
        clients.shutdown().await;
    }

    /// Waits for a place first, and then for a client.
    async fn accept(&self) -> (io::Result<(TcpStream, SocketAddr)>, Option<OwnedSemaphorePermit>) {
        let place = Arc::clone(&self.places).acquire_owned().await.ok();
        (self.listener.accept().await, place)
    }
}

/// A server at all addresses is reached through loopback: whoever asked for the URL is on this node.
fn base(tls: bool, mut address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    format!("{}://{address}", if tls { "https" } else { "http" })
}
