//! Dirty pages of the base on their way to the page store, and the confirmation that they arrived.

use bytes::Bytes;

use crate::units::PageNo;

use super::base::{Base, CHUNK_PAGES, Chunk, DIRTY, Fill, WRITING, chunk_of, slot_of};
use super::page::encode_cells;
use super::word::HOLE;

/// What the page store must write, at once or in parts; a page counts as being written until the batch is handed back to
/// [`Map::persisted`](super::Map::persisted) or [`Map::not_persisted`](super::Map::not_persisted).
///
/// No page is in two batches at a time, so batches may be written in any order.
#[must_use]
#[derive(Debug, Default)]
pub struct DirtyBatch {
    /// Ranges of pages (first, how many) that became holes throughout.
    pub holes: Vec<(PageNo, u64)>,
    /// Encoded pages, see [`format::page`](crate::format::page).
    pub pages: Vec<(PageNo, Bytes)>,
}

impl DirtyBatch {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.holes.is_empty() && self.pages.is_empty()
    }

    fn len(&self) -> usize {
        self.holes.len() + self.pages.len()
    }

    fn add_hole(&mut self, page: u64, count: u64) {
        match self.holes.last_mut() {
            Some((first, length)) if first.0 + *length == page => *length += count,
            _ => self.holes.push((PageNo(page), count)),
        }
    }
}

impl Base {
    pub(super) fn take_dirty(&mut self, limit: usize) -> DirtyBatch {
        let mut batch = DirtyBatch::default();
        let mut from = 0;
        while batch.len() < limit
            && let Some(c) = self.dirty_chunks.range(from..).next().copied()
        {
            self.take_chunk(c, limit, &mut batch);
            from = c + 1;
        }
        batch
    }

    fn take_chunk(&mut self, c: usize, limit: usize, batch: &mut DirtyBatch) {
        let first = c as u64 * CHUNK_PAGES;
        if let Chunk::Uniform { fill: Fill::Hole, flags } = &mut self.chunks[c] {
            if *flags & WRITING == 0 {
                *flags = WRITING;
                self.dirty_chunks.remove(&c);
                batch.add_hole(first, CHUNK_PAGES);
            }
            return;
        }
        self.table(c);
        for page in first..first + CHUNK_PAGES {
            if batch.len() >= limit {
                return;
            }
            self.take_page(page, batch);
        }
    }

    fn take_page(&mut self, page: u64, batch: &mut DirtyBatch) {
        let Chunk::Table(table) = &mut self.chunks[chunk_of(page)] else { return };
        let slot = slot_of(page);
        // A page that is being written waits: two writes of it could arrive in the wrong order.
        if table.flags[slot] & (DIRTY | WRITING) != DIRTY {
            return;
        }
        let cells = &mut table.pages[slot];
        let before = cells.heap_bytes();
        cells.compact();
        self.memory = self.memory + cells.heap_bytes() - before;
        if cells.uniform_word() == Some(HOLE) {
            batch.add_hole(page, 1);
        } else {
            batch.pages.push((PageNo(page), encode_cells(PageNo(page), cells)));
        }
        self.mark(page, WRITING, DIRTY);
    }

    /// Ends the writing of a batch; its pages get `set` (nothing, or dirty again).
    pub(super) fn end_writing(&mut self, batch: &DirtyBatch, set: u8) {
        let pages = batch.pages.iter().map(|(page, _)| (*page, 1));
        for (first, count) in batch.holes.iter().copied().chain(pages) {
            let (mut page, end) = (first.0, first.0 + count);
            while page < end {
                page += self.end_writing_at(page, end, set);
            }
        }
    }

    /// One page, or the rest of a uniform chunk; returns how many pages that were.
    fn end_writing_at(&mut self, page: u64, end: u64, set: u8) -> u64 {
        let c = chunk_of(page);
        let Chunk::Uniform { flags, .. } = &mut self.chunks[c] else {
            self.mark(page, set, WRITING);
            return 1;
        };
        *flags = *flags & !WRITING | set;
        if *flags & DIRTY != 0 {
            self.dirty_chunks.insert(c);
        } else {
            self.unclean -= CHUNK_PAGES;
        }
        ((c as u64 + 1) * CHUNK_PAGES).min(end) - page
    }
}
