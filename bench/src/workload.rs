//! The pods that every daemon gets, as a kubelet would ask for them.

use std::cell::Cell;
use std::path::PathBuf;

use criox_cri::v1::security_profile::ProfileType;
use criox_cri::v1::{
    ContainerConfig, ContainerMetadata, DnsConfig, ImageSpec, KeyValue, LinuxContainerConfig,
    LinuxContainerResources, LinuxContainerSecurityContext, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, Mount, NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata,
    SecurityProfile,
};

use crate::Failure;

/// The label that all pods of a run have, so that they can be found and removed.
pub(crate) const LABEL: &str = "criox.bench/run";

/// A container's log, below its pod's log directory.
pub(crate) const LOG_PATH: &str = "main/0.log";

/// Ends at the stop signal, as a well-made server does.
const SERVER: &str = "trap 'exit 0' TERM; sleep 1000000 & wait";

/// Where a pod's network is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Network {
    /// Its own, by CNI.
    Bridge,
    /// The node's.
    Host,
}

/// Makes configurations, each of another pod.
#[derive(Debug)]
pub(crate) struct Workload {
    image: String,
    /// Value of [`LABEL`].
    pub(crate) run: String,
    work: PathBuf,
    cgroup_parent: String,
    made: Cell<usize>,
}

impl Workload {
    /// For one daemon; `work` holds the logs and the files that the kubelet would mount.
    pub(crate) fn new(name: &str, image: &str, parent: &str, work: PathBuf) -> Result<Self, Failure> {
        let run = format!("{name}-{}", std::process::id());
        std::fs::create_dir_all(work.join("logs"))?;
        for file in ["hosts", "termination-log"] {
            std::fs::OpenOptions::new().create(true).append(true).open(work.join(file))?;
        }
        let cgroup_parent = format!("{parent}/{name}");
        Ok(Self { image: image.to_owned(), run, work, cgroup_parent, made: Cell::new(0) })
    }

    /// The next pod. The directories of its logs are there, as the kubelet makes them.
    pub(crate) fn sandbox(&self, network: Network) -> Result<PodSandboxConfig, Failure> {
        let number = self.made.replace(self.made.get() + 1);
        let name = format!("pod-{number}");
        let uid = format!("{}-{number}", self.run);
        let logs = self.work.join("logs").join(&uid);
        std::fs::create_dir_all(logs.join("main"))?;
        let mode = match network {
            Network::Bridge => NamespaceMode::Pod,
            Network::Host => NamespaceMode::Node,
        };
        let labels = [
            (LABEL, self.run.as_str()),
            ("io.kubernetes.pod.name", &name),
            ("io.kubernetes.pod.namespace", "bench"),
            ("io.kubernetes.pod.uid", &uid),
        ];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        Ok(PodSandboxConfig {
            hostname: if network == Network::Host { String::new() } else { name.clone() },
            metadata: Some(PodSandboxMetadata { name, uid, namespace: "bench".into(), attempt: 0 }),
            log_directory: logs.to_string_lossy().into_owned(),
            dns_config: Some(DnsConfig {
                servers: vec!["10.96.0.10".into()],
                searches: vec!["bench.svc.cluster.local".into(), "svc.cluster.local".into()],
                options: vec!["ndots:5".into()],
            }),
            labels,
            annotations: [("kubernetes.io/config.source".to_owned(), "api".to_owned())].into(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: self.cgroup_parent.clone(),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces(mode)),
                    seccomp: Some(runtime_default()),
                    ..LinuxSandboxSecurityContext::default()
                }),
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        })
    }

    /// A container that runs until it is told to stop.
    pub(crate) fn server(&self, network: Network) -> ContainerConfig {
        self.container(network, &["/bin/sh", "-c", SERVER])
    }

    /// A container that runs `command`.
    pub(crate) fn container(&self, network: Network, command: &[&str]) -> ContainerConfig {
        let mode = match network {
            Network::Bridge => NamespaceMode::Pod,
            Network::Host => NamespaceMode::Node,
        };
        let envs = [("KUBERNETES_SERVICE_HOST", "10.96.0.1"), ("KUBERNETES_SERVICE_PORT", "443")];
        ContainerConfig {
            metadata: Some(ContainerMetadata { name: "main".into(), attempt: 0 }),
            image: Some(ImageSpec {
                image: self.image.clone(),
                user_specified_image: self.image.clone(),
                ..ImageSpec::default()
            }),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            envs: envs
                .map(|(key, value)| KeyValue { key: key.into(), value: value.as_bytes().to_vec() })
                .into(),
            mounts: vec![
                self.mount("hosts", "/etc/hosts"),
                self.mount("termination-log", "/dev/termination-log"),
            ],
            labels: [("io.kubernetes.container.name".to_owned(), "main".to_owned())].into(),
            log_path: LOG_PATH.into(),
            linux: Some(LinuxContainerConfig {
                resources: Some(LinuxContainerResources {
                    cpu_period: 100_000,
                    cpu_shares: 102,
                    memory_limit_in_bytes: 256 << 20,
                    oom_score_adj: 999,
                    ..LinuxContainerResources::default()
                }),
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: Some(namespaces(mode)),
                    masked_paths: strings(&MASKED),
                    readonly_paths: strings(&READ_ONLY),
                    seccomp: Some(runtime_default()),
                    ..LinuxContainerSecurityContext::default()
                }),
            }),
            ..ContainerConfig::default()
        }
    }

    fn mount(&self, file: &str, container_path: &str) -> Mount {
        let host_path = self.work.join(file).to_string_lossy().into_owned();
        Mount { host_path, container_path: container_path.into(), ..Mount::default() }
    }
}

/// Removes what a kubelet would remove: the empty cgroups that the daemons leave above their pods.
pub(crate) fn remove_cgroups(parent: &str, names: &[String]) {
    let Ok(hierarchies) = std::fs::read_dir("/sys/fs/cgroup") else { return };
    let roots = hierarchies.flatten().map(|entry| entry.path()).chain(["/sys/fs/cgroup".into()]);
    for root in roots {
        let parent = root.join(parent.trim_start_matches('/'));
        for path in names.iter().map(|name| parent.join(name)).chain([parent.clone()]) {
            // Not there in this hierarchy, or not empty because something could not be removed, which was told.
            let _ = std::fs::remove_dir(path);
        }
    }
}

/// Paths that the kubelet masks, and makes read-only, for an ordinary container.
const MASKED: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

fn namespaces(network: NamespaceMode) -> NamespaceOption {
    NamespaceOption {
        network: network.into(),
        pid: NamespaceMode::Container.into(),
        ipc: NamespaceMode::Pod.into(),
        ..NamespaceOption::default()
    }
}

fn runtime_default() -> SecurityProfile {
    SecurityProfile { profile_type: ProfileType::RuntimeDefault.into(), localhost_ref: String::new() }
}
