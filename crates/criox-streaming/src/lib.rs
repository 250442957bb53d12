//! The streaming server of CRI's Exec, Attach and PortForward.
//!
//! [`Server`] hands out one-use URLs and serves what comes to them: exec and attach over SPDY/3.1 and WebSocket,
//! port-forward over both. It knows no container: a [`Backend`] starts processes and connects to ports, and the server
//! moves bytes between a client's frames and the descriptors that it gets.

mod activity;
mod answer;
mod backend;
mod chunk;
mod connection;
mod exec;
mod fd;
mod forward;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod negotiate;
mod options;
mod queue;
mod server;
mod session;
mod sink;
mod socket;
mod source;
mod spdy;
mod status;
mod tls;
mod urls;
mod websocket;

pub use backend::{
    AttachRequest, Backend, Control, ExecRequest, Exit, Failure, PortForwardRequest, Process, Streams,
    TerminalSize,
};
pub use options::{Options, Tls};
pub use server::{BindError, Server};
pub use tls::TlsError;
pub use urls::UrlError;

// The example's backend, which the tests use, too, names this crate.
#[cfg(test)]
extern crate self as criox_streaming;
#[cfg(test)]
mod tests;
