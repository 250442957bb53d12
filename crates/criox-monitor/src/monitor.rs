//! The loop: what woke us, and who handles it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use criox_monitor_api::frame::FrameError;
use criox_monitor_api::proto::{self, event, message, reply};
use criox_sys::cgroup::Cgroups;
use criox_sys::process::{self, Signal};
use criox_sys::socket;
use rustix::event::epoll::{self, EventData, EventFlags};

use crate::args::Args;
use crate::attach::Attached;
use crate::checkpoint::Checkpoint;
use crate::client::{Client, Events, reply as reply_message};
use crate::container::{Caller, Container, RuntimeRun};
use crate::freeze::Lease;
use crate::freezer::Freezer;
use crate::held::HeldExec;
use crate::journald::Journal;
use crate::log_writer::LogWriter;
use crate::seccomp::Seccomp;
use crate::side_process::Helper;
use crate::stream::Output;
use crate::tell;
use crate::verbs::WaitingCreate;

/// Ended processes that a runtime's PID file may still name.
const MAX_STRAYS: usize = 256;
/// How long the listener rests after a failed accept (no descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a descriptor in the epoll set is; the number in the low half says which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    Listener,
    Child,
    LogWriter,
    Client(u32),
    Output(u32),
    Oom(u32),
    Helper(u32),
    /// The lease of an attached client.
    Attached(u32),
    AttachedInput(u32),
    AttachedOutput(u32),
    /// The stdin of a container.
    Stdin(u32),
    /// The lease of a freeze.
    Lease(u32),
    /// Where runtimes send filters.
    Notifier(u32),
    NotifierSender(u32),
    /// A filter that asks.
    Notified(u32),
    Journal,
}

impl Source {
    fn data(self) -> EventData {
        let (kind, number) = match self {
            Self::Listener => (0, 0),
            Self::Child => (1, 0),
            Self::LogWriter => (2, 0),
            Self::Client(number) => (3, number),
            Self::Output(number) => (4, number),
            Self::Oom(number) => (5, number),
            Self::Helper(number) => (6, number),
            Self::Attached(number) => (7, number),
            Self::AttachedInput(number) => (8, number),
            Self::AttachedOutput(number) => (9, number),
            Self::Stdin(number) => (10, number),
            Self::Notifier(number) => (20, number),
            Self::NotifierSender(number) => (21, number),
            Self::Notified(number) => (22, number),
            Self::Journal => (11, 0),
            Self::Lease(number) => (12, number),
        };
        EventData::new_u64(kind << 32 | u64::from(number))
    }

    fn of(data: EventData) -> Self {
        let number = u32::try_from(data.u64() & u64::from(u32::MAX)).unwrap_or(0);
        match data.u64() >> 32 {
            0 => Self::Listener,
            1 => Self::Child,
            2 => Self::LogWriter,
            3 => Self::Client(number),
            4 => Self::Output(number),
            5 => Self::Oom(number),
            6 => Self::Helper(number),
            7 => Self::Attached(number),
            8 => Self::AttachedInput(number),
            9 => Self::AttachedOutput(number),
            10 => Self::Stdin(number),
            12 => Self::Lease(number),
            20 => Self::Notifier(number),
            21 => Self::NotifierSender(number),
            22 => Self::Notified(number),
            _ => Self::Journal,
        }
    }
}

/// What is to be looked at, at a time. Looking is harmless: timers are never taken back. Those that are the same are one,
/// so that who asks again and again for the same moment (an attached client that lags) doesn't make them grow.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    Accept,
    Line(u32),
    Flush(u32),
    Runtime(i32),
    Helper(u32),
    Exec(u32, String),
    Settle(u32),
    Linger(u32),
    Delete(u32),
    Attached(u32),
    Freeze(u32),
    Held,
    Checkpoint(u32),
    Unrestored(u32),
    NotifierRest(u32),
    NotifierTell(u32),
    Scratch,
    Journal,
}

pub(crate) struct Monitor {
    pub(crate) args: Args,
    pub(crate) cgroups: Cgroups,
    pub(crate) containers: BTreeMap<u32, Container>,
    pub(crate) outputs: BTreeMap<u32, Output>,
    pub(crate) attached: BTreeMap<u32, Attached>,
    pub(crate) runtimes: BTreeMap<i32, RuntimeRun>,
    pub(crate) helpers: BTreeMap<u32, Helper>,
    /// Ended processes that nobody knew, while a runtime or helper ran that may yet name one.
    pub(crate) strays: BTreeMap<i32, i32>,
    /// Creations that wait for their log file.
    pub(crate) creates: BTreeMap<u32, WaitingCreate>,
    pub(crate) freezer: Freezer,
    pub(crate) leases: BTreeMap<u32, Lease>,
    pub(crate) held: Vec<HeldExec>,
    /// By the container.
    pub(crate) checkpoints: BTreeMap<u32, Checkpoint>,
    pub(crate) writer: LogWriter,
    pub(crate) seccomp: Seccomp,
    pub(crate) journal: Journal,
    pub(crate) events: Events,
    pub(crate) dropped: u64,
    pub(crate) ends: bool,
    /// 0: none.
    pub(crate) sandbox_process: i32,
    /// Root of the pod's own user namespace, if it has one: user and group as the node numbers them.
    pub(crate) pod_root: Option<(u32, u32)>,
    /// What output is read into, and what was written from; given back now and then, for most containers are silent
    /// most of the time.
    pub(crate) scratch: Vec<u8>,
    pub(crate) spare: Vec<Vec<u8>>,
    clients: BTreeMap<u32, Client>,
    timers: BTreeSet<(Instant, Timer)>,
    epoll: OwnedFd,
    listener: OwnedFd,
    signals: OwnedFd,
    next: u32,
}

impl Monitor {
    pub(crate) fn new(args: Args) -> io::Result<Self> {
        // The daemon's gift; from now on close-on-exec and ours.
        let listener = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
        let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::fs::fcntl_setfl(&listener, rustix::fs::OFlags::NONBLOCK)?;
        let monitor = Self {
            args,
            cgroups: Cgroups::detect().map_err(io::Error::other)?,
            containers: BTreeMap::new(),
            outputs: BTreeMap::new(),
            attached: BTreeMap::new(),
            runtimes: BTreeMap::new(),
            helpers: BTreeMap::new(),
            strays: BTreeMap::new(),
            creates: BTreeMap::new(),
            freezer: Freezer::default(),
            leases: BTreeMap::new(),
            held: Vec::new(),
            checkpoints: BTreeMap::new(),
            writer: LogWriter::new()?,
            seccomp: Seccomp::default(),
            journal: Journal::default(),
            events: Events::default(),
            dropped: 0,
            ends: false,
            sandbox_process: 0,
            pod_root: None,
            scratch: Vec::new(),
            spare: Vec::new(),
            clients: BTreeMap::new(),
            timers: BTreeSet::new(),
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            listener,
            signals: process::signalfd(&[Signal::CHILD, Signal::HUP, Signal::INT, Signal::TERM])?,
            next: 0,
        };
        monitor.watch(&monitor.listener, Source::Listener, EventFlags::IN)?;
        monitor.watch(&monitor.signals, Source::Child, EventFlags::IN)?;
        monitor.watch(monitor.writer.wake_fd(), Source::LogWriter, EventFlags::IN)?;
        Ok(monitor)
    }

    pub(crate) fn run(&mut self) -> io::Result<()> {
        let mut space = [MaybeUninit::<epoll::Event>::uninit(); 32];
        while !self.ends {
            let timeout = self.next_timeout();
            let ready = match epoll::wait(&self.epoll, &mut space, timeout.as_ref()) {
                Ok((ready, _)) => ready,
                Err(rustix::io::Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            for event in ready {
                let (data, flags) = (event.data, event.flags);
                self.handle(Source::of(data), flags);
            }
            self.run_timers();
        }
        Ok(())
    }

    /// A number that is not in use, for a container, stream, client or file name.
    pub(crate) fn number(&mut self) -> u32 {
        self.next = self.next.wrapping_add(1);
        self.next
    }

    pub(crate) fn find(&self, id: &str) -> Option<u32> {
        self.containers.iter().find(|(_, container)| container.id == id).map(|(number, _)| *number)
    }

    pub(crate) fn at(&mut self, when: Instant, timer: Timer) {
        self.timers.insert((when, timer));
    }

    pub(crate) fn after(&mut self, wait: Duration, timer: Timer) {
        self.at(Instant::now() + wait, timer);
    }

    pub(crate) fn watch(&self, fd: impl AsFd, source: Source, flags: EventFlags) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, source.data(), flags)?)
    }

    /// Changes what is waited for.
    pub(crate) fn rewatch(&self, fd: impl AsFd, source: Source, flags: EventFlags) {
        let _ = epoll::modify(&self.epoll, fd, source.data(), flags);
    }

    pub(crate) fn watch_oom(&self, number: u32) {
        let Some(oom) = self.containers.get(&number).and_then(|container| container.oom.as_ref()) else {
            return;
        };
        let (fd, priority) = oom.poll_fd();
        let flags = if priority { EventFlags::PRI | EventFlags::ET } else { EventFlags::IN };
        if let Err(error) = self.watch(fd, Source::Oom(number), flags) {
            tell(&format!("OOM kills of container {number} are seen at its end only: {error}"));
        }
    }

    pub(crate) fn add_helper(&mut self, helper: Helper) -> io::Result<u32> {
        let number = self.number();
        self.watch(&helper.line, Source::Helper(number), EventFlags::IN)?;
        self.helpers.insert(number, helper);
        Ok(number)
    }

    pub(crate) fn unwatch(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.epoll, fd);
    }

    fn next_timeout(&self) -> Option<rustix::event::Timespec> {
        let (when, _) = self.timers.first()?;
        when.saturating_duration_since(Instant::now()).try_into().ok()
    }

    fn run_timers(&mut self) {
        let now = Instant::now();
        while let Some((when, _)) = self.timers.first() {
            if *when > now {
                return;
            }
            let Some((_, timer)) = self.timers.pop_first() else { return };
            match timer {
                Timer::Accept => drop(self.watch(&self.listener, Source::Listener, EventFlags::IN)),
                Timer::Line(number) => self.release_line(number),
                Timer::Flush(number) => self.flush_log(number),
                Timer::Runtime(pid) => self.runtime_late(pid),
                Timer::Helper(number) => self.helper_late(number),
                Timer::Exec(container, exec_id) => self.look_at_exec(container, &exec_id),
                Timer::Settle(number) => self.settle(number),
                Timer::Linger(number) => self.remove_lingering(number),
                Timer::Delete(number) => self.deleted(number, None),
                Timer::Attached(number) => self.attached_late(number),
                Timer::Freeze(number) => self.look_at_freeze(number),
                Timer::Held => self.look_at_held(),
                Timer::Checkpoint(number) => self.look_at_checkpoint(number),
                Timer::Unrestored(number) => self.look_at_unrestored(number),
                Timer::NotifierRest(number) => self.notifier_rested(number),
                Timer::NotifierTell(number) => self.tell_forbidden(number),
                Timer::Scratch => self.shrink(),
                Timer::Journal => self.journal_again(),
            }
        }
    }

    fn handle(&mut self, source: Source, flags: EventFlags) {
        match source {
            Source::Listener => self.accept(),
            Source::Child => self.children(),
            Source::LogWriter => self.log_written(),
            Source::Client(number) => self.client_ready(number, flags),
            Source::Output(number) => self.read_output(number),
            Source::Oom(number) => self.look_for_oom(number, flags),
            Source::Helper(number) => self.hear(number),
            Source::Attached(number) => self.lease_ended(number),
            Source::AttachedInput(number) => self.input_ready(number),
            Source::AttachedOutput(number) => self.output_ready(number),
            Source::Stdin(number) => self.stdin_ready(number),
            Source::Lease(number) => self.freeze_ended(number),
            Source::Notifier(number) => self.notifier_ready(number),
            Source::NotifierSender(number) => self.sender_ready(number),
            Source::Notified(number) => self.notified(number),
            Source::Journal => self.journal_ready(),
        }
    }

    fn accept(&mut self) {
        match socket::accept(&self.listener) {
            Ok(connection) => {
                if !socket::peer_credentials(&connection).is_ok_and(|peer| peer.uid == 0) {
                    return tell("a connection of another user than root was refused");
                }
                let number = self.number();
                if self.watch(&connection, Source::Client(number), EventFlags::IN).is_ok() {
                    self.clients.insert(number, Client::new(connection));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tell(&format!("could not accept a connection: {error}"));
                let _ = epoll::delete(&self.epoll, &self.listener);
                self.after(ACCEPT_PAUSE, Timer::Accept);
            }
        }
    }

    fn client_ready(&mut self, number: u32, flags: EventFlags) {
        if let Err(error) = self.serve(number, flags) {
            if !matches!(error, FrameError::Io(_)) {
                tell(&format!("connection closed: {error}"));
            }
            self.hang_up(number);
        }
    }

    fn serve(&mut self, number: u32, flags: EventFlags) -> Result<(), FrameError> {
        let Some(client) = self.clients.get_mut(&number) else { return Ok(()) };
        if flags.contains(EventFlags::OUT) {
            client.flush()?;
        }
        if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            match client.reader.read_from(&client.socket) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(_) => {}
                Err(FrameError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        while let Some(client) = self.clients.get_mut(&number)
            && let Some(request) = client.reader.next::<proto::Request>()?
        {
            self.request(number, request)?;
        }
        self.rearm(number);
        Ok(())
    }

    /// Waits for room in the socket only while something is to be sent.
    fn rearm(&self, number: u32) {
        let Some(client) = self.clients.get(&number) else { return };
        let flags = if client.waits { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
        self.rewatch(&client.socket, Source::Client(number), flags);
    }

    pub(crate) fn client(&mut self, number: u32) -> Option<&mut Client> {
        self.clients.get_mut(&number)
    }

    pub(crate) fn answer(&mut self, caller: Caller, result: reply::Result) {
        self.send(caller.client, reply_message(caller.request, result), Vec::new());
    }

    pub(crate) fn send(&mut self, number: u32, kind: message::Kind, fds: Vec<OwnedFd>) {
        let Some(client) = self.clients.get_mut(&number) else { return };
        match client.send(kind, fds) {
            Ok(()) if client.lags() => {
                tell("connection closed: its client does not read what it is sent");
                self.hang_up(number);
            }
            Ok(()) => self.rearm(number),
            Err(error) => {
                tell(&format!("connection closed: {error}"));
                self.hang_up(number);
            }
        }
    }

    pub(crate) fn has_client(&self, number: u32) -> bool {
        self.clients.contains_key(&number)
    }

    /// A connection is over. The terminals of execs that it began hang up, for nobody can hold them any more.
    fn hang_up(&mut self, number: u32) {
        self.clients.remove(&number);
        for exec in self.containers.values_mut().flat_map(|container| container.execs.values_mut()) {
            if exec.caller.client == number {
                exec.terminal = None;
            }
        }
    }

    pub(crate) fn publish(&mut self, kind: event::Kind) {
        let event = self.events.add(kind);
        let subscribed: Vec<u32> =
            self.clients.iter().filter(|(_, client)| client.subscribed).map(|(number, _)| *number).collect();
        for number in subscribed {
            self.send(number, message::Kind::Event(event.clone()), Vec::new());
        }
    }

    /// Signals came. Each ended child is looked at before it is reaped: until then its group's facts are there.
    fn children(&mut self) {
        process::drain_signalfd(&self.signals);
        self.reap_all();
    }

    pub(crate) fn reap_all(&mut self) {
        while let Ok(Some(pid)) = process::peek_ended_child() {
            if let Some(number) = self.container_of(pid) {
                self.count_oom(number);
            }
            let Ok(Some(status)) = process::reap_child(pid) else { return };
            if let Some(run) = self.runtimes.remove(&pid) {
                self.runtime_ended(run, status);
            } else if let Some(number) = self.container_of(pid) {
                self.container_ended(number, status);
            } else if let Some((number, exec_id)) = self.exec_of(pid) {
                self.exec_ended(number, &exec_id, status.code());
            } else if pid == self.sandbox_process {
                self.sandbox_process_ended();
            } else if self.names_come() && self.strays.len() < MAX_STRAYS {
                self.strays.insert(pid, status.code());
            }
            if !self.names_come() {
                self.strays.clear();
            }
        }
    }

    /// Whether somebody is at work who may name a process that has ended already.
    fn names_come(&self) -> bool {
        !self.runtimes.is_empty() || !self.helpers.is_empty()
    }

    fn container_of(&self, pid: i32) -> Option<u32> {
        let live = |c: &Container| c.pid == pid && c.exit.is_none();
        self.containers.iter().find(|(_, container)| live(container)).map(|(number, _)| *number)
    }

    fn exec_of(&self, pid: i32) -> Option<(u32, String)> {
        self.containers.iter().find_map(|(number, container)| {
            let exec =
                container.execs.iter().find(|(_, exec)| exec.pid == pid && exec.exit_code.is_none())?;
            Some((*number, exec.0.clone()))
        })
    }

    fn look_for_oom(&mut self, number: u32, flags: EventFlags) {
        let gone = self.count_oom(number);
        if gone || flags.contains(EventFlags::HUP) {
            self.unwatch_oom(number);
        }
    }

    pub(crate) fn unwatch_oom(&mut self, number: u32) {
        if let Some(oom) = self.containers.get(&number).and_then(|container| container.oom.as_ref()) {
            let _ = epoll::delete(&self.epoll, oom.poll_fd().0);
        }
    }

    /// Reports kills since the last look. True if the group is gone.
    fn count_oom(&mut self, number: u32) -> bool {
        let Some(container) = self.containers.get_mut(&number) else { return true };
        let Some(oom) = &mut container.oom else { return true };
        let id = container.id.clone();
        match oom.new_kills() {
            Ok(0) => false,
            Ok(_) => {
                self.publish(event::Kind::OomKilled(proto::OomKilled { container_id: id }));
                false
            }
            Err(_) => true,
        }
    }
}
