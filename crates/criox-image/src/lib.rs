//! Images: references, the registry client, and the pull pipeline.
//!
//! [`Images`] is the way in. A pull is a detached operation: callers with the same request share it, layers are
//! shared by all pulls that need them, and a caller that goes away cancels nothing. Reads come from the store's
//! snapshots and wait for no pull.
//!
//! A layer streams through one pipeline: HTTP body → bounded channel → SHA-256 of the blob → gzip or zstd → unpacking
//! into a staging area of the store, which hashes the content too → commit in chain order. Nothing is believed that
//! a digest doesn't prove, and credentials go only to the host that they are for.

mod artifact;
mod catalogue;
mod error;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod image_config;
mod images;
mod info;
mod manifest;
mod platform;
mod pull;
mod reference;
mod registry;

pub use artifact::Artifact;
pub use error::{PullError, PullErrorKind};
pub use image_config::{ImageConfig, ImageUser};
pub use images::{ImageOptions, Images, Removed};
pub use info::ImageInfo;
pub use manifest::ManifestError;
pub use platform::Platform;
pub use pull::{Auth, PullProgress, PullRequest, PulledImage};
pub use reference::{ImageName, InvalidReference, Reference};
pub use registry::{Proxies, RegistryError, Timeouts};
