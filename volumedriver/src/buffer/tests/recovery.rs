//! What recovery reports, refuses and never revives.

use volumedriver_core::fault::Kind;

use super::disk::{CrashDisk, CrashWorld, live};
use super::*;

async fn open(disk: &CrashDisk) -> (Buffer<CrashWorld>, Vec<ReplayedVolume>) {
    let opened = Buffer::open(CrashWorld::new(disk.clone()), small_config()).await;
    let (buffer, replayed) = opened.unwrap_or_else(|fault| panic!("{fault}"));
    (buffer, replayed.volumes)
}

async fn flush(buffer: &Buffer<CrashWorld>) {
    buffer.flush().await.unwrap_or_else(|fault| panic!("{fault}"));
}

/// Five records of one cluster each, every one flushed, volumes 1 and 2 in turn.
fn written() -> CrashDisk {
    let disk = CrashDisk::seeded(1);
    live(&disk, async {
        let (buffer, _) = open(&disk).await;
        let logs = [attach(&buffer, 1, 1, 0), attach(&buffer, 2, 1, 0)];
        for n in 0..5_u64 {
            let (data, crcs) = clusters(n, 1);
            let seq = n / 2;
            let log = &logs[n as usize % 2];
            let done =
                log.append_data(Seq(seq + 1), ClusterAddr(n), ScoSeq(1), seq as u32, &crcs, &data);
            assert_eq!(done, Some(()));
            flush(&buffer).await;
        }
    });
    disk.restart();
    disk
}

#[test]
fn a_bad_cluster_below_the_watermark_is_reported_exactly() {
    let disk = written();
    let (place, at) = disk.find(&clusters(1, 1).0)[0].clone();
    disk.damage(&place, at + 100);
    live(&disk, async {
        let (buffer, replayed) = open(&disk).await;
        let damaged = replayed.iter().find(|found| found.volume == volume(2));
        let damage = &damaged.unwrap_or_else(|| panic!("volume 2 is gone")).damage;
        assert_eq!(damage.len(), 1);
        assert_eq!(damage[0].seqs, Some((Seq(1), Seq(1))));
        assert_eq!(damage[0].clusters, Some((ClusterAddr(1), ClusterCount(1))));
        let log = attach(&buffer, 2, 2, 2);
        let kind = log.read(ScoSeq(1), 0, 1).await.err().map(|fault| fault.kind);
        assert_eq!(kind, Some(Kind::Corrupt));
        assert!(log.read(ScoSeq(1), 1, 1).await.is_ok_and(|found| found.is_some()));
        let other = replayed.iter().find(|found| found.volume == volume(1));
        assert_eq!(other.map(|found| found.damage.len()), Some(0));
        assert_eq!(other.map(|found| found.scos[0].changes.len()), Some(3));
    });
}

#[test]
fn a_lost_header_below_the_watermark_is_seen_in_the_chain() {
    let disk = written();
    let (place, at) = disk.find(&clusters(1, 1).0)[0].clone();
    disk.damage(&place, at - 4096 + 50);
    live(&disk, async {
        let (_, replayed) = open(&disk).await;
        let damaged = replayed.iter().find(|found| found.volume == volume(2));
        // The lost record was the first of volume 2: the manifest must reach sequence 1, or it is lost.
        assert_eq!(damaged.map(|found| found.stated.as_slice()), Some(&[(Epoch(1), Seq(1))][..]));
        let other = replayed.iter().find(|found| found.volume == volume(1));
        assert_eq!(other.map(|found| found.damage.len()), Some(0));
    });
    let disk = written();
    let (place, at) = disk.find(&clusters(2, 1).0)[0].clone();
    disk.damage(&place, at - 4096 + 50);
    live(&disk, async {
        let (_, replayed) = open(&disk).await;
        let damage = |n| {
            let found = replayed.iter().find(|found| found.volume == volume(n));
            found.map(|found| found.damage.iter().map(|d| d.seqs).collect::<Vec<_>>())
        };
        assert_eq!(damage(1), Some(vec![Some((Seq(2), Seq(2)))]));
        assert_eq!(damage(2), Some(vec![]));
    });
}

#[test]
fn a_volume_without_a_later_record_may_be_incomplete() {
    let disk = written();
    // The fourth record is volume 2's last; the fifth proves that it was durable.
    let (place, at) = disk.find(&clusters(3, 1).0)[0].clone();
    disk.damage(&place, at - 4096 + 50);
    live(&disk, async {
        let (_, replayed) = open(&disk).await;
        let damaged = replayed.iter().find(|found| found.volume == volume(2));
        let damage = damaged.map(|found| found.damage.as_slice()).unwrap_or_default();
        assert_eq!(damage.len(), 1);
        assert_eq!((damage[0].seqs, damage[0].clusters), (None, None));
    });
}

/// One record in a segment of its own for each of these volumes, the next one saying that it was durable.
fn written_in_lives(volumes: &[u8]) -> CrashDisk {
    let disk = CrashDisk::seeded(2);
    for (n, of) in volumes.iter().enumerate() {
        live(&disk, async {
            let (buffer, _) = open(&disk).await;
            let before = volumes[..n].iter().filter(|volume| *volume == of).count() as u64;
            let log = attach(&buffer, *of, n as u64 + 1, before);
            let (data, crcs) = clusters(n as u64, 1);
            let (seq, sco, addr) = (Seq(before + 1), ScoSeq(before + 1), ClusterAddr(n as u64));
            assert!(log.append_data(seq, addr, sco, 0, &crcs, &data).is_some());
            flush(&buffer).await;
        });
        disk.restart();
    }
    disk
}

/// Opens the buffer, lets volume 2 keep what it lost and volume 1 go on, and returns whether records were said to be lost.
fn opened_and_used(disk: &CrashDisk, seq: u64) -> Option<bool> {
    let lost = live(disk, async {
        let opened = Buffer::open(CrashWorld::new(disk.clone()), small_config()).await;
        let (buffer, replayed) = opened.unwrap_or_else(|fault| panic!("{fault}"));
        let damage = |found: &ReplayedVolume| found.volume == volume(2) && !found.damage.is_empty();
        let lost = replayed.lost.is_some() || replayed.volumes.iter().any(damage);
        if lost {
            attach(&buffer, 2, 9, 0).keep();
        }
        buffer.settle();
        let log = attach(&buffer, 1, 10 + seq, seq - 1);
        let (data, crcs) = clusters(100 + seq, 1);
        let (at, sco) = (ClusterAddr(seq), ScoSeq(seq));
        assert!(log.append_data(Seq(seq), at, sco, 0, &crcs, &data).is_some());
        flush(&buffer).await;
        lost
    });
    disk.restart();
    lost
}

#[test]
fn what_is_lost_stays_lost_also_when_its_segment_has_nothing_else() {
    let disk = written_in_lives(&[2, 1]);
    let (place, at) = disk.find(&clusters(0, 1).0)[0].clone();
    disk.damage(&place, at - 4096 + 50);
    for seq in 2..6 {
        assert_eq!(opened_and_used(&disk, seq), Some(true), "at the opening before change {seq}");
    }
}

#[test]
fn damage_that_only_a_torn_record_tells_of_is_found_at_every_opening() {
    for payload in [0, 4096] {
        let disk = written_in_lives(&[1, 2, 1]);
        let (place, at) = disk.find(&clusters(1, 1).0)[0].clone();
        disk.damage(&place, at - 4096 + payload + 50);
        let (place, at) = disk.find(&clusters(2, 1).0)[0].clone();
        disk.damage(&place, at + 50);
        for seq in 2..6 {
            let lost = opened_and_used(&disk, seq);
            assert_eq!(lost, Some(true), "payload {payload}: at the opening before change {seq}");
        }
    }
}

/// A record in this place, damaged so that nobody knows its number.
fn lose_record(disk: &CrashDisk, n: u64) -> (String, usize) {
    let (place, at) = disk.find(&clusters(n, 1).0)[0].clone();
    disk.damage(&place, at - 4096 + 50);
    (place, at - 4096)
}

#[test]
fn a_torn_record_that_was_given_up_is_not_missed_when_its_block_decays() {
    let disk = written_in_lives(&[1, 2, 1]);
    // Damage: what tells of it is kept, also the segment of the torn record.
    let (place, at) = disk.find(&clusters(0, 1).0)[0].clone();
    disk.damage(&place, at + 50);
    let (place, torn) = lose_record(&disk, 2);
    live(&disk, async {
        let (buffer, _) = open(&disk).await;
        let log = attach(&buffer, 2, 4, 1);
        let (data, crcs) = clusters(3, 1);
        assert!(log.append_data(Seq(2), ClusterAddr(9), ScoSeq(2), 0, &crcs, &data).is_some());
        flush(&buffer).await;
    });
    disk.restart();
    // The next one with the same number is torn as well: the journal ends before both.
    lose_record(&disk, 3);
    disk.make_unreadable(&place, torn);
    live(&disk, async {
        let opened = Buffer::open(CrashWorld::new(disk.clone()), small_config()).await;
        let (_, replayed) = opened.unwrap_or_else(|fault| panic!("{fault}"));
        assert!(replayed.lost.is_none());
        let damaged = |found: &&ReplayedVolume| !found.damage.is_empty();
        let damaged: Vec<_> = replayed.volumes.iter().filter(damaged).map(|v| v.volume).collect();
        assert_eq!(damaged, [volume(1)]);
    });
}

#[test]
fn the_last_record_is_a_torn_tail_when_it_is_bad_and_never_comes_back() {
    let disk = written();
    let (place, at) = disk.find(&clusters(4, 1).0)[0].clone();
    let whole = disk.block(&place, at - 4096);
    disk.damage(&place, at - 4096 + 50);
    live(&disk, async {
        let (buffer, replayed) = open(&disk).await;
        let found = replayed.iter().find(|found| found.volume == volume(1));
        let found = found.unwrap_or_else(|| panic!("volume 1 is gone"));
        assert_eq!((found.scos[0].changes.len(), found.damage.len()), (2, 0));
        let log = attach(&buffer, 1, 2, 2);
        let (data, crcs) = clusters(99, 1);
        assert!(log.append_data(Seq(3), ClusterAddr(50), ScoSeq(2), 0, &crcs, &data).is_some());
        flush(&buffer).await;
    });
    disk.restart();
    // The old record turns up again, whole, with the number that a new record has by now.
    disk.put_block(&place, at - 4096, &whole);
    live(&disk, async {
        let (_, replayed) = open(&disk).await;
        let found = replayed.iter().find(|found| found.volume == volume(1));
        let found = found.unwrap_or_else(|| panic!("volume 1 is gone"));
        let scos: Vec<_> = found.scos.iter().map(|sco| (sco.id.seq, sco.changes.len())).collect();
        assert_eq!(scos, [(ScoSeq(1), 2), (ScoSeq(2), 1)]);
        assert_eq!(found.scos[1].changes[0].addr, ClusterAddr(50));
    });
}

#[test]
fn another_nodes_buffer_is_refused_and_left_alone() {
    let disk = written();
    live(&disk, async {
        for (node, shard) in [(NodeId([8; 16]), 3), (NODE, 4)] {
            let config = BufferConfig { node, shard, ..small_config() };
            let opened = Buffer::open(CrashWorld::new(disk.clone()), config).await;
            let fault = opened.err().unwrap_or_else(|| panic!("a foreign buffer was opened"));
            assert_eq!(fault.kind, Kind::Invalid);
            assert!(fault.message.contains("segment-0000"), "{fault}");
        }
        let (_, replayed) = open(&disk).await;
        assert_eq!(replayed.len(), 2);
    });
}

#[test]
fn where_each_write_is_flushed_the_commit_begins_with_the_write() {
    let disk = CrashDisk::seeded(7);
    live(&disk, async {
        let (buffer, _) = open(&disk).await;
        let log = attach(&buffer, 1, 1, 0);
        let durable = |n: u64| buffer.inner.tail.borrow().durable_record >= n;
        for n in 0..5 {
            assert!(append_one(&log, n).is_some());
            flush(&buffer).await;
        }
        assert!(append_one(&log, 5).is_some());
        while !durable(6) {
            tokio::task::yield_now().await;
        }
        flush(&buffer).await;
        // The habit is broken: no more is made durable than was asked for.
        for n in 6..9 {
            assert!(append_one(&log, n).is_some());
            for _ in 0..30 {
                tokio::task::yield_now().await;
            }
        }
        assert!(durable(7) && !durable(8));
    });
}

#[test]
fn a_failing_disk_ends_acknowledgements_and_not_reads() {
    let disk = CrashDisk::seeded(5);
    live(&disk, async {
        let (buffer, _) = open(&disk).await;
        let log = attach(&buffer, 1, 1, 0);
        assert!(append_one(&log, 0).is_some());
        flush(&buffer).await;
        disk.fail_writes();
        assert!(append_one(&log, 1).is_some());
        assert_eq!(buffer.flush().await.err().map(|fault| fault.kind), Some(Kind::Unavailable));
        assert!(append_one(&log, 2).is_none());
        assert!(buffer.flush().await.is_err());
        assert!(buffer.failure().is_some());
        check_one(&log, 0).await;
        check_one(&log, 1).await;
    });
}

#[test]
fn a_full_buffer_takes_seals_and_goes_on_after_disposal_and_after_a_crash() {
    let disk = CrashDisk::seeded(6);
    disk.limit_room(2 << 20);
    let fill = |log: &VolumeLog<CrashWorld>| {
        let mut n = 0;
        while append_one(log, n).is_some() {
            n += 1;
        }
        assert!(n > 300, "only {n} clusters fit 2 MiB");
        n
    };
    let count = live(&disk, async {
        let (buffer, _) = open(&disk).await;
        let log = attach(&buffer, 1, 1, 0);
        let mut count = fill(&log);
        // What is refused in one go may fit once the disk turned out to be too small to grow.
        flush(&buffer).await;
        while append_one(&log, count).is_some() {
            count += 1;
        }
        assert_eq!(buffer.pressing(), [volume(1)]);
        assert_eq!(buffer.capacity_bytes(), 2 << 20);
        assert!(buffer.used_bytes() > buffer.capacity_bytes() / 10 * 9);
        flush(&buffer).await;
        count
    });
    let count = count.unwrap_or_else(|| panic!("the power never went"));
    disk.restart();
    live(&disk, async {
        let (buffer, replayed) = open(&disk).await;
        assert_eq!(replayed[0].scos[0].changes.len() as u64, count);
        let log = attach(&buffer, 1, 2, count);
        assert!(append_one(&log, count).is_none());
        assert!(log.append_seal(ScoSeq(1), count as u32).is_some(), "no room for a seal");
        flush(&buffer).await;
        check_one(&log, count - 1).await;
        log.dispose(ScoSeq(1));
        assert_eq!(log.held_bytes(), 0);
        let (data, crcs) = clusters(1, 1);
        let again = log.append_data(Seq(count + 1), ClusterAddr(0), ScoSeq(2), 0, &crcs, &data);
        assert!(again.is_some(), "disposal freed nothing");
        flush(&buffer).await;
    });
    disk.restart();
    live(&disk, async {
        let (_, replayed) = open(&disk).await;
        let newest = replayed[0].scos.last().map(|sco| (sco.id.seq, sco.changes.len()));
        assert_eq!(newest, Some((ScoSeq(2), 1)));
    });
}
