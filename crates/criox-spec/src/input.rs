//! What a specification is made of: the request and facts that the caller has gathered.

use std::collections::BTreeMap;

use criox_cri::v1;

use crate::capabilities::CapabilitySet;
use crate::oci::{IdMapping, Spec};
use crate::seccomp::SeccompProfile;
use crate::stop_signal::StopSignal;
use crate::{Arch, Warning};

/// All that [`crate::build`] looks at.
#[derive(Debug, Clone, Copy)]
pub struct SpecInput<'a> {
    /// The container as requested.
    pub container: &'a v1::ContainerConfig,
    /// Its sandbox as requested when that was made.
    pub sandbox: &'a v1::PodSandboxConfig,
    /// IDs, names and paths that are only recorded.
    pub identity: &'a Identity,
    /// The image's configuration.
    pub image: &'a ImageFacts,
    /// Bytes of the image's `/etc/passwd` (at most 10 MiB, opened in-root); none when there is no such file.
    pub passwd: Option<&'a [u8]>,
    /// Bytes of the image's `/etc/group`.
    pub group: Option<&'a [u8]>,
    /// What the node and the daemon can.
    pub node: &'a NodeFacts,
    /// Values of the configuration.
    pub defaults: &'a Defaults,
    /// What the handler can and is configured for.
    pub handler: &'a HandlerFeatures,
    /// The filter that was resolved from [`crate::seccomp_request`].
    pub seccomp: SeccompProfile<'a>,
    /// SELinux labels, when SELinux is on.
    pub selinux: Option<&'a SelinuxLabels>,
    /// Namespaces to make or join.
    pub namespaces: &'a Namespaces,
    /// Absolute path of the mounted root file system.
    pub rootfs: &'a str,
    /// One entry for each of `container.mounts`, in that order.
    pub mounts: &'a [ResolvedMount],
    /// Files and directories that the runtime itself gives to the container.
    pub provided: &'a ProvidedMounts,
    /// `additional_devices`, annotation devices and `container.devices`, resolved, in that order.
    pub devices: &'a [ResolvedDevice],
    /// `<parent>/crio-<id>` or `<slice>:crio:<id>`, see [`crate::cgroups_path`].
    pub cgroups_path: &'a str,
}

/// IDs, names and paths that end up in annotations and error messages.
#[derive(Debug, Clone, Default)]
pub struct Identity {
    /// The container's ID.
    pub container_id: String,
    /// The sandbox's ID.
    pub sandbox_id: String,
    /// `k8s_<container>_<pod>_<namespace>_<uid>_<attempt>`.
    pub container_name: String,
    /// `k8s_<pod>_<namespace>_<uid>_<attempt>`.
    pub sandbox_name: String,
    /// Absolute path of the log.
    pub log_path: String,
    /// The pod's addresses.
    pub pod_ips: Vec<String>,
    /// Creation time, RFC 3339 with nanoseconds.
    pub created: String,
    /// The host name that is in force in the pod's UTS namespace.
    pub hostname: String,
    /// Whether the sandbox was made for privileged containers.
    pub sandbox_privileged: bool,
}

/// The image's configuration (OCI image specification, `config`) and names.
#[derive(Debug, Clone, Default)]
pub struct ImageFacts {
    /// Image ID (hex).
    pub id: String,
    /// A stored name, or empty.
    pub name: String,
    /// Digested references, best first.
    pub repo_digests: Vec<String>,
    /// `Entrypoint`.
    pub entrypoint: Vec<String>,
    /// `Cmd`.
    pub cmd: Vec<String>,
    /// `Env`.
    pub env: Vec<String>,
    /// `WorkingDir`, or empty.
    pub working_dir: String,
    /// `User`, or empty.
    pub user: String,
    /// `StopSignal`, or empty.
    pub stop_signal: String,
    /// Keys of `Volumes`.
    pub volumes: Vec<String>,
    /// `Labels`; never a source of policy.
    pub labels: BTreeMap<String, String>,
}

/// What this node's kernel offers and what the daemon may do.
#[derive(Debug, Clone)]
pub struct NodeFacts {
    /// Machine architecture.
    pub arch: Arch,
    /// Kernel version, major and minor; for `minKernel` of seccomp profiles.
    pub kernel: (u32, u32),
    /// Whether cgroup v2 is the only hierarchy.
    pub cgroup_v2: bool,
    /// Whether the systemd driver is used (systemd properties are written as annotations).
    pub systemd_cgroup: bool,
    /// The daemon's permitted *and* bounding capabilities: what a container can get at most.
    pub capabilities: CapabilitySet,
    /// Lowest `oom_score_adj` that the daemon may set without CAP_SYS_RESOURCE: its own.
    pub oom_score_adj: i32,
    /// The daemon's own hard limits by OCI name (`RLIMIT_NOFILE`); a missing one is not clamped.
    pub hard_rlimits: BTreeMap<String, u64>,
    /// Whether the `pids` controller is there.
    pub pids_controller: bool,
    /// Whether the `hugetlb` controller is there.
    pub hugetlb_controller: bool,
    /// Whether memory and swap are accounted together.
    pub swap_accounting: bool,
    /// Huge page sizes of the kernel as `2MB`, `1GB`; empty means unknown.
    pub hugepage_sizes: Vec<String>,
    /// Recursive read-only mounts (Linux 5.12).
    pub recursive_read_only: bool,
    /// Idmapped mounts.
    pub idmapped_mounts: bool,
    /// seccomp filters.
    pub seccomp: bool,
    /// AppArmor.
    pub apparmor: bool,
    /// Device nodes below the host's `/dev`, for privileged containers.
    pub host_devices: Vec<ResolvedDevice>,
    /// More paths to mask, found on this machine (`/sys/devices/system/cpu/cpu*/thermal_throttle`).
    pub extra_masked_paths: Vec<String>,
}

/// Values of `crio.conf` that reach into the specification.
#[derive(Debug, Clone, Default)]
pub struct Defaults {
    /// `default_capabilities`, with or without `CAP_`.
    pub capabilities: Vec<String>,
    /// `add_inheritable_capabilities`.
    pub add_inheritable_capabilities: bool,
    /// `default_env`.
    pub env: Vec<String>,
    /// `default_ulimits`.
    pub ulimits: Vec<Ulimit>,
    /// `pids_limit`; 0 and less is none.
    pub pids_limit: i64,
    /// `read_only`.
    pub read_only: bool,
    /// `apparmor_profile`; `unconfined` turns it off.
    pub apparmor_profile: String,
    /// Why that profile can't be had on this node; empty when it can.
    pub apparmor_missing: String,
    /// `device_ownership_from_security_context`.
    pub device_ownership_from_security_context: bool,
    /// `hostnetwork_disable_selinux`.
    pub hostnetwork_disable_selinux: bool,
}

/// One of `default_ulimits`: `name=soft[:hard]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ulimit {
    /// Name without prefix, any case: `nofile`.
    pub name: String,
    /// Soft limit; `u64::MAX` is infinity.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

/// What a runtime handler can (`features`) and is configured for.
#[derive(Debug, Clone, Default)]
pub struct HandlerFeatures {
    /// Highest `ociVersionMax` of `features`; empty for runtimes without that command (then 1.0.2 is written).
    pub oci_version_max: String,
    /// Understands the mount option `rro`.
    pub recursive_read_only: bool,
    /// Makes idmapped mounts.
    pub idmapped_mounts: bool,
    /// Makes user namespaces.
    pub user_namespaces: bool,
    /// What it says about system call filters; none when it does not say.
    pub seccomp: Option<bool>,
    /// Passes the descriptors of filters that ask a listener on to it.
    pub seccomp_notify: bool,
    /// What it says about AppArmor.
    pub apparmor: Option<bool>,
    /// What it says about SELinux.
    pub selinux: Option<bool>,
    /// What it says about classes of cache and bandwidth.
    pub intel_rdt: Option<bool>,
    /// Moves interfaces into containers.
    pub net_devices: bool,
    /// Sets policies of NUMA memory.
    pub memory_policy: bool,
    /// `privileged_without_host_devices`.
    pub privileged_without_host_devices: bool,
    /// `container_min_memory` in bytes; 0 is no check.
    pub container_min_memory: u64,
    /// `allowed_annotations` of the handler and of a matching workload together.
    pub allowed_annotations: Vec<String>,
    /// Path of the binary for another platform, recorded only.
    pub platform_runtime_path: String,
}

/// SELinux labels that were allotted to the pod.
#[derive(Debug, Clone, Default)]
pub struct SelinuxLabels {
    /// Of processes.
    pub process: String,
    /// Of mounts.
    pub mount: String,
}

/// Where a container's namespace comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum NamespaceSource {
    /// The node's.
    Host,
    /// Made for this container.
    #[default]
    Private,
    /// Joined: the pod's pinned one, or the one of a target container.
    Path(String),
}

/// The container's namespaces. Mount is always private; cgroup follows from the node.
#[derive(Debug, Clone, Default)]
pub struct Namespaces {
    /// Network.
    pub network: NamespaceSource,
    /// System V and POSIX queues.
    pub ipc: NamespaceSource,
    /// Host name.
    pub uts: NamespaceSource,
    /// Processes: `Private` for CONTAINER, `Host` for NODE, `Path` for POD and TARGET.
    pub pid: NamespaceSource,
    /// Users: `Host` without user namespaces.
    pub user: NamespaceSource,
    /// User ID mappings when `user` is not `Host`.
    pub uid_mappings: Vec<IdMapping>,
    /// Group ID mappings.
    pub gid_mappings: Vec<IdMapping>,
}

/// Facts about one of `container.mounts`.
#[derive(Debug, Clone, Default)]
pub struct ResolvedMount {
    /// Host path with all symbolic links resolved (of an image mount: where its tree is mounted, sub path included).
    pub source: String,
    /// Whether it is a directory.
    pub is_dir: bool,
    /// Whether it lies on a mount that is shared (`/proc/self/mountinfo`, `shared:`).
    pub shared: bool,
    /// Whether it lies on a mount that receives (`master:`).
    pub slave: bool,
    /// Whether its file system takes an idmapped mount.
    pub idmappable: bool,
    /// Whether the graph root lies below it: then private propagation would pin every container's mounts.
    pub contains_graph_root: bool,
    /// ID of the image, for image mounts.
    pub image_id: String,
}

/// What the runtime itself puts into a container. Empty or absent: not given.
#[derive(Debug, Clone, Default)]
pub struct ProvidedMounts {
    /// The pod's `/dev/shm`, or the host's with IPC mode NODE.
    pub shm: Option<String>,
    /// The node's `/dev/mqueue`, if it has one: for a container with the node's IPC in a user namespace.
    pub mqueue: Option<String>,
    /// The pod's `resolv.conf`.
    pub resolv_conf: Option<String>,
    /// The pod's `hostname` file.
    pub hostname: Option<String>,
    /// `/etc/hosts`: only with the node's network and only when the request mounts none.
    pub hosts: Option<String>,
    /// Empty file for `/run/.containerenv`.
    pub containerenv: Option<String>,
    /// File for `/etc/localtime`.
    pub localtime: Option<String>,
    /// Where the caller will write [`Built::passwd`] and mount it from; no entry is made without it.
    pub passwd: Option<String>,
    /// Where the caller will write [`Built::group`].
    pub group: Option<String>,
}

/// A device node on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolvedDevice {
    /// Path inside the container (block volumes may lie anywhere, not only below `/dev`).
    pub path: String,
    /// Character or block device.
    pub kind: DeviceKind,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits of the node on the host.
    pub mode: u32,
    /// Owner on the host.
    pub uid: u32,
    /// Group on the host.
    pub gid: u32,
    /// Letters of `rwm` for the device rule.
    pub permissions: String,
}

/// Kinds of device nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DeviceKind {
    /// Character device.
    #[default]
    Char,
    /// Block device.
    Block,
}

/// What [`crate::build`] gives back.
#[derive(Debug, Clone)]
pub struct Built {
    /// The document for `config.json`. `process.cwd` must exist: the caller makes it, in-root, mode 0755.
    pub spec: Spec,
    /// Who the first process really is, for `ContainerStatus.user`.
    pub user: EffectiveUser,
    /// The signal that ends it, for `ContainerStatus.stop_signal` and StopContainer.
    pub stop_signal: StopSignal,
    /// Clean paths of the image's volumes over which nothing is mounted; with `image_volumes = "mkdir"` the caller makes
    /// them, in-root, owned by `user`.
    pub image_volumes: Vec<String>,
    /// Bytes for `provided.passwd`, when the user has no entry in the image's.
    pub passwd: Option<Vec<u8>>,
    /// Bytes for `provided.group`.
    pub group: Option<Vec<u8>>,
    /// What was clamped, masked or left out.
    pub warnings: Vec<Warning>,
}

/// Numeric identity.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EffectiveUser {
    /// User ID.
    pub uid: u32,
    /// Primary group ID.
    pub gid: u32,
    /// All groups of the process, the primary one first.
    pub supplemental_groups: Vec<u32>,
}
