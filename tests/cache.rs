//! The read cache with its disk tier, over the simulated disk: what it gives is right or nothing, through crashes, lost
//! writes, rot, errors and silence of the disk; and it gives a lot when nothing goes wrong.

use std::rc::Rc;
use std::time::Duration;

use suite::world::faults::{Crash, DiskFaults, Faults};
use suite::world::rng::{Rng, mix};
use suite::world::{SimWorld, Universe};
use tokio::runtime::Runtime;
use tokio::task::LocalSet;
use volumedriver::cache::ssd::{SsdConfig, SsdState};
use volumedriver::cache::{CacheConfig, DiskTier, ReadCache};
use volumedriver::metrics::CacheCounts;
use volumedriver_core::cache::CacheKey;
use volumedriver_core::units::{ClusterSize, Epoch, NodeId, ScoId, ScoSeq, VolumeId};

type Cache = Rc<ReadCache<SimWorld>>;

const CLUSTER: usize = 4096;
const FILE: &str = "cache-0000";
const DISK_BYTES: u64 = 2 << 20;
/// Clusters that fit into memory, about.
const IN_RAM: u64 = 15;
/// Clusters that fit on the disk, about.
const ON_DISK: u64 = 28 * 16;

fn config(node: u8) -> CacheConfig {
    let disk = SsdConfig { node: NodeId([node; 16]), bytes: DISK_BYTES, region_bytes: 64 << 10 };
    CacheConfig {
        ram_bytes: 64 << 10,
        disk: DiskTier::On(disk),
        cluster_size: ClusterSize::DEFAULT,
    }
}

/// Cluster `n` of a few SCOs of two volumes.
fn key(n: u64) -> CacheKey {
    let sco = ScoId { epoch: Epoch(n / 64 % 2 + 1), seq: ScoSeq(n / 64 + 1) };
    CacheKey { origin: VolumeId([(n / 128 % 2) as u8; 16]), sco, index: (n % 64) as u32 }
}

/// What cluster `n` has always been.
fn content(n: u64) -> Vec<u8> {
    let mut rng = Rng::new(mix(n));
    (0..CLUSTER / 8).flat_map(|_| rng.next_word().to_le_bytes()).collect()
}

/// A host that is started again and again.
struct Bench {
    universe: Universe,
    runtime: Runtime,
}

impl Bench {
    fn new(seed: u64, cache: DiskFaults) -> Self {
        let runtime = suite::sim::runtime();
        let universe = {
            let _inside = runtime.enter();
            Universe::new(seed, Faults { cache, ..Faults::default() })
        };
        Self { universe, runtime }
    }

    /// One life with an opened cache, then this crash. Within it the host may crash at its n-th gate.
    fn live(&self, gates: Option<u64>, crash: Crash, life: impl AsyncFnOnce(&Cache)) {
        let _inside = self.runtime.enter();
        if let Some(gates) = gates {
            self.universe.crash_after(gates);
        }
        {
            let local = LocalSet::new();
            let life = async {
                tokio::select! {
                    biased;
                    () = self.universe.crashed() => {}
                    () = async {
                        let cache = ReadCache::open(self.universe.world(), config(1)).await;
                        life(&cache).await;
                    } => {}
                }
            };
            local.block_on(&self.runtime, life);
            self.universe.crash_now();
        }
        self.universe.restart(crash);
        assert_eq!(self.universe.violations(), Vec::<String>::new());
    }

    fn live_well(&self, life: impl AsyncFnOnce(&Cache)) {
        self.live(None, Crash::Kill, life);
    }
}

/// Reads as a volume does: from the cache, and the rest from the backend into the cache. Every byte is checked.
async fn read(cache: &Cache, first: u64, count: u64) {
    let cached = cache.get_run(key(first), count as u32).await;
    assert!(cached.len() as u64 <= count);
    for (n, bytes) in (first..).zip(&cached) {
        assert_eq!(*bytes, content(n), "cluster {n} is wrong");
    }
    for n in first + cached.len() as u64..first + count {
        cache.insert(key(n), &content(n));
    }
}

async fn read_all(cache: &Cache, range: std::ops::Range<u64>) {
    for n in range {
        read(cache, n, 1).await;
        // The writer's turn.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn until(cache: &Cache, what: impl Fn(&CacheCounts, &SsdState) -> bool) {
    for _ in 0..100_000 {
        if what(&cache.counts(), &cache.disk_state()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("it never came to that: {:?} {:?}", cache.counts(), cache.disk_state());
}

#[test]
fn what_does_not_fit_into_memory_comes_back_from_the_disk() {
    Bench::new(1, DiskFaults::default()).live_well(async |cache| {
        read_all(cache, 0..300).await;
        let before = cache.counts();
        assert_eq!(before.ssd.hits, 0);
        assert!(before.ssd.inserts >= 300 - IN_RAM - 5, "{before:?}");
        read_all(cache, 0..300).await;
        let after = cache.counts();
        assert!(after.ssd.hits >= 300 - IN_RAM - 5, "{after:?}");
        assert_eq!((after.ssd_mismatches, after.ssd_dropped, after.ssd_offline), (0, 0, 0));
        assert!(after.ssd_written_bytes >= 300 / 16 * (64 << 10) - (128 << 10), "{after:?}");
        assert_eq!(after.ssd.used_bytes, after.ssd.inserts * CLUSTER as u64);
        assert!(after.ssd.used_bytes <= after.ssd.capacity_bytes);
        assert!(after.ssd.capacity_bytes <= DISK_BYTES);
        // What is read together lies together: a run of 16 clusters is there in one go.
        assert_eq!(cache.get_run(key(64), 16).await.len(), 16);
        assert_eq!(cache.get_run(key(64 + 60), 16).await.len(), 4, "the SCO ends there");
    });
}

#[test]
fn a_full_disk_takes_only_what_comes_again() {
    Bench::new(2, DiskFaults::default()).live_well(async |cache| {
        read_all(cache, 0..ON_DISK + 40).await;
        let filled = cache.counts();
        // A scan, once.
        read_all(cache, 10_000..14_000).await;
        let scanned = cache.counts();
        let let_in = scanned.ssd.inserts - filled.ssd.inserts;
        assert!(let_in < 250, "{let_in} of 4,000 clusters of a scan came in");
        // A new working set is strange the first time, and known, most of it, the second.
        for _ in 0..3 {
            read_all(cache, 20_000..20_200).await;
        }
        let before = cache.counts().ssd.hits;
        read_all(cache, 20_000..20_200).await;
        let hits = cache.counts().ssd.hits - before;
        assert!(hits > 150, "only {hits} of 200: {:?}", cache.counts());
    });
}

#[test]
fn what_is_read_again_and_again_stays_when_its_region_goes() {
    Bench::new(3, DiskFaults::default()).live_well(async |cache| {
        let mut rng = Rng::new(3);
        for turn in 0..400 {
            // A hot set of 100, read through memory by what is new.
            for _ in 0..20 {
                read_all(cache, 0..1).await;
                let n = rng.below(100);
                read(cache, n, 1).await;
            }
            let new = 1000 + turn * 8;
            read_all(cache, new..new + 8).await;
            read_all(cache, new..new + 8).await;
        }
        let before = cache.counts();
        assert!(before.ssd_kept > 100, "{before:?}");
        read_all(cache, 0..100).await;
        let missed = cache.counts().ssd.misses - before.ssd.misses;
        assert!(missed < 30, "{missed} of the hot 100 are gone");
    });
}

#[test]
fn without_memory_everything_goes_to_the_disk() {
    let bench = Bench::new(4, DiskFaults::default());
    bench.live_well(async |cache| {
        cache.close().await;
        let config = CacheConfig { ram_bytes: 0, ..config(1) };
        let cache = ReadCache::open(bench.universe.world(), config).await;
        read_all(&cache, 0..100).await;
        read_all(&cache, 0..100).await;
        let counts = cache.counts();
        // The very first comes before there is a place for it.
        assert!(counts.ram.hits == 0 && counts.ssd.hits >= 99, "{counts:?}");
    });
}

#[test]
fn a_clean_end_makes_a_warm_start_and_a_crash_an_empty_one() {
    for (closes, crash) in [
        (true, Crash::Kill),
        (true, Crash::PowerLoss),
        (false, Crash::Kill),
        (false, Crash::PowerLoss),
        (true, Crash::DiscardLocal),
    ] {
        let bench = Bench::new(5, DiskFaults::default());
        for life in 0..3 {
            bench.live(None, crash, async |cache| {
                until(cache, |_, state| *state == SsdState::Serving).await;
                let used = cache.counts().ssd.used_bytes / CLUSTER as u64;
                let is_warm = life > 0 && closes && crash != Crash::DiscardLocal;
                match is_warm {
                    true => assert!(used >= 250, "{used} clusters after {crash:?}"),
                    false => assert_eq!(used, 0, "{crash:?}, closed: {closes}"),
                }
                read_all(cache, 0..300).await;
                let hits = cache.counts().ssd.hits;
                assert_eq!(hits >= 250, is_warm, "{hits} hits after {crash:?}, closed: {closes}");
                assert_eq!(cache.counts().ssd_mismatches, 0);
                if closes {
                    cache.close().await;
                    assert_eq!(cache.disk_state(), SsdState::Closed);
                }
            });
        }
    }
}

/// A catalogue must not outlive the first change of what it describes, whatever the crash.
#[test]
fn a_catalogue_is_used_once() {
    for crash in [Crash::Kill, Crash::PowerLoss] {
        let bench = Bench::new(6, DiskFaults::default());
        bench.live(None, crash, async |cache| {
            read_all(cache, 0..300).await;
            cache.close().await;
        });
        // Looked at and nothing changed: it is still right afterwards.
        bench.live(None, crash, async |cache| {
            until(cache, |_, state| *state == SsdState::Serving).await;
            read_all(cache, 0..5).await;
        });
        bench.live(None, crash, async |cache| {
            until(cache, |counts, _| counts.ssd.used_bytes > 250 * CLUSTER as u64).await;
            // Now regions are overwritten.
            read_all(cache, 5000..5400).await;
            read_all(cache, 5000..5400).await;
            assert!(cache.counts().ssd_written_bytes > 0);
        });
        bench.live(None, crash, async |cache| {
            tokio::time::sleep(Duration::from_secs(10)).await;
            assert_eq!(cache.disk_state(), SsdState::Serving);
            assert_eq!(cache.counts().ssd.used_bytes, 0, "an outdated catalogue was believed");
        });
    }
}

#[test]
fn a_crash_at_every_gate_of_an_end_and_of_a_start_never_shows_anything_wrong() {
    for crash in [Crash::Kill, Crash::PowerLoss] {
        for gate in 1.. {
            let bench = Bench::new(gate, DiskFaults::default());
            bench.live_well(async |cache| {
                read_all(cache, 0..300).await;
                cache.close().await;
            });
            let got_through = std::cell::Cell::new(false);
            bench.live(Some(gate), crash, async |cache| {
                read_all(cache, 0..20).await;
                read_all(cache, 5000..5040).await;
                cache.close().await;
                got_through.set(true);
            });
            bench.live_well(async |cache| {
                read_all(cache, 0..300).await;
                read_all(cache, 5000..5040).await;
                assert_eq!(cache.counts().ssd_mismatches, 0, "gate {gate}, {crash:?}");
            });
            if got_through.get() {
                assert!(gate > 30, "only {gate} gates");
                break;
            }
        }
    }
}

#[test]
fn rot_on_the_disk_is_a_miss_and_is_counted() {
    let bench = Bench::new(8, DiskFaults::default());
    bench.live_well(async |cache| {
        read_all(cache, 0..300).await;
        until(cache, |counts, _| counts.ssd_written_bytes >= 16 * (64 << 10)).await;
        // A bit of every other cluster on the disk.
        for cluster in (0..ON_DISK).step_by(2) {
            let byte = cluster * CLUSTER as u64 + cluster % CLUSTER as u64;
            assert!(bench.universe.flip_in_file(FILE, byte, (cluster % 8) as u32));
        }
        read_all(cache, 0..300).await;
        let counts = cache.counts();
        assert!(counts.ssd_mismatches >= 100, "{counts:?}");
        assert!(counts.ssd.hits >= 100, "the other clusters are good: {counts:?}");
        assert_eq!(cache.disk_state(), SsdState::Serving);
        // Each is found once: then its entry is gone.
        let before = counts.ssd_mismatches;
        read_all(cache, 0..30).await;
        assert!(cache.counts().ssd_mismatches <= before + 20);
        cache.close().await;
    });
    // And so it is after a warm start, whatever of the catalogue rots.
    let len = bench.universe.files().iter().find(|(name, _)| name == FILE).unwrap().1;
    bench.universe.flip_in_file(FILE, len - 4096 - 60_000, 3);
    bench.live_well(async |cache| read_all(cache, 0..300).await);
    bench.universe.flip_in_file(FILE, len - 100, 3);
    bench.live_well(async |cache| {
        assert_eq!(cache.counts().ssd.used_bytes, 0);
        read_all(cache, 0..300).await;
    });
}

#[test]
fn a_disk_that_fails_or_falls_silent_is_left_alone_and_nobody_notices() {
    let faults = [
        DiskFaults { read_error: 1_000_000, ..DiskFaults::default() },
        DiskFaults { write_error: 1_000_000, ..DiskFaults::default() },
        DiskFaults { delay_ms: 3_600_000, delayed: 1_000_000, ..DiskFaults::default() },
    ];
    for (seed, faults) in (20..).zip(faults) {
        let bench = Bench::new(seed, DiskFaults::default());
        bench.live_well(async |cache| {
            read_all(cache, 0..300).await;
            assert!(cache.counts().ssd.used_bytes > 0);
            bench.universe.change_faults(|all| all.cache = faults);
            let began = bench.universe.now();
            read_all(cache, 300..600).await;
            read_all(cache, 0..600).await;
            let took = bench.universe.now() - began;
            assert!(took < Duration::from_secs(30), "readers waited {took:?}");
            cache.close().await;
            let counts = cache.counts();
            assert_eq!((counts.ssd_offline, counts.ssd.used_bytes), (1, 0), "{counts:?}");
            assert!(matches!(cache.disk_state(), SsdState::Offline(_)));
            read_all(cache, 0..20).await;
        });
        // The next start tries again.
        bench.universe.change_faults(|all| all.cache = DiskFaults::default());
        bench.live_well(async |cache| {
            assert_eq!(cache.disk_state(), SsdState::Serving);
            read_all(cache, 0..300).await;
        });
    }
}

#[test]
fn a_disk_without_room_and_a_file_of_another_node_are_left_alone() {
    let full = DiskFaults { capacity: 1 << 20, ..DiskFaults::default() };
    Bench::new(30, full).live_well(async |cache| {
        let SsdState::Offline(why) = cache.disk_state() else { panic!("it is in use") };
        assert!(why.contains("do not fit"), "{why}");
        read_all(cache, 0..100).await;
        cache.close().await;
    });
    let bench = Bench::new(31, DiskFaults::default());
    bench.live_well(async |cache| {
        read_all(cache, 0..100).await;
        cache.close().await;
        let before = bench.universe.file_bytes(FILE);
        let other = ReadCache::open(bench.universe.world(), config(2)).await;
        let SsdState::Offline(why) = other.disk_state() else { panic!("it is in use") };
        assert!(why.contains(FILE) && why.contains(&NodeId([1; 16]).to_string()), "{why}");
        read_all(&other, 0..100).await;
        other.close().await;
        assert!(bench.universe.file_bytes(FILE) == before, "it was written to");
        // A size that changed begins anew.
        let DiskTier::On(disk) = config(1).disk else { panic!("there is one") };
        let larger = DiskTier::On(SsdConfig { bytes: 3 << 20, ..disk });
        let larger = CacheConfig { disk: larger, ..config(1) };
        let other = ReadCache::open(bench.universe.world(), larger).await;
        assert_eq!(other.disk_state(), SsdState::Serving);
        read_all(&other, 0..100).await;
    });
}

/// Many lives of random reads under random trouble: what comes from the cache is always right.
#[test]
fn whatever_happens_nothing_wrong_is_returned() {
    let (mut hits, mut mismatches, mut warm) = (0, 0, 0);
    for seed in 0..150 {
        let mut rng = Rng::new(mix(seed));
        let faults = DiskFaults {
            delay_ms: rng.pick(&[(2, 0), (2, 5), (1, 8_000)]),
            delayed: rng.pick(&[(1, 20_000), (1, 400_000)]),
            flip_on_read: rng.pick(&[(2, 0), (1, 10_000), (1, 200_000)]),
            read_error: rng.pick(&[(5, 0), (1, 2_000)]),
            write_error: rng.pick(&[(5, 0), (1, 20_000)]),
            ..DiskFaults::default()
        };
        let bench = Bench::new(seed, faults);
        for _ in 0..5 {
            let gates = rng.coin().then(|| rng.between(1, 1500));
            let crash = rng.pick(&[(3, Crash::Kill), (3, Crash::PowerLoss)]);
            let mut rng = rng.fork();
            let counts = std::cell::Cell::new(CacheCounts::default());
            bench.live(gates, crash, async |cache| {
                for _ in 0..rng.between(50, 500) {
                    let hot = rng.chance(700_000);
                    let first = if hot { rng.below(300) } else { rng.below(5000) };
                    let count = rng.between(1, 16).min(64 - first % 64);
                    let reads = (0..rng.between(1, 3)).map(|_| read(cache, first, count));
                    futures_util::future::join_all(reads).await;
                    counts.set(cache.counts());
                    if rng.chance(200_000) {
                        tokio::time::sleep(Duration::from_millis(rng.below(50))).await;
                    }
                    if rng.chance(20_000) {
                        let byte = rng.below(DISK_BYTES - 100_000);
                        bench.universe.flip_in_file(FILE, byte, rng.below(8) as u32);
                    }
                }
                if rng.coin() {
                    cache.close().await;
                }
            });
            hits += counts.get().ssd.hits;
            mismatches += counts.get().ssd_mismatches;
            warm += u64::from(counts.get().ssd.hits > 0 && counts.get().ssd_written_bytes == 0);
        }
    }
    assert!(hits > 20_000 && mismatches > 200 && warm > 5, "{hits} hits, {mismatches}, {warm}");
}
