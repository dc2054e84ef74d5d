//! The base layer: the map as of the last published manifest (INV-5), paged, partly loaded.
//!
//! 512 pages of 512 clusters are a chunk (1 GiB of 4 KiB clusters). A chunk that is all hole, all zero or not loaded at all
//! takes 16 bytes; any other has a table of its pages. Each page carries three flags: dirty (changed since it was last taken
//! for writing), writing (taken, not confirmed), used (looked at since the eviction clock passed). Only a page neither dirty
//! nor being written may be evicted.

use std::collections::BTreeSet;

use crate::units::{PAGE_CLUSTERS, PageNo};

use super::cells::{ALLOC_OVERHEAD, Cells};
use super::word::{ABSENT, HOLE, PAGE, ZERO, nth};

/// Pages in a chunk.
pub(super) const CHUNK_PAGES: u64 = 512;
/// Clusters in a chunk.
pub(super) const CHUNK: u64 = CHUNK_PAGES * PAGE_CLUSTERS;

pub(super) const DIRTY: u8 = 1;
pub(super) const WRITING: u8 = 2;
pub(super) const USED: u8 = 4;
pub(super) const UNCLEAN: u8 = DIRTY | WRITING;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fill {
    Unloaded,
    Hole,
    Zero,
}

impl Fill {
    #[inline]
    pub(super) fn word(self) -> Option<u64> {
        match self {
            Self::Unloaded => None,
            Self::Hole => Some(HOLE),
            Self::Zero => Some(ZERO),
        }
    }
    fn cells(self) -> Cells<HOLE> {
        self.word().map_or(Cells::Blank, Cells::uniform)
    }
}

pub(super) enum Chunk {
    Uniform { fill: Fill, flags: u8 },
    Table(Box<Table>),
}

pub(super) struct Table {
    pub(super) pages: [Cells<HOLE>; CHUNK_PAGES as usize],
    pub(super) flags: [u8; CHUNK_PAGES as usize],
    /// Pages with [`DIRTY`], and pages with [`WRITING`].
    pub(super) dirty: u16,
    pub(super) writing: u16,
}

const TABLE_BYTES: u64 = size_of::<Table>() as u64 + ALLOC_OVERHEAD;

pub(super) struct Base {
    pub(super) chunks: Vec<Chunk>,
    /// Heap bytes of tables and pages.
    pub(super) memory: u64,
    /// Pages dirty or being written.
    pub(super) unclean: u64,
    /// Chunks with a dirty page.
    pub(super) dirty_chunks: BTreeSet<usize>,
    /// Where the eviction clock goes on.
    pub(super) hand: usize,
}

#[inline]
pub(super) fn chunk_of(page: u64) -> usize {
    usize::try_from(page / CHUNK_PAGES).expect("chunks fit memory")
}
#[inline]
pub(super) fn slot_of(page: u64) -> usize {
    usize::try_from(page % CHUNK_PAGES).expect("less than 512")
}

impl Base {
    pub(super) fn new(chunk_count: usize, fill: Fill) -> Self {
        let chunks = (0..chunk_count).map(|_| Chunk::Uniform { fill, flags: 0 }).collect();
        Self { chunks, memory: 0, unclean: 0, dirty_chunks: BTreeSet::new(), hand: 0 }
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        self.memory + (self.chunks.capacity() * size_of::<Chunk>()) as u64
    }

    /// From `old_pages` to `pages` pages; the new ones are holes and loaded.
    pub(super) fn grow(&mut self, old_pages: u64, pages: u64) {
        let boundary = old_pages.next_multiple_of(CHUNK_PAGES);
        if old_pages < boundary && old_pages < pages {
            let c = chunk_of(old_pages);
            if !matches!(self.chunks[c], Chunk::Uniform { fill: Fill::Hole, .. }) {
                self.table(c);
                for page in old_pages..boundary {
                    self.put_page(page, Cells::uniform(HOLE), 0);
                }
            }
        }
        let count = usize::try_from(pages.div_ceil(CHUNK_PAGES)).expect("chunks fit memory");
        let hole = || Chunk::Uniform { fill: Fill::Hole, flags: 0 };
        self.chunks.resize_with(count.max(self.chunks.len()), hole);
    }

    /// The page if it is loaded, without marking it used.
    #[inline]
    pub(super) fn loaded(&self, page: u64) -> bool {
        match &self.chunks[chunk_of(page)] {
            Chunk::Uniform { fill, .. } => *fill != Fill::Unloaded,
            Chunk::Table(table) => !table.pages[slot_of(page)].is_blank(),
        }
    }

    /// The word of cluster `at` of `page`; [`ABSENT`] when the page is not loaded.
    #[inline]
    pub(super) fn word(&mut self, page: u64, at: u16) -> u64 {
        match &mut self.chunks[chunk_of(page)] {
            Chunk::Table(table) => {
                let slot = slot_of(page);
                // Written only when it changes, so that the line of pages that are only read stays clean.
                if table.flags[slot] & USED == 0 {
                    table.flags[slot] |= USED;
                }
                table.pages[slot].word_at(at)
            }
            Chunk::Uniform { fill, .. } => fill.word().unwrap_or(ABSENT),
        }
    }

    /// The word of a loaded chunk that is uniform.
    pub(super) fn uniform_word(&self, c: usize) -> Option<u64> {
        match &self.chunks[c] {
            Chunk::Uniform { fill, .. } => fill.word(),
            Chunk::Table(_) => None,
        }
    }

    /// Visits the runs of `from..to` of a loaded page.
    pub(super) fn each(
        &mut self,
        page: u64,
        from: u16,
        to: u16,
        visit: &mut impl FnMut(u16, u16, u64),
    ) {
        match &mut self.chunks[chunk_of(page)] {
            Chunk::Uniform { fill, .. } => {
                visit(from, to, fill.word().expect("pages were loaded before they are visited"));
            }
            Chunk::Table(table) => {
                let slot = slot_of(page);
                assert!(!table.pages[slot].is_blank(), "pages were loaded before they are visited");
                table.flags[slot] |= USED;
                table.pages[slot].each(from, to, visit);
            }
        }
    }

    /// Makes `count` clusters from `addr` the run that begins with `word`, and their pages dirty.
    pub(super) fn write(&mut self, addr: u64, count: u64, word: u64) {
        let (mut at, end) = (addr, addr + count);
        while at < end {
            let value = nth(word, at - addr);
            let chunk_end = (at / CHUNK + 1) * CHUNK;
            if at.is_multiple_of(CHUNK)
                && end >= chunk_end
                && self.fill_chunk(chunk_of(at / PAGE_CLUSTERS), value)
            {
                at = chunk_end;
                continue;
            }
            let page = at / PAGE_CLUSTERS;
            let page_end = ((page + 1) * PAGE_CLUSTERS).min(end);
            let start = within(at - page * PAGE_CLUSTERS);
            self.write_page(page, start, start + within(page_end - at), value);
            at = page_end;
        }
    }

    /// Makes a whole chunk uniform and dirty; `false` when it must be done page by page.
    fn fill_chunk(&mut self, c: usize, word: u64) -> bool {
        let fill = match word {
            HOLE => Fill::Hole,
            ZERO => Fill::Zero,
            _ => return false,
        };
        let flags = match &self.chunks[c] {
            Chunk::Uniform { fill: same, .. } if *same == fill => return true,
            Chunk::Uniform { flags, .. } => *flags,
            // Some of its pages are being written: their confirmation must find them.
            Chunk::Table(table) if table.writing > 0 => return false,
            Chunk::Table(_) => {
                self.drop_table(c, Fill::Unloaded);
                0
            }
        };
        if flags & UNCLEAN == 0 {
            self.unclean += CHUNK_PAGES;
        }
        self.chunks[c] = Chunk::Uniform { fill, flags: flags | DIRTY };
        self.dirty_chunks.insert(c);
        true
    }

    /// Replaces a chunk's table by a clean uniform fill.
    pub(super) fn drop_table(&mut self, c: usize, fill: Fill) {
        let Chunk::Table(table) = &self.chunks[c] else { return };
        let heap: u64 = table.pages.iter().map(Cells::heap_bytes).sum();
        let unclean = table.flags.iter().filter(|flags| **flags & UNCLEAN != 0).count();
        self.memory -= heap + TABLE_BYTES;
        self.unclean -= unclean as u64;
        self.dirty_chunks.remove(&c);
        self.chunks[c] = Chunk::Uniform { fill, flags: 0 };
    }

    fn write_page(&mut self, page: u64, start: u16, end: u16, word: u64) {
        let c = chunk_of(page);
        if let Chunk::Uniform { fill, .. } = &self.chunks[c]
            && fill.word() == Some(word)
        {
            return;
        }
        let table = self.table(c);
        let cells = &mut table.pages[slot_of(page)];
        let before = cells.heap_bytes();
        let whole = start == 0 && end == PAGE;
        assert!(whole || !cells.is_blank(), "map page {page} was not loaded before it was changed");
        cells.replace(start, end, word);
        let after = cells.heap_bytes();
        self.memory = self.memory + after - before;
        self.mark(page, DIRTY | USED, 0);
    }

    /// Puts content and flags in place of a clean page of a chunk that has a table.
    pub(super) fn put_page(&mut self, page: u64, content: Cells<HOLE>, flags: u8) {
        let table = self.table(chunk_of(page));
        let slot = slot_of(page);
        let before = table.pages[slot].heap_bytes();
        let after = content.heap_bytes();
        table.pages[slot] = content;
        self.memory = self.memory + after - before;
        self.mark(page, flags, 0);
    }

    /// Installs a loaded page with these flags; one that is loaded already stays.
    pub(super) fn install(&mut self, page: PageNo, content: Cells<HOLE>, flags: u8) {
        if !self.loaded(page.0) {
            self.put_page(page.0, content, USED | flags);
        }
    }

    /// The table of a chunk, made from its uniform fill if need be.
    pub(super) fn table(&mut self, c: usize) -> &mut Table {
        if let Chunk::Uniform { fill, flags } = &self.chunks[c] {
            let (fill, flags) = (*fill, *flags);
            let counted = |bit: u8| if flags & bit == 0 { 0 } else { CHUNK_PAGES as u16 };
            let table = Table {
                pages: std::array::from_fn(|_| fill.cells()),
                flags: [flags; CHUNK_PAGES as usize],
                dirty: counted(DIRTY),
                writing: counted(WRITING),
            };
            self.memory += TABLE_BYTES;
            self.chunks[c] = Chunk::Table(Box::new(table));
        }
        match &mut self.chunks[c] {
            Chunk::Table(table) => table,
            Chunk::Uniform { .. } => unreachable!("a table was put here just now"),
        }
    }

    /// Sets and clears flags of a page of a chunk with a table, and keeps the counts.
    pub(super) fn mark(&mut self, page: u64, set: u8, clear: u8) {
        let (c, slot) = (chunk_of(page), slot_of(page));
        let Chunk::Table(table) = &mut self.chunks[c] else { return };
        let old = table.flags[slot];
        let new = old & !clear | set;
        table.flags[slot] = new;
        let bit = |flags: u8, bit: u8| u16::from(flags & bit != 0);
        table.writing = table.writing + bit(new, WRITING) - bit(old, WRITING);
        table.dirty = table.dirty + bit(new, DIRTY) - bit(old, DIRTY);
        let unclean = |flags| u64::from(bit(flags, UNCLEAN));
        self.unclean = self.unclean + unclean(new) - unclean(old);
        if (old ^ new) & DIRTY != 0 {
            if table.dirty > 0 {
                self.dirty_chunks.insert(c);
            } else {
                self.dirty_chunks.remove(&c);
            }
        }
    }

    /// Evicts clean pages, those not used since the clock last passed first, until `memory_bytes` is at most `budget` or
    /// nothing is left to evict. Returns the bytes freed.
    pub(super) fn evict(&mut self, budget: u64) -> u64 {
        let before = self.memory_bytes();
        // Two rounds: the first may do no more than take away the used flags.
        for _ in 0..self.chunks.len() * 2 {
            if self.memory_bytes() <= budget {
                break;
            }
            self.hand = if self.hand + 1 < self.chunks.len() { self.hand + 1 } else { 0 };
            self.pass(self.hand, budget);
        }
        before - self.memory_bytes()
    }

    /// (unclean, memory_bytes) by counting.
    #[cfg(test)]
    pub(super) fn counted(&self) -> (u64, u64) {
        let mut unclean = 0;
        let mut memory = (self.chunks.capacity() * size_of::<Chunk>()) as u64;
        for (c, chunk) in self.chunks.iter().enumerate() {
            let dirty = match chunk {
                Chunk::Uniform { flags, .. } => {
                    unclean += if flags & UNCLEAN == 0 { 0 } else { CHUNK_PAGES };
                    flags & DIRTY != 0
                }
                Chunk::Table(table) => {
                    let with =
                        |bits| table.flags.iter().filter(|flags| **flags & bits != 0).count();
                    unclean += with(UNCLEAN) as u64;
                    assert_eq!(with(WRITING), usize::from(table.writing));
                    assert_eq!(with(DIRTY), usize::from(table.dirty));
                    memory += TABLE_BYTES + table.pages.iter().map(Cells::heap_bytes).sum::<u64>();
                    table.dirty > 0
                }
            };
            assert_eq!(self.dirty_chunks.contains(&c), dirty);
        }
        (unclean, memory)
    }

    /// The clock passes a chunk: unused clean pages go, used ones lose their flag, a table with nothing left goes too.
    fn pass(&mut self, c: usize, budget: u64) {
        let fixed = (self.chunks.capacity() * size_of::<Chunk>()) as u64;
        let Chunk::Table(table) = &mut self.chunks[c] else { return };
        let mut idle = true;
        for (cells, flags) in table.pages.iter_mut().zip(&mut table.flags) {
            if *flags & UNCLEAN != 0 {
                idle = false;
                continue;
            }
            if *flags & USED != 0 {
                *flags &= !USED;
                idle = false;
                continue;
            }
            let bytes = cells.heap_bytes();
            if bytes > 0 && self.memory + fixed > budget {
                *cells = Cells::Blank;
                self.memory -= bytes;
            }
        }
        let small = table.pages.iter().all(|cells| cells.heap_bytes() == 0);
        if idle && small && self.memory + fixed > budget {
            let hole = table.pages.iter().all(|cells| cells.uniform_word() == Some(HOLE));
            self.drop_table(c, if hole { Fill::Hole } else { Fill::Unloaded });
        }
    }
}

#[inline]
pub(super) fn within(clusters: u64) -> u16 {
    u16::try_from(clusters).expect("an offset within a page")
}
