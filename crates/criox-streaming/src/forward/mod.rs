//! Port-forward: a client's connections on one side, connections to a sandbox's ports on the other.

mod channels;
mod pairs;
mod port;
mod spdy;

pub(crate) use channels::{MOST_PORTS, websocket};
#[cfg(feature = "fuzzing")]
pub(crate) use pairs::read as read_headers;
pub(crate) use spdy::{spdy, tunnel};
