//! Images, layers and root filesystems on disk, in the layout of containers/storage.
//!
//! [`Store`] is the way in: it opens a graph root and a run root, shares them with podman, skopeo and CRI-O through
//! their lock files, and sweeps what a crash left. All calls block; a daemon makes them on a blocking thread, except
//! the snapshot reads ([`Store::images`], [`Store::containers`], …), which wait for nobody.
//!
//! The crate knows no registry and no CRI. The order in which things become durable is told in `commit.rs`.

mod bigdata;
mod check;
mod commit;
mod containers;
mod diff;
mod digest;
mod error;
mod images;
mod jsonfile;
mod lay_over;
mod layers;
mod mapped;
mod mounts;
mod overlay;
pub mod owners;
mod record;
mod stage;
mod store;
mod sweep;
mod table;
pub mod tar;
pub mod tarsplit;
mod time;
mod unpack;

pub use check::Problem;
pub use commit::{LayerDraft, layer_id};
pub use containers::ContainerDraft;
pub use diff::LayerDiff;
pub use digest::{Digest, DigestError, Hasher};
pub use error::Error;
pub use images::{BigData, ImageDraft};
pub use lay_over::{RootDirs, lay_over};
pub use record::{Compression, Container, Image, Layer};
pub use stage::{LayerStage, Unpacked};
pub use store::{OpenReport, Store, StoreOptions, Usage};
pub use time::Timestamp;
pub use unpack::UnpackLimits;

/// Result of most calls of this crate.
pub type Result<T> = std::result::Result<T, Error>;
