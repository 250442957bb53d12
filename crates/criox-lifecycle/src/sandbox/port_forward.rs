//! PortForward: a connection to a port of the pod's loopback. The socket is made inside the pod's network namespace,
//! to which it then belongs; everything else happens outside.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use criox_cri::v1::NamespaceMode;
use criox_records::{Namespace, SandboxPhase, namespace_options};
use criox_sys::netns;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::net::TcpSocket;
use tokio::time::timeout;

use crate::context::{Context, blocking};
use crate::error::{Error, Kind, Result};
use crate::index::PodView;

/// For entering the namespace, a matter of microseconds.
const ENTER: Duration = Duration::from_secs(5);
/// For a connection on loopback: one that is not taken by then waits in a full queue.
const CONNECT: Duration = Duration::from_secs(10);

/// Whether anything can be reached in it.
pub(crate) fn ready(view: &PodView) -> Result<()> {
    match view.sandbox.phase {
        SandboxPhase::Ready => Ok(()),
        SandboxPhase::Creating | SandboxPhase::NotReady => Err(Error::new(
            Kind::FailedPrecondition,
            format!("pod sandbox {} is not ready: none of its ports can be reached", view.sandbox.id),
        )),
    }
}

/// Connects to 127.0.0.1, and if nobody listens there to `::1`.
pub(crate) async fn connect(context: &Arc<Context>, view: &PodView, port: u16) -> Result<OwnedFd> {
    ready(view)?;
    let object = format!("pod sandbox {}", view.sandbox.id);
    let network = namespace_options(&view.sandbox.config.0).network();
    let path = (network != NamespaceMode::Node)
        .then(|| context.paths.namespace(Namespace::Network, view.sandbox.id.as_str()));
    let sockets = blocking("network namespace", &object, ENTER, {
        let object = object.clone();
        move || match path {
            None => Ok(sockets()),
            Some(path) => {
                let failed = |error| Error::failed(format!("network of {object}")).because(error);
                let ns = netns::open(&path).map_err(failed)?;
                netns::within(ns.as_fd(), sockets).map_err(failed)
            }
        }
    })
    .await?;
    let mut refused = Vec::new();
    for (address, socket) in sockets {
        let connected = async { connect_one(socket?, SocketAddr::new(address, port)).await };
        match timeout(CONNECT, connected).await {
            Ok(Ok(socket)) => return Ok(socket),
            Ok(Err(error)) => refused.push(format!("{address}: {error}")),
            Err(_) => refused.push(format!("{address}: no answer within {} s", CONNECT.as_secs())),
        }
    }
    Err(Error::failed(format!("connection to port {port} of {object}: {}", refused.join("; "))))
}

type Made = std::io::Result<OwnedFd>;

fn sockets() -> [(IpAddr, Made); 2] {
    let make = |family| {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        rustix::net::socket_with(family, SocketType::STREAM, flags, None).map_err(std::io::Error::from)
    };
    [
        (Ipv4Addr::LOCALHOST.into(), make(AddressFamily::INET)),
        (Ipv6Addr::LOCALHOST.into(), make(AddressFamily::INET6)),
    ]
}

async fn connect_one(socket: OwnedFd, address: SocketAddr) -> Made {
    let stream = TcpSocket::from_std_stream(std::net::TcpStream::from(socket)).connect(address).await?;
    // Clients and servers alike send small pieces and wait for the answer.
    stream.set_nodelay(true)?;
    Ok(stream.into_std()?.into())
}
