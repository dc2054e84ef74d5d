//! The memory tier: whole clusters under a byte budget, evicted scan-resistantly (quick_cache's Clock-PRO).
//!
//! Each entry owns its bytes: a slice of a larger read would keep the whole read alive, and the budget would mean nothing.

use std::cell::RefCell;

use bytes::Bytes;
use quick_cache::unsync::Cache;
use quick_cache::{DefaultHashBuilder, Lifecycle, Weighter};
use volumedriver_core::cache::CacheKey;
use volumedriver_core::units::ClusterSize;

/// What an entry costs beside its bytes: key, handle, table and list entries, the allocator's header.
const ENTRY_OVERHEAD: u64 = 160;

#[derive(Clone)]
struct ByBytes;

impl Weighter<CacheKey, Bytes> for ByBytes {
    fn weight(&self, _: &CacheKey, cluster: &Bytes) -> u64 {
        cluster.len() as u64 + ENTRY_OVERHEAD
    }
}

/// How a cluster stood when it had to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heat {
    /// Read again while it was here.
    Hot,
    Cold,
}

/// A cluster that had to leave.
pub(super) struct Evicted {
    pub key: CacheKey,
    pub cluster: Bytes,
    pub heat: Heat,
}

/// What becomes of clusters that have to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leaving {
    Collected,
    Forgotten,
}

impl Lifecycle<CacheKey, Bytes> for Leaving {
    type RequestState = Vec<Evicted>;

    fn on_evict_cold(&self, evicted: &mut Vec<Evicted>, key: CacheKey, cluster: Bytes) {
        if *self == Self::Collected {
            evicted.push(Evicted { key, cluster, heat: Heat::Cold });
        }
    }
    fn on_evict_hot(&self, evicted: &mut Vec<Evicted>, key: CacheKey, cluster: Bytes) {
        if *self == Self::Collected {
            evicted.push(Evicted { key, cluster, heat: Heat::Hot });
        }
    }
}

type Entries = Cache<CacheKey, Bytes, ByBytes, DefaultHashBuilder, Leaving>;

pub(super) struct RamTier {
    /// `None` when the budget does not hold a single cluster.
    entries: Option<RefCell<Entries>>,
    budget_bytes: u64,
}

impl RamTier {
    pub(super) fn new(budget_bytes: u64, usual: ClusterSize, leaving: Leaving) -> Self {
        let clusters = budget_bytes / (usual.bytes() + ENTRY_OVERHEAD);
        let clusters = usize::try_from(clusters).unwrap_or(usize::MAX);
        let entries = (clusters > 0).then(|| {
            let hasher = DefaultHashBuilder::default();
            RefCell::new(Cache::with(clusters, budget_bytes, ByBytes, hasher, leaving))
        });
        Self { entries, budget_bytes }
    }

    /// Copies the cluster if it is here and as long as `out`.
    pub(super) fn copy_to(&self, key: &CacheKey, out: &mut [u8]) -> bool {
        let Some(entries) = &self.entries else {
            return false;
        };
        match entries.borrow().get(key) {
            Some(cluster) if cluster.len() == out.len() => {
                out.copy_from_slice(cluster);
                true
            }
            _ => false,
        }
    }

    pub(super) fn get(&self, key: &CacheKey) -> Option<Bytes> {
        self.entries.as_ref()?.borrow().get(key).cloned()
    }

    /// Keeps a copy; what has to leave for it is added to `evicted`, if that is collected. `false`: there is no memory tier.
    pub(super) fn insert(&self, key: CacheKey, cluster: &[u8], evicted: &mut Vec<Evicted>) -> bool {
        let Some(entries) = &self.entries else { return false };
        let cluster = Bytes::copy_from_slice(cluster);
        entries.borrow_mut().insert_with_lifecycle(key, cluster, evicted);
        true
    }

    pub(super) fn used_bytes(&self) -> u64 {
        self.entries.as_ref().map_or(0, |entries| entries.borrow().weight())
    }

    pub(super) fn capacity_bytes(&self) -> u64 {
        self.entries.as_ref().map_or(0, |_| self.budget_bytes)
    }
}

#[cfg(test)]
mod tests {
    use volumedriver_core::units::{Epoch, ScoId, ScoSeq, VolumeId};

    use super::*;

    fn key(sco: u64, index: u32) -> CacheKey {
        let sco = ScoId { epoch: Epoch(1), seq: ScoSeq(sco) };
        CacheKey { origin: VolumeId([7; 16]), sco, index }
    }

    fn tier(budget_bytes: u64) -> RamTier {
        RamTier::new(budget_bytes, ClusterSize::DEFAULT, Leaving::Forgotten)
    }

    fn insert(tier: &RamTier, key: CacheKey, cluster: &[u8]) {
        let mut evicted = Vec::new();
        tier.insert(key, cluster, &mut evicted);
        assert!(evicted.is_empty(), "nobody collects them");
    }

    #[test]
    fn gives_back_exactly_what_was_inserted_under_that_key() {
        let tier = tier(1 << 20);
        insert(&tier, key(1, 0), &[0xaa; 4096]);
        insert(&tier, key(1, 1), &[0xbb; 4096]);
        let mut out = [0; 4096];
        assert!(tier.copy_to(&key(1, 1), &mut out));
        assert_eq!(out, [0xbb; 4096]);
        assert_eq!(tier.get(&key(1, 0)).unwrap(), vec![0xaa; 4096]);
        assert!(tier.get(&key(2, 0)).is_none());
    }

    #[test]
    fn another_length_is_a_miss_and_leaves_the_buffer() {
        let tier = tier(1 << 20);
        insert(&tier, key(1, 0), &[0xaa; 4096]);
        let mut out = [0x55; 512];
        assert!(!tier.copy_to(&key(1, 0), &mut out));
        assert_eq!(out, [0x55; 512]);
    }

    #[test]
    fn stays_within_its_budget_and_owns_its_bytes() {
        let budget = 1 << 20;
        let tier = tier(budget);
        let large_read = Bytes::from(vec![1; 1 << 20]);
        for (index, cluster) in large_read.chunks(4096).cycle().take(2000).enumerate() {
            insert(&tier, key(1, index as u32), cluster);
            assert!(tier.used_bytes() <= budget);
        }
        assert!(tier.used_bytes() > budget / 2, "the budget is used");
        assert!(large_read.try_into_mut().is_ok(), "no entry keeps the large read alive");
    }

    #[test]
    fn a_hot_cluster_outlives_a_scan() {
        let tier = tier(1 << 20);
        insert(&tier, key(1, 0), &[9; 4096]);
        for index in 0..5000 {
            assert!(tier.get(&key(1, 0)).is_some(), "lost after {index} clusters of a scan");
            insert(&tier, key(2, index), &[0; 4096]);
        }
    }

    #[test]
    fn everything_that_leaves_is_collected_with_its_bytes() {
        let tier = RamTier::new(1 << 20, ClusterSize::DEFAULT, Leaving::Collected);
        let mut evicted = Vec::new();
        for n in 0..2000_u32 {
            assert!(tier.insert(key(1, n), &[n as u8; 4096], &mut evicted));
            // The first ones are read again at once, and that is remembered of them.
            assert!(n >= 50 || tier.get(&key(1, n)).is_some());
        }
        let here = (0..2000).filter(|n| tier.get(&key(1, *n)).is_some()).count();
        assert_eq!(here + evicted.len(), 2000);
        for gone in &evicted {
            assert_eq!(gone.cluster, vec![gone.key.index as u8; 4096]);
        }
        let hot = evicted.iter().filter(|gone| gone.heat == Heat::Hot);
        assert!(hot.clone().all(|gone| gone.key.index < 50), "read only once");
    }

    #[test]
    fn no_memory_means_no_entries() {
        let tier = tier(100);
        assert!(!tier.insert(key(1, 0), &[9; 4096], &mut Vec::new()));
        assert!(tier.get(&key(1, 0)).is_none());
        assert_eq!((tier.used_bytes(), tier.capacity_bytes()), (0, 0));
    }
}
