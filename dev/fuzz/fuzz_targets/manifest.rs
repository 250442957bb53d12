//! What a registry sends beside layers: the first byte chooses the kind of document.
#![no_main]

use criox_image::fuzzing::{challenges, configuration, manifest, proxy_answer};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((kind, bytes)) = data.split_first() else { return };
    match kind % 4 {
        0 => manifest(None, bytes),
        1 => manifest(Some("application/vnd.oci.image.index.v1+json"), bytes),
        2 => configuration(bytes),
        _ => {
            proxy_answer(bytes);
            if let Ok(value) = std::str::from_utf8(bytes) {
                assert!(challenges(value) <= value.len());
            }
        }
    }
});
