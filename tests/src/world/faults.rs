//! What may go wrong in a simulated world, and how often. Rates are per million calls; times are virtual.

use std::time::Duration;

/// Everything that may go wrong while the engine runs. The default is a fast world without faults.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    pub disk: DiskFaults,
    /// The disk of the read cache: nothing that happens to it may be noticed.
    pub cache_disk: DiskFaults,
    pub pages: PageFaults,
    pub store: StoreFaults,
    pub canary: Option<Canary>,
}

#[derive(Clone, Debug)]
pub struct DiskFaults {
    /// Longest delay of a call, milliseconds. Most calls take none.
    pub delay_ms: u64,
    /// How many calls are delayed at all.
    pub delayed: u32,
    /// Calls that fail, and reads that return one flipped bit though the medium is good. They pass: one and the same place
    /// fails [`PASSING`] times in a row at most.
    pub read_error: u32,
    pub write_error: u32,
    pub flip_on_read: u32,
    /// Syncs that fail: how much of it became durable nobody knows, and no later sync makes up for it.
    pub sync_error: u32,
    /// Bytes that fit on the disk.
    pub capacity: u64,
    /// Times in which nothing is made or written: no space.
    pub full: Vec<Window>,
    /// Times in which every call takes this much longer.
    pub slow: Vec<Window>,
    pub slow_ms: u64,
    /// Times in which every write and sync fails.
    pub dead: Vec<Window>,
    /// Objects in a million whose local file decayed: a bit of it is flipped for good, while the store can repair it.
    pub decayed_files: u32,
}

/// How often in a row a passing error hits the same place.
pub const PASSING: u8 = 2;

impl Default for DiskFaults {
    fn default() -> Self {
        Self {
            delay_ms: 0,
            delayed: 0,
            read_error: 0,
            write_error: 0,
            flip_on_read: 0,
            sync_error: 0,
            capacity: u64::MAX,
            full: Vec::new(),
            slow: Vec::new(),
            slow_ms: 0,
            dead: Vec::new(),
            decayed_files: 0,
        }
    }
}

/// The page store is derivable: nothing that happens to it may be noticed.
#[derive(Clone, Debug, Default)]
pub struct PageFaults {
    /// Calls that fail.
    pub read_error: u32,
    pub write_error: u32,
    pub sync_error: u32,
    /// Times in which nothing can be put: no space.
    pub full: Vec<Window>,
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
    /// Times in which half of the calls are.
    pub brownouts: Vec<Window>,
    /// Times in which every put is `NoSpace`: not even the reserve has room.
    pub full: Vec<Window>,
    /// Times in which puts of data are `NoSpace`.
    pub full_of_data: Vec<Window>,
    /// Range reads that return one flipped bit; the object is good.
    pub flip_on_read: u32,
    /// The store keeps objects in files that the engine may read directly.
    pub local_files: bool,
}

/// From `start` up to but not including `end`, since the beginning of the world.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub start: Duration,
    pub end: Duration,
}

/// Whether one of these is now.
#[must_use]
pub fn is_in(windows: &[Window], now: Duration) -> bool {
    windows.iter().any(|window| window.holds(now))
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Canary {
    /// A flush is forgotten: `sync` and `Durability::Now` return without making anything durable.
    SkippedFlush,
    /// A manifest overtakes the SCOs it names: SCO puts are acknowledged and happen seconds later.
    ReorderedManifest,
    /// A name is used twice: the second put of a name replaces the object.
    ReusedName,
    /// A checksum is not compared: clusters arrive with a flipped bit and a footer checksum that agrees with it.
    UncheckedChecksum,
    /// Recovery does not compare checksums: where journalled clusters decayed, the record's checksums agree with what is left.
    UncheckedReplay,
    /// A full disk fails a write instead of holding it back.
    FullDiskFails,
    /// The put of a manifest number that exists succeeds for whoever comes second: no fence.
    NoFence,
    /// A page whose checksum is wrong is taken as it is: pages decay together with their checksum.
    UncheckedPage,
    /// A sync that fails is taken for one that did not: what was lost is called durable.
    IgnoredSyncError,
    /// A cluster on the cache's disk is not checked: where it decayed, the catalogue's checksum agrees with what is left.
    UncheckedCache,
    /// The cache's file does not say that it is in use: after a crash its catalogue is believed.
    UnmarkedCache,
}

/// Which of a host's disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drive {
    /// The write buffer's.
    Buffer,
    /// The read cache's.
    Cache,
}

impl Faults {
    #[must_use]
    pub fn of(&self, drive: Drive) -> &DiskFaults {
        match drive {
            Drive::Buffer => &self.disk,
            Drive::Cache => &self.cache_disk,
        }
    }
}
