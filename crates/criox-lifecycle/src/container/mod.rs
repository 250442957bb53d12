//! The work of container operations. Each runs beside its pod's task and only reports back.

pub(crate) mod attach;
pub(crate) mod bundle;
pub(crate) mod create;
pub(crate) mod exec;
pub(crate) mod image_volume;
pub(crate) mod log;
pub(crate) mod remove;
pub(crate) mod reopen;
mod seccomp;
pub(crate) mod start;
pub(crate) mod stop;
pub(crate) mod stream;
mod timezone;
pub(crate) mod update;
