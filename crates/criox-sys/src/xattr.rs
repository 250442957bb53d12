//! Extended attributes by descriptor; `O_PATH` descriptors, also of symbolic links and device nodes, work too.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

/// The name under which the kernel gives access to the very object behind a descriptor, `O_PATH` included.
fn magic(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Sets attribute `name`.
///
/// # Errors
/// What the kernel answered (`Unsupported` when the filesystem has no such attributes).
pub fn set(fd: BorrowedFd<'_>, name: &OsStr, value: &[u8]) -> io::Result<()> {
    let name = CString::new(name.as_bytes())?;
    match rustix::fs::fsetxattr(fd, name.as_c_str(), value, XattrFlags::empty()) {
        Err(Errno::BADF) => Ok(rustix::fs::setxattr(magic(fd), name.as_c_str(), value, XattrFlags::empty())?),
        result => Ok(result?),
    }
}

/// The value of attribute `name`, `None` if it isn't set or not supported.
///
/// # Errors
/// What the kernel answered otherwise.
pub fn get(fd: BorrowedFd<'_>, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
    let name = CString::new(name.as_bytes())?;
    // The largest value that the VFS lets through.
    let mut value = vec![0u8; 65536];
    let result = match rustix::fs::fgetxattr(fd, name.as_c_str(), &mut value[..]) {
        Err(Errno::BADF) => rustix::fs::getxattr(magic(fd), name.as_c_str(), &mut value[..]),
        result => result,
    };
    match result {
        Ok(len) => {
            value.truncate(len);
            Ok(Some(value))
        }
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// The names of all attributes.
///
/// # Errors
/// What the kernel answered; a filesystem without attributes has none.
pub fn list(fd: BorrowedFd<'_>) -> io::Result<Vec<OsString>> {
    let mut names = vec![0u8; 65536];
    let result = match rustix::fs::flistxattr(fd, &mut names[..]) {
        Err(Errno::BADF) => rustix::fs::listxattr(magic(fd), &mut names[..]),
        result => result,
    };
    let len = match result {
        Ok(len) => len,
        Err(Errno::OPNOTSUPP) => 0,
        Err(e) => return Err(e.into()),
    };
    let names = names[..len].split(|&b| b == 0).filter(|name| !name.is_empty());
    Ok(names.map(|name| OsStr::from_bytes(name).to_owned()).collect())
}

/// Removes attribute `name`; one that isn't set is success.
///
/// # Errors
/// What the kernel answered otherwise.
pub fn remove(fd: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let name = CString::new(name.as_bytes())?;
    let result = match rustix::fs::fremovexattr(fd, name.as_c_str()) {
        Err(Errno::BADF) => rustix::fs::removexattr(magic(fd), name.as_c_str()),
        result => result,
    };
    match result {
        Ok(()) | Err(Errno::NODATA) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, Mode, OFlags};
    use std::os::fd::AsFd;

    #[test]
    fn a_path_descriptor_of_a_symbolic_link_reaches_the_link_itself() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: trusted attributes need root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        std::fs::create_dir(&target).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let name = OsStr::new("trusted.criox");
        let fd =
            rustix::fs::openat(CWD, &link, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
                .unwrap();
        if let Err(e) = set(fd.as_fd(), name, b"value") {
            eprintln!("skipped: the filesystem of the temporary directory refuses trusted attributes: {e}");
            return;
        }
        assert_eq!(get(fd.as_fd(), name).unwrap().as_deref(), Some(&b"value"[..]));
        assert_eq!(list(fd.as_fd()).unwrap(), [name]);
        let target =
            rustix::fs::openat(CWD, &target, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        assert_eq!(get(target.as_fd(), name).unwrap(), None);
        remove(fd.as_fd(), name).unwrap();
        remove(fd.as_fd(), name).unwrap();
        assert_eq!(get(fd.as_fd(), name).unwrap(), None);
    }
}
