//! The server's end of a process's stream or of a port's connection.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

use crate::sink::Copied;

/// A pipe, socket or terminal, read and written as it becomes ready.
#[derive(Debug)]
pub(crate) struct Fd(AsyncFd<OwnedFd>);

impl Fd {
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = fcntl_getfl(&fd)?;
        if !flags.contains(OFlags::NONBLOCK) {
            fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        }
        #[expect(deprecated, reason = "its successor is unsafe; an OwnedFd is what it was always sound for")]
        Ok(Self(AsyncFd::new(fd)?))
    }

    /// Waits until there may be something to read.
    pub(crate) async fn readable(&self) -> io::Result<Readable<'_>> {
        Ok(Readable(self.0.readable().await?))
    }

    /// Writes everything.
    pub(crate) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.0.writable().await?;
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
        let _ = rustix::net::shutdown(&self.0, rustix::net::Shutdown::Write);
    }
}

/// A descriptor that may have something to read.
pub(crate) struct Readable<'a>(AsyncFdReadyGuard<'a, OwnedFd>);

impl Readable<'_> {
    /// Reads what is there: a number of bytes, 0 at the end, `None` if there was nothing after all.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match self.0.try_io(|fd| Ok(rustix::io::read(fd, &mut *buffer)?)) {
            Ok(Ok(read)) => Ok(Some(read)),
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
