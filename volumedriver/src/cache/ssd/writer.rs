//! The disk tier's background task: reads the catalogue of an earlier run, then writes full regions and prepares the next
//! ones, one thing at a time, and at the end writes the catalogue. It alone writes to the file.

use std::rc::Rc;
use std::time::Duration;

use volumedriver_core::cache::CacheKey;
use volumedriver_core::cache::index::{Found, Reclaim, Slot};
use volumedriver_core::fault::Result;
use volumedriver_core::format::cache::{CacheEntry, CachePage, FileState};
use volumedriver_core::units::{ClusterCrc, Location, ScoId};

use super::file::Catalogue;
use super::{Batch, Contents, MOST_BATCHES, SsdState, SsdTier, add};
use crate::io::buf::{AlignedBuf, Area, AreaSlice};
use crate::world::{DiskFile, Durability, World};

/// Pause after each page of the catalogue (some 3,000 clusters): reading a large one takes a while, and readers go first.
const LOAD_PAUSE: Duration = Duration::from_millis(1);

/// What is to be done next.
enum Work {
    Write(AreaSlice, Slot),
    Prepare(Reclaim),
    Wait,
    Close,
    End,
}

/// Runs until the tier is closed or offline.
pub(super) async fn run<W: World>(tier: Rc<SsdTier<W>>, catalogue: Option<Catalogue>) {
    if let Some(catalogue) = catalogue {
        let loaded = tier.load(&catalogue).await;
        tier.settle(loaded);
    }
    loop {
        let done = match tier.next_work() {
            Work::Write(bytes, slot) => tier.write_region(bytes, slot).await,
            Work::Prepare(plan) => tier.prepare(plan).await,
            Work::Wait => {
                tier.bell.notified().await;
                Ok(())
            }
            Work::Close => {
                let saved = tier.save().await;
                tier.settle(saved);
                tier.end();
                return;
            }
            Work::End => return,
        };
        tier.settle(done);
    }
}

impl<W: World> SsdTier<W> {
    fn settle(&self, outcome: Result<()>) {
        if let Err(fault) = outcome {
            self.go_offline(&fault);
        }
    }

    fn end(&self) {
        if self.contents.borrow_mut().take().is_some() {
            *self.state.borrow_mut() = SsdState::Closed;
        }
        self.ended.notify_one();
    }

    fn next_work(&self) -> Work {
        let contents = self.contents.borrow();
        let Some(contents) = contents.as_ref() else {
            self.ended.notify_one();
            return Work::End;
        };
        if self.is_closing.get() {
            return Work::Close;
        }
        if contents.region_is_needed() {
            // Something must remain to be thrown out, or the ring would not turn.
            let most_kept = self.file.layout.shape.region_slots / 4 * 3;
            return Work::Prepare(contents.index.plan_reclaim(most_kept));
        }
        match self.oldest_full(contents) {
            Some((bytes, slot)) => Work::Write(bytes, slot),
            None => Work::Wait,
        }
    }

    fn oldest_full(&self, contents: &Contents) -> Option<(AreaSlice, Slot)> {
        contents.full.front().map(|batch| {
            let len = batch.open.used() as usize * self.file.layout.cluster.bytes() as usize;
            (batch.area.slice(0..len), self.file.layout.shape.first_slot(batch.region()))
        })
    }

    /// Writes the oldest full region and lets it go.
    async fn write_region(&self, bytes: AreaSlice, slot: Slot) -> Result<()> {
        if !self.is_marked.get() {
            self.file.put_header(FileState::InUse).await?;
            self.is_marked.set(true);
        }
        let len = bytes.len() as u64;
        let offset = self.file.layout.offset_of(slot);
        self.file.file.write_at(vec![bytes], offset, Durability::Later).await?;
        add(&self.counters.written_bytes, len);
        if let Some(contents) = self.contents.borrow_mut().as_mut()
            && let Some(mut batch) = contents.full.pop_front()
            // Readers may still hold slices of it: then it is freed when they are done.
            && batch.area.renew()
            && contents.spare.len() < MOST_BATCHES
        {
            contents.spare.push(batch.area);
        }
        Ok(())
    }

    /// Takes the next region back, moving what was visited to its front.
    async fn prepare(&self, plan: Reclaim) -> Result<()> {
        let kept = self.read_kept(&plan).await?;
        let mut contents = self.contents.borrow_mut();
        let Some(contents) = contents.as_mut() else { return Ok(()) };
        let open = contents.index.commit_reclaim(&plan);
        let fresh = || Area::new(self.file.layout.region_bytes());
        let area = contents.spare.pop().unwrap_or_else(fresh);
        let mut batch = Batch { open, area };
        for (key, crc, bytes) in kept.iter().flat_map(Kept::clusters) {
            if batch.take(&mut contents.index, key, crc, bytes) {
                add(&self.counters.kept, 1);
            }
        }
        match contents.filling {
            Some(_) => contents.next = Some(batch),
            None => contents.filling = Some(batch),
        }
        Ok(())
    }

    /// The clusters to be kept, verified: in one read from the first to the last.
    async fn read_kept(&self, plan: &Reclaim) -> Result<Option<Kept>> {
        let (Some((_, first)), Some((_, last))) = (plan.keep.first(), plan.keep.last()) else {
            return Ok(None);
        };
        let cluster = self.file.layout.cluster.bytes() as usize;
        let buf = AlignedBuf::recycled((last.slot.0 - first.slot.0 + 1) as usize * cluster);
        let bytes = self.file.file.read_at(buf, self.file.layout.offset_of(first.slot)).await?;
        let mut sound = Vec::with_capacity(plan.keep.len());
        for (key, found) in &plan.keep {
            let at = (found.slot.0 - first.slot.0) as usize * cluster;
            if ClusterCrc::of(&bytes[at..at + cluster]) == found.crc {
                sound.push((*key, *found, at));
            } else if let Some(contents) = self.contents.borrow_mut().as_mut() {
                self.drop_damaged(&mut contents.index, found);
            }
        }
        Ok(Some(Kept { bytes, sound, cluster }))
    }

    /// Finds again what an earlier run left. What is damaged is left out.
    async fn load(&self, catalogue: &Catalogue) -> Result<()> {
        for number in 0..catalogue.pages {
            if self.is_closing.get() {
                // Nothing of the file was changed: the catalogue stays right.
                return Ok(());
            }
            let page = self.file.page(catalogue, number).await?;
            if let (Some(page), Some(contents)) = (page, self.contents.borrow_mut().as_mut()) {
                for entry in page.entries() {
                    contents.index.restore(Slot(entry.slot), &key_of(&entry), entry.crc);
                }
            }
            self.world.sleep(LOAD_PAUSE).await;
        }
        if let Some(contents) = self.contents.borrow_mut().as_mut() {
            contents.index.set_hand(catalogue.hand);
            let clusters = contents.index.used();
            tracing::info!(clusters, "the read cache on disk is warm");
            *self.state.borrow_mut() = SsdState::Serving;
        }
        Ok(())
    }

    /// Writes what is still in memory, then the catalogue.
    async fn save(&self) -> Result<()> {
        if let Some(contents) = self.contents.borrow_mut().as_mut() {
            let partly = [contents.filling.take(), contents.next.take()];
            let partly = partly.into_iter().flatten().filter(|batch| batch.open.used() > 0);
            contents.full.extend(partly);
        }
        loop {
            let oldest = self.contents.borrow().as_ref().and_then(|c| self.oldest_full(c));
            let Some((bytes, slot)) = oldest else { break };
            self.write_region(bytes, slot).await?;
        }
        if !self.is_marked.get() {
            return Ok(());
        }
        let [a, b, c, d, e, f, g, h, ..] = self.world.random_id();
        let stamp = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        let mut pages = 0;
        let mut from = Slot(0);
        while let Some((page, next)) = self.page_from(stamp, pages, from) {
            if pages == self.file.layout.pages() {
                break;
            }
            self.file.put_page(&page).await?;
            (pages, from) = (pages + 1, next);
        }
        self.file.file.sync().await?;
        let hand = self.contents.borrow().as_ref().map(|contents| contents.index.hand());
        match hand {
            Some(hand) => self.file.put_catalogue(stamp, hand, pages).await,
            None => Ok(()),
        }
    }

    /// A page with the entries from this slot on, and the slot after them; `None` when there are none.
    fn page_from(&self, stamp: u64, number: u32, from: Slot) -> Option<(CachePage, Slot)> {
        let contents = self.contents.borrow();
        let mut page = CachePage::new(stamp, number);
        let mut next = None;
        for (slot, key, crc) in contents.as_ref()?.index.entries_from(from) {
            if !page.push(&entry_of(slot, &key, crc)) {
                break;
            }
            next = Some(Slot(slot.0 + 1));
        }
        next.map(|next| (page, next))
    }
}

/// What was read of a region to be taken back.
struct Kept {
    bytes: AlignedBuf,
    /// With their places in `bytes`.
    sound: Vec<(CacheKey, Found, usize)>,
    cluster: usize,
}

impl Kept {
    fn clusters(&self) -> impl Iterator<Item = (&CacheKey, ClusterCrc, &[u8])> {
        let bytes = |at: usize| &self.bytes[at..at + self.cluster];
        self.sound.iter().map(move |(key, found, at)| (key, found.crc, bytes(*at)))
    }
}

fn entry_of(slot: Slot, key: &CacheKey, crc: ClusterCrc) -> CacheEntry {
    let at = Location { sco: key.sco.seq, index: key.index };
    CacheEntry { slot: slot.0, volume: key.origin, epoch: key.sco.epoch, at, crc }
}

fn key_of(entry: &CacheEntry) -> CacheKey {
    let sco = ScoId { epoch: entry.epoch, seq: entry.at.sco };
    CacheKey { origin: entry.volume, sco, index: entry.at.index }
}
