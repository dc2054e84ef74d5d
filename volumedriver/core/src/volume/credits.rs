//! Back-pressure: credits that come back at a rate approaching the rate at which the backend drains.
//!
//! `fill` is how full the volume's share of the write buffer is, 0..=1. Up to [`SOFT`] writes are free. Above it each write
//! takes credits (bytes); they come back at `drain * gain(fill)`, where the gain falls from large to 1 at [`EVEN`], so that a
//! burst slows down smoothly instead of hitting a wall. Beyond it the gain is less than 1: steady writing settles below full,
//! and the rest of the share takes up that the backend drains in lumps of several SCOs. When full, nothing is granted until
//! something drained.
//! Time is an argument: monotonic, since an arbitrary origin.

use std::collections::VecDeque;
use std::time::Duration;

/// Fill below which writes cost nothing.
pub const SOFT: f64 = 0.5;
/// Fill at which writes and drain are even.
const EVEN: f64 = 0.85;
/// Gain just before full.
const LEAST_GAIN: f64 = 0.1;
/// Credits come back at least at this rate until the share is full, bytes per second: a backend that is down is not yet a reason
/// to stop while there is room.
const FLOOR_BYTES_PER_S: f64 = 4.0 * 1024.0 * 1024.0;
/// Drained bytes are counted over this long.
const WINDOW: Duration = Duration::from_secs(2);
/// Most credits that can be saved up.
const BURST_BYTES: f64 = 512.0 * 1024.0;

/// What to do with a write of some bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Grant {
    Now,
    /// Ask again after this long (credits will have come back by then).
    After(Duration),
    /// Ask again when something was drained.
    WhenDrained,
}

/// The credits of one volume.
#[derive(Debug, Default)]
pub struct Credits {
    balance: f64,
    refilled: Duration,
    drained: VecDeque<(Duration, u64)>,
    drained_sum: u64,
}

impl Credits {
    /// Bytes left the buffer.
    pub fn drained(&mut self, bytes: u64, now: Duration) {
        self.drained.push_back((now, bytes));
        self.drained_sum += bytes;
        self.forget_old(now);
    }
    /// Asks for `bytes` at this fill.
    pub fn ask(&mut self, bytes: u64, fill: f64, now: Duration) -> Grant {
        if fill < SOFT {
            self.balance = BURST_BYTES;
            self.refilled = now;
            return Grant::Now;
        }
        if fill >= 1.0 {
            return Grant::WhenDrained;
        }
        let rate = self.rate(fill, now);
        let gained = now.saturating_sub(self.refilled).as_secs_f64() * rate;
        self.balance = (self.balance + gained).min(BURST_BYTES);
        self.refilled = now;
        // A write may overdraw: the next one then waits for it. So a write larger than the burst is not stuck.
        if self.balance > 0.0 {
            self.balance -= bytes as f64;
            return Grant::Now;
        }
        let wait = Duration::from_secs_f64((-self.balance / rate).clamp(0.000_2, 0.05));
        Grant::After(wait)
    }
    /// Bytes per second at which credits come back.
    fn rate(&mut self, fill: f64, now: Duration) -> f64 {
        self.forget_old(now);
        let drain = self.drained_sum as f64 / WINDOW.as_secs_f64();
        (drain * gain(fill)).max(FLOOR_BYTES_PER_S)
    }
    fn forget_old(&mut self, now: Duration) {
        while let Some(&(at, bytes)) = self.drained.front() {
            if now.saturating_sub(at) <= WINDOW {
                break;
            }
            self.drained.pop_front();
            self.drained_sum -= bytes;
        }
    }
}

/// Unbounded towards [`SOFT`], 1 at [`EVEN`], [`LEAST_GAIN`] at full.
fn gain(fill: f64) -> f64 {
    if fill > EVEN {
        let beyond = (fill - EVEN) / (1.0 - EVEN);
        return 1.0 - (1.0 - LEAST_GAIN) * beyond.min(1.0);
    }
    let x = ((fill - SOFT) / (EVEN - SOFT)).clamp(0.01, 1.0);
    1.0 + 2.0 * (1.0 - x) / x
}

#[cfg(test)]
mod tests {
    use super::*;

    fn granted_in_one_second(credits: &mut Credits, fill: f64, from: Duration) -> u64 {
        let (mut now, mut granted) = (from, 0);
        while now < from + Duration::from_secs(1) {
            match credits.ask(4096, fill, now) {
                Grant::Now => granted += 4096,
                Grant::After(wait) => now += wait,
                Grant::WhenDrained => return granted,
            }
        }
        granted
    }

    #[test]
    fn free_below_soft_and_nothing_when_full() {
        let mut credits = Credits::default();
        for _ in 0..1000 {
            assert_eq!(credits.ask(1 << 20, 0.49, Duration::ZERO), Grant::Now);
        }
        assert_eq!(credits.ask(512, 1.0, Duration::ZERO), Grant::WhenDrained);
    }

    /// Bytes granted in one second at this fill, while 100 MiB/s drain.
    fn granted_while_draining(fill: f64) -> u64 {
        let mut credits = Credits::default();
        let now = Duration::from_secs(10);
        for tenth in (0..20).rev() {
            credits.drained(DRAIN / 10, now - Duration::from_millis(100 * tenth));
        }
        granted_in_one_second(&mut credits, fill, now)
    }
    const DRAIN: u64 = 100 << 20;

    #[test]
    fn the_rate_falls_smoothly_through_the_drain_rate() {
        let fills = [0.55, 0.65, 0.75, 0.85, 0.9, 0.95, 0.999];
        let granted = fills.map(granted_while_draining);
        assert!(granted.is_sorted_by(|more, less| more > less), "{granted:?}");
    }

    #[test]
    fn writing_at_the_drain_rate_settles_below_full() {
        // The window empties during the second, so less than the gain says is granted.
        assert!(granted_while_draining(0.75) > DRAIN * 9 / 10);
        let at_even = granted_while_draining(EVEN);
        assert!((DRAIN / 2..DRAIN * 11 / 10).contains(&at_even), "{at_even}");
        assert!(granted_while_draining(0.98) < DRAIN / 3);
    }

    #[test]
    fn a_dead_backend_leaves_the_floor() {
        let mut credits = Credits::default();
        let granted = granted_in_one_second(&mut credits, 0.9, Duration::from_secs(100));
        assert!((3 << 20..6 << 20).contains(&granted), "{granted}");
    }
}
