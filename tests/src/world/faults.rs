//! What may go wrong in a simulated world, and how often. Rates are per million calls; times are virtual.

use std::time::Duration;

/// Everything that may go wrong while the engine runs. The default is a fast world without faults.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    pub disk: DiskFaults,
    /// What the read cache's files (`cache-...`) suffer instead of `disk`: nothing may ever come of it.
    pub cache: DiskFaults,
    pub store: StoreFaults,
    pub canary: Option<Canary>,
}

#[derive(Clone, Debug)]
pub struct DiskFaults {
    /// Longest delay of a call, milliseconds. Most calls take none.
    pub delay_ms: u64,
    /// How many calls are delayed at all.
    pub delayed: u32,
    pub read_error: u32,
    pub write_error: u32,
    /// Reads that return one flipped bit; the medium is good.
    pub flip_on_read: u32,
    /// Bytes that fit on the disk.
    pub capacity: u64,
}

impl Default for DiskFaults {
    fn default() -> Self {
        Self {
            delay_ms: 0,
            delayed: 0,
            read_error: 0,
            write_error: 0,
            flip_on_read: 0,
            capacity: u64::MAX,
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct StoreFaults {
    /// Shortest and longest delay of a call, milliseconds.
    pub delay_ms: (u64, u64),
    /// `Unavailable`, and nothing happened.
    pub error_before: u32,
    /// It happened, but the reply is `Unavailable`.
    pub lost_reply: u32,
    /// `Unavailable` now, and it happens later (perhaps after a crash, or after another owner took over).
    pub late_success: u32,
    /// `list` may show the names as they were up to this long ago.
    pub stale_list: Duration,
    /// Times in which every call is `Unavailable`.
    pub outages: Vec<Window>,
    /// Times in which every put is `NoSpace`: not even the reserve has room.
    pub full: Vec<Window>,
    /// Times in which puts of data are `NoSpace`.
    pub full_of_data: Vec<Window>,
    /// Range reads that return one flipped bit; the object is good.
    pub flip_on_read: u32,
}

/// From `start` up to but not including `end`, since the beginning of the world.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub start: Duration,
    pub end: Duration,
}

impl Window {
    #[must_use]
    pub fn holds(&self, now: Duration) -> bool {
        self.start <= now && now < self.end
    }
}

/// How a host stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// `kill -9`: the machine lives on, so what was written stays readable, but is no more durable than before.
    Kill,
    /// Power is cut: every block that was not synced survives, is lost, or is torn.
    PowerLoss,
    /// The local directory is gone; only the backend remains.
    DiscardLocal,
}

/// A bug planted in the world, as a bug of the engine would look from outside. The driver must find each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Canary {
    /// A flush is forgotten: `sync` and `Durability::Now` return without making anything durable.
    SkippedFlush,
    /// A manifest overtakes the SCOs it names: SCO puts are acknowledged and happen seconds later.
    ReorderedManifest,
    /// A name is used twice: the second put of a name replaces the object.
    ReusedName,
    /// A checksum is not compared: clusters arrive with a flipped bit and a footer checksum that agrees with it.
    UncheckedChecksum,
}
