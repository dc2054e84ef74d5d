//! The map's verbs, beside a `BTreeMap` of clusters: ns per call. Budget (DESIGN §9): lookup of a loaded page about 12-30 ns.
//!
//! Random addresses lie in 64 GiB (16 M clusters), so that neither structure fits a cache.

use std::collections::BTreeMap;
use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use volumedriver_core::format::tlog::TlogSco;
use volumedriver_core::format::{Change, ChangeKind};
use volumedriver_core::map::checkpoint::collapse;
use volumedriver_core::map::{Map, Page};
use volumedriver_core::units::{
    ClusterAddr, ClusterCount, Epoch, Location, Mapping, PAGE_CLUSTERS, PageNo, ScoId, ScoSeq, Seq,
};

const CLUSTERS: u64 = 1 << 24;
const SCO_CLUSTERS: u64 = 16_384;
const TIB: u64 = 1 << 28;

/// The same addresses in the same order in every run.
struct Addresses(u64);

impl Iterator for Addresses {
    type Item = u64;
    fn next(&mut self) -> Option<u64> {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        Some(self.0 % CLUSTERS)
    }
}

fn addresses() -> Addresses {
    Addresses(0x2545_f491_4f6c_dd1d)
}

/// Any location, scattered so that no two neighbours are a run.
fn scattered(n: u64) -> Mapping {
    let sco = ScoSeq(1 + n.wrapping_mul(0x9e37_79b9) % 4096);
    Mapping::At(Location { sco, index: (n % SCO_CLUSTERS) as u32 })
}

fn write(addr: u64, count: u64, n: u64) -> (ScoSeq, Change) {
    let (sco, first_index) = (ScoSeq(1 + n / SCO_CLUSTERS), (n % SCO_CLUSTERS) as u32);
    let (addr, count) = (ClusterAddr(addr), ClusterCount(count));
    let kind = ChangeKind::Data { first_index, crcs: vec![] };
    (sco, Change { seq: Seq(n + 1), addr, count, kind })
}

fn dense() -> Map {
    let mut map = Map::new_unloaded(ClusterCount(CLUSTERS));
    let since = map.begin_load();
    for page in 0..CLUSTERS / PAGE_CLUSTERS {
        let first = page * PAGE_CLUSTERS;
        let extents: Vec<_> = (first..first + PAGE_CLUSTERS)
            .map(|addr| volumedriver_core::format::run::MapExtent {
                addr: ClusterAddr(addr),
                count: ClusterCount(1),
                mapping: scattered(addr),
            })
            .collect();
        map.install(PageNo(page), Page::from_extents(PageNo(page), &extents), &since);
    }
    map.end_load(since);
    map
}

fn sequential() -> Map {
    let mut map = Map::new_empty(ClusterCount(CLUSTERS));
    for first in (0..CLUSTERS).step_by(SCO_CLUSTERS as usize) {
        let (sco, change) = write(first, SCO_CLUSTERS, first);
        map.publish(sco, &[change]);
    }
    map
}

fn lookup(c: &mut Criterion) {
    let mut group = c.benchmark_group("map/lookup_one");
    group.throughput(Throughput::Elements(1));
    for (name, mut map) in [("dense", dense()), ("sequential", sequential())] {
        let mut at = addresses();
        group.bench_function(format!("{name}/random"), |b| {
            b.iter(|| map.lookup_one(ClusterAddr(at.next().unwrap_or_default())));
        });
        let mut next = 0;
        group.bench_function(format!("{name}/ascending"), |b| {
            b.iter(|| {
                next = (next + 1) % CLUSTERS;
                map.lookup_one(ClusterAddr(next))
            });
        });
    }
    let mut map = dense();
    addresses().take(100_000).enumerate().for_each(|(n, at)| {
        map.set(ClusterAddr(at), ClusterCount(1), scattered(n as u64), Seq(n as u64 + 1));
    });
    let mut at = addresses();
    group.bench_function("dense under 100k overlay entries/random", |b| {
        b.iter(|| map.lookup_one(ClusterAddr(at.next().unwrap_or_default())));
    });
    drop(map);
    let tree: BTreeMap<u64, u64> = (0..CLUSTERS).map(|at| (at, scattered(at).to_word())).collect();
    let mut at = addresses();
    group.bench_function("BTreeMap/random", |b| {
        b.iter(|| tree.get(&at.next().unwrap_or_default()));
    });
    group.finish();
}

fn lookup_extents(c: &mut Criterion) {
    let mut map = sequential();
    let mut at = addresses();
    c.bench_function("map/lookup 32 clusters, sequential", |b| {
        b.iter(|| {
            let addr = ClusterAddr(at.next().unwrap_or_default() & !31);
            map.lookup(addr, ClusterCount(32), &mut |extent| {
                black_box(extent);
            })
        });
    });
}

/// Set and publish of as many changes as one SCO holds.
fn change(c: &mut Criterion) {
    let changes: Vec<_> = addresses().take(SCO_CLUSTERS as usize).collect();
    let mut group = c.benchmark_group("map/change, 16384 random clusters");
    group.throughput(Throughput::Elements(SCO_CLUSTERS));
    group.sample_size(20);
    let set_all = |map: &mut Map, sco: u64| {
        for (n, at) in changes.iter().enumerate() {
            let mapping = Mapping::At(Location { sco: ScoSeq(sco), index: n as u32 });
            map.set(ClusterAddr(*at), ClusterCount(1), mapping, Seq(n as u64 + 1));
        }
    };
    let list: Vec<_> =
        changes.iter().enumerate().map(|(n, at)| write(*at, 1, n as u64).1).collect();
    let mut map = dense();
    group.bench_function("set, then publish to dense pages", |b| {
        b.iter(|| {
            set_all(&mut map, 1);
            map.publish(ScoSeq(1), &list);
        });
    });
    group.bench_function("set, empty overlay", |b| {
        b.iter_batched_ref(
            || Map::new_empty(ClusterCount(CLUSTERS)),
            |map| set_all(map, 1),
            BatchSize::LargeInput,
        );
    });
    group.bench_function("BTreeMap insert", |b| {
        let mut tree: BTreeMap<u64, u64> =
            (0..CLUSTERS).map(|at| (at, scattered(at).to_word())).collect();
        b.iter(|| {
            changes.iter().for_each(|at| {
                black_box(tree.insert(*at, *at));
            })
        });
    });
    group.finish();
}

fn trim(c: &mut Criterion) {
    let mut group = c.benchmark_group("map/trim of 2 TiB");
    group.sample_size(10);
    let full = || {
        let mut map = Map::new_empty(ClusterCount(2 * TIB));
        for first in (0..2 * TIB).step_by(SCO_CLUSTERS as usize) {
            let (sco, change) = write(first, SCO_CLUSTERS, first);
            map.publish(sco, &[change]);
        }
        map
    };
    // A trim over NBD reaches at most 4 GiB.
    for (name, step) in [("in one", 2 * TIB), ("in 4 GiB pieces", 1 << 20)] {
        group.bench_function(name, |b| {
            b.iter_batched_ref(
                full,
                |map| {
                    for (n, first) in (0..2 * TIB).step_by(step as usize).enumerate() {
                        let (seq, sco) = (Seq(n as u64 + 1), ScoSeq(1 << 20));
                        let (addr, count) = (ClusterAddr(first), ClusterCount(step));
                        map.set(addr, count, Mapping::Hole, seq);
                        map.publish(sco, &[Change { seq, addr, count, kind: ChangeKind::Hole }]);
                    }
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

/// What a map run is made of: the TLogs of 16 SCOs of random clusters.
fn checkpoint(c: &mut Criterion) {
    let mut at = addresses();
    let sco = |no: u64, at: &mut Addresses| TlogSco {
        id: ScoId { epoch: Epoch(1), seq: ScoSeq(no) },
        cluster_count: SCO_CLUSTERS as u32,
        object_bytes: 0,
        changes: at.take(SCO_CLUSTERS as usize).zip(0..).map(|(at, n)| write(at, 1, n).1).collect(),
    };
    let tlog: Vec<_> = (1..=16).map(|no| sco(no, &mut at)).collect();
    let mut group = c.benchmark_group("map/checkpoint");
    group.sample_size(10);
    group.throughput(Throughput::Elements(16 * SCO_CLUSTERS));
    group.bench_function("collapse 262144 random clusters", |b| {
        b.iter(|| collapse([tlog.as_slice()]));
    });
    group.finish();
}

criterion_group!(benches, checkpoint, lookup, lookup_extents, change, trim);
criterion_main!(benches);
