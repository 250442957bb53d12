//! The tables of `crio.conf` and their defaults (CRI-O 1.37).

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::handler::{RuntimeHandler, Workload};
use crate::table::section;
use crate::value::{
    CgroupManager, CheckpointLevel, DeviceMapping, IdMappings, ImageVolumes, LogLevel, ShortNameMode, Sysctl,
    TlsMinVersion, Ulimit,
};

/// The effective configuration. Two are equal if no key differs: reload compares them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Config {
    /// `[crio]`.
    pub root: Root,
    /// `[crio.api]`.
    pub api: Api,
    /// `[crio.runtime]`.
    pub runtime: Runtime,
    /// `[crio.checkpoint_restore]`.
    pub checkpoint_restore: CheckpointRestore,
    /// `[crio.image]`.
    pub image: Image,
    /// `[crio.network]`.
    pub network: Network,
    /// `[crio.metrics]`.
    pub metrics: Metrics,
    /// `[crio.tracing]`.
    pub tracing: Tracing,
    /// `[crio.stats]`.
    pub stats: Stats,
    /// `[crio.nri]`.
    pub nri: Nri,
}

section! {
    /// `[crio]`: storage, and files about the daemon itself.
    Root = "crio" {
        /// Where images and containers are kept; default from storage.conf.
        Now root: PathBuf = "/var/lib/containers/storage".into();
        /// Where the store keeps what doesn't outlive a boot; default from storage.conf.
        Now runroot: PathBuf = "/run/containers/storage".into();
        /// A separate place for images; default from storage.conf.
        NotYet imagestore: Option<PathBuf> = None;
        /// Storage driver; default from storage.conf.
        Now storage_driver: String = "overlay".to_owned();
        /// Options of the storage driver. Entries of all files add up.
        Now storage_option: Vec<String> = Vec::new();
        /// Where logs of pods go for which the kubelet names no directory.
        Now log_dir: PathBuf = "/var/log/crio/pods".into();
        /// File by which a reboot is noticed; empty turns that off.
        NotYet version_file: Option<PathBuf> = Some("/var/run/crio/version".into());
        /// File by which an upgrade is noticed; empty turns that off.
        NotYet version_file_persist: Option<PathBuf> = None;
        /// File that shows that the daemon ended in an orderly way; empty turns that off.
        NotYet clean_shutdown_file: Option<PathBuf> = Some("/var/lib/crio/clean.shutdown".into());
        /// Wipe at start after a reboot or an upgrade. Deprecated in CRI-O.
        NotYet internal_wipe: bool = true;
        /// Check and repair the store at start after an unclean end.
        NotYet internal_repair: bool = true;
    }
}

section! {
    /// `[crio.api]`: the sockets.
    Api = "crio.api" {
        /// UNIX socket of the CRI.
        Now listen: PathBuf = "/var/run/crio/crio.sock".into();
        /// Address of the streaming server; what is not an IP address means all of them.
        Now stream_address: String = "127.0.0.1".to_owned();
        /// Port of the streaming server, a number or a service's name; 0 is any.
        Now stream_port: String = "0".to_owned();
        /// Serve streams over TLS.
        Now stream_enable_tls: bool = false;
        /// Certificate of the streaming server.
        Now stream_tls_cert: Option<PathBuf> = None;
        /// Key of that certificate.
        Now stream_tls_key: Option<PathBuf> = None;
        /// Authority that clients' certificates must come from; if set, clients need one.
        Now stream_tls_ca: Option<PathBuf> = None;
        /// Idle time after which a stream is closed, as "4h"; empty is four hours.
        Now stream_idle_timeout: String = String::new();
        /// Lowest TLS version of the streaming and metrics servers.
        Now tls_min_version: TlsMinVersion = TlsMinVersion::Tls12;
        /// Cipher suites for TLS 1.2 by Go's names; empty is a safe choice.
        Now tls_cipher_suites: Vec<String> = Vec::new();
        /// Size of the largest message sent; 80 MiB is always used.
        WithoutMeaning grpc_max_send_msg_size: i64 = 80 << 20;
        /// Size of the largest message accepted; 80 MiB is always used.
        WithoutMeaning grpc_max_recv_msg_size: i64 = 80 << 20;
    }
}

impl Api {
    /// Idle time after which a stream is closed.
    pub fn idle_timeout(&self) -> Duration {
        const FOUR_HOURS: Duration = Duration::from_secs(4 * 3600);
        crate::duration::parse(&self.stream_idle_timeout).unwrap_or(FOUR_HOURS)
    }
}

fn default_capabilities() -> Vec<String> {
    ["CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "SETGID", "SETUID", "SETPCAP", "NET_BIND_SERVICE", "KILL"]
        .map(str::to_owned)
        .to_vec()
}

section! {
    /// `[crio.runtime]`: how containers are made and kept.
    Runtime = "crio.runtime" {
        /// Handler of pods that ask for none.
        Now default_runtime: String = "crun".to_owned();
        /// Limits of containers, name=soft or name=soft:hard; if empty, those of the daemon.
        Now default_ulimits: Vec<Ulimit> = Vec::new();
        /// Don't use pivot_root in runtimes.
        Now no_pivot: bool = false;
        /// Directory of keys for encrypted images.
        NotYet decryption_keys_path: PathBuf = "/etc/crio/keys/".into();
        /// Further read-only stores of OCI artifacts.
        NotYet additional_artifact_stores: Vec<PathBuf> = Vec::new();
        /// Path of conmon in CRI-O; criox has a monitor of its own.
        WithoutMeaning conmon: Option<PathBuf> = None;
        /// Cgroup of conmon in CRI-O; see monitor_cgroup of the handler.
        WithoutMeaning conmon_cgroup: String = String::new();
        /// Environment of conmon in CRI-O; see monitor_env of the handler.
        WithoutMeaning conmon_env: Vec<String> = Vec::new();
        /// Environment of every container, below the image's and the pod's.
        Now default_env: Vec<String> = Vec::new();
        /// Smallest GOMAXPROCS given to containers; 0 gives none.
        NotYet min_injected_gomaxprocs: i64 = 0;
        /// Use SELinux; default is the host's state.
        Now selinux: bool = std::path::Path::new("/sys/fs/selinux/enforce").exists();
        /// Default seccomp profile; if empty, the built-in one.
        Now seccomp_profile: Option<PathBuf> = None;
        /// Seccomp profile of privileged containers; if empty, none.
        Now privileged_seccomp_profile: Option<PathBuf> = None;
        /// Default AppArmor profile; "unconfined" turns it off.
        Now apparmor_profile: String = "crio-default".to_owned();
        /// Block I/O classes.
        NotYet blockio_config_file: Option<PathBuf> = None;
        /// Read the block I/O classes anew before each container.
        NotYet blockio_reload: bool = false;
        /// Directories of CDI specifications; later ones win.
        Now cdi_spec_dirs: Vec<PathBuf> = vec!["/etc/cdi".into(), "/var/run/cdi".into()];
        /// Configuration of irqbalance.
        NotYet irqbalance_config_file: PathBuf = "/etc/sysconfig/irqbalance".into();
        /// Where irqbalance's banned CPUs are kept; "disable" turns restoring off.
        NotYet irqbalance_config_restore_file: String = "/etc/sysconfig/orig_irq_banned_cpus".to_owned();
        /// Classes of cache and memory bandwidth (resctrl).
        NotYet rdt_config_file: Option<PathBuf> = None;
        /// Who makes cgroups: "systemd" or "cgroupfs".
        Now cgroup_manager: CgroupManager = CgroupManager::Systemd;
        /// Cgroup of pulls: empty, "pod" or a slice.
        NotYet separate_pull_cgroup: String = String::new();
        /// Capabilities of containers that ask for none, without CAP_.
        Now default_capabilities: Vec<String> = default_capabilities();
        /// Make them inheritable, too.
        Now add_inheritable_capabilities: bool = false;
        /// Sysctls of every pod, key=value.
        Now default_sysctls: Vec<Sysctl> = Vec::new();
        /// Host devices that the devices annotation may name.
        Now allowed_devices: Vec<String> = vec!["/dev/fuse".to_owned(), "/dev/net/tun".to_owned()];
        /// Host devices of every container, source:destination:permissions; the last two may be missing.
        Now additional_devices: Vec<DeviceMapping> = Vec::new();
        /// Directories of OCI hooks.
        NotYet hooks_dir: Vec<PathBuf> = vec!["/usr/share/containers/oci/hooks.d".into()];
        /// File of mounts for every container; if empty, containers/mounts.conf in /etc, else in /usr/share.
        NotYet default_mounts_file: Option<PathBuf> = None;
        /// Processes and threads that a container may have; -1 is unlimited. Deprecated: the kubelet limits pods.
        Now pids_limit: i64 = -1;
        /// Log only messages that match this regular expression.
        NotYet log_filter: String = String::new();
        /// fatal, panic, error, warn, info, debug or trace.
        Now log_level: LogLevel = LogLevel::Info;
        /// Size in bytes at which a container's log is cut, at least 8192; negative is unlimited. Deprecated: the
        /// kubelet rotates logs.
        Now log_size_max: i64 = -1;
        /// Write containers' logs to systemd's journal, too. What it doesn't take in time is missing there, not in the file.
        Now log_to_journald: bool = false;
        /// Directory where exits of containers are written.
        NotYet container_exits_dir: PathBuf = "/var/run/crio/exits".into();
        /// Directory of attach sockets.
        NotYet container_attach_socket_dir: PathBuf = "/var/run/crio".into();
        /// Put before the source of every bind mount.
        Now bind_mount_prefix: Option<PathBuf> = None;
        /// Root file systems are read-only, with tmpfs on /run, /tmp and /var/tmp.
        Now read_only: bool = false;
        /// User IDs of containers, container:host:size,…; needs gid_mappings. Deprecated.
        NotYet uid_mappings: IdMappings = IdMappings::default();
        /// Group IDs of containers, container:host:size,…; needs uid_mappings. Deprecated.
        NotYet gid_mappings: IdMappings = IdMappings::default();
        /// Lowest host user ID that a pod's own mapping may use; -1 is any.
        NotYet minimum_mappable_uid: i64 = -1;
        /// Lowest host group ID that a pod's own mapping may use; -1 is any.
        NotYet minimum_mappable_gid: i64 = -1;
        /// Has no effect in CRI-O either: the request says how long a stop may take. At least 30.
        WithoutMeaning ctr_stop_timeout: i64 = 30;
        /// No pause container where none is needed.
        NotYet drop_infra_ctr: bool = true;
        /// CPUs of pause containers.
        NotYet infra_ctr_cpuset: String = String::new();
        /// CPUs that containers with guaranteed ones may share.
        NotYet shared_cpuset: String = String::new();
        /// Directory where namespaces are pinned.
        Now namespaces_dir: PathBuf = "/var/run".into();
        /// Path of pinns in CRI-O; criox pins namespaces itself.
        WithoutMeaning pinns_path: Option<PathBuf> = None;
        /// Mount sources that must exist instead of being created.
        Now absent_mount_sources_to_reject: Vec<PathBuf> = Vec::new();
        /// Give devices to the container's user and group.
        Now device_ownership_from_security_context: bool = false;
        /// Checkpoint and restore. Deprecated: see crio.checkpoint_restore, which false sets to none.
        Now enable_criu_support: bool = true;
        /// Send container events to the kubelet; they are always sent to whoever asks.
        WithoutMeaning enable_pod_events: bool = false;
        /// No SELinux label for containers in the host's network.
        Now hostnetwork_disable_selinux: bool = true;
        /// Ignore host ports.
        Now disable_hostport_mapping: bool = false;
        /// Time zone of containers: empty, a name as "Europe/Oslo", or "local".
        Now timezone: String = String::new();
    }
    tables {
        /// `[crio.runtime.runtimes]`, by name.
        runtimes: BTreeMap<String, RuntimeHandler> =
            BTreeMap::from([("crun".to_owned(), RuntimeHandler::built_in())]);
        /// `[crio.runtime.workloads]`, by name.
        workloads: BTreeMap<String, Workload> = BTreeMap::new();
    }
}

section! {
    /// `[crio.checkpoint_restore]`.
    CheckpointRestore = "crio.checkpoint_restore" {
        /// none, checkpoint_only or checkpoint_restore: CRIU runs as root, on restore with data of others.
        Now container_level_enabled: CheckpointLevel = CheckpointLevel::None;
    }
}

section! {
    /// `[crio.image]`: pulls.
    Image = "crio.image" {
        /// Put before names of images; only docker:// pulls from registries.
        Now default_transport: String = "docker://".to_owned();
        /// Credentials for pulls that bring none, in the format of auth.json.
        Now global_auth_file: Option<PathBuf> = None;
        /// Directory of credentials by namespace and image.
        NotYet namespaced_auth_dir: PathBuf = "/etc/crio/auth".into();
        /// Image of pause containers.
        Now pause_image: String = "registry.k8s.io/pause:3.10.1".to_owned();
        /// Credentials for that image.
        NotYet pause_image_auth_file: Option<PathBuf> = None;
        /// Command of pause containers; if empty, the image's own.
        NotYet pause_command: String = "/pause".to_owned();
        /// Images that are never removed as garbage: names, prefix* or *part*.
        Now pinned_images: Vec<String> = Vec::new();
        /// Signature policy; if empty, the system's policy.json.
        Now signature_policy: Option<PathBuf> = None;
        /// Directory of signature policies by namespace.
        Now signature_policy_dir: PathBuf = "/etc/crio/policies".into();
        /// What an image's volumes become: mkdir, bind or ignore.
        Now image_volumes: ImageVolumes = ImageVolumes::Mkdir;
        /// Has no effect in CRI-O either: use registries.conf.
        WithoutMeaning insecure_registries: Vec<String> = Vec::new();
        /// Directory for big temporary files of pulls.
        NotYet big_files_temporary_dir: Option<PathBuf> = None;
        /// Read registries.conf.d anew when it changes.
        NotYet auto_reload_registries: bool = false;
        /// Time without progress after which a pull ends; 0 is none.
        Now pull_progress_timeout: Duration = Duration::ZERO;
        /// Mount OCI artifacts.
        NotYet oci_artifact_mount_support: bool = true;
        /// What a name without a registry means: enforcing or disabled.
        Now short_name_mode: ShortNameMode = ShortNameMode::Enforcing;
    }
}

section! {
    /// `[crio.network]`: CNI.
    Network = "crio.network" {
        /// Name of the network; if empty, the first configuration file counts.
        Now cni_default_network: String = String::new();
        /// Directory of CNI configurations.
        Now network_dir: PathBuf = "/etc/cni/net.d/".into();
        /// Directories of CNI plugins.
        Now plugin_dirs: Vec<PathBuf> = vec!["/opt/cni/bin/".into()];
        /// One more directory of CNI plugins. Deprecated: see plugin_dirs.
        Now plugin_dir: Option<PathBuf> = None;
        /// Time for which a network that was ready may fail before it counts as not ready.
        Now cni_status_grace_period: Duration = Duration::ZERO;
    }
}

fn all_collectors() -> Vec<String> {
    crate::known::METRICS_COLLECTORS.map(str::to_owned).to_vec()
}

section! {
    /// `[crio.metrics]`: Prometheus.
    Metrics = "crio.metrics" {
        /// Serve metrics.
        NotYet enable_metrics: bool = false;
        /// The metrics to serve.
        NotYet metrics_collectors: Vec<String> = all_collectors();
        /// Address to serve them on.
        NotYet metrics_host: String = "127.0.0.1".to_owned();
        /// Port to serve them on.
        NotYet metrics_port: u16 = 9090;
        /// UNIX socket to serve them on as well.
        NotYet metrics_socket: Option<PathBuf> = None;
        /// Certificate; made if neither it nor the key exists.
        NotYet metrics_cert: Option<PathBuf> = None;
        /// Key of that certificate.
        NotYet metrics_key: Option<PathBuf> = None;
    }
}

section! {
    /// `[crio.tracing]`: OpenTelemetry.
    Tracing = "crio.tracing" {
        /// Send traces.
        NotYet enable_tracing: bool = false;
        /// Where to (OTLP over gRPC, host:port).
        NotYet tracing_endpoint: String = "127.0.0.1:4317".to_owned();
        /// How many of a million calls are traced; 0 is only those that the caller traces.
        NotYet tracing_sampling_rate_per_million: i64 = 0;
    }
}

section! {
    /// `[crio.stats]`.
    Stats = "crio.stats" {
        /// Has no effect in CRI-O either: see collection_period.
        WithoutMeaning stats_collection_period: i64 = 0;
        /// Seconds between collections; 0 is on demand.
        Now collection_period: i64 = 0;
        /// Groups of pod metrics to serve, or "all".
        Now included_pod_metrics: Vec<String> = Vec::new();
    }
}

section! {
    /// `[crio.nri]`: plugins of the Node Resource Interface.
    Nri = "crio.nri" {
        /// Use NRI.
        Now enable_nri: bool = true;
        /// Socket for plugins.
        Now nri_listen: PathBuf = "/var/run/nri/nri.sock".into();
        /// Directory of plugins that are started.
        Now nri_plugin_dir: PathBuf = "/opt/nri/plugins".into();
        /// Directory of their configurations.
        Now nri_plugin_config_dir: PathBuf = "/etc/nri/conf.d".into();
        /// Time for a plugin to register.
        Now nri_plugin_registration_timeout: Duration = Duration::from_secs(5);
        /// Time for a plugin to answer.
        Now nri_plugin_request_timeout: Duration = Duration::from_secs(2);
        /// Refuse plugins that connect by themselves.
        Now nri_disable_connections: bool = false;
    }
    tables {
        /// `[crio.nri.default_validator]`.
        default_validator: NriValidator = NriValidator::default();
    }
}

section! {
    /// `[crio.nri.default_validator]`: what plugins may not do.
    NriValidator = "crio.nri.default_validator" {
        /// Use the validator.
        Now nri_enable_default_validator: bool = false;
        /// Refuse OCI hooks.
        Now nri_validator_reject_oci_hook_adjustment: bool = false;
        /// Refuse to change the runtime's default seccomp profile.
        Now nri_validator_reject_runtime_default_seccomp_adjustment: bool = false;
        /// Refuse to change an unconfined seccomp profile.
        Now nri_validator_reject_unconfined_seccomp_adjustment: bool = false;
        /// Refuse to change a custom seccomp profile.
        Now nri_validator_reject_custom_seccomp_adjustment: bool = false;
        /// Refuse to change namespaces.
        Now nri_validator_reject_namespace_adjustment: bool = false;
        /// Plugins that must have seen a container.
        Now nri_validator_required_plugins: Vec<String> = Vec::new();
        /// Annotation that lets a pod go without them.
        Now nri_validator_tolerate_missing_plugins_annotation: String = String::new();
    }
}
