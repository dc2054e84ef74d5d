//! Pace: so many bytes and so many objects a second for all of an agent's maintenance. Pure: time is an argument.
//!
//! What is taken is paid for afterwards: a large object goes at once and makes the next one wait. What was not used is
//! remembered for a moment only, so that a pause is not followed by a storm.

use std::time::Duration;

/// What was left unused can be made up for within this time.
const BURST: Duration = Duration::from_millis(100);

/// Nothing is waited for longer, however large it was.
const LONGEST: Duration = Duration::from_secs(3600);

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
