//! Notifications of a system call filter (seccomp_unotify(2)): a process whose call has the action
//! `SECCOMP_RET_USER_NOTIF` waits until whoever holds the filter's descriptor answers.
//!
//! Once nobody holds the descriptor the kernel answers such calls with ENOSYS by itself.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// What `/proc/self/fd` says of such a descriptor.
const KIND: &[u8] = b"anon_inode:seccomp notify";

/// The descriptor of a filter.
#[derive(Debug)]
pub struct Listener(OwnedFd);

/// A call that waits for its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notification {
    id: u64,
    /// The thread, as the listener's PID namespace numbers it; 0 if it isn't in there.
    pub pid: u32,
    /// `AUDIT_ARCH_…` of the call: a 32-bit program has other numbers.
    pub arch: u32,
    /// The call's number. The filter decides which ones come; a program may make calls that don't exist.
    pub number: i32,
}

/// Whether the kernel has notifications of the form that is known here (since 5.0).
///
/// # Errors
/// `Unsupported`: it has none, or larger ones.
pub fn check_support() -> io::Result<()> {
    let mut sizes = libc::seccomp_notif_sizes { seccomp_notif: 0, seccomp_notif_resp: 0, seccomp_data: 0 };
    // SAFETY: SECCOMP_GET_NOTIF_SIZES writes one seccomp_notif_sizes, which lives through the call.
    let result = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_NOTIF_SIZES, 0, std::ptr::from_mut(&mut sizes))
    };
    let fits = usize::from(sizes.seccomp_notif) == size_of::<libc::seccomp_notif>()
        && usize::from(sizes.seccomp_notif_resp) == size_of::<libc::seccomp_notif_resp>();
    match result {
        0 if fits => Ok(()),
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}

impl Listener {
    /// Takes a descriptor that came from elsewhere.
    ///
    /// # Errors
    /// `InvalidData`: it is none of a filter.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let link = rustix::fs::readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new())?;
        if link.as_bytes() != KIND {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the descriptor is not that of a filter"));
        }
        Ok(Self(fd))
    }

    /// The next call that waits, if there is one; never waits itself, as long as nobody else receives from the filter.
    ///
    /// # Errors
    /// `BrokenPipe`: no process has the filter any more.
    pub fn receive(&self) -> io::Result<Option<Notification>> {
        let mut polled = [PollFd::new(&self.0, PollFlags::IN)];
        let none = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut polled, Some(&none))?;
        let found = polled[0].revents();
        if !found.contains(PollFlags::IN) {
            let over = found.intersects(PollFlags::HUP | PollFlags::ERR);
            return if over { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(None) };
        }
        // SAFETY: the kernel's type is of integers, for which zeroes are valid; it insists on zeroes.
        let mut received: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the request writes one seccomp_notif (its number holds the size), which lives through the call.
        let result =
            unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut received) };
        if result == 0 {
            let data = received.data;
            return Ok(Some(Notification {
                id: received.id,
                pid: received.pid,
                arch: data.arch,
                number: data.nr,
            }));
        }
        match io::Error::last_os_error() {
            // Killed, or interrupted by a signal, since it was seen.
            error if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) => Ok(None),
            error => Err(error),
        }
    }

    /// Lets the call fail with an error number. Done as well where the caller has gone.
    ///
    /// # Errors
    /// The kernel refuses the answer.
    pub fn refuse(&self, notification: &Notification, errno: i32) -> io::Result<()> {
        let mut answer = libc::seccomp_notif_resp { id: notification.id, val: 0, error: -errno, flags: 0 };
        // SAFETY: the request reads one seccomp_notif_resp (its number holds the size), which lives through the call.
        let result =
            unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer) };
        match io::Error::last_os_error() {
            _ if result == 0 => Ok(()),
            error if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            error => Err(error),
        }
    }
}

impl AsFd for Listener {
    /// Readable while a call waits; hung up once no process has the filter.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::FromRawFd;
    use std::time::{Duration, Instant};

    use super::*;

    const FORBIDDEN: libc::c_long = libc::SYS_swapoff;

    /// Gives the calling thread a filter that asks about one call, for good.
    fn filter() -> io::Result<OwnedFd> {
        let step = |code: u32, jt, jf, k| libc::sock_filter {
            code: u16::try_from(code).expect("an instruction of classic BPF"),
            jt,
            jf,
            k,
        };
        let number = u32::try_from(FORBIDDEN).expect("a call's number");
        let mut program = [
            // The number is the first field of seccomp_data.
            step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
            step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, number),
            step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_USER_NOTIF),
            step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let program = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
        // SAFETY: a switch of this thread alone; `program` and its instructions live through the second call, which makes
        // a descriptor that is nobody else's.
        unsafe {
            if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 {
                return Err(io::Error::last_os_error());
            }
            let made = libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
                &raw const program,
            );
            let made = i32::try_from(made).expect("a descriptor's number");
            if made < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(made)) }
        }
    }

    fn call() -> Option<i32> {
        // SAFETY: the filter answers; without it an absent path would be refused.
        let result = unsafe { libc::syscall(FORBIDDEN, c"/no/such/file".as_ptr()) };
        (result != 0).then(|| io::Error::last_os_error().raw_os_error().expect("an error number"))
    }

    #[test]
    fn a_call_that_waits_is_received_once_and_gets_its_answer() {
        if let Err(error) = check_support() {
            eprintln!("skipped: no seccomp notifications: {error}");
            return;
        }
        let (give, take) = std::sync::mpsc::channel();
        let (go, wait) = std::sync::mpsc::channel();
        let caller = std::thread::spawn(move || {
            give.send(filter()).expect("a listener");
            wait.recv().expect("to go on");
            let first = call();
            (first, call())
        });
        let listener = match take.recv().expect("a filter") {
            Ok(fd) => Listener::new(fd).expect("one of a filter"),
            Err(error) => {
                eprintln!("skipped: no filter with a listener: {error}");
                return;
            }
        };
        assert_eq!(listener.receive().expect("it has users"), None);
        go.send(()).expect("a thread");
        let until = Instant::now() + Duration::from_secs(10);
        for errno in [libc::ENOSYS, libc::EPERM] {
            let seen = loop {
                match listener.receive().expect("it has users") {
                    Some(seen) => break seen,
                    None => assert!(Instant::now() < until, "nothing came"),
                }
            };
            assert_eq!(i64::from(seen.number), FORBIDDEN);
            assert_ne!(seen.arch, 0);
            assert_eq!(listener.receive().expect("it has users"), None);
            listener.refuse(&seen, errno).expect("it waits");
            // Nobody waits for this one any more.
            listener.refuse(&seen, errno).ok();
        }
        assert_eq!(caller.join().expect("it ends"), (Some(libc::ENOSYS), Some(libc::EPERM)));
        let gone = loop {
            match listener.receive() {
                Ok(None) => assert!(Instant::now() < until, "the last user has gone"),
                other => break other,
            }
        };
        assert_eq!(gone.expect_err("no users").kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn another_descriptor_is_refused() {
        let (read, _write) = rustix::pipe::pipe().expect("a pipe");
        assert_eq!(Listener::new(read).expect_err("a pipe").kind(), io::ErrorKind::InvalidData);
    }
}
