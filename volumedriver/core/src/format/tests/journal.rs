//! The journal's builder beside its struct codec, and the check of a payload.

use super::super::change::Mark;
use super::super::journal::{DataEntry, MarkEntry, RecordBuilder, Source, verify_payload};
use super::*;

fn source(volume: u8, previous_seq: u64) -> Source {
    let (volume, previous_seq) = (VolumeId([volume; 16]), Seq(previous_seq));
    Source { volume, epoch: Epoch(3), cluster_size: ClusterSize::DEFAULT, previous_seq }
}

fn write(seq: u64, crcs: &[ClusterCrc]) -> DataEntry<'_> {
    DataEntry { seq: Seq(seq), addr: ClusterAddr(seq * 100), first_index: 0, crcs }
}

fn finish(builder: &mut RecordBuilder) -> RecordHeader {
    let payload_bytes = u32::try_from(builder.payload_bytes()).unwrap();
    let bytes = block(|out| builder.finish(2, 10, 9, payload_bytes, out));
    assert!(builder.is_empty());
    RecordHeader::decode(&bytes).unwrap()
}

/// Pushes single-cluster writes of one volume until the record is full.
fn fill(builder: &mut RecordBuilder) -> u64 {
    let full = (1..).find(|seq| {
        let data = write(*seq, &[ClusterCrc(1)]);
        let fits = builder.fits(&source(1, seq - 1), 1);
        assert_eq!(builder.push_data(source(1, seq - 1), ScoSeq(1), data), fits);
        !fits
    });
    full.unwrap() - 1
}

#[test]
fn a_full_record_holds_a_hundred_operations_and_loses_none() {
    let mut builder = RecordBuilder::new();
    for _ in 0..2 {
        let count = fill(&mut builder);
        assert!((100..=120).contains(&count), "{count}");
        // What did not fit changed nothing.
        assert!(!builder.push_seal(source(2, 0), ScoSeq(9), 1));
        let record = finish(&mut builder);
        assert_eq!(u64::from(record.payload_bytes), count * 4096);
        assert_eq!(record.sections.len(), 1);
        assert_eq!(record.sections[0].entries.len() as u64, count);
    }
}

#[test]
fn the_largest_operation_fits_an_empty_record() {
    let crcs = vec![ClusterCrc(5); MAX_OP_CLUSTERS];
    let mut builder = RecordBuilder::new();
    assert!(builder.push_data(source(1, 0), ScoSeq(1), write(1, &crcs)));
    assert_eq!(finish(&mut builder).payload_bytes, (256 << 10) + 4096);
}

#[test]
fn a_section_begins_where_the_volume_or_epoch_changes() {
    let mut builder = RecordBuilder::new();
    let later = Source { epoch: Epoch(4), ..source(1, 8) };
    let mark = MarkEntry {
        seq: Seq(9),
        addr: ClusterAddr(5),
        count: ClusterCount(1 << 33),
        mark: Mark::Hole,
    };
    assert!(builder.push_data(source(1, 6), ScoSeq(1), write(7, &[ClusterCrc(1)])));
    // Of the same section: its own previous_seq is not noted.
    assert!(builder.push_data(source(1, 7), ScoSeq(1), write(8, &[ClusterCrc(2)])));
    assert!(builder.push_seal(source(2, 1), ScoSeq(4), 0));
    assert!(builder.push_mark(later, ScoSeq(2), mark));
    let record = finish(&mut builder);
    let found: Vec<_> =
        record.sections.iter().map(|s| (s.epoch.0, s.previous_seq.0, s.entries.len())).collect();
    assert_eq!(found, [(3, 6, 2), (3, 1, 1), (4, 8, 1)]);
    assert_eq!(record.payload_bytes, 8192);
}

#[test]
fn an_empty_record_is_one() {
    assert_eq!(finish(&mut RecordBuilder::new()).sections, []);
}

#[test]
#[should_panic = "journalled after"]
fn sequences_never_go_back() {
    let mut builder = RecordBuilder::new();
    assert!(builder.push_data(source(1, 5), ScoSeq(1), write(6, &[ClusterCrc(1)])));
    let _ = builder.push_data(source(1, 6), ScoSeq(1), write(6, &[ClusterCrc(1)]));
}

#[test]
fn a_record_that_contradicts_itself_is_neither_written_nor_read() {
    let mut builder = RecordBuilder::new();
    assert!(builder.push_data(source(1, 6), ScoSeq(1), write(7, &[ClusterCrc(1)])));
    assert!(builder.push_data(source(1, 6), ScoSeq(1), write(8, &[ClusterCrc(2)])));
    let sound = finish(&mut builder);
    let spoilt: [fn(&mut RecordHeader); 6] = [
        |r| r.payload_bytes += 4096,
        |r| r.durable_record = r.record,
        |r| r.sections[0].previous_seq = Seq(7),
        |r| r.sections[0].epoch = Epoch(0),
        |r| r.sections[0].entries.reverse(),
        |r| r.sections[0].entries.push(Entry::Seal { sco: ScoSeq(1), cluster_count: 65_537 }),
    ];
    for spoil in spoilt {
        let mut record = sound.clone();
        spoil(&mut record);
        assert_eq!(record.check().unwrap_err().kind, Kind::Corrupt);
        assert_eq!(record.encode(&mut [0; BLOCK_BYTES]).unwrap_err().kind, Kind::Bug);
    }
    // The same, written by a stranger whose checksum is right: payload_bytes.
    let mut bytes = block(|out| sound.encode(out).unwrap());
    bytes[12 + 25] ^= 1;
    let (covered, crc) = bytes.split_last_chunk_mut::<4>().unwrap();
    *crc = crc32fast::hash(covered).to_le_bytes();
    assert_eq!(RecordHeader::decode(&bytes).unwrap_err().kind, Kind::Corrupt);
}

#[test]
fn bad_clusters_are_named() {
    let clusters: Vec<Vec<u8>> = (0_u8..5).map(|n| vec![n; 4096]).collect();
    let crcs: Vec<_> = clusters.iter().map(|cluster| ClusterCrc::of(cluster)).collect();
    let mut builder = RecordBuilder::new();
    let mark =
        MarkEntry { seq: Seq(2), addr: ClusterAddr(5), count: ClusterCount(1), mark: Mark::Zero };
    assert!(builder.push_data(source(1, 0), ScoSeq(1), write(1, &crcs[..2])));
    assert!(builder.push_mark(source(1, 0), ScoSeq(1), mark));
    assert!(builder.push_data(source(2, 6), ScoSeq(8), write(7, &crcs[2..])));
    let record = finish(&mut builder);
    let mut payload = clusters.concat();
    assert_eq!(verify_payload(&record, &payload), []);
    payload[4096 + 17] ^= 0x10;
    payload.truncate(5 * 4096 - 1);
    let bad = verify_payload(&record, &payload);
    let places: Vec<_> =
        bad.iter().map(|b| (b.position, b.seq.0, b.addr.0, b.sco.0, b.index)).collect();
    assert_eq!(places, [(1, 1, 101, 1, 1), (4, 7, 702, 8, 2)]);
}

#[test]
fn neighbouring_sections_of_one_volume_stay_apart() {
    let mut builder = RecordBuilder::new();
    assert!(builder.push_seal(source(1, 5), ScoSeq(1), 0));
    let mut record = finish(&mut builder);
    record.sections.push(record.sections[0].clone());
    let bytes = block(|out| record.encode(out).unwrap());
    assert_eq!(RecordHeader::decode(&bytes).unwrap(), record);
}
