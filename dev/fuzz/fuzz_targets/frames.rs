//! Frames between daemon and monitor, in pieces of any size.
#![no_main]

use criox_monitor_api::frame::FrameReader;
use criox_monitor_api::proto::{Message, Request};
use libfuzzer_sys::fuzz_target;

fn read<M: prost::Message + Default>(data: &[u8], step: usize) {
    let mut reader = FrameReader::new();
    for piece in data.chunks(step) {
        if reader.push(piece, []).is_err() {
            return;
        }
        loop {
            match reader.next::<M>() {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((step, data)) = data.split_first() else { return };
    let step = usize::from(*step) + 1;
    read::<Request>(data, step);
    read::<Message>(data, step);
});
