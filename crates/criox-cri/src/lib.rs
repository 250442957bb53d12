//! The CRI v1 interface: our own protocol file, the generated types, identifiers and reason strings.
//!
//! [`v1`] holds the messages and the gRPC servers of `proto/runtime/v1/api.proto` (clients behind the feature
//! `client`), [`ids`] the identifiers of sandboxes, containers and images, [`reasons`] the strings that the
//! kubelet knows by their text.

pub mod ids;
pub mod reasons;
mod redact;

/// The messages, enums and services of the protobuf package `runtime.v1`.
///
/// Maps are `BTreeMap`s, so that equal messages encode to equal bytes. `RuntimeService` is
/// `runtime_service_server::RuntimeService`, `ImageService` likewise; with the feature `client` there are
/// `runtime_service_client::RuntimeServiceClient` and `image_service_client::ImageServiceClient`.
pub mod v1 {
    #![allow(
        missing_docs,
        clippy::all,
        clippy::allow_attributes_without_reason,
        unreachable_pub,
        unused_qualifications,
        rustdoc::all,
        reason = "generated code; what has something to say is said in the protocol file"
    )]
    tonic::include_proto!("runtime.v1");
}
