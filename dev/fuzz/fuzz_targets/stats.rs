//! Files of cgroups and `/proc/net/dev`. Their writer is the kernel, but names in them (interfaces, devices) are not.
#![no_main]

use criox_sys::cgroup::stats::parse;
use criox_sys::netdev;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let (first, second) = data.split_at(data.len() / 2);
    parse::number(data);
    let mut keys = 0;
    parse::keyed(data, |key, _| keys += key.len());
    assert!(keys <= data.len());
    if let Some(psi) = parse::psi(data) {
        for line in [psi.some, psi.full] {
            assert!([line.avg10, line.avg60, line.avg300].iter().all(|average| average.is_finite()));
        }
    }
    // No more devices or interfaces than lines.
    let lines = data.split(|byte| *byte == b'\n').count();
    assert!(parse::io_v2(data).len() <= lines);
    assert!(parse::io_v1(first, second).len() <= lines + 1);
    let interfaces = netdev::parse(data);
    assert!(interfaces.len() <= lines);
    assert!(interfaces.iter().all(|interface| !interface.name.is_empty()));
});
