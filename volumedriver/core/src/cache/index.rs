//! Which cluster lies in which slot of the cache's disk.
//!
//! The disk is a ring of regions of equally many slots, a cluster in each. A region is filled from its first slot to its last,
//! and taken back as a whole when the hand comes round to it: then all its entries leave, but those visited meanwhile may move
//! to the front of the region that takes its place ([`Index::plan_reclaim`]).
//!
//! Why so (misses in a model: 1 M clusters, memory for 2 %, disk for 20 %): plain order of age missed 38.5 % of Zipf 0.8,
//! 16.4 % of Zipf 0.99 and 24.7 % of a moving hot range; keeping what was visited, up to 3/4 of a region, 33.9, 14.0 and
//! 18.3 %, for 1.7 to 2.4 times the writes. A clock over whole regions by their hits was no better than plain order.
//!
//! Invariants: a key is in at most one slot; a slot gets an entry once in a region's life; an entry is found only in the life
//! it was made in. Keys are held exactly (volume and epoch by number in [`Logs`]), not as hashes.
//!
//! Memory: [`Index::SLOT_BYTES`] per slot and 8 per region, in use only as far as the disk was ever filled.

mod logs;
#[cfg(test)]
mod tests;

use super::{CacheKey, place_of};
use crate::fault::{Fault, Result};
use crate::units::{ClusterCrc, Location, ScoId};
use logs::Logs;

/// A place for one cluster, counted over all regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Slot(pub u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RegionNo(pub u32);

/// How the disk is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub regions: u32,
    pub region_slots: u32,
}

impl Shape {
    /// Most slots that can be told apart.
    pub const MOST_SLOTS: u64 = u32::MAX as u64 - 1;

    #[must_use]
    pub fn slots(self) -> u64 {
        u64::from(self.regions) * u64::from(self.region_slots)
    }
    #[must_use]
    pub fn region_of(self, slot: Slot) -> RegionNo {
        RegionNo(slot.0 / self.region_slots)
    }
    #[must_use]
    pub fn first_slot(self, region: RegionNo) -> Slot {
        Slot(region.0 * self.region_slots)
    }
}

/// Where a cluster lies, and the checksum its bytes must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    pub slot: Slot,
    pub crc: ClusterCrc,
    /// The region's life in which it was found.
    life: u32,
}

impl Found {
    /// What lies in another slot of the same region at the same time.
    #[must_use]
    pub fn beside(self, slot: Slot) -> Self {
        Self { slot, ..self }
    }
}

/// A region that was taken back and is being filled.
#[derive(Debug, PartialEq, Eq)]
pub struct OpenRegion {
    pub region: RegionNo,
    used: u32,
    /// Nothing had to leave for it.
    pub is_fresh: bool,
}

impl OpenRegion {
    /// Slots filled so far.
    #[must_use]
    pub fn used(&self) -> u32 {
        self.used
    }
}

/// The next region to be taken back, and what of it is worth moving.
#[must_use]
#[derive(Debug, PartialEq, Eq)]
pub struct Reclaim {
    pub region: RegionNo,
    /// In the order of their slots.
    pub keep: Vec<(CacheKey, Found)>,
}

/// An entry; a word of 0 is none.
#[derive(Clone, Copy)]
struct Entry {
    /// [`Location::to_word`], and [`VISITED`].
    word: u64,
    log: u32,
    crc: ClusterCrc,
}

const VACANT: Entry = Entry { word: 0, log: 0, crc: ClusterCrc(0) };
/// The bit no location uses.
const VISITED: u64 = 1 << 63;

/// See the module's header.
pub struct Index {
    shape: Shape,
    /// Up to the last region that was ever filled.
    entries: Vec<Entry>,
    /// Slots with the same place in `heads`, chained; here and there as slot + 1, 0 for none.
    next: Vec<u32>,
    heads: Vec<u32>,
    /// Per region: entries in it, and the number of its life.
    counts: Vec<u32>,
    lives: Vec<u32>,
    logs: Logs,
    /// The region to be taken back next.
    hand: RegionNo,
    used: u64,
}

impl Index {
    /// Memory per slot, bytes: entry, chain, head.
    pub const SLOT_BYTES: u64 = size_of::<Entry>() as u64 + 4 + 4;

    /// `Invalid` for a shape without slots or with too many; `NoSpace` when there is not that much memory.
    pub fn new(shape: Shape) -> Result<Self> {
        if !(1..=Shape::MOST_SLOTS).contains(&shape.slots()) {
            return Err(Fault::invalid(format!("a cache cannot have {} slots", shape.slots())));
        }
        let (slots, regions) = (shape.slots() as usize, shape.regions as usize);
        let (mut entries, mut next) = (Vec::new(), Vec::new());
        // The heads are tried out first: a failing `vec!` ends the process.
        let tried = Vec::<u32>::new().try_reserve_exact(slots);
        let tried = tried.and_then(|()| entries.try_reserve_exact(slots));
        tried.and_then(|()| next.try_reserve_exact(slots)).map_err(|e| {
            let bytes = shape.slots() * Self::SLOT_BYTES;
            Fault::no_space(format!("no {bytes} bytes of memory for {slots} slots")).because(e)
        })?;
        Ok(Self {
            shape,
            entries,
            next,
            heads: vec![0; slots],
            counts: vec![0; regions],
            lives: vec![0; regions],
            logs: Logs::default(),
            hand: RegionNo(0),
            used: 0,
        })
    }

    #[must_use]
    pub fn shape(&self) -> Shape {
        self.shape
    }
    /// Entries in it.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used
    }
    /// The region to be taken back next.
    #[must_use]
    pub fn hand(&self) -> RegionNo {
        self.hand
    }
    /// Goes on where an earlier index of the same shape stopped.
    pub fn set_hand(&mut self, hand: RegionNo) {
        self.hand = RegionNo(hand.0 % self.shape.regions);
    }

    #[must_use]
    pub fn find(&self, key: &CacheKey) -> Option<Found> {
        let (log, word) = (self.logs.find(key.origin, key.sco.epoch)?, word_of(key)?);
        let mut at = self.heads[self.place(key)];
        while at != 0 {
            let slot = at - 1;
            let entry = &self.entries[slot as usize];
            if entry.word & !VISITED == word && entry.log == log {
                return Some(self.found(Slot(slot), entry));
            }
            at = self.next[slot as usize];
        }
        None
    }

    fn found(&self, slot: Slot, entry: &Entry) -> Found {
        let life = self.lives[self.shape.region_of(slot).0 as usize];
        Found { slot, crc: entry.crc, life }
    }

    /// Whether the slot still holds what was found there: nothing else was put there since.
    #[must_use]
    pub fn is_current(&self, found: &Found) -> bool {
        self.lives[self.shape.region_of(found.slot).0 as usize] == found.life
    }

    /// It was of use: a reason to keep it when its region is taken back.
    pub fn visit(&mut self, found: &Found) {
        if self.is_current(found)
            && let Some(entry) = self.entries.get_mut(found.slot.0 as usize)
            && entry.word != 0
        {
            entry.word |= VISITED;
        }
    }

    /// The region to be taken back next, and those of its entries that were visited since they came, at most so many.
    pub fn plan_reclaim(&self, most_kept: u32) -> Reclaim {
        let region = self.hand;
        let visited = self.entries_of(region).filter(|(_, entry)| entry.word & VISITED != 0);
        let keep = visited
            .take(most_kept as usize)
            .filter_map(|(slot, entry)| Some((self.key_of(&entry)?, self.found(slot, &entry))));
        Reclaim { region, keep: keep.collect() }
    }

    /// Takes the region back: its entries leave, and a new life of it begins. The hand moves on.
    pub fn commit_reclaim(&mut self, plan: &Reclaim) -> OpenRegion {
        let region = plan.region;
        let at = region.0 as usize;
        let is_fresh = self.counts[at] == 0;
        let first = self.shape.first_slot(region).0;
        for slot in first..first + self.shape.region_slots {
            self.vacate(Slot(slot));
        }
        self.lives[at] = self.lives[at].wrapping_add(1);
        self.set_hand(RegionNo(region.0 + 1));
        OpenRegion { region, used: 0, is_fresh }
    }

    /// Gives the cluster the next slot of the region. `None`: it has one already, the region is full, or (never met in
    /// practice) there are too many epochs of volumes to tell apart.
    pub fn insert(
        &mut self,
        open: &mut OpenRegion,
        key: &CacheKey,
        crc: ClusterCrc,
    ) -> Option<Slot> {
        if open.used == self.shape.region_slots {
            return None;
        }
        let slot = Slot(self.shape.first_slot(open.region).0 + open.used);
        self.put(slot, key, crc).then(|| {
            open.used += 1;
            slot
        })
    }

    /// Puts an entry back where an earlier index of the same shape had it. `false`: not possible.
    pub fn restore(&mut self, slot: Slot, key: &CacheKey, crc: ClusterCrc) -> bool {
        u64::from(slot.0) < self.shape.slots() && self.put(slot, key, crc)
    }

    fn put(&mut self, slot: Slot, key: &CacheKey, crc: ClusterCrc) -> bool {
        let at = slot.0 as usize;
        let taken = self.entries.get(at).is_some_and(|entry| entry.word != 0);
        let Some(word) = word_of(key).filter(|_| !taken && self.find(key).is_none()) else {
            return false;
        };
        let Some(log) = self.logs.enter(key.origin, key.sco.epoch) else { return false };
        let region = self.shape.region_of(slot).0;
        if self.entries.len() <= at {
            let end = (region as usize + 1) * self.shape.region_slots as usize;
            self.entries.resize(end, VACANT);
            self.next.resize(end, 0);
        }
        let place = self.place(key);
        self.entries[at] = Entry { word, log, crc };
        self.next[at] = std::mem::replace(&mut self.heads[place], slot.0 + 1);
        self.counts[region as usize] += 1;
        self.used += 1;
        true
    }

    /// Its bytes turned out not to be what they should be.
    pub fn remove(&mut self, found: &Found) {
        if self.is_current(found) {
            self.vacate(found.slot);
        }
    }

    /// Entries from this slot on, in order.
    pub fn entries_from(
        &self,
        slot: Slot,
    ) -> impl Iterator<Item = (Slot, CacheKey, ClusterCrc)> + '_ {
        let rest = self.entries.iter().enumerate().skip(slot.0 as usize);
        rest.filter(|(_, entry)| entry.word != 0)
            .filter_map(|(at, entry)| Some((Slot(at as u32), self.key_of(entry)?, entry.crc)))
    }

    fn entries_of(&self, region: RegionNo) -> impl Iterator<Item = (Slot, Entry)> + '_ {
        let first = self.shape.first_slot(region).0;
        let slots = first..first + self.shape.region_slots;
        slots.map_while(|slot| Some((Slot(slot), *self.entries.get(slot as usize)?)))
    }

    fn vacate(&mut self, slot: Slot) {
        let at = slot.0 as usize;
        let Some(entry) = self.entries.get(at).copied().filter(|entry| entry.word != 0) else {
            return;
        };
        let Some(key) = self.key_of(&entry) else { return };
        self.unlink(slot, self.place(&key));
        self.entries[at] = VACANT;
        self.counts[self.shape.region_of(slot).0 as usize] -= 1;
        self.used -= 1;
        self.logs.leave(entry.log);
    }

    fn unlink(&mut self, slot: Slot, place: usize) {
        let (link, after) = (slot.0 + 1, self.next[slot.0 as usize]);
        if self.heads[place] == link {
            self.heads[place] = after;
            return;
        }
        let mut at = self.heads[place];
        while at != 0 {
            let next = &mut self.next[at as usize - 1];
            if *next == link {
                *next = after;
                return;
            }
            at = *next;
        }
        panic!("slot {} is not in the chain of its key", slot.0);
    }

    fn place(&self, key: &CacheKey) -> usize {
        place_of(key.spread(), self.heads.len())
    }

    fn key_of(&self, entry: &Entry) -> Option<CacheKey> {
        let Location { sco, index } = Location::from_word(entry.word & !VISITED)?;
        let (origin, epoch) = self.logs.name(entry.log)?;
        Some(CacheKey { origin, sco: ScoId { epoch, seq: sco }, index })
    }
}

/// The key without its log; `None` for one that no SCO has.
fn word_of(key: &CacheKey) -> Option<u64> {
    let location = Location { sco: key.sco.seq, index: key.index };
    let legal = (1..=Location::MAX_SCO).contains(&location.sco.0)
        && location.index < Location::MAX_CLUSTERS;
    legal.then(|| location.to_word())
}
