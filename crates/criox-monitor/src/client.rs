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
    /// All up to this number can't be told any more.
    forgotten: u64,
    held: VecDeque<Event>,
}

impl Events {
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    pub(crate) fn add(&mut self, kind: event::Kind) -> Event {
        self.last += 1;
        // It says all calls so far, some kilobytes: an earlier one says nothing more. A thousand of them would be too much
        // at once for whoever subscribes.
        if let event::Kind::SeccompNotified(told) = &kind {
            self.held.retain(|event| match &event.kind {
                Some(event::Kind::SeccompNotified(older)) => older.container_id != told.container_id,
                _ => true,
            });
        }
        let event = Event { number: self.last, kind: Some(kind) };
        if self.held.len() == MAX_EVENTS
            && let Some(oldest) = self.held.pop_front()
        {
            self.forgotten = oldest.number;
        }
        self.held.push_back(event.clone());
        event
    }

    /// Those after a number; the first is a marker if some are held no more.
    pub(crate) fn after(&self, number: u64) -> Vec<Event> {
        let oldest = self.forgotten + 1;
        let lost = number + 1 < oldest || number > self.last;
        let marker = Event { number: self.forgotten, kind: Some(event::Kind::Lost(Lost {})) };
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
    use criox_monitor_api::frame;
    use criox_monitor_api::proto::{ForbiddenCall, ForbiddenCalls, OomKilled, SeccompNotified};

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

    #[test]
    fn of_forbidden_calls_a_container_s_last_word_is_held_and_nothing_counts_as_lost() {
        let mut events = Events::default();
        let calls = vec![ForbiddenCall { arch: u32::MAX, number: -1, count: u64::MAX }; 512];
        let forbidden = Some(ForbiddenCalls { calls, ..ForbiddenCalls::default() });
        events.add(event::Kind::OomKilled(OomKilled::default()));
        for number in 0..2 * MAX_EVENTS {
            let container_id = format!("c{}", number % 10);
            let forbidden = forbidden.clone();
            events.add(event::Kind::SeccompNotified(SeccompNotified { container_id, forbidden }));
        }
        let held = events.after(0);
        assert_eq!(held.len(), 11);
        assert!(held.iter().all(|event| !matches!(event.kind, Some(event::Kind::Lost(_)))));
        // Whoever subscribes gets it all at once, and is cut off where that is too much.
        let mut frames = Vec::new();
        for event in held {
            frame::encode(&Message { kind: Some(message::Kind::Event(event)) }, &mut frames).unwrap();
        }
        assert!(frames.len() < MAX_PENDING / 4, "{}", frames.len());
        assert_eq!(events.after(events.last() - 3).len(), 3);
    }
}
