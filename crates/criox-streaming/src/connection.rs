//! One client's connection: TLS, its request, and then what it came for.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::activity::Activity;
use crate::answer::{Plan, answer};
use crate::server::Server;
use crate::session::{Session, Wire};
use crate::socket::{Connection, Socket};

/// How long a client may take for each, the TLS handshake and its request.
const ARRIVAL: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 10 });

/// Largest head of a request.
const MOST_HEAD: usize = 64 << 10;

/// Serves a client to its end. Its place is free for another as soon as its URL was good.
pub(crate) async fn serve(server: Arc<Server>, stream: TcpStream, place: Option<OwnedSemaphorePermit>) {
    let connection = match handshake(&server, stream).await {
        Ok(connection) => connection,
        Err(why) => {
            tracing::debug!("a client of the streaming server did not get in: {why}");
            return;
        }
    };
    let Some((upgrade, plan)) = request(&server, connection).await else { return };
    drop(place);
    let subject = plan.subject();
    let parts = match upgrade.await.map(|upgraded| upgraded.downcast::<TokioIo<Connection>>()) {
        Ok(Ok(parts)) => parts,
        Ok(Err(_)) => {
            tracing::error!("{subject}: the connection is not what was given to the HTTP server");
            return;
        }
        Err(error) => {
            tracing::debug!("{subject}: the client left before it began: {error}");
            return;
        }
    };
    let session = Session {
        backend: Arc::clone(&server.backend),
        activity: Arc::new(Activity::new()),
        idle: server.idle_timeout,
    };
    let wire = Wire::new(parts.io.into_inner(), &parts.read_buf, &session.activity, plan.is_tunnelled());
    tracing::debug!("{subject} begins");
    match Box::pin(plan.run(&session, wire)).await {
        Ok(()) => tracing::debug!("{subject} is done"),
        Err(ended) => tracing::debug!("{subject} ends: {ended}"),
    }
}

async fn handshake(server: &Server, stream: TcpStream) -> Result<Connection, String> {
    let socket = Socket::new(stream).map_err(|error| error.to_string())?;
    let Some(tls) = &server.tls else { return Ok(Connection::Plain(socket)) };
    let acceptor = TlsAcceptor::from(tls.current().await);
    match timeout(ARRIVAL, acceptor.accept(socket)).await {
        Ok(Ok(stream)) => Ok(Connection::Tls(Box::new(stream))),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the TLS handshake took more than 10 s".to_owned()),
    }
}

/// Answers its one request, and says what it upgrades to.
async fn request(server: &Arc<Server>, connection: Connection) -> Option<(OnUpgrade, Plan)> {
    let slot = Mutex::new(None);
    let service = service_fn(|mut request| {
        let (response, plan) = answer(&server.waiting, &request);
        if let Some(plan) = plan {
            let upgrade = hyper::upgrade::on(&mut request);
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some((upgrade, plan));
        }
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(ARRIVAL)
        .max_buf_size(MOST_HEAD)
        .title_case_headers(true)
        .serve_connection(TokioIo::new(connection), service)
        .with_upgrades();
    if let Err(error) = Box::pin(served).await {
        tracing::debug!("a request to the streaming server failed: {error}");
    }
    slot.into_inner().unwrap_or_else(PoisonError::into_inner)
}
