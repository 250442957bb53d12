//! Pure: CRI configuration, image configuration and node facts become an OCI runtime specification.
//!
//! **Invariant:** no I/O. Bytes and facts go in, a [`oci::Spec`] or a [`SpecError`] that names the field comes out; the
//! same input always gives the same bytes. What needs the file system (resolving mount sources, reading the image's
//! `/etc/passwd`, making the working directory) is the caller's, before or after.
//!
//! [`build`] makes the whole document, [`exec_process`] the process of an exec, [`resources_update`] the document of
//! UpdateContainerResources, [`sandbox_sysctls`] and [`cgroups_path`] what a sandbox needs.

mod annotations;
mod build;
mod capabilities;
mod cdi;
mod devices;
mod dns;
mod error;
mod input;
mod mounts;
mod namespaces;
pub mod oci;
mod oci_adjust;
mod oci_hooks;
mod process;
mod resources;
mod rlimits;
mod seccomp;
mod security;
mod selinux;
mod stop_signal;
mod sysctl;
mod update;
mod user;

pub use annotations::{GATED, filter_annotations, gated_annotation};
pub use build::build;
pub use capabilities::CapabilitySet;
pub use cdi::{
    CdiError, CdiFacts, CdiFile, CdiFormat, CdiName, Edits as CdiEdits, HostNode, cdi_names,
    inject as inject_cdi, parse_cdi,
};
pub use dns::resolv_conf;
pub use error::{ErrorKind, SpecError, Warning, WarningTopic};
pub use input::{
    Built, Defaults, DeviceKind, EffectiveUser, HandlerFeatures, Identity, ImageFacts, NamespaceSource,
    Namespaces, NodeFacts, ProvidedMounts, ResolvedDevice, ResolvedMount, SelinuxLabels, SpecInput, Ulimit,
};
pub use mounts::clean_destination;
pub use namespaces::{
    PidMode, SandboxNamespaces, UserMappings, container_pid_mode, container_user_check, sandbox_namespaces,
};
pub use process::exec_process;
pub use resources::{CgroupDriver, cgroups_path, resources_update};
pub use seccomp::{
    Arch, SeccompFile, SeccompProfile, SeccompRequest, call_counts, call_name, default_profile,
    listen as listen_seccomp, parse_profile, seccomp_request,
};
pub use security::sandbox_security_check;
pub use selinux::{MCS_LEVELS, container_labels, mcs_level, parse_lxc_contexts, pod_labels};
pub use stop_signal::StopSignal;
pub use sysctl::{parse_sysctl, sandbox_sysctls};
pub use update::{completed_update, merged_update, updated_oom_score};
pub use user::{resolve_user, sandbox_user_check};
