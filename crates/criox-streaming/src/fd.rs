//! The server's end of a process's stream or of a port's connection.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

use crate::sink::Copied;

/// What the pipe of a process's output holds, if the system allows it; 64 KiB is the kernel's default.
const OUTPUT: usize = 256 << 10;

/// A pipe, socket or terminal, read and written as it becomes ready.
#[derive(Debug)]
pub(crate) struct Fd {
    fd: AsyncFd<OwnedFd>,
    /// A read that gives less than was asked for has taken everything. True for pipes and stream sockets (epoll(7),
    /// question 9), and not for terminals.
    short_is_all: bool,
}

impl Fd {
    /// A pipe or a stream socket.
    pub(crate) fn pipe(fd: OwnedFd) -> io::Result<Self> {
        Self::new(fd, true)
    }

    /// The read end of a process's output.
    pub(crate) fn output(fd: OwnedFd) -> io::Result<Self> {
        // The process and its reader take turns less often. A socket has no such size, and a limit of the system may
        // be reached: then it stays as it was.
        let _ = rustix::pipe::fcntl_setpipe_size(&fd, OUTPUT);
        Self::pipe(fd)
    }

    /// A terminal, or a socket in its place.
    pub(crate) fn terminal(fd: OwnedFd) -> io::Result<Self> {
        Self::new(fd, false)
    }

    fn new(fd: OwnedFd, short_is_all: bool) -> io::Result<Self> {
        let flags = fcntl_getfl(&fd)?;
        if !flags.contains(OFlags::NONBLOCK) {
            fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        }
        #[expect(deprecated, reason = "its successor is unsafe; an OwnedFd is what it was always sound for")]
        let fd = AsyncFd::new(fd)?;
        Ok(Self { fd, short_is_all })
    }

    /// Waits until there may be something to read.
    pub(crate) async fn readable(&self) -> io::Result<Readable<'_>> {
        Ok(Readable { ready: self.fd.readable().await?, short_is_all: self.short_is_all })
    }

    /// Writes everything.
    pub(crate) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.fd.writable().await?;
            match ready.try_io(|fd| Ok(rustix::io::write(fd, bytes)?)) {
                Ok(Ok(written)) => bytes = bytes.get(written..).unwrap_or_default(),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => (),
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => (),
            }
        }
        Ok(())
    }

    /// Says that nothing more is written: the half-close of a socket.
    pub(crate) fn end_writing(&self) {
        // Fails if the peer has gone, and then there is nobody to tell.
        let _ = rustix::net::shutdown(&self.fd, rustix::net::Shutdown::Write);
    }
}

/// A descriptor that may have something to read.
pub(crate) struct Readable<'a> {
    ready: AsyncFdReadyGuard<'a, OwnedFd>,
    short_is_all: bool,
}

impl Readable<'_> {
    /// Reads what is there: a number of bytes, 0 at the end, `None` if there was nothing after all.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match self.ready.try_io(|fd| Ok(rustix::io::read(fd, &mut *buffer)?)) {
            Ok(Ok(read)) => {
                // Saves the next read, which would find nothing. What comes meanwhile makes it ready again.
                if self.short_is_all && read > 0 && read < buffer.len() {
                    self.ready.clear_ready();
                }
                Ok(Some(read))
            }
            // The master of a terminal that no process has open any more.
            Ok(Err(error)) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                Ok(Some(0))
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
            Ok(Err(error)) => Err(error),
            Err(_would_block) => Ok(None),
        }
    }

    /// Reads what is there, and drops it.
    pub(crate) fn discard(&mut self) -> io::Result<Copied> {
        Ok(match self.read(&mut [0; 4096])? {
            Some(0) => Copied::End,
            Some(length) => Copied::Bytes(length),
            None => Copied::Nothing,
        })
    }
}
