//! The entries of a tar-split, which another program may have written.
#![no_main]

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};

use criox_store::tarsplit::{Assembler, Files};
use libfuzzer_sys::fuzz_target;

/// Every file is empty, whatever its name: nothing of the machine is opened.
struct Empty;

impl Files for Empty {
    fn open(&mut self, _name: &OsStr) -> io::Result<File> {
        File::open("/dev/null")
    }
}

fuzz_target!(|data: &[u8]| {
    let mut assembled = Vec::new();
    let _ = Assembler::new(data, Empty).take(1 << 20).read_to_end(&mut assembled);
});
