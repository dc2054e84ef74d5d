//! Values from outside whose checksums are right and whose content cannot be: TLogs, map runs, manifests, pages, journals. Each
//! is refused with a typed error or made again from another copy; none makes the engine panic, hang, or show other bytes.

use std::time::Duration;

use bytes::Bytes;
use suite::model::Place;
use suite::sim::engine::State;
use suite::sim::rig::{CLUSTER, End, Live, Rig, quiet_settings};
use suite::world::faults::{Crash, Faults};
use volumedriver_core::fault::Kind;
use volumedriver_core::format::journal::{BLOCK_BYTES, Entry, RecordHeader, Section};
use volumedriver_core::format::manifest::{
    Body, Manifest, Opening, Origin, RunRef, Shape, TlogRef,
};
use volumedriver_core::format::names;
use volumedriver_core::format::run::{MapExtent, RunWriter};
use volumedriver_core::format::segment::SegmentHeader;
use volumedriver_core::format::tlog::{Tlog, TlogSco};
use volumedriver_core::format::{Change, ChangeKind};
use volumedriver_core::map::Page;
use volumedriver_core::units::{
    ByteCount, ClusterAddr, ClusterCount, ClusterCrc, ClusterSize, Epoch, Location, MAX_NUMBER,
    ManifestNo, Mapping, NodeId, PageNo, RunNo, ScoId, ScoSeq, Seq, TlogNo, VolumeId,
};

/// Clusters of the bench's volume.
const CLUSTERS: u64 = (4 << 20) / CLUSTER;

fn rig(seed: u64) -> Rig {
    Rig::new(seed, Faults::default(), quiet_settings())
}

/// A volume with two uploaded SCOs and nothing local.
fn uploaded() -> Rig {
    let mut rig = rig(1);
    rig.live(Crash::DiscardLocal, async |live| {
        for n in 0..2 {
            live.write(n * 64, 64).await;
            live.drain().await;
        }
    })
    .finished();
    rig
}

/// Opens the volume, which must be refused with `Corrupt` and this word.
#[track_caller]
fn refused(rig: &mut Rig, says: &str) {
    match rig.live(Crash::Kill, async |live| live.volume.state()) {
        End::Refused(fault) => {
            assert_eq!(fault.kind, Kind::Corrupt, "{fault}");
            assert!(fault.to_string().contains(says), "no {says:?} in: {fault}");
        }
        other => panic!("it was not refused for {says:?}: {other:?}"),
    }
}

/// Spoils the first TLog of a volume; its length and checksum stay right.
#[track_caller]
fn tlog_refused(spoil: impl Fn(&mut Tlog), says: &str) {
    let mut rig = uploaded();
    let name = rig.objects("tlog/").swap_remove(0);
    let spoilt = |body: Vec<u8>| {
        let mut tlog = Tlog::decode(&body).unwrap();
        spoil(&mut tlog);
        let spoilt = tlog.encode().to_vec();
        assert_eq!(spoilt.len(), body.len());
        Some(spoilt)
    };
    assert!(rig.universe.damage_object(&rig.namespace(), &name, spoilt));
    refused(&mut rig, says);
}

#[test]
fn a_tlog_that_speaks_of_other_clusters_scos_or_volumes_is_refused() {
    let addr = |to: u64| move |t: &mut Tlog| t.scos[0].changes[0].addr = ClusterAddr(to);
    tlog_refused(addr(CLUSTERS - 63), "covers 64 clusters from");
    tlog_refused(addr(CLUSTERS), "covers 64 clusters from");
    tlog_refused(addr((1 << 56) - 64), "covers 64 clusters from");
    let mark = |kind: ChangeKind, addr: u64, count: u64| {
        move |t: &mut Tlog| {
            t.scos[0].cluster_count = 0;
            let change = &mut t.scos[0].changes[0];
            (change.kind, change.addr) = (kind.clone(), ClusterAddr(addr));
            change.count = ClusterCount(count);
        }
    };
    tlog_refused(mark(ChangeKind::Hole, 0, CLUSTERS + 1), "clusters from 0");
    tlog_refused(mark(ChangeKind::Zero, CLUSTERS - 1, 1 << 50), "clusters from 1023");
    tlog_refused(|t| t.volume = VolumeId([9; 16]), "of volume 0909");
    tlog_refused(|t| t.no = TlogNo(7), "it is TLog 7");
    tlog_refused(|t| t.no = TlogNo(u64::MAX), "it is TLog 18446744073709551615");
    tlog_refused(|t| t.epoch = Epoch(u64::MAX), "epoch 18446744073709551615");
    tlog_refused(|t| t.scos[0].id.seq = ScoSeq(Location::MAX_SCO), "with SCOs");
    tlog_refused(|t| t.scos[0].changes[0].seq = Seq(u64::MAX), "no volume reaches");
}

/// A checkpoint needs the TLogs once more: it is put off, and the volume goes on.
#[test]
fn a_hostile_tlog_met_by_a_checkpoint_stops_nothing() {
    let mut rig = rig(2);
    rig.live(Crash::Kill, async |live| {
        live.write(0, 64).await;
        live.drain().await;
        let name = names::tlog(Epoch(2), TlogNo(1));
        let spoil = |body: Vec<u8>| {
            let mut tlog = Tlog::decode(&body).unwrap();
            tlog.scos[0].changes[0].addr = ClusterAddr(1 << 40);
            Some(tlog.encode().to_vec())
        };
        let namespace = names::namespace(live.volume.id());
        assert!(live.universe.damage_object(&namespace, &name, spoil));
        for n in 0..70 {
            live.write(n * 8, 4).await;
            live.drain().await;
        }
        live.read(0, 1024).await;
        assert_eq!(live.volume.state(), State::Running);
    })
    .finished();
    assert!(rig.objects("run/").is_empty(), "a checkpoint was made of a hostile TLog");
    rig.verify(Crash::Kill);
}

// ---- a volume made up from nothing but its objects

fn shape() -> Shape {
    let node = NodeId([1; 16]);
    Shape {
        name: "disk".to_owned(),
        size: ByteCount(4 << 20),
        cluster_size: ClusterSize::DEFAULT,
        sco_size: ByteCount(1 << 20),
        last_seq: Seq(5),
        last_sco: ScoSeq(5),
        last_tlog: TlogNo(1),
        origins: vec![Origin { first_sco: ScoSeq(1), volume: ID, epoch: Epoch(1) }],
        runs: vec![RunRef {
            no: RunNo(1),
            epoch: Epoch(1),
            first_tlog: TlogNo(1),
            last_tlog: TlogNo(1),
            object_bytes: 0,
            entry_count: 0,
        }],
        tlogs: vec![],
        openings: vec![Opening { epoch: Epoch(1), no: ManifestNo(1), node }],
    }
}

/// The bench's volume.
const ID: VolumeId = VolumeId([0x5a; 16]);

fn extent(addr: u64, count: u64, sco: u64, index: u32) -> MapExtent {
    let mapping = Mapping::At(Location { sco: ScoSeq(sco), index });
    MapExtent { addr: ClusterAddr(addr), count: ClusterCount(count), mapping }
}

/// A bench whose volume has just this shape and this run.
fn made_up(mut shape: Shape, writer: RunWriter, extents: &[MapExtent]) -> Rig {
    let rig = rig(3);
    let mut writer = writer;
    extents.iter().for_each(|extent| writer.push(*extent));
    let (parts, length, header) = writer.finish();
    if let Some(run) = shape.runs.first_mut() {
        run.object_bytes = length;
        run.entry_count = run.entry_count.max(header.entry_count);
    }
    let namespace = rig.namespace();
    let run = Bytes::from(parts.concat());
    rig.universe.plant_object(&namespace, &names::run(Epoch(1), RunNo(1)), run);
    let (no, epoch, node) = (ManifestNo(1), Epoch(1), NodeId([1; 16]));
    let manifest = Manifest { volume: ID, no, epoch, node, body: Body::Checkpoint(shape) };
    rig.universe.plant_object(&namespace, &names::manifest(no), manifest.encode());
    rig.already_made();
    rig
}

fn writer() -> RunWriter {
    RunWriter::new(ID, Epoch(1), RunNo(1))
}

#[test]
fn a_run_that_speaks_of_other_clusters_or_scos_is_refused() {
    let sound = [extent(0, 64, 1, 0), extent(1000, 24, 5, 100)];
    let opened = made_up(shape(), writer(), &sound).live(Crash::Kill, async |live| {
        let fault = live.read_raw(0, 1).await.unwrap_err();
        assert_eq!(fault.kind, Kind::Corrupt, "its SCO is missing: {fault}");
        assert_eq!(live.read_raw(500, 1).await.unwrap(), vec![0; CLUSTER as usize]);
    });
    opened.finished();
    let mut past = made_up(shape(), writer(), &[extent(CLUSTERS - 1, 2, 1, 0)]);
    refused(&mut past, "the volume has 1024");
    // Longer than anybody could go through cluster by cluster.
    let hole = |addr, count| MapExtent { mapping: Mapping::Hole, ..extent(addr, count, 1, 0) };
    let mut endless = made_up(shape(), writer(), &[extent(0, 1, 1, 0), hole(1, 1 << 61)]);
    refused(&mut endless, "the volume has 1024");
    let mut far = made_up(shape(), writer(), &[hole((1 << 61) + 5, 1)]);
    refused(&mut far, "the volume has 1024");
    let mut unpublished = made_up(shape(), writer(), &[extent(0, 1, 6, 0)]);
    refused(&mut unpublished, "the last SCO is 5");
    let mut other = made_up(shape(), RunWriter::new(VolumeId([9; 16]), Epoch(1), RunNo(1)), &sound);
    refused(&mut other, "not the run it is named");
    let mut other = made_up(shape(), RunWriter::new(ID, Epoch(1), RunNo(2)), &sound);
    refused(&mut other, "not the run it is named");
    let mut more = shape();
    more.runs[0].entry_count = u64::MAX;
    refused(&mut made_up(more, writer(), &sound), "not the run it is named");
}

#[test]
fn an_sco_that_nobody_wrote_is_an_error_for_its_clusters() {
    let mut nobody = shape();
    nobody.origins[0].first_sco = ScoSeq(3);
    let mut rig = made_up(nobody, writer(), &[extent(0, 1, 1, 0)]);
    rig.live(Crash::Kill, async |live| {
        let fault = live.read_raw(0, 1).await.unwrap_err();
        assert_eq!(fault.kind, Kind::Corrupt, "{fault}");
        live.write_raw(0, 7).await.unwrap();
        assert_eq!(live.read_raw(0, 1).await.unwrap(), vec![7; CLUSTER as usize]);
    })
    .finished();
}

#[test]
fn a_shape_with_numbers_at_their_end_is_refused_or_says_that_it_is_used_up() {
    for spoil in [
        (|s: &mut Shape| s.last_seq = Seq(u64::MAX)) as fn(&mut Shape),
        |s| s.openings[0].epoch = Epoch(u64::MAX),
        |s| s.last_sco = ScoSeq(Location::MAX_SCO + 1),
        |s| s.size = ByteCount(1 << 60),
        |s| s.size = ByteCount(0),
    ] {
        let mut spoilt = shape();
        spoil(&mut spoilt);
        let mut rig = made_up(spoilt, writer(), &[]);
        match rig.live(Crash::Kill, async |live| live.volume.state()) {
            End::Refused(fault) => assert_eq!(fault.kind, Kind::Corrupt, "{fault}"),
            other => panic!("not refused: {other:?}"),
        }
    }
    let mut last = shape();
    (last.last_sco, last.last_seq) = (ScoSeq(Location::MAX_SCO), Seq(MAX_NUMBER));
    made_up(last, writer(), &[extent(0, 1, Location::MAX_SCO, 0)])
        .live(Crash::Kill, async |live| {
            let fault = live.write_raw(3, 1).await.unwrap_err();
            assert_eq!(fault.kind, Kind::NoSpace, "{fault}");
            assert_eq!(live.read_raw(3, 1).await.unwrap(), vec![0; CLUSTER as usize]);
        })
        .finished();
    // One position is left: it is used, and then the volume is used up.
    let mut last = shape();
    last.last_sco = ScoSeq(Location::MAX_SCO - 1);
    made_up(last, writer(), &[])
        .live(Crash::Kill, async |live| {
            live.write_raw(3, 1).await.unwrap();
            live.volume.drain().await.unwrap();
            let fault = live.write_raw(3, 2).await.unwrap_err();
            assert_eq!(fault.kind, Kind::NoSpace, "{fault}");
            assert_eq!(live.read_raw(3, 1).await.unwrap(), vec![1; CLUSTER as usize]);
        })
        .finished();
}

#[test]
fn a_tlog_that_is_shorter_than_its_manifest_says_is_damage() {
    let mut shorter = shape();
    let (first_sco, last_sco) = (ScoSeq(1), ScoSeq(5));
    let (no, epoch) = (TlogNo(1), Epoch(1));
    shorter.runs.clear();
    shorter.tlogs = vec![TlogRef { no, epoch, first_sco, last_sco, object_bytes: 1 << 40 }];
    let mut rig = made_up(shorter, writer(), &[]);
    let (volume, sco) = (ID, ScoId { epoch, seq: ScoSeq(1) });
    let scos = vec![TlogSco { id: sco, cluster_count: 0, object_bytes: 1, changes: vec![] }];
    let body = Tlog { volume, epoch, no, scos }.encode();
    rig.universe.plant_object(&rig.namespace(), &names::tlog(epoch, no), body);
    refused(&mut rig, "cut short");
}

// ---- pages

#[test]
fn a_page_that_maps_to_what_is_not_published_or_is_another_is_made_again() {
    let mut rig = rig(5);
    let id = rig.guest.plan.id;
    for (n, page) in [
        Page::from_extents(PageNo(0), &[extent(0, 512, 4000, 0)]).encode(PageNo(0)),
        Page::from_extents(PageNo(0), &[extent(0, 1, Location::MAX_SCO, 65_535)]).encode(PageNo(0)),
        Page::from_extents(PageNo(1), &[extent(512, 64, 1, 0)]).encode(PageNo(1)),
        Bytes::new(),
        Bytes::from_static(&[0xff; 4096]),
    ]
    .into_iter()
    .enumerate()
    {
        rig.live(Crash::Kill, async |live| {
            assert!(n == 0 || live.guest.recover(&live.volume, Place::Journal).await);
            live.write(n * 64, 64).await;
            live.drain().await;
            live.engine.close().await.unwrap();
        })
        .finished();
        rig.universe.plant_page(id, PageNo(0), page);
        rig.verify(Crash::Kill);
    }
}

// ---- journals

/// One change of the bench's volume, as the journal has it.
fn change(seq: u64, addr: u64, count: u64) -> Change {
    let crcs = vec![ClusterCrc::of(&[0; CLUSTER as usize]); count as usize];
    let kind = ChangeKind::Data { first_index: 0, crcs };
    Change { seq: Seq(seq), addr: ClusterAddr(addr), count: ClusterCount(count), kind }
}

fn entry(sco: u64, change: Change) -> Entry {
    Entry::Change { sco: ScoSeq(sco), change }
}

fn section(epoch: u64, previous_seq: u64, entries: Vec<Entry>) -> Section {
    let (epoch, previous_seq) = (Epoch(epoch), Seq(previous_seq));
    Section { volume: ID, epoch, cluster_size: ClusterSize::DEFAULT, previous_seq, entries }
}

/// A segment with one record of these sections, every cluster of which is zeroes.
fn segment(node: NodeId, sections: Vec<Section>) -> Vec<u8> {
    let (use_no, first_record, segment_bytes) = (77, 500, 1 << 20);
    let header = SegmentHeader { node, shard: 0, use_no, first_record, segment_bytes };
    let mut file = vec![0; segment_bytes as usize];
    let mut block = [0; BLOCK_BYTES];
    header.encode(&mut block);
    file[..BLOCK_BYTES].copy_from_slice(&block);
    let data = |section: &Section| {
        let crcs = section.entries.iter().map(|entry| match entry {
            Entry::Change {
                change: Change { kind: ChangeKind::Data { crcs, .. }, .. }, ..
            } => crcs.len() as u64,
            _ => 0,
        });
        crcs.sum::<u64>() * section.cluster_size.bytes()
    };
    let payload_bytes = sections.iter().map(data).sum::<u64>() as u32;
    let record = RecordHeader {
        segment_use: use_no,
        record: first_record,
        durable_record: first_record - 1,
        payload_bytes,
        sections,
    };
    record.encode(&mut block).unwrap();
    file[BLOCK_BYTES..2 * BLOCK_BYTES].copy_from_slice(&block);
    file
}

/// Opens a volume of epoch 2 that has published nothing, with this record in the journal.
fn with_journal<T>(sections: Vec<Section>, look: impl AsyncFnOnce(&Live) -> T) -> T {
    let mut rig = rig(7);
    rig.live(Crash::Kill, async |live| live.engine.close().await.unwrap()).finished();
    for (name, _) in rig.universe.files(0) {
        rig.universe.plant_file(&name, vec![0; 1 << 20]);
    }
    rig.universe.plant_file("segment-0000", segment(rig.node, sections));
    rig.live(Crash::Kill, look).finished()
}

/// The volume is read-only for this reason, still reads, and lets nobody wait.
#[track_caller]
fn journal_refused(sections: Vec<Section>, says: &str) {
    with_journal(sections, async |live| {
        let State::ReadOnly(why) = live.volume.state() else {
            panic!("for {says:?} it is {:?}", live.volume.state());
        };
        assert!(why.contains(says), "no {says:?} in: {why}");
        live.read_raw(0, 1024).await.unwrap();
        assert!(live.write_raw(0, 1).await.is_err());
        let drained = tokio::time::timeout(Duration::from_secs(60), live.volume.drain()).await;
        drained.expect("draining waits for ever").ok();
    });
}

#[test]
fn a_sound_journal_is_replayed() {
    let sections = vec![section(2, 0, vec![entry(1, change(1, 3, 2))])];
    with_journal(sections, async |live| {
        assert_eq!((live.volume.state(), live.volume.last_seq()), (State::Running, Seq(1)));
        live.volume.drain().await.unwrap();
    });
}

#[test]
fn a_journal_that_no_owner_of_the_volume_can_have_written_is_kept_and_named() {
    let one = |change: Change| vec![section(2, 0, vec![entry(1, change)])];
    journal_refused(one(change(1, CLUSTERS, 1)), "covers 1 clusters from 1024");
    journal_refused(one(change(1, (1 << 56) - 64, 64)), "covers 64 clusters");
    let hole = Change { kind: ChangeKind::Hole, count: ClusterCount(1 << 55), ..change(1, 0, 1) };
    journal_refused(one(hole), "clusters from 0");
    journal_refused(one(change(2, 0, 1)), "goes from change 0 to 2");
    journal_refused(one(change(MAX_NUMBER, 0, 1)), "goes from change 0");
    let ChangeKind::Data { crcs, .. } = change(1, 0, 1).kind else { panic!("a write") };
    let kind = ChangeKind::Data { first_index: 65_535, crcs };
    journal_refused(one(Change { kind, ..change(1, 0, 1) }), "misplaced");
    let of_sco = |sco: u64| vec![section(2, 0, vec![entry(sco, change(1, 0, 1))])];
    journal_refused(of_sco(2), "position 1 must come next");
    journal_refused(of_sco(Location::MAX_SCO), "position 1 must come next");
    let of_epoch = |epoch: u64| vec![section(epoch, 0, vec![entry(1, change(1, 0, 1))])];
    journal_refused(of_epoch(3), "epoch before which 3 began");
    journal_refused(of_epoch(u64::MAX), "epoch before which 3 began");
    let sealed = Entry::Seal { sco: ScoSeq(1), cluster_count: 9 };
    let short = vec![section(2, 0, vec![entry(1, change(1, 0, 1)), sealed])];
    journal_refused(short, "sealed in epoch 2 with 9 clusters and has 1");
}

#[test]
fn a_journal_of_another_cluster_size_is_kept_and_named() {
    let cluster_size = ClusterSize::new(16 << 10).unwrap();
    let crcs = vec![ClusterCrc::of(&vec![0; 16 << 10])];
    let change = Change { kind: ChangeKind::Data { first_index: 0, crcs }, ..change(1, 0, 1) };
    let section = Section { cluster_size, ..section(2, 0, vec![entry(1, change)]) };
    journal_refused(vec![section], "clusters of 16384 bytes, the volume's have 4096");
}

#[test]
fn a_journal_that_says_its_seals_without_changes_is_harmless() {
    let seals = [1, 2, Location::MAX_SCO]
        .map(|sco| Entry::Seal { sco: ScoSeq(sco), cluster_count: Location::MAX_CLUSTERS });
    with_journal(vec![section(2, 0, seals.to_vec())], async |live| {
        assert_eq!(live.volume.state(), State::Running);
        live.write(0, 8).await;
        live.drain().await;
    });
}
