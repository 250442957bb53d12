//! Checkpoints on disk: written, read, and read when somebody made them who means harm.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test that can't go on fails, or says why it is skipped"
)]

#[path = "../../../criox-store/tests/archive/mod.rs"]
mod tar;

mod archive;
mod changes;
mod harness;
mod hostile;
mod images;
mod metadata;
mod pod;
mod podman;
