//! What a client of the streaming server sends over SPDY: frames, deflated header blocks, sizes of terminals.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    criox_streaming::fuzzing::spdy(input);
    criox_streaming::fuzzing::headers(input);
});
