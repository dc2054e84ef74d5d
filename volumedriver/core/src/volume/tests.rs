use super::*;
use crate::fault::Kind;
use crate::format::manifest::Opening;
use crate::units::{NodeId, TlogNo};

const ID: VolumeId = VolumeId([9; 16]);

fn shape() -> Shape {
    Shape {
        name: "t".into(),
        size: ByteCount(64 << 20),
        cluster_size: ClusterSize::DEFAULT,
        sco_size: ByteCount(1 << 20),
        last_seq: Seq(0),
        last_sco: ScoSeq(0),
        last_tlog: TlogNo(0),
        origins: Vec::new(),
        runs: Vec::new(),
        tlogs: Vec::new(),
        openings: [1, 2]
            .map(|n| Opening { epoch: Epoch(n), no: ManifestNo(n), node: NodeId([1; 16]) })
            .to_vec(),
    }
}

/// In its second epoch.
fn volume() -> Volume {
    volume_of(shape())
}

fn volume_of(shape: Shape) -> Volume {
    let map = Map::new_empty(shape.cluster_size.clusters_covering(shape.size));
    Volume::new(ID, shape, ManifestNo(2), map)
}

fn write(volume: &mut Volume, addr: u64, count: u32) -> ScoId {
    if volume.must_seal_for(count) {
        volume.commit_seal();
    }
    let plan = volume.plan_write(ClusterAddr(addr), count);
    let id = plan.sco;
    let crcs: Vec<_> = (0..count).map(|i| ClusterCrc(i + 1)).collect();
    volume.commit_write(plan, &crcs);
    id
}

fn at(volume: &mut Volume, addr: u64) -> Mapping {
    volume.map().lookup_one(ClusterAddr(addr)).expect("loaded")
}

#[test]
fn a_write_is_seen_at_its_place_in_the_open_sco() {
    let mut v = volume();
    write(&mut v, 10, 2);
    write(&mut v, 100, 1);
    assert_eq!(at(&mut v, 11), Mapping::At(Location { sco: ScoSeq(1), index: 1 }));
    assert_eq!(at(&mut v, 100), Mapping::At(Location { sco: ScoSeq(1), index: 2 }));
    assert_eq!(at(&mut v, 12), Mapping::Hole);
    assert_eq!((v.last_seq(), v.open_sco().1), (Seq(2), 3));
}

#[test]
fn who_seals_an_sco_gives_it_its_name() {
    let mut v = volume();
    let change = |seq: u64, first_index: u32| Change {
        seq: Seq(seq),
        addr: ClusterAddr(seq),
        count: ClusterCount(1),
        kind: ChangeKind::Data { first_index, crcs: vec![ClusterCrc(1)] },
    };
    let of_first = |seq: u64| ScoId { epoch: Epoch(1), seq: ScoSeq(seq) };
    // Sealed by the owner before, and by nobody: that one is sealed now, and was perhaps already.
    v.replay(of_first(1), &[change(1, 0)]).unwrap();
    v.commit_seal_of(Epoch(1));
    v.replay(of_first(2), &[change(2, 0)]).unwrap();
    v.commit_seal();
    let names: Vec<_> = v.oldest_sealed(9).map(SealedSco::id).collect();
    assert_eq!(names, [of_first(1), ScoId { epoch: Epoch(2), seq: ScoSeq(2) }]);
}

/// A seal counts clusters: of an SCO sealed earlier a trim may be missing at its end, which is on the backend perhaps.
#[test]
fn where_the_log_ends_nothing_keeps_an_earlier_owners_name() {
    let change = |seq: u64| Change {
        seq: Seq(seq),
        addr: ClusterAddr(seq),
        count: ClusterCount(1),
        kind: ChangeKind::Data { first_index: 0, crcs: vec![ClusterCrc(7)] },
    };
    let id = |seq| ScoId { epoch: Epoch(1), seq: ScoSeq(seq) };
    let names = |v: &Volume| v.oldest_sealed(9).map(|sco| sco.id().epoch.0).collect::<Vec<_>>();
    let mut v = volume();
    v.replay(id(1), &[change(1)]).expect("in order");
    v.commit_seal_of(Epoch(1));
    v.replay(id(2), &[change(2)]).expect("in order");
    v.commit_seal_of(Epoch(1));
    assert!(!v.end_log());
    assert_eq!(names(&v), [1, 2]);
    let mut v = volume();
    v.replay(id(1), &[change(1)]).expect("in order");
    v.commit_seal_of(Epoch(1));
    v.replay(id(2), &[change(2)]).expect("in order");
    assert!(v.end_log());
    assert_eq!(names(&v), [1, 2]);
    assert!(!volume().end_log());
}

#[test]
fn a_full_sco_is_sealed_and_operations_are_never_split() {
    let mut v = volume();
    for i in 0..4 {
        write(&mut v, i * 64, 63);
    }
    assert_eq!(v.sealed_count(), 0);
    let id = write(&mut v, 0, 63);
    assert_eq!((v.sealed_count(), id.seq), (1, ScoSeq(2)));
    let first = v.next_upload(ScoSeq(0)).expect("sealed");
    assert_eq!((first.cluster_count(), first.last_seq()), (252, Some(Seq(4))));
}

#[test]
fn trims_take_no_cluster_and_appear_in_the_footer_in_order() {
    let mut v = volume();
    write(&mut v, 5, 1);
    let plan = v.plan_mark(ClusterAddr(0), ClusterCount(1000), Mark::Hole);
    v.commit_mark(plan);
    write(&mut v, 6, 1);
    v.commit_seal();
    let footer = v.next_upload(ScoSeq(0)).expect("sealed").footer(ID, ClusterSize::DEFAULT);
    footer.check().expect("a footer keeps the rules of its format");
    let kinds: Vec<_> = footer.changes.iter().map(|c| c.kind.clone()).collect();
    assert_eq!(footer.cluster_count, 2);
    assert_eq!(kinds[1], ChangeKind::Hole);
    assert_eq!(kinds[2], ChangeKind::Data { first_index: 1, crcs: vec![ClusterCrc(1)] });
    assert_eq!(
        (at(&mut v, 5), at(&mut v, 6)),
        (Mapping::Hole, Mapping::At(Location { sco: ScoSeq(1), index: 1 }))
    );
}

#[test]
fn publishing_moves_the_watermark_and_keeps_newer_writes() {
    let mut v = volume();
    write(&mut v, 7, 1);
    v.commit_seal();
    write(&mut v, 7, 1);
    let tlog = TlogRef {
        no: TlogNo(1),
        epoch: Epoch(1),
        first_sco: ScoSeq(1),
        last_sco: ScoSeq(1),
        object_bytes: 100,
    };
    let change = v.plan_published(1, tlog);
    v.commit_manifest(ManifestNo(3), &[change]).expect("a rule-abiding change");
    let (seq, changes) = v.oldest_changes().expect("sealed");
    assert_eq!(seq, ScoSeq(1));
    v.commit_published(&changes).expect("sealed");
    assert_eq!((v.shape().last_seq, v.shape().last_sco), (Seq(1), ScoSeq(1)));
    assert_eq!(at(&mut v, 7), Mapping::At(Location { sco: ScoSeq(2), index: 0 }));
    assert!(v.commit_published(&[]).is_err());
}

#[test]
fn replay_takes_only_what_comes_next() {
    let mut v = volume();
    let id = ScoId { epoch: Epoch(1), seq: ScoSeq(1) };
    let change = |seq: u64, addr: u64, first_index: u32| Change {
        seq: Seq(seq),
        addr: ClusterAddr(addr),
        count: ClusterCount(1),
        kind: ChangeKind::Data { first_index, crcs: vec![ClusterCrc(7)] },
    };
    let gap = v.replay(id, &[change(2, 0, 0)]).unwrap_err();
    assert!(gap.message.contains("from change 0 to 2"), "{gap}");
    let mut v = volume();
    assert!(v.replay(ScoId { seq: ScoSeq(2), ..id }, &[change(1, 0, 0)]).is_err());
    let mut v = volume();
    v.replay(id, &[change(1, 3, 0), change(2, 3, 1)]).expect("in order");
    assert_eq!(at(&mut v, 3), Mapping::At(Location { sco: ScoSeq(1), index: 1 }));
}

/// What passes every checksum and cannot be: refused with a word, before anything of it is taken.
#[test]
fn replay_refuses_what_no_earlier_owner_can_have_written() {
    let refused = |id: (u64, u64), change: Change, says: &str| {
        let mut v = volume_of(shape());
        let id = ScoId { epoch: Epoch(id.0), seq: ScoSeq(id.1) };
        let fault = v.replay(id, &[change]).unwrap_err();
        assert_eq!(fault.kind, Kind::Corrupt, "{fault}");
        assert!(fault.message.contains(says), "{fault}");
        assert_eq!((v.last_seq(), v.backlog().0, at(&mut v, 0)), (Seq(0), 0, Mapping::Hole));
    };
    let data = |addr: u64, count: u64, first_index: u32| Change {
        seq: Seq(1),
        addr: ClusterAddr(addr),
        count: ClusterCount(count),
        kind: ChangeKind::Data { first_index, crcs: vec![ClusterCrc(7); count as usize] },
    };
    let last = (64 << 20) / 4096 - 1;
    refused((1, 1), data(last, 2, 0), "covers 2 clusters");
    refused((1, 1), data(u64::MAX, 1, 0), "covers 1 clusters");
    let long = |kind, count| Change { kind, count: ClusterCount(count), ..data(5, 1, 0) };
    refused((1, 1), long(ChangeKind::Hole, u64::MAX), "covers 18446744073709551615 clusters");
    refused((1, 1), long(ChangeKind::Zero, 1 << 50), "covers 1125899906842624 clusters");
    refused((1, 1), data(0, 1, 5), "misplaced");
    refused((1, 1), data(0, 1, 65_535), "misplaced");
    let short = ChangeKind::Data { first_index: 0, crcs: vec![ClusterCrc(7)] };
    refused((1, 1), Change { kind: short, ..data(0, 2, 0) }, "misplaced");
    refused((2, 1), data(0, 1, 0), "epoch before which 2 began");
    refused((u64::MAX, 1), data(0, 1, 0), "epoch before which 2 began");
    refused((1, 0), data(0, 1, 0), "position 1 must come next");
    refused((1, u64::MAX), data(0, 1, 0), "position 1 must come next");
}

#[test]
fn a_volume_without_positions_left_says_so() {
    let used_up = Shape { last_sco: ScoSeq(Location::MAX_SCO), ..shape() };
    let mut v = volume_of(used_up);
    assert!(v.is_used_up());
    let id = ScoId { epoch: Epoch(1), seq: ScoSeq(Location::MAX_SCO + 1) };
    assert_eq!(v.replay(id, &[]).unwrap_err().kind, Kind::Corrupt);
    let v = volume_of(Shape { last_sco: ScoSeq(Location::MAX_SCO - 1), ..shape() });
    assert!(!v.is_used_up());
}

#[test]
#[should_panic(expected = "plans are committed in order")]
fn a_plan_cannot_be_committed_twice_in_a_row_of_another() {
    let mut v = volume();
    let first = v.plan_write(ClusterAddr(0), 1);
    let second = v.plan_write(ClusterAddr(1), 1);
    v.commit_write(first, &[ClusterCrc(1)]);
    v.commit_write(second, &[ClusterCrc(1)]);
}
