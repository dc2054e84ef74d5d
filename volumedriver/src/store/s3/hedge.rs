//! When a second GET is worth its while: the first has taken longer than nearly all others of its size lately.
//!
//! Times are kept per power of four of the length. Second requests are a small part of all, so that a server that is slow
//! because it has too much to do does not get twice as much.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Last times of each class that are kept.
const KEPT: usize = 128;
/// Fewer say nothing about the slowest.
const ENOUGH: usize = 32;
/// Sorting is done once for so many new times.
const EVERY: usize = 16;
/// No second request before this: below it the network alone decides.
const AT_LEAST: Duration = Duration::from_millis(10);
/// One second request per so many, and so many saved up.
const ONE_IN: u32 = 20;
const SAVED: u32 = 10 * ONE_IN;
const CLASSES: usize = 8;

/// Times of GETs.
#[derive(Debug, Default)]
pub(super) struct Latencies {
    classes: Mutex<[Times; CLASSES]>,
    /// In parts of a request.
    credit: Mutex<u32>,
}

#[derive(Debug, Default)]
struct Times {
    last: Vec<Duration>,
    next: usize,
    since_sorted: usize,
    high: Option<Duration>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// 4 KiB and less, 16 KiB, ... , more than 16 MiB.
fn class_of(len: u64) -> usize {
    let pages = len.div_ceil(4096).max(1);
    (pages.next_power_of_two().ilog2().div_ceil(2) as usize).min(CLASSES - 1)
}

impl Latencies {
    /// How long to wait for a GET of this length before asking again; `None` while too little is known.
    pub(super) fn patience(&self, len: u64) -> Option<Duration> {
        locked(&self.classes)[class_of(len)].high
    }

    /// A GET of this length was answered after `took`.
    pub(super) fn note(&self, len: u64, took: Duration) {
        {
            let mut credit = locked(&self.credit);
            *credit = (*credit + 1).min(SAVED);
        }
        let mut classes = locked(&self.classes);
        let times = &mut classes[class_of(len)];
        match times.last.get_mut(times.next) {
            Some(oldest) => *oldest = took,
            None => times.last.push(took),
        }
        times.next = (times.next + 1) % KEPT;
        times.since_sorted += 1;
        if times.last.len() >= ENOUGH && times.since_sorted >= EVERY {
            times.since_sorted = 0;
            let mut sorted = times.last.clone();
            sorted.sort_unstable();
            times.high = sorted.get(sorted.len() * 95 / 100).map(|high| (*high).max(AT_LEAST));
        }
    }

    /// Whether a second request is affordable now; if so, it is paid for.
    pub(super) fn may_ask_again(&self) -> bool {
        let mut credit = locked(&self.credit);
        let affordable = *credit >= ONE_IN;
        if affordable {
            *credit -= ONE_IN;
        }
        affordable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_powers_of_four() {
        let kib = 1 << 10;
        for (len, class) in [
            (0, 0),
            (1, 0),
            (4 * kib, 0),
            (4 * kib + 1, 1),
            (16 * kib, 1),
            (17 * kib, 2),
            (64 * kib, 2),
            (1024 * kib, 4),
            (64 * 1024 * kib, 7),
            (u64::MAX, 7),
        ] {
            assert_eq!(class_of(len), class, "{len}");
        }
    }

    #[test]
    fn the_slowest_twentieth_is_asked_again_and_no_more_than_that() {
        let times = Latencies::default();
        assert_eq!(times.patience(4096), None);
        for n in 0..100 {
            let ms = if n % 20 == 0 { 400 } else { 40 };
            times.note(4096, Duration::from_millis(ms));
        }
        assert_eq!(times.patience(4096), Some(Duration::from_millis(400)).min(times.patience(1)));
        assert_eq!(times.patience(1 << 20), None, "another size");
        let second = (0..100).filter(|_| times.may_ask_again()).count();
        assert_eq!(second, 5);
        (0..32).for_each(|_| times.note(1 << 20, Duration::from_micros(10)));
        assert_eq!(times.patience(1 << 20), Some(AT_LEAST));
    }
}
