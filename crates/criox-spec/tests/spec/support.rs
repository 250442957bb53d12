//! A small request and the facts around it, for tests to change.

use std::collections::BTreeMap;

use criox_cri::v1;
use criox_spec::{
    Arch, Built, CapabilitySet, Defaults, HandlerFeatures, Identity, ImageFacts, NamespaceSource, Namespaces,
    NodeFacts, ProvidedMounts, ResolvedDevice, ResolvedMount, SeccompProfile, SelinuxLabels, SpecError,
    SpecInput, build,
};

/// Owns all that an input borrows.
pub(crate) struct Fixture {
    pub(crate) container: v1::ContainerConfig,
    pub(crate) sandbox: v1::PodSandboxConfig,
    pub(crate) identity: Identity,
    pub(crate) image: ImageFacts,
    pub(crate) passwd: Option<&'static str>,
    pub(crate) group: Option<&'static str>,
    pub(crate) node: NodeFacts,
    pub(crate) defaults: Defaults,
    pub(crate) handler: HandlerFeatures,
    pub(crate) default_seccomp: bool,
    pub(crate) selinux: Option<SelinuxLabels>,
    pub(crate) namespaces: Namespaces,
    pub(crate) rootfs: String,
    pub(crate) mounts: Vec<ResolvedMount>,
    pub(crate) provided: ProvidedMounts,
    pub(crate) devices: Vec<ResolvedDevice>,
    pub(crate) cgroups_path: String,
}

pub(crate) const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
    daemon:x:1:1::/:/sbin/nologin\n\
    app:x:1000:1001:App:/home/app:/bin/sh\n\
    99999999999:x:0:0::/:/bin/sh\n\
    bad line\n\
    -1:x:0:0::/:/bin/sh\n";
pub(crate) const GROUP: &str = "root:x:0:\nwheel:x:10:root,app\nvideo:x:44:app\napp:x:1001:\nbroken\n";

impl Default for Fixture {
    fn default() -> Self {
        let path = |name: &str| NamespaceSource::Path(format!("/run/netns/{name}"));
        Self {
            container: v1::ContainerConfig {
                metadata: Some(v1::ContainerMetadata { name: "main".to_owned(), attempt: 2 }),
                image: Some(v1::ImageSpec { image: "busybox".to_owned(), ..Default::default() }),
                command: strings(&["/bin/sh", "-c"]),
                args: strings(&["sleep 3600"]),
                linux: Some(v1::LinuxContainerConfig {
                    resources: Some(v1::LinuxContainerResources::default()),
                    security_context: Some(v1::LinuxContainerSecurityContext::default()),
                }),
                ..Default::default()
            },
            sandbox: v1::PodSandboxConfig::default(),
            identity: Identity {
                container_id: "c".repeat(64),
                sandbox_id: "5".repeat(64),
                container_name: "k8s_main_pod_ns_uid_2".to_owned(),
                sandbox_name: "k8s_pod_ns_uid_0".to_owned(),
                log_path: "/var/log/pods/ns_pod_uid/main/2.log".to_owned(),
                pod_ips: strings(&["10.88.0.7"]),
                created: "2026-11-25T12:00:00.000000001Z".to_owned(),
                hostname: "pod".to_owned(),
                sandbox_privileged: false,
            },
            image: ImageFacts {
                id: "1".repeat(64),
                name: "docker.io/library/busybox:latest".to_owned(),
                env: strings(&["PATH=/bin", "FROM_IMAGE=1"]),
                cmd: strings(&["sh"]),
                ..Default::default()
            },
            passwd: Some(PASSWD),
            group: Some(GROUP),
            node: node(),
            defaults: Defaults {
                capabilities: strings(&["CHOWN", "KILL", "NET_BIND_SERVICE"]),
                pids_limit: -1,
                apparmor_profile: "crio-default".to_owned(),
                ..Default::default()
            },
            handler: HandlerFeatures::default(),
            default_seccomp: false,
            selinux: None,
            namespaces: Namespaces {
                network: path("net"),
                ipc: path("ipc"),
                uts: path("uts"),
                pid: NamespaceSource::Private,
                user: NamespaceSource::Host,
                ..Default::default()
            },
            rootfs: "/var/lib/containers/storage/overlay/x/merged".to_owned(),
            mounts: Vec::new(),
            provided: ProvidedMounts {
                shm: Some("/run/pod/shm".to_owned()),
                resolv_conf: Some("/run/pod/resolv.conf".to_owned()),
                hostname: Some("/run/pod/hostname".to_owned()),
                containerenv: Some("/run/pod/.containerenv".to_owned()),
                ..Default::default()
            },
            devices: Vec::new(),
            cgroups_path: "/kubepods/podx/crio-c".to_owned(),
        }
    }
}

pub(crate) fn node() -> NodeFacts {
    NodeFacts {
        arch: Arch::X86_64,
        kernel: (6, 1),
        cgroup_v2: true,
        systemd_cgroup: false,
        capabilities: CapabilitySet::ALL,
        oom_score_adj: 0,
        hard_rlimits: BTreeMap::new(),
        pids_controller: true,
        hugetlb_controller: true,
        swap_accounting: true,
        hugepage_sizes: strings(&["2MB", "1GB"]),
        recursive_read_only: true,
        idmapped_mounts: true,
        seccomp: true,
        apparmor: false,
        host_devices: vec![ResolvedDevice {
            path: "/dev/fuse".to_owned(),
            major: 10,
            minor: 229,
            mode: 0o666,
            ..Default::default()
        }],
        extra_masked_paths: Vec::new(),
    }
}

impl Fixture {
    pub(crate) fn security(&mut self) -> &mut v1::LinuxContainerSecurityContext {
        self.container.linux.get_or_insert_default().security_context.get_or_insert_default()
    }

    pub(crate) fn resources(&mut self) -> &mut v1::LinuxContainerResources {
        self.container.linux.get_or_insert_default().resources.get_or_insert_default()
    }

    /// Adds a mount with its facts: a directory on a shared mount.
    pub(crate) fn mount(
        &mut self,
        destination: &str,
        change: impl FnOnce(&mut v1::Mount, &mut ResolvedMount),
    ) {
        let mut mount = v1::Mount {
            container_path: destination.to_owned(),
            host_path: "/host/data".to_owned(),
            ..Default::default()
        };
        let mut facts = ResolvedMount {
            source: "/host/data".to_owned(),
            is_dir: true,
            shared: true,
            ..Default::default()
        };
        change(&mut mount, &mut facts);
        self.container.mounts.push(mount);
        self.mounts.push(facts);
    }

    pub(crate) fn build(&self) -> Result<Built, SpecError> {
        build(&SpecInput {
            container: &self.container,
            sandbox: &self.sandbox,
            identity: &self.identity,
            image: &self.image,
            passwd: self.passwd.map(str::as_bytes),
            group: self.group.map(str::as_bytes),
            node: &self.node,
            defaults: &self.defaults,
            handler: &self.handler,
            seccomp: if self.default_seccomp { SeccompProfile::Default } else { SeccompProfile::Unconfined },
            selinux: self.selinux.as_ref(),
            namespaces: &self.namespaces,
            rootfs: &self.rootfs,
            mounts: &self.mounts,
            provided: &self.provided,
            devices: &self.devices,
            cgroups_path: &self.cgroups_path,
        })
    }
}

pub(crate) fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}
