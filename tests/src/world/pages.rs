//! A page store whose batches survive a crash as a prefix, at least up to the last sync.
//!
//! Both kinds of crash lose unsynced batches: they live in the process's memory. Pages may decay, and calls fail: whatever it
//! holds can be made again from the backend.

use std::collections::BTreeMap;

use bytes::Bytes;
use volumedriver::world::{PageBatch, PageStore};
use volumedriver_core::fault::{Fault, Result};
use volumedriver_core::map::Page;
use volumedriver_core::units::{PageNo, TlogNo, VolumeId};

use super::faults::{Canary, Crash, PageFaults, is_in};
use super::rng::Rng;
use super::{Link, mix};

#[derive(Clone)]
pub struct SimPages(pub(crate) Link);

#[derive(Default)]
pub(crate) struct PagesState {
    visible: Content,
    durable: Content,
    /// Steps from `durable` to `visible`, in order.
    unsynced: Vec<Step>,
}

#[derive(Clone, Default)]
struct Content {
    pages: BTreeMap<(VolumeId, u64), Bytes>,
    applied: BTreeMap<VolumeId, TlogNo>,
}

#[derive(Clone)]
enum Step {
    Batch(VolumeId, PageBatch),
    Drop(VolumeId),
}

impl Content {
    fn apply(&mut self, step: &Step) {
        match step {
            Step::Drop(volume) => {
                self.pages.retain(|(v, _), _| v != volume);
                self.applied.remove(volume);
            }
            Step::Batch(volume, batch) => {
                for (first, count) in &batch.holes {
                    let end = first.0.saturating_add(*count);
                    let doomed: Vec<_> = self
                        .pages
                        .range((*volume, first.0)..(*volume, end))
                        .map(|(k, _)| *k)
                        .collect();
                    for key in doomed {
                        self.pages.remove(&key);
                    }
                }
                for (page, bytes) in &batch.pages {
                    self.pages.insert((*volume, page.0), bytes.clone());
                }
                self.applied.insert(*volume, batch.applied);
            }
        }
    }
}

impl PagesState {
    pub fn crash(&mut self, crash: Crash, rng: &mut Rng) {
        if crash == Crash::DiscardLocal {
            *self = Self::default();
            return;
        }
        let kept = rng.below(self.unsynced.len() as u64 + 1) as usize;
        for step in self.unsynced.drain(..).take(kept) {
            self.durable.apply(&step);
        }
        self.visible = self.durable.clone();
    }

    pub fn plant(&mut self, volume: VolumeId, page: PageNo, bytes: Bytes) {
        self.durable.pages.insert((volume, page.0), bytes.clone());
        self.visible.pages.insert((volume, page.0), bytes);
    }

    /// Flips a bit of a page, as a disk does that decays; with the canary, one that no checksum shows. The page, if there is
    /// one.
    pub fn decay(&mut self, canary: Option<Canary>, rng: &mut Rng) -> Option<(VolumeId, u64)> {
        let nth = rng.below(self.visible.pages.len() as u64) as usize;
        let (key, bytes) = self.visible.pages.iter().nth(nth)?;
        let key = *key;
        let mut bytes = bytes.to_vec();
        if canary == Some(Canary::UncheckedPage) {
            bytes = Page::hole().encode(PageNo(key.1)).to_vec();
        } else {
            let bit = rng.below(bytes.len() as u64 * 8) as usize;
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        self.durable.pages.insert(key, bytes.clone().into());
        self.visible.pages.insert(key, bytes.into());
        Some(key)
    }

    fn take(&mut self, step: Step) {
        self.visible.apply(&step);
        self.unsynced.push(step);
    }

    fn sync(&mut self, steps: usize) {
        for step in self.unsynced.drain(..steps.min(self.unsynced.len())) {
            self.durable.apply(&step);
        }
    }
}

impl Link {
    /// Fails at this rate, and for want of space in its windows.
    fn pages_fail(&self, rate: impl FnOnce(&PageFaults) -> u32, writes: bool) -> Result<()> {
        let now = self.now();
        let mut guard = self.state();
        let state = &mut *guard;
        let faults = &state.faults.pages;
        if writes && is_in(&faults.full, now) {
            return Err(Fault::no_space("the simulated page store is full"));
        }
        match state.rng.chance(rate(faults)) {
            true => Err(Fault::unavailable("simulated failure of the page store")),
            false => Ok(()),
        }
    }
}

impl PageStore for SimPages {
    async fn get(&self, volume: VolumeId, pages: Vec<PageNo>) -> Result<Vec<Option<Bytes>>> {
        self.0.gate("pages.get", pages.iter().fold(0, |h, p| mix(h ^ p.0))).await;
        self.0.delay(1, 2, 100_000).await;
        self.0.gate("pages.got", 0).await;
        self.0.pages_fail(|faults| faults.read_error, false)?;
        let state = self.0.state();
        let content = &state.hosts[self.0.host].pages.visible.pages;
        Ok(pages.iter().map(|page| content.get(&(volume, page.0)).cloned()).collect())
    }

    async fn put(&self, volume: VolumeId, batch: PageBatch) -> Result<()> {
        self.0.gate("pages.put", mix(batch.applied.0) ^ batch.pages.len() as u64).await;
        self.0.check_pages(volume, batch.applied);
        self.0.delay(1, 5, 200_000).await;
        self.0.gate("pages.putting", 0).await;
        self.0.pages_fail(|faults| faults.write_error, true)?;
        self.0.state().hosts[self.0.host].pages.take(Step::Batch(volume, batch));
        self.0.gate("pages.done", 0).await;
        Ok(())
    }

    async fn applied(&self, volume: VolumeId) -> Result<Option<TlogNo>> {
        self.0.gate("pages.applied", 0).await;
        self.0.pages_fail(|faults| faults.read_error, false)?;
        let state = self.0.state();
        Ok(state.hosts[self.0.host].pages.visible.applied.get(&volume).copied())
    }

    async fn sync(&self) -> Result<()> {
        self.0.gate("pages.sync", 0).await;
        let steps = self.0.state().hosts[self.0.host].pages.unsynced.len();
        self.0.delay(1, 5, 500_000).await;
        self.0.gate("pages.syncing", steps as u64).await;
        self.0.pages_fail(|faults| faults.sync_error, true)?;
        self.0.state().hosts[self.0.host].pages.sync(steps);
        self.0.gate("pages.synced", 0).await;
        Ok(())
    }

    async fn drop_volume(&self, volume: VolumeId) -> Result<()> {
        self.0.gate("pages.drop", 0).await;
        self.0.pages_fail(|faults| faults.write_error, true)?;
        self.0.state().hosts[self.0.host].pages.take(Step::Drop(volume));
        self.0.gate("pages.dropped", 0).await;
        Ok(())
    }
}
