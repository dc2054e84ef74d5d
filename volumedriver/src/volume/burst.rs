//! Uploads wait while a burst comes in: disk, network and processor are the guest's then, and what lies in the write buffer is
//! as safe as a flush makes anything. They wait for seconds at most, and only while little is behind.

use std::time::Duration;

use super::Volume;
use crate::world::{ObjectStore as _, World};

/// From so many bytes per second on, what comes in is a burst.
const BURST: f64 = 64.0 * 1024.0 * 1024.0;
/// The inflow is measured over at least this long.
const WINDOW: Duration = Duration::from_millis(20);
/// A burst that lasts longer than this is a stream.
const LONGEST: Duration = Duration::from_secs(5);
/// Parts of the write buffer: that a volume may be behind, and that may be taken by all of them.
const BEHIND: f64 = 0.25;
const TAKEN: f64 = 0.4;
/// Whoever waits looks again after this long.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Bytes per second that come into a shard.
#[derive(Debug, Default)]
pub struct Inflow {
    at: Duration,
    bytes: u64,
    per_second: f64,
}

impl Inflow {
    /// So many bytes have come in up to now, all in all.
    fn per_second(&mut self, bytes: u64, now: Duration) -> f64 {
        let since = now.saturating_sub(self.at);
        if since >= WINDOW {
            self.per_second = bytes.saturating_sub(self.bytes) as f64 / since.as_secs_f64();
            (self.at, self.bytes) = (now, bytes);
        }
        self.per_second
    }
}

impl<W: World> Volume<W> {
    /// Whether the next upload lets a burst go first.
    pub(super) fn gives_way(&self) -> bool {
        let (buffer, world) = (&self.shared.buffer, &self.shared.world);
        let inflow = &self.shared.inflow;
        let inflow = inflow.borrow_mut().per_second(buffer.counters().data_bytes, world.now());
        if inflow < BURST || self.upload_is_awaited() || self.upload_lag() >= LONGEST {
            return false;
        }
        let capacity = buffer.capacity_bytes() as f64;
        let most = match world.store().is_on_this_disk() {
            // What has left memory would have to be read back from the disk that is in short supply.
            true => buffer.most_memory_bytes() as f64 / 2.0,
            false => capacity * BEHIND,
        };
        let little = (self.backlog().0 as f64) < most && self.fill() < TAKEN;
        little && (buffer.used_bytes() as f64) < capacity * TAKEN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inflow_is_that_of_the_latest_window() {
        let mut inflow = Inflow::default();
        let ms = Duration::from_millis;
        assert!((inflow.per_second(1000, ms(1000)) - 1000.0).abs() < 1e-6);
        assert!((inflow.per_second(9000, ms(1010)) - 1000.0).abs() < 1e-6, "too soon");
        assert!((inflow.per_second(11_000, ms(1020)) - 500_000.0).abs() < 1e-6);
        assert!(inflow.per_second(11_000, ms(3020)).abs() < 1e-6);
    }
}
