//! Loading, persisting and evicting the map's pages.
//!
//! The page store is derivable: what it lacks, has damaged or cannot give is made again from the backend's runs and TLogs.

use std::cell::RefCell;

use volumedriver_core::fault::{Fault, Result};
use volumedriver_core::map::{Loading, Page};
use volumedriver_core::units::{PageNo, ScoSeq, TlogNo};
use volumedriver_core::volume::Volume as Core;

use super::Volume;
use crate::metrics::Stage;
use crate::world::{PageBatch, PageStore, World};

/// Dirty pages written in one batch.
const BATCH_PAGES: usize = 1024;

/// Pages are on their way while this lives.
struct Load<'a> {
    core: &'a RefCell<Core>,
    since: Option<Loading>,
}

impl<'a> Load<'a> {
    fn begin(core: &'a RefCell<Core>) -> Self {
        let since = Some(core.borrow_mut().map().begin_load());
        Self { core, since }
    }
}

impl Drop for Load<'_> {
    fn drop(&mut self) {
        if let Some(since) = self.since.take() {
            self.core.borrow_mut().map().end_load(since);
        }
    }
}

impl<W: World> Volume<W> {
    /// Brings pages of the map's base into memory; a page the store does not have is a hole. Those that changed meanwhile stay
    /// out: whoever needs them asks again.
    pub(super) async fn load_pages(&self, wanted: Vec<PageNo>) -> Result<()> {
        let load = Load::begin(&self.core);
        let get = self.shared.world.pages().get(self.id, wanted.clone());
        let found = self.staged(Stage::MapLoad, get).await;
        let last_sco = self.core.borrow().shape().last_sco;
        let (mut good, mut bad) = (Vec::with_capacity(wanted.len()), Vec::new());
        match found {
            Ok(found) => {
                for (no, bytes) in wanted.into_iter().zip(found) {
                    match bytes.map_or(Ok(Page::hole()), |bytes| decode(no, &bytes, last_sco)) {
                        Ok(page) => good.push((no, page)),
                        Err(fault) => {
                            tracing::error!(vdisk = self.name, page = no.0, %fault, "a map page is damaged; making it again");
                            bad.push(no);
                        }
                    }
                }
            }
            Err(fault) => {
                tracing::error!(vdisk = self.name, %fault, "map pages cannot be read; making them again");
                bad = wanted;
            }
        }
        self.install(&load, good, false);
        if !bad.is_empty() {
            let rebuilt = Box::pin(self.rebuild_pages(bad)).await?;
            self.install(&load, rebuilt, true);
        }
        Ok(())
    }

    fn install(&self, load: &Load<'_>, pages: Vec<(PageNo, Page)>, rebuilt: bool) {
        let budget = self.settings.borrow().map_memory.0;
        let mut core = self.core.borrow_mut();
        let Some(since) = &load.since else { return };
        // Before the pages come in, so that none of them leaves again before it was looked at.
        if core.map().memory_bytes() > budget {
            core.map().evict(budget - budget / 8);
        }
        for (no, page) in pages {
            if rebuilt {
                core.map().install_rebuilt(no, page, since);
            } else {
                core.map().install(no, page, since);
            }
        }
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

/// A page as the store has it, which may map to SCOs up to `last_sco` (INV-5).
fn decode(no: PageNo, bytes: &[u8], last_sco: ScoSeq) -> Result<Page> {
    let page = Page::decode(no, bytes)?;
    match page.last_sco() {
        sco if sco <= last_sco => Ok(page),
        sco => Err(Fault::corrupt(format!("it maps to SCO {sco}, the last one is {last_sco}"))),
    }
}
