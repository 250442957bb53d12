//! What can go wrong in the store.

use std::io;
use std::path::PathBuf;

use criox_sys::durable::PathError;
use criox_sys::lock::LockError;
use criox_sys::mount::MountError;

use crate::digest::DigestError;

/// A store operation that failed. Callers branch on the kinds; the chain of sources tells the rest.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No image has this ID, name or ID prefix.
    #[error("image {0:?} is not in the store")]
    ImageUnknown(String),
    /// Several images have this ID prefix.
    #[error("image ID prefix {0:?} is ambiguous")]
    ImageAmbiguous(String),
    /// No layer has this ID.
    #[error("layer {0} is not in the store")]
    LayerUnknown(String),
    /// No container has this ID or name.
    #[error("container {0} is not in the store")]
    ContainerUnknown(String),
    /// A name of the draft belongs to another container or layer.
    #[error("name {name:?} is in use by {owner}")]
    NameInUse {
        /// The name.
        name: String,
        /// ID of what holds it.
        owner: String,
    },
    /// Another object has the ID, with other content.
    #[error("ID {id} is in use: {why}")]
    IdInUse {
        /// The ID.
        id: String,
        /// What differs.
        why: &'static str,
    },
    /// The image can't go while containers use it.
    #[error("image {image} is in use by container {container}")]
    ImageInUse {
        /// The image's ID.
        image: String,
        /// One of the containers.
        container: String,
    },
    /// The container has a user namespace, and mounting it takes one with the same mappings.
    #[error("container {0} has a user namespace of its own, without which its root can't be mounted")]
    MappingsNeeded(String),
    /// A user namespace could not be made.
    #[error("make a user namespace")]
    UserNamespace(#[source] io::Error),
    /// An image or layer has no such big data.
    #[error("{owner} has no data {key:?}")]
    BigDataUnknown {
        /// ID of the image, layer or container.
        owner: String,
        /// The key that was asked for.
        key: String,
    },
    /// The layer stream is not what it should be: malformed, too big, or with entries that can't be stored.
    #[error("layer content refused: {0}")]
    Content(String),
    /// Reading the layer stream failed: the other end, not the store.
    #[error("read the layer stream")]
    Input(#[source] io::Error),
    /// The unpacked content has another digest than was promised.
    #[error("layer has diff ID {found}, expected {expected}")]
    DiffIdMismatch {
        /// What the image configuration says.
        expected: String,
        /// What came.
        found: String,
    },
    /// Stored content no longer matches its records.
    #[error("{what} is corrupt: {why}")]
    Corrupt {
        /// The object or file.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// A malformed argument, such as an ID that could not be a file name.
    #[error("invalid {what} {value:?}")]
    Invalid {
        /// What it should have been.
        what: &'static str,
        /// The value.
        value: String,
    },
    /// A digest that is none.
    #[error("malformed digest")]
    Digest(#[from] DigestError),
    /// A JSON file of the store doesn't parse or can't be written.
    #[error("store file {} is not readable as JSON", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where the parser stopped.
        #[source]
        source: serde_json::Error,
    },
    /// A lock of the store wasn't free in time, or can't be used.
    #[error("wait for the store")]
    Lock(#[from] LockError),
    /// A file operation.
    #[error("store file operation")]
    File(#[from] PathError),
    /// A mount operation.
    #[error("mount of a container's root")]
    Mount(#[from] MountError),
}

impl Error {
    /// Whether the cause is a full disk or quota: freeing space may help.
    pub fn is_out_of_space(&self) -> bool {
        matches!(self, Self::File(e) if matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }

    /// Whether an image, layer or container wasn't there.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::ImageUnknown(_) | Self::LayerUnknown(_) | Self::ContainerUnknown(_))
    }
}
