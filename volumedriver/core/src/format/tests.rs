//! Properties that every format keeps: what is encoded is decoded again, and no damage goes unseen.

mod framed;
mod journal;
mod refusal;
mod shape;

use proptest::collection::vec;
use proptest::prelude::*;

use super::journal::{BLOCK_BYTES, Entry, RecordHeader, Section};
use super::manifest::{Body, Manifest, Opening, Origin, RunRef, Shape, ShapeChange, TlogRef};
use super::sco::{ScoFooter, ScoTrailer, TRAILER_BYTES};
use super::segment::SegmentHeader;
use super::tlog::{Tlog, TlogSco};
use super::{Change, ChangeKind};
use crate::fault::{Kind, Result};
use crate::units::*;

fn volume() -> impl Strategy<Value = VolumeId> {
    any::<[u8; 16]>().prop_map(VolumeId)
}

fn cluster_size() -> impl Strategy<Value = ClusterSize> {
    (12_u32..=16).prop_map(|shift| ClusterSize::new(1 << shift).unwrap())
}

fn sco_id() -> impl Strategy<Value = ScoId> {
    (1..1_u64 << 32, 1..=Location::MAX_SCO)
        .prop_map(|(epoch, seq)| ScoId { epoch: Epoch(epoch), seq: ScoSeq(seq) })
}

/// Changes in order after sequence `from`, with data from index 0; and the number of data clusters.
fn changes(from: u64, most: usize) -> impl Strategy<Value = (Vec<Change>, u32)> {
    let kind = prop_oneof![vec(any::<u32>(), 1..5).prop_map(Some), Just(None)];
    let item = (1_u64..5, 0..1_u64 << 50, kind, 1..1_u64 << 40, any::<bool>());
    vec(item, 0..most).prop_map(move |items| {
        let (mut seq, mut index) = (from, 0);
        let mut changes = Vec::new();
        for (step, addr, crcs, long, punched) in items {
            seq += step;
            let (count, kind) = match crcs {
                Some(crcs) => {
                    let crcs: Vec<_> = crcs.into_iter().map(ClusterCrc).collect();
                    let (first_index, count) = (index, crcs.len() as u32);
                    index += count;
                    (u64::from(count), ChangeKind::Data { first_index, crcs })
                }
                None if punched => (long, ChangeKind::Hole),
                None => (long, ChangeKind::Zero),
            };
            let (seq, addr, count) = (Seq(seq), ClusterAddr(addr), ClusterCount(count));
            changes.push(Change { seq, addr, count, kind });
        }
        (changes, index)
    })
}

prop_compose! {
    fn footer()(
        volume in volume(),
        id in sco_id(),
        cluster_size in cluster_size(),
        (changes, cluster_count) in changes(0, 20),
    ) -> ScoFooter {
        ScoFooter { volume, id, cluster_size, cluster_count, changes }
    }
}

prop_compose! {
    fn tlog()(
        volume in volume(),
        no in 1..u64::MAX,
        scos in vec((changes(0, 6), 1_u64..4, 1_u64..9, any::<u64>()), 1..5),
    ) -> Tlog {
        let (mut position, mut last_seq) = (0, 0);
        let scos = scos.into_iter().map(|((mut changes, cluster_count), step, epoch, object_bytes)| {
            position += step;
            for change in &mut changes {
                change.seq.0 += last_seq;
                if let ChangeKind::Data { crcs, .. } = &mut change.kind {
                    crcs.clear();
                }
            }
            last_seq = changes.last().map_or(last_seq, |change| change.seq.0);
            let id = ScoId { epoch: Epoch(epoch), seq: ScoSeq(position) };
            TlogSco { id, cluster_count, object_bytes, changes }
        });
        Tlog { volume, epoch: Epoch(9), no: TlogNo(no), scos: scos.collect() }
    }
}

prop_compose! {
    fn section()(
        volume in volume(),
        epoch in 1..u64::MAX,
        cluster_size in cluster_size(),
        previous_seq in 0..1_u64 << 60,
        sco in 1..=Location::MAX_SCO,
        seal in 0..=Location::MAX_CLUSTERS,
        count in 0_usize..6,
        (changes, _) in changes(0, 6),
    ) -> Section {
        let sco = ScoSeq(sco);
        let mut entries = vec![Entry::Seal { sco, cluster_count: seal }; 1 + count / 5];
        for mut change in changes {
            change.seq.0 += previous_seq;
            entries.push(Entry::Change { sco, change });
        }
        let (epoch, previous_seq) = (Epoch(epoch), Seq(previous_seq));
        Section { volume, epoch, cluster_size, previous_seq, entries }
    }
}

fn payload_bytes(sections: &[Section]) -> u32 {
    let data = |section: &Section| {
        let counts = section.entries.iter().map(|entry| match entry {
            Entry::Change { change, .. } if matches!(change.kind, ChangeKind::Data { .. }) => {
                change.count.0
            }
            _ => 0,
        });
        counts.sum::<u64>() * section.cluster_size.bytes()
    };
    u32::try_from(sections.iter().map(data).sum::<u64>()).unwrap()
}

prop_compose! {
    fn record()(
        segment_use in any::<u64>(),
        record in 1..u64::MAX,
        behind in 1_u64..1000,
        sections in vec(section(), 0..6),
    ) -> RecordHeader {
        let payload_bytes = payload_bytes(&sections);
        let durable_record = record.saturating_sub(behind);
        RecordHeader { segment_use, record, durable_record, payload_bytes, sections }
    }
}

prop_compose! {
    fn segment()(
        node in any::<[u8; 16]>(),
        shard in any::<u32>(),
        numbers in any::<[u64; 3]>(),
    ) -> SegmentHeader {
        let [use_no, first_record, segment_bytes] = numbers;
        SegmentHeader { node: NodeId(node), shard, use_no, first_record, segment_bytes }
    }
}

prop_compose! {
    /// A shape that came about by applying changes, and the number of its last manifest.
    fn shape()(
        name in "[^/\\p{Cc}]{1,60}",
        (size, cluster_size) in (1_u64..1 << 40, cluster_size()),
        steps in vec((0_u8..4, any::<[u8; 16]>(), 1_u64..5, 0_usize..3), 0..30),
    ) -> (Shape, ManifestNo) {
        let size = ByteCount(size * SECTOR_BYTES);
        let node = NodeId([1; 16]);
        let opening = Opening { epoch: Epoch(1), no: ManifestNo(1), node };
        let mut shape = empty_shape(name, size, cluster_size, opening);
        let mut no = ManifestNo(1);
        for step in steps {
            no = no.next();
            let change = next_change(&shape, no, step);
            shape.apply(no, &change).unwrap();
        }
        (shape, no)
    }
}

fn empty_shape(
    name: String,
    size: ByteCount,
    cluster_size: ClusterSize,
    opening: Opening,
) -> Shape {
    Shape {
        name,
        size,
        cluster_size,
        sco_size: ByteCount(1 << 20),
        last_seq: Seq(0),
        last_sco: ScoSeq(0),
        last_tlog: TlogNo(0),
        origins: vec![],
        runs: vec![],
        tlogs: vec![],
        openings: vec![opening],
    }
}

/// A change that the shape must accept.
fn next_change(shape: &Shape, no: ManifestNo, step: (u8, [u8; 16], u64, usize)) -> ShapeChange {
    let (what, id, n, merged) = step;
    let epoch = shape.epoch();
    match what {
        0 => ShapeChange::Opened(Opening { epoch: Epoch(epoch.0 + n), no, node: NodeId(id) }),
        1 => ShapeChange::Resized(shape.size + ByteCount(n * SECTOR_BYTES)),
        2 if !shape.tlogs.is_empty() => {
            let merged = &shape.runs[shape.runs.len().saturating_sub(merged)..];
            let replaced: Vec<_> = merged.iter().map(|run| run.no).collect();
            let last_tlog = shape.tlogs[shape.tlogs.len() / 2].no;
            let first_tlog = *shape.covered_by(&replaced, last_tlog).unwrap().start();
            let run = RunRef {
                no: RunNo(no.0),
                epoch,
                first_tlog,
                last_tlog,
                object_bytes: n,
                entry_count: n,
            };
            ShapeChange::Compacted { run, replaced }
        }
        _ => {
            let first_sco = ScoSeq(shape.last_sco.0 + n);
            let last_sco = ScoSeq(first_sco.0 + n);
            let no = shape.last_tlog.next();
            let tlog = TlogRef { no, epoch, first_sco, last_sco, object_bytes: n << 20 };
            let origins = vec![Origin { first_sco, volume: VolumeId(id), epoch }];
            ShapeChange::Published { tlog, last_seq: Seq(shape.last_seq.0 + n), origins }
        }
    }
}

prop_compose! {
    fn manifest()(
        volume in volume(),
        node in any::<[u8; 16]>(),
        (shape, no) in shape(),
        steps in vec((0_u8..4, any::<[u8; 16]>(), 1_u64..5, 0_usize..3), 0..4),
        whole in any::<bool>(),
    ) -> Manifest {
        let (node, epoch) = (NodeId(node), shape.epoch());
        if whole {
            return Manifest { volume, no, epoch, node, body: Body::Checkpoint(shape) };
        }
        let no = no.next();
        let mut changes: Vec<_> = steps.into_iter().map(|step| next_change(&shape, no, step)).collect();
        for change in &mut changes {
            if let ShapeChange::Opened(opening) = change {
                *opening = Opening { epoch, no, node };
            }
        }
        Manifest { volume, no, epoch, node, body: Body::Delta(changes) }
    }
}

/// Cuts the value short at every length, and flips every bit of it.
fn sees_all_damage<T>(bytes: &[u8], decode: impl Fn(&[u8]) -> Result<T>) {
    assert!(decode(bytes).is_ok());
    for len in 0..bytes.len() {
        let kind = decode(&bytes[..len]).err().map(|fault| fault.kind);
        assert_eq!(kind, Some(Kind::Corrupt), "cut to {len} bytes");
    }
    let mut damaged = bytes.to_vec();
    for bit in 0..bytes.len() * 8 {
        damaged[bit / 8] ^= 1 << (bit % 8);
        let kind = decode(&damaged).err().map(|fault| fault.kind);
        assert_eq!(kind, Some(Kind::Corrupt), "bit {bit} flipped");
        damaged[bit / 8] ^= 1 << (bit % 8);
    }
}

fn block(encode: impl FnOnce(&mut [u8; BLOCK_BYTES])) -> [u8; BLOCK_BYTES] {
    // Whatever was in the buffer before must not show.
    let mut block = [0xa5; BLOCK_BYTES];
    encode(&mut block);
    block
}

proptest! {
    #[test]
    fn a_footer_is_decoded_as_encoded(footer in footer()) {
        let bytes = footer.encode();
        prop_assert_eq!(&ScoFooter::decode(&bytes)?, &footer);
        let trailer = ScoTrailer::decode(&bytes)?;
        prop_assert_eq!(trailer.footer_bytes as usize + TRAILER_BYTES, bytes.len());
        prop_assert_eq!((trailer.id, trailer.volume), (footer.id, footer.volume));
        prop_assert_eq!(footer.crcs().len(), footer.cluster_count as usize);
    }

    #[test]
    fn a_tlog_is_decoded_as_encoded(tlog in tlog()) {
        prop_assert_eq!(Tlog::decode(&tlog.encode())?, tlog);
    }

    #[test]
    fn a_record_is_decoded_as_encoded(record in record()) {
        let bytes = block(|out| record.encode(out).unwrap());
        prop_assert_eq!(RecordHeader::decode(&bytes)?, record);
    }

    #[test]
    fn a_segment_header_is_decoded_as_encoded(segment in segment()) {
        prop_assert_eq!(SegmentHeader::decode(&block(|out| segment.encode(out)))?, segment);
    }

    #[test]
    fn a_manifest_is_decoded_as_encoded(manifest in manifest()) {
        prop_assert_eq!(Manifest::decode(&manifest.encode())?, manifest);
    }

    #[test]
    fn every_shape_that_came_about_is_sound((shape, _) in shape()) {
        shape.check()?;
    }

    #[test]
    fn hostile_bytes_are_refused(bytes in vec(any::<u8>(), 0..200)) {
        prop_assert!(ScoFooter::decode(&bytes).is_err());
        prop_assert!(Tlog::decode(&bytes).is_err());
        prop_assert!(Manifest::decode(&bytes).is_err());
        prop_assert!(RecordHeader::decode(&bytes).is_err());
        prop_assert!(SegmentHeader::decode(&bytes).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn no_damage_goes_unseen(
        footer in footer(), tlog in tlog(), record in record(), segment in segment(), manifest in manifest(),
    ) {
        sees_all_damage(&footer.encode(), ScoFooter::decode);
        sees_all_damage(&tlog.encode(), Tlog::decode);
        sees_all_damage(&manifest.encode(), Manifest::decode);
        sees_all_damage(&block(|out| record.encode(out).unwrap()), RecordHeader::decode);
        sees_all_damage(&block(|out| segment.encode(out)), SegmentHeader::decode);
    }
}
