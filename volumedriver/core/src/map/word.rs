//! The 64-bit words the map keeps, one per cluster or run of clusters.
//!
//! | word | meaning | where |
//! |---|---|---|
//! | 0, 1, location | [`Mapping::to_word`] | base, overlay (locations only), formats |
//! | 2 | nothing said: look beneath | overlay |
//! | bit 63 set | tombstone: bit 62 zero (set) or hole, bits 0..62 the [`Seq`] of the change | overlay |
//!
//! A tombstone carries its sequence so that publishing an older trim never drops a newer one of the same clusters. A location
//! needs none: no two changes ever share one.
//!
//! A run is one word for consecutive clusters: a location counts up, every other word repeats.

use crate::units::{Mapping, PAGE_CLUSTERS, Seq};

/// Clusters in a page, as the small numbers used inside one.
pub(super) const PAGE: u16 = PAGE_CLUSTERS as u16;
/// What an unwritten cluster of the base says.
pub(super) const HOLE: u64 = 0;
/// What the base says of allocated zeroes.
pub(super) const ZERO: u64 = 1;
/// What the overlay says of a cluster it holds nothing of.
pub(super) const ABSENT: u64 = 2;

const TOMBSTONE: u64 = 1 << 63;
const TOMBSTONE_ZERO: u64 = 1 << 62;
const INDEX_MASK: u64 = 0xffff;

#[inline]
pub(super) fn is_location(word: u64) -> bool {
    word > INDEX_MASK && word & TOMBSTONE == 0
}

/// The word of the `n`th cluster of a run that begins with `word`.
#[inline]
pub(super) fn nth(word: u64, n: u64) -> u64 {
    if is_location(word) { word + n } else { word }
}

/// Whether `next` continues a run of `len` clusters that begins with `word`.
#[inline]
pub(super) fn continues(word: u64, len: u64, next: u64) -> bool {
    if is_location(word) {
        next == word + len && (word & INDEX_MASK) + len <= INDEX_MASK
    } else {
        next == word
    }
}

/// The overlay's word of a change.
pub(super) fn of_change(mapping: Mapping, seq: Seq) -> u64 {
    assert!(seq.0 < TOMBSTONE_ZERO, "sequence {seq} does not fit a tombstone");
    match mapping {
        Mapping::Hole => TOMBSTONE | seq.0,
        Mapping::Zero => TOMBSTONE | TOMBSTONE_ZERO | seq.0,
        Mapping::At(location) => location.to_word(),
    }
}

/// A word of the overlay as the base would have it.
#[inline]
pub(super) fn plain(word: u64) -> u64 {
    match word {
        w if w & TOMBSTONE == 0 => w,
        w if w & TOMBSTONE_ZERO == 0 => HOLE,
        _ => ZERO,
    }
}

/// A plain word as a mapping; only words that were checked on their way in are ever kept.
#[inline]
pub(super) fn mapping(word: u64) -> Mapping {
    Mapping::from_word(word).expect("the map keeps only words of mappings")
}
