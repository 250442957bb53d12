//! Port-forward over SPDY: pairs of streams, many on one connection.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::pairs::{self, Data, Kind, Pairs};
use super::port::Forward;
use crate::backend::PortForwardRequest;
use crate::queue::{Budget, Sender};
use crate::session::{LINGER, Session, Wire};
use crate::sink::{Lane, Sink};
use crate::source::{Ended, or_hung_up};
use crate::spdy::frame::Reason;
use crate::spdy::headers::Headers;
use crate::spdy::{Event, Feed, Peer, reset};
use crate::websocket::Messages;

/// Streams of one client: a browser behind `kubectl port-forward` opens dozens of pairs, a load test hundreds.
const MOST_STREAMS: usize = 4096;

/// Serves a client that has come over SPDY.
pub(crate) async fn spdy(session: &Session, wire: Wire, request: PortForwardRequest) -> Result<(), Ended> {
    serve(session, Feed::Plain(wire.source), wire.sink, request.sandbox).await
}

/// Serves a client that speaks SPDY in the messages of a WebSocket.
pub(crate) async fn tunnel(session: &Session, wire: Wire, request: PortForwardRequest) -> Result<(), Ended> {
    let messages = Box::new(Messages::new(wire.source, wire.sink.clone()));
    let feed = Feed::Tunnel { messages, buffer: BytesMut::new() };
    serve(session, feed, wire.sink, request.sandbox).await
}

async fn serve(session: &Session, feed: Feed, sink: Arc<Sink>, sandbox: String) -> Result<(), Ended> {
    let mut peer = Peer::new(feed, sink.clone(), MOST_STREAMS)?;
    let mut client = Client {
        session,
        sink,
        sandbox,
        budget: Budget::new(),
        pairs: Pairs::default(),
        live: HashMap::new(),
        tasks: JoinSet::new(),
    };
    let ended = tokio::select! {
        ended = client.serve(&mut peer) => ended,
        () = session.activity.idle(session.idle) => Ended::Idle,
    };
    // The connections to ports end with the client's.
    client.tasks.shutdown().await;
    match ended {
        Ended::Idle => drop(timeout(LINGER, peer.close()).await),
        Ended::Protocol(_) => drop(timeout(LINGER, peer.leave()).await),
        _ => (),
    }
    Err(ended)
}

struct Client<'a> {
    session: &'a Session,
    sink: Arc<Sink>,
    sandbox: String,
    budget: Budget,
    pairs: Pairs,
    /// Data streams that the client may send on or give up.
    live: HashMap<u32, Live>,
    /// One for each connection to a port; it gives the number of its data stream.
    tasks: JoinSet<Option<u32>>,
}

struct Live {
    /// Until the client's end.
    pieces: Option<Sender>,
    /// Dropped when the client gives the stream up.
    gone: watch::Sender<()>,
}

impl Client<'_> {
    async fn serve(&mut self, peer: &mut Peer) -> Ended {
        loop {
            let event = {
                // Kept over the other branches, for it may be in the middle of an answer. So these must not write.
                let mut next = pin!(peer.next());
                loop {
                    let deadline = self.pairs.next_deadline();
                    tokio::select! {
                        event = &mut next => break event,
                        Some(done) = self.tasks.join_next(), if !self.tasks.is_empty() => {
                            if let Ok(Some(stream)) = done {
                                self.live.remove(&stream);
                            }
                        }
                        () = until(deadline) => self.expire(),
                    }
                }
            };
            let done = match event {
                Ok(event) => self.heed(peer, event).await,
                Err(ended) => return ended,
            };
            if let Err(ended) = done {
                return ended;
            }
        }
    }

    async fn heed(&mut self, peer: &mut Peer, event: Event) -> Result<(), Ended> {
        match event {
            Event::Opened { stream, headers, fin } => self.opened(peer, stream, &headers, fin).await,
            Event::Data { stream, bytes, fin } => {
                let Some(live) = self.live.get_mut(&stream) else { return Ok(()) };
                if let Some(pieces) = &live.pieces {
                    or_hung_up(&peer.watch(), pieces.send(bytes)).await?;
                }
                if fin {
                    live.pieces = None;
                }
                Ok(())
            }
            Event::Reset { stream } => {
                self.live.remove(&stream);
                self.pairs.reset(stream);
                Ok(())
            }
        }
    }

    async fn opened(
        &mut self,
        peer: &mut Peer,
        stream: u32,
        headers: &Headers,
        fin: bool,
    ) -> Result<(), Ended> {
        let Some((kind, name)) = pairs::read(stream, headers) else {
            return Ok(peer.refuse(stream, Reason::Cancel).await?);
        };
        if self.pairs.has(&name, kind) {
            return Ok(peer.refuse(stream, Reason::Cancel).await?);
        }
        let lane = peer.accept(stream, fin).await?;
        let complete = match kind {
            Kind::Error => self.pairs.error(name, lane),
            Kind::Data { port } => {
                let (sender, pieces) = self.budget.queue();
                let live = Live { pieces: (!fin).then_some(sender), gone: watch::Sender::new(()) };
                self.live.insert(stream, live);
                self.pairs.data(name, Data { lane, port, pieces })
            }
        };
        if let Some((data, error)) = complete {
            self.forward(data, error);
        }
        Ok(())
    }

    fn forward(&mut self, data: Data, error: Lane) {
        let stream = data.lane.number();
        // The client may have given the data stream up while the other was on its way.
        let Some(live) = self.live.get(&stream) else { return };
        let forward = Forward {
            backend: Arc::clone(&self.session.backend),
            sink: Arc::clone(&self.sink),
            sandbox: self.sandbox.clone(),
            port: data.port,
            data: data.lane,
            error,
            pieces: data.pieces,
            gone: live.gone.subscribe(),
            streams: true,
        };
        self.tasks.spawn(async move {
            forward.run().await;
            Some(stream)
        });
    }

    /// Gives up what has waited too long for its other half.
    fn expire(&mut self) {
        let lanes = self.pairs.expire(Instant::now());
        for lane in &lanes {
            self.live.remove(&lane.number());
        }
        let sink = Arc::clone(&self.sink);
        self.tasks.spawn(async move {
            for lane in lanes {
                let _ =
                    lane.send(b"timed out after 30 s waiting for the other stream of this connection").await;
                let _ = reset(&sink, &lane).await;
            }
            None
        });
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
