//! The read cache: clusters fetched from the backend, kept in memory and (where configured) on a local disk.
//!
//! One cache per shard, shared by its volumes. Keys name immutable clusters ([`CacheKey`]), so an entry is never out of
//! date. The cache is never a reason for an error: what it cannot give is fetched from the backend again.
//!
//! What has to leave memory goes down to the disk tier ([`ssd`]), which decides whether to keep it; what is read there comes
//! up again. Callers insert only clusters whose checksum they verified.

mod ram;
pub mod ssd;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bytes::Bytes;
use futures_util::future::join_all;
use volumedriver_core::cache::CacheKey;
use volumedriver_core::units::ClusterSize;

use crate::metrics::{CacheCounts, TierCounts};
use crate::world::World;
use ram::{Evicted, Heat, Leaving, RamTier};
use ssd::{Place, Run, SsdConfig, SsdState, SsdTier};

/// Sizes of one shard's cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheConfig {
    /// Memory for clusters and their bookkeeping, bytes; 0 for none.
    pub ram_bytes: u64,
    pub disk: DiskTier,
    /// Slot size on the local disk. Clusters of other sizes stay in memory only.
    pub cluster_size: ClusterSize,
}

/// The disk tier as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskTier {
    Off,
    /// There should be one, but there is no place for it; why.
    Unusable(String),
    On(SsdConfig),
}

/// See the module's header.
pub struct ReadCache<W: World> {
    ram: RamTier,
    ssd: Disk<W>,
    ram_hits: Cell<u64>,
    ram_misses: Cell<u64>,
    inserts: Cell<u64>,
    /// What an insertion throws out of memory, its room kept for the next.
    evicted: RefCell<Vec<Evicted>>,
}

enum Disk<W: World> {
    Off,
    Unusable(String),
    On(Rc<SsdTier<W>>),
}

/// A part of what is asked, in order.
enum Piece {
    Ram(Bytes),
    /// On its way to the disk.
    Memory(CacheKey, Bytes),
    Disk(CacheKey, Run),
}

impl<W: World> ReadCache<W> {
    /// Never fails: a tier that cannot be opened is left out, with a warning in the log.
    pub async fn open(world: W, config: CacheConfig) -> Rc<Self> {
        let ssd = match config.disk {
            DiskTier::Off => Disk::Off,
            DiskTier::Unusable(why) => unusable(why),
            DiskTier::On(ssd) => match SsdTier::open(world, &ssd, config.cluster_size).await {
                Ok(tier) => Disk::On(tier),
                Err(fault) => unusable(fault.to_string()),
            },
        };
        let leaving = match ssd {
            Disk::On(_) => Leaving::Collected,
            Disk::Off | Disk::Unusable(_) => Leaving::Forgotten,
        };
        Rc::new(Self {
            ram: RamTier::new(config.ram_bytes, config.cluster_size, leaving),
            ssd,
            ram_hits: Cell::new(0),
            ram_misses: Cell::new(0),
            inserts: Cell::new(0),
            evicted: RefCell::default(),
        })
    }

    /// Copies the cluster into `out` if it is in memory and as long as `out`; waits for nothing. `false` leaves `out` as it is.
    /// A miss is not counted: [`ReadCache::get_run`] follows.
    #[must_use]
    pub fn get_now(&self, key: &CacheKey, out: &mut [u8]) -> bool {
        let hit = self.ram.copy_to(key, out);
        if hit {
            self.ram_hits.set(self.ram_hits.get() + 1);
        }
        hit
    }

    /// Clusters from `first` on, in order, up to the first that is not cached, at most `count`. The bytes were checked against
    /// the checksums they were inserted with.
    pub async fn get_run(&self, first: CacheKey, count: u32) -> Vec<Bytes> {
        let in_ram = |n| self.ram.get(&first.nth(n)?);
        let mut found: Vec<Bytes> = (0..count).map_while(in_ram).collect();
        let in_front = found.len() as u64;
        let mut ram = in_front;
        if let Disk::On(tier) = &self.ssd
            && in_front < u64::from(count)
        {
            let (more, ssd) = Box::pin(self.get_rest(tier, first, count, &mut found)).await;
            ram += more;
            tier.note(ssd, u64::from(count) - ram - ssd);
        }
        self.ram_hits.set(self.ram_hits.get() + ram);
        self.ram_misses.set(self.ram_misses.get() + u64::from(count) - ram);
        found
    }

    /// Adds to what was found from both tiers; how many clusters came from memory and from the disk tier.
    async fn get_rest(
        &self,
        tier: &SsdTier<W>,
        first: CacheKey,
        count: u32,
        found: &mut Vec<Bytes>,
    ) -> (u64, u64) {
        let pieces = self.locate(tier, first, found.len() as u32..count);
        let runs = pieces.iter().filter_map(|piece| match piece {
            Piece::Disk(_, run) => Some(tier.read(run)),
            Piece::Ram(_) | Piece::Memory(..) => None,
        });
        let mut read = join_all(runs).await.into_iter();
        let (mut ram, mut ssd) = (0, 0);
        for piece in pieces {
            match piece {
                Piece::Ram(bytes) => {
                    found.push(bytes);
                    ram += 1;
                }
                Piece::Memory(key, bytes) => {
                    self.keep(key, &bytes);
                    found.push(bytes);
                    ssd += 1;
                }
                Piece::Disk(key, run) => {
                    let clusters = read.next().unwrap_or_default();
                    let cut_short = clusters.len() < run.len();
                    for (n, bytes) in (0..).zip(clusters) {
                        if let Some(key) = key.nth(n) {
                            self.keep(key, &bytes);
                        }
                        found.push(bytes);
                        ssd += 1;
                    }
                    if cut_short {
                        break;
                    }
                }
            }
        }
        (ram, ssd)
    }

    /// Where the clusters are, up to the first that is nowhere. Neighbours on the disk become one read.
    fn locate(
        &self,
        tier: &SsdTier<W>,
        first: CacheKey,
        range: std::ops::Range<u32>,
    ) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for key in range.map_while(|n| first.nth(n)) {
            if let Some(bytes) = self.ram.get(&key) {
                pieces.push(Piece::Ram(bytes));
                continue;
            }
            match tier.locate(&key) {
                None => break,
                Some(Place::Memory(bytes)) => pieces.push(Piece::Memory(key, bytes)),
                Some(Place::Disk(at)) => {
                    let is_next = match pieces.last_mut() {
                        Some(Piece::Disk(_, run)) => tier.extend(run, &at),
                        _ => false,
                    };
                    if !is_next {
                        pieces.push(Piece::Disk(key, Run::new(at)));
                    }
                }
            }
        }
        pieces
    }

    /// Keeps a copy of a verified cluster. Waits for nothing; may decide to keep nothing.
    pub fn insert(&self, key: CacheKey, cluster: &[u8]) {
        self.inserts.set(self.inserts.get() + 1);
        self.keep(key, cluster);
    }

    fn keep(&self, key: CacheKey, cluster: &[u8]) {
        let mut evicted = self.evicted.take();
        let is_kept = self.ram.insert(key, cluster, &mut evicted);
        if let Disk::On(tier) = &self.ssd {
            if !is_kept {
                tier.offer(&key, cluster, Heat::Cold);
            }
            for gone in &evicted {
                tier.offer(&gone.key, &gone.cluster, gone.heat);
            }
        }
        evicted.clear();
        self.evicted.replace(evicted);
    }

    /// Leaves the disk tier in order; see [`SsdTier::close`].
    pub async fn close(&self) {
        if let Disk::On(tier) = &self.ssd {
            tier.close().await;
        }
    }

    /// What the disk tier does.
    #[must_use]
    pub fn disk_state(&self) -> SsdState {
        match &self.ssd {
            Disk::Off => SsdState::Off,
            Disk::Unusable(why) => SsdState::Offline(why.clone()),
            Disk::On(tier) => tier.state(),
        }
    }

    /// Counts since the cache was opened, and what it holds now.
    #[must_use]
    pub fn counts(&self) -> CacheCounts {
        let ram = TierCounts {
            hits: self.ram_hits.get(),
            misses: self.ram_misses.get(),
            inserts: self.inserts.get(),
            used_bytes: self.ram.used_bytes(),
            capacity_bytes: self.ram.capacity_bytes(),
        };
        let is_offline = matches!(self.disk_state(), SsdState::Offline(_));
        let counts =
            CacheCounts { ram, ssd_offline: u64::from(is_offline), ..CacheCounts::default() };
        match &self.ssd {
            Disk::On(tier) => tier.counts(counts),
            Disk::Off | Disk::Unusable(_) => counts,
        }
    }
}

fn unusable<W: World>(why: String) -> Disk<W> {
    tracing::warn!(why, "the read cache goes on without its disk until the next start");
    Disk::Unusable(why)
}
