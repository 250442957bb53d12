//! Between NRI and specifications: what plugins are told of a container, and their wishes put into it.
//!
//! [`describe`] turns an OCI specification into the message of NRI, [`adjust`] puts a plugin's adjustment into one, and
//! [`limits`] and [`update_of`] translate limits between CRI and NRI, both ways. All of it is a function of its
//! arguments, but for the node's mounts, which decide whether a plugin's mount can propagate.

mod adjust;
mod describe;
mod error;
mod limits;

pub use adjust::{Limits, adjust};
pub use describe::{describe, seccomp_profile};
pub use error::{Error, Result};
pub use limits::{limits, update_of};
