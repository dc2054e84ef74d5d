//! Resize: grow only; the new area is a hole.

use volumedriver_core::fault::{Fault, Result};
use volumedriver_core::format::manifest::ShapeChange;
use volumedriver_core::units::ByteCount;

use super::Volume;
use super::open::check_size;
use crate::world::World;

impl<W: World> Volume<W> {
    pub async fn resize(&self, size: ByteCount) -> Result<()> {
        self.check_writable()?;
        let (now, cluster) = {
            let core = self.core.borrow();
            (core.size(), core.cluster_size())
        };
        if size < now {
            return Err(Fault::invalid(format!(
                "vDisk {} has {now} bytes and cannot shrink to {size}; only growing is possible",
                self.name
            )));
        }
        check_size(size, cluster)?;
        if size == now {
            return Ok(());
        }
        self.add_manifest(vec![ShapeChange::Resized(size)]).await.map(|_| ())
    }
}
