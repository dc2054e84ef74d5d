//! What lives on the shard's thread: the shard, the registry of its vDisks, and the answers to management.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt};
use tokio::sync::{Mutex, mpsc};
use volumedriver_core::fault::{Fault, Kind, Result};
use volumedriver_core::format::names;
use volumedriver_core::units::{ByteCount, Epoch, ManifestNo, NodeId, Seq, VolumeId};

use super::probing::Prober;
use super::world::RealWorld;
use crate::admin::door::Command;
use crate::admin::{
    Attached, BackendInfo, CacheDisk, CacheInfo, CreateSpec, EngineStatus, SpaceInfo, VdiskInfo,
    VdiskState,
};
use crate::buffer;
use crate::cache::ssd::{REGION_BYTES, SsdConfig, SsdState};
use crate::cache::{self, DiskTier};
use crate::codec::KeyRing;
use crate::config::{Config, VdiskSettings};
use crate::io;
use crate::io::disk::RealDisk;
use crate::local::{Entry, Pages, Registry, Standing};
use crate::metrics::Metrics;
use crate::shard::{Desk, Directory, Shard, ShardConfig, VolumeSpec};
use crate::store::AnyStore;
use crate::volume::{State, Volume, chain};
use crate::world::{Disk, ObjectStore, World};

/// Volumes opened at the same time at start.
const OPENING: usize = 16;
/// Start waits this long for volumes to open; those whose backend is out of reach open later.
const START_PATIENCE: Duration = Duration::from_secs(20);
/// How often gauges are brought up to date.
pub(super) const GAUGE_PERIOD: Duration = Duration::from_secs(1);

/// What a host is made of.
pub(super) struct Kit {
    pub config: Arc<Config>,
    pub node: NodeId,
    pub engine: io::Engine,
    pub store: AnyStore,
    pub prober: Prober,
    pub pages: Pages,
    pub registry: Registry,
    pub keys: Arc<KeyRing>,
    pub metrics: Arc<Metrics>,
}

/// See the module's header.
pub(super) struct Host {
    shard: Rc<Shard<RealWorld>>,
    desk: Desk,
    directory: Directory,
    registry: Registry,
    metrics: Arc<Metrics>,
    engine: io::Engine,
    store: AnyStore,
    prober: Prober,
    state: std::cell::RefCell<Known>,
    /// Creating and deleting go one at a time.
    names: Mutex<()>,
}

struct Known {
    config: Arc<Config>,
    /// Every vDisk of the registry, open or not.
    vdisks: BTreeMap<String, Listed>,
}

#[derive(Clone)]
struct Listed {
    id: VolumeId,
    /// Why it is not open; empty while it is being opened.
    failed: Option<String>,
}

impl Host {
    /// Replays the write buffer, finds the vDisks and opens them. Those whose backend does not answer go on opening.
    pub(super) async fn open(kit: Kit, desk: Desk, directory: Directory) -> Result<Rc<Self>> {
        let config = &kit.config;
        super::datadir::create_dir(&config.buffer.directory)?;
        let disk = RealDisk::open(&config.buffer.directory, kit.engine)?;
        check_room(&disk, config).await?;
        let world = RealWorld::new(disk, kit.store.clone(), kit.pages.clone());
        let (cache_world, cache_disk) = cache_world(&world, config, (kit.node, kit.engine)).await;
        let sizes = shard_config(config, kit.node, &kit.metrics, (cache_disk, kit.keys));
        let shard = Shard::open(world, cache_world, sizes).await?;
        let host = Rc::new(Self {
            shard,
            desk,
            directory,
            registry: kit.registry,
            metrics: kit.metrics,
            engine: kit.engine,
            store: kit.store,
            prober: kit.prober,
            state: std::cell::RefCell::new(Known { config: kit.config, vdisks: BTreeMap::new() }),
            names: Mutex::new(()),
        });
        host.clone().open_all().await?;
        tokio::task::spawn_local(host.clone().keep_gauges());
        Ok(host)
    }

    fn settings_of(&self, name: &str) -> VdiskSettings {
        let state = self.state.borrow();
        let config = &state.config;
        config.vdisks.get(name).unwrap_or(&config.vpool.settings).clone()
    }

    /// Opens what the registry knows, finishes deletions, then adopts what only the backend knows.
    async fn open_all(self: Rc<Self>) -> Result<()> {
        let entries = self.registry.list().await?;
        let (present, leaving): (Vec<_>, Vec<_>) =
            entries.into_iter().partition(|e| e.standing == Standing::Present);
        for entry in &present {
            self.announce(entry);
        }
        let known: Vec<VolumeId> = present.iter().chain(&leaving).map(|e| e.id).collect();
        for entry in leaving {
            tokio::task::spawn_local(self.clone().finish_deletion(entry));
        }
        let host = self.clone();
        let opening = tokio::task::spawn_local(async move {
            let open = |entry: Entry| host.clone().open_one(entry);
            stream::iter(present).for_each_concurrent(OPENING, open).await;
            if let Err(fault) = host.clone().adopt_unknown(&known).await {
                tracing::warn!(%fault, "the backend cannot be asked for vDisks this node does not know");
            }
            host.forget_unclaimed();
            host.shard.settle();
        });
        // A time-out is fine: opening goes on behind.
        let _still_opening = tokio::time::timeout(START_PATIENCE, opening).await;
        Ok(())
    }

    fn announce(&self, entry: &Entry) {
        self.directory.announce(&entry.name);
        let known = Listed { id: entry.id, failed: None };
        self.state.borrow_mut().vdisks.insert(entry.name.clone(), known);
        self.metrics.volume(&entry.name).set_state(VdiskState::Opening.name());
    }

    async fn open_one(self: Rc<Self>, entry: Entry) {
        let settings = self.settings_of(&entry.name);
        match self.shard.open_patiently(entry.id, settings).await {
            Ok(volume) => self.desk.show(&volume),
            Err(fault) => {
                tracing::error!(vdisk = entry.name, %fault, "cannot be opened");
                self.directory.failed(&entry.name, fault.to_string());
                if let Some(known) = self.state.borrow_mut().vdisks.get_mut(&entry.name) {
                    known.failed = Some(fault.to_string());
                }
            }
        }
    }

    /// Volumes on the backend that the registry lacks: it was lost, or a creation was cut short after its manifest.
    async fn adopt_unknown(self: Rc<Self>, known: &[VolumeId]) -> Result<()> {
        let world = &self.shard.shared().world;
        let namespaces = self.store.list_namespaces(names::NAMESPACE_PREFIX).await?;
        for id in namespaces.iter().filter_map(|n| names::volume_of(n)) {
            if known.contains(&id) {
                continue;
            }
            match chain::load(world, id).await {
                Ok(Some(found)) => self.clone().adopt(id, found.shape.name).await?,
                Ok(None) => {
                    tracing::warn!(volume = %id, "a namespace without a manifest: a creation that was cut short")
                }
                Err(fault) => {
                    tracing::error!(volume = %id, %fault, "a volume on the backend cannot be read")
                }
            }
        }
        Ok(())
    }

    async fn adopt(self: Rc<Self>, id: VolumeId, name: String) -> Result<()> {
        if self.state.borrow().vdisks.contains_key(&name) {
            tracing::error!(name, volume = %id, "two volumes on the backend have this name; this one stays closed");
            return Ok(());
        }
        let entry = Entry { name, id, standing: Standing::Present };
        self.registry.put(&entry).await?;
        self.announce(&entry);
        self.open_one(entry).await;
        Ok(())
    }

    /// Buffered data of volumes that are in no registry: they were deleted.
    fn forget_unclaimed(&self) {
        let known: Vec<VolumeId> = self.state.borrow().vdisks.values().map(|k| k.id).collect();
        for id in self.shard.unclaimed() {
            if !known.contains(&id) {
                tracing::info!(volume = %id, "gives up buffered data of a volume that no longer exists");
                self.shard.forget(id);
            }
        }
    }

    async fn finish_deletion(self: Rc<Self>, entry: Entry) {
        loop {
            match self.shard.delete(entry.id).await {
                Ok(()) => break,
                Err(fault) => tracing::warn!(vdisk = entry.name, %fault, "deletion goes on later"),
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        if let Err(fault) = self.registry.remove(&entry.name).await {
            tracing::warn!(vdisk = entry.name, %fault, "deleted, but the registry cannot be written");
        }
    }

    /// Answers management until its door is gone.
    pub(super) async fn answer(self: Rc<Self>, mut commands: mpsc::Receiver<Command>) {
        while let Some(command) = commands.recv().await {
            tokio::task::spawn_local(self.clone().carry_out(command));
        }
    }

    async fn carry_out(self: Rc<Self>, command: Command) {
        // Whoever asked may have gone: what was asked is done all the same.
        let _unheard = match command {
            Command::Create(spec, answer) => answer.send(self.create(spec).await).is_err(),
            Command::List(answer) => answer.send(Ok(self.list())).is_err(),
            Command::Show(name, answer) => answer.send(self.show(&name)).is_err(),
            Command::Resize(name, size, answer) => {
                answer.send(self.resize(&name, size).await).is_err()
            }
            Command::Delete(name, attached, answer) => {
                answer.send(self.delete(&name, attached).await).is_err()
            }
            Command::AcceptLoss(name, attached, answer) => {
                answer.send(self.accept_loss(&name, attached).await).is_err()
            }
            Command::Flush(name, answer) => answer.send(self.flush(&name).await).is_err(),
            Command::Status(answer) => answer.send(Ok(self.status())).is_err(),
            Command::Backend(answer) => answer.send(Ok(self.backend().await)).is_err(),
            Command::Probe(answer) => answer.send(self.prober.probe().await).is_err(),
            Command::Reload(config, answer) => answer.send(self.reload(config).await).is_err(),
        };
    }

    async fn create(&self, spec: CreateSpec) -> Result<VdiskInfo> {
        let _one_at_a_time = self.names.lock().await;
        if self.state.borrow().vdisks.contains_key(&spec.name) {
            return Err(Fault::invalid(format!("there is a vDisk named {:?} already", spec.name)));
        }
        let entry = Entry {
            name: spec.name.clone(),
            id: VolumeId(self.shard.shared().world.random_id()),
            standing: Standing::Present,
        };
        let made = VolumeSpec {
            name: spec.name.clone(),
            size: spec.size,
            cluster_size: spec.cluster_size,
            settings: spec.settings,
        };
        let volume = match self.shard.create(entry.id, made).await {
            Ok(volume) => volume,
            Err(fault) => {
                self.sweep(entry.id);
                return Err(fault);
            }
        };
        self.registry.put(&entry).await?;
        self.announce(&entry);
        self.desk.show(&volume);
        Ok(self.info_of(&entry.name, &volume))
    }

    /// Removes what there is of a volume that was not made. Nobody else will ever ask for its id.
    fn sweep(&self, id: VolumeId) {
        let world = self.shard.shared().world.clone();
        self.shard.shared().world.spawn(async move {
            let removed = world.store().delete_namespace(&names::namespace(id)).await;
            if let Err(fault) = removed {
                tracing::warn!(%id, %fault, "what there is of a vDisk that was not created stays on the backend");
            }
        });
    }

    fn volume(&self, name: &str) -> Result<Rc<Volume<RealWorld>>> {
        let known = self.known(name)?;
        self.shard.get(known.id).ok_or_else(|| match known.failed {
            Some(why) => Fault::unavailable(format!("vDisk {name} cannot be opened: {why}")),
            None => Fault::unavailable(format!("vDisk {name} is still being opened")),
        })
    }

    fn known(&self, name: &str) -> Result<Listed> {
        let state = self.state.borrow();
        let unknown = || Fault::invalid(format!("there is no vDisk named {name:?}"));
        state.vdisks.get(name).cloned().ok_or_else(unknown)
    }

    fn list(&self) -> Vec<VdiskInfo> {
        let state = self.state.borrow();
        state.vdisks.iter().map(|(name, known)| self.info(name, known)).collect()
    }

    fn show(&self, name: &str) -> Result<VdiskInfo> {
        Ok(self.info(name, &self.known(name)?))
    }

    fn info(&self, name: &str, known: &Listed) -> VdiskInfo {
        match self.shard.get(known.id) {
            Some(volume) => self.info_of(name, &volume),
            None => closed_info(name, known),
        }
    }

    fn info_of(&self, name: &str, volume: &Volume<RealWorld>) -> VdiskInfo {
        let (epoch, manifest) = volume.with_core(|core| (core.epoch(), core.head()));
        VdiskInfo {
            name: name.to_owned(),
            id: volume.id(),
            size: volume.size(),
            cluster_size: volume.cluster_size(),
            settings: volume.settings(),
            state: state_of(volume),
            epoch,
            manifest,
            last_seq: volume.last_seq(),
            published_seq: volume.published_seq(),
            backlog: volume.backlog(),
            upload_lag: volume.upload_lag(),
            connections: self.directory.connections(name),
            space: space_of(volume),
            keys: volume.keys().iter().map(ToString::to_string).collect(),
        }
    }

    async fn resize(&self, name: &str, size: ByteCount) -> Result<VdiskInfo> {
        let volume = self.volume(name)?;
        volume.resize(size).await?;
        self.directory.refresh(&volume);
        Ok(self.info_of(name, &volume))
    }

    async fn delete(&self, name: &str, attached: Attached) -> Result<()> {
        let _one_at_a_time = self.names.lock().await;
        let known = self.known(name)?;
        self.check_detached(name, attached, "delete")?;
        if let Some(volume) = self.shard.get(known.id) {
            volume.confirm_owner().await?;
        }
        let leaving = Entry { name: name.to_owned(), id: known.id, standing: Standing::Leaving };
        self.registry.put(&leaving).await?;
        self.desk.hide(known.id);
        self.directory.remove(name);
        self.state.borrow_mut().vdisks.remove(name);
        self.metrics.forget_volume(name);
        match self.shard.delete(known.id).await {
            // Another node's since just now: this one has nothing more to do with it.
            Err(fault) if fault.kind == Kind::Fenced => {
                self.registry.remove(name).await?;
                return Err(fault);
            }
            outcome => outcome?,
        }
        self.registry.remove(name).await
    }

    async fn accept_loss(self: &Rc<Self>, name: &str, attached: Attached) -> Result<VdiskInfo> {
        let _one_at_a_time = self.names.lock().await;
        let known = self.known(name)?;
        self.volume(name)?;
        self.check_detached(name, attached, "accept the loss")?;
        self.shard.accept_loss(known.id).await?;
        self.desk.hide(known.id);
        let entry = Entry { name: name.to_owned(), id: known.id, standing: Standing::Present };
        self.announce(&entry);
        self.clone().open_one(entry).await;
        let volume = self.volume(name)?;
        Ok(self.info_of(name, &volume))
    }

    fn check_detached(&self, name: &str, attached: Attached, to_do: &str) -> Result<()> {
        let connections = self.directory.connections(name);
        if attached == Attached::Refuse && connections > 0 {
            return Err(Fault::invalid(format!(
                "vDisk {name} has {connections} connections; disconnect them, or {to_do} with --force"
            )));
        }
        Ok(())
    }

    async fn flush(&self, name: &str) -> Result<VdiskInfo> {
        let volume = self.volume(name)?;
        volume.drain().await?;
        Ok(self.info_of(name, &volume))
    }

    fn status(&self) -> EngineStatus {
        let buffer = &self.shard.shared().buffer;
        EngineStatus {
            io_engine: match self.engine {
                io::Engine::Uring => "uring",
                io::Engine::Psync => "psync",
            },
            shards: 1,
            buffer_capacity: ByteCount(buffer.capacity_bytes()),
            buffer_used: ByteCount(buffer.used_bytes()),
            cache: self.cache_info(),
            vdisks: self.list(),
        }
    }

    fn cache_info(&self) -> CacheInfo {
        let cache = &self.shard.shared().cache;
        let disk = match cache.disk_state() {
            SsdState::Off => CacheDisk::Off,
            SsdState::Warming => CacheDisk::Warming,
            SsdState::Serving => CacheDisk::Serving,
            SsdState::Offline(why) => CacheDisk::Offline(why),
            SsdState::Closed => CacheDisk::Closed,
        };
        CacheInfo { counts: cache.counts(), disk }
    }

    async fn backend(&self) -> BackendInfo {
        let began = Instant::now();
        let asked = self.store.list_namespaces(names::NAMESPACE_PREFIX).await;
        BackendInfo {
            url: self.state.borrow().config.vpool.backend.to_string(),
            namespaces: asked.map(|n| n.len() as u64).map_err(|f| f.to_string()),
            latency: began.elapsed(),
        }
    }

    /// Keys are read again too; refused when one is gone that an open vDisk needs.
    async fn reload(self: &Rc<Self>, config: Arc<Config>) -> Result<()> {
        let shared = self.shard.shared();
        let sources = config.key_sources();
        let keys = shared.world.compute(move || KeyRing::load(&sources)).await?;
        for volume in self.shard.volumes() {
            if let Some(gone) = volume.keys().into_iter().find(|key| !keys.has(*key)) {
                return Err(keys.lacks(gone, &format!("vDisk {}", volume.name())));
            }
        }
        shared.backend.set_keys(Arc::new(keys));
        self.state.borrow_mut().config = config;
        self.open_failed();
        for volume in self.shard.volumes() {
            volume.set_settings(self.settings_of(volume.name()));
        }
        Ok(())
    }

    /// What could not be opened perhaps can be now.
    fn open_failed(self: &Rc<Self>) {
        let mut entries = Vec::new();
        for (name, known) in &mut self.state.borrow_mut().vdisks {
            if known.failed.take().is_some() {
                let entry = Entry { name: name.clone(), id: known.id, standing: Standing::Present };
                entries.push(entry);
            }
        }
        for entry in entries {
            self.announce(&entry);
            tokio::task::spawn_local(self.clone().open_one(entry));
        }
    }

    async fn keep_gauges(self: Rc<Self>) {
        loop {
            for volume in self.shard.volumes() {
                self.directory.refresh(&volume);
                let gauges = self.metrics.volume(volume.name());
                gauges.set_backlog(volume.backlog());
                gauges.set_buffered(volume.held());
                let space = volume.space();
                gauges.set_uploaded(ByteCount(space.data_bytes), ByteCount(space.stored_bytes));
                let lag = volume.upload_lag();
                gauges.set_lag((lag > Duration::ZERO).then_some(lag));
                gauges.set_state(state_of(&volume).name());
            }
            let buffer = &self.shard.shared().buffer;
            let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
            self.metrics.buffer_capacity.set(bytes(buffer.capacity_bytes()));
            self.metrics.buffer_used.set(bytes(buffer.used_bytes()));
            let journal = buffer.counters();
            let metrics = &self.shard.shared().metrics;
            metrics.journal(journal.records, journal.written_bytes);
            metrics.cache(self.shard.shared().cache.counts());
            tokio::time::sleep(GAUGE_PERIOD).await;
        }
    }

    /// Uploads what the time allows, journals everything, ends.
    pub(super) async fn close(&self, within: Duration) -> Result<()> {
        self.shard.close(Some(within)).await
    }
}

fn state_of(volume: &Volume<RealWorld>) -> VdiskState {
    match volume.state() {
        State::Running => VdiskState::Running,
        State::ReadOnly(why) => VdiskState::ReadOnly(why),
        State::Fenced => VdiskState::Failed("another owner has taken over".to_owned()),
        State::Closed => VdiskState::Closing,
    }
}

/// A vDisk that is not open: only its name and why.
fn closed_info(name: &str, known: &Listed) -> VdiskInfo {
    VdiskInfo {
        name: name.to_owned(),
        id: known.id,
        size: ByteCount(0),
        cluster_size: volumedriver_core::units::ClusterSize::DEFAULT,
        settings: VdiskSettings::default(),
        state: known.failed.clone().map_or(VdiskState::Opening, VdiskState::Failed),
        epoch: Epoch(0),
        manifest: ManifestNo(0),
        last_seq: Seq(0),
        published_seq: Seq(0),
        backlog: ByteCount(0),
        upload_lag: Duration::ZERO,
        connections: 0,
        space: SpaceInfo::default(),
        keys: Vec::new(),
    }
}

fn space_of(volume: &Volume<RealWorld>) -> SpaceInfo {
    let space = volume.space();
    SpaceInfo { data: ByteCount(space.data_bytes), stored: ByteCount(space.stored_bytes) }
}

/// A buffer that cannot become as large as configured is refused before its first segment is made. Later, when something
/// else has filled the disk, writes wait for room instead.
async fn check_room(disk: &RealDisk, config: &Config) -> Result<()> {
    let (capacity, free) = (config.buffer.capacity.0, disk.free_bytes()?);
    let in_use = disk.list().await?.iter().any(|(name, _)| name.starts_with("segment-"));
    if in_use || free >= capacity {
        return Ok(());
    }
    Err(Fault::no_space(format!(
        "[buffer] capacity_bytes: {capacity} bytes do not fit into {}, where {free} are free",
        config.buffer.directory.display()
    )))
}

/// The world whose disk the cache lies on, and what the cache's disk tier is to be. A disk that cannot be used is no reason
/// not to start: then there is no such tier.
async fn cache_world(
    world: &RealWorld,
    config: &Config,
    (node, engine): (NodeId, io::Engine),
) -> (RealWorld, DiskTier) {
    if config.cache.ssd.0 == 0 {
        return (world.clone(), DiskTier::Off);
    }
    let directory = &config.cache.directory;
    let disk =
        super::datadir::create_dir(directory).and_then(|()| RealDisk::open(directory, engine));
    let disk = match disk {
        Ok(disk) => check_cache_room(&disk, world.disk(), config).await.map(|()| disk),
        Err(fault) => Err(fault),
    };
    match disk {
        Ok(disk) => {
            let bytes = config.cache.ssd.0;
            let ssd = SsdConfig { node, bytes, region_bytes: REGION_BYTES };
            (world.with_disk(disk), DiskTier::On(ssd))
        }
        Err(fault) => (world.clone(), DiskTier::Unusable(fault.to_string())),
    }
}

/// The cache must not take the room that the write buffer will need.
async fn check_cache_room(disk: &RealDisk, buffer: &RealDisk, config: &Config) -> Result<()> {
    let had = disk.list().await?.into_iter().filter(|(name, _)| name.starts_with("cache-"));
    let had: u64 = had.map(|(_, len)| len).sum();
    let taken = buffer.list().await?.into_iter().filter(|(name, _)| name.starts_with("segment-"));
    let taken: u64 = taken.map(|(_, len)| len).sum();
    let buffer_needs = match disk.is_beside(buffer)? {
        true => config.buffer.capacity.0.saturating_sub(taken),
        false => 0,
    };
    let (needed, free) = (config.cache.ssd.0, disk.free_bytes()?.saturating_sub(buffer_needs));
    // The file is a little shorter than what is configured.
    if free >= needed.saturating_sub(had + 2 * REGION_BYTES) {
        return Ok(());
    }
    Err(Fault::no_space(format!(
        "[cache] ssd_bytes: {needed} bytes do not fit into {}, where {free} are free \
         beside what the write buffer needs",
        config.cache.directory.display()
    )))
}

fn shard_config(
    config: &Config,
    node: NodeId,
    metrics: &Metrics,
    (disk, keys): (DiskTier, Arc<KeyRing>),
) -> ShardConfig {
    let buffer = &config.buffer;
    ShardConfig {
        node,
        buffer: buffer::BufferConfig {
            node,
            shard: 0,
            segment_bytes: buffer.segment.0,
            segment_count: u32::try_from(buffer.capacity.0 / buffer.segment.0).unwrap_or(u32::MAX),
            memory_bytes: buffer.memory.0,
            batch_bytes: buffer.batch.0,
            linger: buffer.linger,
        },
        cache: cache::CacheConfig {
            ram_bytes: config.cache.ram.0,
            disk,
            cluster_size: config.vpool.cluster_size,
        },
        metrics: metrics.open_shard(),
        keys,
    }
}
