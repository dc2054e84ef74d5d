//! Block status: the allocation of a range, from the map alone.

use volumedriver_core::fault::Result;
use volumedriver_core::request::{Allocation, Extent};
use volumedriver_core::units::{ByteCount, ByteOffset, ClusterAddr, ClusterCount, Mapping};
use volumedriver_core::volume::span;

use super::Volume;
use crate::world::World;

/// Clusters looked up at a time: bounds the work between two awaits.
const STEP_CLUSTERS: u64 = 1 << 18;

impl<W: World> Volume<W> {
    pub(super) async fn status(
        &self,
        offset: ByteOffset,
        len: ByteCount,
        max_extents: u32,
    ) -> Result<Vec<Extent>> {
        self.check_readable()?;
        let (cluster, size) = {
            let core = self.core.borrow();
            (core.cluster_size(), core.size())
        };
        span::check(offset, len, size)?;
        let end = ByteOffset(offset.0 + len.0);
        let mut extents: Vec<Extent> = Vec::new();
        let mut at = offset;
        while at < end {
            let addr = cluster.cluster_of(at);
            let upto = cluster.cluster_of(ByteOffset(end.0 + cluster.bytes() - 1));
            let count = ClusterCount((upto - addr).0.min(STEP_CLUSTERS));
            for (clusters, state) in self.allocation(addr, count).await? {
                let start = cluster.start_of(cluster.cluster_of(at));
                let stop = ByteOffset((start.0 + cluster.bytes_of(clusters).0).min(end.0));
                let len = stop - at;
                let full = extents.len() as u64 >= u64::from(max_extents.max(1));
                match extents.last_mut() {
                    Some(last) if last.state == state => last.len += len,
                    _ if full => return Ok(extents),
                    _ => extents.push(Extent { len, state }),
                }
                at = stop;
            }
        }
        Ok(extents)
    }

    async fn allocation(
        &self,
        addr: ClusterAddr,
        count: ClusterCount,
    ) -> Result<Vec<(ClusterCount, Allocation)>> {
        let extents = self.extents(addr, count).await?;
        let state = |mapping| match mapping {
            Mapping::Hole => Allocation::Hole,
            Mapping::Zero => Allocation::Zero,
            Mapping::At(_) => Allocation::Data,
        };
        Ok(extents.iter().map(|e| (e.count, state(e.mapping))).collect())
    }
}
