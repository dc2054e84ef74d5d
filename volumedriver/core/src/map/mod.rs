//! The map of one volume: cluster address -> [`Mapping`].
//!
//! Two layers. The **overlay** holds what was accepted but is in no published manifest yet; the **base** is exactly the map of
//! the last published manifest, so that what is persisted of it is never ahead (INV-5). A change enters the overlay with
//! [`Map::set`] and moves to the base with [`Map::publish`], in log order. The base is paged ([`PAGE_CLUSTERS`]); pages are
//! loaded on demand ([`Missing`], [`Map::install`]), written back ([`Map::take_dirty`], [`Map::persisted`]) and evicted
//! ([`Map::evict`]).
//!
//! Costs: a lookup is two array steps per layer; memory is 16 bytes for a page that is one run and 8 bytes a cluster at
//! most; range changes of holes and zeroes cost per chunk (512 pages), never per cluster.

mod base;
mod cells;
pub mod checkpoint;
mod dirty;
pub mod merge;
mod overlay;
mod page;
#[cfg(test)]
mod tests;
mod word;

use std::collections::BTreeSet;

use crate::fault::{Fault, Result};
use crate::format::{Change, ChangeKind};
use crate::units::{
    ClusterAddr, ClusterCount, Location, Mapping, PAGE_CLUSTERS, PageNo, ScoSeq, Seq,
};

use base::{Base, CHUNK, CHUNK_PAGES, Fill, chunk_of, within};
use overlay::Overlay;
use word::{ABSENT, continues};

pub use crate::format::run::MapExtent;
pub use dirty::DirtyBatch;
pub use page::Page;

/// Most pages one [`Missing`] names.
pub const MAX_MISSING: usize = 1024;

/// Base pages that must be loaded (and [`Map::install`]ed) first; at most [`MAX_MISSING`], in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    pub pages: Vec<PageNo>,
}

/// See the module's head.
pub struct Map {
    size: ClusterCount,
    overlay: Overlay,
    base: Base,
    loads: Loads,
}

/// Pages are being loaded from outside since this moment; [`Map::end_load`] takes it back.
#[must_use]
#[derive(Debug)]
pub struct Loading(u64);

/// What was published while pages were being loaded: those that come in late may be out of date.
#[derive(Default)]
struct Loads {
    under_way: u64,
    /// Publications since the first load that is under way began.
    clock: u64,
    /// Pages (first, end) changed, and when.
    changed: Vec<(u64, u64, u64)>,
}

/// Changes told apart while pages are being loaded; more count as one change of everything.
const MAX_CHANGED: usize = 4096;

impl Loads {
    fn note(&mut self, start: u64, end: u64) {
        if self.under_way == 0 || start == end {
            return;
        }
        self.clock += 1;
        if self.changed.len() >= MAX_CHANGED {
            self.changed.clear();
            self.changed.push((0, u64::MAX, self.clock));
            return;
        }
        let (first, last) = (start / PAGE_CLUSTERS, (end - 1) / PAGE_CLUSTERS);
        self.changed.push((first, last + 1, self.clock));
    }

    fn is_stale(&self, page: u64, since: &Loading) -> bool {
        let touched =
            |(first, end, at): &(u64, u64, u64)| *at > since.0 && (*first..*end).contains(&page);
        self.changed.iter().any(touched)
    }
}

impl Map {
    /// A new volume: everything is a hole, nothing to load.
    #[must_use]
    pub fn new_empty(size: ClusterCount) -> Self {
        Self::new(size, Fill::Hole)
    }

    /// An existing volume: every page must be loaded (from the page store or from runs) before use.
    #[must_use]
    pub fn new_unloaded(size: ClusterCount) -> Self {
        Self::new(size, Fill::Unloaded)
    }

    fn new(size: ClusterCount, fill: Fill) -> Self {
        let chunks = chunks_of(size);
        let (overlay, base) = (Overlay::new(chunks), Base::new(chunks, fill));
        Self { size, overlay, base, loads: Loads::default() }
    }

    #[must_use]
    pub fn size(&self) -> ClusterCount {
        self.size
    }

    /// Grows to `size` (never shrinks); the new area is a hole and loaded.
    pub fn grow(&mut self, size: ClusterCount) {
        if size <= self.size {
            return;
        }
        self.base.grow(pages_of(self.size), pages_of(size));
        self.overlay.grow(chunks_of(size));
        self.size = size;
    }

    /// Visits what the newest view says of the range: extents in order, continuing ones joined.
    ///
    /// # Errors
    /// The pages that are needed and not loaded; then nothing was visited.
    pub fn lookup(
        &mut self,
        addr: ClusterAddr,
        count: ClusterCount,
        visit: &mut dyn FnMut(MapExtent),
    ) -> Result<(), Missing> {
        let (start, end) = self.checked(addr, count);
        let pages = self.missing_in(start, end);
        if !pages.is_empty() {
            return Err(Missing { pages });
        }
        let mut joiner = Joiner { pending: None, visit };
        let mut at = start;
        while at < end {
            at = self.visit_piece(at, end, &mut joiner);
        }
        joiner.flush();
        Ok(())
    }

    /// What the newest view says of one cluster.
    ///
    /// # Errors
    /// The page that is needed and not loaded.
    #[inline]
    pub fn lookup_one(&mut self, addr: ClusterAddr) -> Result<Mapping, Missing> {
        assert!(addr.0 < self.size.0, "cluster {addr} is past the end");
        let (page, at) = (addr.0 / PAGE_CLUSTERS, (addr.0 % PAGE_CLUSTERS) as u16);
        let mut word = self.overlay.word(page, at);
        if word == ABSENT {
            word = self.base.word(page, at);
            if word == ABSENT {
                return Err(missing_page(page));
            }
        }
        Ok(word::mapping(word::plain(word)))
    }

    /// A change was accepted: the newest view shows it. Never needs pages. `mapping` is that of the first cluster.
    pub fn set(&mut self, addr: ClusterAddr, count: ClusterCount, mapping: Mapping, seq: Seq) {
        let (start, end) = self.checked(addr, count);
        assert_fits(mapping, count);
        self.overlay.set(start, end - start, word::of_change(mapping, seq));
    }

    /// Whether changes that come from outside (a TLog, an SCO footer, a journal) lie in the volume; every other verb takes that
    /// for granted.
    ///
    /// # Errors
    /// `Corrupt`, naming the change.
    pub fn check(&self, changes: &[Change]) -> Result<()> {
        let past = |change: &&Change| {
            let end = change.addr.0.checked_add(change.count.0);
            end.is_none_or(|end| end > self.size.0)
        };
        match changes.iter().find(past) {
            None => Ok(()),
            Some(Change { seq, addr, count, .. }) => Err(Fault::corrupt(format!(
                "change {seq} covers {count} clusters from {addr}, the volume has {}",
                self.size
            ))),
        }
    }

    /// Pages that must be loaded before [`Map::publish`] of these changes, at most `limit`, in order. A change that covers a
    /// page needs none.
    #[must_use]
    pub fn missing_for(&self, changes: &[Change], limit: usize) -> Vec<PageNo> {
        let mut pages = BTreeSet::new();
        for change in changes {
            let (start, end) = self.checked(change.addr, change.count);
            // Only the first and the last page can be partial.
            let edges = [start / PAGE_CLUSTERS, end.saturating_sub(1) / PAGE_CLUSTERS];
            for page in edges {
                let whole = start <= page * PAGE_CLUSTERS && end >= (page + 1) * PAGE_CLUSTERS;
                if start < end && !whole && pages.len() < limit && !self.base.loaded(page) {
                    pages.insert(PageNo(page));
                }
            }
        }
        pages.into_iter().collect()
    }

    /// The changes of SCO `sco` have become part of the published manifest: they move to the base, in order. Overlay entries
    /// that still stem from them disappear; newer ones stay. The changes of an SCO may come in several calls, so that not all
    /// the pages of a large one must be loaded at a time.
    ///
    /// # Panics
    /// When a page of [`Map::missing_for`] was not loaded.
    pub fn publish(&mut self, sco: ScoSeq, changes: &[Change]) {
        for change in changes {
            let (start, end) = self.checked(change.addr, change.count);
            let mapping = mapping_of(sco, &change.kind);
            assert_fits(mapping, change.count);
            self.loads.note(start, end);
            self.base.write(start, end - start, mapping.to_word());
            self.overlay.clear(start, end - start, word::of_change(mapping, change.seq));
        }
    }

    /// Pages are about to be asked for outside.
    pub fn begin_load(&mut self) -> Loading {
        self.loads.under_way += 1;
        Loading(self.loads.clock)
    }

    /// They came, or will not come.
    pub fn end_load(&mut self, _: Loading) {
        self.loads.under_way -= 1;
        if self.loads.under_way == 0 {
            self.loads = Loads::default();
        }
    }

    /// Installs a loaded page; ignored when the page is loaded already, or was changed since it was asked for.
    pub fn install(&mut self, page: PageNo, content: Page, since: &Loading) {
        assert!(page.0 < pages_of(self.size), "map page {page} is past the end");
        if !self.loads.is_stale(page.0, since) {
            self.base.install(page, content.0, 0);
        }
    }

    /// As [`Map::install`], for a page that the page store lacks or has damaged: it is dirty.
    pub fn install_rebuilt(&mut self, page: PageNo, content: Page, since: &Loading) {
        assert!(page.0 < pages_of(self.size), "map page {page} is past the end");
        if !self.loads.is_stale(page.0, since) {
            self.base.install(page, content.0, base::DIRTY);
        }
    }

    /// Whether a page of the base is in memory.
    #[must_use]
    pub fn is_loaded(&self, page: PageNo) -> bool {
        self.base.loaded(page.0)
    }

    /// Pages the page store does not hold yet: dirty or being written.
    #[must_use]
    pub fn dirty_pages(&self) -> u64 {
        self.base.unclean
    }

    /// Dirty pages and hole ranges for the page store, at most `limit` of both together. Pages being written are left out, so
    /// the batch may be empty while [`Map::dirty_pages`] is not 0.
    pub fn take_dirty(&mut self, limit: usize) -> DirtyBatch {
        self.base.take_dirty(limit)
    }

    /// The page store has the batch: its pages are clean, unless changed since.
    pub fn persisted(&mut self, batch: DirtyBatch) {
        self.base.end_writing(&batch, 0);
    }

    /// The page store failed to take the batch: its pages are dirty again.
    pub fn not_persisted(&mut self, batch: DirtyBatch) {
        self.base.end_writing(&batch, base::DIRTY);
    }

    /// Evicts clean pages, roughly the least recently used first, until [`Map::memory_bytes`] is at most `budget` or nothing
    /// is left to evict. Returns the bytes freed.
    pub fn evict(&mut self, budget: u64) -> u64 {
        self.base.evict(budget.saturating_sub(self.overlay.memory_bytes()))
    }

    /// Heap bytes of both layers, with the allocator's own estimated.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.base.memory_bytes() + self.overlay.memory_bytes()
    }

    /// Clusters the overlay maps to a location.
    #[must_use]
    pub fn overlay_clusters(&self) -> u64 {
        self.overlay.data
    }

    /// Whether every change was published.
    #[must_use]
    pub fn overlay_is_empty(&self) -> bool {
        self.overlay.is_empty()
    }

    fn checked(&self, addr: ClusterAddr, count: ClusterCount) -> (u64, u64) {
        let end = addr.0.checked_add(count.0).filter(|end| *end <= self.size.0);
        let end = end.unwrap_or_else(|| panic!("clusters {addr}+{count} reach past the end"));
        (addr.0, end)
    }

    fn missing_in(&self, start: u64, end: u64) -> Vec<PageNo> {
        let mut missing = Vec::new();
        let mut at = start;
        while at < end && missing.len() < MAX_MISSING {
            let page = at / PAGE_CLUSTERS;
            if let Some(next) = self.uniform_until(at) {
                at = next.1;
                continue;
            }
            let next = ((page + 1) * PAGE_CLUSTERS).min(end);
            if !self.base.loaded(page) {
                let mut needed = false;
                let (from, to) = (page_offset(page, at), page_offset(page, next));
                self.overlay.view(page).each(from, to, &mut |_, _, word| needed |= word == ABSENT);
                if needed {
                    missing.push(PageNo(page));
                }
            }
            at = next;
        }
        missing
    }

    /// Visits from `at` to the end of its page, or of its chunk when that is uniform; returns where that is.
    fn visit_piece(&mut self, at: u64, end: u64, joiner: &mut Joiner<'_>) -> u64 {
        if let Some((word, next)) = self.uniform_until(at) {
            let next = next.min(end);
            joiner.push(at, next - at, word);
            return next;
        }
        let page = at / PAGE_CLUSTERS;
        let next = ((page + 1) * PAGE_CLUSTERS).min(end);
        let first = page * PAGE_CLUSTERS;
        let base = &mut self.base;
        let view = self.overlay.view(page);
        view.each(page_offset(page, at), page_offset(page, next), &mut |from, to, word| {
            if word == ABSENT {
                base.each(page, from, to, &mut |from, to, word| {
                    joiner.push(first + u64::from(from), u64::from(to - from), word);
                });
            } else {
                joiner.push(first + u64::from(from), u64::from(to - from), word::plain(word));
            }
        });
        next
    }

    /// The word and the end of the chunk of `at`, when the newest view of the chunk is one loaded word.
    fn uniform_until(&self, at: u64) -> Option<(u64, u64)> {
        let c = chunk_of(at / PAGE_CLUSTERS);
        let word = match self.overlay.bare(c)? {
            ABSENT => self.base.uniform_word(c)?,
            cover => word::plain(cover),
        };
        Some((word, (at / CHUNK + 1) * CHUNK))
    }
}

/// Out of the way of the lookup that finds its page.
#[cold]
fn missing_page(page: u64) -> Missing {
    Missing { pages: vec![PageNo(page)] }
}

/// Joins runs that continue each other before they are visited.
struct Joiner<'a> {
    pending: Option<(u64, u64, u64)>,
    visit: &'a mut dyn FnMut(MapExtent),
}

impl Joiner<'_> {
    fn push(&mut self, addr: u64, count: u64, word: u64) {
        if let Some((_, length, first)) = &mut self.pending
            && continues(*first, *length, word)
        {
            *length += count;
            return;
        }
        self.flush();
        self.pending = Some((addr, count, word));
    }

    fn flush(&mut self) {
        if let Some((addr, count, word)) = self.pending.take() {
            let (addr, count) = (ClusterAddr(addr), ClusterCount(count));
            (self.visit)(MapExtent { addr, count, mapping: word::mapping(word) });
        }
    }
}

/// The mapping of the first cluster of a change that belongs to SCO `sco`.
#[must_use]
pub fn mapping_of(sco: ScoSeq, kind: &ChangeKind) -> Mapping {
    match kind {
        ChangeKind::Data { first_index, .. } => Mapping::At(Location { sco, index: *first_index }),
        ChangeKind::Hole => Mapping::Hole,
        ChangeKind::Zero => Mapping::Zero,
    }
}

fn assert_fits(mapping: Mapping, count: ClusterCount) {
    if let Mapping::At(Location { sco, index }) = mapping {
        let end = u64::from(index) + count.0;
        assert!(end <= u64::from(Location::MAX_CLUSTERS), "SCO {sco} has no cluster {end}");
    }
}

fn page_offset(page: u64, cluster: u64) -> u16 {
    within(cluster - page * PAGE_CLUSTERS)
}

fn pages_of(size: ClusterCount) -> u64 {
    size.0.div_ceil(PAGE_CLUSTERS)
}

fn chunks_of(size: ClusterCount) -> usize {
    usize::try_from(pages_of(size).div_ceil(CHUNK_PAGES)).expect("chunks fit memory")
}
