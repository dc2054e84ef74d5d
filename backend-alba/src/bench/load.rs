//! One load on a target: so many operations at once for so long, and how long each took.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::Target;
use super::known::Known;
use crate::fault::{Fault, Result};
use crate::trailer::ALIGN;

/// What is done again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Operation {
    /// A new object.
    Put,
    /// An object, from its first byte to its last.
    Get,
    /// A part of an object, beginning at any multiple of 4 KiB.
    Range,
}

impl Operation {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Range => "range",
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub operation: Operation,
    /// Of each object.
    pub object_bytes: u64,
    /// That each operation moves.
    pub bytes: u64,
    pub in_flight: usize,
    pub time: Duration,
    /// Operations at most; each of those in flight does one at least.
    pub most: u64,
    /// Number of the first object that is put.
    pub first: u64,
}

/// The name of an object of this size.
fn name_of(object_bytes: u64, number: u64) -> String {
    format!("{object_bytes}-{number:06}")
}

/// What a load came to.
#[derive(Clone, Debug)]
pub struct Measured {
    pub operation: Operation,
    pub object_bytes: u64,
    /// That each operation moved.
    pub bytes: u64,
    pub in_flight: usize,
    pub seconds: f64,
    /// Of this process, the threads of an embedded backend among them.
    pub cpu_seconds: f64,
    /// Of each operation, rising.
    latencies: Vec<Duration>,
}

impl Measured {
    #[must_use]
    pub fn count(&self) -> u64 {
        self.latencies.len() as u64
    }
    #[must_use]
    pub fn per_second(&self) -> f64 {
        self.latencies.len() as f64 / self.seconds
    }
    #[must_use]
    pub fn mib_per_second(&self) -> f64 {
        self.per_second() * self.bytes as f64 / f64::from(1 << 20)
    }
    /// That so many percent of the operations took at most, ms.
    #[must_use]
    pub fn percentile_ms(&self, percent: usize) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        let at = (self.latencies.len() * percent / 100).min(last);
        self.latencies.get(at).map_or(0.0, |latency| latency.as_secs_f64() * 1e3)
    }

    /// With the time a sync took after it.
    pub(super) fn and_sync(self, took: Duration) -> Self {
        Self { seconds: self.seconds + took.as_secs_f64(), ..self }
    }

    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "operation": self.operation.name(), "object_bytes": self.object_bytes, "bytes": self.bytes,
            "in_flight": self.in_flight, "count": self.count(), "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds, "mib_per_second": self.mib_per_second(),
            "per_second": self.per_second(), "p50_ms": self.percentile_ms(50),
            "p99_ms": self.percentile_ms(99), "max_ms": self.percentile_ms(100),
        })
    }
}

struct Shared {
    target: Arc<dyn Target>,
    known: Known,
    load: Load,
    /// Of the objects there are, for reads.
    names: Vec<String>,
    begun: Instant,
    next: AtomicU64,
}

/// Ends with the first operation that fails.
pub(super) async fn measure(
    target: &Arc<dyn Target>,
    known: &Known,
    load: Load,
    names: Vec<String>,
) -> Result<Measured> {
    let (cpu, begun) = (cpu_seconds(), Instant::now());
    let (target, known, next) = (target.clone(), known.clone(), AtomicU64::new(0));
    let shared = Arc::new(Shared { target, known, load, names, begun, next });
    let mut workers = JoinSet::new();
    for _ in 0..load.in_flight {
        workers.spawn(work(shared.clone()));
    }
    let mut latencies = Vec::new();
    while let Some(ended) = workers.join_next().await {
        let panicked = |e| Fault { source: Some(Box::new(e)), ..Fault::bug("a load did not end") };
        latencies.extend(ended.map_err(panicked)??);
    }
    let (seconds, cpu_seconds) = (begun.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    latencies.sort_unstable();
    let Load { operation, object_bytes, bytes, in_flight, .. } = load;
    Ok(Measured { operation, object_bytes, bytes, in_flight, seconds, cpu_seconds, latencies })
}

async fn work(shared: Arc<Shared>) -> Result<Vec<Duration>> {
    let load = &shared.load;
    let mut latencies = Vec::new();
    loop {
        let number = shared.next.fetch_add(1, Ordering::Relaxed);
        let is_over = number >= load.most || shared.begun.elapsed() >= load.time;
        if number >= load.in_flight as u64 && is_over {
            return Ok(latencies);
        }
        let begun = Instant::now();
        match load.operation {
            Operation::Put => shared.put(load.first + number).await?,
            Operation::Get => shared.get(number, 0).await?,
            Operation::Range => {
                let places = (load.object_bytes - load.bytes) / ALIGN + 1;
                shared.get(number, scattered(number) % places * ALIGN).await?;
            }
        }
        latencies.push(begun.elapsed());
    }
}

impl Shared {
    async fn put(&self, number: u64) -> Result<()> {
        let name = name_of(self.load.object_bytes, number);
        let body = self.known.range(&name, 0, self.load.object_bytes);
        self.target.put(&name, body).await
    }

    async fn get(&self, number: u64, offset: u64) -> Result<()> {
        let count = self.names.len() as u64;
        let missing = || Fault::bug("no objects to read");
        // Ranges go from object to object in no order.
        let at = if self.load.operation == Operation::Range { scattered(!number) } else { number };
        let at = at.checked_rem(count).ok_or_else(missing)?;
        let name = self.names.get(at as usize).ok_or_else(missing)?;
        let mut check = self.known.check(name, offset, self.load.bytes);
        self.target.get(name, (offset, self.load.bytes), &mut check).await?;
        check.end()
    }
}

/// The same for the same number, and unlike that of its neighbours.
fn scattered(number: u64) -> u64 {
    let mixed = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Time on processors of this process; 0 where the system does not tell.
fn cpu_seconds() -> f64 {
    /// What `/proc` counts in on every Linux.
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields = after_name.split_ascii_whitespace().skip(11).take(2);
    fields.filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / TICKS
}
