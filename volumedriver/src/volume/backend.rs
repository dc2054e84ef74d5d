//! Reading clusters of published SCOs from the backend, every one checked against its checksum (P2).
//!
//! The checksums of an SCO and, if it is in frames, where these lie, are its table: read once from the footer (or kept when this
//! node uploaded it) and held in a bounded cache. Where the store keeps objects in local files they are read directly; a mismatch
//! there falls back to the store, which may have another copy, and only then is an error, for exactly the clusters concerned.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use volumedriver_core::fault::{Fault, Kind, Result};
use volumedriver_core::format::manifest::Origin;
use volumedriver_core::format::names;
use volumedriver_core::format::sco::{ScoFooter, ScoForm, ScoTrailer, TRAILER_BYTES};
use volumedriver_core::units::{ClusterCrc, ClusterSize, ScoId, ScoSeq, VolumeId};

use crate::codec::{Frames, KeyRing, Opened};
use crate::io::buf::AlignedBuf;
use crate::metrics::{ShardMetrics, Stage};
use crate::world::{Disk, DiskFile, ObjectStore, World};

/// First guess at the size of a footer, bytes: what one request fetches from the end of an object.
const TAIL_BYTES: u64 = 64 * 1024;
/// Direct reads of local files begin and end at multiples of this, bytes.
const ALIGN: u64 = 4096;
/// Unpacking more than this, bytes of clusters, is done off the shard's thread: about 50 µs of work.
const UNPACKED_HERE: u64 = 128 * 1024;

/// An SCO wherever it lives: the volume and epoch that wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ScoKey {
    pub volume: VolumeId,
    pub id: ScoId,
}

impl ScoKey {
    pub fn new(origin: Origin, seq: ScoSeq) -> Self {
        Self { volume: origin.volume, id: ScoId { epoch: origin.epoch, seq } }
    }
}

/// Entries used lately; at the limit the least recently used quarter leaves.
struct Recent<V> {
    /// Looked at for every read: hashed fast. The keys are our own, nobody can choose them to collide.
    entries: RefCell<HashMap<ScoKey, (V, u64), foldhash::fast::RandomState>>,
    most: usize,
    clock: Cell<u64>,
}

impl<V: Clone> Recent<V> {
    fn new(most: usize) -> Self {
        Self { entries: RefCell::default(), most: most.max(4), clock: Cell::new(0) }
    }
    fn tick(&self) -> u64 {
        self.clock.set(self.clock.get() + 1);
        self.clock.get()
    }
    fn get(&self, key: ScoKey) -> Option<V> {
        let now = self.tick();
        let mut entries = self.entries.borrow_mut();
        let (value, used) = entries.get_mut(&key)?;
        *used = now;
        Some(value.clone())
    }
    fn put(&self, key: ScoKey, value: V) {
        let now = self.tick();
        let mut entries = self.entries.borrow_mut();
        if entries.len() >= self.most {
            let mut ages: Vec<u64> = entries.values().map(|(_, used)| *used).collect();
            let quarter = ages.len() / 4;
            let (_, &mut limit, _) = ages.select_nth_unstable(quarter);
            entries.retain(|_, (_, used)| *used > limit);
        }
        entries.insert(key, (value, now));
    }
    fn forget(&self, volume: VolumeId) {
        self.entries.borrow_mut().retain(|key, _| key.volume != volume);
    }
}

type FileOf<W> = <<W as World>::Disk as Disk>::File;

/// What it takes to read the clusters of an SCO.
pub struct Table {
    /// By index in the SCO.
    crcs: Vec<ClusterCrc>,
    /// `None`: the clusters lie one after the other from the object's first byte on.
    frames: Option<Arc<Frames>>,
}

impl Table {
    pub fn new(crcs: Vec<ClusterCrc>, frames: Option<Frames>) -> Self {
        Self { crcs, frames: frames.map(Arc::new) }
    }
}

/// An SCO as it is stored.
struct Stored {
    object_bytes: u64,
    footer: ScoFooter,
    table: Table,
}

/// The backend as a shard's volumes read it.
pub struct Backend<W: World> {
    world: W,
    metrics: ShardMetrics,
    keys: RefCell<Arc<KeyRing>>,
    tables: Recent<Rc<Table>>,
    /// `None`: the store has no local file of it.
    files: Recent<Option<FileOf<W>>>,
}

/// How many of what a backend holds.
#[derive(Clone, Copy, Debug)]
pub struct Most {
    /// SCOs whose tables are held (64 KiB each for 64 MiB of 4 KiB clusters, 96 KiB in frames).
    pub tables: usize,
    /// Objects held open.
    pub files: usize,
}

/// Which clusters of an SCO are asked for.
#[derive(Clone, Copy)]
struct Wanted {
    key: ScoKey,
    cluster: ClusterSize,
    first: u32,
    count: u32,
}

impl<W: World> Backend<W> {
    pub fn new(world: W, metrics: ShardMetrics, keys: Arc<KeyRing>, most: Most) -> Self {
        let (tables, files) = (Recent::new(most.tables), Recent::new(most.files));
        Self { world, metrics, keys: RefCell::new(keys), tables, files }
    }

    pub fn keys(&self) -> Arc<KeyRing> {
        self.keys.borrow().clone()
    }

    /// These keys count from now on.
    pub fn set_keys(&self, keys: Arc<KeyRing>) {
        *self.keys.borrow_mut() = keys;
    }

    /// The volume's objects are being deleted: an open file would keep its room.
    pub fn forget(&self, volume: VolumeId) {
        self.tables.forget(volume);
        self.files.forget(volume);
    }

    /// Clusters in the SCO.
    pub async fn cluster_count(&self, key: ScoKey, cluster: ClusterSize) -> Result<u32> {
        Ok(self.table(key, cluster).await?.crcs.len() as u32)
    }

    /// Reads `count` clusters from `first` on, verified.
    pub async fn read(
        &self,
        key: ScoKey,
        cluster: ClusterSize,
        first: u32,
        count: u32,
    ) -> Result<Bytes> {
        let table = match self.tables.get(key) {
            Some(known) => known,
            None => Box::pin(self.table(key, cluster)).await?,
        };
        let crcs = table.crcs.get(first as usize..(first + count) as usize);
        let Some(crcs) = crcs else {
            return Err(Fault::corrupt(format!(
                "the map names cluster {first} of SCO {}, which has fewer",
                key.id
            )));
        };
        let file = match self.files.get(key) {
            Some(known) => known,
            None => Box::pin(self.local_file(key)).await,
        };
        let wanted = Wanted { key, cluster, first, count };
        if let Some(frames) = &table.frames {
            return Box::pin(self.read_frames(wanted, frames, crcs, file)).await;
        }
        if let Some(file) = file {
            let at = u64::from(first) * cluster.bytes();
            let buf = AlignedBuf::recycled((u64::from(count) * cluster.bytes()) as usize);
            match file.read_at(buf, at).await {
                Ok(bytes) if self.verify(&bytes, crcs, cluster).is_none() => {
                    return Ok(bytes.into_bytes());
                }
                Ok(_) => {
                    tracing::warn!(sco = %key.id, first, "damaged in the local file; asking the store")
                }
                Err(fault) => {
                    tracing::warn!(sco = %key.id, %fault, "local file unreadable; asking the store")
                }
            }
        }
        Box::pin(self.read_object(key, cluster, first, crcs)).await
    }

    /// The same out of an SCO in frames.
    async fn read_frames(
        &self,
        wanted: Wanted,
        frames: &Arc<Frames>,
        crcs: &[ClusterCrc],
        file: Option<FileOf<W>>,
    ) -> Result<Bytes> {
        let Some(range) = frames.range(wanted.first, wanted.count) else {
            return Err(Fault::corrupt(format!("SCO {} has fewer frames", wanted.key.id)));
        };
        if let Some(file) = file {
            let (start, end) = (range.start / ALIGN * ALIGN, range.end.next_multiple_of(ALIGN));
            // The last frames may end in the file's last block, which cannot be read directly.
            if end <= file.len() {
                let buf = AlignedBuf::recycled((end - start) as usize);
                let within = (range.start - start) as usize..(range.end - start) as usize;
                let read = match file.read_at(buf, start).await {
                    Ok(bytes) => {
                        let stored = bytes.into_bytes().slice(within);
                        self.unpack(wanted, frames, crcs, stored).await
                    }
                    Err(fault) => Err(fault),
                };
                match read {
                    Ok(bytes) => return Ok(bytes),
                    Err(fault) => {
                        let sco = wanted.key.id;
                        tracing::warn!(%sco, %fault, "damaged in the local file; asking the store");
                    }
                }
            }
        }
        let (namespace, name) = (names::namespace(wanted.key.volume), names::sco(wanted.key.id));
        let mut last = None;
        for _attempt in 0..2 {
            let store = self.world.store();
            let len = range.end - range.start;
            let found = store.get_range(&namespace, &name, range.start, len).await?;
            let Some(stored) = found else { return Err(missing(&namespace, &name)) };
            match self.unpack(wanted, frames, crcs, stored).await {
                Ok(bytes) => return Ok(bytes),
                Err(fault) => last = Some(fault),
            }
        }
        let last = last.unwrap_or_else(|| Fault::bug("no attempt was made"));
        Err(last.about(format!("{namespace}/{name}")))
    }

    /// The wanted clusters out of the bytes of their frames, verified.
    async fn unpack(
        &self,
        wanted: Wanted,
        frames: &Arc<Frames>,
        crcs: &[ClusterCrc],
        stored: Bytes,
    ) -> Result<Bytes> {
        let Wanted { cluster, first, count, .. } = wanted;
        let bytes = if u64::from(count) * cluster.bytes() <= UNPACKED_HERE {
            frames.unpack(first, count, &stored)?
        } else {
            let frames = frames.clone();
            self.world.compute(move || frames.unpack(first, count, &stored)).await?
        };
        match self.verify(&bytes, crcs, cluster) {
            None => Ok(bytes),
            Some(bad) => {
                let at = u64::from(first) + bad as u64;
                Err(Fault::corrupt(format!("cluster {at} does not match its checksum")))
            }
        }
    }

    async fn read_object(
        &self,
        key: ScoKey,
        cluster: ClusterSize,
        first: u32,
        crcs: &[ClusterCrc],
    ) -> Result<Bytes> {
        let (namespace, name) = (names::namespace(key.volume), names::sco(key.id));
        let at = u64::from(first) * cluster.bytes();
        let len = crcs.len() as u64 * cluster.bytes();
        let mut bad = None;
        for _attempt in 0..2 {
            let found = self.world.store().get_range(&namespace, &name, at, len).await?;
            let Some(bytes) = found else { return Err(missing(&namespace, &name)) };
            bad = self.verify(&bytes, crcs, cluster);
            if bad.is_none() {
                return Ok(bytes);
            }
        }
        let at = u64::from(first) + bad.unwrap_or(0) as u64;
        Err(Fault::corrupt(format!(
            "cluster {at} of {namespace}/{name} does not match its checksum; restore the object or overwrite the range"
        )))
    }

    /// See [`first_bad`].
    fn verify(&self, bytes: &[u8], crcs: &[ClusterCrc], cluster: ClusterSize) -> Option<usize> {
        let began = self.metrics.sample().then(|| self.world.now());
        let bad = first_bad(bytes, crcs, cluster);
        if let Some(began) = began {
            self.metrics.stage(Stage::ReadVerify, self.world.now().saturating_sub(began));
        }
        bad
    }

    /// Keeps the table of an SCO this node just stored.
    pub fn learn(&self, key: ScoKey, table: Table) {
        self.tables.put(key, Rc::new(table));
    }

    /// The length of an SCO that is stored already, if it has exactly these contents; `None` if it has others.
    pub async fn stored_bytes(&self, key: ScoKey, footer: &ScoFooter) -> Result<Option<u64>> {
        let stored = self.fetch(key, footer.cluster_size).await?;
        if stored.footer != *footer {
            return Ok(None);
        }
        self.learn(key, stored.table);
        Ok(Some(stored.object_bytes))
    }

    async fn local_file(&self, key: ScoKey) -> Option<FileOf<W>> {
        let (namespace, name) = (names::namespace(key.volume), names::sco(key.id));
        let file = self.world.store().local_file(&namespace, &name).await.ok().flatten();
        let file = file.and_then(|file| self.world.adopt(file));
        self.files.put(key, file.clone());
        file
    }

    async fn table(&self, key: ScoKey, cluster: ClusterSize) -> Result<Rc<Table>> {
        if let Some(known) = self.tables.get(key) {
            return Ok(known);
        }
        let table = Rc::new(self.fetch(key, cluster).await?.table);
        self.tables.put(key, table.clone());
        Ok(table)
    }

    async fn fetch(&self, key: ScoKey, cluster: ClusterSize) -> Result<Stored> {
        let (namespace, name) = (names::namespace(key.volume), names::sco(key.id));
        let about = |fault: Fault| fault.about(format!("{namespace}/{name}"));
        let store = self.world.store();
        let Some(info) = store.head(&namespace, &name).await? else {
            return Err(missing(&namespace, &name));
        };
        let mut attempts = 0;
        loop {
            attempts += 1;
            match self.fetch_end(&namespace, &name, info.len).await {
                Ok(Stored { footer, .. })
                    if (footer.volume, footer.id, footer.cluster_size)
                        != (key.volume, key.id, cluster) =>
                {
                    return Err(about(Fault::corrupt("holds another SCO than its name says")));
                }
                Ok(stored) => return Ok(stored),
                Err(fault) if fault.kind == Kind::Corrupt && attempts < 2 => {}
                Err(fault) => return Err(about(fault)),
            }
        }
    }

    async fn fetch_end(&self, namespace: &str, name: &str, len: u64) -> Result<Stored> {
        let tail = self.tail(namespace, name, len, TAIL_BYTES.min(len)).await?;
        let trailer = ScoTrailer::decode(&tail)?;
        let wanted = u64::from(trailer.footer_bytes) + TRAILER_BYTES as u64;
        if wanted > len {
            return Err(Fault::corrupt("the footer claims to be longer than the object"));
        }
        let end = if wanted <= tail.len() as u64 {
            tail.slice(tail.len() - wanted as usize..)
        } else {
            self.tail(namespace, name, len, wanted).await?
        };
        let (footer, frames) = match trailer.form {
            ScoForm::Plain => (ScoFooter::decode(&end)?, None),
            ScoForm::Framed => {
                let keys = self.keys();
                let Opened { footer, frames } = Opened::open(&end, &keys)?;
                if frames.table.data_bytes() + wanted != len {
                    return Err(Fault::corrupt("its frames and footer are not all of the object"));
                }
                (footer, Some(frames))
            }
        };
        let table = Table::new(footer.crcs(), frames);
        Ok(Stored { object_bytes: len, footer, table })
    }

    async fn tail(&self, namespace: &str, name: &str, len: u64, wanted: u64) -> Result<Bytes> {
        let found = self.world.store().get_range(namespace, name, len - wanted, wanted).await?;
        found.ok_or_else(|| missing(namespace, name))
    }
}

fn missing(namespace: &str, name: &str) -> Fault {
    Fault::corrupt(format!("{namespace}/{name} is missing on the backend"))
}

/// Index of the first cluster that does not match its checksum.
fn first_bad(bytes: &[u8], crcs: &[ClusterCrc], cluster: ClusterSize) -> Option<usize> {
    let clusters = bytes.chunks_exact(cluster.bytes() as usize);
    if clusters.len() != crcs.len() {
        return Some(clusters.len().min(crcs.len()));
    }
    clusters.zip(crcs).position(|(bytes, crc)| ClusterCrc::of(bytes) != *crc)
}
