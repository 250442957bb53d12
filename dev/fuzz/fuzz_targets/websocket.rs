//! What a client of the streaming server sends over WebSocket: frames, and messages with channels and base64.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| criox_streaming::fuzzing::websocket(input));
