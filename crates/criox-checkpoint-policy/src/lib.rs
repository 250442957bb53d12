//! What may be checkpointed and where to, and what may be restored: the node's and the request's word on it.
//!
//! | module | about |
//! |---|---|
//! | `switch` | whether any of it is allowed on this node, and by one call at a time: [`Checkpoints`] |
//! | `subject` | which containers a request names, and whether they can be captured |
//! | [`place`] | where a checkpoint may be written, and read from |
//! | [`fits`] | whether a checkpoint is what a request expects and allows |
//!
//! Nothing in a checkpoint is a policy: users, capabilities, filters, labels, mounts, limits and annotations come from
//! the request that restores it. What is asked here is only ever compared with that.

mod error;
pub mod fits;
pub mod place;
mod subject;
mod switch;

pub use error::{Error, Result};
pub use subject::{capturable, distinct, each_named_once, manifest_entries, no_options, same_names};
pub use switch::{Checkpoints, Claim};
