//! The read cache: clusters fetched from the backend, kept in memory and (where configured) on local SSD.
//!
//! One cache per shard, shared by its volumes. Keys name immutable clusters ([`CacheKey`]), so an entry is never out of
//! date. The cache is never a reason for an error: what it cannot give is fetched from the backend again.
//!
//! Callers insert only clusters whose checksum they verified.

mod ram;

use std::cell::Cell;
use std::rc::Rc;

use bytes::Bytes;
use volumedriver_core::cache::CacheKey;
use volumedriver_core::units::ClusterSize;

use crate::world::World;
use ram::RamTier;

/// Sizes of one shard's cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheConfig {
    /// Memory for clusters and their bookkeeping, bytes; 0 for none.
    pub ram_bytes: u64,
    /// Local disk, bytes; 0 for none.
    pub ssd_bytes: u64,
    /// Slot size on the local disk. Clusters of other sizes stay in memory only.
    pub cluster_size: ClusterSize,
}

/// Counters since the cache was opened, and what it holds now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    pub ram_hits: u64,
    pub ssd_hits: u64,
    pub misses: u64,
    pub inserts: u64,
    /// Bytes in memory now, bookkeeping included.
    pub ram_used_bytes: u64,
}

#[derive(Default)]
struct Counters {
    ram_hits: Cell<u64>,
    ssd_hits: Cell<u64>,
    misses: Cell<u64>,
    inserts: Cell<u64>,
}

fn count(counter: &Cell<u64>) {
    counter.set(counter.get() + 1);
}

/// See the module's header.
pub struct ReadCache<W: World> {
    _world: W,
    ram: RamTier,
    counters: Counters,
}

impl<W: World> ReadCache<W> {
    /// Never fails: a tier that cannot be opened is left out, with a warning in the log.
    pub async fn open(world: W, config: CacheConfig) -> Rc<Self> {
        let ram = RamTier::new(config.ram_bytes, config.cluster_size);
        Rc::new(Self { _world: world, ram, counters: Counters::default() })
    }

    /// Copies the cluster into `out` if it is in memory and as long as `out`; waits for nothing. `false` leaves `out` as it is.
    /// A miss is not counted: [`ReadCache::get`] follows.
    #[must_use]
    pub fn get_now(&self, key: &CacheKey, out: &mut [u8]) -> bool {
        let hit = self.ram.copy_to(key, out);
        if hit {
            count(&self.counters.ram_hits);
        }
        hit
    }

    /// The cluster, from memory or from the local disk. The bytes were checked against the checksum they were inserted with.
    pub async fn get(&self, key: CacheKey) -> Option<Bytes> {
        if let Some(cluster) = self.ram.get(&key) {
            count(&self.counters.ram_hits);
            return Some(cluster);
        }
        count(&self.counters.misses);
        None
    }

    /// Keeps a copy of a verified cluster. Waits for nothing; may decide to keep nothing.
    pub fn insert(&self, key: CacheKey, cluster: &[u8]) {
        count(&self.counters.inserts);
        self.ram.insert(key, cluster);
    }

    #[must_use]
    pub fn stats(&self) -> CacheStats {
        CacheStats {
            ram_hits: self.counters.ram_hits.get(),
            ssd_hits: self.counters.ssd_hits.get(),
            misses: self.counters.misses.get(),
            inserts: self.counters.inserts.get(),
            ram_used_bytes: self.ram.used_bytes(),
        }
    }
}
