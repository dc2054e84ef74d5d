//! The failure scenarios, each under its number: what must hold after a crash at each ordering step, after local damage,
//! after damage or trouble at the backend. The numbers are those of the project's list of scenarios.

use std::time::Duration;

use suite::model::{Place, Span};
use suite::sim::rig::{CLUSTER, End, Live, Rig, quiet_settings};
use suite::world::faults::{Crash, Faults, Window};
use suite::world::keys;
use volumedriver::config::settings::{
    AckLevel, Compression, Encryption, FlushLevel, VdiskSettings,
};
use volumedriver::volume::State;
use volumedriver_core::fault::Kind;
use volumedriver_core::format::journal::{BLOCK_BYTES, RecordHeader};
use volumedriver_core::request::Fua;
use volumedriver_core::units::ByteCount;

const CRASHES: [Crash; 3] = [Crash::Kill, Crash::PowerLoss, Crash::DiscardLocal];

fn rig(seed: u64) -> Rig {
    Rig::new(seed, Faults::default(), quiet_settings())
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Runs the script with a crash at its first gate, its second, and so on until it gets through; checks each outcome.
fn crash_at_every_gate(settings: &VdiskSettings, crash: Crash, script: impl AsyncFn(&Live)) -> u64 {
    for gate in 1.. {
        let mut rig = Rig::new(gate, Faults::default(), settings.clone());
        let end = rig.live_until(Some(gate), crash, &script);
        rig.verify(Crash::PowerLoss);
        rig.verify(Crash::Kill);
        if matches!(end, End::Finished(())) {
            return gate;
        }
    }
    0
}

async fn write_and_flush(live: &Live) {
    live.write(0, 4).await;
    live.write(8, 64).await;
    live.flush().await;
    live.write(2, 4).await;
    live.write_forced(100, 1).await;
    live.write(8, 2).await;
    live.flush().await;
    live.write(300, 3).await;
}

async fn write_and_upload(live: &Live) {
    live.write(0, 64).await;
    live.flush().await;
    live.drain().await;
    live.write(32, 64).await;
    live.write(500, 8).await;
    live.drain().await;
    live.write(500, 4).await;
}

#[test]
fn scenario_1_2_a_crash_between_append_and_acknowledgement_shows_whole_operations_from_the_flush_on()
 {
    for crash in CRASHES {
        let gates = crash_at_every_gate(&quiet_settings(), crash, write_and_flush);
        assert!(gates > 20, "only {gates} crash points");
    }
    let buffered = VdiskSettings { ack: AckLevel::Buffer, ..quiet_settings() };
    crash_at_every_gate(&buffered, Crash::PowerLoss, write_and_flush);
}

#[test]
fn scenario_3_a_sealed_sco_whose_upload_never_started_is_uploaded_after_the_restart() {
    let mut rig = rig(3);
    rig.live(Crash::Kill, async |live| live.write(0, 1).await).finished();
    rig.verify(Crash::Kill);
    let outage = |rig: &Rig, seconds_long: u64| {
        let now = rig.universe.now();
        let window = Window { start: now + seconds(60), end: now + seconds(60 + seconds_long) };
        rig.universe.change_faults(|f| f.store.outages = vec![window]);
    };
    outage(&rig, 1000);
    rig.live(Crash::Kill, async |live| {
        live.guest.recover(&live.volume, Place::Journal).await;
        tokio::time::sleep(seconds(61)).await;
        for n in 0..3 {
            live.write(n * 64, 64).await;
        }
        live.flush().await;
    })
    .finished();
    let before = rig.objects("tlog/").len();
    rig.universe.change_faults(|f| f.store.outages.clear());
    rig.live(Crash::DiscardLocal, async |live| {
        assert!(live.guest.recover(&live.volume, Place::Journal).await);
        live.drain().await;
    })
    .finished();
    assert!(rig.objects("tlog/").len() > before);
    rig.verify(Crash::Kill);
}

#[test]
fn scenario_4_5_6_a_crash_at_any_step_of_an_upload_leaves_one_valid_object_and_the_same_content() {
    for crash in CRASHES {
        let gates = crash_at_every_gate(&quiet_settings(), crash, write_and_upload);
        assert!(gates > 40, "only {gates} crash points");
    }
    let to_backend = VdiskSettings { flush: FlushLevel::Backend, ..quiet_settings() };
    crash_at_every_gate(&to_backend, Crash::DiscardLocal, write_and_flush);
}

#[test]
fn scenario_6_an_sco_stored_before_a_crash_is_taken_for_what_it_is_however_it_would_be_built_now() {
    let plain = VdiskSettings { encryption_key: [keys::source()].into(), ..quiet_settings() };
    let packed = VdiskSettings { compression: Compression::Zstd(1), ..plain.clone() };
    let sealed = VdiskSettings {
        compression: Compression::Lz4,
        encryption: Encryption::Aes256Gcm,
        ..plain.clone()
    };
    // Put before the crash, and not named by a manifest yet.
    let mut found_again = 0;
    for gate in 1.. {
        let mut rig = Rig::new(gate, Faults::default(), sealed.clone());
        let end = rig.live_until(Some(gate), Crash::Kill, write_and_upload);
        let stored = rig.objects("sco/").len() > rig.objects("tlog/").len();
        found_again += u64::from(stored);
        for settings in [&packed, &sealed, &plain] {
            let settings = settings.clone();
            rig.live(Crash::Kill, async |live| {
                live.volume.set_settings(settings);
                live.volume.drain().await.unwrap();
            })
            .finished();
        }
        rig.verify(Crash::DiscardLocal);
        rig.verify(Crash::Kill);
        if matches!(end, End::Finished(())) {
            break;
        }
    }
    assert!(found_again > 3, "only {found_again} crashes between an SCO and its TLog");
}

#[test]
fn scenario_6_replaying_from_local_pages_gives_what_a_full_rebuild_gives() {
    for seed in 0..20 {
        let mut rig = rig(seed);
        rig.live_until(Some(60 + seed * 7), Crash::Kill, write_and_upload);
        let contents = [Crash::PowerLoss, Crash::DiscardLocal, Crash::Kill].map(|crash| {
            rig.live(crash, async |live| {
                live.volume.drain().await.unwrap();
                live.read_raw(0, 600).await.unwrap()
            })
            .finished()
        });
        assert!(contents[0] == contents[1] && contents[1] == contents[2]);
    }
}

#[test]
fn scenario_9_restarting_twice_without_requests_changes_nothing() {
    let mut rig = rig(9);
    rig.live(Crash::Kill, async |live| {
        write_and_upload(live).await;
        live.flush().await;
    })
    .finished();
    let look = |rig: &mut Rig| {
        let content = rig.live(Crash::Kill, async |live| {
            live.volume.drain().await.unwrap();
            live.read_raw(0, 1024).await.unwrap()
        });
        let content = content.finished();
        let data: Vec<String> =
            rig.objects("").into_iter().filter(|n| !n.starts_with("manifest/")).collect();
        (content, data)
    };
    let first = look(&mut rig);
    for _ in 0..2 {
        let again = look(&mut rig);
        assert_eq!(again.1, first.1, "objects after a restart without requests");
        assert!(again.0 == first.0, "the content changed");
    }
}

#[test]
fn scenario_12_a_truncated_write_buffer_without_a_copy_is_named_and_never_rolled_back_silently() {
    damaged_buffer(|rig, name, len| {
        assert!(rig.universe.truncate_file(name, len / 4096 / 8 * 4096));
    });
}

#[test]
fn scenario_14_a_flipped_bit_in_flushed_journal_data_is_detected_and_never_replayed() {
    damaged_buffer(|rig, name, len| {
        let bytes = rig.universe.file_bytes(0, name);
        let last = bytes.iter().rposition(|b| *b != 0).unwrap() as u64;
        assert!(rig.universe.flip_in_file(name, last / 2, 3) && last < len);
    });
}

/// A write that the disk put somewhere else: a block has what belongs to another. Clusters are told by their checksum, headers
/// of records by their number.
#[test]
fn scenario_14_a_misdirected_write_in_the_journal_is_detected_and_never_replayed() {
    let block = |bytes: &[u8], at: usize| bytes[at..at + BLOCK_BYTES].to_vec();
    for (from, to) in [(3, 9), (9, 3), (0, 5), (12, 4)] {
        for payload in [0, BLOCK_BYTES] {
            damaged_buffer(|rig, name, _| {
                let bytes = rig.universe.file_bytes(0, name);
                let holds = |at: &usize| {
                    let header = RecordHeader::decode(&bytes[*at..*at + BLOCK_BYTES]);
                    header.is_ok_and(|header| header.payload_bytes > 0)
                };
                let blocks = (0..bytes.len()).step_by(BLOCK_BYTES);
                let records: Vec<usize> = blocks.filter(holds).collect();
                assert_eq!(records.len(), 16);
                let (from, to) = (records[from] + payload, records[to] + payload);
                let other = block(&bytes, from);
                assert!(rig.universe.overwrite_in_file(0, name, to as u64, &other));
            });
        }
    }
}

/// The records of the journal that hold changes, in their order: file, place of the header.
fn records(rig: &Rig) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    for (name, _) in rig.universe.files(0) {
        let bytes = rig.universe.file_bytes(0, &name);
        for (at, block) in bytes.chunks_exact(BLOCK_BYTES).enumerate() {
            if let Ok(header) = RecordHeader::decode(block)
                && header.payload_bytes > 0
            {
                found.push((header.record, name.clone(), (at * BLOCK_BYTES) as u64));
            }
        }
    }
    found.sort();
    found.into_iter().map(|(_, name, at)| (name, at)).collect()
}

/// What is appended after a replay says what came before it: a record that is lost then is missed by its changes.
#[test]
fn scenario_14_a_record_lost_before_a_restart_is_named_with_its_changes() {
    // The seal alone is left in the journal, or changes before it too.
    for writes in [1, 2] {
        let mut rig = rig(140);
        rig.live(Crash::Kill, async |live| {
            for n in 0..writes {
                live.write(8 * n, 8).await;
                live.flush().await;
            }
        })
        .finished();
        // The volume is opened again, which seals what was replayed, and nothing is uploaded.
        let full = Window { start: Duration::ZERO, end: Duration::MAX };
        rig.universe.change_faults(|f| f.store.full_of_data = vec![full]);
        rig.live(Crash::Kill, async |_| tokio::time::sleep(seconds(5)).await).finished();
        let (name, at) = records(&rig).swap_remove(writes - 1);
        assert!(rig.universe.flip_in_file(&name, at + 100, 1));
        let state = rig.live(Crash::Kill, async |live| live.volume.state()).finished();
        let State::ReadOnly(why) = state else {
            panic!("a flushed change is lost, and it is {state:?}")
        };
        assert!(why.contains(&format!("changes {writes} to {writes} are lost")), "{why}");
    }
}

/// The end of the journal decays after the SCO that was sealed there is on the backend: what is left is sealed again, shorter,
/// and gets another name.
#[test]
fn scenario_14_an_sco_sealed_again_after_its_seal_was_lost_has_a_name_of_its_own() {
    let mut faults = Faults::default();
    faults.store.delay_ms = (20, 30);
    let mut rig = Rig::new(141, faults, quiet_settings());
    rig.live(Crash::Kill, async |live| {
        live.write(0, 8).await;
        live.flush().await;
        live.write(8, 8).await;
        let volume = live.volume.clone();
        let _uploading = tokio::task::spawn_local(async move { volume.drain().await });
        let stored = || live.universe.objects().iter().any(|(_, name, _)| name.starts_with("sco/"));
        while !stored() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .finished();
    assert!(rig.objects("tlog/").is_empty(), "it is published already");
    let (name, at) = records(&rig).pop().unwrap();
    assert!(rig.universe.flip_in_file(&name, at + 100, 1));
    rig.live(Crash::DiscardLocal, async |live| {
        live.volume.drain().await.unwrap();
        assert_eq!(live.volume.state(), State::Running);
        live.read(0, 8).await;
        assert_eq!(live.read_raw(8, 8).await.unwrap(), vec![0; 8 * CLUSTER as usize]);
    })
    .finished();
    let names = rig.objects("sco/");
    assert_eq!(names.len(), 2, "{names:?}");
    rig.verify(Crash::Kill);
}

/// Writes and flushes a known content, damages the fullest local file, and expects everything that reads to be right and
/// the loss to be said: read-only with a reason, or refused with one.
fn damaged_buffer(damage: impl Fn(&Rig, &str, u64)) {
    let mut rig = rig(12);
    rig.live(Crash::Kill, async |live| {
        for n in 0..16 {
            live.write_raw(n, n as u8 + 1).await.unwrap();
            live.flush().await;
        }
    })
    .finished();
    let filled = |(name, len): (String, u64)| {
        let used = rig.universe.file_bytes(0, &name).iter().filter(|b| **b != 0).count();
        (used, name, len)
    };
    let (_, name, len) = rig.universe.files(0).into_iter().map(filled).max().unwrap();
    damage(&rig, &name, len);
    let end = rig.live(Crash::Kill, async |live| {
        let State::ReadOnly(why) = live.volume.state() else {
            panic!("flushed data was damaged, and the volume is {:?}", live.volume.state());
        };
        assert!(!why.is_empty() && live.write_raw(0, 9).await.is_err());
        for n in 0..16 {
            if let Ok(bytes) = live.read_raw(n, 1).await {
                let byte = bytes[0];
                assert!(byte == n as u8 + 1 || byte == 0, "cluster {n} reads {byte}");
                assert!(bytes.iter().all(|b| *b == byte));
            }
        }
    });
    if let End::Refused(fault) = end {
        assert!(!fault.message.is_empty());
    }
}

#[test]
fn scenario_13_a_torn_journal_tail_is_dropped_and_everything_before_it_kept() {
    for seed in 0..60 {
        let mut rig = rig(seed);
        rig.live(Crash::PowerLoss, async |live| {
            live.write(0, 16).await;
            live.flush().await;
            live.write(4, 64).await;
            live.write(200, 64).await;
            tokio::time::sleep(Duration::from_millis(seed)).await;
        })
        .finished();
        rig.verify(Crash::PowerLoss);
        rig.verify(Crash::Kill);
    }
}

#[test]
fn scenario_15_local_state_older_than_the_backend_gives_way_to_it() {
    // The page store loses unsynced batches at every crash: it is older than the manifest, or empty.
    for seed in 0..20 {
        let mut rig = rig(seed);
        for _ in 0..3 {
            rig.live(Crash::PowerLoss, async |live| {
                live.guest.recover(&live.volume, Place::Journal).await;
                write_and_upload(live).await;
                live.drain().await;
            })
            .finished();
        }
        rig.verify(Crash::Kill);
    }
}

#[test]
fn scenario_17_without_its_local_directory_a_volume_shows_what_was_uploaded() {
    let mut rig = rig(17);
    rig.live(Crash::DiscardLocal, async |live| {
        live.write(0, 64).await;
        live.drain().await;
        live.write(32, 64).await;
        live.flush().await;
    })
    .finished();
    rig.verify(Crash::Kill);
    rig.live(Crash::Kill, async |live| live.read(0, 64).await).finished();
}

/// A volume of which `sco/…` objects are the only copy, and the clusters each holds.
fn uploaded(seed: u64) -> Rig {
    let mut rig = rig(seed);
    rig.live(Crash::DiscardLocal, async |live| {
        for n in 0..4 {
            live.write(n * 64, 64).await;
            live.drain().await;
        }
    })
    .finished();
    assert!(rig.objects("sco/").len() >= 4);
    rig
}

#[test]
fn scenario_18_a_missing_sco_fails_reads_of_its_clusters_only() {
    let mut rig = uploaded(18);
    let victim = rig.objects("sco/").swap_remove(1);
    assert!(rig.universe.damage_object(&rig.namespace(), &victim, |_| None));
    rig.live(Crash::Kill, only_the_second_quarter_fails).finished();
    rig.live(Crash::Kill, only_the_second_quarter_fails).finished();
}

#[test]
fn scenario_19_a_corrupt_sco_fails_reads_of_the_damaged_clusters_and_never_gives_wrong_bytes() {
    let mut rig = uploaded(19);
    let victim = rig.objects("sco/").swap_remove(1);
    let flip = |mut body: Vec<u8>| {
        body[10 * CLUSTER as usize + 77] ^= 0x10;
        Some(body)
    };
    assert!(rig.universe.damage_object(&rig.namespace(), &victim, flip));
    rig.live(Crash::Kill, async |live| {
        let fault = live.read_raw(64, 64).await.unwrap_err();
        assert_eq!(fault.kind, Kind::Corrupt, "{fault}");
        assert_eq!(live.read_raw(74, 1).await.unwrap_err().kind, Kind::Corrupt);
        live.read(64, 10).await;
        live.read(75, 53).await;
        live.read(0, 64).await;
        live.read(128, 128).await;
        assert_eq!(live.volume.state(), State::Running);
        live.write(74, 1).await;
        live.read(64, 64).await;
    })
    .finished();
}

async fn only_the_second_quarter_fails(live: &Live) {
    for cluster in [64, 100, 127] {
        let fault = live.read_raw(cluster, 1).await.unwrap_err();
        assert_eq!(fault.kind, Kind::Corrupt, "{fault}");
    }
    live.read(0, 64).await;
    live.read(128, 128).await;
    assert_eq!(live.volume.state(), State::Running);
    live.write(300, 4).await;
    live.drain().await;
}

#[test]
fn scenario_20_a_missing_tlog_is_not_needed_by_a_restart_and_refused_by_a_rebuild() {
    let mut rig = rig(20);
    rig.live(Crash::Kill, async |live| {
        live.write(0, 64).await;
        live.drain().await;
        live.engine.close().await.unwrap();
    })
    .finished();
    let victim = rig.objects("tlog/").swap_remove(0);
    assert!(rig.universe.damage_object(&rig.namespace(), &victim, |_| None));
    rig.verify(Crash::DiscardLocal);
    match rig.live(Crash::Kill, async |_| ()) {
        End::Refused(fault) => {
            assert!(fault.message.contains("TLog") || fault.message.contains("tlog"), "{fault}")
        }
        other => panic!("a volume was rebuilt without its TLog: {other:?}"),
    }
}

#[test]
fn scenario_22_with_the_backend_down_for_ten_minutes_writes_go_on_then_wait_and_the_backlog_drains()
{
    let mut rig = rig(22);
    rig.live(Crash::DiscardLocal, async |live| {
        live.write(0, 64).await;
        live.drain().await;
        let start = live.universe.now();
        let outage = Window { start, end: start + seconds(600) };
        live.universe.change_faults(|f| f.store.outages = vec![outage]);
        // Half a buffer is taken without delay.
        for n in 0..4 {
            live.write(n * 64, 64).await;
        }
        assert!(live.universe.now() - start < seconds(1), "writes waited with room in the buffer");
        live.flush().await;
        live.read(0, 256).await;
        // More than a buffer waits for the end of the outage, and none fails.
        for n in 0..32 {
            live.write(n % 16 * 64, 64).await;
        }
        assert!(live.universe.now() >= outage.end, "8 MiB went into a buffer of 4 MiB");
        live.drain().await;
        assert!(live.universe.now() - outage.end < seconds(300), "the backlog did not drain");
    })
    .finished();
    rig.verify(Crash::Kill);
}

#[test]
fn scenario_23_with_a_slow_backend_writes_slow_down_smoothly() {
    let mut faults = Faults::default();
    faults.store.delay_ms = (2_000, 2_000);
    let mut rig = Rig::new(23, faults, quiet_settings());
    rig.live(Crash::DiscardLocal, async |live| {
        let mut longest = Duration::ZERO;
        for n in 0..128 {
            let start = live.universe.now();
            live.write(n % 64 * 16, 16).await;
            longest = longest.max(live.universe.now() - start);
        }
        // 8 MiB through a buffer of 4 MiB; an upload of an SCO and its TLog and manifest takes 6 to 10 seconds.
        assert!(longest < seconds(60), "a write waited for {longest:?}");
        live.drain().await;
    })
    .finished();
    rig.verify(Crash::Kill);
}

#[test]
fn scenario_24_with_the_backend_full_writes_wait_and_go_on_when_there_is_space() {
    let mut rig = rig(24);
    rig.live(Crash::DiscardLocal, async |live| {
        live.write(0, 64).await;
        live.drain().await;
        let start = live.universe.now();
        let full = Window { start, end: start + seconds(600) };
        live.universe.change_faults(|f| f.store.full = vec![full]);
        for n in 0..24 {
            live.write(n % 16 * 64, 64).await;
        }
        live.read(0, 1024).await;
        live.drain().await;
        assert!(live.universe.now() >= full.end);
    })
    .finished();
    rig.verify(Crash::Kill);
}

#[test]
fn scenario_24_full_of_data_the_backend_still_opens_a_volume_after_a_crash() {
    let mut rig = rig(24);
    let full_until = rig
        .live(Crash::Kill, async |live| {
            live.write(0, 64).await;
            live.drain().await;
            let start = live.universe.now();
            let full = Window { start, end: start + seconds(600) };
            live.universe.change_faults(|f| f.store.full_of_data = vec![full]);
            live.write(64, 64).await;
            live.flush().await;
            full.end
        })
        .finished();
    for crash in [Crash::PowerLoss, Crash::Kill] {
        rig.verify(crash);
    }
    rig.live(Crash::DiscardLocal, async |live| {
        let opened = live.universe.now();
        assert!(opened < full_until - seconds(500), "opening waited for room");
        assert!(live.guest.recover(&live.volume, Place::Journal).await);
        live.drain().await;
        assert!(live.universe.now() >= full_until, "data was taken while there was no room");
    })
    .finished();
    rig.verify(Crash::Kill);
}

#[test]
fn scenario_2_a_write_of_256_kib_is_whole_or_absent_wherever_it_begins() {
    for gate in 1..=40 {
        for first in [1, 7, 509, 1003] {
            let mut rig = Rig::new(gate, Faults::default(), quiet_settings());
            rig.live_until(Some(gate), Crash::PowerLoss, async |live| {
                live.write(0, 256).await;
                live.flush().await;
                // Sectors, not clusters: up to a cluster more than the operation's bytes is touched.
                for count in [512, 511, 505] {
                    let span = Span { first, count };
                    live.guest.write(&live.volume, span, Fua::No).await;
                }
                live.flush().await;
            });
            rig.verify(Crash::Kill);
        }
    }
}

#[test]
fn scenario_40_growing_keeps_old_data_and_shows_zeroes_and_the_rest_is_refused() {
    let mut rig = rig(40);
    rig.live(Crash::Kill, async |live| {
        live.write(1000, 24).await;
        for bad in [(4 << 20) - CLUSTER, (4 << 20) + 1, u64::MAX / 4096 * 4096] {
            let fault = live.volume.resize(ByteCount(bad)).await.unwrap_err();
            assert_eq!(fault.kind, Kind::Invalid, "to {bad} bytes: {fault}");
        }
        live.guest.model.borrow_mut().ask_resize(5 << 20 >> 9);
        live.volume.resize(ByteCount(5 << 20)).await.unwrap();
        live.guest.model.borrow_mut().resized(5 << 20 >> 9);
        live.read(1000, 280).await;
        live.write(1270, 10).await;
        live.flush().await;
    })
    .finished();
    rig.verify(Crash::DiscardLocal);
    rig.verify(Crash::Kill);
}

#[test]
fn scenario_40_a_crash_at_any_step_of_growing_leaves_the_old_or_the_new_size() {
    for crash in CRASHES {
        crash_at_every_gate(&quiet_settings(), crash, async |live| {
            live.write(1000, 24).await;
            live.guest.model.borrow_mut().ask_resize(5 << 20 >> 9);
            live.volume.resize(ByteCount(5 << 20)).await.unwrap();
            live.guest.model.borrow_mut().resized(5 << 20 >> 9);
            live.write(1200, 8).await;
            live.flush().await;
        });
    }
}
