//! The way of output: from a container's pipes, as records, to the log writer.
//!
//! A busy container writes its pipe in small pieces. The records of [`GATHER`] go to the writer together, for waking
//! it costs more than a piece is worth; the first after a pause goes at once.

use std::io;
use std::time::{Duration, Instant};

use criox_sys::process;
use rustix::event::epoll::EventFlags;

use crate::container::Phase;
use crate::log::timestamp;
use crate::log_writer::{Done, Job};
use crate::monitor::{Monitor, Source, Timer};
use crate::stream::{BATCH, MAX_QUEUED, Output, READ_SIZE};
use crate::{clock, tell};

/// How long an unfinished line waits for its rest before it is written as a partial record.
const HOLD_LINE: Duration = Duration::from_millis(250);
/// How long the records of a busy container are gathered.
const GATHER: Duration = Duration::from_millis(2);
/// How long the buffers are kept.
const KEEP_SCRATCH: Duration = Duration::from_millis(200);
/// Buffers that are kept for the next records.
const MAX_SPARE: usize = 8;

impl Monitor {
    /// Begins to read a container's output.
    pub(crate) fn add_output(&mut self, output: Output) -> io::Result<()> {
        rustix::fs::fcntl_setfl(&output.fd, rustix::fs::OFlags::NONBLOCK)?;
        let number = self.number();
        self.watch(&output.fd, Source::Output(number), EventFlags::IN)?;
        self.outputs.insert(number, output);
        Ok(())
    }

    /// One read, so that a busy container leaves the others their turns.
    pub(crate) fn read_output(&mut self, number: u32) {
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
                let (container, stream) = (output.container, output.stream);
                self.fan_out(container, stream, &buffer[..length]);
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
        output.fed = Instant::now();
        for part in bytes.chunks(READ_SIZE / 4) {
            let Some(owner) = self.containers.get_mut(&container) else { return };
            if owner.pending.capacity() == 0 {
                owner.pending = self.spare.pop().unwrap_or_else(|| Vec::with_capacity(BATCH + BATCH / 2));
            }
            let Some(output) = self.outputs.get_mut(&number) else { return };
            owner.pending_records += output.splitter.feed(part, &time, &mut owner.pending);
            if owner.pending.len() >= BATCH {
                self.send_pending(container);
            }
        }
        let Some(output) = self.outputs.get_mut(&number) else { return };
        let starts_timer = output.splitter.holds() && !output.timed;
        output.timed |= starts_timer;
        if starts_timer {
            self.after(HOLD_LINE, Timer::Line(number));
        }
        if self.containers.get(&container).is_some_and(|owner| !owner.gathering) {
            self.flush_log(container);
        }
    }

    /// Sends the records that have been gathered; gathers on if there were any.
    pub(crate) fn flush_log(&mut self, container: u32) {
        let busy = self.send_pending(container);
        let Some(owner) = self.containers.get_mut(&container) else { return };
        owner.gathering = busy;
        if busy {
            self.after(GATHER, Timer::Flush(container));
        }
    }

    /// False if there was nothing.
    pub(crate) fn send_pending(&mut self, container: u32) -> bool {
        let Some(owner) = self.containers.get_mut(&container) else { return false };
        let data = std::mem::take(&mut owner.pending);
        let records = std::mem::take(&mut owner.pending_records);
        if data.is_empty() {
            return false;
        }
        self.journal(container, &data, records);
        let Some(owner) = self.containers.get_mut(&container) else { return false };
        owner.queued += data.len();
        owner.log_full |= owner.queued > MAX_QUEUED;
        let full = owner.log_full;
        if let Err(error) = self.writer.send(Job::Write { log: container, data, records }) {
            self.dropped += records;
            tell(&format!("log lines were lost: {error}"));
        } else if full {
            self.update_pause(container);
            self.writer.hurry();
        }
        true
    }

    /// Reads a container's output unless its log or an attached client is behind.
    pub(crate) fn update_pause(&mut self, container: u32) {
        let full = self.containers.get(&container).is_some_and(|owner| owner.log_full);
        let pause = full || self.client_lags(container);
        let flags = if pause { EventFlags::empty() } else { EventFlags::IN };
        let mut resumed = false;
        for number in self.outputs_of(container) {
            let Some(output) = self.outputs.get_mut(&number) else { continue };
            if std::mem::replace(&mut output.paused, pause) != pause {
                self.watch_output(number, flags);
                resumed |= !pause;
            }
        }
        // One that has ended was reported without what waited: that is read now, for nobody looks again.
        if resumed && self.containers.get(&container).is_some_and(|owner| owner.phase == Phase::Exited) {
            self.drain_outputs(container, true);
        }
    }

    fn watch_output(&self, number: u32, flags: EventFlags) {
        if let Some(output) = self.outputs.get(&number) {
            self.rewatch(&output.fd, Source::Output(number), flags);
        }
    }

    pub(crate) fn release_line(&mut self, number: u32) {
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
        let Some(owner) = self.containers.get_mut(&container) else { return };
        owner.pending_records += output.splitter.release(&timestamp(clock::now()), &mut owner.pending);
        self.send_pending(container);
    }

    fn end_output(&mut self, number: u32) {
        let Some(mut output) = self.outputs.remove(&number) else { return };
        self.unwatch(&output.fd);
        if let Some(owner) = self.containers.get_mut(&output.container).filter(|owner| owner.logged) {
            owner.pending_records += output.splitter.finish(&timestamp(clock::now()), &mut owner.pending);
        }
        self.send_pending(output.container);
        self.settle(output.container);
        self.output_over(output.container);
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

    pub(crate) fn log_written(&mut self) {
        for done in self.writer.take_done() {
            match done {
                Done::Opened { log, result } => self.log_opened(log, result),
                Done::Written { log, mut data, dropped } => {
                    self.dropped += dropped;
                    let length = data.len();
                    let keep = self.spare.len() < MAX_SPARE && data.capacity() <= 2 * BATCH;
                    if keep && self.scratch.capacity() > 0 {
                        data.clear();
                        self.spare.push(data);
                    }
                    let Some(container) = self.containers.get_mut(&log) else { continue };
                    container.queued = container.queued.saturating_sub(length);
                    if container.log_full && container.queued < MAX_QUEUED / 2 {
                        container.log_full = false;
                        self.update_pause(log);
                    }
                    self.settle(log);
                }
                Done::Reopened { client, request, result } => self.log_reopened(client, request, result),
            }
        }
        let awaited = self.outputs.values().any(|output| output.paused)
            || self.containers.values().any(|container| container.settling.is_some());
        if awaited {
            self.writer.hurry();
        }
    }

    /// Gives memory back that only a busy monitor needs.
    pub(crate) fn shrink(&mut self) {
        self.scratch = Vec::new();
        self.journal.shrink();
        self.log_written();
        self.spare = Vec::new();
        process::release_memory();
    }
}
