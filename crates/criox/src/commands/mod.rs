//! The sub-commands.

pub(crate) mod config;
pub(crate) mod version;
