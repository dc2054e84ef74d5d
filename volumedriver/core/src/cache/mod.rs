//! The deciding half of the read cache: what a cached cluster is called.
//!
//! A key names one cluster of one SCO. SCOs never change and their names are never used twice, so what is cached under a key
//! is never out of date: there is no invalidation, only eviction.

use crate::units::{ScoId, VolumeId};

/// One cluster of one SCO.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CacheKey {
    /// The volume whose log the SCO belongs to: the volume itself, or the ancestor of a clone.
    pub origin: VolumeId,
    pub sco: ScoId,
    /// Index of the cluster in the SCO.
    pub index: u32,
}
