//! The bytes of every version ever written, laid out by hand from the layout tables; kept forever.
//!
//! A file holds groups of hexadecimal bytes, `00*36` for 36 times the byte 00, and a comment after `#`.

use super::cache::{CacheEntry, CacheHeader, CachePage, FileState, PAGE_BYTES};
use super::framed::{self, FramedEnd, FramedHead, KeyId, Packing, Seal, StoredFrame};
use super::journal::{BLOCK_BYTES, Entry, RecordHeader, Section};
use super::manifest::{Body, Manifest, Opening, Origin, RunRef, Shape, ShapeChange, TlogRef};
use super::page::{self, PageRun};
use super::run::{MapExtent, RunWriter, Tail, decode_tail};
use super::sco::{ScoFooter, ScoForm, ScoTrailer};
use super::segment::SegmentHeader;
use super::tlog::{Tlog, TlogSco};
use super::{Change, ChangeKind};
use crate::units::*;

fn parse(text: &str) -> Vec<u8> {
    let groups =
        text.lines().filter_map(|line| line.split('#').next()).flat_map(str::split_whitespace);
    let repeated = groups.flat_map(|group| {
        let (byte, times) = group.split_once('*').unwrap_or((group, "1"));
        assert_eq!(byte.len(), 2, "{group:?} is one byte");
        vec![u8::from_str_radix(byte, 16).unwrap(); times.parse().unwrap()]
    });
    repeated.collect()
}

fn id(first: u8) -> [u8; 16] {
    std::array::from_fn(|n| first + n as u8)
}

fn data(seq: u64, addr: u64, count: u64, first_index: u32, crcs: &[u32]) -> Change {
    let crcs = crcs.iter().copied().map(ClusterCrc).collect();
    let (seq, addr, count) = (Seq(seq), ClusterAddr(addr), ClusterCount(count));
    Change { seq, addr, count, kind: ChangeKind::Data { first_index, crcs } }
}

fn mark(seq: u64, addr: u64, count: u64, kind: ChangeKind) -> Change {
    Change { seq: Seq(seq), addr: ClusterAddr(addr), count: ClusterCount(count), kind }
}

#[test]
fn sco_footer() {
    let bytes = parse(include_str!("sco_footer.v1.hex"));
    let footer = ScoFooter {
        volume: VolumeId(id(0)),
        id: ScoId { epoch: Epoch(7), seq: ScoSeq(0x1234) },
        cluster_size: ClusterSize::DEFAULT,
        cluster_count: 3,
        changes: vec![
            data(101, 42, 2, 0, &[0x1122_3344, 0x5566_7788]),
            mark(102, 0x10_0000, 0x2000_0000, ChangeKind::Hole),
            mark(103, 5, 1, ChangeKind::Zero),
            data(110, (1 << 56) - 1, 1, 2, &[0x99aa_bbcc]),
        ],
    };
    assert_eq!(ScoFooter::decode(&bytes).unwrap(), footer);
    assert_eq!(footer.encode(), bytes);
    assert_eq!(ScoTrailer::decode(&bytes).unwrap().footer_bytes, 128);
}

fn framed_head() -> FramedHead {
    let seal =
        Seal { key: KeyId([0xe0, 0xe1, 0xe2, 0xe3, 0xe4, 0xe5, 0xe6, 0xe7]), salt: id(0x80) };
    FramedHead {
        volume: VolumeId(id(0)),
        id: ScoId { epoch: Epoch(7), seq: ScoSeq(0x1234) },
        cluster_size: ClusterSize::new(8192).unwrap(),
        cluster_count: 5,
        packing: Packing::Zstd,
        frame_clusters: 4,
        seal: Some(seal),
    }
}

#[test]
fn sco_in_frames() {
    let bytes = parse(include_str!("sco_framed.v2.hex"));
    let end = FramedEnd::decode(&bytes).unwrap();
    assert_eq!(end.head, framed_head());
    assert_eq!(end.table, parse("c0 ff ee c0 ff ee c0 ff ee 01"));
    assert_eq!(framed_head().encode_end(end.table), bytes);
    let trailer = ScoTrailer::decode(&bytes).unwrap();
    assert_eq!((trailer.form, trailer.footer_bytes), (ScoForm::Framed, 58));
}

#[test]
fn table_of_frames() {
    let bytes = parse(include_str!("sco_table.v2.hex"));
    let crcs: [u32; 5] = std::array::from_fn(|n| 0x1122_3340 + n as u32);
    let changes = vec![data(101, 42, 5, 0, &crcs), mark(102, 0x10_0000, 9, ChangeKind::Hole)];
    let stored = |packing, stored_bytes| StoredFrame { packing, stored_bytes };
    let frames = [stored(Packing::Stored, 0x8010), stored(Packing::Zstd, 0x1234)];
    assert_eq!(framed::encode_table(&frames, &changes), bytes);
    let sco = framed_head().decode_table(&bytes).unwrap();
    assert_eq!((sco.footer.changes, sco.head), (changes, framed_head()));
    assert_eq!(sco.frames.get(0), Some((0..0x8010, Packing::Stored)));
    assert_eq!(sco.frames.get(1), Some((0x8010..0x9244, Packing::Zstd)));
    assert_eq!((sco.frames.get(2), sco.frames.data_bytes()), (None, 0x9244));
}

/// What the cipher is told, as the tables at [`FramedHead`] have it.
#[test]
fn what_is_bound_to_a_frame() {
    let head = framed_head();
    let bound = parse(
        "56 44 53 41  02 00 00 00  00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f
         07 00*7  34 12 00*6  00 20 00 00  05 00 00 00  04 00 00 00
         01 00 00 00  00 20 00 00  02 00 00 00",
    );
    assert_eq!(head.bound(1, Packing::Zstd).as_slice(), bound);
    let mut table = bound;
    table[52..61].copy_from_slice(&parse("ff*4 00*4 02"));
    assert_eq!(head.bound(framed::TABLE_FRAME, Packing::Zstd).as_slice(), table);
    let info = [
        b"volumedriver sco".to_vec(),
        id(0).to_vec(),
        parse("07 00*7 34 12 00*6"),
        id(0x80).to_vec(),
    ];
    assert_eq!(head.key_info(&head.seal.unwrap()).as_slice(), info.concat());
}

#[test]
fn key_marker() {
    let bytes = parse(include_str!("key_marker.v1.hex"));
    let key = framed_head().seal.unwrap().key;
    assert_eq!(framed::decode_key_marker(&bytes).unwrap(), (VolumeId(id(0)), key));
    assert_eq!(framed::encode_key_marker(VolumeId(id(0)), key), bytes);
}

#[test]
fn tlog() {
    let bytes = parse(include_str!("tlog.v1.hex"));
    let tlog = Tlog {
        volume: VolumeId(id(0x10)),
        epoch: Epoch(3),
        no: TlogNo(9),
        scos: vec![
            TlogSco {
                id: ScoId { epoch: Epoch(2), seq: ScoSeq(64) },
                cluster_count: 65,
                object_bytes: 267_712,
                changes: vec![data(1000, 256, 64, 0, &[]), data(1001, (1 << 38) - 1, 1, 64, &[])],
            },
            TlogSco {
                id: ScoId { epoch: Epoch(3), seq: ScoSeq(66) },
                cluster_count: 0,
                object_bytes: 108,
                changes: vec![mark(1002, 0, 1 << 38, ChangeKind::Hole)],
            },
        ],
    };
    assert_eq!(Tlog::decode(&bytes).unwrap(), tlog);
    assert_eq!(tlog.encode(), bytes);
}

#[test]
fn segment() {
    let bytes = parse(include_str!("segment.v1.hex"));
    let header = SegmentHeader {
        node: NodeId(id(0xa0)),
        shard: 1,
        use_no: 5,
        first_record: 0x100_0000_00ff,
        segment_bytes: 64 << 20,
    };
    assert_eq!(SegmentHeader::decode(&bytes).unwrap(), header);
    let mut block = [0xee; BLOCK_BYTES];
    header.encode(&mut block);
    assert_eq!(block.as_slice(), bytes);
}

#[test]
fn journal() {
    let bytes = parse(include_str!("journal.v1.hex"));
    let (first, second, highest) = (ScoSeq(0x1234), ScoSeq(0x1235), ScoSeq((1 << 47) - 1));
    let small = Section {
        volume: VolumeId(id(0)),
        epoch: Epoch(7),
        cluster_size: ClusterSize::DEFAULT,
        previous_seq: Seq(100),
        entries: vec![
            Entry::Change { sco: first, change: data(101, 42, 2, 0, &[0x1122_3344, 0x5566_7788]) },
            Entry::Seal { sco: first, cluster_count: 2 },
            Entry::Change {
                sco: second,
                change: mark(102, 0x10_0000, 0x2000_0000, ChangeKind::Hole),
            },
        ],
    };
    let large = Section {
        volume: VolumeId(id(0xf0)),
        epoch: Epoch(1),
        cluster_size: ClusterSize::new(65_536).unwrap(),
        previous_seq: Seq(0),
        entries: vec![
            Entry::Change { sco: highest, change: data(1, 0, 1, 65_535, &[0xaabb_ccdd]) },
            Entry::Change { sco: highest, change: mark(2, 7, 8, ChangeKind::Zero) },
        ],
    };
    let record = RecordHeader {
        segment_use: 5,
        record: 0x100_0000_0100,
        durable_record: 0x100_0000_00ff,
        payload_bytes: 72 << 10,
        sections: vec![small, large],
    };
    assert_eq!(RecordHeader::decode(&bytes).unwrap(), record);
    let mut block = [0xee; BLOCK_BYTES];
    record.encode(&mut block).unwrap();
    assert_eq!(block.as_slice(), bytes);
}

fn opening() -> Opening {
    Opening { epoch: Epoch(4), no: ManifestNo(33), node: NodeId(id(0xa0)) }
}

fn tlog_10() -> TlogRef {
    TlogRef {
        no: TlogNo(10),
        epoch: Epoch(4),
        first_sco: ScoSeq(67),
        last_sco: ScoSeq(69),
        object_bytes: 8192,
    }
}

fn origin() -> Origin {
    Origin { first_sco: ScoSeq(67), volume: VolumeId(id(0)), epoch: Epoch(4) }
}

fn run(no: u64, epoch: u64, last_tlog: u64) -> RunRef {
    RunRef {
        no: RunNo(no),
        epoch: Epoch(epoch),
        first_tlog: TlogNo(1),
        last_tlog: TlogNo(last_tlog),
        object_bytes: 1 << 20,
        entry_count: 200,
    }
}

#[test]
fn manifest_delta() {
    let bytes = parse(include_str!("manifest_delta.v1.hex"));
    let changes = vec![
        ShapeChange::Opened(opening()),
        ShapeChange::Resized(ByteCount(4 << 30)),
        ShapeChange::ScoSizeSet(ByteCount(64 << 20)),
        ShapeChange::Published { tlog: tlog_10(), last_seq: Seq(2000), origins: vec![origin()] },
        ShapeChange::Compacted { run: run(33, 4, 10), replaced: vec![RunNo(5), RunNo(30)] },
    ];
    let manifest = Manifest {
        volume: VolumeId(id(0)),
        no: ManifestNo(33),
        epoch: Epoch(4),
        node: NodeId(id(0xa0)),
        body: Body::Delta(changes),
    };
    assert_eq!(Manifest::decode(&bytes).unwrap(), manifest);
    assert_eq!(manifest.encode(), bytes);
}

#[test]
fn manifest_checkpoint() {
    let bytes = parse(include_str!("manifest_checkpoint.v1.hex"));
    let parent = Origin { first_sco: ScoSeq(1), volume: VolumeId(id(0xf0)), epoch: Epoch(8) };
    let first = Opening { epoch: Epoch(2), no: ManifestNo(1), node: NodeId(id(0xb0)) };
    let shape = Shape {
        name: "vm-é1".to_owned(),
        size: ByteCount(4 << 30),
        cluster_size: ClusterSize::DEFAULT,
        sco_size: ByteCount(64 << 20),
        last_seq: Seq(2000),
        last_sco: ScoSeq(69),
        last_tlog: TlogNo(10),
        origins: vec![parent, origin()],
        runs: vec![run(30, 2, 9)],
        tlogs: vec![tlog_10()],
        openings: vec![first, opening()],
    };
    let manifest = Manifest {
        volume: VolumeId(id(0)),
        no: ManifestNo(34),
        epoch: Epoch(4),
        node: NodeId(id(0xa0)),
        body: Body::Checkpoint(shape),
    };
    assert_eq!(Manifest::decode(&bytes).unwrap(), manifest);
    assert_eq!(manifest.encode(), bytes);
}

fn at(sco: u64, index: u32) -> Mapping {
    Mapping::At(Location { sco: ScoSeq(sco), index })
}

#[test]
fn map_page() {
    let bytes = parse(include_str!("page.v1.hex"));
    let runs = [(0, Mapping::Hole), (5, at(7, 2)), (9, Mapping::Zero)];
    let runs = runs.map(|(start, mapping)| PageRun { start, mapping });
    assert_eq!(page::decode(PageNo(3), &bytes).unwrap(), runs);
    assert_eq!(page::encode(PageNo(3), &runs), bytes);
}

#[test]
fn map_run() {
    let bytes = parse(include_str!("run.v1.hex"));
    let extents = [
        (100, 3, Mapping::Hole),
        (103, 1, at(300, 1000)),
        (104, 2, at(300, 990)),
        (1000, 512, Mapping::Zero),
        (1 << 40, 1, at(299, 5)),
    ];
    let extents = extents.map(|(addr, count, mapping)| {
        let (addr, count) = (ClusterAddr(addr), ClusterCount(count));
        MapExtent { addr, count, mapping }
    });
    let mut writer = RunWriter::new(VolumeId(id(0x10)), Epoch(5), RunNo(9));
    extents.iter().for_each(|extent| writer.push(*extent));
    let (parts, length, header) = writer.finish();
    assert_eq!((parts.concat(), length), (bytes.clone(), bytes.len() as u64));
    let Tail::Index(index) = decode_tail(length, &bytes).unwrap() else {
        panic!("it is all there")
    };
    assert_eq!((&index.header, index.header.entry_count), (&header, 5));
    let [block] = index.blocks.as_slice() else { panic!("one block") };
    assert_eq!(block.bytes, 48..100);
    assert_eq!(block.decode(&bytes[48..100]).unwrap(), extents);
}

#[test]
fn cache_header() {
    let bytes = parse(include_str!("cache_header.v1.hex"));
    let header = CacheHeader {
        node: NodeId(id(0xa0)),
        cluster_size: ClusterSize::DEFAULT,
        region_slots: 256,
        regions: 64,
        state: FileState::Closed { stamp: 0x1122_3344_5566_7788, hand: 63, pages: 5 },
    };
    assert_eq!(CacheHeader::decode(&bytes).unwrap(), header);
    let mut block = [0xee; BLOCK_BYTES];
    header.encode(&mut block);
    assert_eq!(block.as_slice(), bytes);
}

#[test]
fn cache_page() {
    let bytes = parse(include_str!("cache_page.v1.hex"));
    let mut page = CachePage::new(0x1122_3344_5566_7788, 4);
    let entries = [
        (0, id(0), 7, 0x1234, 0xabcd, 0x1122_3344),
        (16_383, id(0x10), 1 << 32, 1, 1, 0x5566_7788),
        (16_384, id(0), 7, (1 << 47) - 1, 0xffff, 0x99aa_bbcc),
    ];
    for (slot, volume, epoch, sco, index, crc) in entries {
        let at = Location { sco: ScoSeq(sco), index };
        let (volume, epoch, crc) = (VolumeId(volume), Epoch(epoch), ClusterCrc(crc));
        assert!(page.push(&CacheEntry { slot, volume, epoch, at, crc }));
    }
    assert_eq!(CachePage::decode(&bytes).unwrap(), page);
    let mut block = [0xee; PAGE_BYTES];
    page.encode(&mut block);
    assert_eq!(block.as_slice(), bytes);
}
