//! The map against a model: the plain list of changes, of which the newest that covers a cluster wins.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::format::tlog::TlogSco;
use crate::format::{Change, ChangeKind};
use crate::units::{Epoch, ScoId};

const GIB: u64 = 1 << 18;
const TIB: u64 = 1 << 28;

#[derive(Clone, Debug)]
enum Op {
    Write { addr: u64, count: u64 },
    Punch { addr: u64, count: u64, zero: bool },
    Publish { changes: usize },
    Take { limit: usize },
    Persisted { fails: bool },
    Evict { budget: u64 },
    Lookup { addr: u64, count: u64 },
    Grow { by: u64 },
}

/// The map under test, the page store beneath it, and the model.
struct Bench {
    map: Map,
    /// All changes so far; those before `published` are in the base.
    log: Vec<(ScoSeq, Change)>,
    published: usize,
    store: BTreeMap<PageNo, Bytes>,
    in_flight: VecDeque<DirtyBatch>,
}

impl Bench {
    fn new(map: Map) -> Self {
        Self { map, log: vec![], published: 0, store: BTreeMap::new(), in_flight: VecDeque::new() }
    }

    fn change(&mut self, addr: u64, count: u64, kind: ChangeKind) {
        let seq = Seq(self.log.len() as u64 + 1);
        let sco = ScoSeq(1 + seq.0 / 7);
        let (addr, count) = (ClusterAddr(addr), ClusterCount(count));
        self.map.set(addr, count, mapping_of(sco, &kind), seq);
        self.log.push((sco, Change { seq, addr, count, kind }));
    }

    fn write(&mut self, addr: u64, count: u64) {
        let first_index = (self.log.len() as u32 % 7) * 4096;
        self.change(addr, count, ChangeKind::Data { first_index, crcs: vec![] });
    }

    fn load(&mut self, pages: &[PageNo]) {
        for page in pages {
            assert!(!self.map.is_loaded(*page), "asked for a loaded page");
            let content = match self.store.get(page) {
                Some(bytes) => Page::decode(*page, bytes).unwrap(),
                None => Page::hole(),
            };
            put_in(&mut self.map, *page, content);
        }
    }

    fn publish(&mut self, changes: usize) {
        for _ in 0..changes {
            let Some((sco, change)) = self.log.get(self.published).cloned() else { return };
            let changes = [change];
            let missing = self.map.missing_for(&changes, usize::MAX);
            self.load(&missing);
            self.map.publish(sco, &changes);
            self.published += 1;
        }
    }

    fn take(&mut self, limit: usize) {
        let batch = self.map.take_dirty(limit);
        assert!(batch.holes.len() + batch.pages.len() <= limit);
        self.check_not_ahead(&batch);
        self.in_flight.push_back(batch);
    }

    fn persisted(&mut self, fails: bool) {
        let Some(batch) = self.in_flight.pop_front() else { return };
        if fails {
            return self.map.not_persisted(batch);
        }
        for (first, count) in &batch.holes {
            let end = PageNo(first.0 + count);
            let gone: Vec<_> = self.store.range(*first..end).map(|(page, _)| *page).collect();
            gone.iter().for_each(|page| drop(self.store.remove(page)));
        }
        self.store.extend(batch.pages.iter().cloned());
        self.map.persisted(batch);
    }

    fn newest(&self, addr: u64) -> Mapping {
        self.newest_of(self.log.len(), addr)
    }

    /// What the first `changes` of the log say of a cluster.
    fn newest_of(&self, changes: usize, addr: u64) -> Mapping {
        let covers =
            |change: &Change| change.addr.0 <= addr && addr < change.addr.0 + change.count.0;
        let newest = self.log[..changes].iter().rev().find(|(_, change)| covers(change));
        newest.map_or(Mapping::Hole, |(sco, change)| {
            mapping_of(*sco, &change.kind).nth(addr - change.addr.0)
        })
    }

    /// INV-5: what is persisted is the map of what was published, no more and no less.
    fn check_not_ahead(&self, batch: &DirtyBatch) {
        for (page, bytes) in &batch.pages {
            for extent in Page::decode(*page, bytes).unwrap().extents(*page) {
                for n in [0, extent.count.0 - 1] {
                    let expected = self.newest_of(self.published, extent.addr.0 + n);
                    assert_eq!(extent.mapping.nth(n), expected, "{extent:?}");
                }
            }
        }
        for (first, count) in &batch.holes {
            for page in [first.0, first.0 + count - 1] {
                let shown = self.newest_of(self.published, page * PAGE_CLUSTERS);
                assert_eq!(shown, Mapping::Hole);
            }
        }
    }

    /// Compares extents of the range with the model at every place where anything can change.
    fn check(&mut self, addr: u64, count: u64) {
        let mut extents = vec![];
        let (start, range) = (ClusterAddr(addr), ClusterCount(count));
        while let Err(missing) = self.map.lookup(start, range, &mut |extent| extents.push(extent)) {
            assert!(extents.is_empty() && !missing.pages.is_empty());
            self.load(&missing.pages);
        }
        let mut at = addr;
        for extent in &extents {
            assert_eq!(extent.addr.0, at);
            at += extent.count.0;
        }
        assert_eq!(at, addr + count);
        for point in self.points(addr, addr + count) {
            let i = extents.partition_point(|extent| extent.addr.0 <= point) - 1;
            let shown = extents[i].mapping.nth(point - extents[i].addr.0);
            assert_eq!(shown, self.newest(point), "cluster {point}");
            assert_eq!(self.map.lookup_one(ClusterAddr(point)), Ok(shown));
        }
    }

    fn points(&self, start: u64, end: u64) -> BTreeSet<u64> {
        let edges = self.log.iter().flat_map(|(_, change)| {
            let (first, past) = (change.addr.0, change.addr.0 + change.count.0);
            [first.wrapping_sub(1), first, first + change.count.0 / 2, past - 1, past]
        });
        let inside = edges.filter(|at| (start..end).contains(at));
        inside.chain([start, end - 1]).collect()
    }

    fn run(&mut self, op: Op) {
        let size = self.map.size().0;
        let clip = |addr: u64, count: u64| (addr % size, count.min(size - addr % size));
        match op {
            Op::Write { addr, count } => {
                let (addr, count) = clip(addr, count);
                self.write(addr, count);
            }
            Op::Punch { addr, count, zero } => {
                let (addr, count) = clip(addr, count);
                self.change(addr, count, if zero { ChangeKind::Zero } else { ChangeKind::Hole });
            }
            Op::Publish { changes } => self.publish(changes),
            Op::Take { limit } => self.take(limit),
            Op::Persisted { fails } => self.persisted(fails),
            Op::Evict { budget } => {
                self.map.evict(budget);
            }
            Op::Lookup { addr, count } => {
                let (addr, count) = clip(addr, count);
                self.check(addr, count);
            }
            Op::Grow { by } => self.map.grow(ClusterCount(size + by)),
        }
        self.check_books();
    }

    /// Kept counts against counting.
    fn check_books(&self) {
        assert_eq!(
            self.map.overlay.counted(),
            (self.map.overlay.data, self.map.overlay.memory_bytes())
        );
        assert_eq!(self.map.base.counted(), (self.map.base.unclean, self.map.base.memory_bytes()));
        if self.published == self.log.len() {
            assert!(self.map.overlay_is_empty() && self.map.overlay_clusters() == 0);
        }
    }

    /// Everything written out, everything evicted, everything read again.
    fn finish(&mut self) {
        self.publish(usize::MAX);
        while self.map.dirty_pages() > 0 {
            self.take(100);
            self.persisted(false);
        }
        assert!(self.map.overlay_is_empty());
        self.map.evict(0);
        let whole = self.map.size().0;
        self.check(0, whole.min(40 * 512));
        let log: Vec<_> =
            self.log.iter().map(|(_, change)| (change.addr.0, change.count.0)).collect();
        for (addr, count) in log {
            self.check(addr, count.min(2000));
        }
        self.map = Map::new_unloaded(self.map.size());
        self.check(0, whole.min(40 * 512));
    }
}

fn ops(near: u64, far: u64) -> impl Strategy<Value = Op> {
    let addr =
        || prop_oneof![8 => 0..near, 1 => 0..far, 1 => (0..far / 512).prop_map(|page| page * 512)];
    let long = || prop_oneof![4 => 1u64..2000, 1 => (1u64..2000).prop_map(|pages| pages * 512)];
    prop_oneof![
        12 => (addr(), 1u64..65).prop_map(|(addr, count)| Op::Write { addr, count }),
        3 => (addr(), long(), any::<bool>())
            .prop_map(|(addr, count, zero)| Op::Punch { addr, count, zero }),
        4 => (1usize..12).prop_map(|changes| Op::Publish { changes }),
        2 => (1usize..40).prop_map(|limit| Op::Take { limit }),
        2 => prop::bool::weighted(0.2).prop_map(|fails| Op::Persisted { fails }),
        1 => prop_oneof![Just(0u64), 0u64..200_000].prop_map(|budget| Op::Evict { budget }),
        4 => (addr(), 1u64..3000).prop_map(|(addr, count)| Op::Lookup { addr, count }),
        1 => (1u64..700_000).prop_map(|by| Op::Grow { by }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn small_volume_is_the_model(ops in prop::collection::vec(ops(3000, 5000), 1..120)) {
        let mut bench = Bench::new(Map::new_empty(ClusterCount(5000)));
        ops.into_iter().for_each(|op| bench.run(op));
        bench.finish();
    }

    #[test]
    fn unloaded_volume_is_the_model(ops in prop::collection::vec(ops(2000, 4 * GIB), 1..100)) {
        let mut bench = Bench::new(Map::new_unloaded(ClusterCount(4 * GIB - 777)));
        ops.into_iter().for_each(|op| bench.run(op));
        bench.finish();
    }

    #[test]
    fn huge_volume_is_the_model(ops in prop::collection::vec(ops(64 * TIB, 64 * TIB), 1..40)) {
        let mut bench = Bench::new(Map::new_empty(ClusterCount(64 * TIB)));
        ops.into_iter().for_each(|op| bench.run(op));
        bench.finish();
    }
}

fn at(sco: u64, index: u32) -> Mapping {
    Mapping::At(Location { sco: ScoSeq(sco), index })
}

fn extent(addr: u64, count: u64, mapping: Mapping) -> MapExtent {
    MapExtent { addr: ClusterAddr(addr), count: ClusterCount(count), mapping }
}

fn data(seq: u64, addr: u64, count: u64, first_index: u32) -> Change {
    let (seq, addr, count) = (Seq(seq), ClusterAddr(addr), ClusterCount(count));
    Change { seq, addr, count, kind: ChangeKind::Data { first_index, crcs: vec![] } }
}

fn hole(seq: u64, addr: u64, count: u64) -> Change {
    let (seq, addr, count) = (Seq(seq), ClusterAddr(addr), ClusterCount(count));
    Change { seq, addr, count, kind: ChangeKind::Hole }
}

fn put_in(map: &mut Map, page: PageNo, content: Page) {
    let since = map.begin_load();
    map.install(page, content, &since);
    map.end_load(since);
}

fn view(map: &mut Map, addr: u64, count: u64) -> Vec<MapExtent> {
    let mut extents = vec![];
    let visit = &mut |extent| extents.push(extent);
    map.lookup(ClusterAddr(addr), ClusterCount(count), visit).unwrap();
    extents
}

#[test]
fn publishing_an_older_trim_keeps_the_newer_one() {
    let mut map = Map::new_empty(ClusterCount(4 * GIB));
    map.publish(ScoSeq(1), &[data(1, 0, 1000, 0)]);
    map.set(ClusterAddr(0), ClusterCount(2 * GIB), Mapping::Hole, Seq(2));
    map.set(ClusterAddr(500), ClusterCount(10), at(2, 0), Seq(3));
    map.set(ClusterAddr(0), ClusterCount(2 * GIB), Mapping::Hole, Seq(4));
    map.publish(ScoSeq(2), &[hole(2, 0, 2 * GIB), data(3, 500, 10, 0)]);
    // The base now shows the write; the trim after it must still hide it.
    assert_eq!(view(&mut map, 0, 4 * GIB), [extent(0, 4 * GIB, Mapping::Hole)]);
    map.publish(ScoSeq(3), &[hole(4, 0, 2 * GIB)]);
    assert!(map.overlay_is_empty());
    assert_eq!(view(&mut map, 0, 4 * GIB), [extent(0, 4 * GIB, Mapping::Hole)]);
}

#[test]
fn a_trim_published_in_parts_goes_in_parts() {
    let mut map = Map::new_unloaded(ClusterCount(2 * GIB));
    map.set(ClusterAddr(0), ClusterCount(GIB), Mapping::Zero, Seq(9));
    map.set(ClusterAddr(513), ClusterCount(1), at(8, 1), Seq(10));
    let part = Change { kind: ChangeKind::Zero, ..hole(9, 0, 1024) };
    map.publish(ScoSeq(7), &[part]);
    let [left, write, right] = view(&mut map, 0, GIB).try_into().unwrap();
    assert_eq!((left, write), (extent(0, 513, Mapping::Zero), extent(513, 1, at(8, 1))));
    assert_eq!(right, extent(514, GIB - 514, Mapping::Zero));
    let rest = Change { kind: ChangeKind::Zero, ..hole(9, 1024, GIB - 1024) };
    map.publish(ScoSeq(7), &[rest, data(10, 0, 0, 0)]);
    assert_eq!(map.overlay_clusters(), 1);
}

#[test]
fn missing_names_all_pages_needed_and_no_other() {
    let mut map = Map::new_unloaded(ClusterCount(8 * GIB));
    let pages = |pages: &[u64]| pages.iter().copied().map(PageNo).collect::<Vec<_>>();
    map.set(ClusterAddr(512), ClusterCount(512), at(1, 0), Seq(1));
    put_in(&mut map, PageNo(3), Page::hole());
    let missing = map.lookup(ClusterAddr(100), ClusterCount(2000), &mut |_| panic!("visited"));
    assert_eq!(missing, Err(Missing { pages: pages(&[0, 2, 4]) }));
    let all = map.lookup(ClusterAddr(0), map.size(), &mut |_| panic!("visited")).unwrap_err();
    assert_eq!(all.pages.len(), MAX_MISSING);
    let changes = [data(1, 511, 3, 0), hole(2, 512 * 10, 512 * 5), hole(3, 512 * 20 + 1, 512)];
    assert_eq!(map.missing_for(&changes, usize::MAX), pages(&[0, 1, 20, 21]));
    assert_eq!(map.missing_for(&changes, 2).len(), 2);
    assert!(map.check(&changes).is_ok());
    for outside in [hole(1, 8 * GIB - 1, 2), hole(1, u64::MAX, 2)] {
        assert_eq!(map.check(&[outside]).unwrap_err().kind, crate::fault::Kind::Corrupt);
    }
}

/// A page asked for, changed as a whole, stored and evicted before the answer came: the answer is out of date.
#[test]
fn a_page_that_comes_late_does_not_undo_what_was_published_meanwhile() {
    let mut map = Map::new_unloaded(ClusterCount(2048));
    let (before, after) = (data(1, 512, 512, 0), data(2, 512, 512, 512));
    map.publish(ScoSeq(1), std::slice::from_ref(&before));
    let old = map.take_dirty(10);
    let stale = |batch: &DirtyBatch| Page::decode(PageNo(1), &batch.pages[0].1).unwrap();
    let (late, later, other) = (stale(&old), stale(&old), stale(&old));
    map.persisted(old);
    map.evict(0);
    map.evict(0);
    assert!(!map.is_loaded(PageNo(1)));
    let since = map.begin_load();
    map.publish(ScoSeq(1), &[after]);
    let meanwhile = map.begin_load();
    let batch = map.take_dirty(10);
    map.persisted(batch);
    map.evict(0);
    map.evict(0);
    map.install(PageNo(1), late, &since);
    map.install_rebuilt(PageNo(1), later, &since);
    assert!(!map.is_loaded(PageNo(1)), "a page came in that was out of date");
    // Other pages, and who asked later, are not concerned.
    map.install(PageNo(2), other, &since);
    assert!(map.is_loaded(PageNo(2)));
    map.end_load(since);
    map.install_rebuilt(PageNo(1), Page::hole(), &meanwhile);
    map.end_load(meanwhile);
    assert!(map.is_loaded(PageNo(1)));
    assert_eq!(map.dirty_pages(), 1, "what was rebuilt is to be stored");
}

#[test]
fn a_page_changed_while_it_is_written_stays_dirty() {
    let mut map = Map::new_empty(ClusterCount(GIB));
    map.publish(ScoSeq(1), &[data(1, 5, 1, 0)]);
    let first = map.take_dirty(10);
    assert_eq!((first.pages.len(), map.dirty_pages()), (1, 1));
    map.publish(ScoSeq(2), &[data(2, 6, 1, 0)]);
    assert!(map.take_dirty(10).is_empty(), "one write of a page at a time");
    map.evict(0);
    map.persisted(first);
    assert_eq!(map.dirty_pages(), 1);
    let second = map.take_dirty(10);
    let page = Page::decode(PageNo(0), &second.pages[0].1).unwrap();
    assert_eq!(page.extents(PageNo(0))[1..3], [extent(5, 1, at(1, 0)), extent(6, 1, at(2, 0))]);
    map.persisted(second);
    assert_eq!(map.dirty_pages(), 0);
}

/// The largest SCO's last cluster and the next SCO's first are neighbours as words, not as locations.
#[test]
fn runs_end_at_the_end_of_an_sco() {
    let mut map = Map::new_empty(ClusterCount(4096));
    let changes = [data(1, 0, 1, 65_535), data(2, 512, 512, 65_024)];
    map.publish(ScoSeq(1), &changes);
    map.publish(ScoSeq(2), &[data(3, 1, 1, 0), data(4, 1024, 512, 0)]);
    let expected = [
        extent(0, 1, at(1, 65_535)),
        extent(1, 1, at(2, 0)),
        extent(2, 510, Mapping::Hole),
        extent(512, 512, at(1, 65_024)),
        extent(1024, 512, at(2, 0)),
    ];
    assert_eq!(view(&mut map, 0, 1536), expected);
}

/// The `n`th of addresses that look random, below `size`.
fn scatter(n: u64, size: u64) -> u64 {
    (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) % size
}

fn fill_sequentially(map: &mut Map) {
    for (n, first) in (0..map.size().0).step_by(16_384).enumerate() {
        map.publish(ScoSeq(n as u64 + 1), &[data(n as u64 + 1, first, 16_384, 0)]);
    }
}

#[test]
fn memory_of_a_sequential_tebibyte() {
    let mut map = Map::new_empty(ClusterCount(TIB));
    fill_sequentially(&mut map);
    assert_eq!(map.dirty_pages(), TIB / PAGE_CLUSTERS);
    assert!(map.memory_bytes() <= 16 << 20, "{} bytes", map.memory_bytes());
    let bytes: usize = map.take_dirty(4096).pages.iter().map(|(_, bytes)| bytes.len()).sum();
    assert!(bytes < 64 * 4096, "{} bytes a page", bytes / 4096);
}

#[test]
fn memory_of_dense_pages() {
    let mut map = Map::new_empty(ClusterCount(GIB));
    for page in 0..512 {
        let scattered: Vec<_> =
            (0..512).map(|n| data(1, page * 512 + n, 1, (n as u32 * 7919) % 16_384)).collect();
        map.publish(ScoSeq(1 + page), &scattered);
    }
    let per_entry = map.memory_bytes() as f64 / GIB as f64;
    assert!((8.0..8.1).contains(&per_entry), "{per_entry} bytes an entry");
    let batch = map.take_dirty(512);
    assert!(batch.pages.iter().all(|(_, bytes)| bytes.len() <= 8 * 512 + 32));
}

#[test]
fn memory_of_a_sparse_overlay() {
    let mut map = Map::new_empty(ClusterCount(64 * TIB));
    let empty = map.memory_bytes();
    let entries = 300_000;
    for n in 0..entries {
        let addr = ClusterAddr(scatter(n, 64 * TIB));
        map.set(addr, ClusterCount(1), at(1 + n / 16_384, (n % 16_384) as u32), Seq(n + 1));
    }
    let root = 16 * 64 * TIB / CHUNK;
    let per_entry = (map.memory_bytes() - empty - root) / entries;
    assert!(per_entry <= 64, "{per_entry} bytes an entry");
}

#[test]
fn an_idle_volume_takes_its_root_only() {
    let mut map = Map::new_unloaded(ClusterCount(64 * TIB));
    assert!(map.memory_bytes() <= 1 << 20);
    map.set(ClusterAddr(7), ClusterCount(1), at(1, 0), Seq(1));
    put_in(&mut map, PageNo(0), Page::hole());
    map.publish(ScoSeq(1), &[data(1, 7, 1, 0)]);
    let batch = map.take_dirty(1);
    map.persisted(batch);
    map.evict(0);
    assert!(map.memory_bytes() <= 1 << 20);
}

#[test]
fn works_inside_a_budget() {
    // Seven chunk tables fit; sixteen are in use.
    let budget = 64 << 10;
    let mut map = Map::new_empty(ClusterCount(16 * GIB));
    let mut store: BTreeMap<PageNo, Bytes> = BTreeMap::new();
    for n in 0..4000 {
        let addr = scatter(n, 16 * GIB);
        let change = [data(n + 1, addr, 1, (n % 16_384) as u32)];
        for page in map.missing_for(&change, 8) {
            let decoded = store.get(&page).map(|bytes| Page::decode(page, bytes).unwrap());
            put_in(&mut map, page, decoded.unwrap_or_else(Page::hole));
        }
        map.publish(ScoSeq(1), &change);
        if map.memory_bytes() > budget {
            let batch = map.take_dirty(usize::MAX);
            store.extend(batch.pages.iter().cloned());
            map.persisted(batch);
            map.evict(budget * 3 / 4);
        }
        assert!(map.memory_bytes() <= budget);
    }
    assert!(store.len() > 1000);
}

/// Set, publish and the hole for the page store of a trim of everything; how long that took.
fn trim_all(map: &mut Map) -> std::time::Duration {
    fill_sequentially(map);
    let size = map.size();
    let start = std::time::Instant::now();
    map.set(ClusterAddr(0), size, Mapping::Hole, Seq(1 << 40));
    map.publish(ScoSeq(1 << 40), &[hole(1 << 40, 0, size.0)]);
    let batch = map.take_dirty(16);
    let took = start.elapsed();
    assert_eq!(batch.holes, [(PageNo(0), size.0 / PAGE_CLUSTERS)]);
    map.persisted(batch);
    took
}

#[test]
fn a_trim_of_two_tebibytes_is_quick() {
    let mut map = Map::new_empty(ClusterCount(2 * TIB));
    // The best of three: other tests run beside this one.
    let took = (0..3).map(|_| trim_all(&mut map)).min().unwrap();
    assert!(took.as_millis() < 50, "{took:?}");
    assert_eq!(view(&mut map, 0, 2 * TIB), [extent(0, 2 * TIB, Mapping::Hole)]);
    assert_eq!((map.dirty_pages(), map.memory_bytes()), (0, 16 * 2 * TIB / CHUNK));
}

/// Changes of a small volume, cut into TLogs of a few SCOs.
fn tlogs() -> impl Strategy<Value = Vec<Vec<TlogSco>>> {
    let change = (0..200_u64, 1..40_u64, 0..4_u8);
    let sco = prop::collection::vec(change, 0..8);
    prop::collection::vec(prop::collection::vec(sco, 0..4), 0..5).prop_map(|tlogs| {
        let (mut seq, mut no) = (0, 0);
        let mut make = |changes: Vec<(u64, u64, u8)>| {
            no += 1;
            let mut index = 0;
            let mut change = |(addr, count, kind): (u64, u64, u8)| {
                seq += 1;
                let first_index = index;
                index += count as u32;
                match kind {
                    0 => hole(seq, addr, count),
                    1 => Change { kind: ChangeKind::Zero, ..hole(seq, addr, count) },
                    _ => data(seq, addr, count, first_index),
                }
            };
            let changes = changes.into_iter().map(&mut change).collect();
            let id = ScoId { epoch: Epoch(1), seq: ScoSeq(no) };
            TlogSco { id, cluster_count: index, object_bytes: 0, changes }
        };
        tlogs.into_iter().map(|scos| scos.into_iter().map(&mut make).collect()).collect()
    })
}

/// What the extents say of each of the first 256 clusters.
fn said(extents: &[MapExtent]) -> Vec<Option<Mapping>> {
    let mut said = vec![None; 256];
    for extent in extents {
        for n in 0..extent.count.0 {
            let slot = &mut said[(extent.addr.0 + n) as usize];
            assert!(slot.is_none(), "extents overlap");
            *slot = Some(extent.mapping.nth(n));
        }
    }
    said
}

fn is_tight(extents: &[MapExtent]) -> bool {
    let apart = |pair: &[MapExtent]| {
        pair[0].addr + pair[0].count <= pair[1].addr && !merge::follows(&pair[0], &pair[1])
    };
    extents.windows(2).all(apart)
}

proptest! {
    #[test]
    fn collapsing_is_replaying(tlogs in tlogs()) {
        let mut replayed = vec![None; 256];
        for sco in tlogs.iter().flatten() {
            for change in &sco.changes {
                for n in 0..change.count.0 {
                    let mapping = mapping_of(sco.id.seq, &change.kind).nth(n);
                    replayed[(change.addr.0 + n) as usize] = Some(mapping);
                }
            }
        }
        let all = checkpoint::collapse(tlogs.iter().map(Vec::as_slice));
        prop_assert_eq!(said(&all), &replayed[..]);
        prop_assert!(is_tight(&all));

        // A run for each TLog, merged, is the run of all.
        let runs: Vec<_> =
            tlogs.iter().rev().map(|tlog| checkpoint::collapse([tlog.as_slice()])).collect();
        let sources = || runs.iter().map(|run| run.iter().copied()).collect::<Vec<_>>();
        let merged: Vec<_> = merge::merge_runs(sources(), merge::Holes::Keep).collect();
        prop_assert_eq!(&merged, &all);
        let dropped: Vec<_> = merge::merge_runs(sources(), merge::Holes::Drop).collect();
        let data: Vec<_> =
            all.iter().copied().filter(|extent| extent.mapping != Mapping::Hole).collect();
        prop_assert_eq!(dropped, data);

        // And a page made of them shows the same, with holes where none says anything.
        let page = merge::merge(PageNo(0), &runs).extents(PageNo(0));
        let page: Vec<_> = page.iter().flat_map(|e| (0..e.count.0).map(|n| e.mapping.nth(n))).collect();
        let shown: Vec<_> = replayed.iter().map(|mapping| mapping.unwrap_or(Mapping::Hole)).collect();
        prop_assert_eq!(&page[..256], &shown[..]);
        prop_assert_eq!(page.len(), 512);
    }
}
