//! The loop: what woke us, and who handles it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
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
use crate::client::{Client, Events, reply as reply_message};
use crate::container::{Caller, Container, RuntimeRun};
use crate::log::timestamp;
use crate::log_writer::{Done, Job, LogWriter};
use crate::stream::{BATCH, MAX_QUEUED, Output, READ_SIZE};
use crate::verbs::WaitingCreate;
use crate::{clock, tell};

/// How long an unfinished line waits for its rest before it is written as a partial record.
const HOLD_LINE: Duration = Duration::from_millis(250);
/// How long the read buffer is kept.
const KEEP_SCRATCH: Duration = Duration::from_millis(200);
/// Ended processes that a runtime's PID file may still name.
const MAX_STRAYS: usize = 256;
/// How long the listener rests after a failed accept (no descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a descriptor in the epoll set is; the number in the low half says which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    Listener,
    Child,
    LogWriter,
    Client(u32),
    Output(u32),
    Oom(u32),
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
            _ => Self::Oom(number),
        }
    }
}

/// What is to be looked at, at a time. Looking is harmless: timers are never taken back.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    Accept,
    Line(u32),
    Runtime(i32),
    Exec(u32, String),
    Settle(u32),
    Linger(u32),
    Delete(u32),
    Scratch,
}

pub(crate) struct Monitor {
    pub(crate) args: Args,
    pub(crate) cgroups: Cgroups,
    pub(crate) containers: BTreeMap<u32, Container>,
    pub(crate) outputs: BTreeMap<u32, Output>,
    pub(crate) runtimes: BTreeMap<i32, RuntimeRun>,
    /// Ended processes that nobody knew, while a runtime ran that may name one in its PID file.
    pub(crate) strays: BTreeMap<i32, i32>,
    /// Creations that wait for their log file.
    pub(crate) creates: BTreeMap<u32, WaitingCreate>,
    pub(crate) writer: LogWriter,
    pub(crate) events: Events,
    pub(crate) dropped: u64,
    pub(crate) ends: bool,
    /// 0: none.
    pub(crate) sandbox_process: i32,
    /// What output is read into; given back now and then, for most containers are silent most of the time.
    scratch: Vec<u8>,
    clients: BTreeMap<u32, Client>,
    timers: BinaryHeap<Reverse<(Instant, Timer)>>,
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
            runtimes: BTreeMap::new(),
            strays: BTreeMap::new(),
            creates: BTreeMap::new(),
            writer: LogWriter::new()?,
            events: Events::default(),
            dropped: 0,
            ends: false,
            sandbox_process: 0,
            scratch: Vec::new(),
            clients: BTreeMap::new(),
            timers: BinaryHeap::new(),
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
        self.timers.push(Reverse((when, timer)));
    }

    pub(crate) fn after(&mut self, wait: Duration, timer: Timer) {
        self.at(Instant::now() + wait, timer);
    }

    fn watch(&self, fd: impl AsFd, source: Source, flags: EventFlags) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, source.data(), flags)?)
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

    /// Begins to read a container's output.
    pub(crate) fn add_output(&mut self, output: Output) -> io::Result<()> {
        rustix::fs::fcntl_setfl(&output.fd, rustix::fs::OFlags::NONBLOCK)?;
        let number = self.number();
        self.watch(&output.fd, Source::Output(number), EventFlags::IN)?;
        self.outputs.insert(number, output);
        Ok(())
    }

    fn next_timeout(&self) -> Option<rustix::event::Timespec> {
        let Reverse((when, _)) = self.timers.peek()?;
        when.saturating_duration_since(Instant::now()).try_into().ok()
    }

    fn run_timers(&mut self) {
        let now = Instant::now();
        while let Some(Reverse((when, _))) = self.timers.peek() {
            if *when > now {
                return;
            }
            let Some(Reverse((_, timer))) = self.timers.pop() else { return };
            match timer {
                Timer::Accept => drop(self.watch(&self.listener, Source::Listener, EventFlags::IN)),
                Timer::Line(number) => self.release_line(number),
                Timer::Runtime(pid) => self.runtime_late(pid),
                Timer::Exec(container, exec_id) => self.look_at_exec(container, &exec_id),
                Timer::Settle(number) => self.settle(number),
                Timer::Linger(number) => self.remove_lingering(number),
                Timer::Delete(number) => self.deleted(number, None),
                Timer::Scratch => self.scratch = Vec::new(),
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
            self.clients.remove(&number);
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
        let _ = epoll::modify(&self.epoll, &client.socket, Source::Client(number).data(), flags);
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
            Ok(()) => self.rearm(number),
            Err(error) => {
                tell(&format!("connection closed: {error}"));
                self.clients.remove(&number);
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
                self.sandbox_process = 0;
                self.publish(event::Kind::SandboxProcessExited(proto::SandboxProcessExited { pid }));
            } else if !self.runtimes.is_empty() && self.strays.len() < MAX_STRAYS {
                self.strays.insert(pid, status.code());
            }
            if self.runtimes.is_empty() {
                self.strays.clear();
            }
        }
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

    /// One read, so that a busy container leaves the others their turns.
    fn read_output(&mut self, number: u32) {
        if self.outputs.get(&number).is_none_or(|output| output.paused) {
            return;
        }
        let mut buffer = std::mem::take(&mut self.scratch);
        if buffer.capacity() == 0 {
            buffer.reserve_exact(READ_SIZE);
            self.after(KEEP_SCRATCH, Timer::Scratch);
        }
        self.read_once(number, &mut buffer);
        self.scratch = buffer;
    }

    /// True if something came. The buffer's memory is touched only as far as bytes come.
    fn read_once(&mut self, number: u32, buffer: &mut Vec<u8>) -> bool {
        buffer.clear();
        let Some(output) = self.outputs.get_mut(&number) else { return false };
        match rustix::io::read(&output.fd, rustix::buffer::spare_capacity(buffer)) {
            Ok(0) | Err(rustix::io::Errno::IO) => {
                self.end_output(number);
                false
            }
            Ok(length) => {
                self.log(number, &buffer[..length]);
                true
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => false,
            Err(_) => {
                self.end_output(number);
                false
            }
        }
    }

    fn log(&mut self, number: u32, bytes: &[u8]) {
        let Some(output) = self.outputs.get_mut(&number) else { return };
        let container = output.container;
        if !self.containers.get(&container).is_some_and(|container| container.logged) {
            return;
        }
        let time = timestamp(clock::now());
        let mut batches = Vec::new();
        let (mut out, mut records) = (Vec::with_capacity(bytes.len() + bytes.len() / 2), 0);
        for part in bytes.chunks(READ_SIZE / 4) {
            records += output.splitter.feed(part, &time, &mut out);
            if out.len() >= BATCH && !out.is_empty() {
                batches.push((std::mem::take(&mut out), std::mem::take(&mut records)));
            }
        }
        batches.push((out, records));
        output.fed = Instant::now();
        let starts_timer = output.splitter.holds() && !output.timed;
        output.timed |= starts_timer;
        if starts_timer {
            self.after(HOLD_LINE, Timer::Line(number));
        }
        for (data, records) in batches {
            self.write_log(container, data, records);
        }
    }

    fn write_log(&mut self, container: u32, data: Vec<u8>, records: u64) {
        if data.is_empty() {
            return;
        }
        let length = data.len();
        if let Err(error) = self.writer.send(Job::Write { log: container, data, records }) {
            self.dropped += records;
            return tell(&format!("log lines were lost: {error}"));
        }
        let Some(owner) = self.containers.get_mut(&container) else { return };
        owner.queued += length;
        if owner.queued > MAX_QUEUED {
            self.pause_outputs(container, true);
        }
    }

    fn pause_outputs(&mut self, container: u32, pause: bool) {
        let flags = if pause { EventFlags::empty() } else { EventFlags::IN };
        for (number, output) in self.outputs.iter_mut().filter(|(_, o)| o.container == container) {
            if output.paused != pause {
                output.paused = pause;
                let _ = epoll::modify(&self.epoll, &output.fd, Source::Output(*number).data(), flags);
            }
        }
    }

    fn release_line(&mut self, number: u32) {
        let Some(output) = self.outputs.get_mut(&number) else { return };
        // The timer was set for an earlier line if bytes have come since.
        if output.paused || output.fed.elapsed() < HOLD_LINE {
            // Its rest may wait in the pipe.
            return self.after(HOLD_LINE, Timer::Line(number));
        }
        // A stalled loop must not cut a line whose rest is there.
        if self.read_once(number, &mut Vec::with_capacity(READ_SIZE)) {
            return self.after(HOLD_LINE, Timer::Line(number));
        }
        let Some(output) = self.outputs.get_mut(&number) else { return };
        output.timed = false;
        let container = output.container;
        let mut out = Vec::new();
        let records = output.splitter.release(&timestamp(clock::now()), &mut out);
        self.write_log(container, out, records);
    }

    fn end_output(&mut self, number: u32) {
        let Some(mut output) = self.outputs.remove(&number) else { return };
        let _ = epoll::delete(&self.epoll, &output.fd);
        let mut out = Vec::new();
        let records = output.splitter.finish(&timestamp(clock::now()), &mut out);
        if self.containers.get(&output.container).is_some_and(|container| container.logged) {
            self.write_log(output.container, out, records);
        }
        self.settle(output.container);
    }

    /// Reads what an ended container left in its pipes, without waiting for other holders of them.
    pub(crate) fn drain_outputs(&mut self, container: u32, end: bool) {
        let numbers = self.outputs_of(container);
        let mut buffer = Vec::with_capacity(READ_SIZE);
        for number in numbers {
            // At most what a pipe can hold (1 MiB), for others may go on writing.
            for _ in 0..(1 << 20) / READ_SIZE {
                if self.outputs.get(&number).is_none_or(|output| output.paused)
                    || !self.read_once(number, &mut buffer)
                {
                    break;
                }
            }
            // One that waits for the log writer is read on when that has caught up.
            if end && self.outputs.get(&number).is_some_and(|output| !output.paused) {
                self.end_output(number);
            }
        }
    }

    pub(crate) fn outputs_of(&self, container: u32) -> Vec<u32> {
        self.outputs.iter().filter(|(_, o)| o.container == container).map(|(number, _)| *number).collect()
    }

    fn log_written(&mut self) {
        for done in self.writer.take_done() {
            match done {
                Done::Opened { log, result } => self.log_opened(log, result),
                Done::Written { log, bytes, dropped } => {
                    self.dropped += dropped;
                    let Some(container) = self.containers.get_mut(&log) else { continue };
                    container.queued = container.queued.saturating_sub(bytes);
                    if container.queued < MAX_QUEUED / 2 {
                        self.pause_outputs(log, false);
                    }
                    self.settle(log);
                }
                Done::Reopened { client, request, result } => self.log_reopened(client, request, result),
            }
        }
    }
}
