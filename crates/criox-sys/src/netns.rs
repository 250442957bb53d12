//! Network namespaces: opening a pinned one safely, telling two apart, and working inside one.
//!
//! A thread's network namespace is changed with setns(2) only on a thread made for that one call, which ends with
//! it: a thread of the daemon's pool that failed to come back would serve other pods from inside this one.

use std::ffi::CStr;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::thread::LinkNameSpaceType;

/// `NS_GET_NSTYPE` of ioctl_ns(2): `_IO(0xb7, 3)`.
const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
/// `NSFS_MAGIC` of statfs(2).
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// Why a network namespace can't be used.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// Nothing is at the path.
    #[error("no network namespace at {path}")]
    Missing {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// What is at the path isn't a pinned network namespace: a plain file after an unmount, a symbolic link to
    /// something else, or a namespace of another kind.
    #[error("{path} is not a network namespace: {found}")]
    NotANetns {
        /// The path that was asked for.
        path: PathBuf,
        /// What it is instead.
        found: &'static str,
    },
    /// A system call failed.
    #[error("network namespace: {stage}")]
    Io {
        /// What was being done.
        stage: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The closure that ran inside the namespace panicked.
    #[error("work inside a network namespace panicked")]
    Panicked,
}

impl NetnsError {
    fn io(stage: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { stage, source }
    }
}

/// Tells network namespaces apart: device and inode number of their nsfs file. The kernel hands a number out again
/// after the namespace is gone, so it identifies one only together with its [`cookie`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetnsId {
    /// `st_dev` of nsfs.
    pub dev: u64,
    /// `st_ino`, as in `net:[4026531840]`.
    pub ino: u64,
}

/// Opens a network namespace by the path under which it is pinned (or `/proc/<pid>/ns/net`).
///
/// The path is opened without effect (`O_PATH`) and for use only after statfs says nsfs and `NS_GET_NSTYPE` says
/// network, so a FIFO or a device put in its place neither blocks nor acts.
///
/// # Errors
/// [`NetnsError::Missing`] and [`NetnsError::NotANetns`], which a caller that tears down takes as "gone".
pub fn open(path: &Path) -> Result<OwnedFd, NetnsError> {
    let probe = match rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => {
            return Err(NetnsError::Missing { path: path.to_owned() });
        }
        Err(errno) => return Err(NetnsError::io("open the path")(errno.into())),
    };
    let wrong = |found| NetnsError::NotANetns { path: path.to_owned(), found };
    let statfs = rustix::fs::fstatfs(&probe).map_err(|e| NetnsError::io("statfs the path")(e.into()))?;
    #[allow(
        clippy::unnecessary_cast,
        clippy::useless_conversion,
        reason = "the type of f_type differs between architectures"
    )]
    if statfs.f_type as i64 != NSFS_MAGIC {
        return Err(wrong("not on nsfs; the pin was unmounted or replaced"));
    }
    let again = format!("/proc/self/fd/{}", probe.as_raw_fd());
    let ns = rustix::fs::open(again, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| NetnsError::io("open the namespace")(e.into()))?;
    // SAFETY: NS_GET_NSTYPE takes no argument and writes no memory; the descriptor is open for the whole call.
    let kind = unsafe { libc::ioctl(ns.as_raw_fd(), NS_GET_NSTYPE) };
    if kind < 0 {
        return Err(NetnsError::io("NS_GET_NSTYPE")(io::Error::last_os_error()));
    }
    if kind != libc::CLONE_NEWNET {
        return Err(wrong("a namespace of another kind"));
    }
    Ok(ns)
}

/// The namespace of the calling thread.
///
/// # Errors
/// [`NetnsError::Io`], when `/proc` isn't mounted.
pub fn current() -> Result<OwnedFd, NetnsError> {
    open(Path::new("/proc/thread-self/ns/net"))
}

/// The identity of an open namespace.
///
/// # Errors
/// The kernel's, from fstat(2).
pub fn identity(ns: impl AsFd) -> io::Result<NetnsId> {
    let stat = rustix::fs::fstat(ns)?;
    Ok(NetnsId { dev: stat.st_dev, ino: stat.st_ino })
}

/// The number that the kernel gives to no other network namespace until the machine is started anew (`SO_NETNS_COOKIE`);
/// `None` from kernels before 5.14, which have none.
///
/// # Errors
/// As [`within`], or the kernel's answer to socket(2) or getsockopt(2).
pub fn cookie(ns: BorrowedFd<'_>) -> Result<Option<u64>, NetnsError> {
    within(ns, cookie_here)?.map_err(NetnsError::io("read its cookie"))
}

fn cookie_here() -> io::Result<Option<u64>> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).unwrap_or(8);
    // SAFETY: the option is eight bytes, as many as `length` says there are at `cookie`; both live through the call.
    let got = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    match io::Error::last_os_error() {
        _ if got == 0 => Ok(Some(cookie)),
        error if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(None),
        error => Err(error),
    }
}

/// Runs `work` inside `ns` on a thread made for it, and waits for it: call it from a blocking context. Sockets that
/// `work` opens keep belonging to the namespace after it returns.
///
/// # Errors
/// [`NetnsError::Io`] when the thread can't be made or can't enter (CAP_SYS_ADMIN), [`NetnsError::Panicked`].
pub fn within<T: Send>(ns: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("netns".into())
            .stack_size(256 * 1024)
            .spawn_scoped(scope, move || {
                rustix::thread::move_into_link_name_space(ns, Some(LinkNameSpaceType::Network))
                    .map_err(|e| NetnsError::io("enter it (setns)")(e.into()))?;
                Ok(work())
            })
            .map_err(NetnsError::io("start a thread"))?
            .join()
            .map_err(|_| NetnsError::Panicked)?
    })
}

/// Sets the loopback interface of `ns` up; the kernel adds 127.0.0.1/8 and ::1/128 by itself. Nothing happens when
/// it is up already.
///
/// # Errors
/// As [`within`], or the kernel's answer to `SIOCSIFFLAGS`.
pub fn loopback_up(ns: BorrowedFd<'_>) -> Result<(), NetnsError> {
    within(ns, loopback_up_here)?.map_err(NetnsError::io("set loopback up"))
}

/// Sets the loopback interface up in the namespace of the calling thread, for a helper process that has just made
/// or entered one.
///
/// # Errors
/// The kernel's answer to `SIOCGIFFLAGS` or `SIOCSIFFLAGS`.
pub fn loopback_up_here() -> io::Result<()> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: ifreq is plain old data, for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    // SAFETY: both ioctls read and write one ifreq, which lives through the calls; SIOCGIFFLAGS fills in the flags
    // member of the union before it is read.
    unsafe {
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &raw mut request) < 0 {
            return Err(io::Error::last_os_error());
        }
        let up = libc::c_short::try_from(libc::IFF_UP).unwrap_or(1);
        if request.ifr_ifru.ifru_flags & up != 0 {
            return Ok(());
        }
        request.ifr_ifru.ifru_flags |= up;
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw mut request) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// One address of one interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The interface, such as `eth0`.
    pub interface: String,
    /// The address.
    pub address: IpAddr,
    /// Length of the network prefix, in bits.
    pub prefix: u8,
    /// Whether the interface is set up (`IFF_UP`).
    pub up: bool,
}

/// All IPv4 and IPv6 addresses inside `ns`, in the kernel's order.
///
/// # Errors
/// As [`within`], or getifaddrs(3)'s.
pub fn addresses(ns: BorrowedFd<'_>) -> Result<Vec<InterfaceAddress>, NetnsError> {
    within(ns, addresses_here)?.map_err(NetnsError::io("list addresses"))
}

fn addresses_here() -> io::Result<Vec<InterfaceAddress>> {
    let mut head: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: getifaddrs stores a list at the pointer given, or fails and stores nothing.
    if unsafe { libc::getifaddrs(&raw mut head) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut found = Vec::new();
    let mut entry = head;
    while !entry.is_null() {
        // SAFETY: every entry of the list stays valid until freeifaddrs below, and nothing else refers to it.
        let item = unsafe { &*entry };
        entry = item.ifa_next;
        // SAFETY: ifa_addr and ifa_netmask are null or point at a sockaddr of the size its family implies.
        let (address, mask) = unsafe { (ip_of(item.ifa_addr), ip_of(item.ifa_netmask)) };
        let (Some(address), Some(mask)) = (address, mask) else { continue };
        // SAFETY: ifa_name is a NUL-terminated string owned by the list.
        let interface = unsafe { CStr::from_ptr(item.ifa_name) }.to_string_lossy().into_owned();
        let up = item.ifa_flags & libc::IFF_UP.cast_unsigned() != 0;
        found.push(InterfaceAddress { interface, address, prefix: prefix_of(mask), up });
    }
    // SAFETY: head came from getifaddrs and is freed once; nothing borrowed from it is left.
    unsafe { libc::freeifaddrs(head) };
    Ok(found)
}

fn prefix_of(mask: IpAddr) -> u8 {
    let ones = match mask {
        IpAddr::V4(v4) => v4.to_bits().count_ones(),
        IpAddr::V6(v6) => v6.to_bits().count_ones(),
    };
    u8::try_from(ones).unwrap_or(u8::MAX)
}

/// # Safety
/// `addr` is null or points at a sockaddr that is as large as its family implies.
unsafe fn ip_of(addr: *const libc::sockaddr) -> Option<IpAddr> {
    if addr.is_null() {
        return None;
    }
    // SAFETY: not null, and every sockaddr starts with the family.
    match i32::from(unsafe { (*addr).sa_family }) {
        libc::AF_INET => {
            // SAFETY: the family says sockaddr_in; read unaligned because only a sockaddr's alignment is promised.
            let v4 = unsafe { std::ptr::read_unaligned(addr.cast::<libc::sockaddr_in>()) };
            Some(Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above, for sockaddr_in6.
            let v6 = unsafe { std::ptr::read_unaligned(addr.cast::<libc::sockaddr_in6>()) };
            Some(Ipv6Addr::from(v6.sin6_addr.s6_addr).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> OwnedFd {
        std::thread::spawn(|| {
            // SAFETY: only this short-lived thread's network namespace changes.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "{}", io::Error::last_os_error());
            current().unwrap()
        })
        .join()
        .unwrap()
    }

    #[test]
    fn what_is_not_a_network_namespace_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let plain = dir.path().join("plain");
        let fifo = dir.path().join("fifo");
        std::fs::OpenOptions::new().create_new(true).write(true).open(&plain).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap();
        for path in [plain.as_path(), fifo.as_path(), Path::new("/proc/self/ns/uts"), Path::new("/dev/null")]
        {
            let error = open(path).unwrap_err();
            assert!(matches!(error, NetnsError::NotANetns { .. }), "{}: {error}", path.display());
        }
        let error = open(&dir.path().join("none")).unwrap_err();
        assert!(matches!(error, NetnsError::Missing { .. }), "{error}");
    }

    #[test]
    fn identity_tells_namespaces_apart() {
        let here = identity(current().unwrap()).unwrap();
        let other = fresh();
        assert_eq!(here, identity(open(Path::new("/proc/self/ns/net")).unwrap()).unwrap());
        assert_ne!(here, identity(&other).unwrap());
    }

    #[test]
    fn a_cookie_is_never_another_namespaces() {
        let Some(here) = cookie(current().unwrap().as_fd()).unwrap() else {
            return eprintln!("skipped: the kernel has no cookies of network namespaces");
        };
        assert_eq!(cookie(current().unwrap().as_fd()).unwrap(), Some(here));
        let seen: std::collections::HashSet<_> =
            (0..20).map(|_| cookie(fresh().as_fd()).unwrap().unwrap()).chain([here]).collect();
        assert_eq!(seen.len(), 21, "the numbers of those that have gone are not used again");
    }

    #[test]
    fn work_runs_inside_and_the_caller_stays_outside() {
        let before = identity(current().unwrap()).unwrap();
        let ns = fresh();
        let inside = within(ns.as_fd(), || identity(current().unwrap()).unwrap()).unwrap();
        assert_eq!(inside, identity(&ns).unwrap());
        assert_eq!(before, identity(current().unwrap()).unwrap());
    }

    #[test]
    fn loopback_comes_up_and_has_its_address() {
        let ns = fresh();
        assert_eq!(addresses(ns.as_fd()).unwrap(), vec![]);
        loopback_up(ns.as_fd()).unwrap();
        loopback_up(ns.as_fd()).unwrap();
        let found = addresses(ns.as_fd()).unwrap();
        let want = InterfaceAddress {
            interface: "lo".into(),
            address: Ipv4Addr::LOCALHOST.into(),
            prefix: 8,
            up: true,
        };
        assert!(found.contains(&want), "{found:?}");
    }
}
