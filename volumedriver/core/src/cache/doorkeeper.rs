//! Who may come in when a place must be taken from another: a cluster that asked before, not long ago.
//!
//! A table of small sets: each key belongs to one set and leaves a fingerprint of one byte there when it asks, in front of
//! the seven of those that asked before it. A key that finds its own fingerprint asked before. With two bytes per slot of the
//! cache, a key is known until about twice as many others have asked as the cache has slots: as long as being let in could
//! have been of use. One stranger in 32 is taken for an acquaintance; that costs one write and nothing else.
//!
//! Sets, because with a single place per key two keys that share one keep each other out for ever, when they ask in turns.

use super::{CacheKey, place_of};
use crate::fault::{Fault, Result};

/// Fingerprints in a set, the latest first; 0 where nobody asked yet.
type Set = [u8; 8];
/// Slots of the cache per set.
const SET_SLOTS: usize = 4;

/// See the module's header.
pub struct Doorkeeper {
    sets: Vec<u64>,
}

impl Doorkeeper {
    /// Memory for each slot of the cache, bytes.
    pub const SLOT_BYTES: u64 = (size_of::<Set>() / SET_SLOTS) as u64;

    /// For a cache with so many slots. `NoSpace` when there is not that much memory.
    pub fn new(slots: usize) -> Result<Self> {
        let sets = slots.div_ceil(SET_SLOTS).max(1);
        // Tried out first: a failing `vec!` ends the process. Memory that is never looked at is never really taken.
        let tried = Vec::<u64>::new().try_reserve_exact(sets);
        tried.map_err(|e| Fault::no_space(format!("no memory for {slots} slots")).because(e))?;
        Ok(Self { sets: vec![0; sets] })
    }

    /// Whether this key asked before; it is remembered.
    pub fn knows(&mut self, key: &CacheKey) -> bool {
        let spread = key.spread();
        let place = place_of(spread, self.sets.len());
        // The set comes from the upper bits, the fingerprint from the lowest.
        let fingerprint = (spread % 255) as u8 + 1;
        let mut set: Set = self.sets[place].to_le_bytes();
        let found = set.iter().position(|known| *known == fingerprint);
        let last = found.unwrap_or(set.len() - 1);
        set.copy_within(0..last, 1);
        set[0] = fingerprint;
        self.sets[place] = u64::from_le_bytes(set);
        found.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::{Epoch, ScoId, ScoSeq, VolumeId};

    fn key(n: u32) -> CacheKey {
        let sco = ScoId { epoch: Epoch(3), seq: ScoSeq(u64::from(n >> 12) + 1) };
        CacheKey { origin: VolumeId([9; 16]), sco, index: n & 0xfff }
    }

    fn known(door: &mut Doorkeeper, keys: std::ops::Range<u32>) -> usize {
        keys.filter(|n| door.knows(&key(*n))).count()
    }

    #[test]
    fn strangers_are_strangers_and_come_back_as_acquaintances() {
        let mut door = Doorkeeper::new(10_000).unwrap();
        let taken_for_known = known(&mut door, 0..10_000);
        assert!(taken_for_known < 250, "{taken_for_known} of 10,000 strangers were known");
        let again = known(&mut door, 0..10_000);
        assert!(again > 9400, "only {again} of 10,000 were known again");
        for turn in 0..3 {
            let again = known(&mut door, 0..10_000);
            assert!(
                again > 9400,
                "only {again} of 10,000 in turn {turn}: some keep each other out"
            );
        }
    }

    #[test]
    fn it_forgets_with_age_and_not_at_once() {
        let again_after = |between: u32| {
            let mut door = Doorkeeper::new(10_000).unwrap();
            known(&mut door, 0..1000);
            known(&mut door, 1_000_000..1_000_000 + between);
            known(&mut door, 0..1000)
        };
        let (young, old, gone) = (again_after(8000), again_after(20_000), again_after(60_000));
        assert!(young > 950, "{young}");
        assert!((200..800).contains(&old), "{old}");
        // What is left are strangers taken for acquaintances.
        assert!(gone < 60, "{gone}");
    }

    #[test]
    fn more_memory_than_there_is_is_an_error() {
        let fault = Doorkeeper::new(usize::MAX / 2).err().unwrap();
        assert_eq!(fault.kind, crate::fault::Kind::NoSpace);
    }
}
