//! seccomp profiles of the node's operator, and what they become for a container.
#![no_main]

use criox_cri::v1;
use criox_spec::{ImageFacts, SeccompProfile, parse_profile};
use libfuzzer_sys::fuzz_target;

mod support;

fuzz_target!(|data: &[u8]| {
    let Ok(profile) = parse_profile(data) else { return };
    let container = v1::ContainerConfig { command: vec!["/bin/true".to_owned()], ..Default::default() };
    let seccomp = SeccompProfile::Loaded { profile: &profile, path: "/profile.json" };
    let built = support::run(&container, &ImageFacts::default(), b"", b"", seccomp);
    if let Err(error) = built {
        assert!(!error.field.is_empty());
    }
});
