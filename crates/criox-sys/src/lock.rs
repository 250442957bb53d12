//! Lock files as containers/storage keeps them: a byte-range lock over the whole file, and 64 bytes of content that
//! change with every write to the data they guard.
//!
//! Others take POSIX record locks; these are open-file-description locks, which exclude each other and POSIX locks of
//! other processes, and aren't lost when some other descriptor of the file is closed (fcntl(2)). Threads of this
//! process exclude each other through the same kernel locks, after queueing on an in-process gate.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{CWD, Mode, OFlags};

use crate::durable::random_bytes;

/// How a lock is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockKind {
    /// With other readers.
    Shared,
    /// Alone.
    Exclusive,
}

/// A lock that couldn't be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else held it until the deadline.
    #[error("lock {} not free after {:.1} s (held by {})", path.display(), waited.as_secs_f64(), holder_text(*.holder))]
    Timeout {
        /// The lock file.
        path: PathBuf,
        /// How long was waited.
        waited: Duration,
        /// Process that holds it, when the kernel tells.
        holder: Option<i32>,
    },
    /// The file can't be opened, locked, read or written.
    #[error("{op} lock {}", path.display())]
    Io {
        /// What failed.
        op: &'static str,
        /// The lock file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

fn holder_text(holder: Option<i32>) -> String {
    holder.map_or_else(|| "an unknown process".into(), |pid| format!("process {pid}"))
}

/// The content of a lock file: differs whenever somebody wrote what it guards.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Token(Vec<u8>);

/// Length of a token on disk.
const TOKEN_LEN: usize = 64;

/// A lock file. Cheap to keep; the file is open only while a guard lives.
#[derive(Debug)]
pub struct LockFile {
    path: PathBuf,
    gate: Mutex<Gate>,
    freed: Condvar,
}

/// Who holds the lock in this process.
#[derive(Debug, Default)]
struct Gate {
    readers: usize,
    writer: bool,
    writers_waiting: usize,
}

/// Holds the lock until dropped.
#[derive(Debug)]
pub struct LockGuard<'a> {
    lock: &'a LockFile,
    kind: LockKind,
    file: File,
}

impl LockFile {
    /// Names a lock file; it is created (0644) at the first use, its directory must exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), gate: Mutex::default(), freed: Condvar::new() }
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the lock, at most `patience`.
    ///
    /// # Errors
    /// [`LockError::Timeout`], or what opening and locking answered.
    pub fn lock(&self, kind: LockKind, patience: Duration) -> Result<LockGuard<'_>, LockError> {
        let start = Instant::now();
        self.pass_gate(kind, start, patience)?;
        match self.take(kind, start, patience) {
            Ok(file) => Ok(LockGuard { lock: self, kind, file }),
            Err(e) => {
                self.leave_gate(kind);
                Err(e)
            }
        }
    }

    /// Takes the lock if it is free now.
    ///
    /// # Errors
    /// What opening and locking answered.
    pub fn try_lock(&self, kind: LockKind) -> Result<Option<LockGuard<'_>>, LockError> {
        match self.lock(kind, Duration::ZERO) {
            Ok(guard) => Ok(Some(guard)),
            Err(LockError::Timeout { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The token as it stands now, without taking the lock: equal to a remembered one means that nothing was written.
    ///
    /// # Errors
    /// What reading answered; a missing file has the empty token.
    pub fn peek(&self) -> Result<Token, LockError> {
        match rustix::fs::openat(CWD, &self.path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(fd) => read_token(&File::from(fd)).map_err(|e| self.io("read", e)),
            Err(rustix::io::Errno::NOENT) => Ok(Token::default()),
            Err(e) => Err(self.io("open", e.into())),
        }
    }

    fn gate(&self) -> MutexGuard<'_, Gate> {
        // The counters are changed in single steps, so a panicking holder leaves them consistent.
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pass_gate(&self, kind: LockKind, start: Instant, patience: Duration) -> Result<(), LockError> {
        let mut gate = self.gate();
        let exclusive = kind == LockKind::Exclusive;
        gate.writers_waiting += usize::from(exclusive);
        loop {
            let free = !gate.writer && if exclusive { gate.readers == 0 } else { gate.writers_waiting == 0 };
            let waited = start.elapsed();
            if free || waited >= patience {
                gate.writers_waiting -= usize::from(exclusive);
                if !free {
                    drop(gate);
                    self.freed.notify_all();
                    return Err(self.timeout(waited, Some(std::process::id().cast_signed())));
                }
                if exclusive {
                    gate.writer = true;
                } else {
                    gate.readers += 1;
                }
                return Ok(());
            }
            gate = self.freed.wait_timeout(gate, patience - waited).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn leave_gate(&self, kind: LockKind) {
        let mut gate = self.gate();
        match kind {
            LockKind::Exclusive => gate.writer = false,
            LockKind::Shared => gate.readers -= 1,
        }
        drop(gate);
        self.freed.notify_all();
    }

    fn take(&self, kind: LockKind, start: Instant, patience: Duration) -> Result<File, LockError> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, &self.path, flags, Mode::from_raw_mode(0o644))
            .map_err(|e| self.io("open", e.into()))?;
        let file = File::from(fd);
        let mut pause = Duration::from_micros(500);
        while !set_lock(&file, kind).map_err(|e| self.io("take", e))? {
            let waited = start.elapsed();
            if waited >= patience {
                return Err(self.timeout(waited, holder(&file, kind)));
            }
            std::thread::sleep(pause.min(patience - waited));
            pause = (pause * 2).min(Duration::from_millis(10));
        }
        Ok(file)
    }

    fn timeout(&self, waited: Duration, holder: Option<i32>) -> LockError {
        LockError::Timeout { path: self.path.clone(), waited, holder }
    }

    fn io(&self, op: &'static str, source: io::Error) -> LockError {
        LockError::Io { op, path: self.path.clone(), source }
    }
}

impl LockGuard<'_> {
    /// The token that the last writer left; empty before the first write.
    ///
    /// # Errors
    /// What reading answered.
    pub fn token(&self) -> Result<Token, LockError> {
        read_token(&self.file).map_err(|e| self.lock.io("read", e))
    }

    /// Writes a fresh token, and returns it: to be called *before* the guarded data changes, so that a crash between
    /// makes others reload needlessly rather than miss a change.
    ///
    /// # Errors
    /// What writing answered; `InvalidInput` when the lock is only shared.
    pub fn record_write(&self) -> Result<Token, LockError> {
        if self.kind != LockKind::Exclusive {
            return Err(self.lock.io("write a shared", io::ErrorKind::InvalidInput.into()));
        }
        let token = fresh_token();
        self.file.write_all_at(&token, 0).map_err(|e| self.lock.io("write", e))?;
        Ok(Token(token.to_vec()))
    }

    /// How it is held.
    pub fn kind(&self) -> LockKind {
        self.kind
    }
}

/// An exclusive lock that owns its file, without a gate: marks a directory as in use for as long as it lives.
#[derive(Debug)]
pub struct HeldLock {
    path: PathBuf,
    file: File,
}

impl HeldLock {
    /// Takes the lock of `path` (created if missing) if it is free now.
    ///
    /// # Errors
    /// What opening and locking answered.
    pub fn try_new(path: &Path) -> Result<Option<Self>, LockError> {
        let io = |op, source| LockError::Io { op, path: path.to_owned(), source };
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = rustix::fs::openat(CWD, path, flags, Mode::from_raw_mode(0o644))
            .map_err(|e| io("open", e.into()))?;
        let file = File::from(fd);
        match set_lock(&file, LockKind::Exclusive) {
            Ok(true) => Ok(Some(Self { path: path.to_owned(), file })),
            Ok(false) => Ok(None),
            Err(e) => Err(io("take", e)),
        }
    }

    /// Whether the path still names the file that is locked.
    ///
    /// # Errors
    /// What looking at the files answered, other than a missing path.
    pub fn is_current(&self) -> Result<bool, LockError> {
        is_named(&self.file, &self.path).map_err(|source| LockError::Io {
            op: "look at",
            path: self.path.clone(),
            source,
        })
    }
}

fn is_named(file: &File, path: &Path) -> io::Result<bool> {
    let held = rustix::fs::fstat(file)?;
    match rustix::fs::lstat(path) {
        Ok(named) => Ok((named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)),
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

impl Drop for LockGuard<'_> {
    fn drop(&mut self) {
        // Unlocked by hand: a thread that waits at the gate must find the kernel's lock free, and the descriptor is
        // closed only after this.
        let mut request = whole_file(libc::F_UNLCK);
        // SAFETY: the descriptor is open and `request` is a live flock structure. Closing unlocks if this fails.
        unsafe { libc::fcntl(self.file.as_raw_fd(), libc::F_OFD_SETLK, &raw mut request) };
        self.lock.leave_gate(self.kind);
    }
}

fn read_token(file: &File) -> io::Result<Token> {
    let mut bytes = [0u8; TOKEN_LEN];
    let mut filled = 0;
    while filled < TOKEN_LEN {
        match file.read_at(&mut bytes[filled..], filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(Token(bytes[..filled].to_vec()))
}

/// 8 bytes of time, 8 of a counter, 4 of the process ID, 44 random.
fn fresh_token() -> [u8; TOKEN_LEN] {
    static COUNTER: AtomicU64 = AtomicU64::new(1);
    let mut token = [0u8; TOKEN_LEN];
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let nanos = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
    token[..8].copy_from_slice(&nanos.to_le_bytes());
    token[8..16].copy_from_slice(&COUNTER.fetch_add(1, Ordering::Relaxed).to_le_bytes());
    token[16..20].copy_from_slice(&std::process::id().to_le_bytes());
    token[20..].copy_from_slice(&random_bytes::<44>());
    token
}

/// A lock request over the whole file.
fn whole_file(kind: libc::c_int) -> libc::flock {
    libc::flock {
        l_type: libc::c_short::try_from(kind).unwrap_or(0),
        l_whence: libc::c_short::try_from(libc::SEEK_SET).unwrap_or(0),
        l_start: 0,
        l_len: 0,
        // Open-file-description locks demand zero here.
        l_pid: 0,
    }
}

fn lock_type(kind: LockKind) -> libc::c_int {
    match kind {
        LockKind::Shared => libc::F_RDLCK,
        LockKind::Exclusive => libc::F_WRLCK,
    }
}

/// Tries to lock; false if somebody holds it.
fn set_lock(file: &File, kind: LockKind) -> io::Result<bool> {
    let mut request = whole_file(lock_type(kind));
    // SAFETY: the descriptor is open and `request` is a live flock structure that the kernel reads.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw mut request) };
    if result == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::EACCES | libc::EINTR) => Ok(false),
        _ => Err(error),
    }
}

/// The process in the way, if it holds a POSIX lock (open-file-description locks show none).
fn holder(file: &File, kind: LockKind) -> Option<i32> {
    let mut request = whole_file(lock_type(kind));
    // SAFETY: the descriptor is open and `request` is a live flock structure that the kernel fills.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut request) };
    (result == 0 && request.l_pid > 0).then_some(request.l_pid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn a_token_is_empty_first_and_new_with_every_write() {
        let dir = tempfile::tempdir().unwrap();
        let lock = LockFile::new(dir.path().join("a.lock"));
        let guard = lock.lock(LockKind::Exclusive, PATIENCE).unwrap();
        assert_eq!(guard.token().unwrap(), Token::default());
        let first = guard.record_write().unwrap();
        assert_eq!(guard.token().unwrap(), first);
        assert_ne!(guard.record_write().unwrap(), first);
        drop(guard);
        assert_eq!(std::fs::metadata(lock.path()).unwrap().len(), 64);
        assert!(lock.lock(LockKind::Shared, PATIENCE).unwrap().record_write().is_err());
    }

    #[test]
    fn readers_share_and_a_writer_waits_with_a_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.lock");
        // Two objects for one file: only the kernel's lock is between them.
        let (one, other) = (LockFile::new(&path), LockFile::new(&path));
        let first = one.lock(LockKind::Shared, PATIENCE).unwrap();
        let second = other.lock(LockKind::Shared, PATIENCE).unwrap();
        drop(second);
        let error = other.lock(LockKind::Exclusive, Duration::from_millis(30)).unwrap_err();
        assert!(matches!(error, LockError::Timeout { .. }), "{error}");
        assert!(error.to_string().contains("a.lock"), "{error}");
        assert!(one.try_lock(LockKind::Exclusive).unwrap().is_none());
        drop(first);
        assert!(one.try_lock(LockKind::Exclusive).unwrap().is_some());
    }

    #[test]
    fn a_posix_lock_of_another_process_is_respected_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.lock");
        let script = format!(
            "import fcntl,os,sys\nf=os.open({:?},os.O_RDWR|os.O_CREAT)\nfcntl.lockf(f,fcntl.LOCK_EX)\nprint('held',flush=True)\nsys.stdin.read()\n",
            path.to_str().unwrap()
        );
        let spawned = std::process::Command::new("python3")
            .args(["-c", &script])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn();
        let Ok(mut child) = spawned else {
            eprintln!("skipped: needs python3 as the other process");
            return;
        };
        let mut line = String::new();
        io::BufRead::read_line(&mut io::BufReader::new(child.stdout.take().unwrap()), &mut line).unwrap();
        let lock = LockFile::new(&path);
        let error = lock.lock(LockKind::Shared, Duration::from_millis(20)).unwrap_err();
        assert!(error.to_string().contains(&format!("process {}", child.id())), "{error}");
        drop(child.stdin.take());
        child.wait().unwrap();
        lock.lock(LockKind::Shared, PATIENCE).unwrap();
    }

    #[test]
    fn threads_never_overlap_in_an_exclusive_section() {
        let dir = tempfile::tempdir().unwrap();
        let lock = Arc::new(LockFile::new(dir.path().join("a.lock")));
        let counter = Arc::new((Mutex::new(0u32), AtomicU64::new(0)));
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let (lock, counter) = (lock.clone(), counter.clone());
                std::thread::spawn(move || {
                    for _ in 0..50 {
                        let _guard = lock.lock(LockKind::Exclusive, PATIENCE).unwrap();
                        assert_eq!(counter.1.fetch_add(1, Ordering::SeqCst), 0);
                        *counter.0.lock().unwrap() += 1;
                        counter.1.fetch_sub(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
        assert_eq!(*counter.0.lock().unwrap(), 400);
    }

    #[test]
    fn a_removed_lock_file_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.lock");
        let held = HeldLock::try_new(&path).unwrap().unwrap();
        assert!(HeldLock::try_new(&path).unwrap().is_none());
        assert!(held.is_current().unwrap());
        std::fs::remove_file(&path).unwrap();
        assert!(!held.is_current().unwrap());
    }
}
