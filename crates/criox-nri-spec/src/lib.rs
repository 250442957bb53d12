//! Between NRI and specifications: what plugins are told of a container, and their wishes put into it.
//!
//! [`pod`], [`container`] and [`with_spec`] turn records and an OCI specification into the messages of NRI, [`adjust`] puts a plugin's adjustment into one, and
//! [`limits`] and [`update_of`] translate limits between CRI and NRI, both ways. All of it is a function of its
//! arguments, but for the node's mounts, which decide whether a plugin's mount can propagate.

mod adjust;
mod describe;
mod error;
mod limits;
mod objects;

pub use adjust::{Limits, adjust};
pub use error::{Error, Result};
pub use limits::{limits, update_of};
pub use objects::{container, pod, with_spec};
