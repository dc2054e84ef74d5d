//! How much of a bucket is used: a bucket has no end and does not say how much is in it.
//!
//! All keys are counted now and then, in the background; in between, what this process puts is added. What it deletes it does
//! not know the length of: after deletions counting begins sooner. Under a ceiling, what other servers put meanwhile is
//! noticed at the next count.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use crate::osd::{Limits, Room};

/// Counted so often.
const EVERY: Duration = Duration::from_secs(600);
/// After deletions, and when the last count failed.
const SOONER: Duration = Duration::from_secs(30);
/// What one without a ceiling always has left, bytes.
const ALWAYS_LEFT: u64 = 1 << 40;

#[derive(Debug, Default)]
pub(super) struct Tally {
    ceiling: Option<u64>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    used: u64,
    /// Put since the count that is under way began.
    put_meanwhile: u64,
    counted_at: Option<Instant>,
    is_counting: bool,
    /// It may hold less than is known, or the last count failed.
    is_doubtful: bool,
}

impl Tally {
    pub(super) fn new(ceiling: Option<u64>) -> Self {
        Self { ceiling, state: Mutex::default() }
    }

    // Changed by steps that do not panic.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(super) fn room(&self) -> Room {
        let used = self.state().used;
        match self.ceiling {
            None => Room::new((used.saturating_add(ALWAYS_LEFT), used), 0, ALWAYS_LEFT),
            Some(capacity) => {
                let reserve = Limits::default().reserve(capacity);
                Room::new((capacity, used), reserve, capacity.saturating_sub(used))
            }
        }
    }

    pub(super) fn put(&self, bytes: u64) {
        let mut state = self.state();
        state.used = state.used.saturating_add(bytes);
        state.put_meanwhile = state.put_meanwhile.saturating_add(bytes);
    }

    /// What was to be put is not there.
    pub(super) fn not_put(&self, bytes: u64) {
        let mut state = self.state();
        state.used = state.used.saturating_sub(bytes);
        state.put_meanwhile = state.put_meanwhile.saturating_sub(bytes);
    }

    pub(super) fn deleted(&self) {
        self.state().is_doubtful = true;
    }

    /// Whether it is time to count: then somebody must, and say what came of it.
    pub(super) fn begin(&self) -> bool {
        let mut state = self.state();
        let after = if state.is_doubtful { SOONER } else { EVERY };
        let is_time = state.counted_at.is_none_or(|at| at.elapsed() >= after);
        if state.is_counting || !is_time {
            return false;
        }
        (state.is_counting, state.is_doubtful, state.put_meanwhile) = (true, false, 0);
        true
    }

    /// `None` when it could not be counted. What was put meanwhile may be in the count or not: it is taken to be not.
    pub(super) fn end(&self, counted: Option<u64>) {
        let mut state = self.state();
        match counted {
            Some(bytes) => state.used = bytes.saturating_add(state.put_meanwhile),
            None => state.is_doubtful = true,
        }
        (state.is_counting, state.counted_at) = (false, Some(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_counted_is_counted_again_in_time() {
        const GIB: u64 = 1 << 30;
        let tally = Tally::new(Some(10 * GIB));
        assert!(tally.begin() && !tally.begin(), "one at a time");
        tally.put(GIB);
        tally.end(Some(5 * GIB));
        assert_eq!((tally.room().used_bytes, tally.room().left_bytes), (6 * GIB, 4 * GIB));
        assert!(tally.room().free_bytes < 4 * GIB, "a reserve is kept");
        assert!(!tally.begin());
        tokio::time::advance(EVERY).await;
        assert!(tally.begin());
        tally.end(Some(6 * GIB));
        tally.deleted();
        assert!(!tally.begin());
        tokio::time::advance(SOONER).await;
        assert!(tally.begin());
        tally.end(None);
        assert_eq!(tally.room().used_bytes, 6 * GIB);
        tokio::time::advance(SOONER).await;
        assert!(tally.begin(), "a count that failed is repeated soon");
        tally.put(5 * GIB);
        assert_eq!(tally.room().left_bytes, 0);
        tally.not_put(5 * GIB);
        assert_eq!(tally.room().left_bytes, 4 * GIB);
        let free = Tally::new(None).room().free_bytes;
        assert_eq!(free, ALWAYS_LEFT);
    }
}
