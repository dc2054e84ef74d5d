//! Loading, persisting and evicting the map's pages.

use volumedriver_core::fault::Result;
use volumedriver_core::map::Page;
use volumedriver_core::units::{PageNo, TlogNo};

use super::Volume;
use crate::metrics::Stage;
use crate::world::{PageBatch, PageStore, World};

/// Dirty pages written in one batch.
const BATCH_PAGES: usize = 1024;

impl<W: World> Volume<W> {
    /// Brings pages of the map's base into memory; a page the store does not have is a hole.
    pub(super) async fn load_pages(&self, wanted: Vec<PageNo>) -> Result<()> {
        let get = self.shared.world.pages().get(self.id, wanted.clone());
        let found = self.staged(Stage::MapLoad, get).await?;
        let budget = self.settings.borrow().map_memory.0;
        let mut core = self.core.borrow_mut();
        // Before the pages come in, so that none of them leaves again before it was looked at.
        if core.map().memory_bytes() > budget {
            core.map().evict(budget - budget / 8);
        }
        for (no, bytes) in wanted.into_iter().zip(found) {
            let content = match bytes {
                Some(bytes) => Page::decode(no, &bytes)
                    .map_err(|f| f.about(format!("page {no} of the map of vDisk {}", self.name)))?,
                None => Page::hole(),
            };
            core.map().install(no, content);
        }
        Ok(())
    }

    /// Writes all dirty pages; afterwards the page store stands for TLog `applied` (INV-5: which is published).
    pub(super) async fn persist_pages(&self, applied: TlogNo) -> Result<()> {
        let mut before = self.applied.get();
        loop {
            let dirty = self.core.borrow_mut().map().take_dirty(BATCH_PAGES);
            let last = self.core.borrow_mut().map().dirty_pages() == 0;
            if last {
                before = applied;
            }
            // Only the last batch moves the mark: replaying TLogs over pages that have them already changes nothing.
            let batch = PageBatch {
                holes: dirty.holes.clone(),
                pages: dirty.pages.clone(),
                applied: before,
            };
            let put = self.shared.world.pages().put(self.id, batch).await;
            if put.is_err() {
                self.core.borrow_mut().map().not_persisted(dirty);
                return put;
            }
            self.core.borrow_mut().map().persisted(dirty);
            if last {
                self.applied.set(applied);
                return Ok(());
            }
        }
    }
}
