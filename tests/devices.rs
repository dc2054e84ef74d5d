//! Disks and stores that fail, fill up, decay or fall silent, step by step: the write buffer's, the read cache's, the
//! backend. The numbers are those of the project's list of scenarios.

use std::rc::Rc;
use std::time::Duration;

use suite::model::Place;
use suite::sim::engine::{SsdState, State};
use suite::sim::rig::{End, Live, Rig, quiet_settings};
use suite::world::faults::{Crash, Faults, Window};
use volumedriver::config::settings::VdiskSettings;
use volumedriver_core::fault::{Fault, Kind};
use volumedriver_core::format::names;
use volumedriver_core::request::{Fua, Request};
use volumedriver_core::units::{ByteOffset, VolumeId};

/// Clusters of the bench's volume that the tests of the cache use: more than memory holds, fewer than the disk.
const CACHED: usize = 256;
const PIECE: usize = 16;
const HOUR: Duration = Duration::from_secs(3600);

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn rig(seed: u64) -> Rig {
    Rig::new(seed, Faults::default(), quiet_settings())
}

/// From now on, for so long.
fn from_now(live: &Live, how_long: Duration) -> Window {
    let start = live.universe.now();
    Window { start, end: start + how_long }
}

/// The guest stands these errors until the life ends.
fn excuse(live: &Live, kind: Kind) {
    *live.guest.excused.borrow_mut() = Rc::new(move |_, fault: &Fault| fault.kind == kind);
}

fn excuse_nothing(rig: &Rig) {
    *rig.guest.excused.borrow_mut() = Rc::new(|_, _| false);
}

// ---- the read cache's disk

/// A volume that is all on the backend, and a cache that has no memory.
fn cached(seed: u64) -> Rig {
    let mut rig = rig(seed);
    rig.sizes.ssd_bytes = 2 << 20;
    rig.live(Crash::Kill, async |live| {
        live.write(0, CACHED).await;
        live.drain().await;
    })
    .finished();
    rig
}

/// Small reads, checked like all reads: they go through the cache.
async fn sweep(live: &Live, clusters: std::ops::Range<usize>) {
    for first in clusters.step_by(PIECE) {
        live.read(first, PIECE).await;
    }
    // The writer follows.
    tokio::time::sleep(seconds(1)).await;
}

fn known(live: &Live) -> u64 {
    live.engine.shard.shared().cache.counts().ssd.used_bytes
}

fn hits(live: &Live) -> u64 {
    live.engine.shard.shared().cache.counts().ssd.hits
}

fn disk_state(live: &Live) -> SsdState {
    live.engine.shard.shared().cache.disk_state()
}

/// Breaks the cache's disk, perhaps for a while.
type Break = fn(&mut Faults, Window);

#[test]
fn scenario_54_a_cache_disk_that_fails_or_falls_silent_is_left_alone_and_no_read_notices() {
    let breaks: [(&str, Break); 5] = [
        ("cannot be read", |f, _| f.cache_disk.read_error = 1_000_000),
        ("simulated input/output", |f, w| f.cache_disk.dead.push(w)),
        ("full", |f, w| f.cache_disk.full.push(w)),
        ("does not answer", |f, w| {
            f.cache_disk.slow.push(w);
            f.cache_disk.slow_ms = 20_000;
        }),
        ("input/output", |f, _| f.cache_disk.write_error = 1_000_000),
    ];
    for (n, (says, break_it)) in breaks.into_iter().enumerate() {
        let mut rig = cached(n as u64);
        rig.live(Crash::Kill, async |live| {
            sweep(live, 0..CACHED / 2).await;
            sweep(live, 0..CACHED / 2).await;
            assert!(hits(live) > 0 && disk_state(live) == SsdState::Serving);
            let window = from_now(live, HOUR);
            live.universe.change_faults(|f| break_it(f, window));
            sweep(live, 0..CACHED).await;
            sweep(live, 0..CACHED).await;
            live.write(3, 1).await;
            live.read(0, 8).await;
            let SsdState::Offline(why) = disk_state(live) else {
                panic!("it is {:?} and should be offline: {says}", disk_state(live))
            };
            assert!(why.contains(says), "no {says:?} in {why:?}");
            assert_eq!(live.volume.state(), State::Running);
            live.drain().await;
            live.engine.close().await.unwrap();
        })
        .finished();
        // With a disk that is well again the next start has it back.
        rig.universe.change_faults(|f| *f = Faults::default());
        rig.live(Crash::Kill, async |live| {
            sweep(live, 0..CACHED).await;
            sweep(live, 0..CACHED).await;
            assert!(hits(live) > 0 && disk_state(live) == SsdState::Serving);
        })
        .finished();
        rig.verify(Crash::Kill);
    }
}

#[test]
fn scenario_54_a_cache_disk_without_room_or_of_another_node_is_refused_and_left_alone() {
    let mut small = rig(1);
    small.sizes.ssd_bytes = 2 << 20;
    small.universe.change_faults(|f| f.cache_disk.capacity = 1 << 20);
    small
        .live(Crash::Kill, async |live| {
            assert!(matches!(disk_state(live), SsdState::Offline(_)), "{:?}", disk_state(live));
            live.write(0, CACHED).await;
            live.drain().await;
            sweep(live, 0..CACHED).await;
        })
        .finished();
    let mut left_alone = 0;
    for seed in 0..8 {
        let mut rig = cached(seed);
        // The directory of the write buffer is lost, and with it the node; the cache's disk may be another one.
        rig.live(Crash::DiscardLocal, async |live| {
            sweep(live, 0..CACHED).await;
            live.engine.close().await.unwrap();
        })
        .finished();
        let Some(before) = rig.universe.cache_file(0) else { continue };
        left_alone += 1;
        rig.live(Crash::Kill, async |live| {
            let SsdState::Offline(why) = disk_state(live) else {
                panic!("another node's cache is {:?}", disk_state(live))
            };
            assert!(why.contains("belongs to node"), "{why}");
            sweep(live, 0..CACHED).await;
            live.engine.close().await.unwrap();
        })
        .finished();
        assert!(rig.universe.cache_file(0) == Some(before), "it was changed");
    }
    assert!(left_alone > 1);
}

#[test]
fn a_cache_is_warm_after_a_clean_end_and_empty_after_a_crash_that_it_did_not_see_coming() {
    for (seed, crash) in [(1, Crash::Kill), (2, Crash::PowerLoss), (3, Crash::PowerLoss)] {
        let mut rig = cached(seed);
        rig.live(crash, async |live| {
            sweep(live, 0..CACHED).await;
            assert_eq!(hits(live), 0);
            live.engine.close().await.unwrap();
        })
        .finished();
        // Nothing is written here, so the crash that ends it leaves the catalogue right.
        for _ in 0..2 {
            rig.live(crash, async |live| {
                sweep(live, 0..CACHED).await;
                assert_eq!(hits(live), CACHED as u64, "it is not warm");
            })
            .finished();
        }
        rig.live(crash, async |live| {
            live.write(300, 128).await;
            live.drain().await;
            // Asked for twice, they are worth a place.
            sweep(live, 300..428).await;
            sweep(live, 300..428).await;
            sweep(live, 0..CACHED).await;
        })
        .finished();
        rig.live(crash, async |live| {
            assert_eq!(known(live), 0, "what is known after a crash cannot be right");
            sweep(live, 0..CACHED).await;
        })
        .finished();
        rig.verify(crash);
    }
}

#[test]
fn what_decays_on_the_cache_disk_costs_hits_and_nothing_else() {
    let mut rig = cached(4);
    rig.live(Crash::Kill, async |live| {
        sweep(live, 0..CACHED).await;
        live.engine.close().await.unwrap();
    })
    .finished();
    let file = rig.universe.cache_file(0).unwrap();
    // One bit of every other block: clusters, catalogue and header; then of the header alone.
    for block in (0..file.len()).step_by(2 * 4096) {
        let at = block + 1000 + block % 1777;
        rig.universe.overwrite_in_cache(0, at as u64, &[file[at] ^ 4]);
    }
    rig.live(Crash::Kill, async |live| {
        sweep(live, 0..CACHED).await;
        sweep(live, 0..CACHED).await;
        assert_eq!(disk_state(live), SsdState::Serving);
        live.engine.close().await.unwrap();
    })
    .finished();
    let last = rig.universe.cache_file(0).unwrap().len() as u64 - 100;
    rig.universe.overwrite_in_cache(0, last, &[1]);
    rig.live(Crash::Kill, async |live| {
        assert_eq!(known(live), 0);
        sweep(live, 0..CACHED).await;
    })
    .finished();
}

#[test]
fn a_cache_disk_may_be_taken_out_put_in_and_changed_in_size() {
    let mut rig = cached(5);
    for (n, bytes) in [2 << 20, 0, 2 << 20, 3 << 20, 5 << 18, 0, 2 << 20].into_iter().enumerate() {
        rig.sizes.ssd_bytes = bytes;
        rig.live(Crash::Kill, async |live| {
            assert_eq!(disk_state(live) == SsdState::Off, bytes == 0);
            live.guest.recover(&live.volume, Place::Journal).await;
            sweep(live, 0..CACHED).await;
            // The content changes while the cache is out, too.
            live.write(n * PIECE, PIECE).await;
            live.drain().await;
            sweep(live, 0..CACHED).await;
            live.engine.close().await.unwrap();
        })
        .finished();
        let len = rig.universe.cache_file(0).unwrap().len() as u64;
        assert!(bytes == 0 || len <= bytes && len > bytes / 2, "{len} bytes for {bytes}");
    }
    rig.verify(Crash::Kill);
}

// ---- the write buffer's disk

#[test]
fn scenario_55_when_the_write_buffer_fails_writes_are_refused_with_the_reason_and_reads_go_on() {
    for seed in 0..10 {
        let mut rig = rig(seed);
        rig.live(Crash::PowerLoss, async |live| {
            live.write(0, 64).await;
            live.drain().await;
            live.write_forced(64, 16).await;
            excuse(live, Kind::Unavailable);
            let window = from_now(live, HOUR);
            live.universe.change_faults(|f| f.disk.dead = vec![window]);
            live.write(32, 64).await;
            let fault = live.volume.submit(Request::Flush).await.unwrap_err();
            assert_eq!(fault.kind, Kind::Unavailable, "{fault}");
            assert!(fault.to_string().contains("input/output"), "{fault}");
            // No later flush says otherwise, not even once the disk is well again.
            live.universe.change_faults(|f| f.disk.dead.clear());
            live.volume.submit(Request::Flush).await.unwrap_err();
            live.write_raw(0, 1).await.unwrap_err();
            live.read(0, 200).await;
            let drained = tokio::time::timeout(HOUR, live.volume.drain()).await;
            drained.expect("it waits for ever").unwrap_err();
            live.read(0, 200).await;
        })
        .finished();
        excuse_nothing(&rig);
        rig.verify(Crash::PowerLoss);
        rig.verify(Crash::Kill);
    }
}

#[test]
fn a_sync_that_failed_is_not_repeated_and_called_durable() {
    let mut refused = 0;
    for seed in 0..20 {
        let mut rig = rig(seed);
        rig.live(Crash::PowerLoss, async |live| {
            live.write(0, 16).await;
            live.flush().await;
            excuse(live, Kind::Unavailable);
            live.universe.change_faults(|f| f.disk.sync_error = 1_000_000);
            // More than one write can take: the commit has to sync.
            for n in 0..6 {
                live.write(n * 100, 64).await;
            }
            refused += u32::from(live.volume.submit(Request::Flush).await.is_err());
            live.universe.change_faults(|f| f.disk.sync_error = 0);
            for _ in 0..3 {
                live.flush().await;
            }
        })
        .finished();
        excuse_nothing(&rig);
        rig.verify(Crash::PowerLoss);
    }
    assert_eq!(refused, 20);
}

#[test]
fn with_the_disk_of_the_write_buffer_full_writes_wait_reads_go_on_and_all_resumes_by_itself() {
    let mut rig = rig(7);
    rig.live(Crash::PowerLoss, async |live| {
        live.write(0, 64).await;
        live.drain().await;
        let full = from_now(live, seconds(600));
        live.universe.change_faults(|f| f.disk.full = vec![full]);
        live.write(64, 64).await;
        let flush = async {
            live.flush().await;
            assert!(live.universe.now() >= full.end, "flushed to a full disk");
        };
        let reads = async {
            for _ in 0..10 {
                tokio::time::sleep(seconds(30)).await;
                let asked = live.universe.now();
                live.read(0, 256).await;
                assert!(live.universe.now() - asked < seconds(5), "a read waited for room");
            }
        };
        tokio::join!(flush, reads);
        assert!(live.universe.now() - full.end < seconds(10), "it does not go on by itself");
        live.write(500, 64).await;
        live.drain().await;
    })
    .finished();
    rig.verify(Crash::PowerLoss);
}

#[test]
fn with_the_page_store_full_everything_goes_on_and_pages_are_written_once_there_is_room() {
    let mut rig = rig(8);
    rig.live(Crash::Kill, async |live| {
        let full = from_now(live, seconds(600));
        live.universe.change_faults(|f| f.pages.full = vec![full]);
        for n in 0..50 {
            live.write(n * 16, 8).await;
            live.drain().await;
        }
        assert!(live.universe.now() < full.end, "uploads waited for the page store");
        live.read(0, 1024).await;
        tokio::time::sleep(seconds(700)).await;
        for n in 0..20 {
            live.write(n * 16, 8).await;
            live.drain().await;
        }
        assert_eq!(live.volume.state(), State::Running);
        live.engine.close().await.unwrap();
    })
    .finished();
    rig.verify(Crash::Kill);
    rig.verify(Crash::DiscardLocal);
    rig.verify(Crash::Kill);
}

#[test]
fn a_slow_disk_makes_flushes_slow_and_nothing_fail() {
    let mut rig = rig(9);
    rig.live(Crash::PowerLoss, async |live| {
        let slow = from_now(live, HOUR);
        live.universe.change_faults(|f| {
            f.disk.slow = vec![slow];
            f.disk.slow_ms = 3_000;
        });
        for n in 0..40 {
            let asked = live.universe.now();
            live.write(n * 20, 8).await;
            live.flush().await;
            live.read(n * 10, 16).await;
            let took = live.universe.now() - asked;
            assert!(took < seconds(40), "a write, a flush and a read took {took:?}");
        }
        live.drain().await;
    })
    .finished();
    rig.verify(Crash::Kill);
}

#[test]
fn scenario_56_a_volume_that_fills_the_buffer_does_not_starve_a_small_one() {
    let mut faults = Faults::default();
    faults.store.delay_ms = (1_000, 2_000);
    let settings = VdiskSettings { buffer_share_percent: 50, ..quiet_settings() };
    let mut rig = Rig::new(56, faults, settings);
    rig.live(Crash::Kill, async |live| {
        let mut plan = live.guest.plan.clone();
        (plan.id, plan.name) = (VolumeId([7; 16]), "small".to_owned());
        let small = live.engine.create(&plan).await.unwrap();
        let greedy = async {
            for n in 0..400 {
                live.write(n % 15 * 64, 64).await;
            }
        };
        let modest = async {
            let mut longest = Duration::ZERO;
            for n in 0..200 {
                tokio::time::sleep(seconds(1)).await;
                let asked = live.universe.now();
                let data = vec![n as u8; 4096].into();
                let (offset, fua) = (ByteOffset(n * 4096), Fua::No);
                small.submit(Request::Write { offset, data, fua }).await.unwrap();
                longest = longest.max(live.universe.now() - asked);
            }
            longest
        };
        let ((), longest) = tokio::join!(greedy, modest);
        assert!(longest < seconds(2), "a small writer waited {longest:?} for a greedy one");
    })
    .finished();
    rig.verify(Crash::Kill);
}

// ---- the backend

#[test]
fn uploads_let_a_burst_go_first_and_keep_up_with_a_stream() {
    let mut rig = rig(60);
    rig.sizes.segment_count = 16;
    rig.live(Crash::Kill, async |live| {
        let uploaded = || {
            let objects = live.universe.objects().into_iter();
            objects.filter(|(_, name, _)| name.starts_with("sco/")).count()
        };
        // Up to 256 MiB/s, four writes to an SCO, which is sealed with the next write.
        let burst = async |writes: std::ops::Range<usize>| {
            for n in writes {
                live.write(n * 64 % 1024, 64).await;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        burst(0..48).await;
        let early = uploaded();
        assert!(early <= 8, "{early} of 11 SCOs were uploaded during the burst");
        tokio::time::sleep(seconds(1)).await;
        assert_eq!(uploaded(), 11, "afterwards");
        burst(48..288).await;
        let (behind, early) = (live.volume.backlog().0, uploaded());
        assert!(behind <= 8 << 20, "{behind} bytes are behind");
        assert!((64..72).contains(&early), "{early} of 72");
        // Somebody waits: the burst does not count.
        live.drain().await;
        assert_eq!(uploaded(), 72);
    })
    .finished();
    rig.verify(Crash::Kill);
    rig.verify(Crash::DiscardLocal);
}

#[test]
fn scenario_25_while_half_of_the_calls_fail_everything_goes_on() {
    let mut rig = rig(25);
    rig.live(Crash::DiscardLocal, async |live| {
        live.write(0, 64).await;
        live.drain().await;
        let window = from_now(live, 3 * HOUR);
        live.universe.change_faults(|f| f.store.brownouts = vec![window]);
        for n in 0..60 {
            live.write(n * 16, 16).await;
            live.read(n * 8, 16).await;
            live.drain().await;
        }
        assert!(live.universe.now() < window.end);
    })
    .finished();
    rig.verify(Crash::DiscardLocal);
    rig.verify(Crash::Kill);
}

#[test]
fn scenario_22_an_outage_of_hours_is_waited_for() {
    let mut rig = rig(22);
    rig.live(Crash::DiscardLocal, async |live| {
        live.write(0, 64).await;
        live.drain().await;
        let outage = from_now(live, 3 * HOUR);
        live.universe.change_faults(|f| f.store.outages = vec![outage]);
        for n in 0..40 {
            live.write(n % 16 * 64, 64).await;
        }
        assert!(live.universe.now() >= outage.end);
        live.drain().await;
        live.read(0, 1024).await;
    })
    .finished();
    rig.verify(Crash::Kill);
}

#[test]
fn scenario_19_bytes_damaged_on_their_way_are_asked_for_again_or_an_error_never_wrong() {
    let mut rig = rig(19);
    rig.live(Crash::DiscardLocal, async |live| {
        live.write(0, 256).await;
        live.drain().await;
    })
    .finished();
    rig.universe.change_faults(|f| f.store.flip_on_read = 300_000);
    // Manifests and TLogs are as exposed as clusters: opening may take a few attempts.
    let mut opened = 0;
    for _ in 0..20 {
        let end = rig.live(Crash::DiscardLocal, async |live| {
            excuse(live, Kind::Corrupt);
            for first in (0..256).step_by(8) {
                live.read(first, 8).await;
            }
            assert_eq!(live.volume.state(), State::Running);
        });
        match end {
            End::Finished(()) => opened += 1,
            End::Refused(fault) => assert_eq!(fault.kind, Kind::Corrupt, "{fault}"),
            End::Crashed => panic!("nothing crashes here"),
        }
    }
    assert!(opened > 0);
    rig.universe.change_faults(|f| f.store.flip_on_read = 0);
    excuse_nothing(&rig);
    rig.verify(Crash::Kill);
}

#[test]
fn a_damaged_manifest_refuses_the_volume_by_name_until_it_is_restored() {
    let mut rig = rig(11);
    rig.live(Crash::Kill, async |live| {
        live.write(0, 64).await;
        live.drain().await;
    })
    .finished();
    let name = rig.objects(names::MANIFEST_PREFIX).pop().unwrap();
    let whole = rig.universe.object(&rig.namespace(), &name).unwrap();
    for at in [0, 5, whole.len() / 2, whole.len() - 1] {
        let flip = |mut body: Vec<u8>| {
            body[at] ^= 0x20;
            Some(body)
        };
        assert!(rig.universe.damage_object(&rig.namespace(), &name, flip));
        match rig.live(Crash::Kill, async |_| ()) {
            End::Refused(fault) => {
                assert!(fault.to_string().contains(&name), "it does not say which: {fault}");
            }
            other => panic!("opened with a damaged manifest: {other:?}"),
        }
        rig.universe.restore_object(&rig.namespace(), &name, whole.clone());
    }
    rig.verify(Crash::Kill);
}

#[test]
fn scenario_24_with_the_backend_full_no_read_waits() {
    let mut rig = rig(12);
    rig.live(Crash::Kill, async |live| {
        live.write(0, 64).await;
        live.drain().await;
        let full = from_now(live, seconds(900));
        live.universe.change_faults(|f| f.store.full = vec![full]);
        let writes = async {
            for n in 0..24 {
                live.write(n % 15 * 64 + 64, 64).await;
            }
            assert!(live.universe.now() >= full.end, "6 MiB went into a buffer of 4 MiB");
        };
        let reads = async {
            for _ in 0..20 {
                tokio::time::sleep(seconds(30)).await;
                let asked = live.universe.now();
                live.read(0, 64).await;
                assert!(live.universe.now() - asked < seconds(5));
            }
        };
        tokio::join!(writes, reads);
        live.drain().await;
    })
    .finished();
    rig.verify(Crash::DiscardLocal);
    rig.verify(Crash::Kill);
}
