//! Reading clusters of published SCOs from the backend, every one checked against its checksum (P2).
//!
//! The checksums of an SCO are its index: read once from the footer (or kept when this node uploaded it) and held in a bounded
//! cache. Where the store keeps objects in local files they are read directly; a mismatch there falls back to the store,
//! which may have another copy, and only then is an error, for exactly the clusters concerned.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use bytes::Bytes;
use volumedriver_core::fault::{Fault, Kind, Result};
use volumedriver_core::format::manifest::Origin;
use volumedriver_core::format::names;
use volumedriver_core::format::sco::{ScoFooter, ScoTrailer};
use volumedriver_core::units::{ClusterCrc, ClusterSize, ScoId, ScoSeq, VolumeId};

use crate::io::buf::AlignedBuf;
use crate::metrics::{ShardMetrics, Stage};
use crate::world::{Disk, DiskFile, ObjectStore, World};

/// First guess at the size of a footer, bytes: what one request fetches from the end of an object.
const TAIL_BYTES: u64 = 64 * 1024;

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

/// The backend as a shard's volumes read it.
pub struct Backend<W: World> {
    world: W,
    metrics: ShardMetrics,
    crcs: Recent<Rc<[ClusterCrc]>>,
    /// `None`: the store has no local file of it.
    files: Recent<Option<FileOf<W>>>,
}

impl<W: World> Backend<W> {
    /// `most_tables`: SCOs whose checksums are held (64 KiB each for 64 MiB of 4 KiB clusters). `most_files`: objects held open.
    pub fn new(world: W, metrics: ShardMetrics, most_tables: usize, most_files: usize) -> Self {
        Self { world, metrics, crcs: Recent::new(most_tables), files: Recent::new(most_files) }
    }

    /// The volume's objects are being deleted: an open file would keep its room.
    pub fn forget(&self, volume: VolumeId) {
        self.crcs.forget(volume);
        self.files.forget(volume);
    }

    /// Clusters in the SCO.
    pub async fn cluster_count(&self, key: ScoKey, cluster: ClusterSize) -> Result<u32> {
        Ok(self.crcs(key, cluster).await?.len() as u32)
    }

    /// Reads `count` clusters from `first` on, verified.
    pub async fn read(
        &self,
        key: ScoKey,
        cluster: ClusterSize,
        first: u32,
        count: u32,
    ) -> Result<Bytes> {
        let crcs = match self.crcs.get(key) {
            Some(known) => known,
            None => Box::pin(self.crcs(key, cluster)).await?,
        };
        let crcs = crcs.get(first as usize..(first + count) as usize);
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

    /// Keeps the checksums of an SCO this node just uploaded.
    pub fn learn(&self, key: ScoKey, crcs: &[ClusterCrc]) {
        self.crcs.put(key, crcs.into());
    }

    async fn local_file(&self, key: ScoKey) -> Option<FileOf<W>> {
        let (namespace, name) = (names::namespace(key.volume), names::sco(key.id));
        let file = self.world.store().local_file(&namespace, &name).await.ok().flatten();
        let file = file.and_then(|file| self.world.adopt(file));
        self.files.put(key, file.clone());
        file
    }

    async fn crcs(&self, key: ScoKey, cluster: ClusterSize) -> Result<Rc<[ClusterCrc]>> {
        if let Some(known) = self.crcs.get(key) {
            return Ok(known);
        }
        let crcs: Rc<[ClusterCrc]> = self.fetch_crcs(key, cluster).await?.into();
        self.crcs.put(key, crcs.clone());
        Ok(crcs)
    }

    async fn fetch_crcs(&self, key: ScoKey, cluster: ClusterSize) -> Result<Vec<ClusterCrc>> {
        let (namespace, name) = (names::namespace(key.volume), names::sco(key.id));
        let about = |fault: Fault| fault.about(format!("{namespace}/{name}"));
        let store = self.world.store();
        let Some(info) = store.head(&namespace, &name).await? else {
            return Err(missing(&namespace, &name));
        };
        let mut attempts = 0;
        loop {
            attempts += 1;
            match self.fetch_footer(&namespace, &name, info.len).await {
                Ok(footer) if footer.id != key.id || footer.cluster_size != cluster => {
                    return Err(about(Fault::corrupt("holds another SCO than its name says")));
                }
                Ok(footer) => return Ok(footer.crcs()),
                Err(fault) if fault.kind == Kind::Corrupt && attempts < 2 => {}
                Err(fault) => return Err(about(fault)),
            }
        }
    }

    async fn fetch_footer(&self, namespace: &str, name: &str, len: u64) -> Result<ScoFooter> {
        let tail = self.tail(namespace, name, len, TAIL_BYTES.min(len)).await?;
        let trailer = ScoTrailer::decode(&tail)?;
        let wanted =
            u64::from(trailer.footer_bytes) + volumedriver_core::format::sco::TRAILER_BYTES as u64;
        if wanted > len {
            return Err(Fault::corrupt("the footer claims to be longer than the object"));
        }
        let end = if wanted <= tail.len() as u64 {
            tail.slice(tail.len() - wanted as usize..)
        } else {
            self.tail(namespace, name, len, wanted).await?
        };
        ScoFooter::decode(&end)
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
