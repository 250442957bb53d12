//! The pipes that are a container's standard streams.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use criox_monitor_api::proto;

use crate::log::Stream;
use crate::verbs::pipe;

/// Both sides of them; with a terminal there are none.
pub(crate) struct Pipes {
    /// To read output from.
    pub(crate) outputs: Vec<(OwnedFd, Stream)>,
    /// To write input to.
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) ends: Ends,
}

/// The container's side: stdin, stdout and stderr; /dev/null where it has none.
pub(crate) struct Ends([OwnedFd; 3]);

impl Pipes {
    pub(crate) fn open(request: &proto::Create) -> io::Result<Self> {
        let null = || std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").map(OwnedFd::from);
        let mut ends = Ends([null()?, null()?, null()?]);
        let (mut outputs, mut stdin) = (Vec::new(), None);
        if !request.terminal {
            for (index, stream) in [(1, Stream::Stdout), (2, Stream::Stderr)] {
                let (read, write) = pipe()?;
                outputs.push((read, stream));
                ends.0[index] = write;
            }
            if request.stdin {
                let (read, write) = pipe()?;
                // Ours alone: the container's end still waits.
                rustix::io::ioctl_fionbio(&write, true)?;
                ends.0[0] = read;
                stdin = Some(write);
            }
        }
        Ok(Self { outputs, stdin, ends })
    }
}

impl Ends {
    pub(crate) fn borrowed(&self) -> [BorrowedFd<'_>; 3] {
        [self.0[0].as_fd(), self.0[1].as_fd(), self.0[2].as_fd()]
    }
}
