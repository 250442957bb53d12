//! Names of images, as pods write them. A reference that was understood names itself.
#![no_main]

use criox_image::{ImageName, Reference};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = ImageName::parse(text);
    if let Ok(reference) = Reference::parse(text) {
        let again = Reference::parse(&reference.to_string()).expect("its own text is a reference");
        assert_eq!(again.to_string(), reference.to_string());
    }
});
