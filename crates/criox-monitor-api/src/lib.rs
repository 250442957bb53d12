//! The protocol between the daemon and the monitors.
//!
//! [`proto`] holds the generated messages of `proto/monitor.proto`, [`frame`] puts them on a UNIX stream socket
//! together with descriptors. [`exit_record`] is what is left on disk for
//! a daemon that was away. The feature `client` adds the daemon's asynchronous side.

#[cfg(feature = "client")]
pub mod client;
pub mod exit_record;
pub mod frame;

/// The messages, as `proto/monitor.proto` defines and explains them.
pub mod proto {
    #![expect(missing_docs, reason = "generated; the comments stand in the .proto file")]
    #![allow(rustdoc::invalid_html_tags, reason = "in the .proto file `<pid>` stands for a number")]
    include!(concat!(env!("OUT_DIR"), "/criox.monitor.v1.rs"));
}

/// The protocol version that this build of the monitor speaks.
pub const VERSION: u32 = 1;
