//! The work of sandbox operations. Each runs beside its pod's task and only reports back.

mod files;
pub(crate) mod network;
pub(crate) mod plugins;
pub(crate) mod port_forward;
pub(crate) mod remove;
pub(crate) mod run;
pub(crate) mod stop;
