//! Pace: so many bytes and so many objects a second for all of an agent's maintenance. Pure: time is an argument.
//!
//! What is taken is paid for afterwards: a large object goes at once and makes the next one wait. What was not used is
//! remembered for a moment only, so that a pause is not followed by a storm.

use std::time::Duration;

use crate::trailer::BLOCK_BYTES;

/// What was left unused can be made up for within this time.
const BURST: Duration = Duration::from_millis(100);

/// Nothing is waited for longer, however large it was.
const LONGEST: Duration = Duration::from_secs(3600);

/// Longest step of a fragment, bytes.
const MOST_AT_ONCE: u64 = 1 << 20;

/// One rate.
#[derive(Clone, Copy, Debug, Default)]
pub struct Throttle {
    /// When what was taken so far is paid for, since any beginning.
    paid_at: Duration,
}

impl Throttle {
    /// Takes so much at this rate (a second; 0: no limit); returns how long to wait before using it.
    pub fn take(&mut self, amount: u64, rate: u64, now: Duration) -> Duration {
        if rate == 0 {
            self.paid_at = now;
            return Duration::ZERO;
        }
        let begin = self.paid_at.max(now.saturating_sub(BURST));
        let seconds = (amount as f64 / rate as f64).min(LONGEST.as_secs_f64());
        self.paid_at = begin + Duration::from_secs_f64(seconds);
        begin.saturating_sub(now)
    }

    /// Forgets what is not paid yet: the rate was changed.
    pub fn reset(&mut self, now: Duration) {
        self.paid_at = self.paid_at.min(now);
    }
}

/// Bytes of a fragment to be moved at once at this rate (a second; 0: no limit): what the rate allows in 2.5 ms, in whole
/// blocks. Whoever needs the disk or a processor meanwhile waits for no more; at 100 MiB/s the slowest reads took 2.4 times
/// as long as in peace with steps of 1 MiB, 1.5 times with steps of 256 KiB.
#[must_use]
pub fn step_bytes(rate: u64) -> u64 {
    let allowed = if rate == 0 { MOST_AT_ONCE } else { rate / 400 };
    allowed.clamp(BLOCK_BYTES, MOST_AT_ONCE) / BLOCK_BYTES * BLOCK_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_change_of_rate_or_none_at_all_takes_effect_at_once() {
        let mut throttle = Throttle::default();
        let second = Duration::from_secs(1);
        assert_eq!(throttle.take(100, 10, second * 20), Duration::ZERO);
        let wait = throttle.take(1, 10, second * 20);
        assert!(wait > second * 9 && wait <= second * 10, "{wait:?}");
        throttle.reset(second * 20);
        assert_eq!(throttle.take(1, 10, second * 20), Duration::ZERO);
        assert_eq!(throttle.take(u64::MAX, 0, second * 20), Duration::ZERO);
        assert_eq!(throttle.take(1, 10, second * 20), Duration::ZERO);
    }

    #[test]
    fn a_step_is_whole_blocks_and_grows_with_the_rate() {
        for (rate, step) in [(0, 1 << 20), (1, 65_536), (100 << 20, 256 << 10), (u64::MAX, 1 << 20)]
        {
            assert_eq!(step_bytes(rate), step, "{rate}");
        }
        assert_eq!(step_bytes(50_000_000), 65_536);
    }

    proptest! {
        #[test]
        fn no_second_sees_more_than_the_rate_and_a_burst(
            takes in proptest::collection::vec((1u64..50, 0u64..300), 1..200), rate in 50u64..500,
        ) {
            let mut throttle = Throttle::default();
            let mut now = Duration::from_secs(10);
            let (begun, mut taken, mut largest) = (now, 0, 0);
            for (amount, pause_ms) in takes {
                now += Duration::from_millis(pause_ms);
                now += throttle.take(amount, rate, now);
                // Used at `now`: all before it fits into the time so far.
                let allowed = (now - begun + BURST).as_secs_f64() * rate as f64;
                prop_assert!(taken as f64 <= allowed + 1e-6, "{} > {}", taken, allowed);
                taken += amount;
                largest = largest.max(amount);
            }
        }
    }
}
