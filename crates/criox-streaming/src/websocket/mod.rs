//! WebSocket (RFC 6455), the part of a server.

mod channels;
pub(crate) mod frame;
pub(crate) mod handshake;
mod messages;

#[cfg(feature = "fuzzing")]
pub(crate) use channels::Reader;
pub(crate) use channels::{Channels, Input};
pub(crate) use messages::Messages;

#[cfg(test)]
mod tests;
