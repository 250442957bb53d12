//! A container's archive of a checkpoint: whatever comes, what lies in the directory afterwards are regular files with
//! names that we know, and nothing was made beside it.
#![no_main]

use std::path::{Path, PathBuf};

use libfuzzer_sys::fuzz_target;

/// Writes the right checksum into each block that looks like a header: else none but the seeds would get far.
fn seal(stream: &mut [u8]) {
    for block in stream.chunks_exact_mut(512).filter(|block| &block[257..262] == b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

/// A directory of this process's own. Memory, where the machine has such a directory: every input makes and removes files.
fn base() -> PathBuf {
    let home = Path::new("/dev/shm");
    let home = if home.is_dir() { home.to_owned() } else { std::env::temp_dir() };
    home.join(format!("criox-fuzz-archive-{}", std::process::id()))
}

fn only_regular(dir: &Path, depth: usize) {
    for entry in std::fs::read_dir(dir).expect("the directory is there").flatten() {
        let kind = entry.file_type().expect("its kind is known");
        assert!(kind.is_file() || (kind.is_dir() && depth == 0), "{:?} is {kind:?}", entry.path());
        if kind.is_dir() {
            only_regular(&entry.path(), depth + 1);
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let mut stream = data.to_vec();
    seal(&mut stream);
    let base = base();
    criox_sys::durable::remove_tree(&base).expect("what the last input left can be removed");
    let into = base.join("into");
    std::fs::create_dir_all(&into).expect("a directory to be filled");
    criox_checkpoint::fuzz(&stream, &into);
    only_regular(&into, 0);
    let beside = std::fs::read_dir(&base).expect("the base is there").count();
    assert_eq!(beside, 1, "something was made beside the directory");
    criox_sys::durable::remove_tree(&base).expect("it can be removed");
});
