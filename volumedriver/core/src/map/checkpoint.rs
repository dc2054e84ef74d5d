//! Checkpoint: what a sequence of TLogs makes of the map, as the sorted extents of one map run.
//!
//! All changes are sorted by address, then swept: at each place the newest change that covers it wins. About four times as fast
//! as keeping an ordered tree of disjoint extents (bench `map/checkpoint`).

use std::collections::BinaryHeap;

use crate::format::run::MapExtent;
use crate::format::tlog::TlogSco;
use crate::units::{ClusterAddr, ClusterCount};

use super::mapping_of;
use super::merge::follows;
use super::word::{mapping, nth};

/// The newest extent of every address the TLogs name, sorted by address, joined where they continue each other. Holes are
/// kept: they hide older runs.
#[must_use]
pub fn collapse<'a>(in_log_order: impl IntoIterator<Item = &'a [TlogSco]>) -> Vec<MapExtent> {
    let mut collapse = Collapse::default();
    in_log_order.into_iter().flatten().for_each(|sco| collapse.add(sco));
    collapse.into_extents().collect()
}

/// One change: clusters `start..end` map to the run that begins with `word`. Orders by age, the newest greatest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Written {
    /// Position in the log.
    order: usize,
    start: u64,
    end: u64,
    word: u64,
}

/// [`collapse`] in steps, for a caller that has other work between them. Takes 32 bytes a change.
#[derive(Default)]
pub struct Collapse {
    changes: Vec<Written>,
}

impl Collapse {
    /// Takes the next SCO in log order.
    pub fn add(&mut self, sco: &TlogSco) {
        for change in sco.changes.iter().filter(|change| change.count.0 > 0) {
            let (order, start) = (self.changes.len(), change.addr.0);
            let end = start.saturating_add(change.count.0);
            let word = mapping_of(sco.id.seq, &change.kind).to_word();
            self.changes.push(Written { order, start, end, word });
        }
    }

    /// Sorts, then gives the extents as they are taken; see [`collapse`].
    pub fn into_extents(mut self) -> impl Iterator<Item = MapExtent> {
        self.changes.sort_unstable_by_key(|change| (change.start, change.order));
        let mut sweep =
            Sweep { ahead: self.changes.into_iter().peekable(), here: BinaryHeap::new(), at: 0 };
        let mut pending = sweep.next();
        std::iter::from_fn(move || {
            let mut extent = pending.take()?;
            for next in sweep.by_ref() {
                if !follows(&extent, &next) {
                    pending = Some(next);
                    break;
                }
                extent.count += next.count;
            }
            Some(extent)
        })
    }
}

/// Goes over the changes by address.
struct Sweep<I: Iterator<Item = Written>> {
    /// Those that start at `at` or later.
    ahead: std::iter::Peekable<I>,
    /// Those that start before, newest first; some may have ended.
    here: BinaryHeap<Written>,
    at: u64,
}

impl<I: Iterator<Item = Written>> Iterator for Sweep<I> {
    type Item = MapExtent;

    /// The next piece on which one change is the newest.
    fn next(&mut self) -> Option<MapExtent> {
        while self.here.peek().is_some_and(|newest| newest.end <= self.at) {
            self.here.pop();
        }
        if self.here.is_empty() {
            self.at = self.ahead.peek()?.start;
        }
        while let Some(change) = self.ahead.next_if(|change| change.start <= self.at) {
            self.here.push(change);
        }
        let newest = *self.here.peek()?;
        let cut = self.ahead.peek().map_or(newest.end, |next| next.start.min(newest.end));
        let addr = ClusterAddr(self.at);
        self.at = cut;
        let count = ClusterCount(cut) - ClusterCount(addr.0);
        let mapping = mapping(nth(newest.word, addr.0 - newest.start));
        Some(MapExtent { addr, count, mapping })
    }
}
