//! Work that several want at the same time: the first does it, the others wait for what it comes to.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Work of which at most one is in flight. No lock is held while it is done.
#[derive(Debug)]
pub(super) struct Flights<T>(Mutex<Option<Arc<Flight<T>>>>);

#[derive(Debug)]
struct Flight<T> {
    state: Mutex<State<T>>,
    landed: Condvar,
}

#[derive(Debug)]
struct State<T> {
    over: bool,
    result: Option<T>,
}

impl<T> Default for Flights<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T: Clone> Flights<T> {
    /// Does the work, or waits for the one that is in flight, but not longer than `patience`. None: that has not ended, or
    /// not with a result.
    pub(super) fn join(&self, patience: Duration, work: impl FnOnce() -> T) -> Option<T> {
        let (flight, is_first) = self.board();
        if !is_first {
            let state = flight.landed.wait_timeout_while(lock(&flight.state), patience, |state| !state.over);
            return state.unwrap_or_else(PoisonError::into_inner).0.result.clone();
        }
        // Also if the work panics.
        let landing = Landing { flights: self, flight: &flight };
        let result = work();
        lock(&flight.state).result = Some(result.clone());
        drop(landing);
        Some(result)
    }

    /// The flight there is, or a new one.
    fn board(&self) -> (Arc<Flight<T>>, bool) {
        let mut current = lock(&self.0);
        if let Some(flight) = &*current {
            return (flight.clone(), false);
        }
        let state = Mutex::new(State { over: false, result: None });
        let flight = Arc::new(Flight { state, landed: Condvar::new() });
        *current = Some(flight.clone());
        (flight, true)
    }
}

/// Ends a flight when it is dropped.
struct Landing<'a, T> {
    flights: &'a Flights<T>,
    flight: &'a Flight<T>,
}

impl<T> Drop for Landing<'_, T> {
    fn drop(&mut self) {
        // Who comes from here on begins anew.
        *lock(&self.flights.0) = None;
        lock(&self.flight.state).over = true;
        self.flight.landed.notify_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// Runs `others` while work is in flight, which ends when they have ended.
    fn during<T: Send + Clone>(flights: &Flights<T>, result: T, others: impl FnOnce()) {
        let (begun, has_begun) = mpsc::channel();
        let (end, may_end) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                flights.join(LONG, || {
                    begun.send(()).expect("the test listens");
                    // Also when the other end is gone: the test has panicked.
                    may_end.recv_timeout(LONG).unwrap_or_default();
                    result
                })
            });
            has_begun.recv_timeout(LONG).expect("it begins");
            others();
            drop(end);
        });
    }

    #[test]
    fn who_comes_meanwhile_gets_the_first_ones_result_and_who_comes_later_begins_anew() {
        let flights = Flights::default();
        let done = AtomicUsize::new(0);
        let work = || done.fetch_add(1, Ordering::Relaxed);
        std::thread::scope(|scope| {
            let waiting: Mutex<Vec<_>> = Mutex::new(Vec::new());
            during(&flights, 77, || {
                for _ in 0..3 {
                    lock(&waiting).push(scope.spawn(|| flights.join(LONG, work)));
                }
                // They wait by now, or come so late that they do the work themselves; neither is wrong.
                std::thread::sleep(Duration::from_millis(100));
            });
            for thread in lock(&waiting).drain(..) {
                assert_eq!(thread.join().expect("no panic"), Some(77));
            }
        });
        assert_eq!(done.load(Ordering::Relaxed), 0);
        assert_eq!(flights.join(LONG, work), Some(0));
    }

    #[test]
    fn nobody_waits_longer_than_he_wants_to() {
        let flights = Flights::default();
        during(&flights, 1, || assert_eq!(flights.join(Duration::from_millis(10), || 2), None));
        assert_eq!(flights.join(LONG, || 3), Some(3));
    }

    #[test]
    fn work_that_panics_keeps_nobody_waiting() {
        let flights: Flights<u8> = Flights::default();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            flights.join(LONG, || panic!("on purpose"))
        }));
        assert!(panicked.is_err());
        assert_eq!(flights.join(LONG, || 3), Some(3));
    }
}
