//! The engine as the driver uses it: the one file that knows its names.

use std::rc::Rc;
use std::time::Duration;

use volumedriver::buffer::BufferConfig;
use volumedriver::cache::ssd::SsdConfig;
use volumedriver::cache::{CacheConfig, DiskTier};
use volumedriver::metrics::ShardMetrics;
use volumedriver::shard::{Shard, ShardConfig, VolumeSpec};
use volumedriver::volume;
use volumedriver_core::fault::Result;
use volumedriver_core::units::{ByteCount, ClusterSize, NodeId};

use super::plan::{BufferSizes, VolumePlan};
use crate::world::{SimWorld, keys};

pub type Volume = volume::Volume<SimWorld>;
pub use volumedriver::cache::ssd::SsdState;
pub use volumedriver::volume::State;

/// Bytes of a region of the read cache's disk: small, so that the ring turns.
const REGION_BYTES: u64 = 64 << 10;

/// One opened shard.
#[derive(Clone)]
pub struct Engine {
    pub shard: Rc<Shard<SimWorld>>,
}

impl Engine {
    pub async fn open(world: SimWorld, node: NodeId, sizes: BufferSizes) -> Result<Self> {
        let buffer = BufferConfig {
            node,
            shard: 0,
            segment_bytes: sizes.segment_bytes,
            segment_count: sizes.segment_count,
            memory_bytes: sizes.memory_bytes,
            batch_bytes: sizes.batch_bytes,
            linger: Duration::from_millis(2),
        };
        let cache = CacheConfig {
            ram_bytes: sizes.cache_bytes,
            disk: match sizes.ssd_bytes {
                0 => DiskTier::Off,
                bytes => DiskTier::On(SsdConfig { node, bytes, region_bytes: REGION_BYTES }),
            },
            cluster_size: ClusterSize::DEFAULT,
        };
        let (metrics, keys) = (ShardMetrics::detached(), keys::ring()?);
        let config = ShardConfig { node, buffer, cache, metrics, keys };
        let cache_world = world.with_cache_disk();
        let shard = Shard::open(world, cache_world, config).await?;
        Ok(Self { shard })
    }

    pub async fn create(&self, plan: &VolumePlan) -> Result<Rc<Volume>> {
        let spec = VolumeSpec {
            name: plan.name.clone(),
            size: ByteCount(plan.size),
            cluster_size: plan.cluster_size,
            settings: plan.settings.clone(),
        };
        self.shard.create(plan.id, spec).await
    }

    /// Opens a volume, waiting for the backend as long as it takes.
    pub async fn open_volume(&self, plan: &VolumePlan) -> Result<Rc<Volume>> {
        self.shard.open_patiently(plan.id, plan.settings.clone()).await
    }

    /// Makes what a read-only volume shows its content, and opens it anew.
    pub async fn accept_loss(&self, plan: &VolumePlan) -> Result<Rc<Volume>> {
        self.shard.accept_loss(plan.id).await?;
        self.open_volume(plan).await
    }

    /// Fill and backlog of everything, for a message about something that hangs.
    #[must_use]
    pub fn describe(&self) -> String {
        let buffer = &self.shard.shared().buffer;
        let mut text = format!(
            " buffer {} of {}, pressed by {:?};",
            buffer.used_bytes(),
            buffer.capacity_bytes(),
            buffer.pressing()
        );
        for volume in self.shard.volumes() {
            text += &format!(
                " {} {} {:?}: {} SCOs sealed, {} bytes behind, {:?};",
                volume.name(),
                volume.id(),
                volume.state(),
                volume.sealed_count(),
                volume.backlog(),
                volume.open_age(),
            );
        }
        text
    }

    /// Closes without uploading first.
    pub async fn close(&self) -> Result<()> {
        self.shard.close(None).await
    }
}
