//! The overlay: changes whose SCO is in no published manifest yet. Always in memory, never evicted, bounded by the write
//! buffer. What it says hides the base; trims and zeroes are entries too (tombstones, see [`super::word`]).
//!
//! A chunk holds a cover (a tombstone of the whole chunk, so that a trim of terabytes costs a few bytes per GiB) and above it
//! the pages that have entries: a sorted list while they are few, a table when they are many.

use super::base::{CHUNK, CHUNK_PAGES, chunk_of, slot_of, within};
use super::cells::{ALLOC_OVERHEAD, Cells};
use super::word::{ABSENT, PAGE, is_location, nth};
use crate::units::PAGE_CLUSTERS;

/// Pages of a chunk kept as a list; more become a table.
const MAX_LISTED: usize = 128;

type Entry = (u16, Cells<ABSENT>);
type PageTable = [Cells<ABSENT>; CHUNK_PAGES as usize];

enum Chunk {
    /// A cover ([`ABSENT`] if none) and no pages.
    Bare(u64),
    Pages(Box<Pages>),
}

struct Pages {
    cover: u64,
    entries: Entries,
}

enum Entries {
    List(Vec<Entry>),
    Table { pages: Box<PageTable>, count: u16 },
}

/// What the overlay says of one page: its entries, and what lies under them.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) cells: Option<&'a Cells<ABSENT>>,
    pub(super) cover: u64,
}

impl View<'_> {
    /// Visits the runs of `from..to`; [`ABSENT`] where the base must be asked.
    pub(super) fn each(self, from: u16, to: u16, visit: &mut impl FnMut(u16, u16, u64)) {
        match self.cells {
            None => visit(from, to, self.cover),
            Some(cells) => cells.each(from, to, &mut |start, end, word| {
                visit(start, end, if word == ABSENT { self.cover } else { word });
            }),
        }
    }
}

pub(super) struct Overlay {
    chunk_count: usize,
    /// Empty while nothing is in the overlay, so that an idle volume pays nothing.
    chunks: Vec<Chunk>,
    /// Chunks that say anything.
    live: usize,
    /// Clusters mapped to a location.
    pub(super) data: u64,
    memory: u64,
}

impl Overlay {
    pub(super) fn new(chunk_count: usize) -> Self {
        Self { chunk_count, chunks: Vec::new(), live: 0, data: 0, memory: 0 }
    }

    pub(super) fn grow(&mut self, chunk_count: usize) {
        self.chunk_count = chunk_count;
        if !self.chunks.is_empty() {
            self.chunks.resize_with(chunk_count, || Chunk::Bare(ABSENT));
        }
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        self.memory + (self.chunks.capacity() * size_of::<Chunk>()) as u64
    }

    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// The cover of a chunk without pages; `None` when it has pages.
    #[inline]
    pub(super) fn bare(&self, c: usize) -> Option<u64> {
        match self.chunks.get(c) {
            None => Some(ABSENT),
            Some(Chunk::Bare(cover)) => Some(*cover),
            Some(Chunk::Pages(_)) => None,
        }
    }

    #[inline]
    pub(super) fn word(&self, page: u64, at: u16) -> u64 {
        let view = self.view(page);
        match view.cells.map_or(ABSENT, |cells| cells.word_at(at)) {
            ABSENT => view.cover,
            word => word,
        }
    }

    #[inline]
    pub(super) fn view(&self, page: u64) -> View<'_> {
        match self.chunks.get(chunk_of(page)) {
            None => View { cells: None, cover: ABSENT },
            Some(Chunk::Bare(cover)) => View { cells: None, cover: *cover },
            Some(Chunk::Pages(pages)) => {
                View { cells: pages.entries.get(page), cover: pages.cover }
            }
        }
    }

    /// Makes `count` clusters from `addr` say the run that begins with `word`.
    pub(super) fn set(&mut self, addr: u64, count: u64, word: u64) {
        if self.chunks.is_empty() {
            self.chunks.resize_with(self.chunk_count, || Chunk::Bare(ABSENT));
        }
        each_piece(addr, count, |c, start, end| {
            if end - start == CHUNK && !is_location(word) {
                self.drop_pages(c);
                self.set_bare(c, word);
            } else {
                self.set_in_chunk(c, start, end, nth(word, start - addr));
            }
        });
    }

    fn set_in_chunk(&mut self, c: usize, start: u64, end: u64, word: u64) {
        let cover = self.bare(c);
        if cover == Some(word) && word != ABSENT {
            return;
        }
        if let Some(cover) = cover {
            self.live += usize::from(cover == ABSENT);
            self.memory += PAGES_BYTES;
            let entries = Entries::List(Vec::new());
            self.chunks[c] = Chunk::Pages(Box::new(Pages { cover, entries }));
        }
        let Chunk::Pages(pages) = &mut self.chunks[c] else { return };
        each_page(start, end, |page, from, to| {
            let heap = pages.entries.heap_bytes();
            let cells = pages.entries.get_or_insert(page);
            let (before, data) = (cells.heap_bytes(), cells.data_in(from, to));
            cells.replace(from, to, nth(word, page * PAGE_CLUSTERS + u64::from(from) - start));
            let (now, added) = (cells.heap_bytes(), cells.data_in(from, to));
            self.memory = self.memory + now - before + pages.entries.heap_bytes() - heap;
            self.data = self.data + added - data;
        });
    }

    /// Gives up what still stems from this very change.
    pub(super) fn clear(&mut self, addr: u64, count: u64, word: u64) {
        if self.chunks.is_empty() {
            return;
        }
        each_piece(addr, count, |c, start, end| {
            self.clear_cover(c, start, end, word);
            self.clear_pages(c, start, end, nth(word, start - addr));
        });
        if self.live == 0 {
            self.chunks = Vec::new();
        }
    }

    /// Gives up the cover, or of a cover that reaches further the part in range.
    fn clear_cover(&mut self, c: usize, start: u64, end: u64, word: u64) {
        let cover = match &self.chunks[c] {
            Chunk::Bare(cover) => *cover,
            Chunk::Pages(pages) => pages.cover,
        };
        if cover != word || word == ABSENT {
            return;
        }
        if end - start == CHUNK {
            match &mut self.chunks[c] {
                Chunk::Bare(_) => self.set_bare(c, ABSENT),
                Chunk::Pages(pages) => pages.cover = ABSENT,
            }
        } else {
            self.push_down(c);
        }
    }

    /// Turns the cover into an entry of each page.
    fn push_down(&mut self, c: usize) {
        let old = std::mem::replace(&mut self.chunks[c], Chunk::Bare(ABSENT));
        let (cover, mut entries) = match old {
            Chunk::Bare(cover) => (cover, Entries::List(Vec::new())),
            Chunk::Pages(pages) => {
                self.memory -= PAGES_BYTES + pages.entries.total_bytes();
                (pages.cover, pages.entries)
            }
        };
        for page in 0..CHUNK_PAGES {
            let cells = entries.get_or_insert(page);
            if cells.is_blank() {
                *cells = Cells::uniform(cover);
            } else {
                cells.underlay(cover);
            }
        }
        self.memory += PAGES_BYTES + entries.total_bytes();
        self.chunks[c] = Chunk::Pages(Box::new(Pages { cover: ABSENT, entries }));
    }

    fn clear_pages(&mut self, c: usize, start: u64, end: u64, word: u64) {
        let Chunk::Pages(pages) = &mut self.chunks[c] else { return };
        each_page(start, end, |page, from, to| {
            let Some(cells) = pages.entries.get_mut(page) else { return };
            let (before, data) = (cells.heap_bytes(), cells.data_in(from, to));
            cells.clear(from, to, nth(word, page * PAGE_CLUSTERS + u64::from(from) - start));
            let blank = cells.is_blank();
            self.memory = self.memory + cells.heap_bytes() - before;
            self.data = self.data + cells.data_in(from, to) - data;
            if blank {
                let heap = pages.entries.heap_bytes();
                pages.entries.removed(page);
                self.memory = self.memory + pages.entries.heap_bytes() - heap;
            }
        });
        if pages.entries.count() == 0 {
            let cover = pages.cover;
            self.drop_pages(c);
            self.set_bare(c, cover);
        }
    }

    /// Throws the pages of a chunk away; its cover stays.
    fn drop_pages(&mut self, c: usize) {
        let Chunk::Pages(pages) = &self.chunks[c] else { return };
        self.memory -= PAGES_BYTES + pages.entries.total_bytes();
        self.data -= pages.entries.data();
        let cover = pages.cover;
        self.live -= usize::from(cover == ABSENT);
        self.chunks[c] = Chunk::Bare(cover);
    }

    /// (data, memory_bytes) by counting.
    #[cfg(test)]
    pub(super) fn counted(&self) -> (u64, u64) {
        let mut data = 0;
        let mut memory = (self.chunks.capacity() * size_of::<Chunk>()) as u64;
        let mut live = 0;
        for chunk in &self.chunks {
            match chunk {
                Chunk::Bare(cover) => live += usize::from(*cover != ABSENT),
                Chunk::Pages(pages) => {
                    live += 1;
                    data += pages.entries.data();
                    memory += PAGES_BYTES + pages.entries.total_bytes();
                    let said = pages.entries.cells().filter(|cells| !cells.is_blank()).count();
                    assert_eq!(said, pages.entries.count());
                }
            }
        }
        assert_eq!(live, self.live);
        (data, memory)
    }

    fn set_bare(&mut self, c: usize, cover: u64) {
        let Chunk::Bare(old) = &mut self.chunks[c] else { return };
        self.live = self.live + usize::from(cover != ABSENT) - usize::from(*old != ABSENT);
        *old = cover;
    }
}

const PAGES_BYTES: u64 = size_of::<Pages>() as u64 + ALLOC_OVERHEAD;

impl Entries {
    #[inline]
    fn get(&self, page: u64) -> Option<&Cells<ABSENT>> {
        let slot = slot_of(page);
        match self {
            Self::List(list) => {
                list.binary_search_by_key(&(slot as u16), |entry| entry.0).ok().map(|i| &list[i].1)
            }
            Self::Table { pages, .. } => Some(&pages[slot]),
        }
    }

    fn get_mut(&mut self, page: u64) -> Option<&mut Cells<ABSENT>> {
        let slot = slot_of(page);
        match self {
            Self::List(list) => {
                let found = list.binary_search_by_key(&(slot as u16), |entry| entry.0).ok();
                found.map(|i| &mut list[i].1)
            }
            Self::Table { pages, .. } => Some(&mut pages[slot]).filter(|cells| !cells.is_blank()),
        }
    }

    /// The page's entry; a blank new one must be given content at once.
    fn get_or_insert(&mut self, page: u64) -> &mut Cells<ABSENT> {
        let slot = slot_of(page);
        if let Self::List(list) = self
            && list.len() >= MAX_LISTED
            && list.binary_search_by_key(&(slot as u16), |entry| entry.0).is_err()
        {
            let mut pages: Box<PageTable> = Box::new(std::array::from_fn(|_| Cells::Blank));
            let count = list.len() as u16;
            for (slot, cells) in list.drain(..) {
                pages[usize::from(slot)] = cells;
            }
            *self = Self::Table { pages, count };
        }
        match self {
            Self::Table { pages, count } => {
                *count += u16::from(pages[slot].is_blank());
                &mut pages[slot]
            }
            Self::List(list) => {
                let i = list.binary_search_by_key(&(slot as u16), |entry| entry.0).unwrap_or_else(
                    |i| {
                        if list.len() == list.capacity() {
                            // Most chunks of a sparse overlay hold one or two pages: grow slowly.
                            list.reserve_exact((list.len() / 2).max(1));
                        }
                        list.insert(i, (slot as u16, Cells::Blank));
                        i
                    },
                );
                &mut list[i].1
            }
        }
    }

    /// The page's entry has become blank: forget it.
    fn removed(&mut self, page: u64) {
        let slot = slot_of(page);
        match self {
            Self::List(list) => {
                if let Ok(i) = list.binary_search_by_key(&(slot as u16), |entry| entry.0) {
                    list.remove(i);
                }
            }
            Self::Table { count, .. } => *count -= 1,
        }
    }

    fn count(&self) -> usize {
        match self {
            Self::List(list) => list.len(),
            Self::Table { count, .. } => usize::from(*count),
        }
    }

    fn cells(&self) -> impl Iterator<Item = &Cells<ABSENT>> {
        let (list, table) = match self {
            Self::List(list) => (list.as_slice(), [].as_slice()),
            Self::Table { pages, .. } => ([].as_slice(), pages.as_slice()),
        };
        list.iter().map(|entry| &entry.1).chain(table)
    }

    /// Without what the pages hold.
    fn heap_bytes(&self) -> u64 {
        match self {
            Self::List(list) if list.capacity() == 0 => 0,
            Self::List(list) => (list.capacity() * size_of::<Entry>()) as u64 + ALLOC_OVERHEAD,
            Self::Table { .. } => size_of::<PageTable>() as u64 + ALLOC_OVERHEAD,
        }
    }

    fn total_bytes(&self) -> u64 {
        self.heap_bytes() + self.cells().map(Cells::heap_bytes).sum::<u64>()
    }

    fn data(&self) -> u64 {
        self.cells().filter(|cells| !cells.is_blank()).map(|cells| cells.data_in(0, PAGE)).sum()
    }
}

/// Cuts a range at chunk borders: (chunk, first cluster, end).
fn each_piece(addr: u64, count: u64, mut visit: impl FnMut(usize, u64, u64)) {
    let (mut at, end) = (addr, addr + count);
    while at < end {
        let next = ((at / CHUNK + 1) * CHUNK).min(end);
        visit(chunk_of(at / PAGE_CLUSTERS), at, next);
        at = next;
    }
}

/// Cuts a range at page borders: (page, first cluster in it, end in it).
pub(super) fn each_page(start: u64, end: u64, mut visit: impl FnMut(u64, u16, u16)) {
    let mut at = start;
    while at < end {
        let page = at / PAGE_CLUSTERS;
        let next = ((page + 1) * PAGE_CLUSTERS).min(end);
        visit(page, within(at - page * PAGE_CLUSTERS), within(next - page * PAGE_CLUSTERS));
        at = next;
    }
}
