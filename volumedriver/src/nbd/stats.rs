//! Counters of the sessions of one thread, for whoever publishes metrics. Monotonic unless said otherwise.

use std::cell::Cell;
use std::time::Duration;

use volumedriver_core::wire::nbd::Command;

/// What the sessions of one thread count.
#[derive(Debug, Default)]
pub struct SessionStats {
    /// Connections open now (a gauge).
    pub connections: Cell<u64>,
    pub accepted: Cell<u64>,
    /// Not served because the ceiling of connections was reached.
    pub turned_away: Cell<u64>,
    /// Of them, those that are being told so now (a gauge).
    pub turning_away: Cell<u64>,
    /// Handshakes that did not lead to the transmission phase, aborts by the client included.
    pub handshakes_failed: Cell<u64>,
    /// Connections closed because the client broke the protocol's framing.
    pub protocol_errors: Cell<u64>,
    /// Connections closed because they held memory that others waited for, and did not move.
    pub stalled: Cell<u64>,
    pub read: CommandStats,
    pub write: CommandStats,
    pub flush: CommandStats,
    pub trim: CommandStats,
    pub write_zeroes: CommandStats,
    pub cache: CommandStats,
    pub block_status: CommandStats,
    pub unknown: CommandStats,
}

impl SessionStats {
    /// The counters of a command; a disconnect has none.
    #[must_use]
    pub fn of(&self, command: Command) -> Option<&CommandStats> {
        match command {
            Command::Read => Some(&self.read),
            Command::Write => Some(&self.write),
            Command::Flush => Some(&self.flush),
            Command::Trim => Some(&self.trim),
            Command::WriteZeroes => Some(&self.write_zeroes),
            Command::Cache => Some(&self.cache),
            Command::BlockStatus => Some(&self.block_status),
            Command::Unknown(_) => Some(&self.unknown),
            Command::Disconnect => None,
        }
    }
}

/// What is counted per command.
#[derive(Debug, Default)]
pub struct CommandStats {
    /// Requests answered, failed ones included.
    pub requests: Cell<u64>,
    pub errors: Cell<u64>,
    /// Bytes asked for by the requests that succeeded.
    pub bytes: Cell<u64>,
    /// From receiving a request to queueing its reply.
    pub latency: Histogram,
}

impl CommandStats {
    pub(super) fn succeeded(&self, bytes: u64, took: Duration) {
        add(&self.requests, 1);
        add(&self.bytes, bytes);
        self.latency.record(took);
    }
    pub(super) fn failed(&self, took: Duration) {
        add(&self.requests, 1);
        add(&self.errors, 1);
        self.latency.record(took);
    }
}

/// Counts by powers of two of microseconds: bucket `n` holds durations below `2^n` µs that no smaller bucket holds, the last
/// bucket everything longer.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [Cell<u64>; Self::BUCKETS],
    sum_us: Cell<u64>,
}

impl Histogram {
    /// The last bound is 2^27 µs, over two minutes.
    pub const BUCKETS: usize = 29;

    fn record(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = (u64::BITS - us.leading_zeros()) as usize;
        let last = Self::BUCKETS - 1;
        if let Some(count) = self.buckets.get(bucket.min(last)) {
            add(count, 1);
        }
        self.sum_us.set(self.sum_us.get().saturating_add(us));
    }
    /// (upper bound in µs, count), the last without a bound.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<u64>, u64)> {
        let last = Self::BUCKETS - 1;
        self.buckets
            .iter()
            .enumerate()
            .map(move |(n, count)| ((n < last).then(|| 1u64 << n), count.get()))
    }
    #[must_use]
    pub fn sum_us(&self) -> u64 {
        self.sum_us.get()
    }
}

pub(super) fn add(counter: &Cell<u64>, n: u64) {
    counter.set(counter.get().saturating_add(n));
}
