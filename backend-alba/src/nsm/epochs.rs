//! GC epochs: how orphans, files that no manifest names and none ever will, are told from what is being put just now, by
//! any number of processes.
//!
//! Two numbers: the *current* epoch (`g`, in the first cluster), which every fragment's id carries from its making on, and
//! the *least enabled* one (`e`, in each cluster). Every commit that makes fragments live holds only while `e` is still what
//! was read, and is refused here when that is above the epoch of any of the fragments. The collector
//!
//! 1. makes the current epoch a new one, c;
//! 2. waits a grace, so that puts begun before may end;
//! 3. raises `e` to c in every cluster;
//! 4. lists what OSDs hold, and removes each fragment of an epoch below c that no manifest names.
//!
//! Why nothing live is removed: a fragment f of an epoch below c becomes live by a commit whose guard says `e` was at most
//! its epoch, so by one made before 3 in its cluster, as commits of one cluster have an order. The look at the NSM in 4 comes
//! after 3, so it sees all commits that could ever make f live. If it says no, f is not live then; and since ids are
//! never used twice and old commits cannot come any more (one still under way fails at its guard), f never will be.
//! A removal that takes long, or is made twice, removes a file of that very id and so nothing else. None of this needs a
//! clock: a grace too short, or a collector that is paused anywhere, costs puts a second try and no more.
//!
//! Fragments older than epochs are of epoch 0 and are treated alike: they are named by a manifest, or are removed after the
//! first collection.

use super::kv::{Commit, Value};
use super::retry::Retry;
use super::{Nsm, Space, keys};
use crate::fault::{Fault, Kind, Result};
use crate::manifest::Fragment;

impl Nsm {
    /// The current epoch: of fragments made from now on.
    pub async fn epoch(&self) -> Result<u32> {
        let [value] = self.read(0, [keys::EPOCH.to_vec()]).await?;
        // Above that of fragments older than epochs.
        Ok(decode(value.as_ref())?.max(1))
    }

    /// Begins the next epoch, and returns it.
    pub async fn begin_epoch(&self) -> Result<u32> {
        let mut retry = Retry::new(&self.outside);
        loop {
            let [before] = self.read(0, [keys::EPOCH.to_vec()]).await?;
            let full = || Fault::bug("all GC epochs are used up");
            let next = decode(before.as_ref())?.max(1).checked_add(1).ok_or_else(full)?;
            let mut commit = Commit::default();
            commit.is_still(keys::EPOCH.to_vec(), before);
            commit.put(keys::EPOCH.to_vec(), next.to_be_bytes());
            if self.commit(0, commit).await? {
                return Ok(next);
            }
            retry.again().await?;
        }
    }

    /// The current epoch is at least this one: after a recovery, which finds fragments of epochs the new NSM has not seen.
    pub async fn reach_epoch(&self, epoch: u32) -> Result<()> {
        while self.epoch().await? < epoch {
            let [before] = self.read(0, [keys::EPOCH.to_vec()]).await?;
            let mut commit = Commit::default();
            commit.is_still(keys::EPOCH.to_vec(), before);
            commit.put(keys::EPOCH.to_vec(), epoch.to_be_bytes());
            self.commit(0, commit).await?;
        }
        Ok(())
    }

    /// From its return on no fragment of an epoch below this one becomes live any more.
    pub async fn enable_from(&self, epoch: u32) -> Result<()> {
        for home in 0..self.clusters.len() {
            let mut retry = Retry::new(&self.outside);
            loop {
                let [before] = self.read(home, [keys::ENABLED.to_vec()]).await?;
                if decode(before.as_ref())? >= epoch {
                    break;
                }
                let mut commit = Commit::default();
                commit.is_still(keys::ENABLED.to_vec(), before);
                commit.put(keys::ENABLED.to_vec(), epoch.to_be_bytes());
                if self.commit(home, commit).await? {
                    break;
                }
                retry.again().await?;
            }
        }
        Ok(())
    }

    /// No fragment of an epoch below this one becomes live.
    pub async fn enabled_from(&self) -> Result<u32> {
        let mut least = u32::MAX;
        for home in 0..self.clusters.len() {
            let [value] = self.read(home, [keys::ENABLED.to_vec()]).await?;
            least = least.min(decode(value.as_ref())?);
        }
        Ok(least)
    }
}

/// Makes a commit depend on these fragments' epochs being enabled; `Outdated` when one is known not to be.
pub(super) fn enable<'a>(
    commit: &mut Commit,
    space: &Space,
    fragments: impl IntoIterator<Item = &'a Fragment>,
) -> Result<()> {
    let enabled = decode(space.enabled.as_ref())?;
    if let Some(old) = fragments.into_iter().find(|f| f.file.epoch() < enabled) {
        let epoch = old.file.epoch();
        let message = format!("it was begun in GC epoch {epoch}, {enabled} is the least enabled");
        return Err(Fault::new(Kind::Outdated, message));
    }
    commit.is_still(keys::ENABLED.to_vec(), space.enabled.clone());
    Ok(())
}

fn decode(value: Option<&Value>) -> Result<u32> {
    let Some(value) = value else { return Ok(0) };
    let wrong = |_| Fault::corrupt(format!("NSM record: a GC epoch of {} bytes", value.len()));
    Ok(u32::from_be_bytes(value[..].try_into().map_err(wrong)?))
}
