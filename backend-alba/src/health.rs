//! Health of an OSD: a score, not a switch. Time is an argument; no I/O.
//!
//! Each failure halves the score, each success brings it a tenth of the way back to 1. An OSD that failed several times in a
//! row gets nothing new until it has rested, and then a try now and then, so that it comes back by itself. Latency is
//! remembered as an average that follows the last dozen operations: placement gives a slow OSD less, and a read that takes
//! much longer than is usual is hedged.

use std::time::Duration;

/// From this many failures in a row the OSD is failing.
const FAILING_FROM: u32 = 3;
/// So long after a failure a failing OSD is left alone.
const REST: Duration = Duration::from_secs(5);
const LEAST_SCORE: f64 = 0.01;
/// Part of the average that the newest latency makes.
const NEWEST: f64 = 1.0 / 12.0;

#[derive(Clone, Debug)]
pub struct Health {
    score: f64,
    failures_in_row: u32,
    /// When it last failed, since any beginning.
    failed_at: Duration,
    /// Seconds of a small read; 0: not known.
    latency: f64,
}

impl Default for Health {
    fn default() -> Self {
        Self { score: 1.0, failures_in_row: 0, failed_at: Duration::ZERO, latency: 0.0 }
    }
}

impl Health {
    pub fn succeeded(&mut self) {
        self.score += (1.0 - self.score) / 10.0;
        self.failures_in_row = 0;
    }

    pub fn failed(&mut self, now: Duration) {
        self.score = (self.score / 2.0).max(LEAST_SCORE);
        self.failures_in_row = self.failures_in_row.saturating_add(1);
        self.failed_at = now;
    }

    /// A read took, or has been waiting, so long.
    pub fn took(&mut self, latency: Duration) {
        let newest = latency.as_secs_f64();
        self.latency = match self.latency {
            0.0 => newest,
            before => before + (newest - before) * NEWEST,
        };
    }

    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.failures_in_row >= FAILING_FROM
    }

    /// Whether it may be given something new.
    #[must_use]
    pub fn may_try(&self, now: Duration) -> bool {
        !self.is_failing() || now.saturating_sub(self.failed_at) >= REST
    }

    /// Between 0 and 1.
    #[must_use]
    pub fn score(&self) -> f64 {
        self.score
    }

    /// How long a read takes on average; zero while that is not known.
    #[must_use]
    pub fn latency(&self) -> Duration {
        Duration::from_secs_f64(self.latency)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn failures_cost_much_and_successes_bring_it_back() {
        let mut health = Health::default();
        for n in 1..=3 {
            assert!(!health.is_failing());
            health.failed(seconds(n));
        }
        assert!(health.is_failing() && health.score() < 0.13);
        assert!(!health.may_try(seconds(7)) && health.may_try(seconds(8)));
        for _ in 0..100 {
            health.failed(seconds(9));
        }
        assert!(health.score() >= LEAST_SCORE);
        health.succeeded();
        assert!(!health.is_failing() && health.may_try(seconds(9)));
        (0..60).for_each(|_| health.succeeded());
        assert!(health.score() > 0.99);
    }

    #[test]
    fn latency_follows_the_last_dozen() {
        let mut health = Health::default();
        assert_eq!(health.latency(), Duration::ZERO);
        health.took(Duration::from_millis(10));
        assert_eq!(health.latency(), Duration::from_millis(10));
        (0..60).for_each(|_| health.took(Duration::from_millis(100)));
        assert!(health.latency() > Duration::from_millis(98));
    }
}
