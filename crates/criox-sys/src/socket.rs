//! UNIX sockets: paths of any length, descriptors beside bytes, credentials of the peer.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

/// The most descriptors that one message carries.
pub const MAX_FDS: usize = 8;

/// Who is at the other end of a UNIX socket (`SO_PEERCRED`, see unix(7)), as of its connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerCredentials {
    /// The process.
    pub pid: i32,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
}

/// Binds a non-blocking stream socket at `path` and listens. The path may be longer than the 108 bytes of
/// `sun_path`. Fails with `AddrInUse` where something lies at the path.
pub fn bind_listen(path: &Path, backlog: i32) -> io::Result<OwnedFd> {
    let (_directory, address) = short_address(path)?;
    let socket = stream_socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, backlog)?;
    Ok(socket)
}

/// Connects a blocking stream socket to the one at `path`, which may be of any length.
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    let (_directory, address) = short_address(path)?;
    let socket = stream_socket(SocketFlags::CLOEXEC)?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket)
}

/// Connects a non-blocking stream socket to the one at `path`, which may be of any length. Never waits: `WouldBlock`
/// where as many wait to be accepted as the listener allows.
pub fn connect_now(path: &Path) -> io::Result<OwnedFd> {
    let (_directory, address) = short_address(path)?;
    let socket = stream_socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket)
}

/// Accepts a connection; the new socket is non-blocking.
pub fn accept(listener: impl AsFd) -> io::Result<OwnedFd> {
    Ok(rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?)
}

/// Two connected stream sockets, blocking.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

/// Credentials of the peer.
pub fn peer_credentials(socket: impl AsFd) -> io::Result<PeerCredentials> {
    let credentials = rustix::net::sockopt::socket_peercred(socket)?;
    Ok(PeerCredentials {
        pid: credentials.pid.as_raw_nonzero().get(),
        uid: credentials.uid.as_raw(),
        gid: credentials.gid.as_raw(),
    })
}

/// Sends bytes, with at most [`MAX_FDS`] descriptors attached to the first of them. Never raises SIGPIPE.
/// Returns the number of bytes taken.
pub fn send_with_fds(socket: impl AsFd, bytes: &[IoSlice<'_>], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors for one message"));
    }
    Ok(rustix::net::sendmsg(socket, bytes, &mut control, SendFlags::NOSIGNAL)?)
}

/// Receives bytes and appends the descriptors that come with them, all close-on-exec. Returns the number of
/// bytes; 0 is the end of the stream.
pub fn recv_with_fds(socket: impl AsFd, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received =
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    Ok(received.bytes)
}

fn stream_socket(flags: SocketFlags) -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

/// An address that fits `sun_path`: a longer path goes by a descriptor of its directory, which must stay open
/// until the address has been used.
fn short_address(path: &Path) -> io::Result<(Option<OwnedFd>, SocketAddrUnix)> {
    if let Ok(address) = SocketAddrUnix::new(path) {
        return Ok((None, address));
    }
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "socket path has no file name");
    let (parent, name) = (path.parent().ok_or_else(invalid)?, path.file_name().ok_or_else(invalid)?);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(parent, flags, Mode::empty())?;
    let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
    Ok((Some(directory), SocketAddrUnix::new(&short)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_longer_than_an_address_is_bound_and_reached() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("d".repeat(100)).join("e".repeat(100));
        std::fs::create_dir_all(&long).unwrap();
        let path = long.join("socket");
        let listener = bind_listen(&path, 1).unwrap();
        let ours = connect(&path).unwrap();
        let theirs = accept(&listener).unwrap();
        let peer = peer_credentials(&theirs).unwrap();
        assert_eq!(peer.pid, i32::try_from(std::process::id()).unwrap());
        assert_eq!(send_with_fds(&ours, &[IoSlice::new(b"hi")], &[listener.as_fd()]).unwrap(), 2);
        let (mut bytes, mut fds) = ([0; 8], Vec::new());
        assert_eq!(recv_with_fds(&theirs, &mut bytes, &mut fds).unwrap(), 2);
        assert_eq!(fds.len(), 1);
        assert!(rustix::io::fcntl_getfd(&fds[0]).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        assert_eq!(bind_listen(&path, 1).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_listener_that_accepts_nobody_holds_up_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let _listener = bind_listen(&path, 1).unwrap();
        let mut waiting = Vec::new();
        let refused = loop {
            match connect_now(&path) {
                Ok(socket) if waiting.len() < 16 => waiting.push(socket),
                other => break other,
            }
        };
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
