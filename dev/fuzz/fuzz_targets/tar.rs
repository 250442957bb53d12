//! A layer's stream: every member is read to its end, and what the tap saw plus the content is the input, byte for byte.
#![no_main]

use std::io;

use criox_store::tar::{Reader, Tap};
use libfuzzer_sys::fuzz_target;

/// Counts what a tar-split would keep.
#[derive(Default)]
struct Count(usize);

impl Tap for Count {
    fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0 += bytes.len();
        Ok(())
    }
}

/// Writes the right checksum into each block that looks like a header: else none but the seeds would get far.
fn seal(stream: &mut [u8]) {
    for block in stream.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

fuzz_target!(|data: &[u8]| {
    let mut stream = data.to_vec();
    seal(&mut stream);
    let mut reader = Reader::new(&stream[..], Count::default());
    let mut content = 0;
    loop {
        let entry = match reader.next_entry() {
            Ok(Some(entry)) => entry,
            Ok(None) => break,
            Err(_) => {
                assert!(reader.tap_mut().0 + content <= stream.len(), "nothing is made up");
                return;
            }
        };
        if let Some(extents) = &entry.sparse {
            let sum: u64 = extents.iter().map(|extent| extent.length).sum();
            assert_eq!(sum, entry.stored, "extents are the stored content");
        }
        // The content of a sparse file goes to the tap.
        let counts = entry.sparse.is_none();
        loop {
            let length = match reader.content() {
                Ok(bytes) if bytes.is_empty() => break,
                Ok(bytes) => bytes.len(),
                Err(_) => return,
            };
            content += if counts { length } else { 0 };
            if reader.consume(length).is_err() {
                return;
            }
        }
    }
    if reader.drain().is_ok() {
        assert_eq!(reader.tap_mut().0 + content, stream.len(), "every byte went one way");
    }
});
