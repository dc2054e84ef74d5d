//! Upload: sealed SCOs leave in any order, and become part of the volume in log order.
//!
//! SCOs are put several at a time; then, for the oldest that are all there, their TLog; then the manifest that names it; only
//! then do the map's base, the write buffer and the flush watermark move on (INV-4). A put is repeated until its outcome
//! is known; another owner's manifest in the place of ours ends the loop for good (INV-6).

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use volumedriver_core::fault::{Fault, Kind, Result};
use volumedriver_core::format::framed::{self, KeyId};
use volumedriver_core::format::manifest::{ShapeChange, TlogRef};
use volumedriver_core::format::names;
use volumedriver_core::format::sco::ScoFooter;
use volumedriver_core::format::tlog::Tlog;
use volumedriver_core::units::{ClusterCount, ManifestNo, ScoSeq, TlogNo};

use super::backend::{ScoKey, Table};
use super::burst::LOOK_AGAIN;
use super::chain::{self, next_manifest, put_certainly, until_answered};
use super::{State, Volume};
use crate::codec::{Built, Coding, Frames, ScoBuilder};
use crate::world::World;

/// Most SCOs under one TLog.
const MOST_PER_TLOG: usize = 16;
/// Dirty pages are written once there are this many, or after every so many TLogs.
const PERSIST_PAGES: u64 = 4096;
const PERSIST_TLOGS: u64 = 16;
/// Clusters that are packed at a time when an SCO is built, bytes: what building takes beside the object itself.
const BUILD_BYTES: u64 = 2 << 20;
/// Attempts at reading the footer of an SCO that is there already.
const LOOKS: u32 = 5;
/// Between two attempts when the page store takes nothing and memory is used up.
const PERSIST_PAUSE: Duration = Duration::from_secs(1);

/// An SCO on its way: its position, and where its size will arrive once it is stored.
type OnItsWay = (ScoSeq, oneshot::Receiver<Result<u64>>);

impl<W: World> Volume<W> {
    /// Runs until the volume is closed or fenced.
    pub(super) async fn run_uploader(self: Rc<Self>) {
        if let Err(fault) = self.upload_all().await {
            let why = format!("uploading stopped: {fault}");
            let kind = fault.kind;
            *self.uploads_ended.borrow_mut() = Some(fault);
            match kind {
                Kind::Fenced => self.enter_fenced(),
                Kind::Closed => {}
                _ => self.enter(State::ReadOnly(why)),
            }
        }
        self.drained.notify_waiters();
        self.uploader_done.notify_one();
    }

    async fn upload_all(self: &Rc<Self>) -> Result<()> {
        let mut on_its_way: VecDeque<OnItsWay> = VecDeque::new();
        loop {
            let gives_way = self.start_puts(&mut on_its_way);
            let burst = async {
                match gives_way {
                    true => self.shared.world.sleep(LOOK_AGAIN).await,
                    false => std::future::pending().await,
                }
            };
            let Some((_, oldest)) = on_its_way.front_mut() else {
                if self.is_closing() {
                    return Ok(());
                }
                tokio::select! {
                    biased;
                    () = self.sealed.notified() => {}
                    () = burst => {}
                }
                continue;
            };
            tokio::select! {
                biased;
                size = oldest => {
                    on_its_way.pop_front();
                    let mut sizes = vec![size.map_err(|_| Fault::closed("upload dropped"))??];
                    take_finished(&mut on_its_way, &mut sizes)?;
                    self.publish_scos(sizes).await?;
                }
                () = self.sealed.notified() => {}
                () = burst => {}
            }
        }
    }

    /// Starts as many puts as may run at the same time. Whether there are more that let a burst go first.
    fn start_puts(self: &Rc<Self>, on_its_way: &mut VecDeque<OnItsWay>) -> bool {
        let most = self.settings.borrow().upload_concurrency.max(1);
        while on_its_way.len() < most && !self.is_closing() {
            let published = self.core.borrow().shape().last_sco;
            let last = on_its_way.back().map_or(published, |(sco, _)| *sco);
            let next = self.core.borrow().next_upload(last).map(|s| s.id().seq);
            let Some(sco) = next else { return false };
            if self.gives_way() {
                return true;
            }
            let (done, size) = oneshot::channel();
            on_its_way.push_back((sco, size));
            // The shard decides on its pace.
            self.shared.pressure.notify_one();
            let volume = self.clone();
            self.shared.world.spawn(async move {
                // A dropped receiver means the uploader has ended: nobody is left to tell.
                let _unheard = done.send(volume.put_sco(sco).await);
            });
        }
        false
    }

    /// Stores one SCO; its size.
    pub(super) async fn put_sco(&self, seq: ScoSeq) -> Result<u64> {
        // Only what is certainly sealed may be uploaded: else a crash could bring the same name back with other clusters.
        self.shared.buffer.flush().await?;
        let footer = {
            let core = self.core.borrow();
            let sco = core.oldest_sealed(usize::MAX).find(|s| s.id().seq == seq);
            let sco =
                sco.ok_or_else(|| Fault::bug(format!("SCO {seq} vanished before its upload")))?;
            sco.footer(self.id, core.cluster_size())
        };
        let (key, footer) = (ScoKey { volume: self.id, id: footer.id }, Arc::new(footer));
        let (body, frames) = self.build_sco(&footer).await?;
        let size = body.iter().map(|piece| piece.len() as u64).sum();
        let (namespace, name) = (names::namespace(self.id), names::sco(key.id));
        let world = &self.shared.world;
        let put = put_certainly(world, &namespace, &name, body, || self.is_closing()).await;
        let stored = match put {
            Ok(()) => {
                self.shared.backend.learn(key, Table::new(footer.crcs(), frames));
                size
            }
            Err(fault) if fault.kind == Kind::Fenced => self.same_sco(key, &footer, fault).await?,
            Err(fault) => return Err(fault),
        };
        self.space.borrow_mut().add(cluster_bytes(&footer), stored);
        Ok(stored)
    }

    /// The size of the object that is there instead of ours, if it holds the same: it may have been built before a crash, with
    /// other settings and always with another salt. Otherwise it is another owner's, and that is the `fault`.
    async fn same_sco(&self, key: ScoKey, footer: &ScoFooter, fault: Fault) -> Result<u64> {
        let (world, name) = (&self.shared.world, names::sco(key.id));
        let mut attempts = 1;
        loop {
            let look = async || self.shared.backend.stored_bytes(key, footer).await;
            match until_answered(world, &name, || self.is_closing(), look).await {
                // A bit may have flipped on its way.
                Err(damage) if damage.kind == Kind::Corrupt && attempts < LOOKS => attempts += 1,
                stored => return stored?.ok_or(fault),
            }
        }
    }

    /// The object of an SCO, as the settings of the moment want it, and what it takes to read it if it is in frames.
    async fn build_sco(&self, footer: &Arc<ScoFooter>) -> Result<(Vec<Bytes>, Option<Frames>)> {
        let (world, keys) = (&self.shared.world, self.shared.backend.keys());
        let coding = Coding::of(&self.settings.borrow(), &keys)?;
        let seq = footer.id.seq;
        if coding.is_plain() {
            let mut body = self.clusters_of(seq, 0, footer.cluster_count).await?;
            let footer = footer.clone();
            let end = world.compute(move || footer.encode()).await;
            body.push(end);
            return Ok((body, None));
        }
        if let Some(key) = coding.key {
            self.mark_key(key).await?;
        }
        let salt = world.random_id();
        let mut builder = ScoBuilder::new(footer.as_ref().clone(), coding, &keys, salt)?;
        let step = (BUILD_BYTES / footer.cluster_size.bytes()) as u32;
        let mut first = 0;
        while first < footer.cluster_count {
            let count = step.min(footer.cluster_count - first);
            let clusters = self.clusters_of(seq, first, count).await?;
            let build = move || {
                builder.push(&clusters);
                builder
            };
            builder = world.compute(build).await;
            first += count;
        }
        let Built { body, frames } = world.compute(move || builder.finish()).await?;
        Ok((body, Some(frames)))
    }

    /// What comes from the buffer's files was checked there: damage does not spread to the backend (P2). Unless the operator
    /// accepts it: then the footer keeps the checksum of what was written, and reads of the damaged cluster go on failing.
    async fn clusters_of(&self, seq: ScoSeq, first: u32, count: u32) -> Result<Vec<Bytes>> {
        match self.accepting.get() {
            true => self.log.sco_part_as_it_is(seq, first, count).await,
            false => self.log.sco_part(seq, first, count).await,
        }
    }

    /// Says on the backend that the volume cannot be read without this key any more.
    async fn mark_key(&self, key: KeyId) -> Result<()> {
        if self.keys.borrow().contains(&key) {
            return Ok(());
        }
        let (namespace, name) = (names::namespace(self.id), names::key(key));
        let body = vec![framed::encode_key_marker(self.id, key)];
        let world = &self.shared.world;
        put_certainly(world, &namespace, &name, body, || self.is_closing()).await?;
        self.keys.borrow_mut().insert(key);
        Ok(())
    }

    /// Names the oldest `sizes.len()` SCOs in a TLog and a manifest, then gives their local copies up.
    pub(super) async fn publish_scos(&self, sizes: Vec<u64>) -> Result<()> {
        let count = sizes.len();
        let tlog = self.plan_tlog(&sizes);
        let (Some(first), Some(last)) = (tlog.scos.first(), tlog.scos.last()) else {
            return Err(Fault::bug("a TLog without SCOs"));
        };
        let (no, epoch) = (tlog.no, tlog.epoch);
        let (first_sco, last_sco) = (first.id.seq, last.id.seq);
        let world = &self.shared.world;
        let body = world.compute(move || tlog.encode()).await;
        let object_bytes = body.len() as u64;
        let reference = TlogRef { no, epoch, first_sco, last_sco, object_bytes };
        let (namespace, name) = (names::namespace(self.id), names::tlog(epoch, no));
        put_certainly(world, &namespace, &name, vec![body], || self.is_closing()).await?;
        let change = self.core.borrow().plan_published(count, reference);
        self.add_manifest(vec![change]).await?;
        self.move_to_base(count).await?;
        let published = self.core.borrow().shape().last_seq;
        self.published_seq.set(published);
        self.drained.notify_waiters();
        self.tend_pages().await
    }

    fn plan_tlog(&self, sizes: &[u64]) -> Tlog {
        let core = self.core.borrow();
        let scos = core.oldest_sealed(sizes.len()).zip(sizes);
        Tlog {
            volume: self.id,
            epoch: core.epoch(),
            no: core.shape().last_tlog.next(),
            scos: scos.map(|(sco, size)| sco.tlog_entry(*size)).collect(),
        }
    }

    /// The changes of the oldest `count` sealed SCOs become part of the map's base; their room in the buffer is given back.
    async fn move_to_base(&self, count: usize) -> Result<()> {
        let last_tlog = self.core.borrow().shape().last_tlog;
        for _ in 0..count {
            let oldest = self.core.borrow().oldest_changes();
            let Some((seq, changes)) = oldest else {
                return Err(Fault::bug("published more than was sealed"));
            };
            self.load_for(&changes).await?;
            let held = self.log.held_bytes();
            self.core.borrow_mut().commit_published(&changes)?;
            self.log.dispose(seq);
            self.oldest_since.borrow_mut().pop_front();
            let freed = held.saturating_sub(self.log.held_bytes());
            self.credits.borrow_mut().drained(freed, self.shared.world.now());
            // An SCO has thousands of changes; requests have their turn between two of them.
            tokio::task::yield_now().await;
        }
        self.based.set(last_tlog);
        Ok(())
    }

    /// Loads the pages these changes touch, until none is missing.
    pub(super) async fn load_for(
        &self,
        changes: &[volumedriver_core::format::Change],
    ) -> Result<()> {
        loop {
            let missing = self.core.borrow_mut().map().missing_for(changes, usize::MAX);
            if missing.is_empty() {
                return Ok(());
            }
            self.load_pages(missing).await?;
        }
    }

    /// After a publication: write dirty pages when they are many, old or take too much memory, compact the TLogs when they
    /// are many.
    async fn tend_pages(&self) -> Result<()> {
        let (dirty, last_tlog) = {
            let mut core = self.core.borrow_mut();
            (core.map().dirty_pages(), core.shape().last_tlog)
        };
        let behind = last_tlog.0.saturating_sub(self.applied.get().0);
        let crowded = dirty > 0 && self.map_is_over_budget();
        if crowded || dirty >= PERSIST_PAGES || behind >= PERSIST_TLOGS {
            self.persist_or_wait(last_tlog).await;
        }
        self.compact_if_due().await
    }

    /// The page store is derivable: when its disk is full or failing the pages stay in memory and are tried again. As long as
    /// there is memory for them, that is; then uploading waits for the page store, and writers in their turn for uploading.
    async fn persist_or_wait(&self, last_tlog: TlogNo) {
        while let Err(fault) = self.persist_pages(last_tlog).await {
            tracing::warn!(vdisk = self.name, %fault, "map pages cannot be written locally");
            if !self.map_is_over_budget() || self.is_closing() {
                return;
            }
            self.shared.world.sleep(PERSIST_PAUSE).await;
        }
        let budget = self.settings.borrow().map_memory.0;
        self.core.borrow_mut().map().evict(budget);
    }

    fn map_is_over_budget(&self) -> bool {
        self.core.borrow_mut().map().memory_bytes() > self.settings.borrow().map_memory.0
    }

    /// `Fenced` when another owner has taken over: asked before what no manifest guards. An error when the store does not answer.
    pub async fn confirm_owner(&self) -> Result<()> {
        let (head, epoch) = {
            let core = self.core.borrow();
            (core.head(), core.epoch())
        };
        if chain::is_latest(&self.shared.world, self.id, head, epoch).await? {
            return Ok(());
        }
        self.enter_fenced();
        Err(self.fenced())
    }

    /// Adds one manifest with these changes to the chain; when this returns they are durable and in force.
    pub(super) async fn add_manifest(&self, changes: Vec<ShapeChange>) -> Result<ManifestNo> {
        let _one_at_a_time = self.chain.acquire().await.map_err(|_| Fault::closed("closed"))?;
        let (no, manifest) = {
            let core = self.core.borrow();
            let no = core.head().next();
            let mut shape = core.shape().clone();
            for change in &changes {
                shape.apply(no, change)?;
            }
            let node = self.shared.node;
            (no, next_manifest(self.id, core.epoch(), node, no, &shape, changes.clone()))
        };
        let namespace = names::namespace(self.id);
        let body = vec![manifest.encode()];
        let world = &self.shared.world;
        let put =
            put_certainly(world, &namespace, &names::manifest(no), body, || self.is_closing())
                .await;
        if let Err(fault) = put {
            if fault.kind == Kind::Fenced {
                self.enter_fenced();
            }
            return Err(fault);
        }
        self.core.borrow_mut().commit_manifest(no, &changes)?;
        Ok(no)
    }
}

/// The SCOs behind the oldest that are stored too, without waiting.
fn take_finished(on_its_way: &mut VecDeque<OnItsWay>, sizes: &mut Vec<u64>) -> Result<()> {
    while sizes.len() < MOST_PER_TLOG {
        let Some((_, next)) = on_its_way.front_mut() else { return Ok(()) };
        match next.try_recv() {
            Ok(size) => sizes.push(size?),
            Err(_) => return Ok(()),
        }
        on_its_way.pop_front();
    }
    Ok(())
}

fn cluster_bytes(footer: &ScoFooter) -> u64 {
    footer.cluster_size.bytes_of(ClusterCount(footer.cluster_count.into())).0
}
