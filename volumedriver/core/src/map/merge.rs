//! Merging map runs: of one page for loading it, of whole runs for compaction. Newer extents win.

use crate::format::run::MapExtent;
use crate::units::{ClusterAddr, Mapping, PageNo};

use super::Page;
use super::word::continues;

/// The page as runs give it: the extents of each run that touch it, newest run first.
#[must_use]
pub fn merge(page: PageNo, newest_first: &[Vec<MapExtent>]) -> Page {
    let oldest_first: Vec<_> = newest_first.iter().rev().flatten().copied().collect();
    Page::from_extents(page, &oldest_first)
}

/// What compaction does with holes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holes {
    /// Older runs remain beneath: a hole must go on hiding them.
    Keep,
    /// Nothing remains beneath: a hole says nothing.
    Drop,
}

/// One sorted input and what is left of its current extent.
struct Source<I> {
    head: Option<MapExtent>,
    rest: I,
}

/// Merges sorted runs, newest first, into one sorted run, joined where extents continue each other. Streams: holds one extent
/// of each run.
pub struct MergeRuns<I> {
    sources: Vec<Source<I>>,
    holes: Holes,
    pending: Option<MapExtent>,
}

/// See [`MergeRuns`].
pub fn merge_runs<I: Iterator<Item = MapExtent>>(
    newest_first: Vec<I>,
    holes: Holes,
) -> MergeRuns<I> {
    let source = |mut rest: I| Source { head: rest.next(), rest };
    let sources = newest_first.into_iter().map(source).collect();
    MergeRuns { sources, holes, pending: None }
}

impl<I: Iterator<Item = MapExtent>> MergeRuns<I> {
    /// The next piece on which one run is the newest that says something.
    fn next_piece(&mut self) -> Option<MapExtent> {
        let heads = || self.sources.iter().filter_map(|source| source.head);
        let start = heads().map(|head| head.addr).min()?;
        let newest = heads().position(|head| head.addr == start)?;
        let mut piece = heads().nth(newest)?;
        // A newer run that starts later cuts it short.
        for newer in heads().take(newest) {
            piece.count = piece.count.min(newer.addr - start);
        }
        self.skip_to(piece.addr + piece.count);
        Some(piece)
    }

    /// Drops what all runs say before `addr`.
    fn skip_to(&mut self, addr: ClusterAddr) {
        for source in &mut self.sources {
            while let Some(head) = source.head {
                if head.addr >= addr {
                    break;
                }
                let end = head.addr + head.count;
                source.head = if end <= addr {
                    source.rest.next()
                } else {
                    let mapping = head.mapping.nth((addr - head.addr).0);
                    Some(MapExtent { addr, count: end - addr, mapping })
                };
            }
        }
    }
}

impl<I: Iterator<Item = MapExtent>> Iterator for MergeRuns<I> {
    type Item = MapExtent;

    fn next(&mut self) -> Option<MapExtent> {
        while let Some(piece) = self.next_piece() {
            if self.holes == Holes::Drop && piece.mapping == Mapping::Hole {
                continue;
            }
            match &mut self.pending {
                Some(pending) if follows(pending, &piece) => pending.count += piece.count,
                pending => {
                    if let Some(done) = pending.replace(piece) {
                        return Some(done);
                    }
                }
            }
        }
        self.pending.take()
    }
}

/// Whether `next` continues `extent` in address and mapping.
pub(super) fn follows(extent: &MapExtent, next: &MapExtent) -> bool {
    extent.addr + extent.count == next.addr
        && continues(extent.mapping.to_word(), extent.count.0, next.mapping.to_word())
}
