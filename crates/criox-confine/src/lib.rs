//! What only the node can tell about a container's confinement: what it may see and do. `criox-spec` says what a request
//! means; here is what needs the kernel or files of the node:
//!
//! | type | what |
//! |---|---|
//! | [`AppArmor`] | profiles: the default of our own is loaded, others are looked up |
//! | [`Selinux`] | labels with a level for each pod; [`relabel`] gives a volume its container's label |
//! | [`Labelling`] | which of a container's volumes and files get its label |
//! | [`devices`] | device nodes of configuration, annotation and request |
//! | [`MountSources`], [`SubPath`] | where the sources of mounts really are, on the node and in an image |
//! | [`Cdi`] | the files in which vendors describe devices, read again when they change |
//! | [`SeccompDefaults`] | which filter of system calls a container gets, and what is said of a profile in a registry ([`ArtifactName`]) or of calls that are refused ([`NotifierAction`]) |
//! | [`Users`], [`Ways`] | a pod's own users, and its root's way to the root file systems of its containers |
//!
//! Nothing here knows a pod's state. Everything blocks, on files and on `apparmor_parser`: callers of an async runtime
//! have threads for that. Confinement that was asked for and can't be had is an [`Error`], never left out.

mod apparmor;
mod cdi;
mod devices;
mod error;
mod mount_sources;
mod seccomp;
mod selinux;
mod sub_path;
mod userns;
mod ways;

pub use apparmor::AppArmor;
pub use cdi::Cdi;
pub use devices::{devices, host_devices};
pub use error::{Cause, Error, Result};
pub use mount_sources::{MountSources, open_user_namespace};
pub use seccomp::{ArtifactName, NotifierAction, SeccompArtifact, SeccompDefaults, SeccompFilter};
pub use selinux::{Labelling, Labels, Selinux, relabel};
pub use sub_path::SubPath;
pub use userns::Users;
pub use ways::Ways;
