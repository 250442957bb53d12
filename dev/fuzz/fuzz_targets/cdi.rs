//! Files of device vendors, and what they make of a container's specification.
#![no_main]

use criox_spec::{CdiFacts, CdiFormat, HostNode, inject_cdi, oci, parse_cdi};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else { return };
    let format = if first % 2 == 0 { CdiFormat::Json } else { CdiFormat::Yaml };
    let Ok(file) = parse_cdi(rest, format) else { return };
    let mut spec = oci::Spec::default();
    for name in file.devices() {
        let device = file.device(name).expect("it was named");
        let facts = CdiFacts { net_devices: true, intel_rdt: None };
        let mut lookup = |_: &str| Ok(HostNode { kind: 'c', major: 1, minor: 3 });
        drop(inject_cdi(&mut spec, &[file.common(), device], facts, &mut lookup));
    }
    // Whatever came in, the runtime gets absolute paths without a way up.
    for mount in &spec.mounts {
        assert!(mount.destination.starts_with('/') && !mount.destination.split('/').any(|part| part == ".."));
    }
    for node in &spec.linux.devices {
        assert!(node.path.starts_with('/') && node.path != "/");
    }
});
