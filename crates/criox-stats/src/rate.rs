//! Cores in use, averaged over a window. One reading alone tells nothing of the present, and two that follow each other
//! closely tell noise: so a beat notes the time of the CPU every few seconds, and each reading is compared with a note
//! that is old enough.

use std::time::{Duration, Instant};

/// The shortest window, when there is a note to choose.
const WINDOW: Duration = Duration::from_secs(3);
/// A window below which there is no answer, for the kernel's own counting is too coarse.
const SHORTEST: Duration = Duration::from_millis(50);

/// Notes of one counter.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rate {
    /// When it was 0.
    born: Option<Instant>,
    /// The last two notes, the newer one first.
    notes: [Option<(Instant, u64)>; 2],
    /// The highest value that was seen.
    last: u64,
}

impl Rate {
    /// Of a counter that began `age` ago, as far as the clock reaches back.
    pub(crate) fn new(now: Instant, age: Duration) -> Self {
        Self { born: now.checked_sub(age), notes: [None; 2], last: 0 }
    }

    /// Notes the nanoseconds used until `now`.
    pub(crate) fn note(&mut self, now: Instant, used: u64) {
        self.last = self.last.max(used);
        self.notes = [Some((now, used)), self.notes[0]];
    }

    /// Nanoseconds per second between a note that is old enough, or the birth, and `now`.
    pub(crate) fn average(&mut self, now: Instant, used: u64) -> Option<u64> {
        self.last = self.last.max(used);
        let birth = self.born.map(|born| (born, 0));
        let older_than = |age: Duration| {
            let notes = self.notes.iter().flatten().copied().chain(birth);
            notes.into_iter().find(|(at, _)| now.saturating_duration_since(*at) >= age)
        };
        let (at, before) = older_than(WINDOW).or_else(|| older_than(SHORTEST))?;
        let window = now.saturating_duration_since(at).as_nanos();
        // A counter that has gone back belongs to a cgroup that was made anew.
        let used = u128::from(used.saturating_sub(before));
        u64::try_from(used * 1_000_000_000 / window.max(1)).ok()
    }

    /// The highest value that was seen.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn the_first_reading_is_the_average_since_the_start() {
        let now = Instant::now();
        let mut rate = Rate::new(now, Duration::ZERO);
        assert_eq!(rate.average(after(now, 4), 2 * SECOND), Some(SECOND / 2));
    }

    #[test]
    fn a_reading_right_after_the_start_has_no_rate() {
        let now = Instant::now();
        assert_eq!(Rate::new(now, Duration::ZERO).average(now, 5), None);
    }

    #[test]
    fn readings_that_follow_each_other_closely_share_a_window() {
        let now = Instant::now();
        let mut rate = Rate::new(now, Duration::from_secs(1000));
        rate.note(after(now, 0), 0);
        rate.note(after(now, 10), 10 * SECOND);
        // Only a second after the last note: the one before counts.
        assert_eq!(rate.average(after(now, 11), 11 * SECOND), Some(SECOND));
        // Later the last note is old enough, and the load has ended.
        assert_eq!(rate.average(after(now, 15), 11 * SECOND), Some(SECOND / 5));
    }

    #[test]
    fn a_counter_that_goes_back_is_no_negative_rate() {
        let now = Instant::now();
        let mut rate = Rate::new(now, Duration::from_secs(10));
        rate.note(now, 50 * SECOND);
        assert_eq!(rate.average(after(now, 5), SECOND), Some(0));
        assert_eq!(rate.last(), 50 * SECOND);
    }

    proptest! {
        #[test]
        fn a_steady_load_has_one_rate_whenever_it_is_read(
            permille in 0u64..64_000,
            steps in proptest::collection::vec((any::<bool>(), 1u64..20_000), 1..40),
        ) {
            let start = Instant::now();
            let mut rate = Rate::new(start, Duration::ZERO);
            let mut millis = 0;
            for (note, step) in steps {
                millis += step;
                let (now, used) = (start + Duration::from_millis(millis), permille * 1000 * millis);
                if note {
                    rate.note(now, used);
                } else if let Some(average) = rate.average(now, used) {
                    prop_assert_eq!(average, permille * 1_000_000);
                }
            }
        }
    }
}
