//! The way of records to systemd's journal, beside the log file: one datagram an entry, in the journal's native
//! protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL), with the fields that conmon sends.
//!
//! Nothing waits for the journal. What it does not take at once waits in a queue with a bound; when that is full,
//! records are dropped until half of it has gone, counted, and told in the journal itself as soon as it takes entries
//! again. A journal that is absent is looked for again, less and less often.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use rustix::event::epoll::EventFlags;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::net::{self, SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use crate::log::{self, Record, Splitter, Stream, timestamp};
use crate::monitor::{Monitor, Source, Timer};
use crate::{clock, tell};

/// Bytes of records that may wait, over all containers of the pod.
const MAX_WAITING: usize = 512 * 1024;
/// Memory of a batch beside its bytes, about.
const BATCH_COST: usize = 128;
/// Entries that are sent in one turn, so that a fast reader at the other end leaves the loop's other work its turns.
const MAX_TURN: usize = 256;
/// Containers whose losses are remembered to be told; those of others are only counted.
const MAX_LOSERS: usize = 64;
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(32);
/// What `journalctl` and conmon show of an ID.
const SHORT_ID: usize = 12;

/// The fields that all entries of a container have.
#[derive(Debug)]
pub(crate) struct Origin {
    fields: Vec<u8>,
    /// Records that were dropped and not yet told.
    lost: std::cell::Cell<u64>,
}

impl Origin {
    pub(crate) fn new(container_id: &str, name: &str) -> Rc<Self> {
        let mut fields = Vec::new();
        let short: String = container_id.chars().take(SHORT_ID).collect();
        field("CONTAINER_ID", short.as_bytes(), &mut fields);
        field("CONTAINER_ID_FULL", container_id.as_bytes(), &mut fields);
        if !name.is_empty() {
            field("CONTAINER_NAME", name.as_bytes(), &mut fields);
        }
        let identifier = if name.is_empty() { &short } else { name };
        field("SYSLOG_IDENTIFIER", identifier.as_bytes(), &mut fields);
        Rc::new(Self { fields, lost: 0.into() })
    }

    /// Makes the entry of a record.
    fn encode(&self, record: &Record<'_>, entry: &mut Vec<u8>) {
        entry.clear();
        field("MESSAGE", record.piece, entry);
        let priority = match record.stream {
            Stream::Stdout => b"6",
            Stream::Stderr => b"3",
        };
        field("PRIORITY", priority, entry);
        if record.partial {
            field("CONTAINER_PARTIAL_MESSAGE", b"true", entry);
        }
        entry.extend_from_slice(&self.fields);
    }
}

/// `NAME=value`, or the form with a length where the value has a newline, which would end it.
fn field(name: &str, value: &[u8], entry: &mut Vec<u8>) {
    entry.extend_from_slice(name.as_bytes());
    if memchr::memchr(b'\n', value).is_none() {
        entry.push(b'=');
    } else {
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    }
    entry.extend_from_slice(value);
    entry.push(b'\n');
}

/// Records that wait, from `at` on.
struct Batch {
    origin: Rc<Origin>,
    data: Vec<u8>,
    at: usize,
}

/// What the loop is to wake us for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    Nothing,
    /// Room in the journal's socket.
    Room,
    /// Another try to reach it.
    Retry(Duration),
}

/// Why an entry was not sent.
enum Refusal {
    /// No room.
    Later,
    /// Nobody listens.
    Gone(Errno),
    /// This entry can't be sent.
    Entry(Errno),
}

/// The connection with the journal, one for the pod.
#[derive(Default)]
pub(crate) struct Journal {
    path: PathBuf,
    socket: Option<OwnedFd>,
    /// In the loop's set.
    watched: bool,
    /// Nobody listened: asked again when the timer says.
    rests: bool,
    timed: bool,
    retry: Option<Duration>,
    waiting: VecDeque<Batch>,
    /// Of `waiting`, with what it costs beside.
    bytes: usize,
    full: bool,
    losers: Vec<Rc<Origin>>,
    /// In all.
    pub(crate) dropped: u64,
    told: bool,
    entry: Vec<u8>,
}

impl Journal {
    /// Takes the journal's socket from a request.
    pub(crate) fn point_at(&mut self, path: &Path) {
        if self.path != path {
            path.clone_into(&mut self.path);
            (self.socket, self.watched) = (None, false);
            if !self.waiting.is_empty() {
                (self.rests, self.retry) = (true, Some(FIRST_RETRY));
            }
        }
    }

    /// Takes whole records in; sends them, keeps them, or counts them as lost.
    fn take(&mut self, origin: &Rc<Origin>, data: &[u8], records: u64) {
        if self.full {
            return self.lose(origin, records);
        }
        if origin.lost.get() > 0 {
            self.tell_losses(origin);
        }
        let direct = self.waiting.is_empty() && !self.rests;
        let at = if direct { self.pass(origin, data, MAX_TURN).0 } else { 0 };
        self.keep(origin, &data[at..]);
    }

    /// Keeps what fits; never nothing where nothing waits, for a record is far shorter than the bound.
    fn keep(&mut self, origin: &Rc<Origin>, rest: &[u8]) {
        let room = MAX_WAITING.saturating_sub(self.bytes + BATCH_COST);
        let kept = match rest.get(..room) {
            None => rest.len(),
            Some(fits) => memchr::memrchr(b'\n', fits).map_or(0, |end| end + 1),
        };
        if kept > 0 {
            self.push(origin, rest[..kept].to_vec());
        }
        if kept < rest.len() {
            self.full = true;
            self.lose(origin, memchr::memchr_iter(b'\n', &rest[kept..]).count() as u64);
        }
    }

    fn push(&mut self, origin: &Rc<Origin>, data: Vec<u8>) {
        self.bytes += data.len() + BATCH_COST;
        self.waiting.push_back(Batch { origin: Rc::clone(origin), data, at: 0 });
    }

    /// Sends what waits, as far as there is room.
    fn flush(&mut self) {
        let mut turn = 0;
        while turn < MAX_TURN && !self.rests {
            let Some(mut batch) = self.waiting.pop_front() else { break };
            let (bytes, records) = self.pass(&batch.origin, &batch.data[batch.at..], MAX_TURN - turn);
            batch.at += bytes;
            turn += records;
            if batch.at < batch.data.len() {
                // No room, or enough for this turn.
                self.waiting.push_front(batch);
                break;
            }
            self.bytes = self.bytes.saturating_sub(batch.data.len() + BATCH_COST);
        }
        if self.bytes < MAX_WAITING / 2 {
            self.full = false;
            for origin in std::mem::take(&mut self.losers) {
                self.tell_losses(&origin);
            }
        }
        if self.waiting.is_empty() {
            self.waiting.shrink_to_fit();
        }
    }

    /// Sends at most so many records; the bytes and the records that are done with.
    fn pass(&mut self, origin: &Rc<Origin>, data: &[u8], most: usize) -> (usize, usize) {
        let mut entry = std::mem::take(&mut self.entry);
        let (mut at, mut count) = (0, 0);
        for record in log::records(data).take(most) {
            origin.encode(&record, &mut entry);
            match self.send(&entry) {
                Ok(()) => {}
                Err(Refusal::Later) => break,
                Err(Refusal::Gone(errno)) => {
                    self.rest(errno);
                    break;
                }
                // Not told in the journal, which might refuse that too.
                Err(Refusal::Entry(errno)) => {
                    self.dropped += 1;
                    self.tell_once(&format!("an entry for the journal could not be sent ({errno})"));
                }
            }
            at += record.length;
            count += 1;
        }
        self.entry = entry;
        (at, count)
    }

    fn send(&mut self, entry: &[u8]) -> Result<(), Refusal> {
        // Once more at once: a journal that was started anew has another socket of the same name.
        for fresh in [false, true] {
            let fresh = fresh || self.socket.is_none();
            let socket = self.connected().map_err(Refusal::Gone)?;
            match send_entry(socket, entry) {
                Ok(()) => {
                    self.retry = None;
                    return Ok(());
                }
                Err(Errno::AGAIN | Errno::INTR) => return Err(Refusal::Later),
                Err(errno @ (Errno::CONNREFUSED | Errno::CONNRESET | Errno::NOTCONN | Errno::PIPE)) => {
                    (self.socket, self.watched) = (None, false);
                    if fresh {
                        return Err(Refusal::Gone(errno));
                    }
                }
                Err(errno) => return Err(Refusal::Entry(errno)),
            }
        }
        Err(Refusal::Gone(Errno::CONNREFUSED))
    }

    fn connected(&mut self) -> Result<&OwnedFd, Errno> {
        if self.socket.is_none() {
            self.socket = Some(connect(&self.path)?);
        }
        self.socket.as_ref().ok_or(Errno::NOTCONN)
    }

    /// Nobody listens.
    fn rest(&mut self, errno: Errno) {
        let next = self.retry.map_or(FIRST_RETRY, |last| (last * 2).min(LAST_RETRY));
        (self.rests, self.retry) = (true, Some(next));
        self.tell_once(&format!("the journal at {} does not answer ({errno})", self.path.display()));
    }

    fn lose(&mut self, origin: &Rc<Origin>, records: u64) {
        self.dropped += records;
        if origin.lost.replace(origin.lost.get() + records) == 0 && self.losers.len() < MAX_LOSERS {
            self.losers.push(Rc::clone(origin));
        }
        self.tell_once(&format!("the journal at {} does not take what it is sent", self.path.display()));
    }

    fn tell_once(&mut self, what: &str) {
        if !std::mem::replace(&mut self.told, true) {
            tell(&format!(
                "{what}: what it misses is dropped and counted (journal_lines_dropped); log files are whole"
            ));
        }
    }

    /// The journal learns what it has missed, at the place where it is missing.
    fn tell_losses(&mut self, origin: &Rc<Origin>) {
        let lost = origin.lost.replace(0);
        self.losers.retain(|loser| !Rc::ptr_eq(loser, origin));
        let text = format!("criox: {lost} log lines are missing here: the journal did not take them\n");
        let mut note = Vec::new();
        Splitter::new(Stream::Stderr).feed(text.as_bytes(), &timestamp(clock::now()), &mut note);
        // Small, and at most one for each time that the queue was full: kept beyond the bound.
        self.push(origin, note);
    }

    fn need(&self) -> Need {
        match self.retry {
            _ if self.waiting.is_empty() => Need::Nothing,
            Some(wait) if self.rests => Need::Retry(wait),
            _ => Need::Room,
        }
    }

    /// Gives memory back that only a busy monitor needs.
    pub(crate) fn shrink(&mut self) {
        self.entry = Vec::new();
    }
}

/// A socket whose other end is the journal's. Never waits.
fn connect(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = net::SocketFlags::CLOEXEC | net::SocketFlags::NONBLOCK;
    let socket = net::socket_with(net::AddressFamily::UNIX, net::SocketType::DGRAM, flags, None)?;
    net::connect(&socket, &net::SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Sends an entry as a datagram, or, if it is too long for the socket's buffer, as a sealed file in memory.
fn send_entry(socket: &OwnedFd, entry: &[u8]) -> Result<(), Errno> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    match net::send(socket, entry, flags) {
        Err(Errno::MSGSIZE | Errno::NOBUFS) => {}
        sent => return sent.map(drop),
    }
    let file = rustix::fs::memfd_create("criox-log", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut rest = entry;
    while !rest.is_empty() {
        rest = &rest[rustix::io::write(&file, rest)?..];
    }
    // The journal maps it only if nobody can change it any more.
    rustix::fs::fcntl_add_seals(
        &file,
        SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL,
    )?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let file = [file.as_fd()];
    if !control.push(SendAncillaryMessage::ScmRights(&file)) {
        return Err(Errno::INVAL);
    }
    net::sendmsg(socket, &[IoSlice::new(&[])], &mut control, flags).map(drop)
}

impl Monitor {
    /// Records of a container on their way to its log file. Returns at once.
    pub(crate) fn journal(&mut self, container: u32, data: &[u8], records: u64) {
        let Some(origin) = self.containers.get(&container).and_then(|owner| owner.journal.clone()) else {
            return;
        };
        self.journal.take(&origin, data, records);
        self.tend_journal();
    }

    /// There is room in its socket, or something is wrong with it, which the next attempt finds out.
    pub(crate) fn journal_ready(&mut self) {
        self.journal.flush();
        self.tend_journal();
    }

    /// Looks again for one that was absent.
    pub(crate) fn journal_again(&mut self) {
        (self.journal.rests, self.journal.timed) = (false, false);
        self.journal_ready();
    }

    /// Has the loop wake us for what the journal needs next.
    fn tend_journal(&mut self) {
        let need = self.journal.need();
        if let Need::Retry(wait) = need
            && !std::mem::replace(&mut self.journal.timed, true)
        {
            self.after(wait, Timer::Journal);
        }
        let Some(socket) = &self.journal.socket else { return };
        let wanted = need == Need::Room;
        if wanted == self.journal.watched {
            return;
        }
        if wanted {
            self.journal.watched = self.watch(socket, Source::Journal, EventFlags::OUT).is_ok();
        } else {
            self.unwatch(socket);
            self.journal.watched = false;
        }
    }
}

#[cfg(test)]
#[path = "../tests/harness/journald.rs"]
mod stand_in;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::stand_in::{Entry, Journald};
    use super::*;

    struct Bench {
        dir: tempfile::TempDir,
        journal: Journal,
        origin: Rc<Origin>,
        /// What the log file has.
        fed: Vec<String>,
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let mut journal = Journal::default();
            journal.point_at(&dir.path().join("socket"));
            Self {
                dir,
                journal,
                origin: Origin::new(&"0123456789abcdef".repeat(4), "k8s_c_p_n_u_0"),
                fed: vec![],
            }
        }

        fn listen(&self) -> Journald {
            let path = self.dir.path().join("socket");
            drop(std::fs::remove_file(&path));
            Journald::listen(&path)
        }

        fn feed(&mut self, lines: &[String]) {
            let (mut data, mut splitter) = (Vec::new(), Splitter::new(Stream::Stdout));
            let records = splitter.feed((lines.join("\n") + "\n").as_bytes(), &timestamp(1), &mut data);
            self.journal.take(&self.origin, &data, records);
            self.fed.extend_from_slice(lines);
        }

        fn number(&mut self, lines: usize) {
            let first = self.fed.len();
            self.feed(&(first..first + lines).map(|n| format!("line {n}")).collect::<Vec<_>>());
        }

        /// As the loop does when it is woken.
        fn wake(&mut self) {
            (self.journal.rests, self.journal.timed) = (false, false);
            self.journal.flush();
        }

        /// Lets the journal take all that there is.
        fn drain(&mut self, journald: &Journald) -> Vec<Entry> {
            let mut all = Vec::new();
            loop {
                let before = all.len();
                all.extend(std::iter::from_fn(|| journald.next()));
                self.wake();
                if all.len() == before && self.journal.need() == Need::Nothing {
                    return all;
                }
            }
        }
    }

    /// Each line is there, in order and once, or among those that a note at its place says are missing.
    #[track_caller]
    fn check(fed: &[String], entries: &[Entry]) {
        let mut at = 0;
        for entry in entries {
            match entry.missing() {
                Some(missing) => at += usize::try_from(missing).unwrap(),
                None => {
                    assert_eq!(Some(&entry.message()), fed.get(at));
                    at += 1;
                }
            }
        }
        assert_eq!(at, fed.len());
    }

    #[test]
    fn an_entry_has_conmons_fields_and_every_byte_of_the_line() {
        let bench = Bench::new();
        let mut entry = Vec::new();
        let record = Record { stream: Stream::Stderr, partial: true, piece: b"a=\0\xff\rb", length: 0 };
        bench.origin.encode(&record, &mut entry);
        let id = "0123456789abcdef".repeat(4);
        let expected = [
            &b"MESSAGE=a=\0\xff\rb\nPRIORITY=3\nCONTAINER_PARTIAL_MESSAGE=true\nCONTAINER_ID=0123456789ab\nCONTAINER_ID_FULL="[..],
            id.as_bytes(),
            b"\nCONTAINER_NAME=k8s_c_p_n_u_0\nSYSLOG_IDENTIFIER=k8s_c_p_n_u_0\n",
        ];
        assert_eq!(entry, expected.concat());
    }

    #[test]
    fn a_value_with_a_newline_can_make_no_field() {
        let mut bench = Bench::new();
        bench.origin = Origin::new("c1", "x\n_UID=0");
        let journald = bench.listen();
        bench.feed(&["hello".into()]);
        let entry = journald.next().unwrap();
        assert_eq!(entry.text("CONTAINER_NAME"), "x\n_UID=0");
        assert_eq!((entry.text("CONTAINER_ID"), entry.text("PRIORITY")), ("c1".into(), "6".into()));
        assert_eq!(entry.fields.len(), 6);
    }

    #[test]
    fn an_entry_that_is_too_long_for_a_datagram_goes_as_a_sealed_file() {
        let mut bench = Bench::new();
        let journald = bench.listen();
        let socket = connect(&bench.journal.path).unwrap();
        net::sockopt::set_socket_send_buffer_size(&socket, 0).unwrap();
        bench.journal.socket = Some(socket);
        let lines = ["short".to_owned(), "x".repeat(16_000), "after".to_owned()];
        bench.feed(&lines);
        let entries = bench.drain(&journald);
        check(&lines, &entries);
        assert_eq!(entries.iter().map(|entry| entry.sealed).collect::<Vec<_>>(), [false, true, false]);
    }

    #[test]
    fn a_wedged_journal_costs_a_bounded_memory_and_learns_what_it_missed() {
        let mut bench = Bench::new();
        let journald = bench.listen();
        for _ in 0..200 {
            bench.number(1000);
            assert!(
                bench.journal.bytes <= MAX_WAITING && bench.journal.waiting.len() <= MAX_WAITING / BATCH_COST
            );
        }
        assert!(bench.journal.full && bench.journal.need() == Need::Room);
        let kept = bench.journal.waiting.iter().map(|batch| batch.data.capacity()).sum::<usize>();
        assert!(kept <= MAX_WAITING, "{kept}");
        let entries = bench.drain(&journald);
        check(&bench.fed, &entries);
        let missing: u64 = entries.iter().filter_map(Entry::missing).sum();
        assert!(missing > 100_000 && missing == bench.journal.dropped, "{missing}");
        assert!(!bench.journal.full && bench.journal.bytes == 0);
        bench.number(10);
        assert_eq!(journald.next().unwrap().message(), "line 200000");
    }

    #[test]
    fn one_batch_of_newlines_that_is_longer_than_the_queue_does_not_wedge_it() {
        let mut bench = Bench::new();
        bench.feed(&vec![String::new(); 30_000]);
        assert!(bench.journal.bytes <= MAX_WAITING && bench.journal.full);
        let journald = bench.listen();
        let entries = bench.drain(&journald);
        check(&bench.fed, &entries);
        bench.number(1);
        assert_eq!(bench.drain(&journald).last().unwrap().message(), "line 30000");
    }

    #[test]
    fn an_absent_journal_is_asked_less_and_less_often_and_gets_what_waited() {
        let mut bench = Bench::new();
        bench.number(3);
        let mut waits = Vec::new();
        for _ in 0..8 {
            let Need::Retry(wait) = bench.journal.need() else { panic!("{:?}", bench.journal.need()) };
            waits.push(wait.as_secs());
            bench.number(3);
            bench.wake();
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 32, 32]);
        let journald = bench.listen();
        let entries = bench.drain(&journald);
        check(&bench.fed, &entries);
        assert_eq!((bench.journal.dropped, bench.journal.need()), (0, Need::Nothing));
        // It starts from the beginning after that.
        drop(journald);
        drop(std::fs::remove_file(bench.dir.path().join("socket")));
        bench.number(1);
        assert_eq!(bench.journal.need(), Need::Retry(FIRST_RETRY));
    }

    #[test]
    fn a_journal_that_was_started_anew_gets_the_next_line() {
        let mut bench = Bench::new();
        for _ in 0..3 {
            let journald = bench.listen();
            bench.number(1);
            assert_eq!(Some(journald.next().unwrap().message()), bench.fed.last().cloned());
        }
        assert_eq!(bench.journal.dropped, 0);
    }

    #[test]
    fn what_can_never_be_sent_is_counted_and_holds_up_nothing() {
        let mut bench = Bench::new();
        let path = bench.dir.path().join("socket");
        // A stream socket is not the journal's: connecting fails each time.
        let _listener = std::os::unix::net::UnixListener::bind(path).unwrap();
        for _ in 0..100 {
            bench.number(1000);
            bench.wake();
        }
        assert!(bench.journal.dropped > 10_000 && bench.journal.bytes <= MAX_WAITING);
        assert!(matches!(bench.journal.need(), Need::Retry(_)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn however_the_journal_reads_every_line_is_there_or_told_to_be_missing(
            steps in proptest::collection::vec((0_usize..5000, 0_usize..400, 0_u8..6), 1..30),
        ) {
            let mut bench = Bench::new();
            let mut journald = bench.listen();
            let mut entries = Vec::new();
            for (lines, reads, kind) in steps {
                if lines > 0 {
                    bench.number(lines);
                }
                entries.extend(std::iter::from_fn(|| journald.next()).take(reads));
                match kind {
                    0 => {
                        // Started anew, after it has read what it had.
                        entries.extend(std::mem::replace(&mut journald, bench.listen()).stop());
                    }
                    1 => {}
                    _ => bench.wake(),
                }
                prop_assert!(bench.journal.bytes <= MAX_WAITING + 1024);
            }
            entries.extend(bench.drain(&journald));
            check(&bench.fed, &entries);
        }
    }
}
