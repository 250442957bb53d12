//! Network configurations, what CNI plugins print, and files of libcni's cache. A second text, after a NUL, is a plugin in a
//! file of its own beside the configuration.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let cut = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
    let (first, second) = data.split_at(cut);
    criox_network::fuzz(first, second.get(1..).unwrap_or_default());
});
