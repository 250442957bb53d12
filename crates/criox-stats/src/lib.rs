//! What containers and pods use, read from open files of the kernel at the moment of the question.
//!
//! The crate knows no pod, no record and no request. Who asks says which cgroup, which network namespace and which
//! directory it is about, keeps a [`ContainerProbe`] or [`PodProbe`] for as long as that lives, and makes of the figures
//! what it likes.
//!
//! | module | what |
//! |---|---|
//! | `meter` | the open files of one cgroup, with the time and the rate of the CPU |
//! | `probe` | a container: its meter and its writable layer; a pod: its meter and its network |
//! | `rate` | from time of the CPU to cores |
//! | `layers` | a walker that counts what writable layers hold, beside all requests |
//! | `walk` | one walk through one layer |
//! | [`metrics`] | figures as metrics for Prometheus, by the names that cAdvisor gave them |
//!
//! A read opens nothing but what it has not opened before, walks through no directory and waits for no lock that
//! anybody holds across I/O. What can't be read is absent.

mod layers;
mod meter;
pub mod metrics;
mod probe;
mod rate;
mod walk;

pub use layers::{Layers, Walker};
pub use meter::{Meter, Taken, now};
pub use probe::{ContainerProbe, PodProbe, own_group};
pub use walk::{Figure, Room};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Figures are whole at any moment: who panicked with the lock has spoilt nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
