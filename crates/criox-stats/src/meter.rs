//! The open files of one cgroup, and what was read from them before.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use criox_sys::cgroup::stats::{Gauges, Scratch, Usage};

use crate::lock;
use crate::rate::Rate;

/// Something with the time at which it was so.
#[derive(Debug, Clone, Copy)]
pub struct Taken<T> {
    /// Nanoseconds since the epoch.
    pub at: i64,
    /// What was so.
    pub what: T,
    moment: Instant,
}

impl<T> Taken<T> {
    /// It is so now.
    pub fn now(what: T) -> Self {
        Self { at: now(), what, moment: Instant::now() }
    }
}

/// Nanoseconds since the epoch; at least 1, for every block of figures has a time.
pub fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX).max(1)
}

/// The figures of one cgroup.
#[derive(Debug)]
pub struct Meter {
    gauges: Gauges,
    rate: Mutex<Rate>,
    collected: Mutex<Option<Taken<Usage>>>,
}

impl Meter {
    /// Over the files of a cgroup whose processes began at `since`, in nanoseconds since the epoch; 0: not yet.
    pub fn new(gauges: Gauges, since: i64) -> Self {
        Self { gauges, rate: Mutex::new(rate_since(since)), collected: Mutex::default() }
    }

    /// Reads, or takes what was collected less than `age` ago.
    pub fn usage(&self, age: Duration, scratch: &mut Scratch) -> Taken<Usage> {
        let collected = lock(&self.collected).filter(|taken| taken.moment.elapsed() < age);
        collected.unwrap_or_else(|| Taken::now(self.gauges.read(scratch)))
    }

    /// Nanoseconds of the CPU per second, averaged over some seconds up to now, when `used` were used in all. None:
    /// nothing was noted that is old enough.
    pub fn rate(&self, used: u64) -> Option<u64> {
        lock(&self.rate).average(Instant::now(), used)
    }

    /// Processes and threads in the group and below it.
    pub fn tasks(&self, scratch: &mut Scratch) -> Option<u64> {
        self.gauges.tasks(scratch)
    }

    /// Notes the time of the CPU, so that rates have a recent beginning; called every few seconds. With `collect` all
    /// figures are read, for [`Meter::usage`] to take.
    pub fn sample(&self, collect: bool, scratch: &mut Scratch) {
        if let Some(used) = self.gauges.cpu_usage(scratch) {
            lock(&self.rate).note(Instant::now(), used);
        }
        if collect {
            *lock(&self.collected) = Some(Taken::now(self.gauges.read(scratch)));
        }
    }

    /// The most nanoseconds of the CPU that were seen.
    pub(crate) fn last(&self) -> u64 {
        lock(&self.rate).last()
    }
}

fn rate_since(since: i64) -> Rate {
    let age = u64::try_from(now().saturating_sub(since)).unwrap_or(0);
    // What has not started has used nothing until now.
    let age = if since == 0 { 0 } else { age };
    Rate::new(Instant::now(), Duration::from_nanos(age))
}
