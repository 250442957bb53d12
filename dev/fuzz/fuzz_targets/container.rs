//! Whole container requests, as they come over the socket: built or refused with a field.
#![no_main]

use criox_cri::v1;
use criox_spec::{ImageFacts, SeccompProfile, container_pid_mode, seccomp_request};
use libfuzzer_sys::fuzz_target;
use prost::Message as _;

mod support;

fuzz_target!(|data: &[u8]| {
    let Ok(container) = v1::ContainerConfig::decode(data) else { return };
    let _ = seccomp_request(&container);
    let _ = container_pid_mode(&container, &v1::PodSandboxConfig::default());
    let passwd = b"root:x:0:0::/:/bin/sh\n";
    match support::run(&container, &ImageFacts::default(), passwd, b"", SeccompProfile::Default) {
        Ok(built) => {
            let depth = |path: &str| path.matches('/').count();
            let mounts = &built.spec.mounts;
            assert!(mounts.windows(2).all(|pair| depth(&pair[0].destination) <= depth(&pair[1].destination)));
        }
        Err(error) => assert!(!error.field.is_empty()),
    }
});
