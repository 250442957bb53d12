//! What only the node can tell about a container's confinement. `criox-spec` says what a request means; here is what
//! needs the kernel or files of the node:
//!
//! | type | what |
//! |---|---|
//! | [`AppArmor`] | profiles: the default of our own is loaded, others are looked up |
//! | [`Selinux`] | labels with a level for each pod; [`relabel`] gives a volume its container's label |
//! | [`Cdi`] | the files in which vendors describe devices, read again when they change |
//!
//! Nothing here knows a pod's state. Everything blocks, on files and on `apparmor_parser`: callers of an async runtime
//! have threads for that. Confinement that was asked for and can't be had is an [`Error`], never left out.

mod apparmor;
mod cdi;
mod error;
mod selinux;

pub use apparmor::AppArmor;
pub use cdi::Cdi;
pub use error::{Cause, Error, Result};
pub use selinux::{Labels, Selinux, relabel};
