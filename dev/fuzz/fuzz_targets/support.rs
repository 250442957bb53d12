//! The facts around a request, for the targets of `criox-spec`.
#![allow(dead_code, reason = "each target uses its part")]

use criox_cri::v1;
use criox_spec::{
    Arch, Built, CapabilitySet, Defaults, HandlerFeatures, Identity, ImageFacts, Namespaces, NodeFacts,
    ProvidedMounts, ResolvedMount, SeccompProfile, SpecError, SpecInput, build,
};

pub fn run(
    container: &v1::ContainerConfig,
    image: &ImageFacts,
    passwd: &[u8],
    group: &[u8],
    seccomp: SeccompProfile<'_>,
) -> Result<Built, SpecError> {
    let resolve = |mount: &v1::Mount| ResolvedMount {
        source: mount.host_path.clone(),
        shared: true,
        ..Default::default()
    };
    let mounts: Vec<ResolvedMount> = container.mounts.iter().map(resolve).collect();
    let provided = ProvidedMounts {
        passwd: Some("/run/passwd".to_owned()),
        group: Some("/run/group".to_owned()),
        ..Default::default()
    };
    build(&SpecInput {
        container,
        sandbox: &v1::PodSandboxConfig::default(),
        identity: &Identity { sandbox_privileged: true, ..Default::default() },
        image,
        passwd: Some(passwd),
        group: Some(group),
        node: &node(),
        defaults: &Defaults::default(),
        handler: &HandlerFeatures { recursive_read_only: true, idmapped_mounts: true, ..Default::default() },
        seccomp,
        selinux: None,
        namespaces: &Namespaces::default(),
        rootfs: "/rootfs",
        mounts: &mounts,
        provided: &provided,
        devices: &[],
        cgroups_path: "/crio-x",
    })
}

/// A node that can do everything.
pub fn node() -> NodeFacts {
    NodeFacts {
        arch: Arch::X86_64,
        kernel: (6, 1),
        cgroup_v2: true,
        systemd_cgroup: true,
        capabilities: CapabilitySet::EMPTY,
        oom_score_adj: 0,
        hard_rlimits: Default::default(),
        pids_controller: true,
        hugetlb_controller: true,
        swap_accounting: true,
        hugepage_sizes: Vec::new(),
        recursive_read_only: true,
        idmapped_mounts: true,
        seccomp: true,
        apparmor: true,
        host_devices: Vec::new(),
        extra_masked_paths: Vec::new(),
    }
}
