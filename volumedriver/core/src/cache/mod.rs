//! The deciding half of the read cache: what a cached cluster is called, which clusters are worth a place on the local disk,
//! and where there each of them lies.
//!
//! A key names one cluster of one SCO. SCOs never change and their names are never used twice, so what is cached under a key
//! is never out of date: there is no invalidation, only eviction.

pub mod doorkeeper;
pub mod index;

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

impl CacheKey {
    /// The cluster `n` further on in the same SCO; `None` past the largest index there is.
    #[must_use]
    pub fn nth(self, n: u32) -> Option<Self> {
        Some(Self { index: self.index.checked_add(n)?, ..self })
    }

    /// Spreads keys over 64 bits, every bit as good as another; the same on every machine.
    #[must_use]
    pub fn spread(&self) -> u64 {
        let (high, low) = self.origin.0.split_at(8);
        let word = |bytes: &[u8]| bytes.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
        let volume = mix(word(high) ^ mix(word(low)));
        mix(volume ^ mix(self.sco.epoch.0) ^ self.sco.seq.0.rotate_left(24) ^ u64::from(self.index))
    }
}

/// The finalizer of splitmix64: a bijection that spreads every bit.
fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// A spread key to one of `places`, all equally likely: by its upper bits.
fn place_of(spread: u64, places: usize) -> usize {
    ((u128::from(spread) * places as u128) >> 64) as usize
}
