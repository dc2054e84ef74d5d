//! The memory tier: whole clusters under a byte budget, evicted scan-resistantly (quick_cache's Clock-PRO).
//!
//! Each entry owns its bytes: a slice of a larger read would keep the whole read alive, and the budget would mean nothing.

use std::cell::RefCell;

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::unsync::Cache;
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

pub(super) struct RamTier {
    /// `None` when the budget does not hold a single cluster.
    entries: Option<RefCell<Cache<CacheKey, Bytes, ByBytes>>>,
}

impl RamTier {
    pub(super) fn new(budget_bytes: u64, usual: ClusterSize) -> Self {
        let clusters = budget_bytes / (usual.bytes() + ENTRY_OVERHEAD);
        let clusters = usize::try_from(clusters).unwrap_or(usize::MAX);
        let entries = (clusters > 0)
            .then(|| RefCell::new(Cache::with_weighter(clusters, budget_bytes, ByBytes)));
        Self { entries }
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

    pub(super) fn insert(&self, key: CacheKey, cluster: &[u8]) {
        if let Some(entries) = &self.entries {
            entries.borrow_mut().insert(key, Bytes::copy_from_slice(cluster));
        }
    }

    pub(super) fn used_bytes(&self) -> u64 {
        self.entries.as_ref().map_or(0, |entries| entries.borrow().weight())
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

    #[test]
    fn gives_back_exactly_what_was_inserted_under_that_key() {
        let tier = RamTier::new(1 << 20, ClusterSize::DEFAULT);
        tier.insert(key(1, 0), &[0xaa; 4096]);
        tier.insert(key(1, 1), &[0xbb; 4096]);
        let mut out = [0; 4096];
        assert!(tier.copy_to(&key(1, 1), &mut out));
        assert_eq!(out, [0xbb; 4096]);
        assert_eq!(tier.get(&key(1, 0)).unwrap(), vec![0xaa; 4096]);
        assert!(tier.get(&key(2, 0)).is_none());
    }

    #[test]
    fn another_length_is_a_miss_and_leaves_the_buffer() {
        let tier = RamTier::new(1 << 20, ClusterSize::DEFAULT);
        tier.insert(key(1, 0), &[0xaa; 4096]);
        let mut out = [0x55; 512];
        assert!(!tier.copy_to(&key(1, 0), &mut out));
        assert_eq!(out, [0x55; 512]);
    }

    #[test]
    fn stays_within_its_budget_and_owns_its_bytes() {
        let budget = 1 << 20;
        let tier = RamTier::new(budget, ClusterSize::DEFAULT);
        let large_read = Bytes::from(vec![1; 1 << 20]);
        for (index, cluster) in large_read.chunks(4096).cycle().take(2000).enumerate() {
            tier.insert(key(1, index as u32), cluster);
            assert!(tier.used_bytes() <= budget);
        }
        assert!(tier.used_bytes() > budget / 2, "the budget is used");
        assert!(large_read.try_into_mut().is_ok(), "no entry keeps the large read alive");
    }

    #[test]
    fn a_hot_cluster_outlives_a_scan() {
        let tier = RamTier::new(1 << 20, ClusterSize::DEFAULT);
        tier.insert(key(1, 0), &[9; 4096]);
        for index in 0..5000 {
            assert!(tier.get(&key(1, 0)).is_some(), "lost after {index} clusters of a scan");
            tier.insert(key(2, index), &[0; 4096]);
        }
    }

    #[test]
    fn no_memory_means_no_entries() {
        let tier = RamTier::new(100, ClusterSize::DEFAULT);
        tier.insert(key(1, 0), &[9; 4096]);
        assert!(tier.get(&key(1, 0)).is_none());
        assert_eq!(tier.used_bytes(), 0);
    }
}
