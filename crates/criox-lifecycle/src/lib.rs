//! Pods and containers: one task per pod, joinable operations, recovery, events.
//!
//! [`Lifecycle`] has a method for each request of CRI. A request goes to the task of its pod (`pod`), which admits it
//! ([`admit`]), begins the work (`sandbox`, `container`) and shows every change in the `index`, from which reads
//! answer without waiting. What outlives the daemon is in the records (`criox-records`); `recovery` settles them at the next
//! start.

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
mod monitor;
mod nri;
mod pod;
mod recovery;
mod sandbox;
mod spare;
mod stats;
mod streams;
mod units;
mod userns;

pub use checkpoint::{RestoredPod, checkpointed_at};
pub use container::exec::Output;
pub use context::{Clamps, Clock, Context, Names};
pub use engine::Lifecycle;
pub use error::{Error, Kind, Result, chain};
pub use events::{Events, Happening};
pub use index::{Index, PodView};
pub use nri::Plugins;
pub use recovery::Report;
pub use spare::Spares;

/// Whether checkpoints are made and restored.
pub use criox_checkpoint_policy::Checkpoints;
/// What the context needs to confine containers.
pub use criox_confine::{AppArmor, Cdi, SeccompDefaults, Selinux, host_devices};
/// OCI runtimes.
pub use criox_handlers::{Handler, Handlers};
/// Where things lie.
pub use criox_records::Paths;
/// systemd, where it manages cgroups.
pub use criox_systemd::Systemd;
