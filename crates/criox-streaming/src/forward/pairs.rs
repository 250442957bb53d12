//! The two streams of each connection, data and error, as they find each other.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::queue::Receiver;
use crate::sink::Lane;
use crate::spdy::headers::Headers;

/// How long a stream waits for the other, as in the reference server.
const PAIRING: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 30 });

/// Longest name of a pair; clients count, or take a UUID. A name waits with its stream, and deflated a long one costs its
/// sender next to nothing.
const MOST_NAME: usize = 256;

/// Which of the two a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Data { port: u16 },
    Error,
}

/// What a stream's headers say: its kind, and the name of its pair. `None` if something is missing, wrong or too long.
pub(crate) fn read(stream: u32, headers: &Headers) -> Option<(Kind, String)> {
    let port = headers.get("port")?.parse::<u16>().ok().filter(|port| *port > 0)?;
    let kind = match headers.get("streamtype")? {
        "data" => Kind::Data { port },
        "error" => Kind::Error,
        _ => return None,
    };
    let name = match headers.get("requestid").filter(|name| !name.is_empty()) {
        Some(name) if name.len() > MOST_NAME => return None,
        Some(name) => name.to_owned(),
        // Old clients: the error stream is opened first, and names the pair.
        None if kind == Kind::Error => stream.to_string(),
        None => stream.checked_sub(2)?.to_string(),
    };
    Some((kind, name))
}

/// The data stream of a pair.
pub(super) struct Data {
    pub(super) lane: Lane,
    pub(super) port: u16,
    pub(super) pieces: Receiver,
}

#[derive(Default)]
struct Half {
    data: Option<Data>,
    error: Option<Lane>,
}

/// Streams that wait for their other half.
#[derive(Default)]
pub(super) struct Pairs(HashMap<String, (Half, Option<Instant>)>);

impl Pairs {
    /// Whether a stream of that kind waits under that name already.
    pub(super) fn has(&self, name: &str, kind: Kind) -> bool {
        self.0.get(name).is_some_and(|(half, _)| match kind {
            Kind::Data { .. } => half.data.is_some(),
            Kind::Error => half.error.is_some(),
        })
    }

    /// Adds an error stream; gives the pair if it is complete.
    pub(super) fn error(&mut self, name: String, lane: Lane) -> Option<(Data, Lane)> {
        self.half(&name).error = Some(lane);
        self.complete(name)
    }

    /// Adds a data stream; gives the pair if it is complete.
    pub(super) fn data(&mut self, name: String, data: Data) -> Option<(Data, Lane)> {
        self.half(&name).data = Some(data);
        self.complete(name)
    }

    fn half(&mut self, name: &str) -> &mut Half {
        let entry = self.0.entry(name.to_owned()).or_default();
        entry.1.get_or_insert_with(|| Instant::now() + PAIRING);
        &mut entry.0
    }

    fn complete(&mut self, name: String) -> Option<(Data, Lane)> {
        let (half, deadline) = self.0.remove(&name)?;
        match half {
            Half { data: Some(data), error: Some(error) } => Some((data, error)),
            half => {
                self.0.insert(name, (half, deadline));
                None
            }
        }
    }

    /// A stream was given up by the client.
    pub(super) fn reset(&mut self, stream: u32) {
        self.0.retain(|_, (half, _)| {
            half.data.take_if(|data| data.lane.number() == stream);
            half.error.take_if(|lane| lane.number() == stream);
            half.data.is_some() || half.error.is_some()
        });
    }

    /// When the next one has waited for too long.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.0.values().filter_map(|(_, deadline)| *deadline).min()
    }

    /// Streams that have waited for too long.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<Lane> {
        let mut lanes = Vec::new();
        self.0.retain(|_, (half, deadline)| {
            let late = deadline.is_some_and(|deadline| deadline <= now);
            if late {
                // The error stream first: it is the one that can say why.
                lanes.extend(half.error.take());
                lanes.extend(half.data.take().map(|data| data.lane));
            }
            !late
        });
        lanes
    }
}
