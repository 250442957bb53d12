//! Port-forward over the channels of a WebSocket: two for each port of the request.

use std::io;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::port::Forward;
use crate::backend::PortForwardRequest;
use crate::queue::{Budget, Sender};
use crate::session::{LINGER, Session, Wire};
use crate::sink::{Framing, Lane};
use crate::source::{Ended, or_hung_up};
use crate::websocket::{Channels, Input, Messages};

/// Ports of one request; in base64 the number of a channel has to be a character.
pub(crate) const MOST_PORTS: usize = 32;

/// Serves a client that speaks in channels.
pub(crate) async fn websocket(
    session: &Session,
    wire: Wire,
    request: PortForwardRequest,
    base64: bool,
) -> Result<(), Ended> {
    let messages = Messages::new(wire.source, wire.sink.clone());
    let mut channels = Channels::new(messages, base64, false);
    let budget = Budget::new();
    // Dropped with this function: the connections end with the client's.
    let (alive, gone) = watch::channel(());
    let mut senders = Vec::new();
    let mut tasks = JoinSet::new();
    for (n, port) in (0u8..).zip(request.ports) {
        let lane = |number| Lane::new(&wire.sink, Framing::Channel { number, base64 });
        let (data, error) = (lane(2 * n), lane(2 * n + 1));
        greet(&data, port).await?;
        greet(&error, port).await?;
        let (sender, pieces) = budget.queue();
        senders.push(sender);
        let forward = Forward {
            backend: Arc::clone(&session.backend),
            sink: Arc::clone(&wire.sink),
            sandbox: request.sandbox.clone(),
            port,
            data,
            error,
            pieces,
            gone: gone.clone(),
            streams: false,
        };
        tasks.spawn(forward.run());
    }
    let result = tokio::select! {
        ended = feed(&mut channels, &senders) => Err(ended),
        () = async { while tasks.join_next().await.is_some() {} } => Ok(()),
        () = session.activity.idle(session.idle) => Err(Ended::Idle),
    };
    drop(alive);
    tasks.shutdown().await;
    match result {
        Ok(()) | Err(Ended::Idle) => drop(timeout(LINGER, channels.close()).await),
        Err(Ended::Protocol(_)) => drop(timeout(LINGER, channels.leave()).await),
        Err(_) => (),
    }
    result
}

/// Both channels of a port begin with its number, little endian.
async fn greet(lane: &Lane, port: u16) -> io::Result<()> {
    lane.send(&port.to_le_bytes()).await
}

async fn feed(channels: &mut Channels, senders: &[Sender]) -> Ended {
    let watch = channels.watch();
    loop {
        match channels.next().await {
            Err(ended) => return ended,
            // Odd ones are the server's.
            Ok(Input::Bytes { channel, bytes }) if channel % 2 == 0 => {
                let Some(sender) = senders.get(usize::from(channel / 2)) else { continue };
                if let Err(ended) = or_hung_up(&watch, sender.send(bytes)).await {
                    return ended;
                }
            }
            Ok(_) => (),
        }
    }
}
