//! Mounts: overlay, bind and tmpfs by the new mount API, propagation, and what `/proc/self/mountinfo` says.

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};

/// A mount operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("{op} {}{}{detail}", target.display(), if detail.is_empty() { "" } else { ": the kernel says: " })]
pub struct MountError {
    /// The operation, as a verb.
    pub op: &'static str,
    /// The mount point or the source that was refused.
    pub target: PathBuf,
    /// What the filesystem wrote into its context's log, if anything.
    pub detail: String,
    /// The system's answer.
    #[source]
    pub source: io::Error,
}

impl MountError {
    pub(crate) fn new(op: &'static str, target: &Path, source: impl Into<io::Error>) -> Self {
        Self { op, target: target.to_owned(), detail: String::new(), source: source.into() }
    }

    /// The error number, for callers that branch on it.
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }
}

/// One line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)); paths are unescaped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountInfo {
    /// Mount ID.
    pub id: u64,
    /// ID of the parent mount.
    pub parent: u64,
    /// Device numbers of the filesystem.
    pub major: u32,
    /// See `major`.
    pub minor: u32,
    /// Path inside the filesystem that is mounted.
    pub root: PathBuf,
    /// Where it is mounted, relative to the process's root.
    pub mount_point: PathBuf,
    /// Options of the mount, such as `rw,nosuid`.
    pub options: String,
    /// Optional fields: `shared:N`, `master:N`, `propagate_from:N`, `unbindable`.
    pub propagation: Vec<String>,
    /// Filesystem type.
    pub fs_type: String,
    /// Source as the filesystem shows it.
    pub source: OsString,
    /// Options of the filesystem.
    pub super_options: String,
}

impl MountInfo {
    /// Whether mounts below it propagate to peers (`shared:N`).
    pub fn is_shared(&self) -> bool {
        self.propagation.iter().any(|field| field.starts_with("shared:"))
    }

    /// Whether it receives mounts from a master (`master:N`).
    pub fn is_slave(&self) -> bool {
        self.propagation.iter().any(|field| field.starts_with("master:"))
    }
}

/// The mounts of this process's mount namespace, in the order of the kernel.
///
/// # Errors
/// What reading `/proc/self/mountinfo` answered. Lines that don't parse are left out.
pub fn mountinfo() -> io::Result<Vec<MountInfo>> {
    Ok(parse_mountinfo(&std::fs::read("/proc/self/mountinfo")?))
}

/// Parses the text of a mountinfo file; lines that don't parse are left out.
pub fn parse_mountinfo(text: &[u8]) -> Vec<MountInfo> {
    text.split(|&b| b == b'\n').filter_map(parse_mountinfo_line).collect()
}

fn parse_mountinfo_line(line: &[u8]) -> Option<MountInfo> {
    let mut fields = line.split(|&b| b == b' ');
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let id = text(fields.next()?).parse().ok()?;
    let parent = text(fields.next()?).parse().ok()?;
    let device = text(fields.next()?);
    let (major, minor) = device.split_once(':')?;
    let root = PathBuf::from(unescape(fields.next()?));
    let mount_point = PathBuf::from(unescape(fields.next()?));
    let options = text(fields.next()?);
    let propagation = fields.by_ref().take_while(|&field| field != b"-").map(text).collect();
    Some(MountInfo {
        id,
        parent,
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        root,
        mount_point,
        options,
        propagation,
        fs_type: text(fields.next()?),
        source: unescape(fields.next()?),
        super_options: text(fields.next()?),
    })
}

/// Undoes the kernel's octal escapes (`\040` for a space).
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = |digit: u8| (b'0'..=b'7').contains(&digit).then(|| u32::from(digit - b'0'));
        if first == b'\\'
            && let [a, b, c, after @ ..] = tail
            && let (Some(a), Some(b), Some(c)) = (octal(*a), octal(*b), octal(*c))
            && let Ok(byte) = u8::try_from(a * 64 + b * 8 + c)
        {
            bytes.push(byte);
            rest = after;
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    OsString::from_vec(bytes)
}

/// Whether `path` is the root of a mount (statx's mount-root attribute, Linux 5.8). Symbolic links in the last
/// component are not followed; a missing path is no mount point. A mount that another one hides is not seen.
///
/// # Errors
/// What statx answered, other than a missing path.
pub fn is_mount_point(path: &Path) -> Result<bool, MountError> {
    match rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, StatxFlags::TYPE) {
        Ok(statx) => Ok(statx.stx_attributes.contains(rustix::fs::StatxAttributes::MOUNT_ROOT)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
        Err(e) => Err(MountError::new("look at", path, e)),
    }
}

/// Binds `source` to `target` (both exist, of the same kind), with what is mounted below it if `recursive`, read-only
/// (recursively too, Linux 5.12) if `read_only`. `target` is not followed if it is a symbolic link.
///
/// # Errors
/// The step that failed; nothing is mounted then.
pub fn bind(source: &Path, target: &Path, recursive: bool, read_only: bool) -> Result<(), MountError> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let tree = rustix::mount::open_tree(CWD, source, flags)
        .map_err(|e| MountError::new("clone mount of", source, e))?;
    if read_only {
        set_attributes(tree.as_fd(), libc::MOUNT_ATTR_RDONLY, 0, recursive)
            .map_err(|e| MountError::new("make read-only the clone of", source, e))?;
    }
    attach(tree.as_fd(), target)
}

/// Binds `source` to `target` alone, without what is mounted below, and private: it neither sends nor receives mounts.
///
/// # Errors
/// The step that failed; nothing is mounted then.
pub fn bind_private(source: &Path, target: &Path) -> Result<(), MountError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(CWD, source, flags)
        .map_err(|e| MountError::new("clone mount of", source, e))?;
    let private = MountAttr { attr_set: 0, attr_clr: 0, propagation: libc::MS_PRIVATE, userns_fd: 0 };
    change(tree.as_fd(), &private, false)
        .map_err(|e| MountError::new("make private the clone of", source, e))?;
    attach(tree.as_fd(), target)
}

/// Sets and clears `MOUNT_ATTR_*` attributes of a mount by descriptor (mount_setattr(2)).
///
/// # Errors
/// What the kernel answered.
pub fn set_attributes(mount: BorrowedFd<'_>, set: u64, clear: u64, recursive: bool) -> io::Result<()> {
    change(mount, &MountAttr { attr_set: set, attr_clr: clear, propagation: 0, userns_fd: 0 }, recursive)
}

pub(crate) fn change(mount: BorrowedFd<'_>, attributes: &MountAttr, recursive: bool) -> io::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a NUL-terminated literal, the attribute block is live and its true size is passed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of::<MountAttr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `struct mount_attr` of mount_setattr(2), first version.
#[repr(C)]
pub(crate) struct MountAttr {
    pub(crate) attr_set: u64,
    pub(crate) attr_clr: u64,
    pub(crate) propagation: u64,
    pub(crate) userns_fd: u64,
}

/// Puts a detached mount at `target`, which is not followed if it is a symbolic link.
///
/// # Errors
/// What move_mount(2) answered.
pub fn attach(mount: BorrowedFd<'_>, target: &Path) -> Result<(), MountError> {
    rustix::mount::move_mount(mount, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|e| MountError::new("mount on", target, e))
}

/// Mounts a tmpfs on `target`: `size` in bytes (0 is the kernel's default, half of the memory), `mode` of its root,
/// `owner` of its root (user and group, as the caller's namespace numbers them; none: root), an SELinux mount label if
/// not empty. It is `nosuid,nodev,noexec`.
///
/// # Errors
/// The step that failed; nothing is mounted then.
pub fn tmpfs(
    target: &Path,
    size: u64,
    mode: u32,
    owner: Option<(u32, u32)>,
    label: &str,
) -> Result<(), MountError> {
    let context = Context::open("tmpfs", target)?;
    context.string("source", "tmpfs".as_ref())?;
    if size > 0 {
        context.string("size", size.to_string().as_ref())?;
    }
    context.string("mode", format!("{mode:o}").as_ref())?;
    if let Some((uid, gid)) = owner {
        context.string("uid", uid.to_string().as_ref())?;
        context.string("gid", gid.to_string().as_ref())?;
    }
    if !label.is_empty() {
        context.string("context", label.as_ref())?;
    }
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mount = context.mount(flags)?;
    attach(mount.as_fd(), target)
}

/// Mounts an overlay on `target`.
///
/// `lowers` go from the top to the bottom; `upper` and `work` are both given for a writable mount. `options` are the
/// words of a mount option string: those that are flags of a mount (`nodev`, `ro`, …) become flags, the others go to
/// overlayfs (`volatile`, `metacopy=on`, `context="…"`).
///
/// # Errors
/// The step that failed, with what overlayfs logged; nothing is mounted then.
pub fn overlay(
    lowers: &[PathBuf],
    upper: Option<&Path>,
    work: Option<&Path>,
    options: &[String],
    target: &Path,
) -> Result<(), MountError> {
    let (attributes, words) = split_options(options);
    // Asked by version, for an older kernel takes any option and refuses it only in the end, with a bare EINVAL.
    if !kernel_is_at_least(6, 5) {
        return overlay_by_string(lowers, upper, work, attributes, &words, target);
    }
    let context = Context::open("overlay", target)?;
    context.string("source", "overlay".as_ref())?;
    // Descriptors stay open until the filesystem is made: long paths are passed through them.
    let mut held = Vec::new();
    for lower in lowers {
        let value = short_path(lower, &mut held)?;
        context.string("lowerdir+", value.as_os_str())?;
    }
    for (key, path) in [("upperdir", upper), ("workdir", work)] {
        if let Some(path) = path {
            let value = short_path(path, &mut held)?;
            context.string(key, value.as_os_str())?;
        }
    }
    for word in &words {
        context.option(word)?;
    }
    let mount = context.mount(attributes)?;
    drop(held);
    attach(mount.as_fd(), target)
}

fn kernel_is_at_least(major: u32, minor: u32) -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (major, minor)
}

/// fsconfig(2) takes strings of at most 255 bytes; a longer path is named by a descriptor.
fn short_path(path: &Path, held: &mut Vec<OwnedFd>) -> Result<PathBuf, MountError> {
    if path.as_os_str().len() < 256 {
        return Ok(path.to_owned());
    }
    let fd = rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| MountError::new("open", path, e))?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    held.push(fd);
    Ok(short)
}

/// Splits option words into attributes of the mount and what the filesystem is to parse.
fn split_options(options: &[String]) -> (MountAttrFlags, Vec<&str>) {
    let mut attributes = MountAttrFlags::empty();
    let mut words = Vec::new();
    for word in options.iter().map(String::as_str) {
        match word {
            "" | "rw" | "suid" | "dev" | "exec" | "defaults" => {}
            "ro" => attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY,
            "nosuid" => attributes |= MountAttrFlags::MOUNT_ATTR_NOSUID,
            "nodev" => attributes |= MountAttrFlags::MOUNT_ATTR_NODEV,
            "noexec" => attributes |= MountAttrFlags::MOUNT_ATTR_NOEXEC,
            "noatime" => attributes |= MountAttrFlags::MOUNT_ATTR_NOATIME,
            "nodiratime" => attributes |= MountAttrFlags::MOUNT_ATTR_NODIRATIME,
            "strictatime" => attributes |= MountAttrFlags::MOUNT_ATTR_STRICTATIME,
            "relatime" => attributes |= MountAttrFlags::MOUNT_ATTR_RELATIME,
            other => words.push(other),
        }
    }
    (attributes, words)
}

/// Linux before 6.5: one option string through mount(2), at most a page long, with paths by descriptor when needed.
fn overlay_by_string(
    lowers: &[PathBuf],
    upper: Option<&Path>,
    work: Option<&Path>,
    attributes: MountAttrFlags,
    words: &[&str],
    target: &Path,
) -> Result<(), MountError> {
    let plain: Vec<PathBuf> = lowers.iter().map(|lower| escape_lower(lower)).collect();
    let mut held = Vec::new();
    let mut data = overlay_data(&plain, upper, work, words);
    if data.len() >= 4096 {
        // As long as there is room for a few digits each: the descriptors' names, relative to /proc/self/fd, would
        // need a change of the working directory; absolute ones still hold about 170 layers.
        let mut short = Vec::with_capacity(lowers.len());
        for lower in lowers {
            let fd = rustix::fs::openat(
                CWD,
                lower,
                OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .map_err(|e| MountError::new("open", lower, e))?;
            short.push(PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd())));
            held.push(fd);
        }
        data = overlay_data(&short, upper, work, words);
    }
    if data.len() >= 4096 {
        return Err(MountError::new("fit into one page the layers of", target, Errno::TOOBIG));
    }
    let data = CString::new(data).map_err(|_| MountError::new("mount on", target, Errno::INVAL))?;
    rustix::mount::mount("overlay", target, "overlay", legacy_flags(attributes), data.as_c_str())
        .map_err(|e| MountError::new("mount an overlay on", target, e))
}

fn overlay_data(lowers: &[PathBuf], upper: Option<&Path>, work: Option<&Path>, words: &[&str]) -> Vec<u8> {
    let mut data = b"lowerdir=".to_vec();
    for (n, lower) in lowers.iter().enumerate() {
        if n > 0 {
            data.push(b':');
        }
        data.extend_from_slice(lower.as_os_str().as_bytes());
    }
    for (key, path) in [(&b",upperdir="[..], upper), (&b",workdir="[..], work)] {
        if let Some(path) = path {
            data.extend_from_slice(key);
            data.extend_from_slice(escape(path.as_os_str().as_bytes(), b"\\,").as_slice());
        }
    }
    for word in words {
        data.push(b',');
        data.extend_from_slice(word.as_bytes());
    }
    data
}

fn escape_lower(path: &Path) -> PathBuf {
    PathBuf::from(OsString::from_vec(escape(path.as_os_str().as_bytes(), b"\\:,")))
}

fn escape(bytes: &[u8], special: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    for &byte in bytes {
        if special.contains(&byte) {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out
}

fn legacy_flags(attributes: MountAttrFlags) -> MountFlags {
    let pairs = [
        (MountAttrFlags::MOUNT_ATTR_RDONLY, MountFlags::RDONLY),
        (MountAttrFlags::MOUNT_ATTR_NOSUID, MountFlags::NOSUID),
        (MountAttrFlags::MOUNT_ATTR_NODEV, MountFlags::NODEV),
        (MountAttrFlags::MOUNT_ATTR_NOEXEC, MountFlags::NOEXEC),
        (MountAttrFlags::MOUNT_ATTR_NOATIME, MountFlags::NOATIME),
        (MountAttrFlags::MOUNT_ATTR_NODIRATIME, MountFlags::NODIRATIME),
        (MountAttrFlags::MOUNT_ATTR_STRICTATIME, MountFlags::STRICTATIME),
    ];
    pairs
        .into_iter()
        .filter(|(attr, _)| attributes.contains(*attr))
        .fold(MountFlags::empty(), |all, (_, flag)| all | flag)
}

/// A filesystem context (fsopen(2)) with the mount point that its errors name.
struct Context<'a> {
    fd: OwnedFd,
    target: &'a Path,
}

impl<'a> Context<'a> {
    fn open(fs_type: &str, target: &'a Path) -> Result<Self, MountError> {
        let fd = rustix::mount::fsopen(fs_type, FsOpenFlags::FSOPEN_CLOEXEC)
            .map_err(|e| MountError::new("open a filesystem context for", target, e))?;
        Ok(Self { fd, target })
    }

    fn string(&self, key: &str, value: &std::ffi::OsStr) -> Result<(), MountError> {
        rustix::mount::fsconfig_set_string(&self.fd, key, value)
            .map_err(|e| self.failed("set an option for", e))
    }

    fn option(&self, word: &str) -> Result<(), MountError> {
        let result = match word.split_once('=') {
            Some((key, value)) => {
                // Quotes only protect commas inside an option string.
                let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
                rustix::mount::fsconfig_set_string(&self.fd, key, value)
            }
            None => rustix::mount::fsconfig_set_flag(&self.fd, word),
        };
        result.map_err(|e| self.failed("set an option for", e))
    }

    fn mount(&self, attributes: MountAttrFlags) -> Result<OwnedFd, MountError> {
        rustix::mount::fsconfig_create(&self.fd).map_err(|e| self.failed("make the filesystem for", e))?;
        rustix::mount::fsmount(&self.fd, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
            .map_err(|e| self.failed("make the mount for", e))
    }

    fn failed(&self, op: &'static str, errno: Errno) -> MountError {
        MountError { op, target: self.target.to_owned(), detail: self.log(), source: errno.into() }
    }

    /// The context's log: one message a read, each with a class and a space before it.
    fn log(&self) -> String {
        let mut lines: Vec<String> = Vec::new();
        let mut buffer = [0u8; 512];
        while lines.len() < 8 {
            match rustix::io::read(&self.fd, &mut buffer) {
                Ok(n) if n > 0 => {
                    let line = String::from_utf8_lossy(&buffer[..n]);
                    lines.push(line.trim().trim_start_matches("e ").to_owned());
                }
                _ => break,
            }
        }
        lines.join("; ")
    }
}

/// Unmounts what is on top at `path`, without following a symbolic link; `detach` hides it at once and lets it end
/// when nobody uses it (MNT_DETACH). A path that is no mount point, or is missing, is success.
///
/// # Errors
/// What umount2 answered.
pub fn unmount(path: &Path, detach: bool) -> Result<(), MountError> {
    let mut flags = UnmountFlags::NOFOLLOW;
    if detach {
        flags |= UnmountFlags::DETACH;
    }
    match rustix::mount::unmount(path, flags) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        Err(e) => Err(MountError::new("unmount", path, e)),
    }
}

/// Makes the mount at `path` private (with all below it if `recursive`): it neither sends nor receives mounts.
///
/// # Errors
/// What the kernel answered; `path` must be a mount point.
pub fn make_private(path: &Path, recursive: bool) -> Result<(), MountError> {
    propagation(path, MountPropagationFlags::PRIVATE, recursive)
}

/// Makes the mount at `path` shared: mounts on it propagate to its peers.
///
/// # Errors
/// As [`make_private`].
pub fn make_shared(path: &Path, recursive: bool) -> Result<(), MountError> {
    propagation(path, MountPropagationFlags::SHARED, recursive)
}

/// Makes the mount at `path` a slave: it receives mounts from its former peers and sends none.
///
/// # Errors
/// As [`make_private`].
pub fn make_slave(path: &Path, recursive: bool) -> Result<(), MountError> {
    propagation(path, MountPropagationFlags::DOWNSTREAM, recursive)
}

fn propagation(path: &Path, kind: MountPropagationFlags, recursive: bool) -> Result<(), MountError> {
    let flags = if recursive { kind | MountPropagationFlags::REC } else { kind };
    rustix::mount::mount_change(path, flags)
        .map_err(|e| MountError::new("change the propagation of", path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_lines_are_taken_apart_and_unescaped() {
        let text = b"36 35 98:0 /mnt1 /mnt\\0402\\134x rw,noatime shared:1 master:2 - ext3 /dev/root rw,errors=continue\nbroken\n";
        let mounts = parse_mountinfo(text);
        assert_eq!(mounts.len(), 1);
        let mount = &mounts[0];
        assert_eq!(mount.mount_point, Path::new("/mnt 2\\x"));
        assert_eq!((mount.major, mount.minor, mount.id, mount.parent), (98, 0, 36, 35));
        assert!(mount.is_shared() && mount.is_slave());
        assert_eq!(mount.fs_type, "ext3");
        assert_eq!(mount.super_options, "rw,errors=continue");
    }

    #[test]
    fn the_own_mount_table_parses_wholly() {
        let text = std::fs::read("/proc/self/mountinfo").unwrap();
        let lines = text.split(|&b| b == b'\n').filter(|l| !l.is_empty()).count();
        assert_eq!(parse_mountinfo(&text).len(), lines);
    }

    #[test]
    fn proc_is_a_mount_point_and_its_entries_are_none() {
        assert!(is_mount_point(Path::new("/proc")).unwrap());
        assert!(!is_mount_point(Path::new("/proc/self")).unwrap());
        assert!(!is_mount_point(Path::new("/nonexistent-criox")).unwrap());
    }

    fn overlay_case(pad: usize, lower_count: usize) {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: mounting needs root");
            return;
        }
        let base = tempfile::tempdir().unwrap();
        let mut dir = base.path().to_owned();
        if pad > 0 {
            dir.push("x".repeat(pad));
            std::fs::create_dir(&dir).unwrap();
        }
        let make = |name: &str| {
            let path = dir.join(name);
            std::fs::create_dir(&path).unwrap();
            path
        };
        let lowers: Vec<PathBuf> = (0..lower_count).map(|n| make(&format!("lower{n}"))).collect();
        for (n, lower) in lowers.iter().enumerate() {
            crate::durable::write_atomic(&lower.join(format!("file{n}")), b"x", 0o644).unwrap();
        }
        let (upper, work, merged) = (make("upper"), make("work"), make("merged"));
        overlay(&lowers, Some(&upper), Some(&work), &["nodev".into(), "volatile".into()], &merged).unwrap();
        let mounted = is_mount_point(&merged).unwrap();
        let seen = std::fs::read_dir(&merged).unwrap().count();
        let written = crate::durable::write_atomic(&merged.join("new"), b"y", 0o600);
        unmount(&merged, true).unwrap();
        assert!(mounted);
        assert_eq!(seen, lower_count);
        written.unwrap();
        assert!(upper.join("new").exists());
        assert!(!is_mount_point(&merged).unwrap());
    }

    #[test]
    fn an_overlay_shows_its_lowers_and_writes_to_its_upper() {
        overlay_case(0, 3);
    }

    #[test]
    fn an_overlay_takes_many_lowers_with_long_paths() {
        overlay_case(240, 120);
    }

    #[test]
    fn an_option_string_does_what_the_new_calls_do() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: mounting needs root");
            return;
        }
        let base = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let path = base.path().join(name);
            std::fs::create_dir(&path).unwrap();
            path
        };
        let lowers: Vec<PathBuf> = (0..120).map(|n| make(&format!("lower:{n},{}", "y".repeat(60)))).collect();
        let (upper, work, merged) = (make("upper"), make("work"), make("merged"));
        crate::durable::write_atomic(&lowers[119].join("file"), b"x", 0o644).unwrap();
        overlay_by_string(&lowers, Some(&upper), Some(&work), MountAttrFlags::MOUNT_ATTR_NODEV, &[], &merged)
            .unwrap();
        let seen = merged.join("file").exists();
        unmount(&merged, true).unwrap();
        assert!(seen);
    }

    #[test]
    fn kernel_versions_compare_by_number() {
        assert!(kernel_is_at_least(4, 18));
        assert!(!kernel_is_at_least(400, 0));
    }

    #[test]
    fn a_refused_overlay_names_the_mount_point() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: mounting needs root");
            return;
        }
        let base = tempfile::tempdir().unwrap();
        let error = overlay(&[base.path().join("missing")], None, None, &[], base.path()).unwrap_err();
        assert!(error.to_string().contains(base.path().to_str().unwrap()), "{error}");
        assert!(!is_mount_point(base.path()).unwrap());
    }
}
