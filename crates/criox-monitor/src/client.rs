//! Connections of the daemon.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use criox_monitor_api::frame::{FrameError, FrameReader, FrameWriter};
use criox_monitor_api::proto::{Done, Event, Failure, Lost, Message, Reply, event, failure, message, reply};

/// Bytes that may wait for a client: one that reads no more is cut off.
const MAX_PENDING: usize = 4 << 20;
/// Events that are held for a client that comes back.
const MAX_EVENTS: usize = 1024;

/// One connection.
pub(crate) struct Client {
    pub(crate) socket: OwnedFd,
    pub(crate) reader: FrameReader,
    writer: FrameWriter,
    pub(crate) greeted: bool,
    pub(crate) subscribed: bool,
    /// Whether the loop waits for room in the socket.
    pub(crate) waits: bool,
}

impl Client {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        let (reader, writer) = (FrameReader::new(), FrameWriter::new());
        Self { socket, reader, writer, greeted: false, subscribed: false, waits: false }
    }

    /// Queues a message and sends what the socket takes. An error ends the connection.
    pub(crate) fn send(&mut self, kind: message::Kind, fds: Vec<OwnedFd>) -> Result<(), FrameError> {
        self.writer.push(&Message { kind: Some(kind) }, fds)?;
        self.flush()
    }

    pub(crate) fn flush(&mut self) -> Result<(), FrameError> {
        self.waits = !self.writer.write_to(&self.socket)?;
        Ok(())
    }

    /// It reads too little of what it is sent.
    pub(crate) fn lags(&self) -> bool {
        self.writer.pending() > MAX_PENDING
    }
}

/// The last events, numbered.
#[derive(Default)]
pub(crate) struct Events {
    last: u64,
    held: VecDeque<Event>,
}

impl Events {
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    pub(crate) fn add(&mut self, kind: event::Kind) -> Event {
        self.last += 1;
        let event = Event { number: self.last, kind: Some(kind) };
        if self.held.len() == MAX_EVENTS {
            self.held.pop_front();
        }
        self.held.push_back(event.clone());
        event
    }

    /// Those after a number; the first is a marker if some are held no more.
    pub(crate) fn after(&self, number: u64) -> Vec<Event> {
        let oldest = self.held.front().map_or(self.last + 1, |event| event.number);
        let lost = number + 1 < oldest || number > self.last;
        let marker = Event { number: oldest.saturating_sub(1), kind: Some(event::Kind::Lost(Lost {})) };
        let from = if number > self.last { 0 } else { number };
        let marker = lost.then_some(marker);
        marker.into_iter().chain(self.held.iter().filter(|e| e.number > from).cloned()).collect()
    }
}

/// A failed verb.
pub(crate) fn failure(kind: failure::Kind, message: impl Into<String>) -> reply::Result {
    reply::Result::Failure(Failure { kind: kind.into(), message: message.into() })
}

pub(crate) fn done() -> reply::Result {
    reply::Result::Done(Done {})
}

pub(crate) fn reply(request_id: u64, result: reply::Result) -> message::Kind {
    message::Kind::Reply(Reply { request_id, result: Some(result) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use criox_monitor_api::proto::OomKilled;

    #[test]
    fn a_client_gets_the_events_after_its_number_or_learns_that_some_are_lost() {
        let mut events = Events::default();
        assert!(events.after(0).is_empty());
        for _ in 0..MAX_EVENTS + 2 {
            events.add(event::Kind::OomKilled(OomKilled::default()));
        }
        let is_lost = |e: &Event| matches!(e.kind, Some(event::Kind::Lost(_)));
        assert!(!events.after(2).iter().any(is_lost));
        assert_eq!(events.after(2).len(), MAX_EVENTS);
        assert_eq!(events.after(1).iter().filter(|e| is_lost(e)).count(), 1);
        assert_eq!(events.after(1).len(), MAX_EVENTS + 1);
        assert_eq!(events.after(events.last()).len(), 0);
        // A number of an earlier monitor of this pod.
        assert!(is_lost(&events.after(events.last() + 5)[0]));
    }
}
