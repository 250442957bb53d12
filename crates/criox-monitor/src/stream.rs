//! The reading ends of a container's output.

use std::os::fd::OwnedFd;
use std::time::Instant;

use crate::log::{Splitter, Stream};

/// Bytes that one read takes.
pub(crate) const READ_SIZE: usize = 64 * 1024;
/// Records are cut off to the writer in parts of about this size.
pub(crate) const BATCH: usize = 64 * 1024;
/// Bytes that may wait for the log writer, per container; beyond that its output is not read.
pub(crate) const MAX_QUEUED: usize = 512 * 1024;

/// A pipe (or the terminal) being read.
pub(crate) struct Output {
    pub(crate) container: u32,
    pub(crate) fd: OwnedFd,
    pub(crate) stream: Stream,
    pub(crate) splitter: Splitter,
    /// Not read until the log writer, or an attached client, has caught up.
    pub(crate) paused: bool,
    /// The unfinished line has a timer.
    pub(crate) timed: bool,
    /// When bytes last came.
    pub(crate) fed: Instant,
}

impl Output {
    pub(crate) fn new(container: u32, fd: OwnedFd, stream: Stream) -> Self {
        Self {
            container,
            fd,
            stream,
            splitter: Splitter::new(stream),
            paused: false,
            timed: false,
            fed: Instant::now(),
        }
    }
}
