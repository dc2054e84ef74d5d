//! Counters and latencies of one shard: written by its thread alone, read by whoever scrapes.
//!
//! With one writer an increment needs no locked instruction: load, add, store. [`ShardMetrics`] cannot leave its thread, so
//! there is one writer.

use std::cell::Cell;
use std::ops::AddAssign;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Upper bounds of the latency buckets, nanoseconds: 10 µs to 10 s.
pub const BOUNDS_NANOS: [u64; 19] = [
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
];
const BUCKETS: usize = BOUNDS_NANOS.len() + 1;

/// One in this many requests has its latencies measured.
pub const SAMPLE_EVERY: u32 = 32;

/// A piece of the way of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Write: waiting for room in the buffer.
    CreditWait,
    /// Write: into the in-memory tail.
    BufferAppend,
    /// Write: the journal record on stable storage.
    JournalCommit,
    /// Write: from the frontend's submission to its reply.
    WriteReply,
    /// Read: map pages from the page store.
    MapLoad,
    /// Read: out of the in-memory tail.
    ReadMemory,
    /// Read: out of the buffer's files.
    ReadBuffer,
    /// Read: out of the read cache.
    ReadCache,
    /// Read: from the backend.
    ReadBackend,
    /// Read: checksums.
    ReadVerify,
    /// Read: from the frontend's submission to its reply.
    ReadReply,
}

impl Stage {
    pub const ALL: [Self; 11] = [
        Self::CreditWait,
        Self::BufferAppend,
        Self::JournalCommit,
        Self::WriteReply,
        Self::MapLoad,
        Self::ReadMemory,
        Self::ReadBuffer,
        Self::ReadCache,
        Self::ReadBackend,
        Self::ReadVerify,
        Self::ReadReply,
    ];
    /// (way, stage), as labels.
    #[must_use]
    pub fn labels(self) -> (&'static str, &'static str) {
        match self {
            Self::CreditWait => ("write", "credit_wait"),
            Self::BufferAppend => ("write", "buffer_append"),
            Self::JournalCommit => ("write", "journal_commit"),
            Self::WriteReply => ("write", "reply"),
            Self::MapLoad => ("read", "map_load"),
            Self::ReadMemory => ("read", "memory"),
            Self::ReadBuffer => ("read", "buffer_file"),
            Self::ReadCache => ("read", "cache"),
            Self::ReadBackend => ("read", "backend"),
            Self::ReadVerify => ("read", "verify"),
            Self::ReadReply => ("read", "reply"),
        }
    }
}

/// What a frontend asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    Read,
    Write,
    Flush,
    Trim,
    WriteZeroes,
    Cache,
    Status,
}

impl RequestKind {
    pub const ALL: [Self; 7] = [
        Self::Read,
        Self::Write,
        Self::Flush,
        Self::Trim,
        Self::WriteZeroes,
        Self::Cache,
        Self::Status,
    ];
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Trim => "trim",
            Self::WriteZeroes => "write_zeroes",
            Self::Cache => "cache",
            Self::Status => "status",
        }
    }
}

/// The read cache's tiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheTier {
    Ram,
    Ssd,
}

impl CacheTier {
    pub const ALL: [Self; 2] = [Self::Ram, Self::Ssd];
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Ram => "ram",
            Self::Ssd => "ssd",
        }
    }
}

/// What one tier of the read cache counted since it was opened, and what it holds now. Hits, misses and insertions are
/// clusters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TierCounts {
    pub hits: u64,
    pub misses: u64,
    pub inserts: u64,
    pub used_bytes: u64,
    pub capacity_bytes: u64,
}

/// The read cache's figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheCounts {
    pub ram: TierCounts,
    pub ssd: TierCounts,
    /// Clusters on the disk that did not match their checksums.
    pub ssd_mismatches: u64,
    /// Clusters not taken in because the disk was busy.
    pub ssd_dropped: u64,
    /// Clusters written once more when their region was taken back, because they had been read.
    pub ssd_kept: u64,
    pub ssd_written_bytes: u64,
    /// 1: configured and out of service.
    pub ssd_offline: u64,
}

impl CacheCounts {
    #[must_use]
    pub fn tier(&self, tier: CacheTier) -> TierCounts {
        match tier {
            CacheTier::Ram => self.ram,
            CacheTier::Ssd => self.ssd,
        }
    }
}

impl AddAssign for TierCounts {
    fn add_assign(&mut self, more: Self) {
        self.hits += more.hits;
        self.misses += more.misses;
        self.inserts += more.inserts;
        self.used_bytes += more.used_bytes;
        self.capacity_bytes += more.capacity_bytes;
    }
}

impl AddAssign for CacheCounts {
    fn add_assign(&mut self, more: Self) {
        self.ram += more.ram;
        self.ssd += more.ssd;
        self.ssd_mismatches += more.ssd_mismatches;
        self.ssd_dropped += more.ssd_dropped;
        self.ssd_kept += more.ssd_kept;
        self.ssd_written_bytes += more.ssd_written_bytes;
        self.ssd_offline += more.ssd_offline;
    }
}

/// A counter with one writer.
#[derive(Debug, Default)]
struct OneWriter(AtomicU64);

impl OneWriter {
    #[inline]
    fn add(&self, more: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(more), Relaxed);
    }
    fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }
    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

#[derive(Debug, Default)]
struct Latencies {
    buckets: [OneWriter; BUCKETS],
    nanos: OneWriter,
}

impl Latencies {
    fn observe(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_NANOS.partition_point(|bound| *bound < nanos);
        if let Some(bucket) = self.buckets.get(bucket) {
            bucket.add(1);
        }
        self.nanos.add(nanos);
    }
}

/// What one shard counts; shared with the scraper.
#[derive(Debug, Default)]
pub struct Table {
    requests: [OneWriter; RequestKind::ALL.len()],
    bytes: [OneWriter; RequestKind::ALL.len()],
    errors: [OneWriter; RequestKind::ALL.len()],
    stages: [Latencies; Stage::ALL.len()],
    /// Told now and then, not counted here.
    cache: Mutex<CacheCounts>,
    journal_records: OneWriter,
    journal_bytes: OneWriter,
}

impl Table {
    fn cache(&self) -> MutexGuard<'_, CacheCounts> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The writing side; belongs to one thread.
#[derive(Clone, Debug)]
pub struct ShardMetrics {
    seat: Rc<Seat>,
}

#[derive(Debug)]
struct Seat {
    table: Arc<Table>,
    countdown: Cell<u32>,
}

impl ShardMetrics {
    pub(super) fn new(table: Arc<Table>) -> Self {
        Self { seat: Rc::new(Seat { table, countdown: Cell::new(1) }) }
    }

    /// Metrics nobody scrapes: for tests and the simulated world.
    #[must_use]
    pub fn detached() -> Self {
        Self::new(Arc::default())
    }

    /// Whether the request that starts now has its latencies measured: true for the first and then one in
    /// [`SAMPLE_EVERY`].
    #[inline]
    #[must_use]
    pub fn sample(&self) -> bool {
        let left = self.seat.countdown.get() - 1;
        self.seat.countdown.set(if left == 0 { SAMPLE_EVERY } else { left });
        left == 0
    }

    /// A request that ended well and moved this many bytes.
    #[inline]
    pub fn request(&self, kind: RequestKind, bytes: u64) {
        self.seat.table.requests[kind as usize].add(1);
        self.seat.table.bytes[kind as usize].add(bytes);
    }

    /// A request that ended with an error.
    pub fn request_failed(&self, kind: RequestKind) {
        self.seat.table.requests[kind as usize].add(1);
        self.seat.table.errors[kind as usize].add(1);
    }

    pub fn stage(&self, stage: Stage, took: Duration) {
        self.seat.table.stages[stage as usize].observe(took);
    }

    /// The read cache's figures so far.
    pub fn cache(&self, counts: CacheCounts) {
        *self.seat.table.cache() = counts;
    }

    /// Journal records so far and the bytes written for them, headers included.
    pub fn journal(&self, records: u64, bytes: u64) {
        self.seat.table.journal_records.set(records);
        self.seat.table.journal_bytes.set(bytes);
    }
}

/// Sums over all shards at one moment.
#[derive(Debug, Default)]
pub struct Totals {
    pub requests: [u64; RequestKind::ALL.len()],
    pub bytes: [u64; RequestKind::ALL.len()],
    pub errors: [u64; RequestKind::ALL.len()],
    pub stages: [StageTotals; Stage::ALL.len()],
    pub cache: CacheCounts,
    pub journal_records: u64,
    pub journal_bytes: u64,
}

/// One stage's latencies: samples per bucket (the last is unbounded) and their sum.
#[derive(Debug, Default)]
pub struct StageTotals {
    pub buckets: [u64; BUCKETS],
    pub nanos: u64,
}

impl Totals {
    pub(super) fn of<'a>(tables: impl Iterator<Item = &'a Arc<Table>>) -> Self {
        let mut totals = Self::default();
        for table in tables {
            totals.add(table);
        }
        totals
    }

    fn add(&mut self, table: &Table) {
        add_all(&mut self.requests, &table.requests);
        add_all(&mut self.bytes, &table.bytes);
        add_all(&mut self.errors, &table.errors);
        self.cache += *table.cache();
        for (sum, stage) in self.stages.iter_mut().zip(&table.stages) {
            add_all(&mut sum.buckets, &stage.buckets);
            sum.nanos = sum.nanos.wrapping_add(stage.nanos.get());
        }
        self.journal_records = self.journal_records.wrapping_add(table.journal_records.get());
        self.journal_bytes = self.journal_bytes.wrapping_add(table.journal_bytes.get());
    }
}

fn add_all(sums: &mut [u64], counters: &[OneWriter]) {
    for (sum, counter) in sums.iter_mut().zip(counters) {
        *sum = sum.wrapping_add(counter.get());
    }
}
