//! Runtime handlers and workloads: the tables of tables in `[crio.runtime]`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::table::section;
use crate::value::bytes;

/// Memory limit below which a container is refused where the handler doesn't say otherwise.
const DEFAULT_MIN_MEMORY: &str = "12MiB";

/// Search path that CRI-O gives a monitor by default.
const DEFAULT_MONITOR_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

section! {
    /// `[crio.runtime.runtimes.<name>]`: an OCI runtime that pods can ask for by name. A table in a later file replaces
    /// the whole table of that name.
    RuntimeHandler = "crio.runtime.runtimes.*" {
        /// Path of the runtime's program; if empty, the handler's name is looked up in PATH.
        Now runtime_path: Option<PathBuf> = None;
        /// "oci" (the default), "vm" (containerd's shim v2) or "pod".
        Now runtime_type: String = String::new();
        /// Directory where the runtime keeps its state; /run/crun if empty.
        Now runtime_root: Option<PathBuf> = None;
        /// Configuration file of a "vm" runtime.
        NotYet runtime_config_path: Option<PathBuf> = None;
        /// Take path, type, root and configuration file from the default handler.
        Now inherit_default_runtime: bool = false;
        /// Privileged containers don't get the host's devices.
        Now privileged_without_host_devices: bool = false;
        /// Annotations that pods of this handler may use; others that are known are removed.
        Now allowed_annotations: Vec<String> = Vec::new();
        /// Path of conmon in CRI-O; criox finds its monitor beside its own program.
        WithoutMeaning monitor_path: Option<PathBuf> = None;
        /// Cgroup of the monitor: "pod" or a slice under systemd, "pod" or empty with cgroupfs.
        Now monitor_cgroup: String = String::new();
        /// Environment of the monitor and the runtime, NAME=value.
        Now monitor_env: Vec<String> = Vec::new();
        /// "container" moves a command's monitor into the container's cgroup if infra_ctr_cpuset is set.
        NotYet monitor_exec_cgroup: String = String::new();
        /// Other programs for images of other platforms, by "os/arch".
        NotYet platform_runtime_paths: BTreeMap<String, String> = BTreeMap::new();
        /// Let a "vm" guest pull the image.
        NotYet runtime_pull_image: bool = false;
        /// Smallest memory limit that a container may have.
        Now container_min_memory: String = DEFAULT_MIN_MEMORY.to_owned();
        /// Don't sync the container's log at its end ("oci" only).
        NotYet no_sync_log: bool = false;
        /// Annotations that pods of this handler have unless they set them.
        NotYet default_annotations: BTreeMap<String, String> = BTreeMap::new();
        /// Serve streams over websockets ("pod" only).
        NotYet stream_websockets: bool = false;
        /// "first" runs commands on the container's first CPU.
        NotYet exec_cpu_affinity: String = String::new();
        /// Default seccomp profile of this handler.
        Now seccomp_profile: Option<PathBuf> = None;
        /// Seconds that creating a container may take, at least 30.
        Now container_create_timeout: i64 = 240;
    }
}

impl RuntimeHandler {
    /// The handler that exists without any file.
    pub(crate) fn built_in() -> Self {
        Self {
            runtime_type: "oci".to_owned(),
            runtime_root: Some("/run/crun".into()),
            allowed_annotations: vec!["io.containers.trace-syscall".to_owned(), "devices.crio.io".to_owned()],
            monitor_env: vec![DEFAULT_MONITOR_PATH.to_owned()],
            container_min_memory: "500KiB".to_owned(),
            ..Self::default()
        }
    }

    /// The type with the default filled in: `oci`, `vm` or `pod`.
    pub fn kind(&self) -> &str {
        if self.runtime_type.is_empty() { "oci" } else { &self.runtime_type }
    }

    /// The state directory with the default filled in.
    pub fn root(&self) -> &Path {
        self.runtime_root.as_deref().unwrap_or_else(|| Path::new("/run/crun"))
    }

    /// [`Self::container_min_memory`] in bytes; a bad value counts as 12 MiB, as in CRI-O.
    pub fn min_memory_bytes(&self) -> u64 {
        bytes(&self.container_min_memory).unwrap_or(12 << 20)
    }

    /// The program, as configured or found by the handler's name in `search_path` (the form of `$PATH`).
    ///
    /// # Errors
    /// The text says what was looked for and where.
    pub fn program(&self, name: &str, search_path: &str) -> Result<PathBuf, String> {
        let name = match &self.runtime_path {
            Some(path) if path.is_absolute() => {
                let missing = || format!("runtime_path {} is not an executable file", path.display());
                return if is_program(path) { Ok(path.clone()) } else { Err(missing()) };
            }
            // A handler that inherits from one without a path has that one's name here.
            Some(name) => name.as_path(),
            None => Path::new(name),
        };
        search_path
            .split(':')
            .filter(|dir| dir.starts_with('/'))
            .map(|dir| Path::new(dir).join(name))
            .find(|path| is_program(path))
            .ok_or_else(|| format!("no program \"{}\" in {search_path}: set runtime_path", name.display()))
    }
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

section! {
    /// `[crio.runtime.workloads.<name>]`: resources for pods with an annotation. Replaced as a whole by a later file.
    Workload = "crio.runtime.workloads.*" {
        /// Pods with this annotation, whatever its value, belong to the workload.
        NotYet activation_annotation: String = String::new();
        /// Prefix of a container's own settings: prefix/container with a JSON object.
        NotYet annotation_prefix: String = String::new();
        /// Annotations that these pods may use beyond the handler's.
        NotYet allowed_annotations: Vec<String> = Vec::new();
    }
    tables {
        /// `[crio.runtime.workloads.<name>.resources]`.
        resources: WorkloadResources = WorkloadResources::default();
    }
}

section! {
    /// Resources of a workload; 0 and empty mean unset.
    WorkloadResources = "crio.runtime.workloads.*.resources" {
        /// CPU shares.
        NotYet cpushares: i64 = 0;
        /// CPU quota in microseconds, at least cpushares.
        NotYet cpuquota: i64 = 0;
        /// CPU period in microseconds, at least 1000.
        NotYet cpuperiod: i64 = 0;
        /// List of CPUs.
        NotYet cpuset: String = String::new();
        /// CPU limit in thousandths.
        NotYet cpulimit: i64 = 0;
    }
}
