//! Connections to registries: direct ones, and through a proxy.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{StatusCode, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::dns::GaiResolver;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::OnceCell;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tower::Service;

use super::answer;
use super::{Proxies, Proxy, Scheme};
use crate::registry::http::PublicResolver;
use crate::registry::tls;

type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// Between two keep-alive probes of TCP.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// A proxy that was of no use.
#[derive(Debug, thiserror::Error)]
#[error("proxy {proxy}: {why}")]
pub(in crate::registry) struct ProxyError {
    /// Its address, without user and password.
    pub(in crate::registry) proxy: String,
    /// What failed and what to do.
    pub(in crate::registry) why: String,
}

/// Opens connections for hyper, to the host of an address or to the proxy that leads there.
#[derive(Clone)]
pub(in crate::registry) struct Connector {
    direct: HttpConnector<PublicResolver>,
    /// The operator names proxies, so that their names are resolved without restriction.
    to_proxy: HttpConnector<GaiResolver>,
    proxies: Proxies,
    /// How a proxy behind TLS is verified: by the system's roots alone. A registry that needs no verification does not
    /// spare its proxy.
    pub(super) proxy_tls: Arc<OnceCell<Arc<ClientConfig>>>,
    /// For a connection to a proxy, and for its answer.
    patience: Duration,
}

impl Connector {
    /// A connection, and a proxy's answer, may each take as long as `patience`.
    pub(in crate::registry) fn new(proxies: Proxies, patience: Duration) -> Self {
        let mut direct = HttpConnector::new_with_resolver(PublicResolver::default());
        let mut to_proxy = HttpConnector::new();
        set_up(&mut direct, patience);
        set_up(&mut to_proxy, patience);
        Self { direct, to_proxy, proxies, proxy_tls: Arc::default(), patience }
    }
}

fn set_up<R>(tcp: &mut HttpConnector<R>, patience: Duration) {
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(patience));
    tcp.set_keepalive(Some(KEEPALIVE));
}

impl Service<Uri> for Connector {
    type Response = Way;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Way, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.direct.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Some(proxy) = self.proxies.of(&uri).cloned() else {
            let connecting = self.direct.call(uri);
            return Box::pin(async move {
                let stream = connecting.await?;
                Ok(Way { stream: Box::new(stream), proxied: false })
            });
        };
        let through = Through {
            proxy,
            tcp: self.to_proxy.clone(),
            tls: self.proxy_tls.clone(),
            patience: self.patience,
        };
        Box::pin(async move { through.reach(&uri).await.map_err(Into::into) })
    }
}

/// A connection to be opened through one proxy.
struct Through {
    proxy: Arc<Proxy>,
    tcp: HttpConnector<GaiResolver>,
    tls: Arc<OnceCell<Arc<ClientConfig>>>,
    patience: Duration,
}

impl Through {
    async fn reach(mut self, uri: &Uri) -> Result<Way, ProxyError> {
        let mut stream = self.connect().await?;
        // Plain requests go to the proxy as they are; what is encrypted goes through it.
        let proxied = uri.scheme_str() == Some("http");
        if !proxied {
            let tunnel = self.tunnel(&mut stream, uri);
            match timeout(self.patience, tunnel).await {
                Ok(done) => done?,
                Err(_) => {
                    let after = self.patience.as_secs_f32();
                    return Err(self.failed(format!("it did not answer CONNECT in {after} s")));
                }
            }
        }
        Ok(Way { stream, proxied })
    }

    /// A connection to the proxy itself.
    async fn connect(&mut self) -> Result<Box<dyn Stream>, ProxyError> {
        if let Scheme::Other(scheme) = &self.proxy.scheme {
            return Err(self.failed(format!("{scheme} is not spoken here; give a proxy with http or https")));
        }
        let no_address = |_| self.failed("it has no usable address");
        let address = Uri::try_from(self.proxy.to_string()).map_err(no_address)?;
        let tcp = self.tcp.call(address).await.map_err(|error| {
            self.failed(format!(
                "no connection to it ({}); check that it runs and that its address is right",
                texts(&error)
            ))
        })?;
        if self.proxy.scheme == Scheme::Http {
            return Ok(Box::new(tcp));
        }
        let config = self.verification().await?;
        let name = ServerName::try_from(self.proxy.host.clone())
            .map_err(|_| self.failed("its host is no name that a certificate can have"))?;
        let shaking = TlsConnector::from(config).connect(name, tcp.into_inner());
        match timeout(self.patience, shaking).await {
            Ok(Ok(stream)) => Ok(Box::new(TokioIo::new(stream))),
            Ok(Err(error)) => Err(self.failed(format!("TLS with it failed ({})", texts(&error)))),
            Err(_) => {
                let after = self.patience.as_secs_f32();
                Err(self.failed(format!("TLS with it was not there in {after} s")))
            }
        }
    }

    async fn verification(&self) -> Result<Arc<ClientConfig>, ProxyError> {
        let made = self.tls.get_or_try_init(|| async {
            let host = self.proxy.to_string();
            let read = move || tls::client_config(&host, &Default::default(), false);
            match tokio::task::spawn_blocking(read).await {
                Ok(Ok(config)) => Ok(Arc::new(config)),
                Ok(Err(error)) => Err(self.failed(error.to_string())),
                Err(error) => Err(self.failed(error.to_string())),
            }
        });
        made.await.cloned()
    }

    /// Asks for a tunnel to the host of `uri`.
    async fn tunnel(&self, stream: &mut Box<dyn Stream>, uri: &Uri) -> Result<(), ProxyError> {
        let broke = |error: io::Error| self.failed(format!("the connection broke at CONNECT ({error})"));
        let mut stream = TokioIo::new(stream);
        let target = format!("{}:{}", uri.host().unwrap_or_default(), uri.port_u16().unwrap_or(443));
        let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n").into_bytes();
        if let Some(value) = self.proxy.authorization() {
            request.extend_from_slice(b"Proxy-Authorization: ");
            request.extend_from_slice(value.as_bytes());
            request.extend_from_slice(b"\r\n");
        }
        request.extend_from_slice(b"\r\n");
        stream.write_all(&request).await.map_err(broke)?;
        stream.flush().await.map_err(broke)?;
        let mut came = Vec::new();
        let (status, end) = loop {
            if let Some(answer) = answer::status(&came).map_err(|why| self.failed(why))? {
                break answer;
            }
            if stream.read_buf(&mut came).await.map_err(broke)? == 0 {
                return Err(self.failed("it closed the connection instead of answering CONNECT"));
            }
        };
        match status {
            200..=299 if came.len() == end => Ok(()),
            // A server speaks second in TLS: this is not the registry's.
            200..=299 => Err(self.failed("it sent more than its answer to CONNECT")),
            407 => Err(self.failed(NEEDS_USER)),
            _ => {
                let shown =
                    StatusCode::from_u16(status).map_or(status.to_string(), |status| status.to_string());
                Err(self.failed(format!(
                    "it answered CONNECT with {shown}; check that it may connect to {target}"
                )))
            }
        }
    }

    fn failed(&self, why: impl Into<String>) -> ProxyError {
        ProxyError { proxy: self.proxy.to_string(), why: why.into() }
    }
}

/// What status 407 means.
pub(in crate::registry) const NEEDS_USER: &str =
    "it answered 407 Proxy Authentication Required; check user and password in its address";

/// An error with its causes in one line, for it can't be handed on as a source.
fn texts(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// What bytes go through.
trait Stream: Read + Write + Send + Unpin {}
impl<S: Read + Write + Send + Unpin> Stream for S {}

/// An open connection to a registry, or to what stands for it.
pub(in crate::registry) struct Way {
    stream: Box<dyn Stream>,
    /// Whether the proxy reads the requests itself; hyper then writes the whole address into them.
    proxied: bool,
}

impl Connection for Way {
    fn connected(&self) -> Connected {
        Connected::new().proxy(self.proxied)
    }
}

impl Read for Way {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl Write for Way {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
