//! Configuration in the formats of CRI-O and containers/image: read, merged, validated.
//!
//! * [`Config`] is the whole of `crio.conf`: [`Config::load`] merges storage.conf, the main file, the drop-ins, the
//!   environment and the command line in that order and reports every mistake at once ([`Problems`]).
//! * [`Registries`] (`registries.conf`), [`Policy`] (`policy.json`), [`AuthFile`] (`auth.json`), [`CertsD`]
//!   (`certs.d`) and [`StorageConf`] (`storage.conf`) are the files shared with podman and skopeo.
//!
//! Parsing, merging and evaluating are pure functions over bytes; only the `load` functions read files, and nothing
//! here writes any.

pub mod auth;
pub mod certs;
mod check;
mod config;
mod document;
mod duration;
mod field;
pub mod flags;
mod handler;
mod known;
mod load;
pub mod policy;
mod problem;
pub mod registries;
mod render;
pub mod storage;
mod table;
pub mod value;

pub use auth::{AuthFile, Credentials};
pub use certs::CertsD;
pub use config::{
    Api, CheckpointRestore, Config, Image, Metrics, Network, Nri, NriValidator, Root, Runtime, Stats, Tracing,
};
pub use field::Kind;
pub use flags::{Overrides, ProcessOptions};
pub use handler::{RuntimeHandler, Workload, WorkloadResources};
pub use known::ANNOTATIONS;
pub use load::{ConfigFile, LoadOptions, Loaded};
pub use policy::Policy;
pub use problem::{KeyRef, Origin, Problem, Problems};
pub use registries::Registries;
pub use storage::{StorageConf, StoreOptions};
pub use table::{Effect, Key};
