//! What is known of pods and containers after the daemon has died, and all that follows from it alone.
//!
//! | module | about |
//! |---|---|
//! | `record` | [`SandboxRecord`] and [`ContainerRecord`], one versioned JSON file each |
//! | `paths` | where they and everything else of a pod lie: [`Paths`] |
//! | `log` | where the log of a container lies |
//! | [`names`] | names that CRI-O gives, of which other programs know what is ours |
//! | [`key`] | what two requests are compared by |
//! | `namespaces` | which namespaces a pod has of its own |
//! | `notifier` | what a record says of a seccomp notifier |
//!
//! Nothing here decides, waits or changes anything but a record's file: that is the lifecycle's.

mod error;
pub mod key;
mod log;
pub mod names;
mod namespaces;
mod notifier;
mod paths;
mod record;

pub use error::FieldError;
pub use log::log_path;
pub use namespaces::{Namespace, namespace_options};
pub use notifier::Notifier;
pub use paths::{Paths, RunDir};
pub use record::{
    ContainerPhase, ContainerRecord, Encoded, Exit, ImageOfContainer, ImageVolume, ProcessIdentity,
    RecordError, SandboxPhase, SandboxRecord, UpdatedSandbox, VERSION, read, write,
};
