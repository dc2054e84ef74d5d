//! The disk tier: clusters that had to leave memory, on a local disk.
//!
//! - A cluster that leaves memory is copied into the region being filled (in memory, and read from there) and written with its
//!   whole region, in the background. While there is room that was never used everything comes in; later only what was read
//!   again in memory or asked before ([`Doorkeeper`]). When the writer is behind, clusters are dropped, never waited for.
//! - A read is verified against the checksum made when the cluster came in, and believed only if its region was not taken
//!   back meanwhile. A mismatch is a miss: the entry goes, and is counted.
//! - An error or a silence of the disk takes the tier offline until the next start: a warning, a figure, no error to anybody.
//! - A clean end leaves a catalogue, see [`file`]; after a crash the tier is empty.
//!
//! Memory: [`SLOT_BYTES`] per cluster the disk has room for (6.5 GiB per TiB of 4 KiB clusters), taken as the disk fills up;
//! and at most [`MOST_BATCHES`] regions.
//!
//! States: warming (reads the catalogue; nothing comes in) → serving → offline, or closing → closed.

mod file;
mod writer;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use tokio::sync::Notify;
use volumedriver_core::cache::CacheKey;
use volumedriver_core::cache::doorkeeper::Doorkeeper;
use volumedriver_core::cache::index::{Found, Index, OpenRegion, RegionNo, Slot};
use volumedriver_core::fault::{Fault, Result};
use volumedriver_core::units::{ClusterCrc, ClusterSize, NodeId};

use super::ram::Heat;
use crate::io::buf::{AlignedBuf, Area};
use crate::metrics::{CacheCounts, TierCounts};
use crate::world::{DiskFile, World};
use file::{CacheFile, FileOf};

/// Memory per cluster the disk has room for, bytes.
pub const SLOT_BYTES: u64 = Index::SLOT_BYTES + Doorkeeper::SLOT_BYTES;
/// Usual size of a region, bytes: what is written at a time, and taken back at a time.
pub const REGION_BYTES: u64 = 1 << 20;
/// Regions in memory: one being filled, one to follow it, the others on their way to the disk.
const MOST_BATCHES: usize = 8;
/// A disk that keeps a reader waiting longer is taken for dead.
const READ_PATIENCE: Duration = Duration::from_secs(5);
/// A clean end waits this long for the disk.
const CLOSE_PATIENCE: Duration = Duration::from_secs(15);

/// The disk tier of one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SsdConfig {
    /// Whose cache it is.
    pub node: NodeId,
    /// The file's length, at most.
    pub bytes: u64,
    pub region_bytes: u64,
}

/// What the tier does, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SsdState {
    /// None is configured.
    Off,
    /// Finds its way in what an earlier run left; already answers.
    Warming,
    Serving,
    /// Why.
    Offline(String),
    Closed,
}

#[derive(Default)]
struct Counters {
    hits: Cell<u64>,
    misses: Cell<u64>,
    inserts: Cell<u64>,
    mismatches: Cell<u64>,
    dropped: Cell<u64>,
    kept: Cell<u64>,
    written_bytes: Cell<u64>,
}

fn add(counter: &Cell<u64>, more: u64) {
    counter.set(counter.get() + more);
}

/// A region in memory.
struct Batch {
    open: OpenRegion,
    area: Area,
}

/// What is lost when the tier goes offline.
struct Contents {
    index: Index,
    door: Doorkeeper,
    filling: Option<Batch>,
    /// Follows when `filling` is full; may hold what was kept of its region's former life.
    next: Option<Batch>,
    /// On their way to the disk, the oldest first. They leave when they are written.
    full: VecDeque<Batch>,
    spare: Vec<Area>,
}

/// See the module's header.
pub(super) struct SsdTier<W: World> {
    world: W,
    file: CacheFile<FileOf<W>>,
    /// `None` from the moment it is offline.
    contents: RefCell<Option<Contents>>,
    state: RefCell<SsdState>,
    counters: Counters,
    /// The file says that it is in use.
    is_marked: Cell<bool>,
    is_closing: Cell<bool>,
    /// Rung for the writer: a region is full, one is needed, or the end has come.
    bell: Notify,
    ended: Notify,
}

/// Clusters that lie one after the other in one region.
pub(super) struct Run {
    first: Found,
    crcs: Vec<ClusterCrc>,
}

/// Where a cluster is.
pub(super) enum Place {
    /// Not written yet.
    Memory(Bytes),
    Disk(Found),
}

impl Run {
    pub(super) fn new(first: Found) -> Self {
        Self { first, crcs: vec![first.crc] }
    }
    pub(super) fn len(&self) -> usize {
        self.crcs.len()
    }
}

impl<W: World> SsdTier<W> {
    /// Takes the file into use; what needs time goes on in the background.
    pub(super) async fn open(
        world: W,
        config: &SsdConfig,
        cluster: ClusterSize,
    ) -> Result<Rc<Self>> {
        let (file, catalogue) = CacheFile::open(world.disk(), config, cluster).await?;
        let index = Index::new(file.layout.shape)?;
        let door = Doorkeeper::new(file.layout.shape.slots() as usize)?;
        let (full, spare) = (VecDeque::new(), Vec::new());
        let contents = Contents { index, door, filling: None, next: None, full, spare };
        let state = if catalogue.is_some() { SsdState::Warming } else { SsdState::Serving };
        let tier = Rc::new(Self {
            world: world.clone(),
            file,
            contents: RefCell::new(Some(contents)),
            state: RefCell::new(state),
            counters: Counters::default(),
            is_marked: Cell::new(false),
            is_closing: Cell::new(false),
            bell: Notify::new(),
            ended: Notify::new(),
        });
        world.spawn(writer::run(tier.clone(), catalogue));
        Ok(tier)
    }

    pub(super) fn state(&self) -> SsdState {
        self.state.borrow().clone()
    }

    /// Adds what this tier counted.
    pub(super) fn counts(&self, counts: CacheCounts) -> CacheCounts {
        let cluster = self.file.layout.cluster.bytes();
        let contents = self.contents.borrow();
        let index = contents.as_ref().map(|contents| &contents.index);
        let ssd = TierCounts {
            hits: self.counters.hits.get(),
            misses: self.counters.misses.get(),
            inserts: self.counters.inserts.get(),
            used_bytes: index.map_or(0, Index::used) * cluster,
            capacity_bytes: index.map_or(0, |index| index.shape().slots()) * cluster,
        };
        CacheCounts {
            ssd,
            ssd_mismatches: self.counters.mismatches.get(),
            ssd_dropped: self.counters.dropped.get(),
            ssd_kept: self.counters.kept.get(),
            ssd_written_bytes: self.counters.written_bytes.get(),
            ..counts
        }
    }

    pub(super) fn note(&self, hits: u64, misses: u64) {
        add(&self.counters.hits, hits);
        add(&self.counters.misses, misses);
    }

    /// Where the cluster is, if it is here. Counts as a visit.
    pub(super) fn locate(&self, key: &CacheKey) -> Option<Place> {
        let mut contents = self.contents.borrow_mut();
        let contents = contents.as_mut()?;
        let found = contents.index.find(key)?;
        contents.index.visit(&found);
        Some(match contents.in_memory(found.slot, self.file.layout.cluster) {
            Some(bytes) => Place::Memory(bytes),
            None => Place::Disk(found),
        })
    }

    /// Makes the run one longer, if this cluster lies behind it in the same region.
    pub(super) fn extend(&self, run: &mut Run, found: &Found) -> bool {
        let shape = self.file.layout.shape;
        let follows = found.slot.0 == run.first.slot.0 + run.len() as u32
            && shape.region_of(found.slot) == shape.region_of(run.first.slot);
        if follows {
            run.crcs.push(found.crc);
        }
        follows
    }

    /// The clusters of a run up to the first that cannot be had.
    pub(super) async fn read(&self, run: &Run) -> Vec<Bytes> {
        let cluster = self.file.layout.cluster.bytes() as usize;
        let buf = AlignedBuf::recycled(run.len() * cluster);
        let read = self.file.file.read_at(buf, self.file.layout.offset_of(run.first.slot));
        let bytes = match self.patiently(READ_PATIENCE, read).await {
            Some(Ok(buf)) => buf.into_bytes(),
            Some(Err(fault)) => {
                self.go_offline(&fault);
                return Vec::new();
            }
            None => {
                self.go_offline(&Fault::unavailable("the disk does not answer"));
                return Vec::new();
            }
        };
        let mut contents = self.contents.borrow_mut();
        // Taken back while it was read: the bytes may be anything.
        let contents = contents.as_mut().filter(|c| c.index.is_current(&run.first));
        let Some(contents) = contents else { return Vec::new() };
        let clusters = bytes.chunks_exact(cluster).zip(&run.crcs);
        let good = clusters.take_while(|(bytes, crc)| ClusterCrc::of(bytes) == **crc).count();
        if good < run.len() {
            let slot = Slot(run.first.slot.0 + good as u32);
            self.drop_damaged(&mut contents.index, &run.first.beside(slot));
        }
        (0..good).map(|n| bytes.slice(n * cluster..(n + 1) * cluster)).collect()
    }

    fn drop_damaged(&self, index: &mut Index, found: &Found) {
        index.remove(found);
        add(&self.counters.mismatches, 1);
        let count = self.counters.mismatches.get();
        // A disk that rots would fill the log.
        if count.is_power_of_two() {
            tracing::warn!(count, "clusters on the read cache's disk do not match their checksums");
        }
    }

    /// A cluster that leaves memory. Waits for nothing; may decide to keep nothing.
    pub(super) fn offer(&self, key: &CacheKey, cluster: &[u8], heat: Heat) {
        let usual = self.file.layout.cluster.bytes();
        let mut contents = self.contents.borrow_mut();
        let Some(contents) = contents.as_mut() else { return };
        if cluster.len() as u64 != usual || contents.index.find(key).is_some() {
            return;
        }
        let known = contents.door.knows(key);
        let Some(batch) = &mut contents.filling else {
            add(&self.counters.dropped, 1);
            return;
        };
        if !(batch.open.is_fresh || known || heat == Heat::Hot) || self.is_closing.get() {
            return;
        }
        if batch.take(&mut contents.index, key, ClusterCrc::of(cluster), cluster) {
            add(&self.counters.inserts, 1);
        }
        if batch.open.used() == self.file.layout.shape.region_slots {
            contents.full.extend(contents.filling.take());
            contents.filling = contents.next.take();
            self.bell.notify_one();
        }
    }

    /// Takes no more clusters, brings what is here to the disk and leaves a catalogue. Bounded in time; without the catalogue
    /// the next start begins empty.
    pub(super) async fn close(&self) {
        if matches!(*self.state.borrow(), SsdState::Offline(_) | SsdState::Closed) {
            return;
        }
        self.is_closing.set(true);
        self.bell.notify_one();
        if self.patiently(CLOSE_PATIENCE, self.ended.notified()).await.is_none() {
            self.go_offline(&Fault::unavailable("the disk does not answer"));
        }
    }

    pub(super) fn go_offline(&self, why: &Fault) {
        if self.contents.borrow_mut().take().is_some() {
            tracing::warn!(%why, "the read cache goes on without its disk until the next start");
            *self.state.borrow_mut() = SsdState::Offline(why.to_string());
        }
        self.bell.notify_one();
    }

    /// `None`: it took too long.
    async fn patiently<T>(&self, patience: Duration, work: impl Future<Output = T>) -> Option<T> {
        let patience = self.world.sleep(patience);
        futures_util::pin_mut!(work, patience);
        match select(work, patience).await {
            Either::Left((done, _)) => Some(done),
            Either::Right(_) => None,
        }
    }
}

impl Contents {
    /// The cluster, if its region is still in memory.
    fn in_memory(&self, slot: Slot, cluster: ClusterSize) -> Option<Bytes> {
        let shape = self.index.shape();
        let region = shape.region_of(slot);
        let batches = self.full.iter().chain(&self.filling).chain(&self.next);
        let mut batches = batches.filter(|batch| batch.open.region == region);
        let at = (slot.0 - shape.first_slot(region).0) as usize * cluster.bytes() as usize;
        let range = at..at + cluster.bytes() as usize;
        batches.next().map(|batch| batch.area.slice(range).into_bytes())
    }

    /// A region should be taken back, for clusters that come.
    fn region_is_needed(&self) -> bool {
        let being_filled = usize::from(self.filling.is_some()) + usize::from(self.next.is_some());
        being_filled < 2 && self.full.len() + being_filled < MOST_BATCHES
    }
}

impl Batch {
    /// `false`: the index does not want it.
    fn take(&mut self, index: &mut Index, key: &CacheKey, crc: ClusterCrc, cluster: &[u8]) -> bool {
        let at = self.open.used() as usize * cluster.len();
        let taken = index.insert(&mut self.open, key, crc).is_some();
        if taken {
            self.area.fill(at, cluster);
        }
        taken
    }

    fn region(&self) -> RegionNo {
        self.open.region
    }
}
