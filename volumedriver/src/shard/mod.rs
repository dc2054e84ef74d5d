//! One thread = one runtime = its volumes. [`Handle`] is the only door for frontends.
//!
//! A [`Shard`] owns a write buffer, a read cache and the volumes on them. Everything in it belongs to its thread; other
//! threads reach it only through the bounded channel behind [`Handle`] and the management door.

mod handle;
mod tick;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use volumedriver_core::fault::{Fault, Kind, Result};
use volumedriver_core::format::names;
use volumedriver_core::units::{ByteCount, ClusterSize, NodeId, VolumeId};

pub use handle::{Desk, Directory, ExportInfo, Handle};

use crate::buffer::{Buffer, BufferConfig, Damage, ReplayedVolume};
use crate::cache::{CacheConfig, ReadCache};
use crate::codec::KeyRing;
use crate::config::settings::VdiskSettings;
use crate::metrics::ShardMetrics;
use crate::volume::{self, Backend, Left, Most, Shared, Spec, State, Volume};
use crate::world::{ObjectStore, PageStore, World};

/// What a shard holds of SCOs, for reading their clusters.
const MOST: Most = Most { tables: 4096, files: 512 };
/// Pause before another attempt to open a volume whose backend is out of reach.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);

/// A shard's sizes.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    pub node: NodeId,
    pub buffer: BufferConfig,
    pub cache: CacheConfig,
    pub metrics: ShardMetrics,
    /// What SCOs are encrypted and decrypted with.
    pub keys: Arc<KeyRing>,
}

/// What a new volume is to be.
#[derive(Clone, Debug)]
pub struct VolumeSpec {
    pub name: String,
    pub size: ByteCount,
    pub cluster_size: ClusterSize,
    pub settings: VdiskSettings,
}

/// All volumes of one thread.
pub struct Shard<W: World> {
    shared: Rc<Shared<W>>,
    volumes: RefCell<BTreeMap<VolumeId, Rc<Volume<W>>>>,
    replayed: RefCell<HashMap<VolumeId, ReplayedVolume>>,
    /// What the write buffer lost and cannot say of which volume.
    lost: Option<Damage>,
    /// Volumes whose loss the operator accepted.
    accepted: RefCell<HashSet<VolumeId>>,
    closed: Notify,
}

impl<W: World> Shard<W> {
    /// Replays the write buffer; no volume is open yet. `cache_world` has the disk of the read cache (of no interest when the
    /// cache has no disk).
    pub async fn open(world: W, cache_world: W, config: ShardConfig) -> Result<Rc<Self>> {
        let (buffer, replayed) = Buffer::open(world.clone(), config.buffer).await?;
        let cache = ReadCache::open(cache_world, config.cache).await;
        let shared = Rc::new(Shared {
            backend: Backend::new(world.clone(), config.metrics.clone(), config.keys, MOST),
            node: config.node,
            metrics: config.metrics,
            buffer,
            cache,
            pressure: Notify::new(),
            inflow: RefCell::default(),
            world,
        });
        let lost = replayed.lost;
        let replayed = replayed.volumes.into_iter().map(|r| (r.volume, r)).collect();
        let shard = Rc::new(Self {
            shared,
            volumes: RefCell::default(),
            replayed: RefCell::new(replayed),
            lost,
            accepted: RefCell::default(),
            closed: Notify::new(),
        });
        shard.shared.world.spawn(tick::run(Rc::downgrade(&shard)));
        Ok(shard)
    }

    pub fn shared(&self) -> &Shared<W> {
        &self.shared
    }

    /// Volumes the write buffer holds data of that nobody has opened.
    pub fn unclaimed(&self) -> Vec<VolumeId> {
        self.replayed.borrow().keys().copied().collect()
    }

    /// All volumes of this node were opened, and what the write buffer has of others was given up.
    pub fn settle(&self) {
        self.shared.buffer.settle();
    }

    /// Gives up what the write buffer holds of a volume that no longer exists.
    pub fn forget(&self, id: VolumeId) {
        self.replayed.borrow_mut().remove(&id);
        self.shared.buffer.forget(id);
    }

    /// Makes a volume on the backend and opens it.
    pub async fn create(&self, id: VolumeId, spec: VolumeSpec) -> Result<Rc<Volume<W>>> {
        let fixed = Spec {
            name: spec.name,
            size: spec.size,
            cluster_size: spec.cluster_size,
            sco_size: spec.settings.sco_size,
        };
        volume::create(&self.shared.world, self.shared.node, id, &fixed).await?;
        // Nothing that was lost before can have been its.
        self.open_with(id, spec.settings, None).await
    }

    /// Opens an existing volume, with what the write buffer holds of it.
    pub async fn open_volume(
        &self,
        id: VolumeId,
        settings: VdiskSettings,
    ) -> Result<Rc<Volume<W>>> {
        self.open_with(id, settings, self.lost.clone()).await
    }

    async fn open_with(
        &self,
        id: VolumeId,
        settings: VdiskSettings,
        lost: Option<Damage>,
    ) -> Result<Rc<Volume<W>>> {
        if let Some(open) = self.get(id) {
            return Ok(open);
        }
        let replayed = self.replayed.borrow_mut().remove(&id);
        let mut left = Left { replayed, lost, accepted: self.accepted.borrow().contains(&id) };
        let opened = Volume::open(self.shared.clone(), id, settings, &mut left).await;
        match opened {
            Ok(volume) => {
                self.volumes.borrow_mut().insert(id, volume.clone());
                Ok(volume)
            }
            Err(fault) => {
                // The buffer's data waits for a later attempt.
                self.replayed.borrow_mut().extend(left.replayed.map(|r| (id, r)));
                Err(fault)
            }
        }
    }

    /// Opens, and keeps trying while the backend is out of reach.
    pub async fn open_patiently(
        &self,
        id: VolumeId,
        settings: VdiskSettings,
    ) -> Result<Rc<Volume<W>>> {
        loop {
            match self.open_volume(id, settings.clone()).await {
                Err(fault) if matches!(fault.kind, Kind::Unavailable | Kind::NoSpace) => {
                    tracing::warn!(volume = %id, %fault, "cannot be opened yet; trying again");
                    self.shared.world.sleep(REOPEN_PAUSE).await;
                }
                other => return other,
            }
        }
    }

    pub fn get(&self, id: VolumeId) -> Option<Rc<Volume<W>>> {
        self.volumes.borrow().get(&id).cloned()
    }

    pub fn volumes(&self) -> Vec<Rc<Volume<W>>> {
        self.volumes.borrow().values().cloned().collect()
    }

    /// Deletes a volume: no more requests, its local traces gone, then its namespace. Safe to repeat. `Fenced`, and nothing is
    /// deleted, when another owner has taken over an open volume.
    pub async fn delete(&self, id: VolumeId) -> Result<()> {
        if let Some(volume) = self.get(id) {
            volume.confirm_owner().await?;
        }
        let open = self.volumes.borrow_mut().remove(&id);
        if let Some(volume) = open {
            volume.close().await;
        }
        self.shared.buffer.forget(id);
        self.shared.backend.forget(id);
        self.shared.world.pages().drop_volume(id).await?;
        self.shared.world.store().delete_namespace(&names::namespace(id)).await
    }

    /// Makes what a read-only volume shows its content, and closes it: it is to be opened anew.
    pub async fn accept_loss(&self, id: VolumeId) -> Result<()> {
        let Some(volume) = self.get(id) else {
            return Err(Fault::unavailable(format!("volume {id} is not open")));
        };
        volume.accept_loss().await?;
        self.volumes.borrow_mut().remove(&id);
        volume.close().await;
        self.shared.buffer.forget(id);
        self.accepted.borrow_mut().insert(id);
        Ok(())
    }

    /// Closes all volumes, the buffer and the cache. With `drain` everything is uploaded first, within that time; what is not stays
    /// journalled and is found again by the next opening.
    pub async fn close(&self, drain: Option<Duration>) -> Result<()> {
        let volumes = self.volumes();
        if let Some(bound) = drain {
            let all = futures_util::future::join_all(volumes.iter().map(|v| v.drain()));
            futures_util::pin_mut!(all);
            let bound = self.shared.world.sleep(bound);
            futures_util::pin_mut!(bound);
            futures_util::future::select(all, bound).await;
        }
        self.shared.buffer.flush().await?;
        for volume in &volumes {
            volume.close().await;
        }
        self.volumes.borrow_mut().clear();
        self.closed.notify_waiters();
        if let Err(fault) = self.shared.world.pages().sync().await {
            tracing::warn!(%fault, "the page store could not be written; it is rebuilt from TLogs");
        }
        let closed = self.shared.buffer.close().await;
        // After what must not be lost: the cache only gets a better start from it.
        self.shared.cache.close().await;
        closed
    }

    fn is_writable(volume: &Volume<W>) -> bool {
        volume.state() == State::Running
    }
}

/// The message for a name nobody knows.
fn unknown(name: &str) -> Fault {
    Fault::invalid(format!("there is no vDisk named {name:?}"))
}
