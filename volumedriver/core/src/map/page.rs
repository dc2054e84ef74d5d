//! The content of one page of the base map, on its way in from the page store or from map runs.

use crate::fault::Result;
use crate::format::page::{PageRun, decode, encode};
use crate::format::run::MapExtent;
use crate::units::{ClusterAddr, ClusterCount, Mapping, PAGE_CLUSTERS, PageNo, ScoSeq};
use bytes::Bytes;

use super::cells::Cells;
use super::word::{HOLE, PAGE, mapping, nth};

/// What the base map says of the 512 clusters of one page.
pub struct Page(pub(super) Cells<HOLE>);

impl Page {
    /// A page of which nothing was ever written.
    #[must_use]
    pub fn hole() -> Self {
        Self(Cells::uniform(HOLE))
    }

    /// From the page store's bytes.
    ///
    /// # Errors
    /// `Corrupt` when they are not what was stored for this page.
    pub fn decode(page: PageNo, bytes: &[u8]) -> Result<Self> {
        let runs = decode(page, bytes)?;
        let words: Vec<_> = runs.iter().map(|run| (run.start, run.mapping.to_word())).collect();
        Ok(Self(Cells::from_runs(&words)))
    }

    /// From extents in any number and order, later ones over earlier ones; what lies outside the page is ignored and what
    /// none covers is a hole.
    #[must_use]
    pub fn from_extents(page: PageNo, extents: &[MapExtent]) -> Self {
        let mut words = Box::new([HOLE; PAGE as usize]);
        let first = ClusterAddr(page.0 * PAGE_CLUSTERS);
        for extent in extents {
            let start = extent.addr.max(first);
            let end = (extent.addr + extent.count).min(first + ClusterCount(PAGE_CLUSTERS));
            if start < end {
                let word = extent.mapping.nth((start - extent.addr).0).to_word();
                let range = usize::from(within(start - first))..usize::from(within(end - first));
                words[range].iter_mut().zip(0..).for_each(|(cell, n)| *cell = nth(word, n));
            }
        }
        Self(Cells::from_words(words))
    }

    /// The page's extents in order; together they cover it.
    #[must_use]
    pub fn extents(&self, page: PageNo) -> Vec<MapExtent> {
        let mut extents = Vec::new();
        self.0.each(0, PAGE, &mut |start, end, word| {
            extents.push(MapExtent {
                addr: ClusterAddr(page.0 * PAGE_CLUSTERS + u64::from(start)),
                count: ClusterCount(u64::from(end - start)),
                mapping: mapping(word),
            });
        });
        extents
    }

    /// The highest SCO position it maps to; 0 when it maps to none.
    #[must_use]
    pub fn last_sco(&self) -> ScoSeq {
        let mut last = ScoSeq(0);
        self.0.each(0, PAGE, &mut |_, _, word| {
            if let Mapping::At(at) = mapping(word) {
                last = last.max(at.sco);
            }
        });
        last
    }

    #[must_use]
    pub fn encode(&self, page: PageNo) -> Bytes {
        encode_cells(page, &self.0)
    }
}

pub(super) fn encode_cells(page: PageNo, cells: &Cells<HOLE>) -> Bytes {
    let mut runs = Vec::new();
    cells.each(0, PAGE, &mut |start, _, word| runs.push(PageRun { start, mapping: mapping(word) }));
    encode(page, &runs)
}

fn within(count: ClusterCount) -> u16 {
    u16::try_from(count.0).expect("an offset within a page")
}
