//! How fast puts hand their bytes over while requests need the local disk more than uploads do.
//!
//! Uploads to a store on the same disk take bandwidth from the journal, and every flush of the disk waits for what they have
//! written since the last. The shard says how fast they may go ([`ObjectStore::pace`](crate::world::ObjectStore::pace));
//! all puts of the store share that rate.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// Shared by its clones. Without a rate it lets everything pass.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    /// 0: no limit.
    bytes_per_s: AtomicU64,
    /// When the next bytes may go.
    due: Mutex<Option<Instant>>,
    changed: Notify,
}

impl Pace {
    /// Bytes per second of all puts together, `None` for no limit. Those that wait take note at once.
    pub fn set(&self, bytes_per_s: Option<u64>) {
        let rate = bytes_per_s.map_or(0, |rate| rate.max(1));
        if self.state.bytes_per_s.swap(rate, Ordering::Relaxed) != rate {
            self.state.changed.notify_waiters();
        }
    }

    #[must_use]
    pub fn is_set(&self) -> bool {
        self.state.bytes_per_s.load(Ordering::Relaxed) != 0
    }

    /// Waits until so many more bytes may go.
    pub async fn take(&self, bytes: u64) {
        loop {
            let changed = self.state.changed.notified();
            let rate = self.state.bytes_per_s.load(Ordering::Relaxed);
            if rate == 0 {
                return;
            }
            let start = self.state.place(bytes, rate);
            let wait = start.saturating_duration_since(Instant::now());
            tokio::select! {
                () = tokio::time::sleep(wait) => return,
                // With another rate the place in line is worth nothing.
                () = changed => {}
            }
        }
    }
}

impl State {
    /// Takes the next place in line; when it begins.
    fn place(&self, bytes: u64, rate: u64) -> Instant {
        let now = Instant::now();
        let took = Duration::from_secs_f64(bytes as f64 / rate as f64);
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        // A line that got far ahead of time is one of an older, slower rate.
        let start = due.filter(|due| *due < now + took * 64).map_or(now, |due| due.max(now));
        *due = Some(start + took);
        start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn seconds_for(pace: &Pace, steps: u64, bytes: u64) -> f64 {
        let began = Instant::now();
        for _ in 0..steps {
            pace.take(bytes).await;
        }
        began.elapsed().as_secs_f64()
    }

    #[tokio::test]
    async fn without_a_rate_nothing_waits() {
        assert!(seconds_for(&Pace::default(), 1000, 1 << 30).await < 0.5);
    }

    #[tokio::test]
    async fn puts_share_one_rate() {
        let pace = Pace::default();
        pace.set(Some(10 << 20));
        let (one, other) = (pace.clone(), pace.clone());
        let began = Instant::now();
        tokio::join!(seconds_for(&one, 10, 100 << 10), seconds_for(&other, 10, 100 << 10));
        // 2000 KiB at 10 MiB/s; the last 100 KiB need not have passed.
        assert!(began.elapsed().as_secs_f64() > 0.17, "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn who_waits_goes_on_when_the_limit_is_lifted() {
        let pace = Pace::default();
        pace.set(Some(1));
        pace.take(1000).await;
        let waiting = pace.clone();
        let task = tokio::spawn(async move { waiting.take(1000).await });
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!task.is_finished());
        pace.set(None);
        tokio::time::timeout(Duration::from_secs(5), task).await.unwrap().unwrap();
    }
}
