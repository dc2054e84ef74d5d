use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::units::{Epoch, ScoSeq, VolumeId};

const SHAPE: Shape = Shape { regions: 5, region_slots: 7 };

fn key(n: u32) -> CacheKey {
    let sco = ScoId { epoch: Epoch(u64::from(n % 3)), seq: ScoSeq(u64::from(n / 8) + 1) };
    CacheKey { origin: VolumeId([(n % 2) as u8; 16]), sco, index: n % 8 }
}

fn index() -> Index {
    Index::new(SHAPE).unwrap()
}

fn reclaim(index: &mut Index) -> OpenRegion {
    let plan = index.plan_reclaim(0);
    index.commit_reclaim(&plan)
}

/// The same, as slowly and plainly as can be.
#[derive(Default)]
struct Model {
    by_slot: BTreeMap<u32, (u32, u32, bool)>,
}

impl Model {
    fn find(&self, n: u32) -> Option<(u32, u32)> {
        let entry = self.by_slot.iter().find(|(_, entry)| entry.0 == n);
        entry.map(|(slot, (_, crc, _))| (*slot, *crc))
    }
    fn region(region: RegionNo) -> std::ops::Range<u32> {
        region.0 * SHAPE.region_slots..(region.0 + 1) * SHAPE.region_slots
    }
}

/// What can be asked of an index.
#[derive(Clone, Debug)]
enum Step {
    /// Into the open region; a full one is replaced first, keeping so many of the visited.
    Insert(u32, u32, u32),
    Visit(u32),
    Remove(u32),
    Restore(u32, u32, u32),
    /// Through the entries of one index into a new one.
    Move,
}

fn step() -> impl Strategy<Value = Step> {
    let n = 0..60_u32;
    prop_oneof![
        8 => (n.clone(), any::<u32>(), 0..7_u32).prop_map(|(n, crc, kept)| Step::Insert(n, crc, kept)),
        3 => n.clone().prop_map(Step::Visit),
        1 => n.clone().prop_map(Step::Remove),
        1 => (0..40_u32, n, any::<u32>()).prop_map(|(slot, n, crc)| Step::Restore(slot, n, crc)),
        1 => Just(Step::Move),
    ]
}

/// An index and its model, side by side.
struct Pair {
    index: Index,
    open: OpenRegion,
    model: Model,
}

impl Pair {
    fn new() -> Self {
        let mut index = index();
        let open = reclaim(&mut index);
        Self { index, open, model: Model::default() }
    }

    fn next_region(&mut self, most_kept: u32) {
        let plan = self.index.plan_reclaim(most_kept);
        let before = std::mem::take(&mut self.model.by_slot);
        let (leaving, staying): (BTreeMap<_, _>, BTreeMap<_, _>) =
            before.into_iter().partition(|(slot, _)| Model::region(plan.region).contains(slot));
        self.model.by_slot = staying;
        let visited = leaving.iter().filter(|(_, (_, _, visited))| *visited);
        let wanted: Vec<_> = visited.take(most_kept as usize).map(|(s, e)| (*s, e.0)).collect();
        let planned: Vec<_> = plan.keep.iter().map(|(k, found)| (found.slot.0, *k)).collect();
        let as_keys: Vec<_> = wanted.iter().map(|(s, n)| (*s, key(*n))).collect();
        assert_eq!(planned, as_keys);
        self.open = self.index.commit_reclaim(&plan);
        assert_eq!(self.open.is_fresh, leaving.is_empty());
        for ((kept, found), (_, n)) in plan.keep.iter().zip(wanted) {
            assert!(!self.index.is_current(found), "found in an earlier life");
            let slot = self.index.insert(&mut self.open, kept, found.crc).unwrap();
            self.model.by_slot.insert(slot.0, (n, found.crc.0, false));
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Insert(n, crc, kept) => {
                if self.open.used() == SHAPE.region_slots {
                    self.next_region(kept);
                }
                let known = self.model.find(n).is_some();
                let slot = self.index.insert(&mut self.open, &key(n), ClusterCrc(crc));
                assert_eq!(slot.is_none(), known);
                if let Some(slot) = slot {
                    assert!(Model::region(self.open.region).contains(&slot.0));
                    assert!(self.model.by_slot.insert(slot.0, (n, crc, false)).is_none());
                }
            }
            Step::Visit(n) => {
                if let Some(found) = self.index.find(&key(n)) {
                    self.index.visit(&found);
                    self.model.by_slot.get_mut(&found.slot.0).unwrap().2 = true;
                }
            }
            Step::Remove(n) => {
                if let Some(found) = self.index.find(&key(n)) {
                    self.index.remove(&found);
                    self.model.by_slot.remove(&found.slot.0);
                }
            }
            Step::Restore(slot, n, crc) => {
                // Only what the open region does not reach any more, as after a start.
                let beyond = u64::from(slot) >= SHAPE.slots();
                let open = Model::region(self.open.region).contains(&slot);
                if open && !beyond {
                    return;
                }
                let possible = !beyond
                    && !self.model.by_slot.contains_key(&slot)
                    && self.model.find(n).is_none();
                assert_eq!(self.index.restore(Slot(slot), &key(n), ClusterCrc(crc)), possible);
                if possible {
                    self.model.by_slot.insert(slot, (n, crc, false));
                }
            }
            Step::Move => {
                let mut other = index();
                for (slot, key, crc) in self.index.entries_from(Slot(0)) {
                    assert!(other.restore(slot, &key, crc));
                }
                other.set_hand(self.index.hand());
                self.index = other;
                self.model.by_slot.values_mut().for_each(|entry| entry.2 = false);
            }
        }
    }

    fn check(&self) {
        for n in 0..60 {
            let found = self.index.find(&key(n)).map(|found| (found.slot.0, found.crc.0));
            assert_eq!(found, self.model.find(n), "cluster {n}");
        }
        assert_eq!(self.index.used(), self.model.by_slot.len() as u64);
        let listed: Vec<_> =
            self.index.entries_from(Slot(9)).map(|(s, k, crc)| (s.0, k, crc.0)).collect();
        let expected = self.model.by_slot.range(9..);
        let expected: Vec<_> = expected.map(|(s, (n, crc, _))| (*s, key(*n), *crc)).collect();
        assert_eq!(listed, expected);
    }
}

proptest! {
    #[test]
    fn does_what_its_model_does(steps in proptest::collection::vec(step(), 0..300)) {
        let mut pair = Pair::new();
        for step in steps {
            pair.take(step);
            pair.check();
        }
    }
}

#[test]
fn regions_come_round_in_order_and_fresh_ones_displace_nothing() {
    let mut index = index();
    let mut n = 0;
    for turn in 0..3 {
        for region in 0..SHAPE.regions {
            let mut open = reclaim(&mut index);
            assert_eq!((open.region, open.is_fresh), (RegionNo(region), turn == 0));
            while index.insert(&mut open, &key(n), ClusterCrc(n)).is_some() {
                n += 1;
            }
            assert_eq!(open.used(), SHAPE.region_slots);
        }
        assert_eq!(index.used(), SHAPE.slots());
    }
    assert!(index.find(&key(n - 1)).is_some());
    assert!(index.find(&key(n - 1 - SHAPE.slots() as u32)).is_none());
}

#[test]
fn what_was_found_in_an_earlier_life_changes_nothing() {
    let mut index = index();
    let mut open = reclaim(&mut index);
    index.insert(&mut open, &key(0), ClusterCrc(5));
    let found = index.find(&key(0)).unwrap();
    for _ in 0..SHAPE.regions {
        open = reclaim(&mut index);
    }
    index.insert(&mut open, &key(1), ClusterCrc(6));
    assert_eq!(index.find(&key(1)).unwrap().slot, found.slot);
    assert!(!index.is_current(&found));
    index.visit(&found);
    index.remove(&found);
    assert!(index.find(&key(1)).is_some());
    for _ in 0..SHAPE.regions - 1 {
        reclaim(&mut index);
    }
    assert_eq!(index.plan_reclaim(7).keep, [], "the visit was another's");
}

#[test]
fn keys_that_no_sco_has_are_not_taken() {
    let mut index = index();
    let mut open = reclaim(&mut index);
    let wrong = [
        CacheKey { index: Location::MAX_CLUSTERS, ..key(0) },
        CacheKey { sco: ScoId { epoch: Epoch(1), seq: ScoSeq(0) }, ..key(0) },
        CacheKey { sco: ScoId { epoch: Epoch(1), seq: ScoSeq(1 << 47) }, ..key(0) },
    ];
    for key in wrong {
        assert_eq!(index.insert(&mut open, &key, ClusterCrc(0)), None);
        assert_eq!(index.find(&key), None);
    }
    assert_eq!(open.used(), 0);
}

#[test]
fn logs_are_bounded_and_numbers_come_back() {
    let shape = Shape { regions: 2, region_slots: 1 << 16 };
    let mut index = Index::new(shape).unwrap();
    let of_epoch = |epoch| CacheKey {
        origin: VolumeId([1; 16]),
        sco: ScoId { epoch: Epoch(epoch), seq: ScoSeq(1) },
        index: 0,
    };
    let mut open = reclaim(&mut index);
    for epoch in 0..logs::MOST_LOGS as u64 {
        index.insert(&mut open, &of_epoch(epoch), ClusterCrc(0)).unwrap();
    }
    let mut open = reclaim(&mut index);
    assert_eq!(index.insert(&mut open, &of_epoch(1 << 40), ClusterCrc(0)), None);
    index.remove(&index.find(&of_epoch(77)).unwrap());
    assert!(index.insert(&mut open, &of_epoch(1 << 40), ClusterCrc(9)).is_some());
    assert_eq!(index.find(&of_epoch(1 << 40)).unwrap().crc, ClusterCrc(9));
    assert_eq!(index.find(&of_epoch(77)), None);
}

#[test]
fn impossible_sizes_are_errors() {
    for shape in [
        Shape { regions: 0, region_slots: 7 },
        Shape { regions: 1 << 16, region_slots: 1 << 16 },
        Shape { regions: u32::MAX, region_slots: u32::MAX },
    ] {
        assert_eq!(Index::new(shape).err().unwrap().kind, crate::fault::Kind::Invalid, "{shape:?}");
    }
}

#[test]
fn a_slot_takes_as_much_memory_as_is_said() {
    assert_eq!(Index::SLOT_BYTES, 24);
}
