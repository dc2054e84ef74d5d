//! Who may come in when a place must be taken from another: a cluster that asked before, not long ago.
//!
//! A table of one byte per place: each key has one place in it, and leaves a fingerprint there when it asks. A key that finds
//! its own fingerprint asked before. Others overwrite it in time, and that is how it ages: with as many places as the cache
//! has slots, what asked `n` distinct keys ago is still known with probability `e^(-n / slots)`, which is how long being let
//! in could have been of use. One in 255 strangers is taken for an acquaintance; that costs one write and nothing else.

use super::{CacheKey, place_of};
use crate::fault::{Fault, Result};

/// See the module's header.
pub struct Doorkeeper {
    /// A fingerprint, 1 to 255; 0 where nobody asked yet.
    seen: Vec<u8>,
}

impl Doorkeeper {
    /// Memory for each of its places, bytes.
    pub const PLACE_BYTES: u64 = 1;

    /// `NoSpace` when there is not that much memory.
    pub fn new(places: usize) -> Result<Self> {
        // Tried out first: a failing `vec!` ends the process. Memory that is never looked at is never really taken.
        let tried = Vec::<u8>::new().try_reserve_exact(places);
        tried.map_err(|e| Fault::no_space(format!("no {places} bytes of memory")).because(e))?;
        Ok(Self { seen: vec![0; places.max(1)] })
    }

    /// Whether this key asked before; it is remembered.
    pub fn knows(&mut self, key: &CacheKey) -> bool {
        let spread = key.spread();
        let place = place_of(spread, self.seen.len());
        // The place comes from the upper bits, the fingerprint from the lowest.
        let fingerprint = (spread % 255) as u8 + 1;
        let known = self.seen[place] == fingerprint;
        self.seen[place] = fingerprint;
        known
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
        let mut door = Doorkeeper::new(100_000).unwrap();
        let taken_for_known = known(&mut door, 0..10_000);
        assert!(taken_for_known < 40, "{taken_for_known} of 10,000 strangers were known");
        let again = known(&mut door, 0..10_000);
        assert!(again > 9000, "only {again} of 10,000 were known again");
    }

    #[test]
    fn it_forgets_with_age_and_not_at_once() {
        let again_after = |between: u32| {
            let mut door = Doorkeeper::new(10_000).unwrap();
            known(&mut door, 0..2000);
            known(&mut door, 1_000_000..1_000_000 + between);
            known(&mut door, 0..2000)
        };
        // e^-0.1, e^-1 and e^-5 of 2000, less what they take from each other.
        let (young, middle, old) = (again_after(1000), again_after(10_000), again_after(50_000));
        assert!((1300..1800).contains(&young), "{young}");
        assert!((500..900).contains(&middle), "{middle}");
        assert!(old < 60, "{old}");
    }

    #[test]
    fn more_memory_than_there_is_is_an_error() {
        let fault = Doorkeeper::new(usize::MAX / 2).err().unwrap();
        assert_eq!(fault.kind, crate::fault::Kind::NoSpace);
    }
}
