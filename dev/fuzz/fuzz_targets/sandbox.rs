//! Whole sandbox requests, and the resources beside them: a length, a `PodSandboxConfig`, then `LinuxContainerResources`.
#![no_main]

use criox_cri::v1;
use criox_spec::{
    CgroupDriver, HandlerFeatures, cgroups_path, filter_annotations, resources_update, sandbox_namespaces,
    sandbox_sysctls, sandbox_user_check,
};
use libfuzzer_sys::fuzz_target;
use prost::Message as _;

mod support;

fuzz_target!(|data: &[u8]| {
    let mut rest = data;
    let Ok(sandbox) = v1::PodSandboxConfig::decode_length_delimited(&mut rest) else { return };
    let _ = sandbox_user_check(&sandbox);
    let _ = sandbox_namespaces(&sandbox);
    if let Ok((sysctls, _)) = sandbox_sysctls(&[], &sandbox) {
        // Each part becomes a directory below /proc/sys, a slash in it a dot: none must lead out.
        let inside = |part: &str| !part.is_empty() && !["/", "//"].contains(&part);
        assert!(sysctls.keys().all(|key| key.split('.').all(inside)), "{sysctls:?}");
    }
    let parent = sandbox.linux.as_ref().map_or("", |linux| linux.cgroup_parent.as_str());
    for driver in [CgroupDriver::Systemd, CgroupDriver::Cgroupfs] {
        if let Ok(path) = cgroups_path(driver, parent, "c") {
            assert!(path.split('/').all(|part| part != ".."), "{path:?} leads out of the hierarchy");
        }
    }
    let annotations = sandbox.annotations.into_iter().collect();
    assert!(filter_annotations(&annotations, &[]).len() <= annotations.len());
    if let Ok(resources) = v1::LinuxContainerResources::decode(rest) {
        let handler = HandlerFeatures::default();
        if let Err(error) = resources_update(&resources, &support::node(), &handler) {
            assert!(!error.field.is_empty());
        }
    }
});
