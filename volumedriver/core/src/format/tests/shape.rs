//! Each rule of a shape, broken once.

use super::super::manifest::check_volume_name;
use super::*;

const NO: ManifestNo = ManifestNo(9);

/// TLogs 1..=6 published, of which run 4 covers 1..=2 and run 6 covers 3..=4.
fn shape() -> Shape {
    let node = NodeId([1; 16]);
    let opening = Opening { epoch: Epoch(2), no: ManifestNo(1), node };
    let mut shape = empty_shape("v".to_owned(), ByteCount(1 << 30), ClusterSize::DEFAULT, opening);
    for no in 1..=6 {
        let tlog = tlog_ref(no);
        let origins = if no == 1 { vec![origin(1, 2)] } else { vec![] };
        let last_seq = Seq(no * 100);
        shape.apply(ManifestNo(1), &ShapeChange::Published { tlog, last_seq, origins }).unwrap();
    }
    shape.apply(ManifestNo(4), &compacted(4, 1, 2, &[])).unwrap();
    shape.apply(ManifestNo(6), &compacted(6, 3, 4, &[])).unwrap();
    shape.check().unwrap();
    shape
}

/// TLog `no` lists SCOs `10 no` to `10 no + 4`.
fn tlog_ref(no: u64) -> TlogRef {
    let (first_sco, last_sco) = (ScoSeq(no * 10), ScoSeq(no * 10 + 4));
    TlogRef { no: TlogNo(no), epoch: Epoch(2), first_sco, last_sco, object_bytes: 1 }
}

fn origin(first_sco: u64, epoch: u64) -> Origin {
    Origin { first_sco: ScoSeq(first_sco * 10), volume: VolumeId([1; 16]), epoch: Epoch(epoch) }
}

fn run_ref(no: u64, first: u64, last: u64) -> RunRef {
    let (first_tlog, last_tlog) = (TlogNo(first), TlogNo(last));
    RunRef {
        no: RunNo(no),
        epoch: Epoch(2),
        first_tlog,
        last_tlog,
        object_bytes: 1,
        entry_count: 1,
    }
}

fn compacted(no: u64, first: u64, last: u64, replaced: &[u64]) -> ShapeChange {
    ShapeChange::Compacted {
        run: run_ref(no, first, last),
        replaced: replaced.iter().copied().map(RunNo).collect(),
    }
}

#[track_caller]
fn refuses(change: ShapeChange, says: &str) {
    let before = shape();
    let mut after = before.clone();
    let fault = after.apply(NO, &change).unwrap_err();
    assert_eq!(fault.kind, Kind::Invalid);
    assert!(fault.message.contains(says), "{fault}");
    assert_eq!(after, before);
}

#[test]
fn openings() {
    let opening = Opening { epoch: Epoch(3), no: NO, node: NodeId([2; 16]) };
    refuses(
        ShapeChange::Opened(Opening { no: ManifestNo(8), ..opening }),
        "not the opening manifest",
    );
    refuses(ShapeChange::Opened(Opening { epoch: Epoch(2), ..opening }), "epoch 2 follows epoch 2");
    refuses(ShapeChange::Opened(Opening { epoch: Epoch(u64::MAX), ..opening }), "follows epoch 2");
    let mut shape = shape();
    shape.apply(NO, &ShapeChange::Opened(opening)).unwrap();
    assert_eq!(shape.epoch(), Epoch(3));
    let again = Opening { epoch: Epoch(4), ..opening };
    assert!(shape.apply(NO, &ShapeChange::Opened(again)).is_err());
}

#[test]
fn sizes() {
    refuses(ShapeChange::Resized(ByteCount((1 << 30) - 512)), "cannot shrink");
    refuses(ShapeChange::Resized(ByteCount((1 << 30) + 1)), "not a multiple of 512");
    refuses(ShapeChange::Resized(ByteCount(MAX_VOLUME_BYTES + 512)), "not a multiple");
    refuses(ShapeChange::ScoSizeSet(ByteCount(0)), "SCO size 0");
    refuses(ShapeChange::ScoSizeSet(ByteCount(4097)), "SCO size 4097");
    refuses(ShapeChange::ScoSizeSet(ByteCount((128 << 20) + 4096)), "SCO size");
    let mut shape = shape();
    shape.apply(NO, &ShapeChange::Resized(ByteCount(MAX_VOLUME_BYTES))).unwrap();
    shape.apply(NO, &ShapeChange::ScoSizeSet(ByteCount(128 << 20))).unwrap();
    assert_eq!((shape.size.0, shape.sco_size.0), (MAX_VOLUME_BYTES, 128 << 20));
}

#[test]
fn publications() {
    let publish =
        |tlog, last_seq, origins| ShapeChange::Published { tlog, last_seq: Seq(last_seq), origins };
    refuses(publish(tlog_ref(8), 700, vec![]), "TLog 8 follows TLog 6");
    refuses(publish(tlog_ref(6), 700, vec![]), "TLog 6 follows TLog 6");
    refuses(publish(TlogRef { epoch: Epoch(3), ..tlog_ref(7) }, 700, vec![]), "of epoch 3");
    refuses(publish(TlogRef { first_sco: ScoSeq(64), ..tlog_ref(7) }, 700, vec![]), "after SCO 64");
    refuses(publish(TlogRef { last_sco: ScoSeq(69), ..tlog_ref(7) }, 700, vec![]), "SCOs 70 to 69");
    refuses(
        publish(TlogRef { last_sco: ScoSeq(1 << 47), ..tlog_ref(7) }, 700, vec![]),
        "SCOs 70 to",
    );
    refuses(publish(tlog_ref(7), 599, vec![]), "change 599 of TLog 7 follows change 600");
    refuses(publish(tlog_ref(7), u64::MAX, vec![]), "of TLog 7 follows change 600");
    refuses(publish(tlog_ref(7), 700, vec![origin(8, 2)]), "out of order");
    refuses(publish(tlog_ref(7), 700, vec![origin(7, 1)]), "out of order");
    refuses(publish(tlog_ref(7), 700, vec![origin(7, 2), origin(7, 2)]), "out of order");
    let mut shape = shape();
    shape.apply(NO, &publish(tlog_ref(7), 600, vec![origin(7, 3)])).unwrap();
    assert_eq!(
        (shape.last_tlog, shape.last_sco, shape.last_seq),
        (TlogNo(7), ScoSeq(74), Seq(600))
    );
    let epochs = [9, 10, 69, 70, 1000].map(|sco| shape.origin_of(ScoSeq(sco)).map(|o| o.epoch.0));
    assert_eq!(epochs, [None, Some(2), Some(2), Some(3), Some(3)]);
}

#[test]
fn the_first_publication_names_its_origin() {
    let opening = Opening { epoch: Epoch(2), no: ManifestNo(1), node: NodeId([1; 16]) };
    let mut shape = empty_shape("v".to_owned(), ByteCount(1 << 30), ClusterSize::DEFAULT, opening);
    let nameless = ShapeChange::Published { tlog: tlog_ref(1), last_seq: Seq(1), origins: vec![] };
    assert!(shape.apply(NO, &nameless).unwrap_err().message.contains("has no origin"));
}

#[test]
fn compactions() {
    refuses(compacted(9, 4, 5, &[]), "covers TLogs 4 on, not 5 on");
    refuses(compacted(9, 5, 7, &[]), "ends with TLog 7");
    refuses(compacted(9, 5, 4, &[]), "ends with TLog 4");
    refuses(compacted(9, 1, 4, &[6, 4]), "not neighbours");
    refuses(compacted(9, 1, 4, &[5]), "not neighbours");
    refuses(compacted(9, 1, 3, &[4]), "ends with TLog 3");
    refuses(compacted(10, 5, 5, &[]), "later manifest");
    refuses(compacted(6, 5, 5, &[]), "a run 6 already");
    refuses(compacted(6, 3, 5, &[6]), "a run 6 already");
    let run = RunRef { epoch: Epoch(3), ..run_ref(9, 5, 5) };
    refuses(ShapeChange::Compacted { run, replaced: vec![] }, "of epoch 3");
}

#[test]
fn a_compaction_takes_the_place_of_what_it_covers() {
    // (first, last, replaced) -> runs and TLogs left
    type Case = (u64, u64, &'static [u64], &'static [u64], &'static [u64]);
    let cases: [Case; 5] = [
        (5, 5, &[], &[4, 6, 9], &[6]),
        (1, 2, &[4], &[9, 6], &[5, 6]),
        (1, 4, &[4, 6], &[9], &[5, 6]),
        (3, 6, &[6], &[4, 9], &[]),
        (1, 6, &[4, 6], &[9], &[]),
    ];
    for (first, last, replaced, runs, tlogs) in cases {
        let mut shape = shape();
        shape.apply(NO, &compacted(9, first, last, replaced)).unwrap();
        shape.check().unwrap();
        assert_eq!(shape.runs.iter().map(|run| run.no.0).collect::<Vec<_>>(), runs);
        assert_eq!(shape.tlogs.iter().map(|tlog| tlog.no.0).collect::<Vec<_>>(), tlogs);
    }
}

#[test]
fn a_checkpoint_that_breaks_a_rule_is_refused() {
    type Case = (fn(&mut Shape), &'static str);
    let spoilt: [Case; 14] = [
        (|s| s.name = "a/b".to_owned(), "'/'"),
        (|s| s.size = ByteCount(0), "volume size 0"),
        (|s| s.sco_size = ByteCount(1), "SCO size 1"),
        (|s| s.openings.push(s.openings[0]), "openings"),
        (|s| s.origins[0].first_sco = ScoSeq(0), "origin"),
        (|s| s.origins.push(s.origins[0]), "origins"),
        (|s| s.runs.truncate(1), "where TLog 3 is due"),
        (|s| s.runs[1].no = RunNo(4), "one number"),
        (|s| s.tlogs.truncate(1), "nothing covers TLog 6"),
        (|s| s.last_tlog = TlogNo(7), "nothing covers TLog 7"),
        (|s| s.last_tlog = TlogNo(u64::MAX), "no volume reaches"),
        (|s| s.last_seq = Seq(MAX_NUMBER + 1), "no volume reaches"),
        (|s| s.tlogs[1].first_sco = ScoSeq(54), "after SCO 54"),
        (|s| s.last_sco = ScoSeq(63), "SCO 63 is the last"),
    ];
    let (volume, node) = (VolumeId([1; 16]), NodeId([1; 16]));
    let checkpoint =
        |shape| Manifest { volume, no: NO, epoch: Epoch(2), node, body: Body::Checkpoint(shape) };
    Manifest::decode(&checkpoint(shape()).encode()).unwrap();
    for (spoil, says) in spoilt {
        let mut shape = shape();
        spoil(&mut shape);
        let fault = Manifest::decode(&checkpoint(shape).encode()).unwrap_err();
        assert_eq!(fault.kind, Kind::Corrupt);
        assert!(fault.message.contains(says), "{fault}");
    }
}

#[test]
fn a_manifest_that_contradicts_itself_is_refused() {
    let (volume, node) = (VolumeId([1; 16]), NodeId([1; 16]));
    let of =
        |no, epoch, body| Manifest { volume, no: ManifestNo(no), epoch: Epoch(epoch), node, body };
    let opened = ShapeChange::Opened(Opening { epoch: Epoch(3), no: ManifestNo(8), node });
    let refused = [
        of(0, 1, Body::Delta(vec![])),
        of(2, 0, Body::Delta(vec![])),
        of(1, 1, Body::Delta(vec![])),
        of(9, 3, Body::Delta(vec![opened.clone()])),
        of(8, 2, Body::Delta(vec![opened])),
        of(9, 3, Body::Checkpoint(shape())),
        of(u64::MAX, 1, Body::Delta(vec![])),
        of(2, u64::MAX, Body::Delta(vec![])),
    ];
    for manifest in refused {
        assert_eq!(
            Manifest::decode(&manifest.encode()).unwrap_err().kind,
            Kind::Corrupt,
            "{manifest:?}"
        );
    }
    Manifest::decode(&of(2, 1, Body::Delta(vec![])).encode()).unwrap();
}

#[test]
fn names_of_volumes() {
    for name in ["a", "vm-é1", " ", "..", &"x".repeat(255)] {
        check_volume_name(name).unwrap();
    }
    for name in ["", "a/b", "a\nb", "a\0", "\u{7f}", "\u{85}", &"x".repeat(256), &"é".repeat(128)]
    {
        assert_eq!(check_volume_name(name).unwrap_err().kind, Kind::Invalid, "{name:?}");
    }
}
