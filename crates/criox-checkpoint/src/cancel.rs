//! A flag by which long work is called off.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use crate::error::Error;

/// Calls work off, from any thread: clones share the flag. Work that was called off undoes what it made and ends with
/// [`Error::Cancelled`].
#[derive(Debug, Clone, Default)]
pub struct Cancel {
    flag: Arc<AtomicBool>,
    deadline: Option<Instant>,
}

impl Cancel {
    /// One that nobody has called off.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same flag, which also counts as called off from `deadline` on.
    #[must_use]
    pub fn with_deadline(&self, deadline: Instant) -> Self {
        Self { flag: self.flag.clone(), deadline: Some(deadline) }
    }

    /// Calls off all work that has this flag.
    pub fn cancel(&self) {
        self.flag.store(true, Ordering::Release);
    }

    /// Whether it was called off, or is too late.
    pub fn is_cancelled(&self) -> bool {
        self.flag.load(Ordering::Acquire) || self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    /// # Errors
    /// [`Error::Cancelled`], naming `step`.
    pub(crate) fn check(&self, step: &'static str) -> Result<(), Error> {
        if self.is_cancelled() { Err(Error::Cancelled { step }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn clones_share_the_flag_and_a_deadline_counts() {
        let first = Cancel::new();
        let late = first.with_deadline(Instant::now() + Duration::from_secs(600));
        assert!(!late.is_cancelled());
        assert!(first.with_deadline(Instant::now()).is_cancelled() && !first.is_cancelled());
        first.cancel();
        assert!(late.is_cancelled());
        assert!(late.check("write").unwrap_err().to_string().contains("write"));
    }
}
