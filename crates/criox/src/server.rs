//! The socket: gRPC over HTTP/2, and HTTP/1 for those who look at containers (the kubelet's cAdvisor).

use std::convert::Infallible;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criox_cri::v1::image_service_server::ImageServiceServer;
use criox_cri::v1::runtime_service_server::RuntimeServiceServer;
use http::header::CONTENT_TYPE;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tonic::body::Body;
use tonic::service::Routes;
use tower::ServiceExt as _;

use crate::inspect;
use crate::rpc::Services;

/// CRI-O's limit on messages, which some clients count on.
const MESSAGE_MAX: usize = 80 << 20;
/// Requests of one connection at the same time.
const STREAMS: u32 = 1000;
/// Connections at the same time.
const CONNECTIONS: usize = 256;
/// What a slow client may take for the head of an HTTP/1 request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// From the connection to the first byte.
const FIRST_BYTE: Duration = Duration::from_secs(60);
/// How long the socket of a killed predecessor may live on.
const PREDECESSOR: Duration = Duration::from_secs(3);
/// Between attempts to accept when the process is out of descriptors.
const EXHAUSTED: Duration = Duration::from_millis(100);

/// Binds the socket with mode 0660. A socket that a dead daemon left is replaced; one that answers is not.
///
/// # Errors
/// Another daemon serves the path, something else lies there, or the directory can't be made.
pub(crate) fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            let message = format!("{} exists and is not a socket", path.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
        }
        Ok(_) => {
            if is_served(path) {
                let message = format!("another daemon serves {}; stop it first", path.display());
                return Err(io::Error::new(io::ErrorKind::AddrInUse, message));
            }
            std::fs::remove_file(path)?;
        }
        Err(_) => {}
    }
    // Bound under another name, so that nobody can connect before the mode is right.
    let hidden = path.with_extension("new");
    match std::fs::remove_file(&hidden) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&hidden)?;
    std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o660))?;
    std::fs::rename(&hidden, path)?;
    Ok(listener)
}

/// Whether whoever listens there lives. A daemon that was killed a moment ago holds its socket until the kernel has taken
/// it apart, and a child of it until that has executed its program: the answer is believed after a while.
fn is_served(path: &Path) -> bool {
    let until = Instant::now() + PREDECESSOR;
    loop {
        let Ok(stream) = std::os::unix::net::UnixStream::connect(path) else { return false };
        let peer = rustix::net::sockopt::socket_peercred(&stream);
        if peer.is_ok_and(|peer| rustix::process::test_kill_process(peer.pid) == Err(rustix::io::Errno::SRCH))
        {
            return false;
        }
        if Instant::now() >= until {
            return true;
        }
        std::thread::sleep(EXHAUSTED);
    }
}

/// Serves until it is dropped; connections then end with the runtime.
pub(crate) async fn serve(listener: UnixListener, services: Services) {
    let inspected = Arc::new(services.clone());
    let runtime = RuntimeServiceServer::new(services.clone())
        .max_decoding_message_size(MESSAGE_MAX)
        .max_encoding_message_size(MESSAGE_MAX);
    let image = ImageServiceServer::new(services)
        .max_decoding_message_size(MESSAGE_MAX)
        .max_encoding_message_size(MESSAGE_MAX);
    let routes = Routes::new(runtime).add_service(image).prepare();
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let connection = connection(stream, routes.clone(), inspected.clone());
                tokio::spawn(async move {
                    connection.await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(EXHAUSTED).await;
            }
        }
    }
}

async fn connection(stream: UnixStream, routes: Routes, services: Arc<Services>) {
    // A client that says nothing would keep its place among the connections for ever.
    if tokio::time::timeout(FIRST_BYTE, stream.readable()).await.is_err() {
        return;
    }
    let service = service_fn(move |request: Request<Incoming>| {
        let (routes, services) = (routes.clone(), services.clone());
        async move { Ok::<_, Infallible>(answer(request, routes, &services).await) }
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder.http2().max_concurrent_streams(STREAMS).adaptive_window(true);
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(error = error.to_string(), "a connection ended early");
    }
}

async fn answer(request: Request<Incoming>, routes: Routes, services: &Services) -> Response<Body> {
    let grpc = request
        .headers()
        .get(CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    if !grpc {
        return inspect::answer(request.method(), request.uri().path(), services).map(Body::new);
    }
    match routes.oneshot(request.map(Body::new)).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}
