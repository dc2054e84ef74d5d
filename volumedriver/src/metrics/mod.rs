//! What the daemon counts, and the text Prometheus scrapes.
//!
//! The hot path counts in [`ShardMetrics`] (one writer, no locks); everything slower uses shared gauges and histograms here.
//! Base units: seconds and bytes. Every name begins with `volumedriver_`.

mod nbd;
mod scrape;
mod shard;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use volumedriver_core::fault::{Fault, Result};
use volumedriver_core::units::ByteCount;

pub use nbd::{NbdMetrics, raise};
pub use shard::{
    CacheCounts, CacheTier, RequestKind, SAMPLE_EVERY, ShardMetrics, Stage, TierCounts,
};

use shard::{BOUNDS_NANOS, Table};

/// All metrics of the daemon.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    shared: Arc<Shared>,
    /// Calls of the object backend.
    pub store: StoreMetrics,
    pub nbd: NbdMetrics,
    pub buffer_capacity: Gauge,
    pub buffer_used: Gauge,
}

/// What the scraper reads besides the registry's own handles.
#[derive(Debug, Default)]
struct Shared {
    shards: Mutex<Vec<Arc<Table>>>,
    volumes: Mutex<BTreeMap<String, Arc<VolumeGauges>>>,
}

/// A call of the object backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoreVerb {
    Put,
    Get,
    Head,
    List,
    Delete,
    Namespace,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    Done,
    Failed,
}

impl StoreVerb {
    fn label(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::Head => "head",
            Self::List => "list",
            Self::Delete => "delete",
            Self::Namespace => "namespace",
        }
    }
}

impl Outcome {
    fn label(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }
}

/// Verb and outcome, with their names.
type StoreLabels = [(&'static str, &'static str); 2];

/// Counts and latencies of backend calls; cheap to clone, any thread.
#[derive(Clone, Debug)]
pub struct StoreMetrics {
    seconds: Family<StoreLabels, Histogram, fn() -> Histogram>,
    put_bytes: Counter,
    get_bytes: Counter,
}

impl StoreMetrics {
    fn new() -> Self {
        Self {
            seconds: Family::new_with_constructor(latency_histogram as fn() -> Histogram),
            put_bytes: Counter::default(),
            get_bytes: Counter::default(),
        }
    }

    /// A call that is over. Bytes count only when it succeeded.
    pub fn observe(&self, verb: StoreVerb, outcome: Outcome, took: Duration, bytes: u64) {
        let labels = [("verb", verb.label()), ("outcome", outcome.label())];
        self.seconds.get_or_create(&labels).observe(took.as_secs_f64());
        match (verb, outcome) {
            (StoreVerb::Put, Outcome::Done) => self.put_bytes.inc_by(bytes),
            (StoreVerb::Get, Outcome::Done) => self.get_bytes.inc_by(bytes),
            _ => 0,
        };
    }
}

fn latency_histogram() -> Histogram {
    Histogram::new(BOUNDS_NANOS.iter().map(|nanos| *nanos as f64 / 1e9))
}

/// The state of one volume, for scraping; set by its owner.
#[derive(Debug)]
pub struct VolumeGauges {
    backlog: AtomicU64,
    buffered: AtomicU64,
    uploaded_data: AtomicU64,
    uploaded_stored: AtomicU64,
    said: Mutex<Said>,
}

#[derive(Clone, Copy, Debug)]
struct Said {
    state: &'static str,
    /// The age of the oldest un-uploaded change, and when it was told.
    oldest: Option<(Duration, Instant)>,
}

impl VolumeGauges {
    fn new() -> Self {
        Self {
            backlog: AtomicU64::new(0),
            buffered: AtomicU64::new(0),
            uploaded_data: AtomicU64::new(0),
            uploaded_stored: AtomicU64::new(0),
            said: Mutex::new(Said { state: "opening", oldest: None }),
        }
    }
    /// Bytes not yet on the backend.
    pub fn set_backlog(&self, bytes: ByteCount) {
        self.backlog.store(bytes.0, Relaxed);
    }
    /// Bytes of the write buffer it holds.
    pub fn set_buffered(&self, bytes: ByteCount) {
        self.buffered.store(bytes.0, Relaxed);
    }
    /// Bytes of clusters uploaded since it was opened, and of the objects they are in.
    pub fn set_uploaded(&self, data: ByteCount, stored: ByteCount) {
        self.uploaded_data.store(data.0, Relaxed);
        self.uploaded_stored.store(stored.0, Relaxed);
    }
    /// How old the oldest change is that is not on the backend; it goes on ageing by itself. `None`: all is there.
    pub fn set_lag(&self, age: Option<Duration>) {
        self.lock().oldest = age.map(|age| (age, Instant::now()));
    }
    /// One of the names of `admin::VdiskState`.
    pub fn set_state(&self, name: &'static str) {
        self.lock().state = name;
    }
    fn lag(&self) -> Duration {
        self.lock().oldest.map_or(Duration::ZERO, |(age, told)| age + told.elapsed())
    }
    fn state(&self) -> &'static str {
        self.lock().state
    }
    fn lock(&self) -> std::sync::MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    #[must_use]
    pub fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("volumedriver"),
            shared: Arc::default(),
            store: StoreMetrics::new(),
            nbd: NbdMetrics::default(),
            buffer_capacity: Gauge::default(),
            buffer_used: Gauge::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        self.nbd.register(registry);
        let (used, capacity) = (self.buffer_used.clone(), self.buffer_capacity.clone());
        registry.register_with_unit("buffer_used", "Write buffer in use", Unit::Bytes, used);
        registry.register_with_unit(
            "buffer_capacity",
            "Write buffer in all",
            Unit::Bytes,
            capacity,
        );
        let StoreMetrics { seconds, put_bytes, get_bytes } = self.store.clone();
        registry.register_with_unit(
            "store_request",
            "Calls of the object backend",
            Unit::Seconds,
            seconds,
        );
        registry.register_with_unit("store_put", "Uploaded to the backend", Unit::Bytes, put_bytes);
        registry.register_with_unit("store_get", "Read from the backend", Unit::Bytes, get_bytes);
        registry.register_collector(Box::new(scrape::SharedCollector(self.shared.clone())));
    }

    /// The counters of a shard; called once by its thread.
    #[must_use]
    pub fn open_shard(&self) -> ShardMetrics {
        let table = Arc::<Table>::default();
        self.shared.shards.lock().unwrap_or_else(PoisonError::into_inner).push(table.clone());
        ShardMetrics::new(table)
    }

    /// The gauges of a volume, made at the first call.
    #[must_use]
    pub fn volume(&self, name: &str) -> Arc<VolumeGauges> {
        let mut volumes = self.shared.volumes.lock().unwrap_or_else(PoisonError::into_inner);
        volumes.entry(name.to_owned()).or_insert_with(|| Arc::new(VolumeGauges::new())).clone()
    }

    /// The volume is gone: it is no longer scraped.
    pub fn forget_volume(&self, name: &str) {
        self.shared.volumes.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// The text of one scrape (OpenMetrics).
    pub fn encode(&self) -> Result<String> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)
            .map_err(|e| Fault::bug("metrics cannot be encoded").because(e))?;
        Ok(text)
    }
}
