//! The operator's decision about a vDisk that is read-only for damage: what it shows now is what it is.
//!
//! 1. What it shows and the backend lacks is uploaded and published, in this epoch. A damaged cluster goes as it is, with the
//!    checksum of what was written: reading it goes on failing until it is overwritten. Nothing is added to the journal.
//! 2. The next epoch is taken for nobody. From then on whatever the write buffer still holds of the volume is another owner's
//!    past: obsolete, the damage with it.
//! 3. The write buffer forgets the volume, and it is opened anew. That is the caller's.
//!
//! A crash before that is done leaves the volume as damaged as it was, and the operator asks again; or it is accepted already:
//! of a damaged cluster there is nothing left to decide once it is published, of changes known to be lost none once nobody
//! has had the volume.

use std::rc::Rc;

use volumedriver_core::fault::{Fault, Kind, Result};
use volumedriver_core::units::{NodeId, ScoSeq};

use super::chain::{self, Found};
use super::{State, Volume};
use crate::world::World;

/// The owner of the epoch that ends a damaged vDisk's past; no node has this identity.
pub const NOBODY: NodeId = NodeId([0; 16]);

impl<W: World> Volume<W> {
    /// Makes what a read-only volume shows its content. It must be closed and opened anew afterwards. `Invalid` when it is not
    /// read-only; after any other error it is what it was.
    pub async fn accept_loss(self: &Rc<Self>) -> Result<()> {
        let State::ReadOnly(why) = self.state() else {
            let name = &self.name;
            return Err(Fault::invalid(format!(
                "vDisk {name} is not read-only: there is no loss to accept"
            )));
        };
        if self.accepting.replace(true) {
            return Err(Fault::invalid(format!(
                "the loss of vDisk {} is being accepted already",
                self.name
            )));
        }
        tracing::warn!(vdisk = self.name, why, "the operator accepts the loss");
        let accepted = self.end_past().await;
        self.accepting.set(false);
        if accepted.as_ref().is_err_and(|fault| fault.kind == Kind::Fenced) {
            self.enter_fenced();
        }
        accepted
    }

    async fn end_past(self: &Rc<Self>) -> Result<()> {
        self.seal_unjournalled();
        while let Some(sco) = self.next_unpublished() {
            let size = self.put_sco(sco).await?;
            self.publish_scos(vec![size]).await?;
        }
        let _one_at_a_time = self.chain.acquire().await.map_err(|_| Fault::closed("closed"))?;
        let found = {
            let core = self.core.borrow();
            Found { head: core.head(), shape: core.shape().clone() }
        };
        chain::follow(&self.shared.world, self.id, NOBODY, found, || self.is_closing()).await?;
        Ok(())
    }

    fn next_unpublished(&self) -> Option<ScoSeq> {
        let core = self.core.borrow();
        core.next_upload(core.shape().last_sco).map(|sco| sco.id().seq)
    }

    /// The last SCO ends here, under a name of this epoch: its own may be on the backend with more in it. A seal in the journal,
    /// behind the gap, would say that there is none.
    fn seal_unjournalled(&self) {
        let mut core = self.core.borrow_mut();
        if core.end_log() {
            let since = self.open_since.take().unwrap_or_else(|| self.shared.world.now());
            self.oldest_since.borrow_mut().push_back(since);
        }
    }
}
