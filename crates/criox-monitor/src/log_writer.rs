//! Log files and the thread that writes them. Regular files don't poll and a write may wait for a slow or hung
//! disk: only this thread waits with it. It is started with the first log.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

use crate::clock;
use crate::log::{Splitter, Stream, timestamp};

const STACK: usize = 64 * 1024;
/// Answers that are held back for others at most.
const MAX_ANSWERS: usize = 16;
/// Bytes that may be written before that is told, where nobody waits for it.
const MAX_UNTOLD: usize = 128 * 1024;

/// What the thread is asked for.
pub(crate) enum Job {
    Open {
        log: u32,
        path: PathBuf,
        limit: i64,
    },
    Write {
        log: u32,
        data: Vec<u8>,
        records: u64,
    },
    Reopen {
        log: u32,
        client: u32,
        request: u64,
    },
    /// `forget`: remove the file if opening made it (the creation has failed).
    Close {
        log: u32,
        forget: bool,
    },
}

/// What the thread answers.
pub(crate) enum Done {
    Opened {
        log: u32,
        result: Result<(), String>,
    },
    /// The data's buffer comes back to be used again.
    Written {
        log: u32,
        data: Vec<u8>,
        dropped: u64,
    },
    Reopened {
        client: u32,
        request: u64,
        result: Result<(), String>,
    },
}

/// The loop's end. The channels are bounded by what the loop lets wait per log (`stream::MAX_QUEUED`).
pub(crate) struct LogWriter {
    jobs: Option<Sender<Job>>,
    shared: Arc<Shared>,
}

struct Shared {
    answers: Mutex<Answers>,
    wake: OwnedFd,
}

#[derive(Default)]
struct Answers {
    done: Vec<Done>,
    /// Bytes told as written in `done`.
    bytes: usize,
    /// Somebody waits for what is written.
    hurry: bool,
}

impl Shared {
    fn answers(&self) -> std::sync::MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LogWriter {
    pub(crate) fn new() -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { jobs: None, shared: Arc::new(Shared { answers: Mutex::default(), wake }) })
    }

    /// Readable when there are answers.
    pub(crate) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.shared.wake.as_fd()
    }

    pub(crate) fn send(&mut self, job: Job) -> io::Result<()> {
        if self.jobs.is_none() {
            let (sender, receiver) = channel();
            let shared = Arc::clone(&self.shared);
            std::thread::Builder::new()
                .name("log-writer".into())
                .stack_size(STACK)
                .spawn(move || run(&receiver, &shared))?;
            self.jobs = Some(sender);
        }
        let Some(jobs) = &self.jobs else { return Ok(()) };
        jobs.send(job).map_err(|_| io::Error::other("the log writer has ended"))
    }

    pub(crate) fn take_done(&self) -> Vec<Done> {
        let _ = rustix::io::read(&self.shared.wake, &mut [0; 8]);
        std::mem::take(&mut *self.shared.answers()).done
    }

    /// From now to the next [`LogWriter::take_done`] what is written is told at once. Otherwise it may be told when
    /// some more is written: nobody waits for it.
    pub(crate) fn hurry(&self) {
        let mut answers = self.shared.answers();
        answers.hurry = true;
        if !answers.done.is_empty() {
            let _ = rustix::io::write(&self.shared.wake, &1_u64.to_ne_bytes());
        }
    }
}

fn run(jobs: &Receiver<Job>, shared: &Shared) {
    let mut files: BTreeMap<u32, LogFile> = BTreeMap::new();
    while let Ok(first) = jobs.recv() {
        let mut all = Vec::new();
        // All that waits is answered with one wake-up.
        let mut next = Some(first);
        while let Some(job) = next {
            all.extend(work(&mut files, job));
            next = if all.len() < MAX_ANSWERS { jobs.try_recv().ok() } else { None };
        }
        tell(shared, &mut all);
    }
}

fn tell(shared: &Shared, all: &mut Vec<Done>) {
    let mut awaited = false;
    let mut bytes = 0;
    for done in &*all {
        match done {
            Done::Written { data, .. } => bytes += data.len(),
            Done::Opened { .. } | Done::Reopened { .. } => awaited = true,
        }
    }
    let mut answers = shared.answers();
    answers.done.append(all);
    answers.bytes += bytes;
    if awaited || (!answers.done.is_empty() && (answers.hurry || answers.bytes >= MAX_UNTOLD)) {
        drop(answers);
        let _ = rustix::io::write(&shared.wake, &1_u64.to_ne_bytes());
    }
}

fn work(files: &mut BTreeMap<u32, LogFile>, job: Job) -> Option<Done> {
    match job {
        Job::Open { log, path, limit } => {
            let opened = LogFile::open(path, limit).map(|file| drop(files.insert(log, file)));
            Some(Done::Opened { log, result: opened })
        }
        Job::Write { log, data, records } => {
            let dropped = files.get_mut(&log).map_or(records, |file| file.write(&data, records));
            Some(Done::Written { log, data, dropped })
        }
        Job::Reopen { log, client, request } => {
            let result = files.get_mut(&log).map_or_else(|| Err("the log is closed".into()), LogFile::reopen);
            Some(Done::Reopened { client, request, result })
        }
        Job::Close { log, forget } => {
            if let Some(file) = files.remove(&log)
                && forget
                && file.created
            {
                let _ = std::fs::remove_file(&file.path);
            }
            None
        }
    }
}

struct LogFile {
    path: PathBuf,
    file: std::fs::File,
    created: bool,
    /// Bytes after which the file is begun anew; not positive: none.
    limit: i64,
    size: u64,
    /// Records lost since the last successful write.
    lost: u64,
}

impl LogFile {
    fn open(path: PathBuf, limit: i64) -> Result<Self, String> {
        let (file, created, size) = open(&path)?;
        Ok(Self { path, file, created, limit, size, lost: 0 })
    }

    /// Errors leave the old file in use and no new one behind.
    fn reopen(&mut self) -> Result<(), String> {
        let (file, _, size) = open(&self.path)?;
        (self.file, self.size) = (file, size);
        Ok(())
    }

    /// Writes whole records; returns how many were lost.
    fn write(&mut self, data: &[u8], records: u64) -> u64 {
        if self.lost > 0 && self.note_losses().is_err() {
            self.lost += records;
            return records;
        }
        let mut rest = data;
        while !rest.is_empty() {
            let part = self.next_part(rest);
            if self.append(&rest[..part]).is_err() {
                let lost = memchr::memchr_iter(b'\n', rest).count() as u64;
                self.lost += lost;
                return lost;
            }
            rest = &rest[part..];
        }
        0
    }

    /// How much of `data` goes into the present file, which is begun anew where not one record fits.
    fn next_part(&mut self, data: &[u8]) -> usize {
        let Ok(limit @ 1..) = u64::try_from(self.limit) else { return data.len() };
        let room = usize::try_from(limit.saturating_sub(self.size)).unwrap_or(usize::MAX);
        if data.len() <= room {
            return data.len();
        }
        if let Some(end) = memchr::memrchr(b'\n', &data[..room]) {
            return end + 1;
        }
        if self.size > 0 {
            self.begin_anew();
            return self.next_part(data);
        }
        memchr::memchr(b'\n', data).map_or(data.len(), |end| end + 1)
    }

    /// A new file takes the name, so that a reader of the old one keeps it whole.
    fn begin_anew(&mut self) {
        let mut new = self.path.clone().into_os_string();
        new.push(".tmp");
        let new = PathBuf::from(new);
        let _ = std::fs::remove_file(&new);
        let replaced = open(&new).and_then(|(file, ..)| {
            std::fs::rename(&new, &self.path).map(|()| file).map_err(|e| e.to_string())
        });
        match replaced {
            Ok(file) => self.file = file,
            Err(_) => {
                let _ = std::fs::remove_file(&new);
                let _ = self.file.set_len(0);
            }
        }
        self.size = 0;
    }

    /// All or nothing: half a record would corrupt the next.
    fn append(&mut self, data: &[u8]) -> io::Result<()> {
        match self.file.write_all(data) {
            Ok(()) => {
                self.size += data.len() as u64;
                Ok(())
            }
            Err(error) => {
                // Only what this call added; the file may have been shortened under us meanwhile.
                if self.file.metadata().is_ok_and(|meta| meta.len() > self.size) {
                    let _ = self.file.set_len(self.size);
                }
                self.size = self.file.metadata().map_or(self.size, |meta| meta.len());
                Err(error)
            }
        }
    }

    fn note_losses(&mut self) -> io::Result<()> {
        let mut note = Vec::new();
        let text = format!("criox: {} log lines were lost here: the log could not be written\n", self.lost);
        Splitter::new(Stream::Stderr).feed(text.as_bytes(), &timestamp(clock::now()), &mut note);
        self.append(&note)?;
        self.lost = 0;
        Ok(())
    }
}

/// Opens a log to append, never through a link, and tells whether it was made, and its size.
fn open(path: &Path) -> Result<(std::fs::File, bool, u64), String> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let mut options = std::fs::OpenOptions::new();
    options.append(true).mode(0o640).custom_flags(i32::try_from(flags.bits()).unwrap_or(0));
    let failed = |error: io::Error| format!("could not open log {}: {error}", path.display());
    let (file, created) = match options.open(path) {
        Ok(file) => (file, false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            (options.create_new(true).open(path).map_err(failed)?, true)
        }
        Err(error) => return Err(failed(error)),
    };
    let meta = file.metadata().map_err(failed)?;
    if !meta.is_file() || meta.nlink() != 1 {
        return Err(format!("log {} is no regular file of one name", path.display()));
    }
    Ok((file, created, meta.len()))
}
