//! A client that speaks SPDY: its streams, and what it sends on them.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::frame::{self, Decoder, Frame, Reason};
use super::headers::{Deflater, Headers, Inflater};
use crate::sink::{Framing, Lane, Sink};
use crate::source::{Ended, Source, Watch};
use crate::websocket::Messages;

/// Where the frames come from.
pub(crate) enum Feed {
    /// The connection itself.
    Plain(Source),
    /// The messages of a WebSocket, whose ends mean nothing.
    Tunnel { messages: Box<Messages>, buffer: BytesMut },
}

impl Feed {
    async fn fill(&mut self) -> Result<(), Ended> {
        match self {
            Self::Plain(source) => source.fill().await,
            Self::Tunnel { messages, buffer } => {
                let piece = messages.piece().await?;
                buffer.extend_from_slice(&piece.bytes);
                Ok(())
            }
        }
    }

    fn buffer(&mut self) -> &mut BytesMut {
        match self {
            Self::Plain(source) => &mut source.buffer,
            Self::Tunnel { buffer, .. } => buffer,
        }
    }

    fn watch(&self) -> Watch {
        match self {
            Self::Plain(source) => source.watch(),
            Self::Tunnel { messages, .. } => messages.watch(),
        }
    }
}

/// What a client did.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// It opened a stream, which has to be accepted or refused.
    Opened { stream: u32, headers: Headers, fin: bool },
    /// It sent bytes on a stream that it opened; `fin` if they were the last.
    Data { stream: u32, bytes: Bytes, fin: bool },
    /// It gave a stream up.
    Reset { stream: u32 },
}

/// A client. Not to be dropped in the middle of [`Peer::next`] if the connection is still written to afterwards.
pub(crate) struct Peer {
    feed: Feed,
    sink: Arc<Sink>,
    decoder: Decoder,
    inflater: Inflater,
    deflater: Deflater,
    /// The last stream that it opened.
    last: u32,
    streams: HashMap<u32, Stream>,
    /// Streams that it may have open.
    most: usize,
}

struct Stream {
    lane: Lane,
    /// It sends nothing more.
    finished: bool,
}

impl Peer {
    pub(crate) fn new(feed: Feed, sink: Arc<Sink>, most: usize) -> Result<Self, Ended> {
        let deflater = Deflater::new().map_err(|error| Ended::Protocol(error.to_string()))?;
        let (decoder, inflater, streams) = (Decoder::default(), Inflater::new(), HashMap::new());
        Ok(Self { feed, sink, decoder, inflater, deflater, last: 0, streams, most })
    }

    /// Watches the connection while nothing is read.
    pub(crate) fn watch(&self) -> Watch {
        self.feed.watch()
    }

    /// What the client does next. Pings and broken rules are answered here.
    pub(crate) async fn next(&mut self) -> Result<Event, Ended> {
        loop {
            let frame = match self.decoder.decode(self.feed.buffer()) {
                Ok(Some(frame)) => frame,
                Ok(None) => {
                    self.feed.fill().await?;
                    continue;
                }
                Err(error) => return Err(self.broken(error.to_string()).await),
            };
            if let Some(event) = self.heed(frame).await? {
                return Ok(event);
            }
        }
    }

    async fn heed(&mut self, frame: Frame) -> Result<Option<Event>, Ended> {
        match frame {
            Frame::Open { stream, block, fin } => self.opened(stream, &block, fin).await,
            Frame::Headers { block } => {
                // For the state of the compression alone.
                match self.inflater.block(&block) {
                    Ok(_) => Ok(None),
                    Err(error) => Err(self.broken(error.to_string()).await),
                }
            }
            Frame::Reset { stream } => {
                let Some(gone) = self.streams.remove(&stream) else { return Ok(None) };
                gone.lane.end();
                Ok(Some(Event::Reset { stream }))
            }
            // Even numbers answer pings of ours, and there are none.
            Frame::Ping(number) if !number.is_multiple_of(2) => {
                self.sink.spdy(&frame::ping(number)).await?;
                Ok(None)
            }
            Frame::Ping(_) | Frame::Other => Ok(None),
            Frame::Data { stream, bytes, fin } => match self.streams.get_mut(&stream) {
                // What is on its way on a stream that was reset is to be dropped, as what comes after its end.
                None => Ok(None),
                Some(found) if found.finished => Ok(None),
                Some(found) => {
                    found.finished = fin;
                    Ok(Some(Event::Data { stream, bytes, fin }))
                }
            },
        }
    }

    async fn opened(&mut self, stream: u32, block: &[u8], fin: bool) -> Result<Option<Event>, Ended> {
        let headers = match self.inflater.block(block) {
            Ok(headers) => headers,
            Err(error) => return Err(self.broken(error.to_string()).await),
        };
        if stream.is_multiple_of(2) || stream <= self.last {
            self.refuse(stream, Reason::ProtocolError).await?;
            return Ok(None);
        }
        self.last = stream;
        if self.streams.len() >= self.most {
            self.streams.retain(|_, stream| !(stream.finished && stream.lane.has_ended()));
        }
        if self.streams.len() >= self.most {
            self.refuse(stream, Reason::Refused).await?;
            return Ok(None);
        }
        Ok(Some(Event::Opened { stream, headers, fin }))
    }

    /// Takes a stream that was opened.
    pub(crate) async fn accept(&mut self, stream: u32, fin: bool) -> Result<Lane, Ended> {
        let lane = Lane::new(&self.sink, Framing::Spdy { stream });
        self.streams.insert(stream, Stream { lane: lane.clone(), finished: fin });
        let block = self.deflater.block(&[]).map_err(|error| Ended::Protocol(error.to_string()))?;
        self.sink.spdy(&frame::reply(stream, &block)).await?;
        Ok(lane)
    }

    /// Refuses a stream that was opened.
    pub(crate) async fn refuse(&self, stream: u32, reason: Reason) -> io::Result<()> {
        self.sink.spdy(&frame::reset(stream, reason)).await
    }

    async fn broken(&self, what: String) -> Ended {
        const PROTOCOL_ERROR: u32 = 1;
        match self.sink.spdy(&frame::goaway(self.last, PROTOCOL_ERROR)).await {
            Ok(()) => Ended::Protocol(what),
            Err(error) => error.into(),
        }
    }

    /// Ends all streams and the connection, and waits for the client to close it, too.
    pub(crate) async fn close(mut self) -> io::Result<()> {
        for (id, stream) in &self.streams {
            if !(stream.finished && stream.lane.has_ended()) {
                self.sink.spdy(&frame::reset(*id, Reason::Cancel)).await?;
            }
        }
        self.sink.spdy(&frame::goaway(self.last, 0)).await?;
        match &mut self.feed {
            Feed::Plain(_) => self.leave().await,
            Feed::Tunnel { messages, .. } => messages.close().await,
        }
    }

    /// Sends nothing more, and waits for the client to close: a connection that is closed while something is unread
    /// takes with it what the client has not read.
    pub(crate) async fn leave(&mut self) -> io::Result<()> {
        match &mut self.feed {
            Feed::Plain(source) => {
                self.sink.shut().await?;
                source.drain().await;
                Ok(())
            }
            Feed::Tunnel { messages, .. } => messages.leave().await,
        }
    }
}

/// Gives a stream up that the client can no longer use, of which only the lane is at hand.
pub(crate) async fn reset(sink: &Sink, lane: &Lane) -> io::Result<()> {
    lane.end();
    sink.spdy(&frame::reset(lane.number(), Reason::Cancel)).await
}
