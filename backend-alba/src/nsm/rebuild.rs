//! Rebuilding a lost NSM: into empty tables, which nobody may use before all is there.

use std::sync::Arc;

use super::kv::{Commit, Kv};
use super::{Nsm, PAGE, keys};
use crate::fault::{Fault, Result};
use crate::outside::Outside;

/// Marks an empty table as being rebuilt; empties one that a rebuilding before this one left half done.
pub async fn prepare(table: &dyn Kv) -> Result<()> {
    let mark = table.get(vec![keys::REBUILDING.to_vec()]).await?.pop().flatten();
    let (first, last) = (vec![], vec![u8::MAX; 2]);
    if mark.is_some() {
        loop {
            let some = table.writes_at_once().min(PAGE);
            let found = table.range(first.clone(), last.clone(), some).await?;
            let mut commit = Commit::default();
            // The mark goes last: it is put again below.
            for (key, _) in found.into_iter().filter(|(key, _)| key != keys::REBUILDING) {
                commit.delete(key);
            }
            if commit.writes.is_empty() {
                break;
            }
            table.commit(commit).await?;
        }
    } else if !table.range(first, last, 1).await?.is_empty() {
        let place = table.place();
        return Err(Fault::invalid(format!(
            "there is an NSM at {place}: it is not lost. All clusters of an NSM are rebuilt together, each must be empty"
        )));
    }
    let mut commit = Commit::default();
    commit.put(keys::REBUILDING.to_vec(), []);
    table.commit(commit).await.map(drop)
}

impl Nsm {
    /// Over prepared tables; to be used by nobody else before [`Nsm::finish_rebuild`].
    pub async fn begin_rebuild(tables: Vec<Arc<dyn Kv>>, outside: Outside) -> Result<Self> {
        Self::over(tables, outside).await
    }

    /// It may be used from now on. Files that no manifest names stay until [`Nsm::release_files`]: what is incomplete now may
    /// be completed by an OSD that is away.
    pub async fn finish_rebuild(&self) -> Result<()> {
        let mut hold = Commit::default();
        hold.put(keys::REBUILT.to_vec(), []);
        self.commit(0, hold).await?;
        for home in (0..self.clusters.len()).rev() {
            let mut commit = Commit::default();
            commit.delete(keys::REBUILDING.to_vec());
            self.commit(home, commit).await?;
        }
        Ok(())
    }

    /// Files that no manifest names are to stay, whatever their age.
    pub async fn holds_files(&self) -> Result<bool> {
        let [mark] = self.read(0, [keys::REBUILT.to_vec()]).await?;
        Ok(mark.is_some())
    }

    /// What was not rebuilt is given up: its files may go.
    pub async fn release_files(&self) -> Result<()> {
        let mut commit = Commit::default();
        commit.delete(keys::REBUILT.to_vec());
        self.commit(0, commit).await.map(drop)
    }

    pub(super) async fn check_whole(&self) -> Result<()> {
        for (home, cluster) in self.clusters.iter().enumerate() {
            let [mark] = self.read(home, [keys::REBUILDING.to_vec()]).await?;
            if mark.is_some() {
                let place = cluster.kv.place();
                return Err(Fault::invalid(format!(
                    "the NSM at {place} is being rebuilt, or that was interrupted; let `alba recover` end, or run it again"
                )));
            }
        }
        Ok(())
    }
}
