//! Pods and containers: one task per pod, joinable operations, recovery, events.
//!
//! [`Lifecycle`] has a method for each request of CRI. A request goes to the task of its pod (`pod`), which admits it
//! ([`admit`]), begins the work (`sandbox`, `container`) and shows every change in the `index`, from which reads
//! answer without waiting. What outlives the daemon is in the [`record`]s; `recovery` settles them at the next start.

pub mod admit;
mod checkpoint;
mod container;
mod context;
mod descriptors;
mod engine;
mod entries;
mod error;
mod events;
mod index;
mod key;
mod monitor;
mod names;
mod nri;
mod paths;
mod pod;
pub mod record;
mod recovery;
mod sandbox;
mod seccomp;
mod spare;
mod stats;
pub mod status;
mod streams;
mod units;
mod userns;

pub use checkpoint::{Checkpoints, RestoredPod, checkpointed_at};
pub use container::devices::host_devices;
pub use container::exec::Output;
pub use context::{Clamps, Clock, Context, Names};
pub use engine::Lifecycle;
pub use error::{Error, Kind, Result, chain};
pub use events::{Events, Happening};
pub use index::{Index, PodView};
pub use nri::Plugins;
pub use paths::{Namespace, Paths, RunDir};
pub use recovery::Report;
pub use seccomp::SeccompDefaults;
pub use seccomp::notifier::{Action as NotifierAction, Notifier};
pub use spare::Spares;

/// What the context needs to confine containers, and the form of labels in records.
pub use criox_confine::{AppArmor, Cdi, Labels, Selinux};
/// OCI runtimes.
pub use criox_handlers::{Handler, Handlers};
/// systemd, where it manages cgroups.
pub use criox_systemd::Systemd;
