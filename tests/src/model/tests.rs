//! The model accepts exactly the prefixes.

use super::{Asked, Fill, Model, OpNo, Place, Span};

const CLUSTER: usize = 8;

fn span(first: usize, count: usize) -> Span {
    Span { first, count }
}

fn write(model: &mut Model, first: usize, count: usize) -> Asked {
    let asked = model.ask(span(first, count), Fill::Data);
    model.done(&asked, None);
    asked
}

fn flush(model: &mut Model, place: Place) {
    let asked = model.ask_sync();
    model.synced(asked, place);
}

/// Sixteen sectors: operation 1 on the first half, 2 on the second, 3 on all but the first two; a flush after `flushed`.
fn three_writes(flushed: OpNo) -> Model {
    let mut model = Model::new(7, 16, CLUSTER);
    for (op, first, count) in [(1, 0, 8), (2, 8, 8), (3, 2, 14)] {
        let _ = write(&mut model, first, count);
        if op == flushed {
            flush(&mut model, Place::Journal);
        }
    }
    model
}

fn content(parts: &[(OpNo, usize)]) -> Vec<OpNo> {
    parts.iter().flat_map(|(op, count)| vec![*op; *count]).collect()
}

#[test]
fn every_prefix_from_the_flush_on_is_accepted() {
    let prefixes = [
        content(&[(0, 16)]),
        content(&[(1, 8), (0, 8)]),
        content(&[(1, 8), (2, 8)]),
        content(&[(1, 2), (3, 14)]),
    ];
    for flushed in 0..=3 {
        for (length, prefix) in prefixes.iter().enumerate() {
            let outcome = three_writes(flushed).recover(prefix.clone(), Place::Journal);
            assert_eq!(
                outcome.is_ok(),
                length >= flushed as usize,
                "{flushed} {length} {outcome:?}"
            );
        }
    }
}

#[test]
fn holes_in_the_middle_and_torn_operations_are_refused() {
    let broken = [
        content(&[(0, 8), (2, 8)]),
        content(&[(0, 2), (3, 14)]),
        content(&[(1, 4), (0, 12)]),
        content(&[(1, 2), (3, 6), (2, 8)]),
        content(&[(1, 8), (2, 7), (9, 1)]),
    ];
    for content in broken {
        assert!(three_writes(0).recover(content.clone(), Place::Journal).is_err(), "{content:?}");
    }
}

#[test]
fn a_journalled_prefix_is_not_owed_when_the_local_directory_is_lost() {
    assert!(three_writes(2).recover(content(&[(0, 16)]), Place::Backend).is_ok());
    let mut model = three_writes(0);
    flush(&mut model, Place::Backend);
    assert!(model.recover(content(&[(1, 8), (2, 8)]), Place::Backend).is_err());
}

#[test]
fn history_goes_on_from_the_prefix_that_was_found() {
    let mut model = three_writes(1);
    model.recover(content(&[(1, 8), (2, 8)]), Place::Journal).unwrap();
    let _ = write(&mut model, 0, 4);
    // Not flushed since: a second crash may take the second write back, but never brings the third one to light.
    assert!(model.recover(content(&[(4, 4), (1, 4), (2, 8)]), Place::Journal).is_ok());
    assert!(model.recover(content(&[(4, 2), (3, 14)]), Place::Journal).is_err());
    assert!(model.recover(content(&[(1, 8), (0, 8)]), Place::Journal).is_ok());
}

#[test]
fn what_is_under_way_is_in_or_out_independently_but_whole() {
    let started = || {
        let mut model = Model::new(7, 16, CLUSTER);
        let _ = model.ask(span(0, 8), Fill::Data);
        let _ = model.ask(span(8, 8), Fill::Data);
        model
    };
    for (first, second, fine) in [(0, 0, true), (1, 0, true), (0, 2, true), (1, 2, true)] {
        let seen = content(&[(first, 8), (second, 8)]);
        assert_eq!(started().recover(seen, Place::Journal).is_ok(), fine);
    }
    assert!(started().recover(content(&[(1, 8), (2, 4), (0, 4)]), Place::Journal).is_err());
}

#[test]
fn a_forced_write_takes_everything_before_it_along() {
    let mut model = Model::new(7, 24, CLUSTER);
    let _ = write(&mut model, 0, 8);
    let slow = model.ask(span(8, 8), Fill::Data);
    let forced = model.ask(span(16, 8), Fill::Data);
    model.done(&forced, Some(Place::Journal));
    let recover = |model: &mut Model, seen: &[OpNo]| {
        let seen = seen.iter().flat_map(|op| [*op; 8]).collect();
        model.recover(seen, Place::Journal)
    };
    assert!(recover(&mut model, &[0, 0, 3]).is_err());
    assert!(recover(&mut model, &[1, 0, 0]).is_err());
    assert!(recover(&mut model, &[1, 0, 3]).is_ok());
    drop(slow);
}

#[test]
fn only_writes_over_256_kib_may_be_cut_and_only_every_256_kib_from_their_first_cluster() {
    let model = Model::new(7, 4096, CLUSTER);
    let counts = |first, count, fill| -> Vec<usize> {
        model.cut(span(first, count), fill).iter().map(|s| s.count).collect()
    };
    assert_eq!(counts(0, 512, Fill::Data), [512]);
    assert_eq!(counts(8, 1024, Fill::Data), [512, 512]);
    assert_eq!(counts(10, 512, Fill::Data), [512]);
    assert_eq!(counts(10, 513, Fill::Data), [510, 3]);
    assert_eq!(counts(3, 2000, Fill::Zeroes), [5, 1992, 3]);
    assert_eq!(counts(3, 2, Fill::Zeroes), [2]);
}

#[test]
fn reads_must_show_the_present_or_a_rival() {
    let mut model = three_writes(0);
    let read = model.ask_read(span(0, 4));
    let bytes = |model: &Model, parts: &[(OpNo, usize, usize)]| -> Vec<u8> {
        parts.iter().flat_map(|(op, first, count)| model.bytes(*op, span(*first, *count))).collect()
    };
    let right = bytes(&model, &[(1, 0, 2), (3, 2, 2)]);
    assert!(model.check_read(&read, &right).is_ok());
    let old = bytes(&model, &[(1, 0, 4)]);
    assert!(model.check_read(&read, &old).is_err());
    let displaced = bytes(&model, &[(1, 1, 2), (3, 2, 2)]);
    assert!(model.check_read(&read, &displaced).unwrap_err().contains("wrong bytes"));
    let rival = model.ask(span(0, 1), Fill::Data);
    let newer = bytes(&model, &[(4, 0, 1), (1, 1, 1), (3, 2, 2)]);
    assert!(model.check_read(&read, &newer).is_ok());
    assert!(model.check_read(&read, &right).is_ok());
    model.done(&rival, None);
    let read = model.ask_read(span(0, 4));
    assert!(model.check_read(&read, &right).is_err());
    let mut flipped = newer;
    flipped[100] ^= 1;
    assert!(model.check_read(&read, &flipped).is_err());
}

#[test]
fn a_race_ends_in_some_order() {
    let mut model = Model::new(7, 16, CLUSTER);
    let racers = [model.ask(span(0, 8), Fill::Data), model.ask(span(4, 8), Fill::Data)];
    let torn = [model.bytes(1, span(0, 5)), model.bytes(2, span(5, 7))].concat();
    assert!(model.settle_race(&racers, 0, &torn).is_err());
    let first_last = [model.bytes(1, span(0, 8)), model.bytes(2, span(8, 4))].concat();
    assert!(model.settle_race(&racers, 0, &first_last).is_ok());
    let read = model.ask_read(span(0, 12));
    assert!(model.check_read(&read, &first_last).is_ok());
}

#[test]
fn an_interrupted_growth_may_have_happened() {
    let mut model = Model::new(7, 8, CLUSTER);
    assert!(model.recover(vec![0; 16], Place::Backend).is_err());
    model.ask_resize(16);
    assert!(model.recover(vec![0; 16], Place::Backend).is_ok());
    model.ask_resize(24);
    assert!(model.recover(vec![0; 16], Place::Backend).is_ok());
    assert_eq!(model.sectors(), 16);
}

#[test]
fn unreadable_sectors_hide_nothing_else() {
    let model = three_writes(3);
    let hidden = content(&[(1, 2), (super::UNREADABLE, 8), (3, 6)]);
    model.check(hidden.clone(), Place::Journal).unwrap();
    let mut lost = hidden.clone();
    lost[15] = 2;
    assert!(model.check(lost, Place::Journal).is_err(), "operation 3 is flushed");
    // The check changed nothing: the next one starts from the same history.
    model.check(hidden, Place::Journal).unwrap();
    assert!(model.check(content(&[(1, 8), (2, 8)]), Place::Journal).is_err());
}

#[test]
fn a_torn_journal_may_lack_flushed_operations_and_still_shows_a_prefix() {
    let prefix = content(&[(1, 8), (2, 8)]);
    assert!(three_writes(3).recover(prefix.clone(), Place::Journal).is_err());
    three_writes(3).recover_torn(prefix.clone()).unwrap();
    assert!(three_writes(3).recover_torn(content(&[(0, 8), (2, 8)])).is_err(), "a hole");
    let mut published = three_writes(3);
    flush(&mut published, Place::Backend);
    assert!(published.recover_torn(prefix).is_err(), "it is on the backend");
}

#[test]
fn operations_of_two_owners_are_told_apart() {
    let mut old = three_writes(3);
    flush(&mut old, Place::Backend);
    let mut new = old.taken_over();
    new.recover(content(&[(1, 2), (3, 14)]), Place::Backend).unwrap();
    let (late, first) = (write(&mut old, 0, 8), write(&mut new, 0, 8));
    assert_ne!(late.op, first.op);
    let read = new.ask_read(span(0, 8));
    let stale = new.bytes(late.op, span(0, 8));
    assert!(new.check_read(&read, &stale).is_err(), "a stale owner's write is visible");
}
