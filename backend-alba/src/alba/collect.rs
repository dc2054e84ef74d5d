//! Background work: drops the objects of deleted namespaces, finishes interrupted removals, and collects orphans, files
//! that a crash left without a manifest.
//!
//! An orphan is a file that no unfinished put claims and that no manifest names, asked in this order: a put claims its file
//! before it makes it, and releases the claim only after its manifest is there. They are looked for once, some time after
//! the start, or as soon as a put does not fit: a killed server must not keep its own disk full.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Notify;

use super::Inner;
use crate::fault::Result;

/// Removals done in one step.
const STEP: usize = 256;
/// After a failure it is tried again this much later.
const AGAIN: Duration = Duration::from_secs(30);

/// Starts the work; it ends with the backend.
pub(super) fn start(inner: &Arc<Inner>) {
    tokio::spawn(removals(Arc::downgrade(inner), inner.wakes.clone()));
    // What others are putting cannot be told from what a crash left.
    if !inner.nsm.is_shared() {
        let grace = inner.config.orphan_grace;
        tokio::spawn(orphans(Arc::downgrade(inner), inner.shortage.clone(), grace));
    }
}

async fn removals(backend: Weak<Inner>, wakes: Arc<Notify>) {
    loop {
        match step(&backend, Inner::remove_noted).await {
            Some(Ok(())) => wakes.notified().await,
            Some(Err(fault)) => {
                tracing::warn!(%fault, "reclaiming deleted objects is interrupted");
                let _ = tokio::time::timeout(AGAIN, wakes.notified()).await;
            }
            None => return,
        }
    }
}

async fn orphans(backend: Weak<Inner>, shortage: Arc<Notify>, grace: Duration) {
    // Either is a reason to begin.
    let _ = tokio::time::timeout(grace, shortage.notified()).await;
    for shard in 0..=u8::MAX {
        let collected = step(&backend, |inner| inner.collect_orphans(shard)).await;
        match collected {
            Some(Ok(())) => {}
            Some(Err(fault)) => {
                tracing::warn!(%fault, shard, "orphans of a shard stay until the next start")
            }
            None => return,
        }
    }
}

/// `None` once the backend is closed.
async fn step<F: Future<Output = Result<()>>>(
    backend: &Weak<Inner>,
    work: impl FnOnce(Arc<Inner>) -> F,
) -> Option<Result<()>> {
    Some(work(backend.upgrade()?).await)
}

impl Inner {
    /// Drops what deleted namespaces held, then removes the files noted for removal.
    async fn remove_noted(self: Arc<Self>) -> Result<()> {
        while self.nsm.drop_some().await? {}
        let mut after = None;
        loop {
            let noted = self.nsm.removals(after, STEP).await?;
            let Some(last) = noted.last() else { return Ok(()) };
            after = Some(*last);
            self.remove_fragments(&noted).await?;
        }
    }

    async fn collect_orphans(self: Arc<Self>, shard: u8) -> Result<()> {
        if self.nsm.holds_files().await? {
            return Ok(());
        }
        for member in self.osds.all() {
            let osd = member.id();
            for id in member.list(shard).await? {
                let is_unfinished = self.unfinished().contains(&id);
                if is_unfinished || self.nsm.is_live(osd, id).await? {
                    continue;
                }
                tracing::info!(fragment = %id, %osd, "collecting a file without a manifest");
                member.remove(id).await?;
            }
        }
        Ok(())
    }
}
