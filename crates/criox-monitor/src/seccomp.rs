//! Calls that a container's filter asks about (seccomp_unotify(2)). Each fails with ENOSYS and is counted, here rather
//! than in the daemon, for the caller waits for its answer.
//!
//! The OCI runtime connects to the socket that `linux.seccomp.listenerPath` names, once for a container and once for
//! each exec, and sends the descriptor of the filter that it has made, beside a description of the process of which
//! only the number is looked at: the descriptor itself is known for what it is. crun connects before the process exists
//! and sends when it is started; so a connection may be silent for as long as a container waits for its start.
//!
//! Where no-new-privileges isn't asked for, the runtime itself works under the filter until it executes the program. runc
//! then tries calls that it can do without (`open_tree`): they are refused, but not the program's, and not counted.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use criox_monitor_api::frame::MAX_MESSAGE;
use criox_monitor_api::proto::{
    ForbiddenCall, ForbiddenCalls, SeccompListening, SeccompNotified, event, failure::Kind, reply,
};
use criox_sys::seccomp_notify::{self, Listener};
use criox_sys::socket;
use rustix::event::epoll::EventFlags;
use rustix::fs::{Mode, OFlags};

use crate::client::failure;
use crate::monitor::{Monitor, Source, Timer};
use crate::{clock, tell};

/// asm-generic/errno.h.
const ENOSYS: i32 = 38;
/// Runtimes that are connected at once, for one container: the pod's execs.
const MAX_SENDERS: usize = 256;
/// Filters of one container that are followed. Beyond, the kernel answers with ENOSYS as well, and nobody counts.
const MAX_FILTERS: usize = 1024;
/// What a runtime may say of its process: the annotations are in it.
const MAX_SAID: usize = 8 << 20;
/// Calls that are told apart: a filter whose default action asks lets a program think of any number.
const MAX_CALLS: usize = 512;
/// What a call of a list takes in a frame at most, and all of them together: the frame holds the pod's containers, too.
const CALL_BYTES: usize = 32;
pub(crate) const LISTED_BYTES: usize = MAX_MESSAGE / 2;
/// Answers for one container in each [`SLICE`]: who calls more often waits, and so costs no others the monitor's time.
const ANSWERS: u32 = 64;
const SLICE: Duration = Duration::from_millis(10);
/// From a call to its telling, so that those which follow at once are told with it.
const GATHER: Duration = Duration::from_millis(100);
/// Between two tellings, and between later ones: a program that calls for ever is known by then.
const INTERVAL: Duration = Duration::from_secs(1);
const LATER_INTERVAL: Duration = Duration::from_secs(60);
const FIRST_TELLINGS: u32 = 60;

/// Everything of this module.
#[derive(Default)]
pub(crate) struct Seccomp {
    notifiers: BTreeMap<u32, Notifier>,
    senders: BTreeMap<u32, Sender>,
    filters: BTreeMap<u32, Filter>,
}

/// What listens for one container. The socket's file goes with it.
struct Notifier {
    container_id: String,
    socket: OwnedFd,
    path: PathBuf,
    directory: OwnedFd,
    calls: Calls,
    /// Answers that are left in this slice.
    left: u32,
    slice_end: Instant,
    /// A timer will tell.
    telling: bool,
    told: Option<Instant>,
    tellings: u32,
}

/// A runtime that is connected.
struct Sender {
    notifier: u32,
    socket: OwnedFd,
    said: usize,
}

/// The filter of a container's process or of an exec's.
struct Filter {
    notifier: u32,
    listener: Listener,
    /// The process to be, until it is seen to have executed its program.
    runtime: Option<Unborn>,
    /// Not waited for in the rest of this slice.
    rests: bool,
}

/// A process that is still the runtime's: its number, and when it began (clock ticks since boot).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Unborn {
    pid: i32,
    started: u64,
}

impl Unborn {
    /// The process that a runtime describes (`containerProcessState` of the OCI runtime specification), whose number
    /// comes before its longer parts.
    fn described(text: &[u8]) -> Option<Self> {
        let pid = described_pid(text)?;
        Some(Self { pid, started: criox_sys::process::start_time(pid).ok()? })
    }

    /// Whether it has executed no program since it was forked. Once it has, that stays so.
    fn is_unborn(self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        forked_only(&stat) == Some((true, self.started))
    }

    fn has_thread(self, thread: u32) -> bool {
        Path::new(&format!("/proc/{}/task/{thread}", self.pid)).exists()
    }
}

/// The number behind the first key `pid`.
fn described_pid(text: &[u8]) -> Option<i32> {
    const KEY: &[u8] = b"\"pid\"";
    let at = text.windows(KEY.len()).position(|window| window == KEY)?;
    let rest = text[at + KEY.len()..].trim_ascii_start().strip_prefix(b":")?.trim_ascii_start();
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&rest[..digits]).ok()?.parse().ok().filter(|pid| *pid > 1)
}

/// Whether a process has executed no program since it was forked (`PF_FORKNOEXEC` among the flags), and its start:
/// fields 9 and 22 of `/proc/<pid>/stat`, proc_pid_stat(5).
fn forked_only(stat: &str) -> Option<(bool, u64)> {
    const FORKED_ONLY: u64 = 0x40;
    // The name in the second field may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let flags: u64 = fields.nth(6)?.parse().ok()?;
    let started = fields.nth(12)?.parse().ok()?;
    Some((flags & FORKED_ONLY != 0, started))
}

/// Counted calls.
#[derive(Debug, Default)]
struct Calls {
    counts: BTreeMap<(u32, i32), u64>,
    others: u64,
    first_at: i64,
    last_at: i64,
}

impl Calls {
    fn count(&mut self, arch: u32, number: i32, at: i64) {
        let full = self.counts.len() >= MAX_CALLS && !self.counts.contains_key(&(arch, number));
        let count = if full { &mut self.others } else { self.counts.entry((arch, number)).or_default() };
        *count = count.saturating_add(1);
        if self.first_at == 0 {
            self.first_at = at;
        }
        self.last_at = at;
    }

    fn to_proto(&self) -> Option<ForbiddenCalls> {
        if self.last_at == 0 {
            return None;
        }
        let call = |((arch, number), count): (&(u32, i32), &u64)| ForbiddenCall {
            arch: *arch,
            number: *number,
            count: *count,
        };
        let others = (self.others > 0).then_some(ForbiddenCall { arch: 0, number: 0, count: self.others });
        let calls = self.counts.iter().map(call).chain(others).collect();
        Some(ForbiddenCalls { calls, first_at: self.first_at, last_at: self.last_at })
    }
}

/// The calls told apart as long as there is room for them, else only how many there were: events tell the rest.
fn fit(mut told: ForbiddenCalls, room: &mut usize) -> ForbiddenCalls {
    match room.checked_sub(told.calls.len() * CALL_BYTES) {
        Some(left) => *room = left,
        None => {
            let count = told.calls.iter().fold(0, |sum: u64, call| sum.saturating_add(call.count));
            told.calls = vec![ForbiddenCall { arch: 0, number: 0, count }];
        }
    }
    told
}

impl Notifier {
    fn open(run_dir: &Path, name: &str, container_id: &str) -> io::Result<Self> {
        seccomp_notify::check_support()?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(run_dir, flags, Mode::empty())?;
        let path = run_dir.join(name);
        drop(std::fs::remove_file(&path));
        Ok(Self {
            container_id: container_id.to_owned(),
            socket: socket::bind_listen(&path, 64)?,
            path,
            directory,
            calls: Calls::default(),
            left: ANSWERS,
            slice_end: Instant::now(),
            telling: false,
            told: None,
            tellings: 0,
        })
    }

    /// By our descriptor of the run directory, which may lie deeper than an address is long (see `console.rs`).
    fn name(&self) -> String {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        format!("/proc/{}/fd/{}/{name}", std::process::id(), self.directory.as_raw_fd())
    }

    /// Takes one answer off what this slice has; none is left: when the next begins.
    fn take_answer(&mut self) -> Result<(), Instant> {
        let now = Instant::now();
        if now >= self.slice_end {
            (self.left, self.slice_end) = (ANSWERS, now + SLICE);
        }
        self.left = self.left.checked_sub(1).ok_or(self.slice_end)?;
        Ok(())
    }

    /// When the next telling may be.
    fn tell_at(&self) -> Instant {
        let interval = if self.tellings < FIRST_TELLINGS { INTERVAL } else { LATER_INTERVAL };
        let soon = Instant::now() + GATHER;
        self.told.map_or(soon, |told| soon.max(told + interval))
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.path));
    }
}

impl Seccomp {
    fn of(&self, container_id: &str) -> Option<u32> {
        let found = self.notifiers.iter().find(|(_, notifier)| notifier.container_id == container_id);
        found.map(|(number, _)| *number)
    }

    /// The calls of a container, for a list with room for so many bytes of them.
    pub(crate) fn calls(&self, container_id: &str, room: &mut usize) -> Option<ForbiddenCalls> {
        let calls = self.notifiers.get(&self.of(container_id)?)?.calls.to_proto()?;
        Some(fit(calls, room))
    }
}

impl Monitor {
    pub(crate) fn listen_seccomp(&mut self, container_id: &str) -> reply::Result {
        if self.find(container_id).is_some() {
            return failure(Kind::WrongState, format!("container {container_id} is there already"));
        }
        self.forget_notifier(container_id);
        let number = self.number();
        let opened = Notifier::open(&self.args.run_dir, &format!("seccomp-{number}"), container_id);
        let watched = opened.and_then(|notifier| {
            self.watch(&notifier.socket, Source::Notifier(number), EventFlags::IN)?;
            Ok(notifier)
        });
        match watched {
            Ok(notifier) => {
                let path = notifier.name();
                self.seccomp.notifiers.insert(number, notifier);
                reply::Result::SeccompListening(SeccompListening { path })
            }
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                failure(Kind::Unsupported, "the kernel has no seccomp notifications")
            }
            Err(error) => failure(Kind::Internal, format!("could not listen for the filter: {error}")),
        }
    }

    /// Nobody asks any more. Processes that live on get ENOSYS from the kernel.
    pub(crate) fn forget_notifier(&mut self, container_id: &str) {
        let Some(number) = self.seccomp.of(container_id) else { return };
        self.seccomp.senders.retain(|_, sender| sender.notifier != number);
        self.seccomp.filters.retain(|_, filter| filter.notifier != number);
        self.seccomp.notifiers.remove(&number);
    }

    pub(crate) fn notifier_ready(&mut self, number: u32) {
        let Some(notifier) = self.seccomp.notifiers.get(&number) else { return };
        let connection = match socket::accept(&notifier.socket) {
            Ok(connection) => connection,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) => {
                tell(&format!("could not accept the sender of a filter: {error}"));
                // Level-triggered: whoever waits would wake the loop for ever.
                self.unwatch_notifier(number);
                return self.after(INTERVAL, Timer::NotifierRest(number));
            }
        };
        let root = socket::peer_credentials(&connection).is_ok_and(|peer| peer.uid == 0);
        let senders = self.seccomp.senders.values().filter(|sender| sender.notifier == number).count();
        if !root || senders >= MAX_SENDERS {
            return tell("the sender of a filter was refused: it is not root, or there are too many");
        }
        let sender = self.number();
        if self.watch(&connection, Source::NotifierSender(sender), EventFlags::IN).is_ok() {
            self.seccomp.senders.insert(sender, Sender { notifier: number, socket: connection, said: 0 });
        }
    }

    fn unwatch_notifier(&self, number: u32) {
        if let Some(notifier) = self.seccomp.notifiers.get(&number) {
            self.unwatch(&notifier.socket);
        }
    }

    /// A runtime says something, or has gone.
    pub(crate) fn sender_ready(&mut self, number: u32) {
        let mut space = [0; 4096];
        let Some(sender) = self.seccomp.senders.get_mut(&number) else { return };
        let mut fds = Vec::new();
        let over = match socket::recv_with_fds(&sender.socket, &mut space, &mut fds) {
            Ok(0) => true,
            Ok(bytes) => {
                sender.said += bytes;
                sender.said > MAX_SAID
            }
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        };
        let notifier = sender.notifier;
        if over {
            self.seccomp.senders.remove(&number);
        }
        let runtime = if fds.is_empty() { None } else { Unborn::described(&space) };
        for fd in fds {
            self.take_filter(notifier, fd, runtime);
        }
    }

    fn take_filter(&mut self, notifier: u32, fd: OwnedFd, runtime: Option<Unborn>) {
        let listener = match Listener::new(fd) {
            Ok(listener) => listener,
            Err(error) => return tell(&format!("what came for a filter is none: {error}")),
        };
        let filters = self.seccomp.filters.values().filter(|filter| filter.notifier == notifier).count();
        if filters >= MAX_FILTERS {
            return tell("too many filters of one container ask: the calls of this one are not counted");
        }
        let number = self.number();
        match self.watch(&listener, Source::Notified(number), EventFlags::IN) {
            Ok(()) => drop(
                self.seccomp.filters.insert(number, Filter { notifier, listener, runtime, rests: false }),
            ),
            Err(error) => tell(&format!("could not follow a filter: {error}")),
        }
    }

    /// Calls wait for their answer, or nobody has the filter any more.
    pub(crate) fn notified(&mut self, number: u32) {
        loop {
            let seccomp = &mut self.seccomp;
            let Some(filter) = seccomp.filters.get_mut(&number) else { return };
            let Some(notifier) = seccomp.notifiers.get_mut(&filter.notifier) else { return };
            let owner = filter.notifier;
            if let Err(rested) = notifier.take_answer() {
                filter.rests = true;
                let filter = &self.seccomp.filters[&number];
                self.unwatch(&filter.listener);
                return self.at(rested, Timer::NotifierRest(owner));
            }
            let answered = filter.listener.receive().and_then(|received| {
                let Some(received) = received else { return Ok(None) };
                // Looked at while it waits, for then it can't go on to its program.
                filter.runtime = filter.runtime.filter(|runtime| runtime.is_unborn());
                let own = filter.runtime.is_none_or(|runtime| !runtime.has_thread(received.pid));
                filter.listener.refuse(&received, ENOSYS)?;
                Ok(Some((received, own)))
            });
            match answered {
                Ok(Some((_, false))) => {}
                Ok(Some((received, true))) => {
                    notifier.calls.count(received.arch, received.number, clock::now());
                    let at = (!std::mem::replace(&mut notifier.telling, true)).then(|| notifier.tell_at());
                    if let Some(at) = at {
                        self.at(at, Timer::NotifierTell(owner));
                    }
                }
                Ok(None) => {
                    notifier.left += 1;
                    return;
                }
                Err(error) => {
                    if error.kind() != io::ErrorKind::BrokenPipe {
                        tell(&format!("a filter is not followed any more: {error}"));
                    }
                    drop(self.seccomp.filters.remove(&number));
                    return;
                }
            }
        }
    }

    /// A new slice: who rested is waited for again.
    pub(crate) fn notifier_rested(&mut self, number: u32) {
        let Some(notifier) = self.seccomp.notifiers.get(&number) else { return };
        // It may rest itself, after an error; else it is there already.
        drop(self.watch(&notifier.socket, Source::Notifier(number), EventFlags::IN));
        let rested =
            self.seccomp.filters.iter_mut().filter(|(_, filter)| filter.notifier == number && filter.rests);
        let rested: Vec<u32> = rested.map(|(filter, _)| *filter).collect();
        for filter in rested {
            let Some(found) = self.seccomp.filters.get_mut(&filter) else { continue };
            found.rests = false;
            let found = &self.seccomp.filters[&filter];
            if let Err(error) = self.watch(&found.listener, Source::Notified(filter), EventFlags::IN) {
                tell(&format!("a filter is not followed any more: {error}"));
                self.seccomp.filters.remove(&filter);
            }
        }
    }

    /// Tells what has been counted.
    pub(crate) fn tell_forbidden(&mut self, number: u32) {
        let Some(notifier) = self.seccomp.notifiers.get_mut(&number) else { return };
        notifier.telling = false;
        notifier.told = Some(Instant::now());
        notifier.tellings = notifier.tellings.saturating_add(1);
        let (container_id, forbidden) = (notifier.container_id.clone(), notifier.calls.to_proto());
        self.publish(event::Kind::SeccompNotified(SeccompNotified { container_id, forbidden }));
    }
}

#[cfg(test)]
mod tests {
    use criox_monitor_api::proto::{ContainerState, ListReply, Message};

    use super::*;

    #[test]
    fn calls_are_counted_by_number_up_to_a_bound() {
        let mut calls = Calls::default();
        assert_eq!(calls.to_proto(), None);
        for at in [5, 6, 7] {
            calls.count(1, -1, at);
        }
        for number in 0..10_000 {
            calls.count(1, number, 8);
        }
        // Known ones are still told apart.
        calls.count(1, -1, 9);
        let told = calls.to_proto().unwrap();
        assert_eq!((told.first_at, told.last_at, told.calls.len()), (5, 9, MAX_CALLS + 1));
        assert_eq!(told.calls[0], ForbiddenCall { arch: 1, number: -1, count: 4 });
        let others = told.calls.last().unwrap();
        assert_eq!((others.arch, others.count), (0, 10_001 - u64::try_from(MAX_CALLS).unwrap()));
    }

    #[test]
    fn a_list_of_many_containers_with_many_calls_fits_into_a_frame() {
        let calls = vec![ForbiddenCall { arch: u32::MAX, number: -1, count: u64::MAX / 1024 }; MAX_CALLS + 1];
        let calls = ForbiddenCalls { calls, first_at: i64::MAX, last_at: i64::MAX };
        let mut room = LISTED_BYTES;
        let containers: Vec<_> = (0..500)
            .map(|number| ContainerState {
                container_id: format!("{number:064}"),
                cgroup: "x".repeat(200),
                forbidden: Some(fit(calls.clone(), &mut room)),
                ..ContainerState::default()
            })
            .collect();
        let told = |at: usize| containers[at].forbidden.clone().unwrap();
        assert_eq!(told(0), calls);
        assert_eq!((told(499).calls.len(), told(499).first_at), (1, i64::MAX));
        assert_eq!(told(499).calls[0].count, u64::MAX / 1024 * 513);
        let list = reply::Result::List(ListReply { containers, ..ListReply::default() });
        let reply = Message { kind: Some(crate::client::reply(u64::MAX, list)) };
        criox_monitor_api::frame::encode(&reply, &mut Vec::new()).unwrap();
    }

    #[test]
    fn the_process_that_a_runtime_describes_is_known_by_its_number() {
        for (text, pid) in [
            (
                r#"{"ociVersion":"1.2.0","fds":["seccompFd"],"pid":4422,"metadata":"","state":{"pid":7}}"#,
                Some(4422),
            ),
            ("{ \"pid\" : 12 , ", Some(12)),
            (r#"{"fds":["pid"]}"#, None),
            (r#"{"pid":1}"#, None),
            (r#"{"pid":99999999999}"#, None),
            (r#"{"pid":"#, None),
            ("", None),
        ] {
            assert_eq!(described_pid(text.as_bytes()), pid, "{text}");
        }
    }

    #[test]
    fn who_has_executed_a_program_is_none_of_the_runtime_s() {
        let stat =
            |flags: u32| format!("12 (a) b) S 1 12 12 0 -1 {flags} 1 2 3 4 5 6 7 8 20 0 1 0 777 1000 20");
        assert_eq!(forked_only(&stat(0x40_0040)), Some((true, 777)));
        assert_eq!(forked_only(&stat(0x40_0000)), Some((false, 777)));
        assert_eq!(forked_only(""), None);
        // This program was executed.
        let pid = i32::try_from(std::process::id()).unwrap();
        let this = Unborn { pid, started: criox_sys::process::start_time(pid).unwrap() };
        assert!(!this.is_unborn() && this.has_thread(std::process::id()));
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        assert_eq!(forked_only(&stat), Some((false, this.started)));
    }

    #[test]
    fn answers_are_rationed_and_tellings_rare() {
        let dir = tempfile::tempdir().unwrap();
        let Ok(mut notifier) = Notifier::open(dir.path(), "seccomp-1", "c") else {
            eprintln!("skipped: no seccomp notifications");
            return;
        };
        assert!(notifier.name().len() < 100 && dir.path().join("seccomp-1").exists());
        let mut taken = 0;
        let rest = loop {
            match notifier.take_answer() {
                Ok(()) => taken += 1,
                Err(rest) => break rest,
            }
            // A slow machine may begin a slice meanwhile, but not for ever.
            assert!(taken < 100 * ANSWERS);
        };
        assert!(rest <= Instant::now() + SLICE);
        assert!(notifier.tell_at() <= Instant::now() + GATHER);
        notifier.told = Some(Instant::now());
        assert!(notifier.tell_at() > Instant::now() + GATHER * 2);
        notifier.tellings = FIRST_TELLINGS;
        assert!(notifier.tell_at() > Instant::now() + INTERVAL * 2);
        drop(notifier);
        assert!(!dir.path().join("seccomp-1").exists());
    }
}
