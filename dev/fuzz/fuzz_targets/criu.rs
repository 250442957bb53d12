//! CRIU's images, as far as credentials are read from them. The first byte says which image it is.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut image = data.to_vec();
    // The magic numbers, which no mutation would find.
    if image.len() >= 9 {
        let magic: u32 = match image[0] % 5 {
            0 => 0x5027_3030,
            1 => 0x5505_3847,
            2 => 0x6441_3049,
            3 => 0x5556_3928,
            _ => 0x5938_3330,
        };
        image[1..5].copy_from_slice(&0x5456_4319u32.to_le_bytes());
        image[5..9].copy_from_slice(&magic.to_le_bytes());
    }
    criox_checkpoint::criu::fuzz(&image);
});
