//! Attached clients: they get a container's output beside its log, and may write to its stdin. `monitor.proto` says
//! which descriptors a client brings.
//!
//! **A client that does not keep up** first slows the container down, as a full pipe would: so nothing is lost to one
//! that is merely slower than the container. It holds the output, and with it the log, for at most [`STALL`]; then it is
//! cut off. Nothing of it is kept in memory but what one read of each stream brought.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use criox_monitor_api::proto::{self, failure::Kind, reply};
use rustix::event::epoll::EventFlags;

use crate::client::{done, failure};
use crate::container::{Container, Phase};
use crate::log::Stream;
use crate::monitor::{Monitor, Source, Timer};
use crate::tell;
use crate::verbs::not_found;

/// Bytes for stdin that one read takes.
const INPUT: usize = 16 * 1024;
/// Clients of one container.
const MAX_CLIENTS: usize = 64;
/// How long a client may leave output untaken.
const STALL: Duration = Duration::from_secs(2);
/// How long what a client sent before it went waits for the container to read it.
const FAREWELL: Duration = Duration::from_secs(10);
/// A daemon that dies closes its descriptors one after the other: after so long the lease is among them.
const LAST_WORDS: Duration = Duration::from_millis(50);

pub(crate) struct Attached {
    container: u32,
    /// None: the client has gone, but what it sent has not all been passed on.
    lease: Option<OwnedFd>,
    stdin: Option<OwnedFd>,
    /// It asked for stdin.
    writes: bool,
    /// Bytes that the container's stdin did not take; until it does, no more are read.
    input: Vec<u8>,
    /// The end of its input is the end of the container's, where that is open once.
    last_words: bool,
    sinks: Vec<Sink>,
    /// When it is cut off.
    deadline: Option<Instant>,
    /// Nothing more comes: all is closed when it has taken what waits.
    ended: bool,
}

/// Where output goes.
struct Sink {
    fd: OwnedFd,
    stdout: bool,
    stderr: bool,
    /// What did not fit.
    pending: Vec<u8>,
}

impl Sink {
    fn wants(&self, stream: Stream) -> bool {
        match stream {
            Stream::Stdout => self.stdout,
            Stream::Stderr => self.stderr,
        }
    }

    /// Writes what fits and keeps the rest. False: nobody reads it any more.
    fn send(&mut self, bytes: &[u8]) -> bool {
        let taken = match self.pending.is_empty() {
            true => write(self.fd.as_fd(), bytes),
            false => Ok(0),
        };
        taken.map(|taken| self.pending.extend_from_slice(&bytes[taken..])).is_ok()
    }

    fn flush(&mut self) -> bool {
        let taken = write(self.fd.as_fd(), &self.pending);
        match taken {
            Ok(taken) if taken == self.pending.len() => self.pending = Vec::new(),
            Ok(taken) => drop(self.pending.drain(..taken)),
            Err(_) => return false,
        }
        true
    }
}

/// Writes until the other side is full; how much it took.
fn write(fd: BorrowedFd<'_>, bytes: &[u8]) -> rustix::io::Result<usize> {
    let mut taken = 0;
    while taken < bytes.len() {
        match rustix::io::write(fd, &bytes[taken..]) {
            Ok(count) => taken += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(taken)
}

impl Attached {
    fn lags(&self) -> bool {
        self.sinks.iter().any(|sink| !sink.pending.is_empty())
    }

    /// Takes the descriptors as the request orders them.
    fn new(container: u32, request: &proto::Attach, fds: Vec<OwnedFd>) -> io::Result<Self> {
        for fd in &fds {
            rustix::io::ioctl_fionbio(fd, true)?;
        }
        let mut fds = fds.into_iter();
        let lease = fds.next();
        let (mut stdin, mut sinks) = (None, Vec::new());
        let sink = |fd, stdout, stderr| Sink { fd, stdout, stderr, pending: Vec::new() };
        if request.terminal {
            if let Some(socket) = fds.next() {
                stdin = request.stdin.then(|| socket.try_clone()).transpose()?;
                sinks.push(sink(socket, request.stdout, false));
            }
        } else {
            stdin = if request.stdin { fds.next() } else { None };
            if request.stdout {
                sinks.extend(fds.next().map(|fd| sink(fd, true, false)));
            }
            if request.stderr {
                sinks.extend(fds.next().map(|fd| sink(fd, false, true)));
            }
        }
        let (writes, input, last_words, deadline, ended) = (stdin.is_some(), Vec::new(), false, None, false);
        Ok(Self { container, lease, stdin, writes, input, last_words, sinks, deadline, ended })
    }
}

impl Monitor {
    pub(crate) fn attach(&mut self, request: &proto::Attach, fds: Vec<OwnedFd>) -> reply::Result {
        let Some(number) = self.find(&request.container_id) else { return not_found(&request.container_id) };
        let Some(container) = self.containers.get(&number) else { return not_found(&request.container_id) };
        let refused = |text: String| failure(Kind::WrongState, text);
        if !matches!(container.phase, Phase::Created | Phase::Running) || container.exit.is_some() {
            return refused(format!("container {} does not run", container.id));
        }
        let waits = container.restore.as_ref().is_some_and(|waiting| waiting.terminal());
        if (container.terminal.is_some() || waits) != request.terminal {
            let has = if request.terminal { "no" } else { "a" };
            return refused(format!("container {} has {has} terminal", container.id));
        }
        if self.attached.values().filter(|client| client.container == number).count() >= MAX_CLIENTS {
            return refused(format!("container {} has {MAX_CLIENTS} attached clients already", container.id));
        }
        let internal = |error: io::Error| {
            failure(Kind::Internal, format!("could not take the client's streams: {error}"))
        };
        let client = match Attached::new(number, request, fds) {
            Ok(client) => client,
            Err(error) => return internal(error),
        };
        let id = self.number();
        match self.watch_attached(id, &client) {
            Ok(()) => {
                self.attached.insert(id, client);
                done()
            }
            Err(error) => internal(error),
        }
    }

    /// Closing the descriptors, which happens when this fails, takes back what has been added.
    fn watch_attached(&self, id: u32, client: &Attached) -> io::Result<()> {
        if let Some(lease) = &client.lease {
            self.watch(lease, Source::Attached(id), EventFlags::IN)?;
        }
        if let Some(stdin) = &client.stdin {
            self.watch(stdin, Source::AttachedInput(id), EventFlags::IN)?;
        }
        for sink in &client.sinks {
            // Its reader's end is always told.
            self.watch(&sink.fd, Source::AttachedOutput(id), EventFlags::empty())?;
        }
        Ok(())
    }

    /// Passes output to those who are attached.
    pub(crate) fn fan_out(&mut self, container: u32, stream: Stream, bytes: &[u8]) {
        let (mut late, mut unread) = (Vec::new(), Vec::new());
        for (number, client) in self.attached.iter_mut().filter(|(_, client)| client.container == container) {
            unread.extend(client.sinks.extract_if(.., |sink| sink.wants(stream) && !sink.send(bytes)));
            if client.lags() {
                late.push(*number);
            }
        }
        self.drop_sinks(unread);
        for number in late {
            self.watch_sinks(number);
        }
    }

    /// Whether a client is behind, so that the container's output waits.
    pub(crate) fn client_lags(&self, container: u32) -> bool {
        self.attached.values().any(|client| client.container == container && client.lags())
    }

    /// Of a terminal's socket another descriptor stays open: closing one is not enough for the loop to forget it.
    fn drop_sinks(&self, sinks: Vec<Sink>) {
        for sink in sinks {
            self.unwatch(&sink.fd);
        }
    }

    /// Waits for room where something waits, and starts or stops the client's clock.
    fn watch_sinks(&mut self, number: u32) {
        let Some(client) = self.attached.get_mut(&number) else { return };
        let (container, late) = (client.container, client.lags());
        let starts = late && client.deadline.is_none();
        if client.lease.is_some() {
            client.deadline = late.then(|| client.deadline.unwrap_or_else(|| Instant::now() + STALL));
        }
        if starts {
            self.after(STALL, Timer::Attached(number));
        }
        if let Some(client) = self.attached.get(&number) {
            for sink in &client.sinks {
                let flags = if sink.pending.is_empty() { EventFlags::empty() } else { EventFlags::OUT };
                self.rewatch(&sink.fd, Source::AttachedOutput(number), flags);
            }
        }
        self.update_pause(container);
    }

    /// There is room in a sink, or nobody reads it any more.
    pub(crate) fn output_ready(&mut self, number: u32) {
        let Some(client) = self.attached.get_mut(&number) else { return };
        let unread = client.sinks.extract_if(.., |sink| !sink.flush() || abandoned(&sink.fd)).collect();
        let over = client.ended && !client.lags();
        self.drop_sinks(unread);
        if over { self.detach(number) } else { self.watch_sinks(number) }
    }

    /// There are bytes for stdin, or their end.
    pub(crate) fn input_ready(&mut self, number: u32) {
        let Some(client) = self.attached.get_mut(&number) else { return };
        let Some(stdin) = &client.stdin else { return };
        let mut bytes = Vec::with_capacity(INPUT);
        match rustix::io::read(stdin, rustix::buffer::spare_capacity(&mut bytes)) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Ok(0) | Err(_) => self.input_ended(number),
            Ok(_) => {
                client.input = bytes;
                self.pass_on(number);
            }
        }
    }

    /// Writes a client's bytes to the container's stdin; what does not fit waits for room.
    fn pass_on(&mut self, number: u32) {
        let Some(client) = self.attached.get_mut(&number) else { return };
        let owner = client.container;
        let owned = self.containers.get(&owner);
        let stdin = owned.and_then(stdin_of);
        // Its terminal is still to come.
        let restored = owned.is_some_and(|c| c.restore.as_ref().is_some_and(|waiting| waiting.terminal()));
        let taken = match stdin {
            None if restored => Some(Ok(0)),
            stdin => stdin.map(|stdin| write(stdin, &client.input)),
        };
        let waits = match taken {
            Some(Ok(taken)) if taken < client.input.len() => {
                client.input.drain(..taken);
                true
            }
            // Written; or nobody reads it any more, and what comes is thrown away.
            _ => {
                client.input = Vec::new();
                false
            }
        };
        let Some(stdin) = self.attached.get(&number).and_then(|client| client.stdin.as_ref()) else { return };
        if waits {
            // Not only left unread: the end of the client is told unasked, again and again.
            self.unwatch(stdin);
            self.watch_stdin(owner);
        } else {
            // It may be watched already.
            drop(self.watch(stdin, Source::AttachedInput(number), EventFlags::IN));
        }
    }

    /// Waits, once, for room in a container's stdin.
    fn watch_stdin(&self, container: u32) {
        if let Some(fd) = self.containers.get(&container).and_then(stdin_of) {
            let flags = EventFlags::OUT | EventFlags::ONESHOT;
            if self.watch(fd, Source::Stdin(container), flags).is_err() {
                self.rewatch(fd, Source::Stdin(container), flags);
            }
        }
    }

    /// There is room in a container's stdin, or nobody reads it any more.
    pub(crate) fn stdin_ready(&mut self, container: u32) {
        let waiting = |client: &Attached| client.container == container && !client.input.is_empty();
        let numbers: Vec<u32> =
            self.attached.iter().filter(|(_, client)| waiting(client)).map(|(number, _)| *number).collect();
        for number in numbers {
            self.pass_on(number);
        }
    }

    /// A client's input is over: is it the client's end, or the daemon's?
    fn input_ended(&mut self, number: u32) {
        let Some(client) = self.attached.get_mut(&number) else { return };
        let stdin = client.stdin.take();
        let (gone, meant, container) = (client.lease.is_none(), client.last_words, client.container);
        drop(stdin.inspect(|fd| self.unwatch(fd)));
        if !gone {
            if let Some(client) = self.attached.get_mut(&number) {
                client.last_words = true;
            }
            return self.after(LAST_WORDS, Timer::Attached(number));
        }
        self.detach(number);
        if meant {
            self.input_over(container);
        }
    }

    fn input_over(&mut self, container: u32) {
        if self.containers.get(&container).is_some_and(|owner| owner.stdin_once) {
            self.close_stdin(container);
        }
    }

    /// A terminal stays open: it has no end of its input.
    pub(crate) fn close_stdin(&mut self, container: u32) {
        let Some(stdin) = self.containers.get_mut(&container).and_then(|c| c.stdin.take()) else { return };
        self.unwatch(&stdin);
        drop(stdin);
        self.stdin_ready(container);
    }

    /// The client has gone, or its daemon. What it sent before is still passed on, for a while.
    pub(crate) fn lease_ended(&mut self, number: u32) {
        let Some(client) = self.attached.get_mut(&number) else { return };
        let Some(lease) = client.lease.take() else { return };
        let meant = matches!(rustix::io::read(&lease, &mut [0; 1]), Ok(1));
        let sinks = std::mem::take(&mut client.sinks);
        let (container, writes, over) = (client.container, client.writes, client.stdin.is_none());
        client.last_words = meant;
        client.deadline = Some(Instant::now() + FAREWELL);
        self.unwatch(&lease);
        self.drop_sinks(sinks);
        if over {
            self.detach(number);
            if meant && writes {
                self.input_over(container);
            }
            return;
        }
        self.after(FAREWELL, Timer::Attached(number));
        self.update_pause(container);
    }

    /// A client's time is over, if it still holds something up; or its input has ended, and the daemon lives.
    pub(crate) fn attached_late(&mut self, number: u32) {
        let Some(client) = self.attached.get_mut(&number) else { return };
        let container = client.container;
        if client.lease.is_some() && client.stdin.is_none() && std::mem::take(&mut client.last_words) {
            self.input_over(container);
            // Who only came to write has done.
            if self.attached.get(&number).is_some_and(|client| client.sinks.is_empty()) {
                return self.detach(number);
            }
        }
        let Some(deadline) = self.attached.get(&number).and_then(|client| client.deadline) else { return };
        if Instant::now() < deadline {
            return self.at(deadline, Timer::Attached(number));
        }
        tell("an attached client was cut off, for it or its container did not read");
        self.detach(number);
    }

    fn detach(&mut self, number: u32) {
        let Some(client) = self.attached.remove(&number) else { return };
        let fds = client.lease.iter().chain(&client.stdin).chain(client.sinks.iter().map(|sink| &sink.fd));
        for fd in fds {
            self.unwatch(fd);
        }
        self.update_pause(client.container);
    }

    /// Ends the clients of a container that has ended and whose output has all been read.
    pub(crate) fn output_over(&mut self, container: u32) {
        let ended = self.containers.get(&container).is_some_and(|owner| owner.phase == Phase::Exited);
        if ended && self.outputs_of(container).is_empty() {
            self.end_attached(container);
        }
    }

    pub(crate) fn end_attached(&mut self, container: u32) {
        let of_it = self.attached.iter_mut().filter(|(_, client)| client.container == container);
        let mut over = Vec::new();
        for (number, client) in of_it {
            client.ended = true;
            if !client.lags() {
                over.push(*number);
            }
        }
        for number in over {
            self.detach(number);
        }
    }
}

fn stdin_of(container: &Container) -> Option<BorrowedFd<'_>> {
    container.terminal.as_ref().or(container.stdin.as_ref()).map(AsFd::as_fd)
}

/// Whether nobody reads from it any more.
fn abandoned(sink: &OwnedFd) -> bool {
    let mut polled = [rustix::event::PollFd::new(sink, rustix::event::PollFlags::empty())];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    let told = rustix::event::poll(&mut polled, Some(&now)).is_ok();
    told && polled[0].revents().intersects(rustix::event::PollFlags::ERR | rustix::event::PollFlags::HUP)
}
