//! What comes from the socket of an NRI plugin, and what its messages ask for.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| criox_nri::fuzz(data));
