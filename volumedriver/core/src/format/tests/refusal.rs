//! Values whose checksum is right and whose content cannot be.

use super::*;

fn sound_footer() -> ScoFooter {
    let data = |seq, addr, count: u32, first_index| Change {
        seq: Seq(seq),
        addr: ClusterAddr(addr),
        count: ClusterCount(count.into()),
        kind: ChangeKind::Data { first_index, crcs: vec![ClusterCrc(7); count as usize] },
    };
    let hole = Change { kind: ChangeKind::Hole, ..data(5, 100, 1000, 0) };
    ScoFooter {
        volume: VolumeId([1; 16]),
        id: ScoId { epoch: Epoch(1), seq: ScoSeq(1) },
        cluster_size: ClusterSize::DEFAULT,
        cluster_count: 5,
        changes: vec![data(2, 0, 2, 0), hole, data(6, 9, 3, 2)],
    }
}

fn tlog_of(footer: &ScoFooter) -> Tlog {
    let mut changes = footer.changes.clone();
    for change in &mut changes {
        if let ChangeKind::Data { crcs, .. } = &mut change.kind {
            crcs.clear();
        }
    }
    let (id, cluster_count) = (footer.id, footer.cluster_count);
    let sco = TlogSco { id, cluster_count, object_bytes: 1, changes };
    Tlog { volume: footer.volume, epoch: id.epoch, no: TlogNo(1), scos: vec![sco] }
}

fn first_index(change: &mut Change) -> &mut u32 {
    match &mut change.kind {
        ChangeKind::Data { first_index, .. } => first_index,
        ChangeKind::Hole | ChangeKind::Zero => panic!("no data"),
    }
}

#[track_caller]
fn refused<T>(outcome: Result<T>, kind: Kind, says: &str) {
    let fault = outcome.err().expect("it is refused");
    assert_eq!(fault.kind, kind, "{fault}");
    assert!(fault.to_string().contains(says), "{fault}");
}

/// Both formats that list the changes of a whole SCO refuse it.
#[track_caller]
fn refused_in_both(spoil: impl FnOnce(&mut ScoFooter), says: &str) {
    let mut footer = sound_footer();
    ScoFooter::decode(&footer.encode()).unwrap();
    Tlog::decode(&tlog_of(&footer).encode()).unwrap();
    spoil(&mut footer);
    refused(ScoFooter::decode(&footer.encode()), Kind::Corrupt, says);
    refused(Tlog::decode(&tlog_of(&footer).encode()), Kind::Corrupt, says);
}

#[test]
fn changes_that_make_no_sense() {
    refused_in_both(|f| f.changes[2].seq = Seq(u64::MAX), "no volume reaches");
    refused_in_both(|f| f.changes[0].seq = Seq(0), "has no sequence");
    refused_in_both(|f| f.changes[1].seq = Seq(2), "comes after change 2");
    refused_in_both(|f| f.changes.swap(0, 1), "comes after");
    refused_in_both(|f| f.changes[1].count = ClusterCount(0), "covers no cluster");
    refused_in_both(|f| f.changes[1].count = ClusterCount(u64::MAX), "beyond every volume");
    refused_in_both(|f| f.changes[1].count = ClusterCount((1 << 56) - 99), "beyond every volume");
    refused_in_both(|f| f.changes[2].addr = ClusterAddr((1 << 56) - 2), "beyond every volume");
    refused_in_both(|f| *first_index(&mut f.changes[2]) = 1, "at index 1, not at 2");
    refused_in_both(|f| *first_index(&mut f.changes[2]) = 65_535, "beyond every SCO");
    refused_in_both(|f| *first_index(&mut f.changes[2]) = u32::MAX, "beyond every SCO");
    refused_in_both(|f| f.cluster_count = 6, "an SCO of 6 clusters lists 5");
    refused_in_both(|f| f.cluster_count = 0, "an SCO of 0 clusters lists 5");
}

#[test]
fn a_tlog_out_of_order() {
    let spoilt = |spoil: fn(&mut Tlog)| {
        let mut tlog = tlog_of(&sound_footer());
        let mut second = tlog.scos[0].clone();
        second.id.seq = ScoSeq(3);
        second.changes.iter_mut().for_each(|change| change.seq.0 += 10);
        tlog.scos.push(second);
        Tlog::decode(&tlog.encode()).unwrap();
        spoil(&mut tlog);
        Tlog::decode(&tlog.encode())
    };
    refused(spoilt(|t| t.scos[1].id.seq = ScoSeq(1)), Kind::Corrupt, "comes after position 1");
    refused(spoilt(|t| t.scos[1].id.seq = ScoSeq(1 << 47)), Kind::Corrupt, "comes after position");
    refused(spoilt(|t| t.scos[1].changes[0].seq = Seq(6)), Kind::Corrupt, "comes after change 6");
    refused(spoilt(|t| t.scos[1].id.epoch = Epoch(2)), Kind::Corrupt, "later epoch");
    refused(spoilt(|t| t.scos.clear()), Kind::Corrupt, "no SCO");
}

/// The frame with other bytes at `at`, and its checksum put right again.
fn forged(frame: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    let covered = frame.len() - 4;
    let crc = crc32fast::hash(&frame[..covered]);
    frame[covered..].copy_from_slice(&crc.to_le_bytes());
    frame
}

#[test]
fn an_unknown_version_is_named() {
    let says = "format version 9; this program reads version 1";
    let tlog = forged(&tlog_of(&sound_footer()).encode(), 4, &[9]);
    refused(Tlog::decode(&tlog), Kind::Invalid, says);
    let header = SegmentHeader {
        node: NodeId([0; 16]),
        shard: 0,
        use_no: 1,
        first_record: 1,
        segment_bytes: 1,
    };
    let segment = forged(&block(|out| header.encode(out)), 4, &[9]);
    refused(SegmentHeader::decode(&segment), Kind::Invalid, says);
    // A flipped bit is damage, not a version.
    let mut damaged = tlog;
    damaged[4] ^= 2;
    refused(Tlog::decode(&damaged), Kind::Corrupt, "checksum");
}

#[test]
fn counts_without_items_are_refused_before_anything_is_allocated() {
    let tlog = forged(&tlog_of(&sound_footer()).encode(), 12 + 32, &[0xff; 4]);
    refused(Tlog::decode(&tlog), Kind::Corrupt, "counts 4294967295 items");
    let tlog = forged(&tlog_of(&sound_footer()).encode(), 12 + 36 + 28, &[0xff; 4]);
    refused(Tlog::decode(&tlog), Kind::Corrupt, "counts 4294967295 items");
}

#[test]
fn what_follows_the_end_is_seen() {
    let tlog = tlog_of(&sound_footer()).encode();
    let mut longer = tlog[..tlog.len() - 4].to_vec();
    longer.extend([0; 8]);
    let len = longer.len() as u32;
    refused(Tlog::decode(&forged(&longer, 8, &len.to_le_bytes())), Kind::Corrupt, "4 bytes follow");
    let header = SegmentHeader {
        node: NodeId([0; 16]),
        shard: 0,
        use_no: 1,
        first_record: 1,
        segment_bytes: 1,
    };
    let block = block(|out| header.encode(out));
    refused(SegmentHeader::decode(&forged(&block, 4091, &[1])), Kind::Corrupt, "padding");
}

#[test]
fn a_trailer_speaks_of_one_footer_only() {
    let ours = sound_footer();
    let mut theirs = ours.clone();
    theirs.changes[0].addr = ClusterAddr(77);
    let (ours, theirs) = (ours.encode(), theirs.encode());
    let split = ours.len() - TRAILER_BYTES;
    let mixed = [&theirs[..split], &ours[split..]].concat();
    refused(ScoFooter::decode(&mixed), Kind::Corrupt, "not the one its trailer speaks of");
    // The trailer alone is enough to find the footer in a longer piece of the object.
    let tail = [&[0xee; 100][..], &ours].concat();
    let trailer = ScoTrailer::decode(&tail).unwrap();
    assert_eq!(trailer.footer_bytes as usize, split);
}

#[test]
fn one_cluster_costs_28_bytes_in_a_footer_and_24_in_a_tlog() {
    let mut footer = sound_footer();
    let before = (footer.encode().len(), tlog_of(&footer).encode().len());
    let kind = ChangeKind::Data { first_index: 5, crcs: vec![ClusterCrc(1)] };
    footer.changes.push(Change { seq: Seq(9), addr: ClusterAddr(1), count: ClusterCount(1), kind });
    footer.cluster_count += 1;
    let after = (footer.encode().len(), tlog_of(&footer).encode().len());
    assert_eq!((after.0 - before.0, after.1 - before.1), (28, 24));
}
