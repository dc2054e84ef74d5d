//! The file of a host's read cache, as its format describes it: what a crash may leave of it, and what decays in it.
//!
//! A catalogue that would be believed is exact: every cluster it names lies there and matches its checksum. So a crash leaves
//! none once anything was written, or leaves what a clean end before it left. What decays may only cost hits.

use std::ops::Range;

use volumedriver_core::format::cache::{CacheEntry, CacheHeader, CachePage, FileState, PAGE_BYTES};
use volumedriver_core::format::journal::BLOCK_BYTES;
use volumedriver_core::units::ClusterCrc;

use crate::world::Universe;
use crate::world::faults::Canary;
use crate::world::rng::Rng;

/// A file with a catalogue that is to be believed.
struct Closed {
    bytes: Vec<u8>,
    header: CacheHeader,
    pages: u32,
    stamp: u64,
}

/// The cache file of a host, if a clean end left it.
fn closed(universe: &Universe, host: usize) -> Option<Closed> {
    let bytes = universe.cache_file(host)?;
    let header = CacheHeader::decode(bytes.last_chunk::<BLOCK_BYTES>()?).ok()?;
    match header.state {
        FileState::Closed { stamp, pages, .. } => Some(Closed { bytes, header, pages, stamp }),
        FileState::InUse => None,
    }
}

impl Closed {
    fn cluster_at(&self, slot: u32) -> Range<usize> {
        let width = self.header.cluster_size.bytes() as usize;
        slot as usize * width..(slot as usize + 1) * width
    }

    fn page_at(&self, number: u32) -> Range<usize> {
        let slots = self.header.regions as usize * self.header.region_slots as usize;
        let start =
            slots * self.header.cluster_size.bytes() as usize + number as usize * PAGE_BYTES;
        start..start + PAGE_BYTES
    }

    fn page(&self, number: u32) -> Option<CachePage> {
        let page = CachePage::decode(self.bytes.get(self.page_at(number))?).ok()?;
        (page.stamp == self.stamp && page.number == number).then_some(page)
    }

    fn entries(&self) -> Vec<CacheEntry> {
        let pages = (0..self.pages).filter_map(|number| self.page(number));
        pages.flat_map(|page| page.entries().collect::<Vec<_>>()).collect()
    }

    fn crc(&self, slot: u32) -> Option<ClusterCrc> {
        self.bytes.get(self.cluster_at(slot)).map(ClusterCrc::of)
    }
}

/// Whether the next start may find anything in the cache.
pub(super) fn may_be_warm(universe: &Universe, host: usize) -> bool {
    closed(universe, host).is_some()
}

/// What is wrong with the catalogue that would be believed, if nothing of the file ever decayed.
pub(super) fn check(universe: &Universe, host: usize) -> Option<String> {
    let file = closed(universe, host)?;
    if let Some(number) = (0..file.pages).find(|number| file.page(*number).is_none()) {
        return Some(format!("P2: page {number} of the catalogue of the read cache is not there"));
    }
    let wrong = file.entries().into_iter().find(|entry| file.crc(entry.slot) != Some(entry.crc));
    wrong.map(|entry| {
        format!("P2: the catalogue of the read cache is believed, and wrong: {entry:?}")
    })
}

/// Lets something of a host's cache file decay.
pub(super) fn decay(universe: &Universe, host: usize, rng: &mut Rng) {
    if universe.canary() == Some(Canary::UncheckedCache) {
        return forge(universe, host, rng);
    }
    let Some(bytes) = universe.cache_file(host) else { return };
    for _ in 0..rng.between(1, 20) {
        let byte = match rng.below(10) {
            // The header, and the catalogue before it.
            0 => bytes.len() as u64 - 1 - rng.below(BLOCK_BYTES as u64),
            1 | 2 => bytes.len() as u64 - 1 - rng.below((BLOCK_BYTES + PAGE_BYTES) as u64),
            _ => rng.below(bytes.len() as u64),
        };
        if rng.chance(200_000) {
            universe.lose_cache_block(host, byte);
        } else {
            let flipped = bytes[byte as usize] ^ 1 << rng.below(8);
            universe.overwrite_in_cache(host, byte, &[flipped]);
        }
    }
}

/// Flips a bit of every cluster and makes the catalogue agree with it.
fn forge(universe: &Universe, host: usize, rng: &mut Rng) {
    let Some(mut file) = closed(universe, host) else { return };
    for number in 0..file.pages {
        let Some(page) = file.page(number) else { continue };
        let mut forged = CachePage::new(file.stamp, number);
        for entry in page.entries() {
            let at = file.cluster_at(entry.slot);
            let byte = at.start + rng.below(at.len() as u64) as usize;
            file.bytes[byte] ^= 1 << rng.below(8);
            universe.overwrite_in_cache(host, at.start as u64, &file.bytes[at.clone()]);
            forged.push(&CacheEntry { crc: ClusterCrc::of(&file.bytes[at]), ..entry });
        }
        let mut bytes = Box::new([0; PAGE_BYTES]);
        forged.encode(&mut bytes);
        universe.overwrite_in_cache(host, file.page_at(number).start as u64, &bytes[..]);
    }
}
