//! The world keeps the promises it makes to the engine, and breaks only those it says it breaks.

use std::time::Duration;

use bytes::Bytes;
use tokio::task::LocalSet;
use volumedriver::io::buf::{AlignedBuf, AreaSlice};
use volumedriver::world::{
    Disk, DiskFile, Durability, ObjectStore, PageBatch, PageStore, Purpose, Put, World,
};
use volumedriver_core::format::journal::{Entry, RecordHeader, Section};
use volumedriver_core::format::manifest::{Body, Manifest, Opening, Shape};
use volumedriver_core::format::names;
use volumedriver_core::format::segment::SegmentHeader;
use volumedriver_core::format::{Change, ChangeKind};
use volumedriver_core::units::{
    ByteCount, ClusterAddr, ClusterCount, ClusterSize, Epoch, ManifestNo, NodeId, PageNo, ScoSeq,
    Seq, TlogNo, VolumeId,
};

use super::faults::{Crash, Faults, Window};
use super::{SimWorld, Universe};

fn run<T>(seed: u64, faults: Faults, body: impl AsyncFnOnce(Universe) -> T) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().unwrap();
    let local = LocalSet::new();
    local.block_on(&runtime, async { body(Universe::new(seed, faults)).await })
}

fn block(byte: u8) -> Vec<AreaSlice> {
    let mut buf = AlignedBuf::zeroed(4096);
    buf.fill(byte);
    vec![AreaSlice::from_aligned(buf)]
}

async fn read(world: &SimWorld, name: &str, len: usize) -> Vec<u8> {
    let file = world.disk().open(name).await.unwrap();
    file.read_at(AlignedBuf::zeroed(len), 0).await.unwrap().to_vec()
}

#[test]
fn a_synced_write_survives_a_power_cut_and_an_unsynced_one_may_not() {
    let (mut lost, mut kept, mut torn) = (0, 0, 0);
    for seed in 0..200 {
        let bytes = run(seed, Faults::default(), async |universe| {
            let world = universe.world();
            let file = world.disk().create("a", 4 * 4096).await.unwrap();
            file.write_at(block(1), 0, Durability::Later).await.unwrap();
            file.sync().await.unwrap();
            file.write_at(block(2), 4096, Durability::Now).await.unwrap();
            file.write_at(block(3), 8192, Durability::Later).await.unwrap();
            let world = universe.restart(Crash::PowerLoss);
            read(&world, "a", 4 * 4096).await
        });
        assert!(bytes[..4096].iter().all(|b| *b == 1) && bytes[4096..8192].iter().all(|b| *b == 2));
        let threes = bytes[8192..12288].iter().filter(|b| **b == 3).count();
        assert!(threes % 512 == 0 && bytes[12288..].iter().all(|b| *b == 0));
        match threes {
            0 => lost += 1,
            4096 => kept += 1,
            _ => torn += 1,
        }
    }
    assert!(lost > 10 && kept > 10 && torn > 10, "lost {lost}, kept {kept}, torn {torn}");
}

#[test]
fn a_kill_keeps_what_was_written_but_does_not_make_it_durable() {
    let mut lost = 0;
    for seed in 0..50 {
        run(seed, Faults::default(), async |universe| {
            let world = universe.world();
            let file = world.disk().create("a", 4096).await.unwrap();
            file.write_at(block(7), 0, Durability::Later).await.unwrap();
            let world = universe.restart(Crash::Kill);
            assert!(read(&world, "a", 4096).await.iter().all(|b| *b == 7));
            let world = universe.restart(Crash::PowerLoss);
            lost += usize::from(read(&world, "a", 4096).await.iter().all(|b| *b == 0));
        });
    }
    assert!(lost > 5);
}

#[test]
fn discarding_local_state_leaves_only_the_store() {
    run(1, Faults::default(), async |universe| {
        let world = universe.world();
        world.disk().create("a", 4096).await.unwrap();
        world.store().create_namespace("n").await.unwrap();
        world
            .store()
            .put_if_absent("n", "o", vec![Bytes::from_static(b"body")], Purpose::Data)
            .await
            .unwrap();
        let world = universe.restart(Crash::DiscardLocal);
        assert!(world.disk().list().await.unwrap().is_empty());
        let body = world.store().get_range("n", "o", 1, 2).await.unwrap();
        assert_eq!(body.as_deref(), Some(&b"od"[..]));
    });
}

#[test]
fn nothing_returns_after_a_crash_and_an_interrupted_write_may_land_in_part() {
    let (mut none, mut all, mut part) = (0, 0, 0);
    for seed in 0..300 {
        let bytes = run(seed, Faults::default(), async |universe| {
            let world = universe.world();
            let file = world.disk().create("a", 8192).await.unwrap();
            universe.crash_after(0, 2);
            let slices = [block(9), block(9)].concat();
            tokio::select! {
                biased;
                result = file.write_at(slices, 0, Durability::Now) => panic!("returned {result:?}"),
                () = universe.crashed(|| 0) => {}
            }
            let world = universe.restart(Crash::Kill);
            read(&world, "a", 8192).await
        });
        match bytes.iter().filter(|b| **b == 9).count() {
            0 => none += 1,
            8192 => all += 1,
            _ => part += 1,
        }
    }
    assert!(none > 10 && all > 10 && part > 10, "none {none}, all {all}, part {part}");
}

#[test]
fn a_disk_has_an_end() {
    let mut faults = Faults::default();
    faults.disk.capacity = 8192;
    run(1, faults, async |universe| {
        let world = universe.world();
        world.disk().create("a", 8192).await.unwrap();
        let full = world.disk().create("b", 4096).await.err().unwrap();
        assert_eq!(full.kind, volumedriver_core::fault::Kind::NoSpace);
        world.disk().remove("a").await.unwrap();
        world.disk().create("b", 4096).await.unwrap();
    });
}

#[test]
fn page_batches_survive_as_a_prefix_from_the_last_sync_on() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..100 {
        let applied = run(seed, Faults::default(), async |universe| {
            let pages = universe.world().pages().clone();
            let volume = VolumeId([1; 16]);
            for n in 1..=5 {
                let page = (PageNo(n), Bytes::from(vec![n as u8]));
                let batch = PageBatch { pages: vec![page], applied: TlogNo(n), holes: vec![] };
                pages.put(volume, batch).await.unwrap();
                if n == 2 {
                    pages.sync().await.unwrap();
                }
            }
            let world = universe.restart(Crash::Kill);
            let applied = world.pages().applied(volume).await.unwrap().unwrap().0;
            let pages = world.pages().get(volume, (1..=5).map(PageNo).collect()).await.unwrap();
            assert!(pages.iter().zip(1..).all(|(page, n)| page.is_some() == (n <= applied)));
            applied
        });
        assert!(applied >= 2);
        seen.insert(applied);
    }
    assert_eq!(seen.len(), 4);
}

#[test]
fn a_put_without_a_reply_happened_or_happens_later_or_never() {
    let (mut at_once, mut later, mut never) = (0, 0, 0);
    for seed in 0..200 {
        let mut faults = Faults::default();
        faults.store.error_before = 300_000;
        faults.store.lost_reply = 300_000;
        faults.store.late_success = 500_000;
        run(seed, faults, async |universe| {
            let store = universe.world().store().clone();
            while store.create_namespace("n").await.is_err() {}
            let put =
                store.put_if_absent("n", "o", vec![Bytes::from_static(b"x")], Purpose::Data).await;
            if put.is_ok() {
                return;
            }
            universe.change_faults(|f| f.store = Default::default());
            let universe_now = store.head("n", "o").await.unwrap().is_some();
            tokio::time::sleep(super::store::LATEST).await;
            let in_the_end = store.head("n", "o").await.unwrap().is_some();
            match (universe_now, in_the_end) {
                (true, _) => at_once += 1,
                (false, true) => later += 1,
                (false, false) => never += 1,
            }
        });
    }
    assert!(at_once > 10 && later > 10 && never > 10, "{at_once} {later} {never}");
}

#[test]
fn the_first_put_of_a_name_wins_and_another_content_is_reported() {
    run(1, Faults::default(), async |universe| {
        let store = universe.world().store().clone();
        store.create_namespace("n").await.unwrap();
        let put = async |name, body: &'static [u8]| {
            store
                .put_if_absent("n", name, vec![Bytes::from_static(body)], Purpose::Data)
                .await
                .unwrap()
        };
        assert_eq!(put("o", b"one").await, Put::Created);
        assert_eq!(put("o", b"one").await, Put::Exists);
        assert!(universe.violations().is_empty());
        assert_eq!(put("o", b"two").await, Put::Exists);
        assert_eq!(universe.violations().len(), 1);
        let body = store.get_range("n", "o", 0, 3).await.unwrap();
        assert_eq!(body.as_deref(), Some(&b"one"[..]));
    });
}

#[test]
fn outages_and_full_stores_pass() {
    let mut faults = Faults::default();
    let seconds = Duration::from_secs;
    faults.store.outages = vec![Window { start: seconds(10), end: seconds(20) }];
    faults.store.full = vec![Window { start: seconds(30), end: seconds(40) }];
    run(1, faults, async |universe| {
        let store = universe.world().store().clone();
        store.create_namespace("n").await.unwrap();
        tokio::time::sleep(seconds(15)).await;
        assert!(store.head("n", "o").await.is_err());
        tokio::time::sleep(seconds(20)).await;
        assert!(store.put_if_absent("n", "o", vec![], Purpose::Data).await.is_err());
        assert!(store.head("n", "o").await.unwrap().is_none());
        tokio::time::sleep(seconds(10)).await;
        assert_eq!(
            store.put_if_absent("n", "o", vec![], Purpose::Data).await.unwrap(),
            Put::Created
        );
    });
}

#[test]
fn a_stale_list_is_stale_by_a_bounded_time() {
    let mut stale = 0;
    for seed in 0..50 {
        let mut faults = Faults::default();
        faults.store.stale_list = Duration::from_secs(5);
        run(seed, faults, async |universe| {
            let store = universe.world().store().clone();
            store.create_namespace("n").await.unwrap();
            tokio::time::sleep(Duration::from_secs(6)).await;
            store.put_if_absent("n", "a", vec![], Purpose::Data).await.unwrap();
            tokio::time::sleep(Duration::from_secs(2)).await;
            stale += usize::from(store.list("n", "", None, 9).await.unwrap().is_empty());
            tokio::time::sleep(Duration::from_secs(4)).await;
            assert_eq!(store.list("n", "", None, 9).await.unwrap(), ["a"]);
        });
    }
    assert!((10..50).contains(&stale));
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let trace = |seed| {
        let mut faults = Faults::default();
        faults.store.late_success = 300_000;
        faults.store.delay_ms = (1, 50);
        faults.disk.delay_ms = 10;
        faults.disk.delayed = 500_000;
        run(seed, faults, async |universe| {
            let world = universe.world();
            let file = world.disk().create("a", 8192).await.unwrap();
            drop(world.store().create_namespace("n").await);
            for n in 0..20 {
                file.write_at(block(n), 4096, Durability::Later).await.unwrap();
                drop(world.store().put_if_absent("n", &n.to_string(), vec![], Purpose::Data).await);
            }
            let world = universe.restart(Crash::PowerLoss);
            drop(world.store().list("n", "", None, 100).await);
            universe.trace()
        })
    };
    assert_eq!(trace(1), trace(1));
    assert_ne!(trace(1), trace(2));
}

/// A segment header and records of one volume, as the write buffer writes them.
struct Segment;

impl Segment {
    fn header(use_no: u64) -> Vec<AreaSlice> {
        let node = NodeId([1; 16]);
        let header =
            SegmentHeader { node, shard: 0, use_no, first_record: 1, segment_bytes: 1 << 16 };
        let mut block = [0; 4096];
        header.encode(&mut block);
        slices(&block)
    }

    fn record(record: u64, durable_record: u64, previous_seq: u64, seq: u64) -> Vec<AreaSlice> {
        let change = Change {
            seq: Seq(seq),
            addr: ClusterAddr(0),
            count: ClusterCount(1),
            kind: ChangeKind::Hole,
        };
        let section = Section {
            volume: VOLUME,
            epoch: Epoch(1),
            cluster_size: ClusterSize::DEFAULT,
            previous_seq: Seq(previous_seq),
            entries: vec![Entry::Change { sco: ScoSeq(1), change }],
        };
        let sections = vec![section];
        let header =
            RecordHeader { segment_use: 7, record, durable_record, payload_bytes: 0, sections };
        let mut block = [0; 4096];
        header.encode(&mut block).unwrap();
        slices(&block)
    }
}

const VOLUME: VolumeId = VolumeId([1; 16]);

fn slices(block: &[u8; 4096]) -> Vec<AreaSlice> {
    let mut buf = AlignedBuf::zeroed(4096);
    buf.copy_from_slice(block);
    vec![AreaSlice::from_aligned(buf)]
}

/// Writes a header and these records, each durably or not; what the world complains of.
fn journal(records: &[(Durability, Vec<AreaSlice>)]) -> Vec<String> {
    run(1, Faults::default(), async |universe| {
        let file = universe.world().disk().create("segment-0000", 1 << 16).await.unwrap();
        file.write_at(Segment::header(7), 0, Durability::Now).await.unwrap();
        for ((durability, record), n) in records.iter().zip(1..) {
            file.write_at(record.clone(), n * 4096, *durability).await.unwrap();
        }
        universe.violations()
    })
}

#[test]
fn a_journal_out_of_order_is_reported() {
    use Durability::{Later, Now};
    let record = Segment::record;
    let broken = |records: &[(Durability, Vec<AreaSlice>)], says: &str| {
        let found = journal(records);
        assert!(found.iter().any(|what| what.contains(says)), "no {says:?} in {found:?}");
    };
    let good =
        [(Now, record(1, 0, 0, 1)), (Later, record(2, 1, 1, 2)), (Later, record(3, 1, 2, 3))];
    assert!(journal(&good).is_empty());
    broken(
        &[(Now, record(1, 0, 0, 1)), (Now, record(1, 0, 0, 1)), (Now, record(1, 0, 1, 2))],
        "INV-2",
    );
    broken(&[(Now, record(1, 0, 0, 1)), (Now, record(3, 2, 1, 2))], "INV-3");
    broken(&[(Now, record(1, 0, 0, 1)), (Now, record(2, 1, 0, 2))], "INV-2");
    broken(&[(Now, record(1, 0, 0, 1)), (Now, record(2, 1, 1, 4))], "INV-2");
    broken(&[(Later, record(1, 0, 0, 1)), (Now, record(2, 1, 1, 2))], "INV-3");
}

#[test]
fn what_is_given_up_or_put_ahead_of_the_manifest_is_reported() {
    run(1, Faults::default(), async |universe| {
        let shape = Shape {
            name: "d".to_owned(),
            size: ByteCount(1 << 20),
            cluster_size: ClusterSize::DEFAULT,
            sco_size: ByteCount(1 << 20),
            last_seq: Seq(0),
            last_sco: ScoSeq(0),
            last_tlog: TlogNo(0),
            origins: vec![],
            runs: vec![],
            tlogs: vec![],
            openings: vec![Opening { epoch: Epoch(1), no: ManifestNo(1), node: NodeId([1; 16]) }],
        };
        let (no, epoch, node) = (ManifestNo(1), Epoch(1), NodeId([1; 16]));
        let manifest = Manifest { volume: VOLUME, no, epoch, node, body: Body::Checkpoint(shape) };
        let space = names::namespace(VOLUME);
        universe.plant_object(&space, &names::manifest(no), manifest.encode());
        let world = universe.world();
        let file = world.disk().create("segment-0000", 1 << 16).await.unwrap();
        file.write_at(Segment::header(7), 0, Durability::Now).await.unwrap();
        file.write_at(Segment::record(1, 0, 0, 1), 4096, Durability::Now).await.unwrap();
        assert!(universe.violations().is_empty());
        file.write_at(Segment::header(8), 0, Durability::Now).await.unwrap();
        let batch = PageBatch { applied: TlogNo(1), ..PageBatch::default() };
        world.pages().put(VOLUME, batch).await.unwrap();
        let found = universe.violations();
        assert!(found[0].contains("INV-4") && found[1].contains("INV-5"), "{found:?}");
    });
}

#[test]
fn what_a_sync_failed_to_make_durable_no_later_one_does() {
    let mut lost = 0;
    for seed in 0..100 {
        let mut faults = Faults::default();
        faults.disk.sync_error = 1_000_000;
        lost += run(seed, faults, async |universe| {
            let world = universe.world();
            let file = world.disk().create("a", 4096).await.unwrap();
            file.write_at(block(5), 0, Durability::Later).await.unwrap();
            file.sync().await.unwrap_err();
            universe.change_faults(|f| f.disk.sync_error = 0);
            file.sync().await.unwrap();
            assert!(read(&world, "a", 4096).await.iter().all(|b| *b == 5));
            let world = universe.restart(Crash::PowerLoss);
            usize::from(read(&world, "a", 4096).await.iter().all(|b| *b == 0))
        });
    }
    assert!(lost > 10, "lost {lost}");
}
