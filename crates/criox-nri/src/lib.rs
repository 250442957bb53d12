//! The runtime side of the Node Resource Interface: its wire, its plugins, and what they want changed.
//!
//! Plugins connect to a socket, or are started by us. Each registers, says which events it wants, and is told of all
//! that exists ([`Runtime::snapshot`]); from then on it is asked at every step of a pod's life. Who works on pods asks
//! [`Nri`] for a [`Round`] of the plugins at each step. Nothing here knows what a container is beyond the messages of
//! the interface ([`proto`]).
//!
//! The interface is that of NRI v0.12 (`github.com/containerd/nri`, package `nri.pkg.api.v1alpha1`).

mod adjust;
mod check;
mod connection;
mod join;
mod launch;
mod owners;
mod plugin;
mod registry;
mod resources;
mod round;
mod server;
mod update;
mod validator;
pub mod wire;

pub use connection::CallError;
pub use plugin::{Name, NameError, PluginError};
pub use registry::{Mark, Marks, Nri, Options};
pub use round::{Created, Round};
pub use server::{Everything, Runtime, StartError};
pub use update::Updates;
pub use validator::ValidatorOptions;

/// The messages, as `proto/nri.proto` defines and explains them.
pub mod proto {
    #![expect(missing_docs, reason = "generated; the comments stand in the .proto file")]
    include!(concat!(env!("OUT_DIR"), "/nri.pkg.api.v1alpha1.rs"));
}

/// The messages in the frames, as `proto/ttrpc.proto` explains them.
pub mod ttrpc {
    #![expect(missing_docs, reason = "generated; the comments stand in the .proto file")]
    include!(concat!(env!("OUT_DIR"), "/ttrpc.rs"));
}

/// The version of NRI whose interface this is.
pub const VERSION: &str = "v0.12.5";

/// What marks a key, path or name of an adjustment for removal.
pub const REMOVAL: char = '-';

/// The name that is marked for removal, if it is.
pub fn removal(name: &str) -> Option<&str> {
    name.strip_prefix(REMOVAL)
}

/// A parser of foreign bytes for the fuzzer: what comes from a plugin's socket, and what its messages ask for.
#[doc(hidden)]
pub fn fuzz(bytes: &[u8]) {
    use prost::Message as _;
    let (mut assembler, mut frames) = (wire::Assembler::new(), Vec::new());
    let _whole = assembler.push(bytes, &mut frames);
    let payloads = frames.iter().map(|frame| frame.payload.as_slice());
    for payload in payloads.chain([bytes]) {
        drop(ttrpc::Request::decode(payload));
        drop(ttrpc::Response::decode(payload));
        drop(proto::UpdateContainersRequest::decode(payload));
        if let Ok(response) = proto::CreateContainerResponse::decode(payload) {
            adjust::fuzz(response);
        }
    }
}
