//! Flush: everything accepted before it is on stable storage at the volume's flush level (INV-1, INV-3).

use volumedriver_core::fault::{Fault, Result};
use volumedriver_core::units::Seq;

use super::write::Place;
use super::{State, Volume};
use crate::config::settings::FlushLevel;
use crate::metrics::Stage;
use crate::world::World;

impl<W: World> Volume<W> {
    pub async fn flush(&self) -> Result<()> {
        self.check_readable()?;
        let upto = self.core.borrow().last_seq();
        let level = self.settings.borrow().flush;
        match level {
            FlushLevel::Journal => self.flush_journal().await,
            FlushLevel::Backend => self.publish_upto(upto).await,
        }
    }

    /// Everything accepted so far is in the write buffer, and no other owner is known to have made it obsolete.
    pub(super) async fn flush_journal(&self) -> Result<()> {
        let flushed = self.staged(Stage::JournalCommit, self.shared.buffer.flush()).await;
        flushed.map_err(|fault| self.buffer_fault(fault))?;
        self.check_owner()
    }

    /// An owner that knows of its successor acknowledges nothing more, not even what is true.
    fn check_owner(&self) -> Result<()> {
        if *self.state.borrow() == State::Fenced { Err(self.fenced()) } else { Ok(()) }
    }

    /// Everything accepted so far is uploaded and named by a manifest.
    pub async fn drain(&self) -> Result<()> {
        let upto = self.core.borrow().last_seq();
        self.publish_upto(upto).await
    }

    /// Somebody waits for what is not uploaded yet.
    #[must_use]
    pub fn upload_is_awaited(&self) -> bool {
        self.awaiting.get() > 0
    }

    async fn publish_upto(&self, upto: Seq) -> Result<()> {
        if self.published_seq.get() >= upto {
            return self.check_owner();
        }
        let _awaiting = Place::take(&self.awaiting);
        // The shard lifts the pace of uploads.
        self.shared.pressure.notify_one();
        while self.published_seq.get() < upto {
            self.check_readable()?;
            self.check_uploading()?;
            let drained = self.drained.notified();
            let unsealed = {
                let mut core = self.core.borrow_mut();
                // What a manifest names is sealed, also while its changes are still on their way into the map's base.
                let last_sealed = core.sealed_seq().max(core.shape().last_seq);
                last_sealed < upto && self.seal_now(&mut core).is_none()
            };
            if unsealed {
                self.shared.buffer.failure().map_or(Ok(()), Err)?;
                self.shared.pressure.notify_one();
                self.shared.buffer.room().await;
                continue;
            }
            drained.await;
        }
        self.check_owner()
    }

    fn check_uploading(&self) -> Result<()> {
        match &*self.uploads_ended.borrow() {
            None => Ok(()),
            Some(fault) => Err(Fault::unavailable(format!(
                "vDisk {}: nothing more reaches the backend: {fault}",
                self.name
            ))),
        }
    }

    /// Seals the open SCO if it has changes. `NoSpace`: the buffer has no room for the seal now. Nothing is sealed of a damaged
    /// volume: behind the gap, the seal would say that there is none.
    pub fn seal(&self) -> Result<()> {
        let mut core = self.core.borrow_mut();
        if !core.has_open_changes() || *self.state.borrow() != State::Running {
            return Ok(());
        }
        self.seal_now(&mut core)
            .ok_or_else(|| Fault::no_space("no room in the write buffer for a seal"))
    }
}
