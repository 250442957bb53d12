//! SPDY/3.1, the part of a server.

mod dictionary;
pub(crate) mod frame;
pub(crate) mod headers;
mod peer;

pub(crate) use peer::{Event, Feed, Peer, reset};

#[cfg(test)]
mod tests;
