//! What a client is served with, once it has upgraded.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::activity::Activity;
use crate::backend::Backend;
use crate::sink::Sink;
use crate::socket::Connection;
use crate::source::Source;

/// How long a client may take to close its side after the end. What it has not read by then is not taken from it: the
/// kernel goes on sending.
pub(crate) const LINGER: Duration = Duration::from_secs(30);

/// What every session needs.
pub(crate) struct Session {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) activity: Arc<Activity>,
    /// The session ends when nothing passes for so long.
    pub(crate) idle: Duration,
}

/// Both directions of a client's connection.
pub(crate) struct Wire {
    pub(crate) source: Source,
    pub(crate) sink: Arc<Sink>,
}

impl Wire {
    /// `early` was read behind the client's request; `tunnelled` wraps SPDY into WebSocket messages.
    pub(crate) fn new(
        connection: Connection,
        early: &Bytes,
        activity: &Arc<Activity>,
        tunnelled: bool,
    ) -> Self {
        let socket = connection.socket().clone();
        let (read, write) = connection.split();
        let source = Source::new(read, socket, Arc::clone(activity), early);
        Self { source, sink: Sink::new(write, Arc::clone(activity), tunnelled) }
    }
}
