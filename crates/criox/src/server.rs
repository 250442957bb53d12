//! The socket: gRPC over HTTP/2, and HTTP/1 for those who look at containers (the kubelet's cAdvisor).

use std::convert::Infallible;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use criox_cri::v1::image_service_server::ImageServiceServer;
use criox_cri::v1::runtime_service_server::RuntimeServiceServer;
use http::header::CONTENT_TYPE;
use http::{Request, Response};
use hyper::body::{Bytes, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::net::{UnixListener, UnixStream};
use tonic::Status;
use tonic::body::Body;
use tonic::service::Routes;
use tower::ServiceExt as _;

use crate::connections::{Connection, Connections, Running};
use crate::inspect;
use crate::rpc::{Services, lists};

/// CRI-O's limit on messages, which some clients count on.
pub(crate) const MESSAGE_MAX: usize = 80 << 20;
/// Requests of one connection at the same time.
const STREAMS: u32 = 1000;
/// Connections at the same time; an idle one makes room for the next.
const CONNECTIONS: usize = 256;
/// How long the client of an idle connection may take to agree that it ends.
const LEAVING: Duration = Duration::from_secs(2);
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
    let connections = Connections::new(CONNECTIONS);
    loop {
        // First a client, then a place for it: else an idle connection would end for nobody.
        match listener.accept().await {
            Ok((stream, _)) => {
                let place = connections.enter().await;
                tokio::spawn(connection(stream, routes.clone(), inspected.clone(), place));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(EXHAUSTED).await;
            }
        }
    }
}

async fn connection(stream: UnixStream, routes: Routes, services: Arc<Services>, place: Connection) {
    // A client that says nothing would keep its place among the connections for ever.
    tokio::select! {
        heard = tokio::time::timeout(FIRST_BYTE, stream.readable()) => if heard.is_err() { return },
        () = place.asked_to_leave() => return,
    }
    let place = Arc::new(place);
    let serving = service_fn({
        let place = Arc::clone(&place);
        move |request: Request<Incoming>| {
            let (routes, services) = (routes.clone(), services.clone());
            let running = place.request();
            async move {
                let answer = answer(request, routes, &services).await;
                Ok::<_, Infallible>(answer.map(|body| Answer { body, _running: running }))
            }
        }
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder.http2().max_concurrent_streams(STREAMS).adaptive_window(true);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), serving));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = place.asked_to_leave() => {
            connection.as_mut().graceful_shutdown();
            loop {
                match tokio::time::timeout(LEAVING, connection.as_mut()).await {
                    Ok(ended) => break ended,
                    // A request crossed the goodbye: it is answered first.
                    Err(_) if place.is_at_work() => {}
                    Err(_) => return,
                }
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error = error.to_string(), "a connection ended early");
    }
}

/// The body of an answer. Its connection is at work until the last byte is out: it may be a stream of events.
struct Answer {
    body: Body,
    _running: Running,
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
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
    let request = match lists::answer(request, services).await {
        Ok(response) => return response,
        Err(other) => other,
    };
    match routes.oneshot(request.map(Body::new)).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}
