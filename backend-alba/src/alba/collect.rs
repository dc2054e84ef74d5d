//! Background work: drops the objects of deleted namespaces, removes the files noted for removal as a trickle, and collects
//! orphans, files that no manifest names and none ever will (see `nsm::epochs`).
//!
//! A process that has the backend to itself knows when it opens it that whatever was begun before is over: orphans of then
//! are collected some time after the start, or as soon as a put does not fit, for a killed server must not keep its own disk
//! full. In a shared backend they are told from what others are putting by waiting out a grace, as are those that come up
//! later. The removals and the collection are each a post of one agent.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::Inner;
use super::osds::Member;
use super::remove::REMOVED_AT_ONCE;
use crate::fault::{Fault, Result};
use crate::maintenance::Settings;
use crate::name::FragmentId;
use crate::nsm::{Nsm, Removal};

/// Removals noted done in one step.
const STEP: usize = 256;
/// After a failure, or when another agent does it, it is looked at again this much later.
const AGAIN: Duration = Duration::from_secs(30);
/// Longest sleep with nobody looking at the settings, or whether the backend is closed.
const NAP: Duration = Duration::from_secs(1);

/// The epoch to begin with; a backend that is ours alone begins one in which nothing older becomes live.
pub(super) async fn first_epoch(nsm: &Nsm) -> Result<u32> {
    if nsm.is_shared() {
        return nsm.epoch().await;
    }
    let epoch = nsm.begin_epoch().await?;
    nsm.enable_from(epoch).await?;
    Ok(epoch)
}

/// Starts the work; it ends with the backend.
pub(super) fn start(inner: &Arc<Inner>) {
    let background = &inner.blocking;
    background.spawn_in_background(removals(Arc::downgrade(inner), inner.wakes.clone()));
    background.spawn_in_background(orphans(Arc::downgrade(inner), inner.shortage.clone()));
}

async fn removals(backend: Weak<Inner>, wakes: Arc<Notify>) {
    loop {
        let Some(inner) = backend.upgrade() else { return };
        let (is_shared, done) = (inner.nsm.is_shared(), inner.remove_noted().await);
        let tick = inner.agent.settings().lease.min(AGAIN);
        drop(inner);
        match done {
            // In a shared backend others note removals too.
            Ok(Removed::All) if !is_shared => wakes.notified().await,
            Ok(Removed::All) => drop(timeout(tick, wakes.notified()).await),
            Ok(Removed::Some) => drop(timeout(tick, wakes.notified()).await),
            Err(fault) => {
                tracing::warn!(%fault, "reclaiming deleted objects is interrupted");
                drop(timeout(tick, wakes.notified()).await);
            }
        }
    }
}

/// What became of the removals.
enum Removed {
    All,
    /// Some are on OSDs that do not answer now.
    Some,
}

async fn orphans(backend: Weak<Inner>, shortage: Arc<Notify>) {
    let Some(inner) = backend.upgrade() else { return };
    let (grace, is_shared) = (inner.config.orphan_grace, inner.nsm.is_shared());
    drop(inner);
    // Either is a reason to begin.
    let _ = timeout(grace, shortage.notified()).await;
    let mut is_first = !is_shared;
    loop {
        let Some(inner) = backend.upgrade() else { return };
        if std::mem::take(&mut is_first) && inner.agent.settings().collect {
            inner.sweep_or_tell().await;
            drop(inner);
            pause(&backend, &shortage, |settings| settings.collect_interval).await;
        } else {
            drop(inner);
        }
        let Some(begun) = begin(&backend).await else { return };
        if let Some(epoch) = begun {
            let nobody = Notify::new();
            pause(&backend, &nobody, |settings| settings.collect_grace).await;
            let Some(inner) = backend.upgrade() else { return };
            inner.collect(epoch).await;
        }
        let longest = if begun.is_none() { AGAIN } else { Duration::MAX };
        pause(&backend, &shortage, |settings| settings.collect_interval.min(longest)).await;
    }
}

/// Begins an epoch; `Some(None)` when that is not ours to do, or cannot be done now, `None` once the backend is closed.
async fn begin(backend: &Weak<Inner>) -> Option<Option<u32>> {
    let inner = backend.upgrade()?;
    match inner.begin_collection().await {
        Ok(begun) => Some(begun),
        Err(fault) => {
            tracing::warn!(%fault, "orphans are not collected now");
            Some(None)
        }
    }
}

/// As long as the settings say, also those that are changed meanwhile, until the bell rings or the backend is closed.
async fn pause(backend: &Weak<Inner>, bell: &Notify, length: impl Fn(&Settings) -> Duration) {
    let begun = Instant::now();
    while let Some(inner) = backend.upgrade() {
        let left = length(&inner.agent.settings()).saturating_sub(begun.elapsed());
        drop(inner);
        if left.is_zero() || timeout(left.min(NAP), bell.notified()).await.is_ok() {
            return;
        }
    }
}

impl Inner {
    /// An id for a fragment that is begun now.
    pub(super) fn fragment_id(&self) -> FragmentId {
        FragmentId::of_epoch(self.outside.bytes(), self.epoch.load(Ordering::Relaxed))
    }

    /// Epochs only rise, and one that is known late makes a put begin again at worst.
    pub(super) async fn refresh_epoch(&self) -> Result<()> {
        self.epoch.fetch_max(self.nsm.epoch().await?, Ordering::Relaxed);
        Ok(())
    }

    /// Drops what deleted namespaces held, then removes the files noted for removal.
    async fn remove_noted(self: &Arc<Self>) -> Result<Removed> {
        if !self.holds("remove").await? {
            return Ok(Removed::All);
        }
        while self.nsm.drop_some().await? {
            self.agent.pace_removals(STEP as u64).await;
        }
        let known: HashSet<_> = self.nsm.osds().await?.into_iter().map(|(id, _)| id).collect();
        let (mut after, mut outcome) = (None, Removed::All);
        loop {
            let noted = self.nsm.removals(after, STEP).await?;
            let Some(last) = noted.last() else { return Ok(outcome) };
            after = Some(*last);
            // What a purged OSD held is gone with it.
            let is_there = |removal: &Removal| !known.contains(&removal.osd);
            let (gone, there): (Vec<Removal>, Vec<Removal>) = noted.into_iter().partition(is_there);
            let (now, later): (Vec<Removal>, Vec<Removal>) =
                there.into_iter().partition(|removal| self.may_remove(removal));
            let mut removed = Vec::new();
            for some in now.chunks(REMOVED_AT_ONCE) {
                self.agent.pace_removals(some.len() as u64).await;
                removed.extend(self.remove_each(some).await);
            }
            if removed.len() < now.len() || !later.is_empty() {
                outcome = Removed::Some;
            }
            removed.extend(gone);
            self.nsm.removed(&removed).await?;
        }
    }

    /// One that hangs is not asked again and again.
    fn may_remove(&self, removal: &Removal) -> bool {
        self.osds.get(removal.osd).is_ok_and(|member| member.is_well())
    }

    async fn begin_collection(&self) -> Result<Option<u32>> {
        if !self.agent.settings().collect || !self.holds("collect").await? {
            return Ok(None);
        }
        let epoch = self.nsm.begin_epoch().await?;
        self.refresh_epoch().await?;
        Ok(Some(epoch))
    }

    /// After the grace.
    async fn collect(&self, epoch: u32) {
        match self.nsm.enable_from(epoch).await {
            Ok(()) => self.sweep_or_tell().await,
            Err(fault) => tracing::warn!(%fault, "orphans are not collected now"),
        }
    }

    async fn sweep_or_tell(&self) {
        match self.nsm.holds_files().await {
            Ok(false) => {}
            // Rebuilt: files it does not name may be wanted.
            Ok(true) => return,
            Err(fault) => return tracing::warn!(%fault, "orphans are not collected now"),
        }
        for member in self.osds.all() {
            if let Err(fault) = self.sweep(&member).await {
                let osd = member.id();
                tracing::warn!(%fault, %osd, "orphans of an OSD stay until the next collection");
            }
        }
    }

    /// Removes the orphans of an OSD: see `nsm::epochs` for why nothing else goes.
    async fn sweep(&self, member: &Arc<Member>) -> Result<()> {
        let osd = member.id();
        let enabled = self.nsm.enabled_from().await?;
        for shard in 0..=u8::MAX {
            let held = member.list(shard).await?;
            self.check_epochs(&held).await?;
            let old: Vec<FragmentId> = held.into_iter().filter(|id| id.epoch() < enabled).collect();
            if old.is_empty() {
                continue;
            }
            let live = self.nsm.live_of(osd, &old).await?;
            let orphans: Vec<FragmentId> =
                old.into_iter().filter(|id| !live.contains(id)).collect();
            for some in orphans.chunks(REMOVED_AT_ONCE) {
                self.agent.pace_removals(some.len() as u64).await;
                for fragment in some {
                    tracing::info!(%fragment, %osd, "collecting a file without a manifest");
                }
                if let Some(left) = self.remove_from(member, some).await {
                    return Err(left.fault);
                }
            }
        }
        Ok(())
    }

    /// A fragment of an epoch that has not begun was made under another NSM, which knew more than this one: then what this
    /// one does not name may be alive.
    async fn check_epochs(&self, held: &[FragmentId]) -> Result<()> {
        let Some(newest) = held.iter().map(|id| id.epoch()).max() else { return Ok(()) };
        if newest <= self.epoch.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.refresh_epoch().await?;
        let now = self.epoch.load(Ordering::Relaxed);
        if newest > now {
            return Err(Fault::corrupt(format!(
                "it holds a fragment of GC epoch {newest}, the NSM has come to {now} only: it is not the one that fragment was \
                 made under, or an old copy of it; nothing is collected, recover the NSM from the OSDs"
            )));
        }
        Ok(())
    }
}
